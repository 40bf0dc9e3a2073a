//! Sluice's data plane: accepts connections, routes, queues, load-balances and forwards requests.
//!
//! `edge` accepts connections and terminates TLS; `downstream` serves HTTP/1 and HTTP/2 on them; `exchange`
//! forwards each request, driving the decisions in `request`; `upstream` connects to backends; `http1` is the
//! codec of both sides, `framing` its reader and writer, `h2` counts HTTP/2 frames; `throttle` owns capacity
//! and queue of a revision; `registry` keeps live state by revision across Snapshots; `handover` shares
//! endpoints with the next process of an upgrade; `observe`, `traces` and `admin` are logs, metrics, traces and the
//! admin API.
//!
//! **Invariant:** the decision part (`request`, `throttle`) and the codec do no I/O of their own; only
//! `main.rs` names `sluice-control`.

#![cfg_attr(
    test,
    allow(clippy::disallowed_methods, reason = "tests begin at some time or other")
)]

pub mod admin;
pub mod cli;
mod dns;
pub mod downstream;
pub mod echo;
pub mod edge;
mod exchange;
pub mod explain;
mod framing;
pub mod h2;
pub mod handover;
pub mod http1;
#[cfg(test)]
mod ingress_tests;
mod lease;
pub mod local_response;
pub mod observe;
mod probe;
pub mod registry;
pub mod replicas;
pub mod request;
#[cfg(test)]
mod sim;
pub mod throttle;
mod token_bucket;
pub mod traces;
pub mod upstream;

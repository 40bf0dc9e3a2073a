//! Sluice's data plane: it accepts, routes, holds, balances and forwards.
//!
//! `edge` accepts connections and prepares streams; `http1` is the HTTP/1 codec, `h1` guards its connections; `h2` watches
//! HTTP/2 frames; `proxy` adapts Pingora to the decision part in `request`; `throttle` owns capacity and
//! queue of a revision; `registry` keeps live state by revision across Snapshots; `handover` shares
//! endpoints with the next process of an upgrade; `observe` and `admin` show it all.
//!
//! **Invariant:** the decision part (`request`, `throttle`) names no type of Pingora's; only
//! `main.rs` names `sluice-control`.

pub mod admin;
pub mod answer;
pub mod cli;
pub mod echo;
pub mod edge;
pub mod explain;
pub mod h1;
pub mod h2;
pub mod handover;
pub mod http1;
pub mod observe;
pub mod proxy;
pub mod registry;
pub mod request;
pub mod spare;
pub mod throttle;
pub mod upkeep;

//! The gateway in a Kubernetes cluster: `tests/cluster/test` runs these tests, `cargo test` alone skips them.
//!
//! All are in one cluster, each in namespaces of its own, at the same time. Those of `alone` are in one cluster each.

#![allow(clippy::disallowed_methods, reason = "real clients, real time")]

mod alone;
mod pod;

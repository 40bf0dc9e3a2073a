//! The control plane: compiles configuration into Snapshots, and turns demand into running instances.
//! Data flow: `source → config → compile → publish` for configuration, `load → decide → scale` for demand. Only this
//! crate knows the config format, file events and processes.
//! **Invariant:** the control plane knows the data plane only by the traits of `sluice-model`.

#![cfg_attr(
    test,
    allow(clippy::disallowed_methods, reason = "tests begin at some time or other")
)]

pub mod autoscale;
pub mod compile;
pub mod config;
pub mod index;
pub mod ingress;
mod object_name;
mod parallel;
pub mod plan;
pub mod reconcile;
pub mod release;
pub mod rollout;
pub mod scale;
pub mod schedule;
pub mod source;
pub mod state;

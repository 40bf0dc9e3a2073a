//! Sluice's control plane: it turns sources into Snapshots and demand into running instances.
//!
//! `source → config → compile → publish` on one side, `load → decide → scale` on the other. The
//! only crate that knows the config format, notify and processes.
//!
//! **Invariant:** knows nothing of the data plane but what `sluice-model` names.

pub mod autoscale;
pub mod compile;
pub mod config;
pub mod index;
mod parallel;
pub mod plan;
pub mod reconcile;
pub mod scale;
pub mod source;

//! Knative's pod autoscaler: load in, [`ScaleDecision`] out.
//!
//! The decisions are pure: [`window`] averages samples, [`decide()`] computes a number of instances, [`clamp`] applies
//! minimum, maximum and the rules of scale to zero, and `tracker` combines the three for one revision. [`run`] is the async
//! shell, which samples the data plane and passes decisions to a [`DesiredSink`].
//!
//! Time is a [`Duration`](std::time::Duration) since the caller's origin, so that a day of scaling fits into a unit test.

pub mod clamp;
pub mod decide;
mod reason;
pub mod run;
mod sliding_max;
mod tracker;
pub mod window;

pub use decide::{DeciderState, Observation, decide};
pub use reason::{Limit, Measured, Reason, ScaleDecision};
pub use run::{AutoscaleHandle, AutoscaleLoop, DesiredSink, Inherited, autoscaler};

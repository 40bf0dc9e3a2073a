//! Knative's pod autoscaler: load in, [`ScaleDecision`] out.
//!
//! The decisions are pure: [`window`] averages samples, [`decide()`] computes a number of instances, [`clamp`] applies
//! minimum, maximum and the rules of scale to zero, and `tracker` combines the three for one revision. `foresight` looks
//! ahead: schedules and forecast are floors and ceilings inside of which that decision moves. `revision` has all of it for one
//! revision, on real instances or, in observe mode, on virtual ones. [`run`] is the async shell, which samples the data plane and passes decisions to a [`DesiredSink`].
//!
//! Time is a [`Duration`](std::time::Duration) since the caller's origin, so that a day of scaling fits into a unit test.

mod bounds;
pub mod clamp;
pub mod decide;
mod forecast;
mod foresight;
mod reason;
pub mod replay;
mod revision;
pub mod run;
mod sliding_max;
mod tracker;
mod virtual_fleet;
pub mod window;

pub use decide::{DeciderState, Observation, decide};
pub use reason::{Limit, Measured, Reason, ScaleDecision};
pub use run::{AutoscaleHandle, AutoscaleLoop, DesiredSink, Inherited, Outside, autoscaler};

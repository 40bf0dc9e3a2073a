//! Knative's pod autoscaler: load in, [`ScaleDecision`] out.
//!
//! Pure where it decides: [`window`] averages, [`decide()`] asks for a number, [`bounds`] says how
//! much of it is allowed and when zero is zero, `track` strings them together for one revision.
//! [`run`] is the thin shell that samples the data plane and calls whoever carries decisions out.
//!
//! Time is a [`Duration`](std::time::Duration) since an origin the caller keeps, so that a whole
//! day of scaling is a unit test.

pub mod bounds;
pub mod decide;
mod reason;
pub mod run;
mod sliding_max;
mod track;
pub mod window;

pub use decide::{DeciderState, Observation, decide};
pub use reason::{Limit, Measured, Reason, ScaleDecision};
pub use run::{AutoscaleHandle, AutoscaleLoop, Desired, Inherited, autoscaler};

//! Metrics of a throttler.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use crate::observe::{ActivationResult as Label, RevisionMetrics};
use crate::throttle::{ActivationOutcome, RevisionObserver};

/// The metrics of one revision, as its throttler's observer: created with its live state, so that requests
/// find their metrics without a lookup.
#[derive(Debug)]
pub struct MeasuredRevision(pub Arc<RevisionMetrics>);

impl MeasuredRevision {
    /// The metrics behind an observer, if it is a `MeasuredRevision`.
    pub fn of(observer: &dyn RevisionObserver) -> Option<&RevisionMetrics> {
        let any: &dyn Any = observer;
        any.downcast_ref::<Self>().map(|measured| &*measured.0)
    }
}

impl RevisionObserver for MeasuredRevision {
    fn queue_waited(&self, _: Duration, _: bool) {
        // Counted with its request, when that ends.
    }

    fn activation_started(&self) {
        // Counted when the activation ends, with its result.
    }

    fn activation_finished(&self, result: ActivationOutcome, took: Duration) {
        let label = match result {
            ActivationOutcome::Ready => Label::Ready,
            ActivationOutcome::Failed(failure) => Label::from(failure),
        };
        self.0.activated(label, took);
    }
}

//! What happens in a throttler, as metrics.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use crate::observe::{ActivationResult as Label, RevisionMetrics};
use crate::throttle::{ActivationResult, RevisionObserver};

/// The metrics of one revision, as its throttler's observer: made with its live state, so that
/// requests find their handles without a lookup.
#[derive(Debug)]
pub struct MeasuredRevision(pub Arc<RevisionMetrics>);

impl MeasuredRevision {
    /// The handles behind an observer, if it is one of these.
    pub fn of(observer: &dyn RevisionObserver) -> Option<&RevisionMetrics> {
        let any: &dyn Any = observer;
        any.downcast_ref::<Self>().map(|measured| &*measured.0)
    }
}

impl RevisionObserver for MeasuredRevision {
    fn queue_waited(&self, _: Duration, _: bool) {
        // MetricsScope with the request it belongs to, once that is over.
    }

    fn activation_started(&self) {
        // MetricsScope when it ended, with its result.
    }

    fn activation_finished(&self, result: ActivationResult, took: Duration) {
        let label = match result {
            ActivationResult::Ready => Label::Ready,
            ActivationResult::Failed(failure) => Label::from(failure),
        };
        self.0.activated(label, took);
    }
}

//! What a throttler tells metrics.

use std::any::Any;
use std::fmt;
use std::time::Duration;

/// How an activation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivationOutcome {
    /// An endpoint became ready.
    Ready,
    /// It failed.
    Failed(sluice_model::Failure),
}

/// Told what happens in a throttler, for metrics. Called outside its lock; must not block.
///
/// Gauges are not here: they are read with [`RevisionThrottler::peek`](super::RevisionThrottler::peek). As a subtrait of `Any` it
/// lets whoever made an observer get its own type back.
pub trait RevisionObserver: Any + fmt::Debug + Send + Sync {
    /// Somebody waited and does not any more; `admitted` or rejected. Not called for a client
    /// that left.
    fn queue_waited(&self, waited: Duration, admitted: bool);
    /// Demand was sent.
    fn activation_started(&self);
    /// What was demanded came, or will not.
    fn activation_finished(&self, result: ActivationOutcome, took: Duration);
}

/// Observes nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoObserver;

impl RevisionObserver for NoObserver {
    fn queue_waited(&self, _: Duration, _: bool) {}
    fn activation_started(&self) {}
    fn activation_finished(&self, _: ActivationOutcome, _: Duration) {}
}

//! The observer of a throttler, for metrics.

use std::any::Any;
use std::fmt;
use std::time::Duration;

/// How an activation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivationOutcome {
    /// An endpoint became ready.
    Ready,
    /// The activation failed.
    Failed(sluice_model::Failure),
}

/// Receives the events of a throttler, for metrics. Called outside its lock; must not block.
///
/// Gauges are not here: read them with [`RevisionThrottler::peek`](super::RevisionThrottler::peek). As a
/// subtrait of `Any` it lets the caller that made an observer get its own type back.
pub trait RevisionObserver: Any + fmt::Debug + Send + Sync {
    /// A wait ended after `waited`: `admitted` or rejected. Not called for a client that left.
    fn queue_waited(&self, waited: Duration, admitted: bool);
    /// Demand was sent.
    fn activation_started(&self);
    /// An activation succeeded or failed after `took`.
    fn activation_finished(&self, result: ActivationOutcome, took: Duration);
}

/// Ignores all events.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoObserver;

impl RevisionObserver for NoObserver {
    fn queue_waited(&self, _: Duration, _: bool) {}
    fn activation_started(&self) {}
    fn activation_finished(&self, _: ActivationOutcome, _: Duration) {}
}

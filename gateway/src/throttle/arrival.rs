//! Requests to a throttler and its answers.

use std::time::{Duration, Instant};

use sluice_model::StickyKey;

use super::endpoint_set::bit;
use super::permit::Permit;
use super::rejection::Rejection;
use super::waiter::Waiter;

/// A request that asks for a slot.
#[derive(Debug, Clone, Copy, Default)]
pub struct Arrival {
    /// Bytes held while the request waits: its head.
    pub bytes: u64,
    /// Deadline of the request: it is rejected then, or before it is sent on.
    pub deadline: Option<Instant>,
    /// Sticky key: asks for the endpoint that this key leads to.
    pub sticky: Option<StickyKey>,
    /// The request is passive (`noWake`): it starts nothing and counts as no activity.
    pub passive: bool,
}

/// Decision on an [`Arrival`].
#[derive(Debug)]
pub enum Admission {
    /// Admitted: the request has a slot.
    Admitted(Permit),
    /// Queued: the waiter is a future.
    Waiting(Waiter),
    /// Rejected: respond to the client.
    Rejected(Rejection),
}

impl Admission {
    /// Resolves at once, or when the waiter does.
    ///
    /// Cancel-safe: dropping it gives the slot or the place in the queue back.
    ///
    /// # Errors
    /// The [`Rejection`].
    pub async fn wait(self) -> Result<Permit, Rejection> {
        match self {
            Self::Admitted(permit) => Ok(permit),
            Self::Waiting(waiter) => waiter.await,
            Self::Rejected(rejection) => Err(rejection),
        }
    }
}

/// Outcome of an attempt, as a sign of its endpoint's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A connection was made. No sign yet of the application behind it.
    Connected,
    /// No connection could be made.
    ConnectFailed,
    /// A response head came.
    Responded {
        /// Its status.
        status: u16,
    },
    /// No response head came in time.
    ResponseTimeout,
    /// The connection broke before a response head. Not for a reused idle connection that the backend had
    /// closed meanwhile: that is no failure.
    Broke,
}

/// A request's ticket in the queue, kept while it waits and while it holds a slot: enough to put the request
/// back at its place in the order of arrival.
#[derive(Debug)]
pub(crate) struct QueueTicket {
    /// Order of arrival within the revision.
    pub(crate) seq: u64,
    pub(crate) arrival: Arrival,
    /// Time spent in the queue so far.
    pub(crate) queued: Duration,
    /// Attempts that failed. Empty, and so without an allocation, for nearly every request.
    pub(crate) tried: Vec<FailedAttempt>,
}

/// An endpoint that failed this request before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FailedAttempt {
    /// Readiness epoch of the endpoint: once the endpoint is proven ready again, the request may try it again.
    pub(crate) readiness_epoch: u64,
    /// No connection could be made: an immediate retry is useless.
    pub(crate) refused: bool,
    /// The tier answered 429: the request is for another one.
    pub(crate) tier: Option<u8>,
}

impl QueueTicket {
    pub(crate) fn has_tried(&self, readiness_epoch: u64) -> bool {
        self.tried.iter().any(|t| t.readiness_epoch == readiness_epoch)
    }

    /// The tiers that answered 429, as a set of bits.
    pub(crate) fn refused_tiers(&self) -> u8 {
        let tiers = self.tried.iter().filter_map(|attempt| attempt.tier);
        tiers.fold(0, |set, tier| set | bit(usize::from(tier)))
    }

    pub(crate) fn was_refused_by(&self, readiness_epoch: u64) -> bool {
        self.tried
            .iter()
            .any(|t| t.readiness_epoch == readiness_epoch && t.refused)
    }
}

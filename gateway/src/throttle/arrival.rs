//! What comes in at a throttler and what it says.

use std::time::{Duration, Instant};

use sluice_model::StickyKey;

use super::permit::Permit;
use super::rejection::Rejection;
use super::waiter::Waiter;

/// A request that wants a slot.
#[derive(Debug, Clone, Copy, Default)]
pub struct Arrival {
    /// Bytes held while it waits: its head.
    pub bytes: u64,
    /// When an answer is of no use any more; it is rejected then, or before it is sent on.
    pub deadline: Option<Instant>,
    /// Asks for the endpoint this key leads to.
    pub sticky: Option<StickyKey>,
}

/// The answer to an [`Arrival`].
#[derive(Debug)]
pub enum Admission {
    /// Go.
    Admitted(Permit),
    /// Wait: the waiter is a future.
    Waiting(Waiter),
    /// Answer the client.
    Rejected(Rejection),
}

impl Admission {
    /// Resolves at once, or when the waiter does.
    ///
    /// Cancel-safe: dropping it gives slot or place back.
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

/// What an attempt told about its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A connection was made. Says nothing yet of the application behind it.
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
    /// The connection broke before a response head. Not for a reused connection that the other
    /// side had closed while it idled: that is nobody's failure.
    Broke,
}

/// What is known of a request while it waits and while it holds a slot: enough to put it back at
/// its place in time.
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
    /// Which readiness of the endpoint it was: once it proved itself again, it may be tried again.
    pub(crate) readiness_epoch: u64,
    /// No connection could be made: trying again at once is of no use.
    pub(crate) refused: bool,
}

impl QueueTicket {
    pub(crate) fn has_tried(&self, readiness_epoch: u64) -> bool {
        self.tried.iter().any(|t| t.readiness_epoch == readiness_epoch)
    }

    pub(crate) fn was_refused_by(&self, readiness_epoch: u64) -> bool {
        self.tried
            .iter()
            .any(|t| t.readiness_epoch == readiness_epoch && t.refused)
    }
}

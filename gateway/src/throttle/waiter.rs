//! The future of a held request.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use super::permit::Permit;
use super::rejection::Rejection;
use super::shell::{RevisionThrottler, clock};

pub(crate) type Sender = oneshot::Sender<Result<Permit, Rejection>>;

/// The future of a held request; resolves exactly once.
///
/// Cancel-safe at every point. Dropping it frees its place in the queue at once; when a slot was already
/// granted but the waiter was not polled since, the slot goes to the next waiter: the permit lives in the
/// channel, and the end that is dropped last drops the permit.
#[must_use = "dropping it gives the ticket up"]
pub struct Waiter {
    throttler: Arc<RevisionThrottler>,
    seq: u64,
    receiver: oneshot::Receiver<Result<Permit, Rejection>>,
    done: bool,
}

impl Waiter {
    pub(crate) fn new(
        throttler: Arc<RevisionThrottler>,
        seq: u64,
        receiver: oneshot::Receiver<Result<Permit, Rejection>>,
    ) -> Self {
        Self {
            throttler,
            seq,
            receiver,
            done: false,
        }
    }
}

impl Waiter {
    /// How many requests are before this one in the queue; no more than `most` are counted.
    pub fn ahead(&self, most: usize) -> usize {
        self.throttler.ahead(self.seq, most)
    }
}

impl Future for Waiter {
    type Output = Result<Permit, Rejection>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.receiver).poll(cx).map(|received| {
            self.done = true;
            // The sender is dropped unused only with the whole throttler.
            received.unwrap_or(Err(Rejection::Removed))
        })
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if !self.done {
            self.throttler.cancel(self.seq, clock());
        }
    }
}

impl fmt::Debug for Waiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiter")
            .field("seq", &self.seq)
            .finish_non_exhaustive()
    }
}

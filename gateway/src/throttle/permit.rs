//! The RAII guard of one slot of one endpoint.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::actions::Grant;
use super::arrival::{Admission, Outcome};
use super::endpoint::EndpointState;
use super::shell::{RevisionThrottler, clock};

/// The right to use one slot of one endpoint, until it is dropped; the slot then goes to the oldest waiter at
/// once.
#[must_use = "dropping it gives the slot back"]
pub struct Permit {
    throttler: Arc<RevisionThrottler>,
    /// Taken only by `failover` and `drop`.
    grant: Option<Grant>,
    refused: AtomicBool,
}

impl Permit {
    pub(crate) fn new(throttler: Arc<RevisionThrottler>, grant: Grant) -> Self {
        Self {
            throttler,
            grant: Some(grant),
            refused: AtomicBool::new(false),
        }
    }

    /// Where to send the request.
    pub fn endpoint(&self) -> &Arc<EndpointState> {
        &self.grant().endpoint
    }

    /// How long the request waited for this permit, waits of earlier attempts included.
    pub fn waited(&self) -> Duration {
        self.grant().ticket.queued
    }

    /// Number of failed attempts before this one.
    pub fn failed_attempts(&self) -> usize {
        self.grant().ticket.tried.len()
    }

    /// Reports the outcome of an attempt for outlier detection. A success of a healthy endpoint takes no lock.
    pub fn report(&self, outcome: Outcome, now: Instant) {
        if outcome == Outcome::ConnectFailed {
            self.refused.store(true, Ordering::Relaxed);
        }
        let bad = !matches!(outcome, Outcome::Connected | Outcome::Responded { .. })
            || matches!(outcome, Outcome::Responded { status: 502..=504 });
        let grant = self.grant();
        if matches!(outcome, Outcome::Responded { .. }) {
            grant.endpoint.mark_answered();
        }
        if bad || (outcome != Outcome::Connected && grant.endpoint.is_troubled()) {
            self.throttler
                .report(grant.slot, grant.readiness_epoch, outcome, now);
        }
    }

    /// Fails over: gives this slot back and asks for another one, if possible of an endpoint that did not fail
    /// this request. The request keeps its place in the order of arrival: it waits ahead of all later ones.
    /// Report the failure first.
    ///
    /// [`Rejection::NoEndpoints`](super::Rejection::NoEndpoints) means that every endpoint refused this
    /// request's connection and that no activation can help; otherwise the same endpoint may come again (a
    /// connection broke, it is the only one), and the caller bounds the number of attempts.
    /// [`Rejection::Removed`](super::Rejection::Removed) means that the revision is gone from the table: route
    /// anew.
    pub fn failover(mut self, now: Instant) -> Admission {
        let grant = self.grant.take().expect("held until dropped");
        let refused = self.refused.load(Ordering::Relaxed);
        self.throttler
            .failover((grant.slot, grant.readiness_epoch, refused), grant.ticket, now)
    }

    /// Whether another tier of the revision may serve the request, which this one answered with 429.
    pub fn may_spill(&self, now: Instant) -> bool {
        let grant = self.grant();
        self.throttler.may_spill(grant.slot, &grant.ticket, now)
    }

    /// Gives this slot back and asks for one of another tier, as [`failover`](Self::failover) does for another
    /// endpoint. The backend answered: nothing is reported.
    pub fn spill(mut self, now: Instant) -> Admission {
        let grant = self.grant.take().expect("held until dropped");
        self.throttler
            .spill((grant.slot, grant.readiness_epoch), grant.ticket, now)
    }

    fn grant(&self) -> &Grant {
        self.grant.as_ref().expect("held until dropped")
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(grant) = self.grant.take() {
            let passive = grant.ticket.arrival.passive;
            self.throttler.release(grant.slot, passive, clock());
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("endpoint", self.endpoint())
            .finish_non_exhaustive()
    }
}

//! Waiters of the core: whether a request may wait, how long, and with what it is rejected.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::actions::Actions;
use super::arrival::QueueTicket;
use super::budget::{EnterResult, Reservation};
use super::core::{Core, MIN_RETRY, Supply};
use super::rejection::Rejection;

/// How much longer than `start_timeout` a waiter waits, so that the control plane's report of the
/// same timeout, which knows the cause, comes first.
const REPORT_GRACE: Duration = Duration::from_millis(250);

/// Stands in for times too far away for the clock's arithmetic.
const FAR: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

impl<W> Core<W> {
    /// Rejects passive waiters, which must not start anything.
    pub(super) fn reject_passive(&mut self, now: Instant, actions: &mut Actions<W>, rejection: &Rejection) {
        self.refuse_older(rejection);
        for seq in self.queue.passive_seqs() {
            if let Some(entry) = self.queue.remove(seq) {
                self.resolve(entry, now, actions, |_, _| Err(rejection.clone()));
            }
        }
    }

    /// The longest wait in the present state.
    pub(super) fn bound(&self) -> Duration {
        let limits = &self.limits;
        let is_flipped = self.is_flipped();
        if self.paused && !is_flipped {
            // The end of a start, good or bad, ends no wait: only a resume does.
            return limits.queue.timeout;
        }
        let bound = if self.endpoints.counts().ready == 0 && self.is_startable() {
            limits
                .queue
                .timeout
                .min(limits.start_timeout.saturating_add(REPORT_GRACE))
        } else {
            limits.queue.timeout
        };
        // The newer process has the better rejection, and as much time to send it.
        let grace = if is_flipped { REPORT_GRACE } else { Duration::ZERO };
        bound.saturating_add(grace)
    }

    pub(super) fn expiry(&self, waited: Duration, deadline: Option<Instant>, now: Instant) -> Instant {
        let end = now + self.bound().saturating_sub(waited).min(FAR);
        deadline.map_or(end, |d| d.min(end))
    }

    /// Rejects waiters whose time is over. A waiter that came under a tighter bound (nothing ran yet) gets the
    /// rest of the present bound instead.
    pub(super) fn expire_waiters(&mut self, now: Instant, actions: &mut Actions<W>) {
        while let Some(due) = self.queue.due(now) {
            let rejection = if due.deadline.is_some_and(|d| d <= now) {
                Rejection::DeadlineExceeded
            } else if due.waited < self.bound() {
                let expires = self.expiry(due.waited, due.deadline, now);
                self.queue.postpone(due.seq, expires);
                continue;
            } else if self.paused {
                let retry_after = self.retry_after(now);
                Rejection::QueueTimeout { retry_after }
            } else if self.endpoints.counts().ready == 0 && self.is_startable() {
                Rejection::not_started_in_time(due.waited, self.retry_after(now))
            } else if self.endpoints.counts().ready == 0 && !self.is_flipped() {
                Rejection::NoEndpoints
            } else {
                Rejection::QueueTimeout {
                    retry_after: self.retry_after(now),
                }
            };
            if let Some(entry) = self.queue.remove(due.seq) {
                self.resolve(entry, now, actions, |_, _| Err(rejection));
            }
        }
    }

    /// Rejects every waiter, those of an older process too.
    pub(super) fn reject_all(&mut self, now: Instant, actions: &mut Actions<W>, rejection: &Rejection) {
        self.refuse_older(rejection);
        while let Some(entry) = self.queue.pop() {
            self.resolve(entry, now, actions, |_, _| Err(rejection.clone()));
        }
    }

    /// `Retry-After`: the average duration of an activation, less the time the present one has taken.
    pub(super) fn retry_after(&self, now: Instant) -> Duration {
        if self.endpoints.counts().ready > 0 {
            return MIN_RETRY;
        }
        let tiers = self.tiers.iter().filter_map(|tier| tier.start_left(now));
        tiers.min().unwrap_or_default().max(MIN_RETRY)
    }

    /// Asks the gateway-wide budget for space once the revision's own limits allow the wait.
    pub(super) fn may_wait(
        &self,
        bytes: u64,
        reservation: Option<Reservation>,
        now: Instant,
    ) -> Result<EnterResult, Rejection> {
        if let Some(rejection) = self.no_wait(now) {
            return Err(rejection);
        }
        let limits = &self.limits.queue;
        if self.queue.len() >= limits.depth || self.queue.bytes().saturating_add(bytes) > limits.bytes {
            return Err(Rejection::QueueFull {
                retry_after: self.retry_after(now),
            });
        }
        Ok(self.queue.enter(bytes, reservation))
    }

    /// Why no request may wait, if none may.
    pub(super) fn no_wait(&self, now: Instant) -> Option<Rejection> {
        if let Some(closing) = self.closed {
            return Some(closing.rejection());
        }
        let counts = self.endpoints.counts();
        if counts.ready > 0 || self.is_flipped() {
            return None;
        }
        if !self.paused
            && let Some((failure, until)) = self.failed_start(now)
        {
            return Some(Rejection::ActivationFailed {
                failure: Arc::clone(failure),
                retry_after: until.duration_since(now).max(MIN_RETRY),
            });
        }
        let has_none = counts.live() == 0 && self.has_supply(&[Supply::Fixed]);
        has_none.then_some(Rejection::NoEndpoints)
    }

    /// Whether every endpoint has refused this request's connection and no other endpoint will come. While paused there is
    /// hope: whatever listens there may be replaced meanwhile.
    pub(super) fn is_hopeless(&self, ticket: &QueueTicket) -> bool {
        !self.is_flipped()
            && !self.paused
            && !self.is_startable()
            && self
                .endpoints
                .iter()
                .all(|(_, e)| !e.is_live() || ticket.was_refused_by(e.readiness_epoch))
    }
}

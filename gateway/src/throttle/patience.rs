//! How long anybody waits, and what they are told when it was too long.

use std::time::{Duration, Instant};

use super::core::{Core, Supply};
use super::effects::Effects;
use super::rejection::Rejection;

/// How much longer than `start_timeout` a waiter waits, so that the control plane's report of the
/// same timeout, which knows the cause, comes first.
const REPORT_GRACE: Duration = Duration::from_millis(250);
/// Stands in for times too far away for the clock's arithmetic.
const FAR: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

impl<W> Core<W> {
    /// The longest anybody waits as things are.
    pub(super) fn bound(&self) -> Duration {
        let limits = &self.limits;
        if self.remote.is_some() {
            // Whoever is asked knows the better answer, and has as much time for it.
            return limits.queue.timeout.saturating_add(REPORT_GRACE);
        }
        if self.endpoints.counts().ready == 0 && limits.supply == Supply::Activated {
            limits
                .queue
                .timeout
                .min(limits.start_timeout.saturating_add(REPORT_GRACE))
        } else {
            limits.queue.timeout
        }
    }

    pub(super) fn expiry(&self, waited: Duration, deadline: Option<Instant>, now: Instant) -> Instant {
        let end = now + self.bound().saturating_sub(waited).min(FAR);
        deadline.map_or(end, |d| d.min(end))
    }

    /// A waiter that came when the bound was tighter (nothing ran yet) gets what is left of the
    /// present one.
    pub(super) fn expire_waiters(&mut self, now: Instant, fx: &mut Effects<W>) {
        while let Some(due) = self.queue.due(now) {
            let rejection = if due.deadline.is_some_and(|d| d <= now) {
                Rejection::DeadlineExceeded
            } else if due.waited < self.bound() {
                let expires = self.expiry(due.waited, due.deadline, now);
                self.queue.postpone(due.seq, expires);
                continue;
            } else if self.remote.is_some() {
                let retry_after = self.retry_after(now);
                Rejection::QueueTimeout { retry_after }
            } else if self.endpoints.counts().ready == 0 && self.limits.supply == Supply::Activated {
                Rejection::not_started_in_time(due.waited, self.retry_after(now))
            } else if self.endpoints.counts().ready == 0 {
                Rejection::NoEndpoints
            } else {
                Rejection::QueueTimeout {
                    retry_after: self.retry_after(now),
                }
            };
            if let Some(entry) = self.queue.remove(due.seq) {
                self.resolve(entry, now, fx, |_, _| Err(rejection));
            }
        }
    }
}

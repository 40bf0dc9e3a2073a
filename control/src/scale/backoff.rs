//! Exponential back-off of starts: after failures in a row, and after crashes in a row.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::handover::{elapsed, instant_before, remaining};

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// After serving this long, an instance that ends is no part of a crash loop.
const PROVEN: Duration = Duration::from_secs(10);

/// The back-off of one revision: doubles from 1 s to 30 s with every failure in a row. Up to a quarter is added as jitter,
/// so that many revisions with one broken cause do not start together.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    /// Starts that failed in a row.
    failures: u32,
    /// Instances in a row that became ready and ended soon after.
    crashes: u32,
    failed_at: Option<Instant>,
    until: Option<Instant>,
}

impl Backoff {
    /// Counts a failed start that began at `begun`, and returns the delay until the next one. Starts that were under way at
    /// the same time count once.
    pub(crate) fn failed(&mut self, begun: Instant, now: Instant, jitter: f64) -> Duration {
        if self.failed_at.is_none_or(|at| begun > at) {
            self.failures += 1;
            self.failed_at = Some(now);
            self.until = Some(now + spread(self.failures, jitter));
        }
        self.remaining(now).unwrap_or_default()
    }

    /// Counts a crash: an instance that was ready for `served` ended by itself. The first one in a row is replaced without
    /// delay: requests wait for a crash loop only, not for a crash.
    pub(crate) fn crashed(&mut self, served: Duration, now: Instant, jitter: f64) {
        self.crashes = if served < PROVEN { self.crashes + 1 } else { 0 };
        if self.crashes > 1 {
            self.until = Some(now + spread(self.crashes - 1, jitter));
        }
    }

    /// Forbids starts for `delay`, without counting a failure: the revision is not the cause.
    pub(crate) fn hold(&mut self, now: Instant, delay: Duration) {
        self.until = Some(now + delay);
    }

    /// Clears failures, because an instance became ready: otherwise the next waiter would wait for a failure without a
    /// cause to report. Crashes still count until an instance has served for a while.
    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
        self.failed_at = None;
        self.until = None;
    }

    /// Resets the back-off: another plan is started from now on.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    /// The time until the next start is allowed; `None` when it is allowed now.
    pub(crate) fn remaining(&self, now: Instant) -> Option<Duration> {
        self.until
            .map(|until| until.saturating_duration_since(now))
            .filter(|left| !left.is_zero())
    }

    /// When starting is allowed again.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.until
    }
}

/// A [`Backoff`] as one gateway leaves it to the next.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SavedBackoff {
    failures: u32,
    crashes: u32,
    failed_at: Option<Duration>,
    until: Option<Duration>,
}

impl Backoff {
    pub(crate) fn save(&self, now: Instant) -> SavedBackoff {
        SavedBackoff {
            failures: self.failures,
            crashes: self.crashes,
            failed_at: self.failed_at.map(|at| elapsed(at, now)),
            until: self.until.map(|at| remaining(at, now)),
        }
    }
}

impl SavedBackoff {
    pub(crate) fn restore(&self, now: Instant) -> Backoff {
        Backoff {
            failures: self.failures,
            crashes: self.crashes,
            failed_at: self.failed_at.map(|at| instant_before(now, at)),
            until: self.until.map(|at| now + at),
        }
    }
}

fn spread(nth: u32, jitter: f64) -> Duration {
    let doubled = FIRST.saturating_mul(1 << nth.saturating_sub(1).min(5));
    doubled.min(LONGEST).mul_f64(1.0 + jitter.clamp(0.0, 1.0) / 4.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn failures_double_up_to_half_a_minute_and_success_forgets_them() {
        let mut backoff = Backoff::default();
        let mut now = Instant::now();
        for expected in [1, 2, 4, 8, 16, 30, 30] {
            let begun = now;
            now += S;
            assert_eq!(backoff.failed(begun, now, 0.0), S * expected);
            now += S * expected;
            assert_eq!(backoff.remaining(now), None);
        }
        backoff.succeeded();
        assert_eq!(backoff.failed(now, now, 1.0), S.mul_f64(1.25));
    }

    #[test]
    fn starts_that_fail_together_count_once() {
        let mut backoff = Backoff::default();
        let begun = Instant::now();
        let now = begun + S;
        assert_eq!(backoff.failed(begun, now, 0.0), S);
        assert_eq!(backoff.failed(begun, now, 0.0), S);
    }

    #[test]
    fn a_first_crash_costs_nothing_and_a_crash_loop_waits_though_it_starts() {
        let mut backoff = Backoff::default();
        let now = Instant::now();
        backoff.crashed(S, now, 0.0);
        assert_eq!(backoff.remaining(now), None);
        backoff.succeeded();
        backoff.crashed(S, now, 0.0);
        assert_eq!(backoff.remaining(now), Some(S));
        backoff.crashed(S, now, 0.0);
        assert_eq!(backoff.remaining(now), Some(S * 2));
        backoff.crashed(PROVEN, now + S * 2, 0.0);
        assert_eq!(backoff.remaining(now + S * 2), None);
    }

    #[test]
    fn what_became_ready_holds_nothing_back() {
        let mut backoff = Backoff::default();
        let now = Instant::now();
        backoff.crashed(S, now, 0.0);
        backoff.crashed(S, now, 0.0);
        assert_eq!(backoff.remaining(now), Some(S));
        backoff.succeeded();
        assert_eq!(backoff.remaining(now), None);
        backoff.crashed(S, now, 0.0);
        assert_eq!(backoff.remaining(now), Some(S * 2), "the loop is not over");
    }
}

//! Rate limiter of log lines about endpoints: a burst of 10, then one per second; counts what it drops.
//!
//! Backends cause these lines, as often as they fail.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sluice_model::{EndpointAddr, RevisionId};

use super::actions::EjectCause;
use crate::token_bucket::TokenBucket;

/// Lines at once after a rest.
const BURST: u32 = 10;

/// After a burst, one line each.
const EVERY: Duration = Duration::from_secs(1);

/// Limits the log lines of one revision.
#[derive(Debug)]
pub(crate) struct LogLimiter(Mutex<State>);

#[derive(Debug)]
struct State {
    lines: TokenBucket,
    /// Lines dropped since the last one that was logged.
    dropped: u64,
}

impl LogLimiter {
    pub(crate) fn new(now: Instant) -> Self {
        Self(Mutex::new(State {
            lines: TokenBucket::new(u64::from(BURST), EVERY * BURST, now),
            dropped: 0,
        }))
    }

    /// Logs that an endpoint was ejected for `time`.
    pub(crate) fn ejected(
        &self,
        revision: &RevisionId,
        endpoint: &EndpointAddr,
        cause: EjectCause,
        time: Duration,
        now: Instant,
    ) {
        if let Some(untold) = self.permits(now) {
            let cause = cause.as_str();
            tracing::warn!(%revision, %endpoint, ?time, untold, "endpoint ejected: {cause}");
        }
    }

    /// Logs that an ejected endpoint is used again: a probe proved it, or it is only tried.
    pub(crate) fn reinstated(
        &self,
        revision: &RevisionId,
        endpoint: &EndpointAddr,
        proven: bool,
        now: Instant,
    ) {
        if let Some(untold) = self.permits(now) {
            let word = if proven { "has recovered" } else { "is tried again" };
            tracing::info!(%revision, %endpoint, untold, "endpoint {word}");
        }
    }

    /// Whether a line may be logged now; if so, how many were dropped since the last one.
    fn permits(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock();
        if state.lines.try_take(|| now) {
            return Some(std::mem::take(&mut state.dropped));
        }
        state.dropped += 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_logged_and_a_storm_is_counted() {
        let start = Instant::now();
        let limiter = LogLimiter::new(start);
        let logged = |now| (0..100).filter(|_| limiter.permits(now).is_some()).count();
        assert_eq!(logged(start), BURST as usize);
        assert_eq!(limiter.permits(start + EVERY), Some(90));
        assert_eq!(limiter.permits(start + EVERY), None);
        let later = start + EVERY * 60;
        assert_eq!(limiter.permits(later), Some(1));
        assert_eq!(
            logged(later),
            BURST as usize - 1,
            "rest does not add up beyond a burst"
        );
    }
}

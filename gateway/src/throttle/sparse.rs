//! Log lines about endpoints, which backends cause: never more than a few.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sluice_model::{EndpointAddr, RevisionId};

use super::effects::EjectCause;

/// Lines at once after a rest.
const BURST: u32 = 10;

/// After that, one each.
const EVERY: Duration = Duration::from_secs(1);

/// Says when a line may be written, and how many were not.
#[derive(Debug, Default)]
pub(crate) struct Sparse(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// When all lines so far are paid for; `None` before the first.
    paid: Option<Instant>,
    untold: u64,
}

impl Sparse {
    /// An endpoint was set aside for `time`.
    pub(crate) fn ejected(
        &self,
        revision: &RevisionId,
        endpoint: &EndpointAddr,
        cause: EjectCause,
        time: Duration,
        now: Instant,
    ) {
        if let Some(untold) = self.may_tell(now) {
            let cause = cause.as_str();
            tracing::warn!(%revision, %endpoint, ?time, untold, "endpoint ejected: {cause}");
        }
    }

    /// One that was set aside is used again: a probe proved it, or it is only tried.
    pub(crate) fn reinstated(
        &self,
        revision: &RevisionId,
        endpoint: &EndpointAddr,
        proven: bool,
        now: Instant,
    ) {
        if let Some(untold) = self.may_tell(now) {
            let word = if proven { "has recovered" } else { "is tried again" };
            tracing::info!(%revision, %endpoint, untold, "endpoint {word}");
        }
    }

    /// Whether a line may be written now; if so, how many were left out since the last one.
    fn may_tell(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock();
        let paid = state.paid.map_or(now, |paid| paid.max(now));
        if paid.saturating_duration_since(now) > EVERY * (BURST - 1) {
            state.untold += 1;
            return None;
        }
        state.paid = Some(paid + EVERY);
        Some(std::mem::take(&mut state.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_told_a_storm_is_counted() {
        let start = Instant::now();
        let sparse = Sparse::default();
        let told = (0..100).filter(|_| sparse.may_tell(start).is_some()).count();
        assert_eq!(told, BURST as usize);
        assert_eq!(sparse.may_tell(start + EVERY), Some(90));
        assert_eq!(sparse.may_tell(start + EVERY), None);
        let later = start + EVERY * 60;
        assert_eq!(sparse.may_tell(later), Some(1));
        let told = (0..100).filter(|_| sparse.may_tell(later).is_some()).count();
        assert_eq!(told, BURST as usize - 1, "rest does not add up beyond a burst");
    }
}

//! The back-off of writes to an API server that does not take them, with one line in the log for each outage. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// The pause after the first failure.
const MIN_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause: after an outage statuses are written again within it.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Whether writes fail at present.
#[derive(Debug, Default)]
pub(super) struct Outage {
    failures: u32,
    until: Option<Instant>,
}

impl Outage {
    /// Records a failure that has nothing to do with the object. Returns whether it is the first one of an outage.
    ///
    /// One that comes during a pause is of a write that was under way when the pause began: sixteen of those are one failure.
    pub(super) fn failed(&mut self, now: Instant) -> bool {
        if self.hold(now).is_some() {
            return false;
        }
        let pause = MIN_PAUSE.saturating_mul(2u32.saturating_pow(self.failures));
        self.until = Some(now + pause.min(MAX_PAUSE));
        self.failures = self.failures.saturating_add(1);
        self.failures == 1
    }

    /// Records that the API server has answered. Returns whether that ends an outage.
    pub(super) fn answered(&mut self) -> bool {
        self.until = None;
        std::mem::take(&mut self.failures) > 0
    }

    /// When the next attempt may be made, if that is not yet.
    pub(super) fn hold(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }

    /// The writes that may be under way at once, of `all`: during an outage one finds out whether it is over.
    pub(super) fn limit(&self, all: usize) -> usize {
        if self.failures > 0 { 1 } else { all }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_told_once_and_one_write_after_the_other_finds_out_when_it_is_over() {
        let mut outage = Outage::default();
        let mut now = Instant::now();
        assert_eq!((outage.hold(now), outage.limit(16)), (None, 16));
        assert!(!outage.answered(), "there was none");
        assert!(outage.failed(now));
        let mut pauses = Vec::new();
        for _ in 0..40 {
            let until = outage.hold(now).expect("a pause");
            pauses.push((until - now).as_millis());
            now = until;
            assert_eq!((outage.hold(now), outage.limit(16)), (None, 1));
            assert!(!outage.failed(now), "told before");
        }
        assert_eq!(pauses[..7], [100, 200, 400, 800, 1_600, 3_200, 5_000]);
        assert!(pauses[7..].iter().all(|pause| *pause == 5_000));
        assert!(outage.answered());
        assert_eq!((outage.hold(now), outage.limit(16)), (None, 16));
        assert!(outage.failed(now), "another outage");
    }

    #[test]
    fn writes_that_fail_together_are_one_failure() {
        let mut outage = Outage::default();
        let now = Instant::now();
        assert_eq!((0..16).filter(|_| outage.failed(now)).count(), 1);
        assert_eq!(outage.hold(now), Some(now + MIN_PAUSE));
    }
}

//! Outlier detection (passive health check) for one endpoint: when to eject it and for how long.

use std::time::Duration;

use super::arrival::Outcome;

/// Consecutive failures, connects apart, after which an endpoint is ejected.
const RUN: u32 = 5;
/// Duration of the first ejection.
const SHORTEST: Duration = Duration::from_secs(1);
/// Doublings of the duration until [`LONGEST`].
const MAX_LEVEL: u32 = 6;
/// The longest duration of an ejection.
const LONGEST: Duration = Duration::from_secs(60);

/// State of the detector: consecutive failures, and the back-off level of the next ejection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct OutlierDetector {
    run: u32,
    level: u32,
}

impl OutlierDetector {
    /// Records the outcome of an attempt. `true`: the endpoint is to be ejected.
    #[must_use]
    pub(crate) fn record(&mut self, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Connected => false,
            Outcome::ConnectFailed => true,
            Outcome::Responded { status: 502..=504 } | Outcome::ResponseTimeout | Outcome::Broke => {
                self.run += 1;
                self.run >= RUN
            }
            Outcome::Responded { .. } => {
                self.run = 0;
                self.level = self.level.saturating_sub(1);
                false
            }
        }
    }

    /// Begins an ejection and returns its duration; the next one lasts twice as long.
    pub(crate) fn eject(&mut self) -> Duration {
        self.run = 0;
        let time = SHORTEST.saturating_mul(1 << self.level).min(LONGEST);
        self.level = (self.level + 1).min(MAX_LEVEL);
        time
    }

    /// Resets the count of failures, where an ejection is due but not possible.
    pub(crate) fn forgive(&mut self) {
        self.run = 0;
    }

    /// Whether a success would change nothing: lets the warm path skip the lock.
    pub(crate) fn is_spotless(self) -> bool {
        self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: Outcome = Outcome::Responded { status: 200 };
    const BAD: Outcome = Outcome::Responded { status: 503 };

    #[test]
    fn five_bad_answers_in_a_row_eject_and_a_good_one_breaks_the_row() {
        let mut detector = OutlierDetector::default();
        for _ in 0..4 {
            assert!(!detector.record(BAD));
        }
        assert!(!detector.record(OK));
        for _ in 0..3 {
            assert!(!detector.record(BAD));
        }
        assert!(!detector.record(Outcome::ResponseTimeout));
        assert!(detector.record(Outcome::Broke));
        assert!(OutlierDetector::default().record(Outcome::ConnectFailed));
        assert!(!OutlierDetector::default().record(Outcome::Responded { status: 500 }));
    }

    #[test]
    fn ejections_double_to_a_minute_and_successes_shorten_them() {
        let mut detector = OutlierDetector::default();
        let times: Vec<u64> = (0..8).map(|_| detector.eject().as_secs()).collect();
        assert_eq!(times, [1, 2, 4, 8, 16, 32, 60, 60]);
        for _ in 0..5 {
            assert!(!detector.record(OK));
        }
        assert_eq!(detector.eject().as_secs(), 2);
        assert!(!detector.record(OK));
        assert!(!detector.record(OK));
        assert!(detector.is_spotless());
    }
}

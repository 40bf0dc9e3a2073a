//! Passive health of one endpoint: when it is ejected and for how long.

use std::time::Duration;

use super::arrival::Outcome;

/// Failures in a row, connects apart, after which an endpoint is ejected.
const RUN: u32 = 5;
/// The first ejection.
const SHORTEST: Duration = Duration::from_secs(1);
/// Doublings until the longest.
const MAX_LEVEL: u32 = 6;
/// The longest ejection.
const LONGEST: Duration = Duration::from_secs(60);

/// What attempts and probes said of an endpoint lately.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Health {
    run: u32,
    level: u32,
}

/// What an outcome calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing.
    Keep,
    /// Ejection.
    Eject,
}

impl Health {
    pub(crate) fn observe(&mut self, outcome: Outcome) -> Verdict {
        match outcome {
            Outcome::Connected => Verdict::Keep,
            Outcome::ConnectFailed => Verdict::Eject,
            Outcome::Responded { status: 502..=504 } | Outcome::ResponseTimeout | Outcome::Broke => {
                self.run += 1;
                if self.run >= RUN {
                    Verdict::Eject
                } else {
                    Verdict::Keep
                }
            }
            Outcome::Responded { .. } => {
                self.run = 0;
                self.level = self.level.saturating_sub(1);
                Verdict::Keep
            }
        }
    }

    /// How long the ejection that starts now lasts; the next one lasts twice as long.
    pub(crate) fn eject(&mut self) -> Duration {
        self.run = 0;
        let time = SHORTEST.saturating_mul(1 << self.level).min(LONGEST);
        self.level = (self.level + 1).min(MAX_LEVEL);
        time
    }

    /// Starts counting anew when an ejection was called for but cannot be.
    pub(crate) fn forgive(&mut self) {
        self.run = 0;
    }

    /// Whether a success would change anything: lets the warm path skip the lock.
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
        let mut health = Health::default();
        for _ in 0..4 {
            assert_eq!(health.observe(BAD), Verdict::Keep);
        }
        assert_eq!(health.observe(OK), Verdict::Keep);
        for _ in 0..3 {
            assert_eq!(health.observe(BAD), Verdict::Keep);
        }
        assert_eq!(health.observe(Outcome::ResponseTimeout), Verdict::Keep);
        assert_eq!(health.observe(Outcome::Broke), Verdict::Eject);
        assert_eq!(Health::default().observe(Outcome::ConnectFailed), Verdict::Eject);
        assert_eq!(
            Health::default().observe(Outcome::Responded { status: 500 }),
            Verdict::Keep
        );
    }

    #[test]
    fn ejections_double_to_a_minute_and_successes_shorten_them() {
        let mut health = Health::default();
        let times: Vec<u64> = (0..8).map(|_| health.eject().as_secs()).collect();
        assert_eq!(times, [1, 2, 4, 8, 16, 32, 60, 60]);
        for _ in 0..5 {
            health.observe(OK);
        }
        assert_eq!(health.eject().as_secs(), 2);
        health.observe(OK);
        health.observe(OK);
        assert!(health.is_spotless());
    }
}

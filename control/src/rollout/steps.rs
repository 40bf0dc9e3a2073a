//! The steps of a rollout: those of the configuration, and Knative's own, which follow from a duration.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::policy::Steps;
use super::{Rollout, WHOLE};

/// The step that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Next {
    /// The candidate's part of the share after it, in hundredths of a percent.
    pub(super) share: u32,
    /// The least time of the present step.
    pub(super) every: Duration,
}

/// The steps of a duration, once the candidate was ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pace {
    /// Whole percents of the traffic in a step.
    pub size: u32,
    /// The length of a step in nanoseconds.
    pub nanos: u64,
}

/// The step that follows the present one. `of` is what `latestRevision` targets have of the traffic, in hundredths of a percent.
pub(super) fn next(rollout: &Rollout, steps: &Steps, of: u32) -> Next {
    match steps {
        Steps::Listed { shares, every } => {
            // By the share, not by the number of steps taken: the list may have changed meanwhile.
            let share = shares.iter().find(|share| **share > rollout.share);
            Next {
                share: share.copied().unwrap_or(WHOLE),
                every: if rollout.step == 0 { Duration::ZERO } else { *every },
            }
        }
        Steps::Within(duration) => {
            let pace = rollout
                .pace
                .unwrap_or_else(|| pace(*duration, Duration::ZERO, of));
            let has =
                (u64::from(rollout.share) * u64::from(of) + u64::from(WHOLE) * 50) / (u64::from(WHOLE) * 100);
            let percents = match rollout.step {
                0 => 1,
                _ => has + u64::from(pace.size),
            };
            let share = percents * 100 * u64::from(WHOLE) / u64::from(of.max(1));
            let every = Duration::from_nanos(pace.nanos);
            Next {
                share: u32::try_from(share).map_or(WHOLE, |share| share.min(WHOLE)),
                every: if rollout.step == 0 { Duration::ZERO } else { every },
            }
        }
    }
}

/// Knative's step size and step length: what is left of the duration after the start is divided into as many steps as starts
/// of this length fit into it, but no more than there are percents.
pub(super) fn pace(duration: Duration, start: Duration, of: u32) -> Pace {
    const NANOS: u64 = 1_000_000_000;
    let least = u64::from(start.subsec_nanos() > 0) + start.as_secs();
    let least = least.max(1);
    let left = duration.as_secs().saturating_sub(least).max(1);
    let percents = u64::from(of / 100).saturating_sub(1).max(1);
    let count = (left / least).max(1).min(percents);
    let size = (2 * percents + count) / (2 * count);
    Pace {
        size: u32::try_from(size).unwrap_or(u32::MAX),
        nanos: (left.saturating_mul(NANOS)) / count,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace_of(start: f64, percent: u32) -> (u32, u64) {
        let pace = pace(
            Duration::from_secs(120),
            Duration::from_secs_f64(start),
            percent * 100,
        );
        (pace.size, pace.nanos)
    }

    #[test]
    fn knatives_own_vectors() {
        // Of reconciler/route/traffic/rollout_test.go, with a duration of 120 s.
        assert_eq!(pace_of(0.4, 100), (1, 1_202_020_202));
        assert_eq!(pace_of(2.4, 100), (3, 3_000_000_000));
        assert_eq!(pace_of(2.4, 75), (2, 3_000_000_000));
        assert_eq!(pace_of(2.4, 50), (1, 3_000_000_000));
        assert_eq!(pace_of(200.0, 13), (12, 1_000_000_000));
    }

    fn shares(steps: &Steps, pace: Option<Pace>, of: u32) -> Vec<u32> {
        let mut rollout = Rollout {
            pace,
            ..Rollout::new("b", 0)
        };
        let mut shares = Vec::new();
        while rollout.share < WHOLE && shares.len() < 1_000 {
            rollout.share = next(&rollout, steps, of).share;
            rollout.step += 1;
            shares.push(rollout.share);
        }
        shares
    }

    #[test]
    fn knatives_steps_begin_at_one_percent_and_end_at_all() {
        // Worked in Knative's documentation of the annotation: 1, 4, 7, ..., 100, 33 steps of 3 s after the first.
        let duration = Duration::from_secs(120);
        let steps = Steps::Within(duration);
        let known = pace(duration, Duration::from_secs_f64(2.4), WHOLE);
        let all = shares(&steps, Some(known), WHOLE);
        assert_eq!((all[0], all[1], all[2], all.len()), (100, 400, 700, 34));
        assert_eq!(all.last(), Some(&WHOLE));
        // Of a target with 50 %, one percent of the traffic is two of its share.
        let known = pace(duration, Duration::from_secs_f64(2.4), 5_000);
        let all = shares(&steps, Some(known), 5_000);
        assert_eq!(
            (all[0], all[1], all.last(), all.len()),
            (200, 400, Some(&WHOLE), 50)
        );
        // A target with 1 % switches at once.
        assert_eq!(shares(&steps, None, 100), [WHOLE]);
    }

    #[test]
    fn listed_steps_end_at_all() {
        let steps = Steps::Listed {
            shares: vec![2_000, 5_000],
            every: Duration::from_secs(10),
        };
        assert_eq!(shares(&steps, None, WHOLE), [2_000, 5_000, WHOLE]);
        let nothing = Steps::Listed {
            shares: Vec::new(),
            every: Duration::ZERO,
        };
        assert_eq!(shares(&nothing, None, WHOLE), [WHOLE]);
        let mut rollout = Rollout {
            share: 3_000,
            step: 1,
            ..Rollout::new("b", 0)
        };
        let share = next(&rollout, &steps, WHOLE).share;
        assert_eq!(share, 5_000, "the list was another one before");
        rollout = Rollout::new("b", 0);
        assert_eq!(
            next(&rollout, &steps, WHOLE).every,
            Duration::ZERO,
            "the first one waits for the gate alone"
        );
        rollout.step = 1;
        assert_eq!(next(&rollout, &steps, WHOLE).every, Duration::from_secs(10));
    }
}

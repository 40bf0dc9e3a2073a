//! The rules of a service's rollouts.

use std::time::Duration;

/// The rules of a service's rollouts: how traffic moves to a new latest revision.
#[derive(Debug, Clone, PartialEq)]
pub struct RolloutPolicy {
    /// The steps.
    pub steps: Steps,
    /// The part of the ready instances that a step needs which has to be there before it begins; 1 is all of them.
    pub min_ready: f64,
    /// When a candidate is worse than the settled revision.
    pub judge: JudgePolicy,
}

/// The steps of a rollout. The last one, to 100 %, follows by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Steps {
    /// Shares of the candidate in hundredths of a percent, each for this long at least.
    Listed {
        /// Growing, each above 0 and below 100 %.
        shares: Vec<u32>,
        /// The least time of a step.
        every: Duration,
    },
    /// Knative's own steps within this time: as many as the start of the candidate leaves room for.
    Within(Duration),
}

/// When a candidate is judged worse.
#[derive(Debug, Clone, PartialEq)]
pub struct JudgePolicy {
    /// A listed step needs this many requests of the candidate.
    pub min_requests: u64,
    /// The failure rate up to which no candidate is worse.
    pub max_error_rate: f64,
    /// The multiple of the settled revision's failure rate up to which no candidate is worse.
    pub max_error_ratio: f64,
    /// The multiple of the settled revision's latency up to which no candidate is worse.
    pub max_latency_ratio: f64,
    /// The probability that a candidate which is not worse is rolled back; half of it for errors, half for latency.
    pub false_alarm: f64,
}

impl Default for JudgePolicy {
    fn default() -> Self {
        Self {
            min_requests: 50,
            max_error_rate: 0.01,
            max_error_ratio: 2.0,
            max_latency_ratio: 1.5,
            false_alarm: 0.01,
        }
    }
}

impl Default for RolloutPolicy {
    fn default() -> Self {
        Self {
            steps: Steps::Listed {
                shares: vec![100, 1_000, 5_000],
                every: Duration::from_secs(60),
            },
            min_ready: 1.0,
            judge: JudgePolicy::default(),
        }
    }
}

impl RolloutPolicy {
    /// Knative's own steps within a time, as the annotation `rollout-duration` asks for; judged as by default.
    pub fn of_duration(duration: Duration) -> Self {
        Self {
            steps: Steps::Within(duration),
            ..Self::default()
        }
    }
}

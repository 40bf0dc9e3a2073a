//! Replay: a policy on a recorded or invented load, in virtual time. What a decision would have cost, and what requests would
//! have waited for, before it is let near real instances.

use std::sync::Arc;
use std::time::Duration;

use sluice_model::{Load, ScaleSource};

use super::revision::RevisionAutoscaler;
use crate::plan::{RevisionPlan, ScalingMode};

/// A revision that runs in virtual time, on virtual instances.
#[derive(Debug)]
pub struct Replay {
    autoscaler: RevisionAutoscaler,
    /// What a start takes.
    start: Duration,
    seconds: u64,
    /// Seconds since 1970 at the first second.
    origin: u64,
}

/// What a replay made of the load so far.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Outcome {
    /// Starts that requests waited for.
    pub cold_starts: u64,
    /// Instances × seconds, from each start to its stop.
    pub instance_seconds: f64,
}

impl Outcome {
    /// What was added since an earlier outcome.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            cold_starts: self.cold_starts - before.cold_starts,
            instance_seconds: self.instance_seconds - before.instance_seconds,
        }
    }
}

impl Replay {
    /// A revision at zero that begins `origin` seconds after 1970, whose starts take `start`.
    pub fn new(mut plan: RevisionPlan, origin: u64, start: Duration) -> Self {
        plan.policy.mode = ScalingMode::Observe;
        let load = Load {
            typical_start: Some(start),
            ..Load::default()
        };
        let mut autoscaler = RevisionAutoscaler::new(Arc::new(plan), &load, None, Duration::ZERO, origin);
        autoscaler.decide_now(Duration::ZERO);
        Self {
            autoscaler,
            start,
            seconds: 0,
            origin,
        }
    }

    /// Plays one second with `concurrency` requests at a time. Returns the instances wanted, and the signal that won.
    pub fn second(&mut self, concurrency: u32) -> (u32, ScaleSource) {
        self.seconds += 1;
        let now = Duration::from_secs(self.seconds);
        let load = Load {
            average_concurrency: f64::from(concurrency),
            requests: u64::from(concurrency),
            in_flight: concurrency,
            typical_start: Some(self.start),
            ..Load::default()
        };
        self.autoscaler.sample(load, now);
        self.autoscaler.tick(now, self.origin + self.seconds);
        self.autoscaler.scale_up_now(now);
        self.autoscaler.show();
        let status = self.autoscaler.status();
        let status = status.lock();
        (
            status.observed.as_ref().map_or(0, |observed| observed.desired),
            status.source,
        )
    }

    /// What became of the load so far.
    pub fn outcome(&self) -> Outcome {
        let status = self.autoscaler.status();
        let status = status.lock();
        status
            .observed
            .as_ref()
            .map_or_else(Outcome::default, |observed| Outcome {
                cold_starts: observed.cold_starts,
                instance_seconds: observed.instance_seconds,
            })
    }

    /// What the forecast says of itself, for a table; `None` without one.
    pub fn forecast(&self) -> Option<sluice_model::ForecastStatus> {
        self.autoscaler.status().lock().forecast
    }
}

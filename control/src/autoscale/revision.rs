//! The autoscaling of one revision as a whole: reactive decision, foresight, and, in observe mode, virtual instances in place of
//! real ones. No clock, no I/O.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sluice_model::{Load, ObservedScaling, ScalingStatus};

use super::bounds::Bounds;
use super::foresight::{Foresight, Judgement, Second};
use super::reason::ScaleDecision;
use super::tracker::Tracker;
use super::virtual_fleet::VirtualFleet;
use crate::plan::{Metric, RevisionPlan, ScalingMode};

/// What a start takes in observe mode until one was measured.
const UNKNOWN_START: Duration = Duration::from_secs(2);

/// The autoscaling of one revision.
#[derive(Debug)]
pub(crate) struct RevisionAutoscaler {
    plan: Arc<RevisionPlan>,
    tracker: Tracker,
    foresight: Option<Box<Foresight>>,
    /// The floor of a rollout.
    rollout: Option<u32>,
    /// In observe mode.
    fleet: Option<Box<VirtualFleet>>,
    /// Whether what an earlier process learned was looked for.
    pub(crate) is_restored: bool,
    /// What starts took lately; `None` before the first one.
    start: Option<Duration>,
    second: SecondSum,
    sampled_at: Duration,
    /// The metric over the last sample.
    value: f64,
    status: Arc<Mutex<ScalingStatus>>,
}

/// The sum of samples since the last tick.
#[derive(Debug, Default)]
struct SecondSum {
    request_seconds: f64,
    requests: u64,
    seconds: f64,
    latest: Load,
}

/// What a tick found.
#[derive(Debug, Default)]
pub(crate) struct Tick {
    /// A decision that changed something.
    pub(crate) decision: Option<ScaleDecision>,
    /// A season ended, and the forecast was judged by it.
    pub(crate) judgement: Option<Judgement>,
}

impl RevisionAutoscaler {
    /// The state of a new revision, of which an older gateway had `found` desired instances. `wall` is in seconds since 1970.
    pub(crate) fn new(
        plan: Arc<RevisionPlan>,
        load: &Load,
        found: Option<u32>,
        now: Duration,
        wall: u64,
    ) -> Self {
        let fleet = Self::fleet_of(&plan, load.ready, now);
        let mut autoscaler = Self {
            tracker: match found {
                Some(found) => Tracker::after(&plan, load, found, now),
                None => Tracker::new(&plan, load, now),
            },
            foresight: Foresight::new(&plan, now).map(Box::new),
            rollout: None,
            fleet,
            is_restored: false,
            start: load.typical_start,
            second: SecondSum::default(),
            sampled_at: now,
            value: 0.0,
            status: Arc::default(),
            plan,
        };
        autoscaler.look(wall);
        autoscaler
    }

    /// The plan in force.
    pub(crate) fn plan(&self) -> &Arc<RevisionPlan> {
        &self.plan
    }

    /// The status, kept up to date once a second.
    pub(crate) fn status(&self) -> Arc<Mutex<ScalingStatus>> {
        Arc::clone(&self.status)
    }

    /// Whether decisions are not carried out.
    pub(crate) fn observes(&self) -> bool {
        self.fleet.is_some()
    }

    /// Whether the latest sample had any request that counts.
    pub(crate) fn is_used(&self) -> bool {
        self.tracker.is_used()
    }

    /// Whether there is something to learn, and to keep.
    pub(crate) fn has_forecast(&self) -> bool {
        let foresight = self.plan.policy.foresight.as_ref();
        foresight.is_some_and(|policy| policy.forecast.is_some())
    }

    /// As [`Foresight::is_trusted`].
    pub(crate) fn is_forecast_trusted(&self) -> bool {
        self.foresight
            .as_ref()
            .is_some_and(|foresight| foresight.is_trusted())
    }

    /// As [`Foresight::document`].
    pub(crate) fn document(&self) -> Option<Vec<u8>> {
        self.foresight.as_ref()?.document()
    }

    /// As [`Foresight::restore`].
    pub(crate) fn restore(&mut self, document: &[u8]) -> Result<(), String> {
        match &mut self.foresight {
            Some(foresight) => foresight.restore(document),
            None => Ok(()),
        }
    }

    /// Applies a changed plan.
    pub(crate) fn replan(&mut self, plan: Arc<RevisionPlan>, now: Duration, wall: u64) {
        self.tracker.replan(&self.plan, &plan, now);
        let is_new = match &mut self.foresight {
            Some(foresight) if plan.policy.foresight.is_some() => foresight.replan(&plan, now),
            foresight => {
                *foresight = Foresight::new(&plan, now).map(Box::new);
                true
            }
        };
        if is_new {
            // A forecast that goes on knows more than its document, which would take minutes of the day away.
            self.is_restored = false;
        }
        let ready = self.second.latest.ready;
        match plan.policy.mode {
            ScalingMode::Active => self.fleet = None,
            ScalingMode::Observe if self.fleet.is_none() => self.fleet = Self::fleet_of(&plan, ready, now),
            ScalingMode::Observe => {}
        }
        self.plan = plan;
        self.look(wall);
    }

    /// Sets the floor of a rollout, for the decisions from now on. Returns whether it is another one.
    pub(crate) fn set_rollout_floor(&mut self, floor: Option<u32>, wall: u64) -> bool {
        if self.rollout == floor {
            return false;
        }
        self.rollout = floor;
        self.look(wall);
        true
    }

    /// Adds a sample of the data plane, which covers the time since the previous one.
    pub(crate) fn sample(&mut self, mut load: Load, now: Duration) {
        let elapsed = now.saturating_sub(self.sampled_at).as_secs_f64();
        self.sampled_at = now;
        self.start = load.typical_start.or(self.start);
        #[allow(clippy::cast_precision_loss)]
        let arrivals = load.requests as f64;
        self.value = match self.plan.policy.metric {
            Metric::Concurrency => load.average_concurrency,
            Metric::Rps if elapsed > 0.0 => arrivals / elapsed,
            Metric::Rps => arrivals,
        };
        self.second.request_seconds += load.average_concurrency * elapsed;
        self.second.requests += load.requests;
        self.second.seconds += elapsed;
        self.second.latest = load;
        let here = f64::from(load.ready.saturating_add(load.draining));
        self.status.lock().instance_seconds += here * elapsed;
        if let Some(fleet) = &mut self.fleet {
            fleet.pass(now, self.value, self.plan.policy.total_value);
            load = fleet.carry(load);
        }
        self.tracker.sample(load, now);
    }

    /// Records the seconds that are over, looks ahead, and decides.
    pub(crate) fn tick(&mut self, now: Duration, wall: u64) -> Tick {
        let sum = std::mem::take(&mut self.second);
        self.second.latest = sum.latest;
        let mut judgement = None;
        if let Some(foresight) = &mut self.foresight
            && sum.seconds > 0.0
        {
            let average_concurrency = sum.request_seconds / sum.seconds;
            #[allow(clippy::cast_precision_loss)]
            let value = match self.plan.policy.metric {
                Metric::Concurrency => average_concurrency,
                Metric::Rps => sum.requests as f64 / sum.seconds,
            };
            let load = Load {
                average_concurrency,
                requests: sum.requests,
                ..sum.latest
            };
            let start = self.start;
            let second = Second {
                now,
                wall,
                load,
                value,
                start,
            };
            let (bounds, judged) = foresight.second(&self.plan, &second);
            judgement = judged;
            self.tracker.set_bounds(Bounds {
                rollout: self.rollout,
                ..bounds
            });
        }
        let decision = self.tracker.tick(&self.plan, now);
        Tick {
            decision: self.carried(decision),
            judgement,
        }
    }

    /// Updates the status: once a second, after everything else.
    pub(crate) fn show(&self) {
        let (source, wants) = self.tracker.wants();
        let forecast = self.foresight.as_ref().and_then(|foresight| foresight.status());
        let mut status = self.status.lock();
        (status.source, status.wants, status.forecast) = (source, wants, forecast);
        match &self.fleet {
            Some(fleet) => {
                let tally = fleet.tally();
                let observed = status.observed.get_or_insert_default();
                observed.desired = self.tracker.asked();
                observed.cold_starts = tally.cold_starts;
                observed.instance_seconds = tally.instance_seconds;
            }
            None => status.observed = None,
        }
    }

    /// Decides on the recorded seconds: for a new revision, and after a change of plan.
    pub(crate) fn decide_now(&mut self, now: Duration) -> Option<ScaleDecision> {
        let decision = self.tracker.decide_now(&self.plan, now);
        self.carried(decision)
    }

    /// As [`Tracker::scale_up_now`].
    pub(crate) fn scale_up_now(&mut self, now: Duration) -> Option<ScaleDecision> {
        let decision = self.tracker.scale_up_now(&self.plan, now);
        self.carried(decision)
    }

    /// As [`Tracker::activate`].
    pub(crate) fn activate(&mut self, now: Duration) -> Option<ScaleDecision> {
        let decision = self.tracker.activate(&self.plan, now);
        self.carried(decision)
    }

    /// As [`Tracker::unmet`]; nothing is repeated in observe mode.
    pub(crate) fn unmet(&self) -> Option<&ScaleDecision> {
        self.tracker.unmet().filter(|_| !self.observes())
    }

    fn look(&mut self, wall: u64) {
        let bounds = self
            .foresight
            .as_mut()
            .map(|foresight| foresight.look(&self.plan.policy, wall, self.start));
        self.tracker.set_bounds(Bounds {
            rollout: self.rollout,
            ..bounds.unwrap_or_default()
        });
    }

    /// In observe mode carries the decision out on the virtual instances.
    fn carried(&mut self, decision: Option<ScaleDecision>) -> Option<ScaleDecision> {
        if let (Some(fleet), Some(decision)) = (&mut self.fleet, &decision) {
            let start = self.start.unwrap_or(UNKNOWN_START);
            fleet.set(decision.desired, start, self.value, self.plan.policy.total_value);
            let observed = &mut self.status.lock().observed;
            let observed: &mut ObservedScaling = observed.get_or_insert_default();
            observed.last_decision = Some(decision.to_string());
        }
        decision
    }

    fn fleet_of(plan: &RevisionPlan, ready: u32, now: Duration) -> Option<Box<VirtualFleet>> {
        (plan.policy.mode == ScalingMode::Observe).then(|| Box::new(VirtualFleet::new(ready, now)))
    }
}

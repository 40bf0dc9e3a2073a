//! The autoscaling state of one revision: samples in, changed decisions out. No clock, no I/O.

use std::time::Duration;

use sluice_model::{Load, ScaleSource, ScaleWants};

use super::bounds::Bounds;
use super::clamp::{ActivityState, ClampInput, clamp};
use super::decide::{DeciderState, Observation, decide};
use super::reason::{Reason, ScaleDecision};
use super::window::TimedBuckets;
use crate::plan::{AutoscalePolicy, Metric, RevisionPlan};

/// The autoscaling state of one revision.
#[derive(Debug)]
pub(crate) struct Tracker {
    stable: TimedBuckets,
    panic: TimedBuckets,
    decider: DeciderState,
    activity_state: ActivityState,
    sum: SampleSum,
    latest: Load,
    sampled_at: Duration,
    created_at: Duration,
    /// The last time with a request; `None`: never.
    used_at: Option<Duration>,
    /// Until when an instance is kept because a waiting page started it.
    keep_until: Duration,
    asked: u32,
    panicking: bool,
    /// Floors and ceilings besides the policy's.
    bounds: Bounds,
    /// The signal that set the number that is asked for, and what the others wanted.
    latest_wants: (ScaleSource, ScaleWants),
    /// The last decision that changed the number, or began or ended a panic.
    last_decision: Option<ScaleDecision>,
}

/// The sum of samples since the last recorded second.
///
/// A sample holds averages since the previous one, and samples come at any time: a bucket gets their time-weighted mean.
/// No request is counted twice.
#[derive(Debug, Default)]
struct SampleSum {
    /// The second that ends the last recorded one.
    recorded: u64,
    request_seconds: f64,
    requests: u64,
    seconds: f64,
}

impl Tracker {
    /// The state of a new revision with its first sample.
    ///
    /// Instances that run already (inherited, or started by a platform) count as desired and as just used: they are kept
    /// until a full window shows that they are not needed.
    pub(crate) fn new(plan: &RevisionPlan, load: &Load, now: Duration) -> Self {
        Self::after(plan, load, load.ready, now)
    }

    /// As [`new`](Self::new), for a revision that had `found` desired instances in an older gateway.
    pub(crate) fn after(plan: &RevisionPlan, load: &Load, found: u32, now: Duration) -> Self {
        Self {
            stable: TimedBuckets::new(plan.policy.stable_window),
            panic: TimedBuckets::new(plan.policy.panic_window),
            decider: DeciderState::new(found, now),
            activity_state: ActivityState::new(now),
            sum: SampleSum {
                recorded: now.as_secs(),
                ..SampleSum::default()
            },
            latest: *load,
            sampled_at: now,
            created_at: now,
            keep_until: now + load.keep,
            used_at: (found > 0 || load.ready > 0 || used(load)).then_some(now),
            asked: found,
            panicking: found > 1,
            bounds: Bounds::default(),
            latest_wants: Default::default(),
            last_decision: None,
        }
    }

    /// Whether the latest sample had any request that counts, or a browser that is expected back.
    pub(crate) fn is_used(&self) -> bool {
        used(&self.latest)
    }

    /// Sets floors and ceilings besides the policy's, for the decisions from now on.
    pub(crate) fn set_bounds(&mut self, bounds: Bounds) {
        self.bounds = bounds;
    }

    /// The number that is asked for.
    pub(crate) fn asked(&self) -> u32 {
        self.asked
    }

    /// The signal that set the number that is asked for, and what each of them wanted.
    pub(crate) fn wants(&self) -> (ScaleSource, ScaleWants) {
        self.latest_wants
    }

    /// Adds a sample, which covers the time since the previous one.
    pub(crate) fn sample(&mut self, load: Load, now: Duration) {
        let elapsed = now.saturating_sub(self.sampled_at).as_secs_f64();
        self.sampled_at = now;
        self.sum.request_seconds += load.average_concurrency * elapsed;
        self.sum.requests += load.requests;
        self.sum.seconds += elapsed;
        if used(&load) {
            self.used_at = Some(now);
        }
        self.keep_until = self.keep_until.max(now + load.keep);
        self.latest = load;
    }

    /// Records the seconds that are over, and decides. `None`: no change.
    pub(crate) fn tick(&mut self, plan: &RevisionPlan, now: Duration) -> Option<ScaleDecision> {
        self.record(&plan.policy, now);
        self.decide_now(plan, now)
    }

    /// The last decision, for a repetition, while there are requests and fewer instances than desired: the controller drops a
    /// decision with a failed start. Without requests the decision stays dropped, or a broken command would be started for
    /// ever.
    pub(crate) fn unmet(&self) -> Option<&ScaleDecision> {
        let there = self.latest.ready.saturating_add(self.latest.starting);
        let wanted = active(&self.latest) > 0;
        self.last_decision
            .as_ref()
            .filter(|_| wanted && there < self.asked)
    }

    /// Decides on the recorded seconds: at each tick, and after a change of plan without waiting for one.
    pub(crate) fn decide_now(&mut self, plan: &RevisionPlan, now: Duration) -> Option<ScaleDecision> {
        let idle_for = now.saturating_sub(self.used_at.unwrap_or(self.created_at));
        let recent = idle_for < plan.policy.stable_window || now < self.keep_until;
        let in_use = self.used_at.is_some() && recent;
        let mut decision = if in_use {
            let observation = self.observe(plan, now);
            decide(&observation, &plan.policy, &mut self.decider, now)
        } else {
            // Idle for a whole window: neither a panic nor the scale-down rate keeps instances any more. The scale-down
            // delay still does.
            self.decider.end_panic();
            let unlimited = AutoscalePolicy {
                max_scale_down_rate: f64::INFINITY,
                ..plan.policy.clone()
            };
            let observation = Observation {
                stable: 0.0,
                panic: 0.0,
                ..self.observe(plan, now)
            };
            decide(&observation, &unlimited, &mut self.decider, now)
        };
        if self.used_at.is_none() {
            decision.reason = Reason::New;
        } else if !in_use && decision.desired == 0 {
            decision.reason = Reason::Idle(idle_for);
        }
        let decision = self.bounded(decision, plan, in_use, now);
        self.record_decision(decision)
    }

    /// Scales up between ticks when the load exceeds the capacity; never scales down.
    ///
    /// An exact signal allows it: there is no scrape interval of two seconds before the first step. The load is the lesser of
    /// the present concurrency and its average since the last sample, so that a burst shorter than a start causes no start.
    pub(crate) fn scale_up_now(&mut self, plan: &RevisionPlan, now: Duration) -> Option<ScaleDecision> {
        let present = f64::from(active(&self.latest));
        if self.asked == 0 {
            return (present > 0.0).then(|| self.activate(plan, now)).flatten();
        }
        let lasting = present.min(self.latest.average_concurrency);
        let capacity = f64::from(self.latest.ready) * plan.policy.total_value;
        if plan.policy.metric != Metric::Concurrency || lasting <= capacity {
            return None;
        }
        let mut observation = self.observe(plan, now);
        observation.panic = observation.panic.max(lasting);
        let decision = decide(&observation, &plan.policy, &mut self.decider, now);
        if decision.desired <= self.asked {
            return None;
        }
        let decision = self.bounded(decision, plan, true, now);
        self.record_decision(decision)
    }

    /// Decides for a waiter at zero.
    pub(crate) fn activate(&mut self, plan: &RevisionPlan, now: Duration) -> Option<ScaleDecision> {
        if self.asked > 0 {
            return None;
        }
        self.used_at = Some(now);
        let decision = ScaleDecision {
            from: 0,
            desired: plan.policy.activation_scale.max(1),
            reason: Reason::FirstWaiter,
            limit: None,
            wants: ScaleWants {
                reactive: plan.policy.activation_scale.max(1),
                ..ScaleWants::default()
            },
            panic: false,
            excess_burst_capacity: 0,
        };
        let decision = self.bounded(decision, plan, true, now);
        self.record_decision(decision)
    }

    /// Applies a changed plan. Samples are kept, unless the metric changed.
    pub(crate) fn replan(&mut self, old: &RevisionPlan, new: &RevisionPlan, now: Duration) {
        if old.policy.metric != new.policy.metric {
            self.stable.clear();
            self.panic.clear();
        }
        self.stable.resize(new.policy.stable_window, now);
        self.panic.resize(new.policy.panic_window, now);
    }

    fn observe(&self, plan: &RevisionPlan, now: Duration) -> Observation {
        Observation {
            ready: self.latest.ready,
            asked: self.asked,
            reachable: plan.reachable,
            stable: self.stable.average(now),
            panic: self.panic.average(now),
        }
    }

    fn record(&mut self, policy: &AutoscalePolicy, now: Duration) {
        let second = now.as_secs();
        let span = std::mem::replace(
            &mut self.sum,
            SampleSum {
                recorded: second,
                ..SampleSum::default()
            },
        );
        // At zero nothing is recorded and the windows are cleared: the first second after a cold start is averaged over
        // that second, not over the silence before it.
        if self.asked == 0 && self.latest.ready == 0 && !used(&self.latest) {
            self.stable.clear();
            self.panic.clear();
            return;
        }
        if span.seconds <= 0.0 {
            return;
        }
        #[allow(clippy::cast_precision_loss)]
        let value = match policy.metric {
            Metric::Concurrency => span.request_seconds / span.seconds,
            Metric::Rps => span.requests as f64 / span.seconds,
        };
        // A late tick fills all seconds since the last one, as far back as the window reaches.
        let reach = policy.stable_window.max(policy.panic_window).as_secs() + 1;
        let first = (span.recorded + 1).max(second.saturating_sub(reach));
        for late in first..=second {
            self.stable.record(Duration::from_secs(late), value);
            self.panic.record(Duration::from_secs(late), value);
        }
    }

    fn bounded(
        &mut self,
        decision: ScaleDecision,
        plan: &RevisionPlan,
        in_use: bool,
        now: Duration,
    ) -> ScaleDecision {
        let input = ClampInput {
            ready: self.latest.ready,
            reachable: plan.reachable,
            in_use,
            needed: self.latest.needed,
            paused: self.latest.paused,
            start_timeout: plan.start_timeout,
        };
        let mut decision = match self.bounds.apply(&plan.policy, plan.reachable) {
            None => clamp(decision, &input, &plan.policy, &mut self.activity_state, now),
            Some(policy) => {
                let mut decision = clamp(decision, &input, &policy, &mut self.activity_state, now);
                decision.limit = decision.limit.map(|limit| self.bounds.named(limit, &plan.policy));
                decision
            }
        };
        self.bounds
            .tell(&mut decision.wants, &plan.policy, plan.reachable);
        // Whether traffic leads to it or not: its dependents do.
        decision.wants.need = self.latest.needed.then_some(1);
        decision
    }

    /// Keeps the decision, and returns it if it changes the number, or begins or ends a panic.
    fn record_decision(&mut self, decision: ScaleDecision) -> Option<ScaleDecision> {
        let changes = decision.desired != self.asked || decision.panic != self.panicking;
        self.asked = decision.desired;
        self.panicking = decision.panic;
        self.latest_wants = (decision.source(), decision.wants);
        if changes {
            self.last_decision = Some(decision.clone());
        }
        changes.then_some(decision)
    }
}

/// Requests in flight and queued that count as activity.
fn active(load: &Load) -> u32 {
    let all = load.in_flight.saturating_add(load.queued);
    all.saturating_sub(load.passive)
}

fn used(load: &Load) -> bool {
    active(load) > 0 || load.requests > 0 || load.average_concurrency > 0.0 || load.expected
}

#[cfg(test)]
#[path = "tracker_tests.rs"]
pub(crate) mod tests;

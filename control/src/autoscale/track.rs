//! One revision over time: samples in, decisions that change something out. No clock, no I/O.

use std::time::Duration;

use sluice_model::Load;

use super::bounds::{Circumstances, Standing, bound};
use super::decide::{DeciderState, Observation, decide};
use super::reason::{Reason, ScaleDecision};
use super::window::TimedBuckets;
use crate::plan::{AutoscalePolicy, Metric, RevisionPlan};

/// What the autoscaler keeps of one revision.
#[derive(Debug)]
pub(crate) struct Tracker {
    stable: TimedBuckets,
    panic: TimedBuckets,
    decider: DeciderState,
    standing: Standing,
    span: Span,
    latest: Load,
    sampled_at: Duration,
    created_at: Duration,
    /// When a request was last there; `None`: never.
    used_at: Option<Duration>,
    asked: u32,
    panicking: bool,
    /// What was decided last that changed something.
    told: Option<ScaleDecision>,
}

/// What came in since the last whole second that was recorded.
///
/// The data plane averages since the previous sample and samples come at any time: what one bucket
/// gets is their time-weighted mean. Nothing is scraped twice, nothing is added up twice.
#[derive(Debug, Default)]
struct Span {
    /// The second that ends the last recorded one.
    recorded: u64,
    request_seconds: f64,
    requests: u64,
    seconds: f64,
}

impl Tracker {
    /// Of a revision that is as `load` says when it is first looked at.
    ///
    /// What already runs (taken over from another gateway, or started by somebody else) counts as
    /// asked for and as used just now: it is not taken away before a window has shown that nobody
    /// needs it.
    pub(crate) fn new(plan: &RevisionPlan, load: &Load, now: Duration) -> Self {
        Self::after(plan, load, load.ready, now)
    }

    /// As [`new`](Self::new), of a revision of which another gateway wanted `found`.
    pub(crate) fn after(plan: &RevisionPlan, load: &Load, found: u32, now: Duration) -> Self {
        Self {
            stable: TimedBuckets::new(plan.policy.stable_window),
            panic: TimedBuckets::new(plan.policy.panic_window),
            decider: DeciderState::new(found, now),
            standing: Standing::new(now),
            span: Span {
                recorded: now.as_secs(),
                ..Span::default()
            },
            latest: *load,
            sampled_at: now,
            created_at: now,
            used_at: (found > 0 || load.ready > 0 || used(load)).then_some(now),
            asked: found,
            panicking: found > 1,
            told: None,
        }
    }

    /// Whether the latest sample had any request in it.
    pub(crate) fn is_used(&self) -> bool {
        used(&self.latest)
    }

    /// Takes what happened since the previous sample.
    pub(crate) fn sample(&mut self, load: Load, now: Duration) {
        let elapsed = now.saturating_sub(self.sampled_at).as_secs_f64();
        self.sampled_at = now;
        self.span.request_seconds += load.average_concurrency * elapsed;
        self.span.requests += load.requests;
        self.span.seconds += elapsed;
        if used(&load) {
            self.used_at = Some(now);
        }
        self.latest = load;
    }

    /// Closes the seconds that are over and decides. `None`: nothing changes.
    pub(crate) fn tick(&mut self, plan: &RevisionPlan, now: Duration) -> Option<ScaleDecision> {
        self.record(&plan.policy, now);
        self.reconsider(plan, now)
    }

    /// The last decision again, while somebody is there and it is not carried out: whoever does
    /// may have dropped it with a start that failed. Without anybody there it stays dropped, or a
    /// broken command would be started for ever.
    pub(crate) fn unmet(&self) -> Option<&ScaleDecision> {
        let there = self.latest.ready.saturating_add(self.latest.starting);
        let wanted = self.latest.in_flight > 0 || self.latest.queued > 0;
        self.told.as_ref().filter(|_| wanted && there < self.asked)
    }

    /// Decides on what is recorded; after a change of plan, for which no second need be over.
    pub(crate) fn reconsider(&mut self, plan: &RevisionPlan, now: Duration) -> Option<ScaleDecision> {
        let idle_for = now.saturating_sub(self.used_at.unwrap_or(self.created_at));
        let in_use = self.used_at.is_some() && idle_for < plan.policy.stable_window;
        let mut decision = if in_use {
            let observation = self.observe(plan, now);
            decide(&observation, &plan.policy, &mut self.decider, now)
        } else {
            // Nobody can be hurt any more: neither a panic's last minute nor the step-by-step way
            // down keeps a revision up that was idle for its whole window. The delay still does.
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
        self.settle(decision)
    }

    /// Decides between ticks where the load is above what can be held; only ever asks for more.
    ///
    /// This is where an exact signal beats a scraped one: no two seconds until the first step out.
    /// What counts is the lesser of what is there now and of its average since the last sample, so
    /// that a burst that is over before anything could start starts nothing.
    pub(crate) fn hurry(&mut self, plan: &RevisionPlan, now: Duration) -> Option<ScaleDecision> {
        let present = f64::from(self.latest.in_flight) + f64::from(self.latest.queued);
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
        self.settle(decision)
    }

    /// Somebody waits at zero.
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
            panic: false,
            excess_burst_capacity: 0,
        };
        let decision = self.bounded(decision, plan, true, now);
        self.settle(decision)
    }

    /// Takes over a changed plan; what was measured stays where it still means the same.
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
            &mut self.span,
            Span {
                recorded: second,
                ..Span::default()
            },
        );
        // At zero nothing is recorded, and what was is forgotten: the first second of a new life is
        // averaged over that second, not over the silence before it.
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
        // A late tick stands for all the seconds it is late, as far back as the window reaches.
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
        let circumstances = Circumstances {
            ready: self.latest.ready,
            reachable: plan.reachable,
            in_use,
            start_timeout: plan.start_timeout,
        };
        bound(decision, &circumstances, &plan.policy, &mut self.standing, now)
    }

    /// A panic that begins or ends is told even where the number stays.
    fn settle(&mut self, decision: ScaleDecision) -> Option<ScaleDecision> {
        let changes = decision.desired != self.asked || decision.panic != self.panicking;
        self.asked = decision.desired;
        self.panicking = decision.panic;
        if changes {
            self.told = Some(decision.clone());
        }
        changes.then_some(decision)
    }
}

fn used(load: &Load) -> bool {
    load.in_flight > 0 || load.queued > 0 || load.requests > 0 || load.average_concurrency > 0.0
}

#[cfg(test)]
#[path = "track_tests.rs"]
pub(crate) mod tests;

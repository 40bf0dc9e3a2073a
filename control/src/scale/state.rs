//! One revision's instances: what happened in, what to do out. No I/O, no clock, no randomness.
//!
//! An instance is starting → ready → retired (it finishes what it has) → stopping → gone. The data
//! plane forgets an instance before it is asked to end, so nothing is sent to one that is ending.
//!
//! **Invariant:** zero is reached only through a retirement that the data plane agreed to, a
//! removal of the revision, or a failure.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_model::{ActivationFailure, Failure, InstanceId, RevisionStatus};

use super::backoff::Backoff;
use crate::plan::{RevisionPlan, ScalerSpec};

/// How soon a retirement that the data plane refused is tried again.
const RETIRE_AGAIN: Duration = Duration::from_secs(1);

/// How soon a start that was not allowed is tried again: room appears without notice.
const NOT_ALLOWED: Duration = Duration::from_secs(1);

/// Starts in a row that may fail on a taken port before that is a failure like any other.
const PORT_TRIES: u32 = 5;

/// What happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// Somebody waits and nothing is usable.
    Activate,
    /// It answered its probe.
    Ready(InstanceId),
    /// It was retired and has nothing in flight any more.
    Drained(InstanceId),
    /// The autoscaler's decision, with its words.
    Desired { count: u32, decision: String },
    /// The revision's plan, new or again.
    Plan(Arc<RevisionPlan>),
    /// The revision is no longer served.
    Removed,
    /// The gateway ends: nothing is in flight that still counts.
    Shutdown,
    /// It runs; this is where it will listen.
    Started(InstanceId, SocketAddr),
    /// It could not be started, or not become ready by itself.
    Failed {
        instance: InstanceId,
        failure: Failure,
        detail: String,
    },
    /// It and all it had started are gone.
    Exited {
        instance: InstanceId,
        detail: String,
        /// It complained that its port was taken.
        port_taken: bool,
    },
    /// What the data plane answered to [`Action::Retire`].
    Victims { asked: u32, chosen: Vec<InstanceId> },
    /// A deadline may have passed.
    Tick,
}

/// What to do, in this order.
#[derive(Debug, PartialEq)]
pub(crate) enum Action {
    Start(InstanceId, Arc<RevisionPlan>),
    /// SIGTERM now, SIGKILL after the grace.
    Stop(InstanceId, Duration),
    Add(InstanceId, SocketAddr),
    Remove(InstanceId),
    /// Let the data plane choose; its answer is [`Event::Victims`].
    Retire {
        count: u32,
        to_zero: bool,
    },
    RetireThese(Vec<InstanceId>),
    /// Answer everybody who waits.
    Fail(ActivationFailure),
    /// For the log: something is wrong, and what.
    Warn(String),
}

/// Where instance numbers and randomness come from: both are the caller's.
#[derive(Debug)]
pub(crate) struct Fresh {
    next_instance: u64,
    rng: fastrand::Rng,
}

impl Fresh {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            next_instance: 1,
            rng: fastrand::Rng::with_seed(seed),
        }
    }

    fn instance(&mut self) -> InstanceId {
        let id = InstanceId(self.next_instance);
        self.next_instance += 1;
        id
    }

    fn jitter(&mut self) -> f64 {
        self.rng.f64()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Starting { since: Instant, deadline: Instant },
    Ready { since: Instant },
    Retired { deadline: Instant },
    Stopping,
}

#[derive(Debug)]
struct Instance {
    phase: Phase,
    plan: Arc<RevisionPlan>,
    /// The data plane knows it, and may use it before we hear that it is ready.
    added: bool,
}

impl Instance {
    /// Counts toward what is wanted.
    fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Starting { .. } | Phase::Ready { .. })
    }

    fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Ready { .. })
    }

    fn is_starting(&self) -> bool {
        matches!(self.phase, Phase::Starting { .. })
    }

    fn grace(&self) -> Duration {
        match &self.plan.scaler {
            ScalerSpec::Process(process) => process.stop_grace_period,
            ScalerSpec::Webhook(_) => Duration::ZERO,
        }
    }
}

/// One revision.
#[derive(Debug)]
pub(crate) struct RevisionState {
    plan: Arc<RevisionPlan>,
    removed: bool,
    /// How long a retired instance may take; then what is in flight on it is cut.
    drain: Duration,
    desired: u32,
    instances: BTreeMap<InstanceId, Instance>,
    backoff: Backoff,
    /// Somebody waited since an instance last became ready.
    awaited: bool,
    port_tries: u32,
    /// When a refused retirement is tried again.
    retire_again: Option<Instant>,
    last_failure: Option<(Failure, String)>,
    last_decision: Option<String>,
    starts: u64,
}

impl RevisionState {
    /// A revision that has nothing yet; give it its plan with [`Event::Plan`] to begin.
    pub(crate) fn new(plan: Arc<RevisionPlan>, drain: Duration) -> Self {
        Self {
            plan,
            removed: false,
            drain,
            desired: 0,
            instances: BTreeMap::new(),
            backoff: Backoff::default(),
            awaited: false,
            port_tries: 0,
            retire_again: None,
            last_failure: None,
            last_decision: None,
            starts: 0,
        }
    }

    /// Takes in what happened and says what to do.
    pub(crate) fn step(&mut self, event: Event, now: Instant, fresh: &mut Fresh) -> Vec<Action> {
        let mut todo = Vec::new();
        match event {
            Event::Activate => self.activate(now, &mut todo),
            Event::Ready(id) => self.ready(id, now),
            Event::Drained(id) => {
                if self.phase_is(id, |phase| matches!(phase, Phase::Retired { .. })) {
                    self.stop(id, None, &mut todo);
                }
            }
            Event::Desired { count, decision } => {
                self.desired = count;
                self.last_decision = Some(decision);
                self.retire_again = None;
            }
            Event::Plan(plan) => self.replan(plan, now, &mut todo),
            Event::Removed => self.removed = true,
            Event::Shutdown => {
                self.removed = true;
                self.stop_where(|_| true, &mut todo);
            }
            Event::Started(id, address) => {
                let running = self.instances.get_mut(&id);
                if let Some(instance) = running.filter(|i| i.phase != Phase::Stopping) {
                    instance.added = true;
                    todo.push(Action::Add(id, address));
                }
            }
            Event::Failed {
                instance,
                failure,
                detail,
            } => {
                if let Some(gone) = self.instances.remove(&instance) {
                    self.start_failed(&gone, failure, detail, now, fresh, &mut todo);
                }
            }
            Event::Exited {
                instance,
                detail,
                port_taken,
            } => self.exited(instance, detail, port_taken, now, fresh, &mut todo),
            Event::Victims { asked, chosen } => {
                self.victims(asked, &chosen, now);
                return todo;
            }
            Event::Tick => {}
        }
        self.pass_deadlines(now, fresh, &mut todo);
        self.reconcile(now, fresh, &mut todo);
        self.answer_waiters(now, &mut todo);
        todo
    }

    /// When [`Event::Tick`] is due at the latest.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let phases = self
            .instances
            .values()
            .filter_map(|instance| match instance.phase {
                Phase::Starting { deadline, .. } | Phase::Retired { deadline } => Some(deadline),
                Phase::Ready { .. } | Phase::Stopping => None,
            });
        let held = self.backoff.until().filter(|_| self.current() < self.goal());
        phases.chain(self.retire_again).chain(held).min()
    }

    /// Nothing is left to look after.
    pub(crate) fn is_over(&self) -> bool {
        self.removed && self.instances.is_empty()
    }

    /// Whether this plan is the one it follows already.
    pub(crate) fn follows(&self, plan: &RevisionPlan) -> bool {
        !self.removed && *self.plan == *plan
    }

    /// The longest any of its instances may take to end.
    pub(crate) fn longest_grace(&self) -> Duration {
        self.instances
            .values()
            .map(Instance::grace)
            .max()
            .unwrap_or_default()
    }

    /// For status and admin.
    pub(crate) fn status(&self) -> RevisionStatus {
        RevisionStatus {
            desired: self.wanted(),
            last_decision: self.last_decision.clone(),
            last_failure: self.last_failure.as_ref().map(|(_, detail)| detail.clone()),
            starts: self.starts,
        }
    }

    fn activate(&mut self, now: Instant, todo: &mut Vec<Action>) {
        if self.removed {
            return;
        }
        if matches!(self.plan.scaler, ScalerSpec::Webhook(_)) {
            let detail = "webhook activation is not available yet".to_owned();
            return self.refuse(detail, now, todo);
        }
        if self.plan.policy.max_scale == Some(0) {
            return self.refuse("maxScale is 0".to_owned(), now, todo);
        }
        self.awaited = true;
        if !self.any(Instance::is_live) {
            self.want_activation();
        }
    }

    fn refuse(&mut self, detail: String, now: Instant, todo: &mut Vec<Action>) {
        self.last_failure = Some((Failure::NotAllowed, detail));
        self.backoff.hold(now, NOT_ALLOWED);
        self.awaited = true;
        self.answer_waiters(now, todo);
    }

    fn want_activation(&mut self) {
        let before = self.wanted();
        self.desired = self.desired.max(self.plan.policy.activation_scale.max(1));
        let after = self.wanted();
        if after != before {
            self.last_decision = Some(format!("{before} → {after}: somebody waits"));
        }
    }

    fn ready(&mut self, id: InstanceId, now: Instant) {
        let current = Arc::clone(&self.plan);
        let Some(instance) = self.instances.get_mut(&id).filter(|i| i.is_starting()) else {
            return;
        };
        instance.phase = Phase::Ready { since: now };
        if same_launch(&instance.plan, &current) {
            self.backoff.succeeded();
            self.last_failure = None;
            self.port_tries = 0;
        }
        self.awaited = false;
    }

    fn replan(&mut self, plan: Arc<RevisionPlan>, now: Instant, todo: &mut Vec<Action>) {
        self.removed = false;
        let changed = !same_launch(&self.plan, &plan);
        self.plan = plan;
        if changed {
            self.backoff.reset();
            self.last_failure = None;
            self.port_tries = 0;
            let stale = self.ids(|i| i.is_starting() && !same_launch(&i.plan, &self.plan));
            self.discard(stale, now, todo);
        }
    }

    fn exited(
        &mut self,
        id: InstanceId,
        detail: String,
        port_taken: bool,
        now: Instant,
        fresh: &mut Fresh,
        todo: &mut Vec<Action>,
    ) {
        let Some(gone) = self.instances.remove(&id) else {
            return;
        };
        if gone.phase != Phase::Stopping {
            todo.push(Action::Remove(id));
        }
        match gone.phase {
            Phase::Starting { .. } if port_taken && self.port_tries < PORT_TRIES => {
                // Another one is started at once, and gets another port.
                self.port_tries += 1;
                todo.push(Action::Warn(format!(
                    "instance {id}: {detail}; trying another port"
                )));
            }
            Phase::Starting { .. } => {
                self.start_failed(&gone, Failure::Failed, detail, now, fresh, todo);
            }
            Phase::Ready { since } => {
                todo.push(Action::Warn(format!(
                    "instance {id} ended unexpectedly: {detail}"
                )));
                if same_launch(&gone.plan, &self.plan) {
                    self.last_failure = Some((Failure::Failed, detail));
                    let served = now.saturating_duration_since(since);
                    self.backoff.crashed(served, now, fresh.jitter());
                }
                if self.awaited && !self.any(Instance::is_live) {
                    self.want_activation();
                }
            }
            Phase::Retired { .. } | Phase::Stopping => {}
        }
    }

    fn start_failed(
        &mut self,
        gone: &Instance,
        failure: Failure,
        detail: String,
        now: Instant,
        fresh: &mut Fresh,
        todo: &mut Vec<Action>,
    ) {
        let Phase::Starting { since, .. } = gone.phase else {
            return;
        };
        if !same_launch(&gone.plan, &self.plan) {
            return;
        }
        let delay = if failure == Failure::NotAllowed {
            self.backoff.hold(now, NOT_ALLOWED);
            NOT_ALLOWED
        } else {
            self.backoff.failed(since, now, fresh.jitter())
        };
        todo.push(Action::Warn(format!(
            "cannot start: {detail}; the next try is in {:.1} s at the earliest",
            delay.as_secs_f64()
        )));
        self.last_failure = Some((failure, detail));
        self.port_tries = 0;
        if !self.any(Instance::is_live) {
            // What is wanted beyond the minimum was wanted for those who are answered now. The
            // next of them asks again; without them a broken command is not started for ever.
            self.desired = 0;
            self.awaited = true;
        }
    }

    /// Nobody waits for what cannot come: once nothing is under way and nothing may be started,
    /// those who wait are told why.
    fn answer_waiters(&mut self, now: Instant, todo: &mut Vec<Action>) {
        if !self.awaited || self.removed || self.any(Instance::is_live) {
            return;
        }
        if let (Some(retry_after), Some((failure, detail))) =
            (self.backoff.remaining(now), self.last_failure.clone())
        {
            self.awaited = false;
            self.desired = 0;
            todo.push(Action::Fail(ActivationFailure {
                failure,
                detail,
                retry_after,
            }));
        }
    }

    fn victims(&mut self, asked: u32, chosen: &[InstanceId], now: Instant) {
        let deadline = now + self.drain;
        for id in chosen {
            if let Some(instance) = self.instances.get_mut(id).filter(|i| i.is_live()) {
                instance.phase = Phase::Retired { deadline };
            }
        }
        if chosen.len() < asked as usize {
            self.retire_again = Some(now + RETIRE_AGAIN);
        }
    }

    fn pass_deadlines(&mut self, now: Instant, fresh: &mut Fresh, todo: &mut Vec<Action>) {
        if self.retire_again.is_some_and(|at| at <= now) {
            self.retire_again = None;
        }
        let due: Vec<InstanceId> = self
            .instances
            .iter()
            .filter(|(_, instance)| match instance.phase {
                Phase::Starting { deadline, .. } | Phase::Retired { deadline } => deadline <= now,
                Phase::Ready { .. } | Phase::Stopping => false,
            })
            .map(|(&id, _)| id)
            .collect();
        for id in due {
            let Some(instance) = self.instances.get(&id) else {
                continue;
            };
            let late = Instance {
                phase: instance.phase,
                plan: Arc::clone(&instance.plan),
                added: instance.added,
            };
            if late.is_starting() {
                // It had its time; what does not answer a probe has nothing to finish.
                self.stop(id, Some(Duration::ZERO), todo);
                let detail = format!("not ready within {:?}", late.plan.start_timeout);
                self.start_failed(&late, Failure::TimedOut, detail, now, fresh, todo);
            } else {
                todo.push(Action::Warn(format!(
                    "instance {id} had requests left at the drain timeout"
                )));
                self.stop(id, None, todo);
            }
        }
    }

    /// Brings what is toward what is wanted.
    fn reconcile(&mut self, now: Instant, fresh: &mut Fresh, todo: &mut Vec<Action>) {
        if self.removed {
            let rest = self.ids(Instance::is_live);
            self.discard(rest, now, todo);
            return;
        }
        let wanted = self.wanted();
        let goal = self.goal();
        if self.backoff.remaining(now).is_none() {
            for _ in self.current()..goal {
                self.start(now, fresh, todo);
            }
        }
        let replaced = self.replaced();
        if wanted > 0 && !replaced.is_empty() {
            let ready = count(
                self.ids(|i| i.is_ready() && same_launch(&i.plan, &self.plan))
                    .len(),
            );
            let surplus = (ready + count(replaced.len())).saturating_sub(goal) as usize;
            // Never before one of the new ones is there.
            let surplus = if ready == 0 { 0 } else { surplus };
            let out = replaced.into_iter().take(surplus).collect();
            self.discard(out, now, todo);
            return;
        }
        self.shrink(wanted, now, todo);
    }

    fn shrink(&mut self, wanted: u32, now: Instant, todo: &mut Vec<Action>) {
        let surplus = count(self.ids(Instance::is_live).len()).saturating_sub(wanted);
        if surplus == 0 || self.retire_again.is_some() {
            return;
        }
        if wanted == 0 {
            todo.push(Action::Retire {
                count: surplus,
                to_zero: true,
            });
            return;
        }
        // The youngest that serve nobody yet go first.
        let mut starting = self.ids(Instance::is_starting);
        let cancelled = starting.split_off(starting.len().saturating_sub(surplus as usize));
        let rest = surplus - count(cancelled.len());
        self.discard(cancelled, now, todo);
        if rest > 0 {
            todo.push(Action::Retire {
                count: rest,
                to_zero: false,
            });
        }
    }

    fn start(&mut self, now: Instant, fresh: &mut Fresh, todo: &mut Vec<Action>) {
        let id = fresh.instance();
        let phase = Phase::Starting {
            since: now,
            deadline: now + self.plan.start_timeout,
        };
        let plan = Arc::clone(&self.plan);
        todo.push(Action::Start(id, Arc::clone(&plan)));
        let added = false;
        self.instances.insert(id, Instance { phase, plan, added });
        self.starts += 1;
    }

    /// Out of the data plane first: nothing is sent to an instance that is ending.
    fn stop(&mut self, id: InstanceId, grace: Option<Duration>, todo: &mut Vec<Action>) {
        if let Some(instance) = self.instances.get_mut(&id).filter(|i| i.phase != Phase::Stopping) {
            instance.phase = Phase::Stopping;
            todo.push(Action::Remove(id));
            todo.push(Action::Stop(id, grace.unwrap_or_else(|| instance.grace())));
        }
    }

    fn stop_where(&mut self, which: impl Fn(&Instance) -> bool, todo: &mut Vec<Action>) {
        for id in self.ids(which) {
            self.stop(id, None, todo);
        }
    }

    /// Lets exactly these go: those that the data plane knows finish what they have, which it may
    /// have given them a moment ago; the others are stopped.
    fn discard(&mut self, ids: Vec<InstanceId>, now: Instant, todo: &mut Vec<Action>) {
        let deadline = now + self.drain;
        let mut retired = Vec::new();
        for id in ids {
            match self.instances.get_mut(&id) {
                Some(instance) if instance.added => {
                    instance.phase = Phase::Retired { deadline };
                    retired.push(id);
                }
                _ => self.stop(id, None, todo),
            }
        }
        if !retired.is_empty() {
            todo.push(Action::RetireThese(retired));
        }
    }

    fn wanted(&self) -> u32 {
        if self.removed || matches!(self.plan.scaler, ScalerSpec::Webhook(_)) {
            return 0;
        }
        let policy = &self.plan.policy;
        let least = if self.plan.reachable { policy.min_scale } else { 0 };
        self.desired.max(least).min(self.most())
    }

    fn most(&self) -> u32 {
        self.plan.policy.max_scale.unwrap_or(u32::MAX)
    }

    /// How many of the present plan there should be: what is wanted, and while others are being
    /// replaced at least as many as those, so that none goes before its successor is there.
    fn goal(&self) -> u32 {
        match self.wanted() {
            0 => 0,
            wanted => wanted.max(count(self.replaced().len())).min(self.most()),
        }
    }

    fn current(&self) -> u32 {
        count(
            self.ids(|i| i.is_live() && same_launch(&i.plan, &self.plan))
                .len(),
        )
    }

    /// Serving, but started by a plan that is no more.
    fn replaced(&self) -> Vec<InstanceId> {
        self.ids(|i| i.is_ready() && !same_launch(&i.plan, &self.plan))
    }

    fn ids(&self, which: impl Fn(&Instance) -> bool) -> Vec<InstanceId> {
        let chosen = self.instances.iter().filter(|(_, instance)| which(instance));
        chosen.map(|(&id, _)| id).collect()
    }

    fn any(&self, which: impl Fn(&Instance) -> bool) -> bool {
        self.instances.values().any(which)
    }

    fn phase_is(&self, id: InstanceId, which: impl Fn(Phase) -> bool) -> bool {
        self.instances
            .get(&id)
            .is_some_and(|instance| which(instance.phase))
    }
}

/// Whether an instance started by one plan is as good as one started by the other.
fn same_launch(a: &RevisionPlan, b: &RevisionPlan) -> bool {
    a.scaler == b.scaler && a.service == b.service
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;

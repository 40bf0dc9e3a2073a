//! The state machine of a revision of local processes: events in, actions out. No I/O, no clock, no randomness.
//!
//! An instance is starting → ready → retired (draining) → stopping → gone. Requests that are still in flight at the drain
//! timeout are ended before the instance is stopped. The data plane removes an endpoint before its instance gets SIGTERM,
//! so no request is sent to a stopping instance.
//!
//! **Invariant:** zero is reached only by a retirement that the data plane agreed to, by the removal of the revision, or by
//! a failure.

mod events;
mod instance;
mod reconcile;
mod saved;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_model::{ActivationFailure, Failure, InstanceId, RevisionId, RevisionStatus};

pub(crate) use self::events::{ProcessAction, ProcessEvent};
use self::instance::{Instance, Phase, same_launch};
pub(crate) use self::saved::SavedProcessState;
use crate::plan::{RevisionPlan, ScalingMode};
use crate::scale::backoff::Backoff;
use crate::scale::events::{END_GRACE, EndpointAction, IdSource, RevisionEvent};
use crate::scale::fleet::RevisionMachine;
use crate::scale::needs::{NeedsGate, of_need};

/// The delay before a retirement that the data plane refused is tried again.
const RETIRE_AGAIN: Duration = Duration::from_secs(1);

/// The delay before a start that was not allowed is tried again: free room is not announced.
const NOT_ALLOWED: Duration = Duration::from_secs(1);

/// The bound of starts in a row that fail on a taken port; after that, it is a failure like any other.
const PORT_TRIES: u32 = 5;

/// A failed start.
struct FailedStart {
    plan: Arc<RevisionPlan>,
    since: Instant,
    failure: Failure,
    detail: String,
}

/// The state of a revision of local processes.
#[derive(Debug)]
pub(crate) struct ProcessState {
    plan: Arc<RevisionPlan>,
    removed: bool,
    /// The drain timeout of retired instances.
    drain: Duration,
    desired: u32,
    instances: BTreeMap<InstanceId, Instance>,
    backoff: Backoff,
    /// A request waited since an instance last became ready.
    awaited: bool,
    port_tries: u32,
    /// The instant of the next try of a refused retirement.
    retire_again: Option<Instant>,
    last_failure: Option<(Failure, String)>,
    last_decision: Option<String>,
    starts: u64,
    needs: NeedsGate,
}

impl RevisionMachine for ProcessState {
    type Event = ProcessEvent;
    type Action = ProcessAction;

    fn new(plan: Arc<RevisionPlan>, drain: Duration) -> Self {
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
            needs: NeedsGate::default(),
        }
    }

    fn step(&mut self, event: ProcessEvent, now: Instant, ids: &mut IdSource) -> Vec<ProcessAction> {
        let mut todo = Vec::new();
        match event {
            ProcessEvent::Revision(RevisionEvent::Activate) => self.activate(now, &mut todo),
            ProcessEvent::Revision(RevisionEvent::Ready(id)) => self.ready(id, now),
            ProcessEvent::Revision(RevisionEvent::Drained(id)) => {
                if self.instances.get(&id).is_some_and(Instance::is_retired) {
                    self.stop(id, None, &mut todo);
                }
            }
            ProcessEvent::Revision(RevisionEvent::Desired { count, decision }) => {
                self.desired = count;
                self.last_decision = Some(decision);
                self.retire_again = None;
            }
            ProcessEvent::Revision(RevisionEvent::Plan(plan)) => self.replan(plan, now, &mut todo),
            ProcessEvent::Revision(RevisionEvent::Removed) => {
                self.removed = true;
                // A revision that is configured again later starts anew.
                self.desired = 0;
                self.awaited = false;
            }
            ProcessEvent::Revision(RevisionEvent::Shutdown) => {
                self.removed = true;
                self.stop_where(|_| true, &mut todo);
            }
            ProcessEvent::Started(id, address) => {
                let running = self.instances.get_mut(&id);
                if let Some(instance) = running.filter(|i| i.phase != Phase::Stopping) {
                    instance.added = true;
                    let took = match instance.phase {
                        Phase::Starting { since, .. } => now.saturating_duration_since(since),
                        _ => Duration::ZERO,
                    };
                    todo.push(EndpointAction::Add(id, address, took).into());
                }
            }
            ProcessEvent::Failed {
                instance,
                failure,
                detail,
            } => {
                let gone = self.instances.remove(&instance);
                if let Some((plan, since)) = gone.and_then(Instance::into_start) {
                    let failed = FailedStart {
                        plan,
                        since,
                        failure,
                        detail,
                    };
                    self.start_failed(failed, now, ids, &mut todo);
                }
            }
            ProcessEvent::Exited {
                instance,
                detail,
                port_taken,
            } => self.exited(instance, detail, port_taken, now, ids, &mut todo),
            ProcessEvent::Revision(RevisionEvent::Victims { asked, chosen }) => {
                self.victims(asked, &chosen, now);
                return todo;
            }
            // An instance that was ready before is not reported as ready again.
            ProcessEvent::Revision(RevisionEvent::Activated) => self.awaited = false,
            ProcessEvent::Revision(RevisionEvent::NeedsReady) => self.needs = NeedsGate::Open,
            ProcessEvent::Revision(RevisionEvent::NeedFailed { need, failure }) => {
                self.need_failed(&need, &failure, now, &mut todo);
            }
            ProcessEvent::Revision(RevisionEvent::NeedsChanged) if self.needs.is_asked() => {
                self.needs = NeedsGate::Closed;
            }
            ProcessEvent::Revision(RevisionEvent::NeedsChanged | RevisionEvent::Tick) => {}
        }
        self.pass_deadlines(now, ids, &mut todo);
        if self.awaited && !self.any(Instance::is_live) && self.backoff.remaining(now).is_none() {
            // After a failure that is noticed late no back-off is left to answer waiters with, and none to wait for:
            // start again.
            self.want_activation();
        }
        self.reconcile(now, ids, &mut todo);
        self.answer_waiters(now, &mut todo);
        todo
    }

    fn next_deadline(&self) -> Option<Instant> {
        let phases = self.instances.values().filter_map(Instance::deadline);
        let held = self.backoff.until().filter(|_| self.current() < self.goal());
        phases.chain(self.retire_again).chain(held).min()
    }

    fn set_drain(&mut self, drain: Duration) {
        self.drain = drain;
    }

    fn is_over(&self) -> bool {
        self.removed && self.instances.is_empty()
    }

    fn is_removed(&self) -> bool {
        self.removed
    }

    fn runs(&self) -> bool {
        !self.instances.is_empty() || self.needs.is_asked()
    }

    fn follows(&self, plan: &RevisionPlan) -> bool {
        !self.removed && *self.plan == *plan
    }

    fn status(&self) -> RevisionStatus {
        RevisionStatus {
            desired: self.wanted(),
            last_decision: self.last_decision.clone(),
            last_failure: self.last_failure.as_ref().map(|(_, detail)| detail.clone()),
            starts: self.starts,
            waits_for: if self.needs.is_asked() {
                self.plan.needs.clone()
            } else {
                Vec::new()
            },
            ..RevisionStatus::default()
        }
    }
}

impl ProcessState {
    /// The longest grace period of any instance.
    pub(crate) fn longest_grace(&self) -> Duration {
        self.instances
            .values()
            .map(Instance::grace)
            .max()
            .unwrap_or_default()
    }

    fn activate(&mut self, now: Instant, todo: &mut Vec<ProcessAction>) {
        if self.removed {
            return;
        }
        if self.plan.policy.max_scale == Some(0) {
            return self.refuse("maxScale is 0".to_owned(), now, todo);
        }
        if self.plan.policy.mode == ScalingMode::Observe && !self.any(Instance::is_live) {
            return self.refuse("mode is observe: nothing is started".to_owned(), now, todo);
        }
        self.awaited = true;
        if !self.any(Instance::is_live) {
            self.want_activation();
        }
    }

    fn refuse(&mut self, detail: String, now: Instant, todo: &mut Vec<ProcessAction>) {
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

    fn replan(&mut self, plan: Arc<RevisionPlan>, now: Instant, todo: &mut Vec<ProcessAction>) {
        self.removed = false;
        let changed = !same_launch(&self.plan, &plan);
        self.plan = plan;
        if changed {
            self.backoff.reset();
            if self.last_failure.take().is_some() {
                todo.push(EndpointAction::Forgive.into());
            }
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
        ids: &mut IdSource,
        todo: &mut Vec<ProcessAction>,
    ) {
        let Some(gone) = self.instances.remove(&id) else {
            return;
        };
        if gone.phase != Phase::Stopping {
            todo.push(EndpointAction::Remove(id).into());
        }
        match gone.phase {
            Phase::Starting { .. } if port_taken && self.port_tries < PORT_TRIES => {
                // The next start follows at once, on another port.
                self.port_tries += 1;
                todo.push(
                    EndpointAction::Warn(format!("instance {id}: {detail}; trying another port")).into(),
                );
            }
            Phase::Starting { since, .. } => {
                let failed = FailedStart {
                    plan: gone.plan,
                    since,
                    failure: Failure::Failed,
                    detail,
                };
                self.start_failed(failed, now, ids, todo);
            }
            Phase::Ready { since } => {
                todo.push(EndpointAction::Warn(format!("instance {id} ended unexpectedly: {detail}")).into());
                if same_launch(&gone.plan, &self.plan) {
                    self.last_failure = Some((Failure::Failed, detail));
                    let served = now.saturating_duration_since(since);
                    self.backoff.crashed(served, now, ids.jitter());
                }
                if self.awaited && !self.any(Instance::is_live) {
                    self.want_activation();
                }
            }
            Phase::Stopping if gone.timed_out => self.explain_timeout(&gone, &detail, todo),
            Phase::Retired { .. } | Phase::Ending { .. } | Phase::Stopping => {}
        }
    }

    /// Completes the failure of an instance that timed out with its exit status and last output, known only now. The waiters
    /// were answered at the timeout.
    fn explain_timeout(&mut self, gone: &Instance, end: &str, todo: &mut Vec<ProcessAction>) {
        let Some((Failure::TimedOut, detail)) = &mut self.last_failure else {
            return;
        };
        if same_launch(&gone.plan, &self.plan) {
            *detail = format!("{}; ended with {end}", not_ready(&gone.plan));
            todo.push(EndpointAction::Warn(detail.clone()).into());
        }
    }

    fn start_failed(
        &mut self,
        failed: FailedStart,
        now: Instant,
        ids: &mut IdSource,
        todo: &mut Vec<ProcessAction>,
    ) {
        if !same_launch(&failed.plan, &self.plan) {
            return;
        }
        let FailedStart {
            since,
            failure,
            detail,
            ..
        } = failed;
        let delay = if failure == Failure::NotAllowed {
            self.backoff.hold(now, NOT_ALLOWED);
            NOT_ALLOWED
        } else {
            self.backoff.failed(since, now, ids.jitter())
        };
        todo.push(
            EndpointAction::Warn(format!(
                "cannot start: {detail}; the next try is in {:.1} s at the earliest",
                delay.as_secs_f64()
            ))
            .into(),
        );
        self.last_failure = Some((failure, detail));
        self.port_tries = 0;
        if !self.any(Instance::is_live) {
            // The number beyond the minimum was for the waiters that are answered now; the next one asks again. Otherwise a
            // broken command would be started for ever.
            self.desired = 0;
            self.awaited = true;
        }
    }

    /// Handles the failed start of a revision that this one needs: it is the failure of this one's start.
    fn need_failed(
        &mut self,
        need: &RevisionId,
        failure: &ActivationFailure,
        now: Instant,
        todo: &mut Vec<ProcessAction>,
    ) {
        if !self.needs.is_asked() {
            return;
        }
        self.needs = NeedsGate::Closed;
        self.backoff.hold(now, failure.retry_after.max(NOT_ALLOWED));
        let detail = of_need(need, &failure.detail);
        todo.push(EndpointAction::Warn(format!("cannot start: {detail}")).into());
        self.last_failure = Some((failure.failure, detail));
        self.desired = 0;
        self.awaited = true;
    }

    /// Fails the waiters with the last failure, once no start is under way and the back-off forbids another.
    fn answer_waiters(&mut self, now: Instant, todo: &mut Vec<ProcessAction>) {
        if !self.awaited || self.removed || self.any(Instance::is_live) {
            return;
        }
        if let (Some(retry_after), Some((failure, detail))) =
            (self.backoff.remaining(now), self.last_failure.clone())
        {
            self.awaited = false;
            self.desired = 0;
            todo.push(
                EndpointAction::Fail(ActivationFailure {
                    failure,
                    detail,
                    retry_after,
                })
                .into(),
            );
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

    fn pass_deadlines(&mut self, now: Instant, ids: &mut IdSource, todo: &mut Vec<ProcessAction>) {
        if self.retire_again.is_some_and(|at| at <= now) {
            self.retire_again = None;
        }
        let due: Vec<InstanceId> = self
            .instances
            .iter()
            .filter(|(_, instance)| instance.deadline().is_some_and(|at| at <= now))
            .map(|(&id, _)| id)
            .collect();
        let mut overdue = Vec::new();
        for id in due {
            let Some(instance) = self.instances.get_mut(&id) else {
                continue;
            };
            let since = match instance.phase {
                Phase::Starting { since, .. } => since,
                Phase::Retired { .. } => {
                    instance.phase = Phase::Ending {
                        deadline: now + END_GRACE,
                    };
                    overdue.push(id);
                    continue;
                }
                _ => {
                    let left = format!("instance {id} had requests left after the drain timeout");
                    todo.push(EndpointAction::Warn(left).into());
                    self.stop(id, None, todo);
                    continue;
                }
            };
            // Without a grace period: an instance that never was ready has no requests to finish.
            instance.timed_out = true;
            let plan = Arc::clone(&instance.plan);
            self.stop(id, Some(Duration::ZERO), todo);
            let detail = not_ready(&plan);
            let failed = FailedStart {
                plan,
                since,
                failure: Failure::TimedOut,
                detail,
            };
            self.start_failed(failed, now, ids, todo);
        }
        if !overdue.is_empty() {
            todo.push(EndpointAction::End(overdue).into());
        }
    }
}

/// The detail of a start timeout. Names the address, because many servers listen on another one than $PORT.
fn not_ready(plan: &RevisionPlan) -> String {
    format!("not ready within {:?} at 127.0.0.1:$PORT", plan.start_timeout)
}

#[cfg(test)]
mod tests;

//! One revision whose instances a platform runs: what happened in, what to do out. No I/O, no
//! clock, no randomness.
//!
//! A platform is told a number and does the rest, so there is no life of an instance to follow
//! here but one number to bring about: what is wanted becomes a [`Decision`], one at a time, posted
//! until the platform agrees or something else is wanted. Endpoints that a reply names are given
//! to the data plane; without any it finds the configured addresses ready by itself.
//!
//! **Invariants:** never two calls at once; fewer are asked for only after the data plane has let
//! go of what is surplus, and none only after it agreed that nobody is there.

mod endpoints;
mod events;
mod post;
mod saved;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_model::{ActivationFailure, Failure, InstanceId, RevisionStatus};

use self::endpoints::Endpoint;
pub(crate) use self::events::{WebhookAction, WebhookEvent};
use self::post::Decision;
pub(crate) use self::saved::SavedWebhookState;
use super::Answer;
use crate::plan::RevisionPlan;
use crate::scale::backoff::Backoff;
use crate::scale::events::{EndpointAction, IdSource, RevisionEvent};
use crate::scale::fleet::RevisionMachine;

/// How soon what the data plane refused to let go is asked for again.
const RETIRE_AGAIN: Duration = Duration::from_secs(1);

/// How long those are told to stay away who ask for what may not be started.
const NOT_ALLOWED: Duration = Duration::from_secs(1);

/// One revision.
#[derive(Debug)]
pub(crate) struct WebhookState {
    plan: Arc<RevisionPlan>,
    /// Since when it is no longer served.
    removed: Option<Instant>,
    closed: bool,
    /// How long a retired endpoint may take.
    drain: Duration,
    desired: u32,
    /// What the platform agreed to last; `None`: nothing was ever asked of it.
    agreed: Option<u32>,
    /// It may have done something else since: a call whose outcome is unknown, or an endpoint that
    /// is gone.
    unsure: bool,
    /// What it agreed to was there, or should be by now: if nothing is usable, it is gone.
    expected: bool,
    decision: Option<Decision>,
    /// Nothing is posted before, whatever is wanted: the platform is in trouble.
    not_before: Option<Instant>,
    endpoints: BTreeMap<InstanceId, Endpoint>,
    /// Since when somebody waits and nothing is usable.
    awaited: Option<Instant>,
    /// The data plane agreed to zero, and nobody came since.
    at_zero: bool,
    /// What was asked of the data plane was about giving up a start.
    giving_up: bool,
    retire_again: Option<Instant>,
    /// Of activations.
    backoff: Backoff,
    last_failure: Option<(Failure, String)>,
    /// What is wrong with the last call.
    call_failure: Option<String>,
    last_decision: Option<String>,
    starts: u64,
}

impl RevisionMachine for WebhookState {
    type Event = WebhookEvent;
    type Action = WebhookAction;

    fn new(plan: Arc<RevisionPlan>, drain: Duration) -> Self {
        Self {
            plan,
            removed: None,
            closed: false,
            drain,
            desired: 0,
            agreed: None,
            unsure: false,
            expected: false,
            decision: None,
            not_before: None,
            endpoints: BTreeMap::new(),
            awaited: None,
            at_zero: false,
            giving_up: false,
            retire_again: None,
            backoff: Backoff::default(),
            last_failure: None,
            call_failure: None,
            last_decision: None,
            starts: 0,
        }
    }

    fn step(&mut self, event: WebhookEvent, now: Instant, ids: &mut IdSource) -> Vec<WebhookAction> {
        let mut todo = Vec::new();
        match event {
            WebhookEvent::Revision(RevisionEvent::Activate) => {
                // Whatever becomes of it: somebody came, and the data plane is to be asked anew.
                self.at_zero = false;
                self.activate(now, &mut todo);
            }
            WebhookEvent::Revision(RevisionEvent::Activated) => {
                self.at_zero = false;
                self.succeeded();
            }
            WebhookEvent::Revision(RevisionEvent::Ready(id)) => {
                if self.endpoints.contains_key(&id) {
                    self.succeeded();
                }
            }
            WebhookEvent::Revision(RevisionEvent::Drained(id)) => self.drained(id, &mut todo),
            WebhookEvent::Revision(RevisionEvent::Desired { count, decision }) => {
                self.desired = count;
                self.last_decision = Some(decision);
                self.retire_again = None;
            }
            WebhookEvent::Revision(RevisionEvent::Plan(plan)) => self.replan(plan, &mut todo),
            WebhookEvent::Revision(RevisionEvent::Removed) => self.remove(now, &mut todo),
            // What a platform runs does not depend on this gateway, and another one may use it.
            WebhookEvent::Revision(RevisionEvent::Shutdown) => self.closed = true,
            WebhookEvent::Revision(RevisionEvent::Victims { asked, chosen }) => {
                self.victims(asked, &chosen, now)
            }
            WebhookEvent::AtZero(answer) => self.zero_answered(answer, now, ids, &mut todo),
            WebhookEvent::Answered(answer) => self.answered(answer, now, ids, &mut todo),
            WebhookEvent::Revision(RevisionEvent::Tick) => {}
        }
        if self.closed {
            return todo;
        }
        self.pass_deadlines(now, &mut todo);
        self.reconcile(now, ids, &mut todo);
        todo
    }

    fn next_deadline(&self) -> Option<Instant> {
        if self.closed {
            return None;
        }
        let held = self.backoff.until().filter(|_| self.is_held());
        let retired = self.endpoints.values().filter_map(Endpoint::deadline);
        let start = self.awaited.map(|since| since + self.plan.start_timeout);
        let post = self.not_before.filter(|_| !self.is_calling());
        let others = [held, start, post, self.retire_again];
        retired.chain(others.into_iter().flatten()).min()
    }

    fn set_drain(&mut self, drain: Duration) {
        self.drain = drain;
    }

    fn is_over(&self) -> bool {
        self.closed
            || self.is_removed() && self.endpoints.is_empty() && !self.is_calling() && self.is_settled()
    }

    fn is_removed(&self) -> bool {
        self.closed || self.removed.is_some()
    }

    fn follows(&self, plan: &RevisionPlan) -> bool {
        !self.is_removed() && *self.plan == *plan
    }

    fn status(&self) -> RevisionStatus {
        let start = self.last_failure.as_ref().map(|(_, detail)| detail);
        RevisionStatus {
            desired: self.wanted(),
            last_decision: self.last_decision.clone(),
            last_failure: start.or(self.call_failure.as_ref()).cloned(),
            starts: self.starts,
        }
    }
}

impl WebhookState {
    /// Whether a call is under way, whose answer will come as [`WebhookEvent::Answered`].
    pub(crate) fn awaits_answer(&self) -> bool {
        self.is_calling()
    }

    fn activate(&mut self, now: Instant, todo: &mut Vec<WebhookAction>) {
        if self.is_removed() {
            return;
        }
        if self.plan.policy.max_scale == Some(0) {
            self.last_failure = Some((Failure::NotAllowed, "maxScale is 0".to_owned()));
            return self.tell_waiters(NOT_ALLOWED, todo);
        }
        if let Some(left) = self
            .backoff
            .remaining(now)
            .filter(|_| self.last_failure.is_some())
        {
            return self.tell_waiters(left, todo);
        }
        if self.awaited.is_none() {
            self.awaited = Some(now);
            self.not_before = None;
            // What is only just being started is not asked for twice: the decision for whoever waits
            // may have come before the news that somebody does.
            self.unsure |= self.expected && self.agreed.is_some_and(|replicas| replicas > 0);
        }
        let before = self.wanted();
        self.desired = self.desired.max(self.plan.policy.activation_scale.max(1));
        let after = self.wanted();
        if after != before {
            self.last_decision = Some(format!("{before} → {after}: somebody waits"));
        } else if self.unsure && self.decision.is_none() {
            self.last_decision = Some(format!("{after}: somebody waits and nothing answers"));
        }
    }

    /// An endpoint is ready.
    fn succeeded(&mut self) {
        self.awaited = None;
        self.expected = true;
        self.last_failure = None;
        self.backoff.succeeded();
    }

    fn replan(&mut self, plan: Arc<RevisionPlan>, todo: &mut Vec<WebhookAction>) {
        self.removed = None;
        let changed = self.plan.scaler != plan.scaler || self.plan.service != plan.service;
        self.plan = plan;
        if changed {
            self.backoff.reset();
            self.not_before = None;
            self.call_failure = None;
            if self.last_failure.take().is_some() {
                todo.push(EndpointAction::Forgive.into());
            }
            // Another platform, for all we know: it is told what the last one knew.
            self.unsure |= self.agreed.is_some();
        }
    }

    fn remove(&mut self, now: Instant, todo: &mut Vec<WebhookAction>) {
        if self.is_removed() {
            return;
        }
        self.removed = Some(now);
        self.desired = 0;
        self.awaited = None;
        self.last_decision = Some(format!(
            "{} → 0: it is no longer configured",
            self.agreed.unwrap_or(0)
        ));
        let live = self.live();
        self.retire_these(live, true, now, todo);
    }

    /// Nobody is there, or somebody is and nothing may be stopped.
    fn zero_answered(
        &mut self,
        answer: Option<Vec<InstanceId>>,
        now: Instant,
        ids: &mut IdSource,
        todo: &mut Vec<WebhookAction>,
    ) {
        let giving_up = std::mem::take(&mut self.giving_up);
        let awaited = self.awaited.take();
        self.at_zero = answer.is_some();
        match (answer, awaited) {
            (Some(victims), late) => {
                self.retired(&victims, true, now);
                if late.is_some() && giving_up {
                    self.give_up("nobody waits any more");
                }
            }
            (None, Some(since)) if giving_up => {
                let detail = self.why_late();
                self.fail_activation(Failure::TimedOut, detail, since, now, ids, todo);
            }
            (None, _) if self.removed.is_some_and(|at| at + self.drain <= now) => self.at_zero = true,
            (None, awaited) => {
                self.awaited = awaited;
                self.retire_again = Some(now + RETIRE_AGAIN);
            }
        }
    }

    fn why_late(&self) -> String {
        let limit = self.plan.start_timeout;
        match (&self.call_failure, self.endpoints.is_empty()) {
            (Some(why), _) => format!("not started within {limit:?}: {why}"),
            (None, _) if self.is_calling() => {
                format!("not started within {limit:?}: the platform has not answered yet")
            }
            (None, true) => {
                format!("not ready within {limit:?}: the platform agreed, but no configured address answers")
            }
            (None, false) => {
                format!("not ready within {limit:?}: the platform agreed, but no endpoint it named answers")
            }
        }
    }

    fn fail_activation(
        &mut self,
        failure: Failure,
        detail: String,
        since: Instant,
        now: Instant,
        ids: &mut IdSource,
        todo: &mut Vec<WebhookAction>,
    ) {
        let delay = self.backoff.failed(since, now, ids.jitter());
        todo.push(
            EndpointAction::Warn(format!(
                "cannot start: {detail}; the next try is in {:.1} s at the earliest",
                delay.as_secs_f64()
            ))
            .into(),
        );
        self.last_failure = Some((failure, detail));
        self.expected = true;
        self.awaited = None;
        self.give_up("it did not start");
        self.tell_waiters(delay, todo);
    }

    /// What is wanted beyond the minimum was wanted for those who are gone. The next one asks again.
    fn give_up(&mut self, why: &str) {
        let before = self.wanted();
        self.desired = 0;
        let after = self.wanted();
        if before != after {
            self.last_decision = Some(format!("{before} → {after}: {why}"));
        }
    }

    fn tell_waiters(&self, retry_after: Duration, todo: &mut Vec<WebhookAction>) {
        if let Some((failure, detail)) = self.last_failure.clone() {
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

    fn pass_deadlines(&mut self, now: Instant, todo: &mut Vec<WebhookAction>) {
        self.retire_again = self.retire_again.filter(|&at| at > now);
        self.not_before = self.not_before.filter(|&at| at > now);
        self.drop_overdue(now, todo);
        let late = self.awaited.is_some_and(|at| at + self.plan.start_timeout <= now);
        if late && !self.giving_up {
            // Whoever waited may have left: then nothing says that it failed.
            self.giving_up = true;
            todo.push(WebhookAction::ToZero);
        }
    }

    fn reconcile(&mut self, now: Instant, ids: &mut IdSource, todo: &mut Vec<WebhookAction>) {
        if self.giving_up {
            return;
        }
        self.let_go(todo);
        self.post(now, ids, todo);
    }

    fn wanted(&self) -> u32 {
        if self.is_removed() {
            return 0;
        }
        let policy = &self.plan.policy;
        let least = if self.plan.reachable { policy.min_scale } else { 0 };
        let most = policy.max_scale.unwrap_or(u32::MAX);
        self.desired.max(least).min(most)
    }
}

#[cfg(test)]
mod tests;

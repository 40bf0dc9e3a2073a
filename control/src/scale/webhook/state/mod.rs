//! The state machine of a revision that a platform scales: events in, actions out. No I/O, no clock, no randomness.
//!
//! A platform gets a number and does the rest, so there is one number to bring about instead of instances to follow: the
//! desired number becomes a [`Decision`], one at a time, which is posted until the platform agrees or another number is
//! desired. Endpoints named in a reply are added to the data plane; without any, the data plane's probes find the configured
//! addresses ready.
//!
//! **Invariants:** one call at a time. A lower number is posted only after the data plane has let surplus endpoints drain,
//! and zero only after the data plane agreed that no request is there.

mod endpoints;
mod events;
mod post;
mod saved;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_model::{ActivationFailure, Failure, InstanceId, RevisionId, RevisionStatus};

use self::endpoints::Endpoint;
pub(crate) use self::events::{WebhookAction, WebhookEvent};
use self::post::Decision;
pub(crate) use self::saved::SavedWebhookState;
use super::Answer;
use crate::plan::{RevisionPlan, ScalingMode};
use crate::scale::backoff::Backoff;
use crate::scale::events::{EndpointAction, IdSource, RevisionEvent};
use crate::scale::fleet::RevisionMachine;
use crate::scale::needs::{NeedsGate, of_need};

/// The delay before a retirement that the data plane refused is tried again.
const RETIRE_AGAIN: Duration = Duration::from_secs(1);

/// The Retry-After of waiters of a revision that may not be started.
const NOT_ALLOWED: Duration = Duration::from_secs(1);

/// The state of a revision that a platform scales.
#[derive(Debug)]
pub(crate) struct WebhookState {
    plan: Arc<RevisionPlan>,
    /// The instant of the removal.
    removed: Option<Instant>,
    closed: bool,
    /// The drain timeout of retired endpoints.
    drain: Duration,
    desired: u32,
    /// The number that the platform agreed to last; `None`: no call was made yet.
    agreed: Option<u32>,
    /// The platform may run another number than agreed: after a call with an unknown outcome, or a lost endpoint.
    unsure: bool,
    /// The agreed instances were ready, or should be by now: without a usable endpoint, they are gone.
    expected: bool,
    decision: Option<Decision>,
    /// The back-off after a failed call: no call is made before this instant.
    not_before: Option<Instant>,
    endpoints: BTreeMap<InstanceId, Endpoint>,
    /// The instant since which a request waits without a usable endpoint.
    awaited: Option<Instant>,
    /// The data plane agreed to zero, and no request came since.
    at_zero: bool,
    /// The pending [`WebhookAction::ToZero`] is about giving up a start.
    giving_up: bool,
    retire_again: Option<Instant>,
    /// The back-off of activations.
    backoff: Backoff,
    last_failure: Option<(Failure, String)>,
    /// The error of the last call.
    call_failure: Option<String>,
    last_decision: Option<String>,
    starts: u64,
    needs: NeedsGate,
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
            needs: NeedsGate::default(),
        }
    }

    fn step(&mut self, event: WebhookEvent, now: Instant, ids: &mut IdSource) -> Vec<WebhookAction> {
        let mut todo = Vec::new();
        match event {
            WebhookEvent::Revision(RevisionEvent::Activate) => {
                // In any case the data plane has to agree to zero anew.
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
            // A platform's instances do not depend on this gateway, and another gateway may use them.
            WebhookEvent::Revision(RevisionEvent::Shutdown) => self.closed = true,
            WebhookEvent::Revision(RevisionEvent::Victims { asked, chosen }) => {
                self.victims(asked, &chosen, now)
            }
            WebhookEvent::AtZero(answer) => self.zero_answered(answer, now, ids, &mut todo),
            WebhookEvent::Answered(answer) => self.answered(answer, now, ids, &mut todo),
            WebhookEvent::Revision(RevisionEvent::NeedsReady) => self.needs = NeedsGate::Open,
            WebhookEvent::Revision(RevisionEvent::NeedFailed { need, failure }) => {
                self.need_failed(&need, &failure, now, &mut todo);
            }
            WebhookEvent::Revision(RevisionEvent::NeedsChanged) if self.needs.is_asked() => {
                self.needs = NeedsGate::Closed;
            }
            WebhookEvent::Revision(RevisionEvent::NeedsChanged | RevisionEvent::Tick) => {}
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

    fn runs(&self) -> bool {
        self.is_running() || self.needs.is_asked()
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
            waits_for: if self.needs.is_asked() {
                self.plan.needs.clone()
            } else {
                Vec::new()
            },
            ..RevisionStatus::default()
        }
    }
}

impl WebhookState {
    /// Whether the platform may run an instance.
    fn is_running(&self) -> bool {
        self.is_calling() || self.unsure || self.agreed.is_some_and(|replicas| replicas > 0)
    }

    /// Handles the failed start of a revision that this one needs: it is the failure of this one's start.
    fn need_failed(
        &mut self,
        need: &RevisionId,
        failure: &ActivationFailure,
        now: Instant,
        todo: &mut Vec<WebhookAction>,
    ) {
        if !self.needs.is_asked() {
            return;
        }
        self.needs = NeedsGate::Closed;
        let delay = failure.retry_after.max(NOT_ALLOWED);
        self.backoff.hold(now, delay);
        let detail = of_need(need, &failure.detail);
        todo.push(EndpointAction::Warn(format!("cannot start: {detail}")).into());
        self.last_failure = Some((failure.failure, detail));
        self.awaited = None;
        self.give_up("what it needs did not start");
        self.fail_waiters(delay, todo);
    }

    /// Whether a call is under way, whose answer will come as [`WebhookEvent::Answered`].
    pub(crate) fn awaits_answer(&self) -> bool {
        self.is_calling()
    }

    fn activate(&mut self, now: Instant, todo: &mut Vec<WebhookAction>) {
        // In observe mode nobody is asked: an endpoint may come by itself.
        if self.is_removed() || self.plan.policy.mode == ScalingMode::Observe {
            return;
        }
        if self.plan.policy.max_scale == Some(0) {
            self.last_failure = Some((Failure::NotAllowed, "maxScale is 0".to_owned()));
            return self.fail_waiters(NOT_ALLOWED, todo);
        }
        if let Some(left) = self
            .backoff
            .remaining(now)
            .filter(|_| self.last_failure.is_some())
        {
            return self.fail_waiters(left, todo);
        }
        if self.awaited.is_none() {
            self.awaited = Some(now);
            self.not_before = None;
            // Instances that are only just being started are not asked for twice: the decision for the waiter may have come
            // before this event.
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

    /// Ends an activation: an endpoint is ready.
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
            // Probably another platform, which gets the number that the last one had.
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

    /// Handles the data plane's answer about zero: agreed, or refused because of a request.
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
            _ if self.needs.is_asked() => {
                format!("not started within {limit:?}: what it needs is not ready yet")
            }
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
        self.fail_waiters(delay, todo);
    }

    /// Lowers the desired number to the minimum: the rest was for waiters that are gone. The next waiter asks again.
    fn give_up(&mut self, why: &str) {
        let before = self.wanted();
        self.desired = 0;
        let after = self.wanted();
        if before != after {
            self.last_decision = Some(format!("{before} → {after}: {why}"));
        }
    }

    fn fail_waiters(&self, retry_after: Duration, todo: &mut Vec<WebhookAction>) {
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
            // The data plane is asked first: without a waiter left there is no failure to report.
            self.giving_up = true;
            todo.push(WebhookAction::ToZero);
        }
    }

    fn reconcile(&mut self, now: Instant, ids: &mut IdSource, todo: &mut Vec<WebhookAction>) {
        let observes = self.plan.policy.mode == ScalingMode::Observe && !self.is_removed();
        if self.giving_up || observes {
            return;
        }
        self.let_go(todo);
        self.post(now, ids, todo);
    }

    fn wanted(&self) -> u32 {
        if self.is_removed() {
            return 0;
        }
        self.plan.policy.within(self.desired, self.plan.reachable)
    }
}

#[cfg(test)]
mod tests;

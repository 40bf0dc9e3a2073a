//! Calls of the platform: their number, their time, and the handling of answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_model::Failure;

use super::{Answer, RevisionMachine, WebhookAction, WebhookState};
use crate::scale::events::{EndpointAction, IdSource};
use crate::scale::needs::NeedsGate;
use crate::scale::webhook::Ask;

/// The first back-off after a failed call; doubles from there.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The bound of a platform's Retry-After.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// The bound of failed calls with zero for a removed revision.
const FAREWELLS: u32 = 8;

/// The bounds of a call's timeout, which is a third of `startTimeout`, so that there is time for another call.
const SHORTEST_CALL: Duration = Duration::from_secs(1);
const LONGEST_CALL: Duration = Duration::from_secs(10);

/// A number that the platform has not agreed to yet.
#[derive(Debug)]
pub(super) struct Decision {
    /// The idempotency key: the same in every call of the decision.
    pub(super) key: String,
    pub(super) replicas: u32,
    pub(super) reason: String,
    /// The instant of the first call.
    pub(super) since: Option<Instant>,
    pub(super) calling: bool,
    /// The number of failed calls.
    pub(super) failed: u32,
}

impl WebhookState {
    pub(super) fn is_calling(&self) -> bool {
        self.decision.as_ref().is_some_and(|decision| decision.calling)
    }

    /// Whether the platform runs no instance, or is given up.
    pub(super) fn is_settled(&self) -> bool {
        self.is_hopeless() || (!self.unsure && self.agreed.unwrap_or(0) == 0)
    }

    fn is_hopeless(&self) -> bool {
        self.is_removed() && self.decision.as_ref().is_some_and(|d| d.failed >= FAREWELLS)
    }

    /// Whether only the back-off prevents a call for more.
    pub(super) fn is_held(&self) -> bool {
        !self.is_calling()
            && self.not_before.is_none()
            && self.due().is_some_and(|replicas| self.is_more(replicas))
    }

    /// Has the data plane retire surplus endpoints.
    pub(super) fn let_go(&mut self, todo: &mut Vec<WebhookAction>) {
        let wanted = self.wanted();
        self.at_zero &= wanted == 0;
        if self.retire_again.is_some() || self.is_calling() {
            return;
        }
        if wanted == 0 {
            let runs = self.unsure || self.agreed.is_some_and(|replicas| replicas > 0);
            if runs && !self.at_zero {
                todo.push(WebhookAction::ToZero);
            }
            return;
        }
        let live = u32::try_from(self.live().len()).unwrap_or(u32::MAX);
        let surplus = live.saturating_sub(wanted);
        if surplus > 0 && self.agreed.is_some_and(|replicas| replicas > wanted) {
            let to_zero = false;
            todo.push(
                EndpointAction::Retire {
                    count: surplus,
                    to_zero,
                }
                .into(),
            );
        }
    }

    pub(super) fn post(&mut self, now: Instant, ids: &mut IdSource, todo: &mut Vec<WebhookAction>) {
        if self.is_calling() {
            return;
        }
        let Some(replicas) = self.due() else {
            self.decision = self.decision.take().filter(|_| self.is_removed());
            return;
        };
        if self.decision.as_ref().is_none_or(|d| d.replicas != replicas) {
            self.decision = Some(Decision {
                key: ids.decision(),
                replicas,
                reason: self
                    .last_decision
                    .clone()
                    .unwrap_or_else(|| self.default_reason(replicas)),
                since: None,
                calling: false,
                failed: 0,
            });
        }
        let held = self.is_more(replicas) && self.backoff.remaining(now).is_some();
        if !held && self.is_more(replicas) {
            match self.needs.pass(&self.plan.needs, self.is_running()) {
                Ok(true) => self.needs = NeedsGate::Closed,
                Ok(false) => return,
                Err(needs) => return todo.push(EndpointAction::Expect(needs).into()),
            }
        } else if replicas == 0 {
            self.needs = NeedsGate::Closed;
        }
        if held || self.not_before.is_some() {
            return;
        }
        let endpoints = self.kept();
        if let Some(decision) = &mut self.decision {
            decision.calling = true;
            decision.since.get_or_insert(now);
            todo.push(WebhookAction::Ask(Ask {
                key: decision.key.clone(),
                replicas,
                reason: decision.reason.clone(),
                endpoints,
                limit: (self.plan.start_timeout / 3).clamp(SHORTEST_CALL, LONGEST_CALL),
                plan: Arc::clone(&self.plan),
            }));
        }
    }

    pub(super) fn answered(
        &mut self,
        answer: Answer,
        now: Instant,
        ids: &mut IdSource,
        todo: &mut Vec<WebhookAction>,
    ) {
        let Some(mut decision) = self.decision.take().filter(|d| d.calling) else {
            return;
        };
        decision.calling = false;
        match answer {
            Answer::Agreed { endpoints } => {
                self.starts += u64::from(decision.replicas.saturating_sub(self.agreed.unwrap_or(0)));
                self.expected &= !self.unsure && self.agreed.is_some_and(|replicas| replicas > 0);
                self.agreed = Some(decision.replicas);
                self.unsure = false;
                self.call_failure = None;
                if decision.replicas > 0 && !endpoints.is_empty() && self.wanted() > 0 {
                    let took = decision.since.map(|since| now.saturating_duration_since(since));
                    self.set_endpoints(&endpoints, took.unwrap_or_default(), now, ids, todo);
                }
            }
            Answer::Refused(detail) => {
                self.call_failure = Some(detail.clone());
                // At zero a request waits, even where its event has not arrived yet.
                let at_zero = (self.agreed.unwrap_or(0) == 0).then_some(now);
                match self.awaited.or(at_zero).filter(|_| decision.replicas > 0) {
                    Some(since) => self.fail_activation(Failure::Failed, detail, since, now, ids, todo),
                    None => {
                        todo.push(
                            EndpointAction::Warn(format!(
                                "the platform refused {} replicas: {detail}",
                                decision.replicas
                            ))
                            .into(),
                        );
                        self.again(decision, now, spread(LONGEST_PAUSE, ids));
                    }
                }
            }
            Answer::Retry { detail, after } => {
                let doubled = FIRST_PAUSE.saturating_mul(1 << decision.failed.min(10));
                let pause = spread(doubled.min(LONGEST_PAUSE), ids);
                let pause = pause.max(after.unwrap_or_default().min(MAX_RETRY_AFTER));
                todo.push(
                    EndpointAction::Warn(format!(
                        "asking for {} replicas failed: {detail}; again in {:.1} s",
                        decision.replicas,
                        pause.as_secs_f64()
                    ))
                    .into(),
                );
                self.unsure = true;
                self.call_failure = Some(detail);
                self.again(decision, now, pause);
            }
        }
    }

    fn again(&mut self, mut decision: Decision, now: Instant, pause: Duration) {
        decision.failed += 1;
        // The back-off of a failed scale-down does not delay a waiter.
        if decision.replicas > 0 || self.awaited.is_none() {
            self.not_before = Some(now + pause);
        }
        self.decision = Some(decision);
    }

    /// The number that is to be posted now, if any.
    fn due(&self) -> Option<u32> {
        if self.is_hopeless() {
            return None;
        }
        let wanted = self.wanted();
        if wanted == 0 && self.agreed.is_none() && !self.unsure {
            return None;
        }
        let runs = self.agreed.unwrap_or(0);
        let held = u32::try_from(self.endpoints.len()).unwrap_or(u32::MAX);
        let replicas = match wanted {
            0 if held > 0 || !self.at_zero => return None,
            0 => 0,
            // Draining endpoints still count.
            n if n < runs => n.max(held.min(runs)),
            n => n,
        };
        (self.unsure || self.agreed != Some(replicas)).then_some(replicas)
    }

    fn is_more(&self, replicas: u32) -> bool {
        replicas > 0 && (self.unsure || replicas > self.agreed.unwrap_or(0))
    }

    fn default_reason(&self, replicas: u32) -> String {
        format!("{} → {replicas}: minScale", self.agreed.unwrap_or(0))
    }
}

/// A pause with jitter, up to a quarter more: many revisions of one platform do not call together.
fn spread(pause: Duration, ids: &mut IdSource) -> Duration {
    pause.mul_f64(1.0 + ids.jitter() / 4.0)
}

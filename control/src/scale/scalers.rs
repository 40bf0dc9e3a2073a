//! Carries out the actions of revisions: each goes to the scaler or the data plane that it is for.

use std::sync::Arc;

use sluice_model::{EndpointSink, Expectation, LaunchStep, ManagedEndpoint, RevisionId};

use super::events::{EndpointAction, RevisionEvent};
use super::process::{ProcessAction, ProcessEvent};
use super::webhook::{WebhookAction, WebhookEvent};
use super::{Ask, InstanceOrder, Scaler};

/// The scaler of each kind of revision.
#[derive(Debug)]
pub(super) struct Scalers<P, W> {
    pub(super) processes: P,
    pub(super) platforms: W,
    /// Revisions whose waiters were failed since this was last read, for those that need them.
    pub(super) failed: Vec<RevisionId>,
}

impl<P: Scaler<Order = InstanceOrder>, W: Scaler<Order = Ask>> Scalers<P, W> {
    /// Carries out an action of a revision of local processes; the data plane's answer, where there is one, is the next
    /// event.
    pub(super) fn process_action(
        &mut self,
        revision: &RevisionId,
        action: ProcessAction,
        sink: &dyn EndpointSink,
    ) -> Option<ProcessEvent> {
        match action {
            ProcessAction::Endpoint(action) => {
                self.note(revision, &action);
                return endpoint_action(revision, action, sink).map(Into::into);
            }
            ProcessAction::Order(order) => {
                match &order {
                    InstanceOrder::Start(instance, _) => {
                        tracing::info!(%revision, %instance, "starting an instance");
                        sink.launch(revision, LaunchStep::Ordered);
                    }
                    InstanceOrder::Stop(instance, _) => {
                        tracing::info!(%revision, %instance, "stopping an instance");
                    }
                }
                self.processes.order(revision, order);
            }
        }
        None
    }

    fn note(&mut self, revision: &RevisionId, action: &EndpointAction) {
        if matches!(action, EndpointAction::Fail(_)) {
            self.failed.push(revision.clone());
        }
    }

    /// Carries out an action of a revision that a platform scales; the data plane's answer, where there is one, is the
    /// next event.
    pub(super) fn webhook_action(
        &mut self,
        revision: &RevisionId,
        action: WebhookAction,
        sink: &dyn EndpointSink,
    ) -> Option<WebhookEvent> {
        match action {
            WebhookAction::Endpoint(action) => {
                self.note(revision, &action);
                endpoint_action(revision, action, sink).map(Into::into)
            }
            WebhookAction::ToZero => Some(WebhookEvent::AtZero(sink.to_zero(revision))),
            WebhookAction::Ask(ask) => {
                tracing::info!(%revision, replicas = ask.replicas, reason = ask.reason, "asking the platform");
                if ask.replicas > 0 {
                    sink.launch(revision, LaunchStep::Ordered);
                }
                self.platforms.order(revision, ask);
                None
            }
        }
    }
}

/// Starts what a revision needs. `None`: something is starting, and nothing failed.
fn expect(revision: &RevisionId, needs: Vec<RevisionId>, sink: &dyn EndpointSink) -> Option<RevisionEvent> {
    let mut ready = true;
    for need in needs {
        match sink.expect(&need) {
            Expectation::Ready => {}
            Expectation::Starting => {
                tracing::info!(%revision, %need, "waiting for what it needs");
                ready = false;
            }
            Expectation::Failed(failure) => return Some(RevisionEvent::NeedFailed { need, failure }),
        }
    }
    ready.then_some(RevisionEvent::NeedsReady)
}

fn endpoint_action(
    revision: &RevisionId,
    action: EndpointAction,
    sink: &dyn EndpointSink,
) -> Option<RevisionEvent> {
    match action {
        EndpointAction::Add(instance, address, took) => {
            let endpoint = ManagedEndpoint {
                instance,
                address,
                took,
            };
            sink.add(revision, endpoint);
        }
        EndpointAction::Remove(instance) => sink.remove(revision, instance),
        EndpointAction::Retire { count, to_zero } => {
            let chosen = sink.retire(revision, count, to_zero);
            return Some(RevisionEvent::Victims { asked: count, chosen });
        }
        EndpointAction::End(instances) => {
            tracing::info!(%revision, ?instances, "the drain timeout is over: ending what is open");
            sink.end(revision, &instances);
        }
        EndpointAction::RetireThese(instances) => sink.retire_these(revision, &instances),
        EndpointAction::Fail(failure) => sink.fail(revision, Arc::new(failure)),
        EndpointAction::Forgive => sink.forgive(revision),
        EndpointAction::Warn(what) => tracing::warn!(%revision, "{what}"),
        EndpointAction::Expect(needs) => return expect(revision, needs, sink),
    }
    None
}

//! What the controller decided is done: each action goes to the scaler or the data plane it is for.

use std::sync::Arc;

use sluice_model::{EndpointSink, InstanceId, LaunchStep, ManagedEndpoint, RevisionId};

use super::state::{Action, Event};
use super::{Ask, InstanceOrder, Scaler};

/// Who carries decisions out: those that are about instances, and those that are about numbers.
#[derive(Debug)]
pub(super) struct Scalers<I, R> {
    pub(super) processes: I,
    pub(super) platforms: R,
}

impl<I: Scaler<Order = InstanceOrder>, R: Scaler<Order = Ask>> Scalers<I, R> {
    /// Does one thing; the data plane's answer, where it gives one, is the next event.
    pub(super) fn carry_out(
        &mut self,
        revision: &RevisionId,
        action: Action,
        sink: &dyn EndpointSink,
    ) -> Option<Event> {
        match action {
            Action::Start(instance, plan) => {
                tracing::info!(%revision, %instance, "starting an instance");
                sink.launch(revision, LaunchStep::Ordered);
                let start = InstanceOrder::Start(instance, plan);
                self.processes.order(revision, start);
            }
            Action::Stop(instance, grace) => {
                tracing::info!(%revision, %instance, "stopping an instance");
                self.processes
                    .order(revision, InstanceOrder::Stop(instance, grace));
            }
            Action::Ask(ask) => {
                tracing::info!(%revision, replicas = ask.replicas, reason = ask.reason, "asking the platform");
                if ask.replicas > 0 {
                    sink.launch(revision, LaunchStep::Ordered);
                }
                self.platforms.order(revision, ask);
            }
            Action::Add(instance, address, took) => {
                let endpoint = ManagedEndpoint {
                    instance,
                    address,
                    took,
                };
                sink.add(revision, endpoint);
            }
            Action::Remove(instance) => sink.remove(revision, instance),
            Action::Retire { count, to_zero } => {
                let chosen: Vec<InstanceId> = sink.retire(revision, count, to_zero);
                return Some(Event::Victims { asked: count, chosen });
            }
            Action::ToZero => return Some(Event::AtZero(sink.to_zero(revision))),
            Action::End(instances) => {
                tracing::info!(%revision, ?instances, "the drain timeout is over: ending what is open");
                sink.end(revision, &instances);
            }
            Action::RetireThese(instances) => sink.retire_these(revision, &instances),
            Action::Fail(failure) => sink.fail(revision, Arc::new(failure)),
            Action::Forgive => sink.forgive(revision),
            Action::Warn(what) => tracing::warn!(%revision, "{what}"),
        }
        None
    }
}

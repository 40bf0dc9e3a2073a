//! The endpoints that a platform named, and their draining.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use sluice_model::InstanceId;

use super::{WebhookAction, WebhookState};
use crate::scale::events::{END_GRACE, EndpointAction, IdSource};

/// The phase of an endpoint's life. Readiness is known to the data plane alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Live,
    Retired {
        deadline: Instant,
        /// Retired by this gateway: the platform still runs the instance.
        chosen: bool,
        /// Requests in flight were asked to end at the first deadline; this is the second.
        ending: bool,
    },
}

/// One endpoint that a reply named.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) address: SocketAddr,
    pub(super) phase: Phase,
}

impl Endpoint {
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Live => None,
            Phase::Retired { deadline, .. } => Some(deadline),
        }
    }
}

impl WebhookState {
    /// Makes the endpoints those that a reply named, `took` after the first call. A retired endpoint stays retired: the
    /// platform does not know of the retirement yet.
    pub(super) fn set_endpoints(
        &mut self,
        named: &[SocketAddr],
        took: Duration,
        now: Instant,
        ids: &mut IdSource,
        todo: &mut Vec<WebhookAction>,
    ) {
        for &address in named {
            if self.endpoints.values().any(|known| known.address == address) {
                continue;
            }
            let id = ids.instance();
            let phase = Phase::Live;
            self.endpoints.insert(id, Endpoint { address, phase });
            todo.push(EndpointAction::Add(id, address, took).into());
        }
        let gone = self.endpoints.iter().filter(|(_, e)| !named.contains(&e.address));
        let gone = gone.filter(|(_, e)| e.phase == Phase::Live).map(|(&id, _)| id);
        let gone = gone.collect();
        self.retire_these(gone, false, now, todo);
    }

    pub(super) fn retire_these(
        &mut self,
        ids: Vec<InstanceId>,
        chosen: bool,
        now: Instant,
        todo: &mut Vec<WebhookAction>,
    ) {
        self.retired(&ids, chosen, now);
        if !ids.is_empty() {
            todo.push(EndpointAction::RetireThese(ids).into());
        }
    }

    /// Marks endpoints as retired: the data plane sends them no new requests.
    pub(super) fn retired(&mut self, ids: &[InstanceId], chosen: bool, now: Instant) {
        let deadline = now + self.drain;
        for id in ids {
            if let Some(endpoint) = self.endpoints.get_mut(id).filter(|e| e.phase == Phase::Live) {
                endpoint.phase = Phase::Retired {
                    deadline,
                    chosen,
                    ending: false,
                };
            }
        }
    }

    pub(super) fn victims(&mut self, asked: u32, chosen: &[InstanceId], now: Instant) {
        self.retired(chosen, true, now);
        if chosen.len() < asked as usize {
            self.retire_again = Some(now + super::RETIRE_AGAIN);
        }
    }

    pub(super) fn drained(&mut self, id: InstanceId, todo: &mut Vec<WebhookAction>) {
        if self.endpoints.get(&id).is_some_and(|e| e.phase != Phase::Live) {
            self.forget(id, todo);
        }
    }

    /// Ends requests that are in flight at the drain timeout, and removes endpoints a moment later.
    pub(super) fn drop_overdue(&mut self, now: Instant, todo: &mut Vec<WebhookAction>) {
        let mut overdue = Vec::new();
        let mut left = Vec::new();
        for (&id, endpoint) in &mut self.endpoints {
            match &mut endpoint.phase {
                Phase::Retired { deadline, ending, .. } if *deadline <= now => {
                    if *ending {
                        left.push((id, endpoint.address));
                    } else {
                        (*deadline, *ending) = (now + END_GRACE, true);
                        overdue.push(id);
                    }
                }
                _ => {}
            }
        }
        if !overdue.is_empty() {
            todo.push(EndpointAction::End(overdue).into());
        }
        for (id, address) in left {
            todo.push(
                EndpointAction::Warn(format!("{address} had requests left after the drain timeout")).into(),
            );
            self.forget(id, todo);
        }
    }

    fn forget(&mut self, id: InstanceId, todo: &mut Vec<WebhookAction>) {
        let Some(gone) = self.endpoints.remove(&id) else {
            return;
        };
        todo.push(EndpointAction::Remove(id).into());
        // An endpoint that this gateway retired for a number no longer desired: another call makes the platform name it
        // again. An endpoint that the platform itself dropped stays dropped.
        let was_chosen = matches!(gone.phase, Phase::Retired { chosen: true, .. });
        self.unsure |= was_chosen && self.agreed.is_some_and(|runs| runs > 0 && runs <= self.wanted());
    }

    pub(super) fn live(&self) -> Vec<InstanceId> {
        let live = self.endpoints.iter().filter(|(_, e)| e.phase == Phase::Live);
        live.map(|(&id, _)| id).collect()
    }

    /// The addresses that stay in use.
    pub(super) fn kept(&self) -> Vec<SocketAddr> {
        let live = self.endpoints.values().filter(|e| e.phase == Phase::Live);
        live.map(|e| e.address).collect()
    }
}

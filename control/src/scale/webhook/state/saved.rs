//! The serialised state of a revision, for the hand-over to the next gateway in an upgrade.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sluice_model::InstanceId;

use super::endpoints::{Endpoint, Phase};
use super::post::Decision;
use super::{RevisionMachine, WebhookState};
use crate::scale::backoff::SavedBackoff;
use crate::scale::handover::{SavedFailure, SavedLaunch, elapsed, instant_before, remaining};

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SavedWebhookState {
    launch: SavedLaunch,
    removed: Option<Duration>,
    pub(in crate::scale) desired: u32,
    agreed: Option<u32>,
    unsure: bool,
    expected: bool,
    decision: Option<SavedDecision>,
    not_before: Option<Duration>,
    endpoints: Vec<SavedEndpoint>,
    awaited: Option<Duration>,
    at_zero: bool,
    backoff: SavedBackoff,
    last_failure: Option<(SavedFailure, String)>,
    call_failure: Option<String>,
    last_decision: Option<String>,
    starts: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedDecision {
    key: String,
    replicas: u32,
    reason: String,
    since: Option<Duration>,
    calling: bool,
    failed: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedEndpoint {
    id: u64,
    address: SocketAddr,
    retired: Option<SavedRetirement>,
}

/// Of one that is let go.
#[derive(Debug, Serialize, Deserialize)]
struct SavedRetirement {
    /// What is left of its time.
    time: Duration,
    /// Whether that was our choice.
    chosen: bool,
    ending: bool,
}

impl WebhookState {
    /// `None` when there is nothing to know.
    pub(crate) fn save(&self, now: Instant) -> Option<SavedWebhookState> {
        if self.agreed.is_none() && !self.unsure && self.decision.is_none() && self.desired == 0 {
            return None;
        }
        let endpoints = self.endpoints.iter().map(|(id, endpoint)| SavedEndpoint {
            id: id.0,
            address: endpoint.address,
            retired: match endpoint.phase {
                Phase::Live => None,
                Phase::Retired {
                    deadline,
                    chosen,
                    ending,
                } => Some(SavedRetirement {
                    time: remaining(deadline, now),
                    chosen,
                    ending,
                }),
            },
        });
        Some(SavedWebhookState {
            launch: SavedLaunch::of(&self.plan),
            removed: self.removed.map(|at| elapsed(at, now)),
            desired: self.desired,
            agreed: self.agreed,
            unsure: self.unsure,
            expected: self.expected,
            decision: self.decision.as_ref().map(|decision| decision.save(now)),
            not_before: self.not_before.map(|at| remaining(at, now)),
            endpoints: endpoints.collect(),
            awaited: self.awaited.map(|at| elapsed(at, now)),
            at_zero: self.at_zero,
            backoff: self.backoff.save(now),
            last_failure: self
                .last_failure
                .as_ref()
                .map(|(failure, detail)| ((*failure).into(), detail.clone())),
            call_failure: self.call_failure.clone(),
            last_decision: self.last_decision.clone(),
            starts: self.starts,
        })
    }

    /// Goes on from what was left.
    pub(crate) fn restore(saved: &SavedWebhookState, drain: Duration, now: Instant) -> Self {
        let mut state = Self::new(saved.launch.plan(), drain);
        state.removed = saved.removed.map(|at| instant_before(now, at));
        state.desired = saved.desired;
        state.agreed = saved.agreed;
        state.unsure = saved.unsure;
        state.expected = saved.expected;
        state.decision = saved.decision.as_ref().map(|decision| decision.restore(now));
        state.not_before = saved.not_before.map(|at| now + at);
        for endpoint in &saved.endpoints {
            let phase = match &endpoint.retired {
                None => Phase::Live,
                Some(retired) => Phase::Retired {
                    deadline: now + retired.time,
                    chosen: retired.chosen,
                    ending: retired.ending,
                },
            };
            let address = endpoint.address;
            state
                .endpoints
                .insert(InstanceId(endpoint.id), Endpoint { address, phase });
        }
        state.awaited = saved.awaited.map(|at| instant_before(now, at));
        state.at_zero = saved.at_zero;
        state.backoff = saved.backoff.restore(now);
        state.last_failure = saved
            .last_failure
            .as_ref()
            .map(|(failure, detail)| ((*failure).into(), detail.clone()));
        state.call_failure = saved.call_failure.clone();
        state.last_decision = saved.last_decision.clone();
        state.starts = saved.starts;
        state
    }
}

impl Decision {
    fn save(&self, now: Instant) -> SavedDecision {
        SavedDecision {
            key: self.key.clone(),
            replicas: self.replicas,
            reason: self.reason.clone(),
            since: self.since.map(|at| elapsed(at, now)),
            calling: self.calling,
            failed: self.failed,
        }
    }
}

impl SavedDecision {
    fn restore(&self, now: Instant) -> Decision {
        Decision {
            key: self.key.clone(),
            replicas: self.replicas,
            reason: self.reason.clone(),
            since: self.since.map(|at| instant_before(now, at)),
            calling: self.calling,
            failed: self.failed,
        }
    }
}

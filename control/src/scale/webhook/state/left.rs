//! A revision's state as one gateway leaves it to the next.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sluice_model::InstanceId;

use super::ReplicaState;
use super::endpoints::{Endpoint, Phase};
use super::post::Decision;
use crate::scale::backoff::BackoffLeft;
use crate::scale::handover::{FailureLeft, Launch, ago, before, left};

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ReplicasLeft {
    launch: Launch,
    removed: Option<Duration>,
    pub(in crate::scale) desired: u32,
    agreed: Option<u32>,
    unsure: bool,
    expected: bool,
    decision: Option<DecisionLeft>,
    not_before: Option<Duration>,
    endpoints: Vec<EndpointLeft>,
    awaited: Option<Duration>,
    at_zero: bool,
    backoff: BackoffLeft,
    last_failure: Option<(FailureLeft, String)>,
    call_failure: Option<String>,
    last_decision: Option<String>,
    starts: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct DecisionLeft {
    key: String,
    replicas: u32,
    reason: String,
    since: Option<Duration>,
    calling: bool,
    failed: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct EndpointLeft {
    id: u64,
    address: SocketAddr,
    retired: Option<RetiredLeft>,
}

/// Of one that is let go.
#[derive(Debug, Serialize, Deserialize)]
struct RetiredLeft {
    /// What is left of its time.
    time: Duration,
    /// Whether that was our choice.
    chosen: bool,
    ending: bool,
}

impl ReplicaState {
    /// `None` when there is nothing to know.
    pub(crate) fn save(&self, now: Instant) -> Option<ReplicasLeft> {
        if self.agreed.is_none() && !self.unsure && self.decision.is_none() && self.desired == 0 {
            return None;
        }
        let endpoints = self.endpoints.iter().map(|(id, endpoint)| EndpointLeft {
            id: id.0,
            address: endpoint.address,
            retired: match endpoint.phase {
                Phase::Live => None,
                Phase::Retired {
                    deadline,
                    chosen,
                    ending,
                } => Some(RetiredLeft {
                    time: left(deadline, now),
                    chosen,
                    ending,
                }),
            },
        });
        Some(ReplicasLeft {
            launch: Launch::of(&self.plan),
            removed: self.removed.map(|at| ago(at, now)),
            desired: self.desired,
            agreed: self.agreed,
            unsure: self.unsure,
            expected: self.expected,
            decision: self.decision.as_ref().map(|decision| decision.save(now)),
            not_before: self.not_before.map(|at| left(at, now)),
            endpoints: endpoints.collect(),
            awaited: self.awaited.map(|at| ago(at, now)),
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
    pub(crate) fn restore(saved: &ReplicasLeft, drain: Duration, now: Instant) -> Self {
        let mut state = Self::new(saved.launch.plan(), drain);
        state.removed = saved.removed.map(|at| before(now, at));
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
        state.awaited = saved.awaited.map(|at| before(now, at));
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
    fn save(&self, now: Instant) -> DecisionLeft {
        DecisionLeft {
            key: self.key.clone(),
            replicas: self.replicas,
            reason: self.reason.clone(),
            since: self.since.map(|at| ago(at, now)),
            calling: self.calling,
            failed: self.failed,
        }
    }
}

impl DecisionLeft {
    fn restore(&self, now: Instant) -> Decision {
        Decision {
            key: self.key.clone(),
            replicas: self.replicas,
            reason: self.reason.clone(),
            since: self.since.map(|at| before(now, at)),
            calling: self.calling,
            failed: self.failed,
        }
    }
}

//! A revision's state as one gateway leaves it to the next.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sluice_model::InstanceId;

use super::RevisionState;
use super::instance::{Instance, Phase};
use crate::scale::backoff::BackoffLeft;
use crate::scale::handover::{FailureLeft, Launch, ago, before, left};

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StateLeft {
    /// What anything was started by; the first is the present one.
    launches: Vec<Launch>,
    removed: bool,
    pub(in crate::scale) desired: u32,
    instances: Vec<InstanceLeft>,
    backoff: BackoffLeft,
    awaited: bool,
    port_tries: u32,
    last_failure: Option<(FailureLeft, String)>,
    last_decision: Option<String>,
    starts: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct InstanceLeft {
    id: u64,
    phase: PhaseLeft,
    launch: usize,
    added: bool,
    timed_out: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PhaseLeft {
    Starting { since: Duration, deadline: Duration },
    Ready { since: Duration },
    Retired { deadline: Duration },
    Ending { deadline: Duration },
    Stopping,
}

impl StateLeft {
    pub(in crate::scale) fn ids(&self) -> Vec<InstanceId> {
        self.instances.iter().map(|left| InstanceId(left.id)).collect()
    }
}

impl RevisionState {
    /// `None` when there is nothing to know.
    pub(crate) fn save(&self, now: Instant) -> Option<StateLeft> {
        if self.instances.is_empty() && self.starts == 0 && self.desired == 0 && self.last_failure.is_none() {
            return None;
        }
        let mut launches = vec![Launch::of(&self.plan)];
        let instances = self.instances.iter().map(|(id, instance)| {
            let launch = Launch::of(&instance.plan);
            let known = launches.iter().position(|known| *known == launch);
            InstanceLeft {
                id: id.0,
                phase: instance.phase.save(now),
                launch: known.unwrap_or_else(|| {
                    launches.push(launch);
                    launches.len() - 1
                }),
                added: instance.added,
                timed_out: instance.timed_out,
            }
        });
        let instances = instances.collect();
        Some(StateLeft {
            launches,
            removed: self.removed,
            desired: self.desired,
            instances,
            backoff: self.backoff.save(now),
            awaited: self.awaited,
            port_tries: self.port_tries,
            last_failure: self
                .last_failure
                .as_ref()
                .map(|(failure, detail)| ((*failure).into(), detail.clone())),
            last_decision: self.last_decision.clone(),
            starts: self.starts,
        })
    }

    /// Goes on from what was left; `None` when that says not even how it was started.
    pub(crate) fn restore(saved: &StateLeft, drain: Duration, now: Instant) -> Option<Self> {
        let plans: Vec<_> = saved.launches.iter().map(Launch::plan).collect();
        let mut state = Self::new(plans.first()?.clone(), drain);
        for instance in &saved.instances {
            let restored = Instance {
                phase: instance.phase.restore(now),
                plan: plans.get(instance.launch)?.clone(),
                added: instance.added,
                timed_out: instance.timed_out,
            };
            state.instances.insert(InstanceId(instance.id), restored);
        }
        state.removed = saved.removed;
        state.desired = saved.desired;
        state.backoff = saved.backoff.restore(now);
        state.awaited = saved.awaited;
        state.port_tries = saved.port_tries;
        state.last_failure = saved
            .last_failure
            .as_ref()
            .map(|(failure, detail)| ((*failure).into(), detail.clone()));
        state.last_decision = saved.last_decision.clone();
        state.starts = saved.starts;
        Some(state)
    }
}

impl Phase {
    fn save(self, now: Instant) -> PhaseLeft {
        match self {
            Self::Starting { since, deadline } => PhaseLeft::Starting {
                since: ago(since, now),
                deadline: left(deadline, now),
            },
            Self::Ready { since } => PhaseLeft::Ready {
                since: ago(since, now),
            },
            Self::Retired { deadline } => PhaseLeft::Retired {
                deadline: left(deadline, now),
            },
            Self::Ending { deadline } => PhaseLeft::Ending {
                deadline: left(deadline, now),
            },
            Self::Stopping => PhaseLeft::Stopping,
        }
    }
}

impl PhaseLeft {
    fn restore(&self, now: Instant) -> Phase {
        match *self {
            Self::Starting { since, deadline } => Phase::Starting {
                since: before(now, since),
                deadline: now + deadline,
            },
            Self::Ready { since } => Phase::Ready {
                since: before(now, since),
            },
            Self::Retired { deadline } => Phase::Retired {
                deadline: now + deadline,
            },
            Self::Ending { deadline } => Phase::Ending {
                deadline: now + deadline,
            },
            Self::Stopping => Phase::Stopping,
        }
    }
}

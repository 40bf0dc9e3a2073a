//! The serialised state of a revision, for the hand-over to the next gateway in an upgrade.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sluice_model::InstanceId;

use super::instance::{Instance, Phase};
use super::{ProcessState, RevisionMachine};
use crate::scale::backoff::SavedBackoff;
use crate::scale::handover::{SavedFailure, SavedLaunch, elapsed, instant_before, remaining};

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SavedProcessState {
    /// What anything was started by; the first is the present one.
    launches: Vec<SavedLaunch>,
    removed: bool,
    pub(in crate::scale) desired: u32,
    instances: Vec<SavedInstance>,
    backoff: SavedBackoff,
    awaited: bool,
    port_tries: u32,
    last_failure: Option<(SavedFailure, String)>,
    last_decision: Option<String>,
    starts: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedInstance {
    id: u64,
    phase: SavedPhase,
    launch: usize,
    added: bool,
    timed_out: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SavedPhase {
    Starting { since: Duration, deadline: Duration },
    Ready { since: Duration },
    Retired { deadline: Duration },
    Ending { deadline: Duration },
    Stopping,
}

impl SavedProcessState {
    pub(in crate::scale) fn ids(&self) -> Vec<InstanceId> {
        self.instances.iter().map(|left| InstanceId(left.id)).collect()
    }
}

impl ProcessState {
    /// `None` when there is nothing to know.
    pub(crate) fn save(&self, now: Instant) -> Option<SavedProcessState> {
        if self.instances.is_empty() && self.starts == 0 && self.desired == 0 && self.last_failure.is_none() {
            return None;
        }
        let mut launches = vec![SavedLaunch::of(&self.plan)];
        let instances = self.instances.iter().map(|(id, instance)| {
            let launch = SavedLaunch::of(&instance.plan);
            let known = launches.iter().position(|known| *known == launch);
            SavedInstance {
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
        Some(SavedProcessState {
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
    pub(crate) fn restore(saved: &SavedProcessState, drain: Duration, now: Instant) -> Option<Self> {
        let plans: Vec<_> = saved.launches.iter().map(SavedLaunch::plan).collect();
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
    fn save(self, now: Instant) -> SavedPhase {
        match self {
            Self::Starting { since, deadline } => SavedPhase::Starting {
                since: elapsed(since, now),
                deadline: remaining(deadline, now),
            },
            Self::Ready { since } => SavedPhase::Ready {
                since: elapsed(since, now),
            },
            Self::Retired { deadline } => SavedPhase::Retired {
                deadline: remaining(deadline, now),
            },
            Self::Ending { deadline } => SavedPhase::Ending {
                deadline: remaining(deadline, now),
            },
            Self::Stopping => SavedPhase::Stopping,
        }
    }
}

impl SavedPhase {
    fn restore(&self, now: Instant) -> Phase {
        match *self {
            Self::Starting { since, deadline } => Phase::Starting {
                since: instant_before(now, since),
                deadline: now + deadline,
            },
            Self::Ready { since } => Phase::Ready {
                since: instant_before(now, since),
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

//! The state of a revision, of either kind.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sluice_model::{InstanceId, RevisionStatus};

use super::state::{Action, Event, Fresh, RevisionState, StateLeft};
use super::webhook::{ReplicaState, ReplicasLeft};
use crate::plan::{RevisionPlan, ScalerSpec};

/// Who starts a revision's instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// The gateway, one by one.
    Instances,
    /// A platform that is told how many.
    Replicas,
}

impl Kind {
    pub(super) const ALL: [Self; 2] = [Self::Instances, Self::Replicas];

    pub(super) fn of(plan: &RevisionPlan) -> Self {
        match plan.scaler {
            ScalerSpec::Process(_) => Self::Instances,
            ScalerSpec::Webhook(_) => Self::Replicas,
        }
    }
}

/// What is known and wanted of one revision. The two have their words in common, and little else.
#[derive(Debug)]
pub(super) enum Scaled {
    Instances(Box<RevisionState>),
    Replicas(Box<ReplicaState>),
}

impl Scaled {
    /// Give it its plan with [`Event::Plan`] to begin.
    pub(super) fn new(plan: Arc<RevisionPlan>, drain: Duration) -> Self {
        match Kind::of(&plan) {
            Kind::Instances => Self::Instances(Box::new(RevisionState::new(plan, drain))),
            Kind::Replicas => Self::Replicas(Box::new(ReplicaState::new(plan, drain))),
        }
    }

    pub(super) fn step(&mut self, event: Event, now: Instant, fresh: &mut Fresh) -> Vec<Action> {
        match self {
            Self::Instances(state) => state.step(event, now, fresh),
            Self::Replicas(state) => state.step(event, now, fresh),
        }
    }

    pub(super) fn set_drain(&mut self, drain: Duration) {
        match self {
            Self::Instances(state) => state.set_drain(drain),
            Self::Replicas(state) => state.set_drain(drain),
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        match self {
            Self::Instances(state) => state.next_deadline(),
            Self::Replicas(state) => state.next_deadline(),
        }
    }

    pub(super) fn is_over(&self) -> bool {
        match self {
            Self::Instances(state) => state.is_over(),
            Self::Replicas(state) => state.is_over(),
        }
    }

    pub(super) fn is_removed(&self) -> bool {
        match self {
            Self::Instances(state) => state.is_removed(),
            Self::Replicas(state) => state.is_removed(),
        }
    }

    pub(super) fn follows(&self, plan: &RevisionPlan) -> bool {
        match self {
            Self::Instances(state) => state.follows(plan),
            Self::Replicas(state) => state.follows(plan),
        }
    }

    pub(super) fn status(&self) -> RevisionStatus {
        match self {
            Self::Instances(state) => state.status(),
            Self::Replicas(state) => state.status(),
        }
    }

    /// For the next gateway; `None` when there is nothing to know.
    pub(super) fn save(&self, now: Instant) -> Option<ScaledLeft> {
        match self {
            Self::Instances(state) => state.save(now).map(Box::new).map(ScaledLeft::Instances),
            Self::Replicas(state) => state.save(now).map(Box::new).map(ScaledLeft::Replicas),
        }
    }

    /// Whether a platform owes it an answer.
    pub(super) fn awaits_answer(&self) -> bool {
        match self {
            Self::Instances(_) => false,
            Self::Replicas(state) => state.awaits_answer(),
        }
    }

    /// The longest anything of it may take to end.
    pub(super) fn longest_grace(&self) -> Duration {
        match self {
            Self::Instances(state) => state.longest_grace(),
            Self::Replicas(_) => Duration::ZERO,
        }
    }
}

/// A [`Scaled`] as one gateway leaves it to the next.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ScaledLeft {
    Instances(Box<StateLeft>),
    Replicas(Box<ReplicasLeft>),
}

impl ScaledLeft {
    pub(super) fn desired(&self) -> u32 {
        match self {
            Self::Instances(state) => state.desired,
            Self::Replicas(state) => state.desired,
        }
    }

    /// Processes that this gateway started, as far as its controller knew.
    pub(super) fn instances(&self) -> Vec<InstanceId> {
        match self {
            Self::Instances(state) => state.ids(),
            Self::Replicas(_) => Vec::new(),
        }
    }

    /// Goes on from what was left; `None` when it makes no sense.
    pub(super) fn restore(&self, drain: Duration, now: Instant) -> Option<(Kind, Scaled)> {
        Some(match self {
            Self::Instances(state) => {
                let state = RevisionState::restore(state, drain, now)?;
                (Kind::Instances, Scaled::Instances(Box::new(state)))
            }
            Self::Replicas(state) => {
                let state = ReplicaState::restore(state, drain, now);
                (Kind::Replicas, Scaled::Replicas(Box::new(state)))
            }
        })
    }
}

//! The serialised state of scaling, which one gateway hands over to the next in an upgrade, so that the next one continues
//! as if it had run all along.
//!
//! The older gateway is frozen before its state is taken, and thaws when the next one fails. The next one restores the state
//! *with the older one's plan*, then applies its own plan as a reload: what is no longer configured is drained, what changed
//! is replaced without loss, by the same code as always.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sluice_model::{Failure, InstanceId, RevisionId};
use thiserror::Error;
use tokio::sync::oneshot;

use super::ScalerEvent;
use super::process::SavedProcessState;
use super::webhook::{Answer, SavedWebhookState};
use crate::plan::{AutoscalePolicy, Metric, RevisionPlan, ScalerSpec};

/// The version of the serialised form; grows with every change that the next gateway would misread.
const FORM: u32 = 1;

/// The serialised state of all revisions and processes. Holds secrets (environments, headers): only for a socket between
/// two gateways of one user.
#[derive(Debug, Serialize, Deserialize)]
pub struct ScaleState {
    form: u32,
    pub(super) next_instance: u64,
    pub(super) revisions: Vec<Saved<SavedRevision>>,
    pub(super) processes: Vec<Saved<SavedProcess>>,
}

/// The state of a frozen gateway, with the next gateway's socket to the supervisor.
#[derive(Debug)]
pub struct HandedOver {
    /// The serialised state.
    pub state: ScaleState,
    /// The next gateway's socket to the supervisor; `None` when there is no supervisor.
    pub supervisor: Option<OwnedFd>,
}

/// An error of a hand-over. The older gateway continues as before.
#[derive(Debug, Error)]
pub enum HandoverError {
    /// The supervisor was started by a gateway too old for upgrades.
    #[error("the supervisor of local instances is too old for an upgrade: it speaks version {0}")]
    OldSupervisor(u32),
    /// No socket for the next gateway could be made.
    #[error("no socket for the next gateway: {0}")]
    Socket(#[from] std::io::Error),
    /// The state is handed over already, or the gateway shuts down.
    #[error("instances are not this gateway's to hand over")]
    NotOurs,
    /// The state has a version that this gateway does not know.
    #[error("what the older gateway left is of form {0}, which this one does not know")]
    Form(u32),
}

impl ScaleState {
    pub(super) fn new(next_instance: u64, revisions: Vec<Saved<SavedRevision>>) -> Self {
        Self {
            form: FORM,
            next_instance,
            revisions,
            processes: Vec::new(),
        }
    }

    /// Checks that this gateway can read the state.
    ///
    /// # Errors
    /// The state has another version.
    pub fn check(&self) -> Result<(), HandoverError> {
        match self.form {
            FORM => Ok(()),
            other => Err(HandoverError::Form(other)),
        }
    }

    /// Exit events that the older gateway's controller had not processed yet, although its scaler of processes had.
    pub(super) fn pending_exits(&self) -> Vec<ScalerEvent> {
        let running: BTreeSet<u64> = self.processes.iter().map(|saved| saved.what.instance).collect();
        let mut gone = Vec::new();
        for saved in &self.revisions {
            let Some(revision) = saved.id() else { continue };
            let known = saved.what.instances().into_iter();
            gone.extend(
                known
                    .filter(|instance| !running.contains(&instance.0))
                    .map(|instance| ScalerEvent::Exited {
                        revision: revision.clone(),
                        instance,
                        detail: "ended during an upgrade".to_owned(),
                        port_taken: false,
                    }),
            );
        }
        gone
    }

    /// The desired number of instances of each revision, as of the older gateway.
    pub fn desired(&self) -> BTreeMap<RevisionId, u32> {
        let known = self.revisions.iter();
        known
            .filter_map(|saved| Some((saved.id()?, saved.what.desired())))
            .collect()
    }
}

/// The state machine of a revision, of either kind.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SavedRevision {
    /// Local processes.
    Instances(Box<SavedProcessState>),
    /// A platform's replicas.
    Replicas(Box<SavedWebhookState>),
}

impl SavedRevision {
    fn desired(&self) -> u32 {
        match self {
            Self::Instances(state) => state.desired,
            Self::Replicas(state) => state.desired,
        }
    }

    /// Processes that the older gateway started, as far as its controller knew.
    fn instances(&self) -> Vec<InstanceId> {
        match self {
            Self::Instances(state) => state.ids(),
            Self::Replicas(_) => Vec::new(),
        }
    }
}

/// A value with the name of its revision.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Saved<T> {
    namespace: String,
    revision: String,
    pub(super) what: T,
}

impl<T> Saved<T> {
    pub(super) fn of(revision: &RevisionId, what: T) -> Self {
        Self {
            namespace: revision.namespace().to_owned(),
            revision: revision.name().to_owned(),
            what,
        }
    }

    /// The revision; `None` for an invalid name, because a newer gateway may be stricter.
    pub(super) fn id(&self) -> Option<RevisionId> {
        RevisionId::parse_scaled(&self.namespace, &self.revision).ok()
    }
}

/// A process, as the scaler of processes knows it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedProcess {
    pub(super) instance: u64,
    pub(super) port: u16,
    pub(super) pid: Option<i32>,
    pub(super) port_taken: bool,
}

/// The parts of a plan by which an instance was started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct SavedLaunch {
    scaler: ScalerSpec,
    service: String,
    start_timeout: Duration,
}

impl SavedLaunch {
    pub(super) fn of(plan: &RevisionPlan) -> Self {
        Self {
            scaler: plan.scaler.clone(),
            service: plan.service.clone(),
            start_timeout: plan.start_timeout,
        }
    }

    /// A plan that asks for nothing, to hold until the next gateway's own plan is applied.
    pub(super) fn plan(&self) -> Arc<RevisionPlan> {
        Arc::new(RevisionPlan {
            scaler: self.scaler.clone(),
            policy: IDLE_POLICY,
            start_timeout: self.start_timeout,
            service: self.service.clone(),
            reachable: false,
            needs: Vec::new(),
        })
    }
}

const IDLE_POLICY: AutoscalePolicy = AutoscalePolicy {
    metric: Metric::Concurrency,
    total_value: 100.0,
    target_value: 70.0,
    min_scale: 0,
    max_scale: None,
    initial_scale: 0,
    activation_scale: 1,
    stable_window: Duration::from_secs(60),
    panic_window: Duration::from_secs(6),
    panic_threshold: 2.0,
    max_scale_up_rate: 1000.0,
    max_scale_down_rate: 2.0,
    scale_down_delay: Duration::ZERO,
    scale_to_zero: true,
    scale_to_zero_grace: Duration::ZERO,
    scale_to_zero_retention: Duration::ZERO,
    target_burst_capacity: 0.0,
    mode: crate::plan::ScalingMode::Active,
    foresight: None,
};

/// [`Failure`], serialised.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SavedFailure {
    Failed,
    TimedOut,
    NotAllowed,
}

impl From<Failure> for SavedFailure {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Failed => Self::Failed,
            Failure::TimedOut => Self::TimedOut,
            Failure::NotAllowed => Self::NotAllowed,
        }
    }
}

impl From<SavedFailure> for Failure {
    fn from(failure: SavedFailure) -> Self {
        match failure {
            SavedFailure::Failed => Self::Failed,
            SavedFailure::TimedOut => Self::TimedOut,
            SavedFailure::NotAllowed => Self::NotAllowed,
        }
    }
}

/// The time since an instant. Instants are saved as durations, because two processes have no clock in common.
pub(super) fn elapsed(since: Instant, now: Instant) -> Duration {
    now.saturating_duration_since(since)
}

/// The time until an instant.
pub(super) fn remaining(until: Instant, now: Instant) -> Duration {
    until.saturating_duration_since(now)
}

/// The instant this long before `now`; `now` when the clock does not go back that far.
pub(super) fn instant_before(now: Instant, elapsed: Duration) -> Instant {
    now.checked_sub(elapsed).unwrap_or(now)
}

/// A platform's answer to a call of the older gateway, passed on to the next one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformAnswer {
    namespace: String,
    revision: String,
    answer: SavedAnswer,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SavedAnswer {
    Agreed(Vec<SocketAddr>),
    Refused(String),
    Retry(String, Option<Duration>),
}

impl PlatformAnswer {
    pub(super) fn new(revision: &RevisionId, answer: Answer) -> Self {
        Self {
            namespace: revision.namespace().to_owned(),
            revision: revision.name().to_owned(),
            answer: match answer {
                Answer::Agreed { endpoints } => SavedAnswer::Agreed(endpoints),
                Answer::Refused(detail) => SavedAnswer::Refused(detail),
                Answer::Retry { detail, after } => SavedAnswer::Retry(detail, after),
            },
        }
    }

    pub(super) fn into_parts(self) -> Option<(RevisionId, Answer)> {
        let revision = RevisionId::parse_scaled(&self.namespace, &self.revision).ok()?;
        let answer = match self.answer {
            SavedAnswer::Agreed(endpoints) => Answer::Agreed { endpoints },
            SavedAnswer::Refused(detail) => Answer::Refused(detail),
            SavedAnswer::Retry(detail, after) => Answer::Retry { detail, after },
        };
        Some((revision, answer))
    }
}

/// A hand-over under way: the scaler of processes adds its part and replies.
#[derive(Debug)]
pub(crate) struct PendingHandover {
    pub(super) state: ScaleState,
    pub(super) reply: oneshot::Sender<Result<HandedOver, HandoverError>>,
}

impl PendingHandover {
    /// Replies. The receiver is gone only when the upgrade was given up, and then the state is taken back.
    pub(super) fn finish(self, supervisor: Result<Option<OwnedFd>, HandoverError>) {
        let state = self.state;
        let _ = self
            .reply
            .send(supervisor.map(|supervisor| HandedOver { state, supervisor }));
    }
}

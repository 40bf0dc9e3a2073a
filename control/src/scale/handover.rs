//! What one gateway leaves to the next in an upgrade: everything that it knows of instances, so
//! that the next one goes on as if it had been there all along.
//!
//! The older one is frozen before it says anything, and takes up where it was when the next one
//! comes to nothing. The next one takes over what the older one had *by its plan*, then reads its
//! own plan as a reload: what is configured no more is drained, what changed is replaced without
//! loss, by the same code as always.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sluice_model::{Failure, RevisionId};
use thiserror::Error;
use tokio::sync::oneshot;

use super::ScalerEvent;
use super::scaled::ScaledLeft;
use super::webhook::Answer;
use crate::plan::{AutoscalePolicy, Metric, RevisionPlan, ScalerSpec};

/// Of the form; grows with every change that the next gateway would misread.
const FORM: u32 = 1;

/// What is known of all instances; holds secrets (environments, headers), so it is for a socket
/// between two gateways of one user and for nothing else.
#[derive(Debug, Serialize, Deserialize)]
pub struct ScaleState {
    form: u32,
    pub(super) next_instance: u64,
    pub(super) revisions: Vec<Left<ScaledLeft>>,
    pub(super) processes: Vec<Left<ProcessLeft>>,
}

/// A frozen gateway's instances.
#[derive(Debug)]
pub struct HandedOver {
    /// What is known of them.
    pub state: ScaleState,
    /// The next gateway's way to their supervisor; `None` when there is no supervisor.
    pub supervisor: Option<OwnedFd>,
}

/// Why instances cannot be handed over. Nothing has changed then.
#[derive(Debug, Error)]
pub enum HandoverError {
    /// The supervisor was started by a gateway that is too old.
    #[error("the supervisor of local instances is too old for an upgrade: it speaks version {0}")]
    OldSupervisor(u32),
    /// No socket for the next gateway.
    #[error("no socket for the next gateway: {0}")]
    Socket(#[from] std::io::Error),
    /// They are handed over already, or the gateway ends.
    #[error("instances are not this gateway's to hand over")]
    NotOurs,
    /// What was handed over is of another form than this gateway knows.
    #[error("what the older gateway left is of form {0}, which this one does not know")]
    Form(u32),
}

impl ScaleState {
    pub(super) fn new(next_instance: u64, revisions: Vec<Left<ScaledLeft>>) -> Self {
        Self {
            form: FORM,
            next_instance,
            revisions,
            processes: Vec::new(),
        }
    }

    /// Whether this gateway can go on from it.
    ///
    /// # Errors
    /// When its form is another one.
    pub fn check(&self) -> Result<(), HandoverError> {
        match self.form {
            FORM => Ok(()),
            other => Err(HandoverError::Form(other)),
        }
    }

    /// The ends of instances of which the older gateway's controller had not heard yet, although
    /// its scaler of processes had.
    pub(super) fn gone(&self) -> Vec<ScalerEvent> {
        let running: BTreeSet<u64> = self.processes.iter().map(|left| left.what.instance).collect();
        let mut gone = Vec::new();
        for left in &self.revisions {
            let Some(revision) = left.id() else { continue };
            let known = left.what.instances().into_iter();
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

    /// How many instances each revision should have as the older gateway saw it.
    pub fn desired(&self) -> BTreeMap<RevisionId, u32> {
        let known = self.revisions.iter();
        known
            .filter_map(|left| Some((left.id()?, left.what.desired())))
            .collect()
    }
}

/// Something of a revision.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Left<T> {
    namespace: String,
    revision: String,
    pub(super) what: T,
}

impl<T> Left<T> {
    pub(super) fn of(revision: &RevisionId, what: T) -> Self {
        Self {
            namespace: revision.namespace().to_owned(),
            revision: revision.name().to_owned(),
            what,
        }
    }

    /// `None` for what is no name: a newer gateway reads more strictly.
    pub(super) fn id(&self) -> Option<RevisionId> {
        RevisionId::parse(&self.namespace, &self.revision).ok()
    }
}

/// A process as the scaler of processes knows it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ProcessLeft {
    pub(super) instance: u64,
    pub(super) port: u16,
    pub(super) pid: Option<i32>,
    pub(super) port_taken: bool,
}

/// How something was started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Launch {
    scaler: ScalerSpec,
    service: String,
    start_timeout: Duration,
}

impl Launch {
    pub(super) fn of(plan: &RevisionPlan) -> Self {
        Self {
            scaler: plan.scaler.clone(),
            service: plan.service.clone(),
            start_timeout: plan.start_timeout,
        }
    }

    /// A plan to go on from until the next gateway's own comes: it asks for nothing.
    pub(super) fn plan(&self) -> Arc<RevisionPlan> {
        Arc::new(RevisionPlan {
            scaler: self.scaler.clone(),
            policy: NOTHING,
            start_timeout: self.start_timeout,
            service: self.service.clone(),
            reachable: false,
        })
    }
}

const NOTHING: AutoscalePolicy = AutoscalePolicy {
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
};

/// [`Failure`] on the wire.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FailureLeft {
    Failed,
    TimedOut,
    NotAllowed,
}

impl From<Failure> for FailureLeft {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Failed => Self::Failed,
            Failure::TimedOut => Self::TimedOut,
            Failure::NotAllowed => Self::NotAllowed,
        }
    }
}

impl From<FailureLeft> for Failure {
    fn from(failure: FailureLeft) -> Self {
        match failure {
            FailureLeft::Failed => Self::Failed,
            FailureLeft::TimedOut => Self::TimedOut,
            FailureLeft::NotAllowed => Self::NotAllowed,
        }
    }
}

/// Two processes have no instant in common, only durations.
pub(super) fn ago(then: Instant, now: Instant) -> Duration {
    now.saturating_duration_since(then)
}

pub(super) fn left(until: Instant, now: Instant) -> Duration {
    until.saturating_duration_since(now)
}

/// The machine may have been started since: then it was long ago all the same.
pub(super) fn before(now: Instant, ago: Duration) -> Instant {
    now.checked_sub(ago).unwrap_or(now)
}

/// What a platform answered to the older gateway, for the next one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformAnswer {
    namespace: String,
    revision: String,
    answer: AnswerLeft,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum AnswerLeft {
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
                Answer::Agreed { endpoints } => AnswerLeft::Agreed(endpoints),
                Answer::Refused(detail) => AnswerLeft::Refused(detail),
                Answer::Retry { detail, after } => AnswerLeft::Retry(detail, after),
            },
        }
    }

    pub(super) fn into_parts(self) -> Option<(RevisionId, Answer)> {
        let revision = RevisionId::parse(&self.namespace, &self.revision).ok()?;
        let answer = match self.answer {
            AnswerLeft::Agreed(endpoints) => Answer::Agreed { endpoints },
            AnswerLeft::Refused(detail) => Answer::Refused(detail),
            AnswerLeft::Retry(detail, after) => Answer::Retry { detail, after },
        };
        Some((revision, answer))
    }
}

/// A state on its way: whoever carries it adds what it knows and answers.
#[derive(Debug)]
pub(crate) struct Handing {
    pub(super) state: ScaleState,
    pub(super) reply: oneshot::Sender<Result<HandedOver, HandoverError>>,
}

impl Handing {
    /// Nobody listens any more only when the upgrade was given up: then it is taken back.
    pub(super) fn finish(self, supervisor: Result<Option<OwnedFd>, HandoverError>) {
        let state = self.state;
        let _ = self
            .reply
            .send(supervisor.map(|supervisor| HandedOver { state, supervisor }));
    }
}

//! What the two processes say to each other. Times are durations: two processes have no instant in
//! common.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sluice_model::{ActivationFailure, EndpointAddr, Failure, InstanceId, RevisionId, ServiceId, StickyKey};

use crate::registry::{Inherited, LiveRevision, backend_kind};
use crate::throttle::{EndpointId, EndpointInUse, EndpointPhase, News, Outcome, Rejection, Wanted};

/// What the older process has of one revision. A desk is named by its place in the list of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Desk {
    namespace: String,
    revision: String,
    /// Of the service; namespace and name.
    service: (String, String),
    /// How its requests are sent.
    kind: String,
    /// Requests that one endpoint may hold.
    concurrency: Option<u32>,
    endpoints: Vec<InUse>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct InUse {
    #[serde(flatten)]
    id: Id,
    phase: Phase,
    in_flight: u32,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Phase {
    Starting,
    Ready,
    Ejected,
    Draining,
    Gone,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Id {
    #[serde(flatten)]
    address: Address,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    instance: Option<u64>,
    /// Absent from a gateway that knows no tiers, and where there are none.
    #[serde(default, skip_serializing_if = "is_first")]
    tier: u8,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // As serde calls it.
fn is_first(tier: &u8) -> bool {
    *tier == 0
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// From the older process, after the list of its desks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToHost {
    pub(super) desk: u32,
    pub(super) news: Item,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Item {
    Want(u64, Asked),
    Withdraw(u64),
    Done(Id),
    Report(Id, Told),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Asked {
    bytes: u64,
    /// How long an answer is of use.
    left: Option<Duration>,
    waited: Duration,
    sticky: Option<u64>,
    /// Absent from a gateway that knows no passive requests.
    #[serde(default)]
    passive: bool,
    tried: Vec<(Id, bool)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Told {
    Connected,
    ConnectFailed,
    Responded(u16),
    ResponseTimeout,
    Broke,
}

/// From the newer process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToGuest {
    pub(super) desk: u32,
    pub(super) want: u64,
    pub(super) answer: Answer,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Grant(Id),
    Reject(Refusal),
}

/// A [`Rejection`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Refusal {
    QueueFull(Duration),
    QueueTimeout(Duration),
    ActivationFailed {
        failure: Cause,
        detail: String,
        /// When starting is tried again.
        again: Duration,
        retry_after: Duration,
    },
    NoEndpoints,
    Overloaded(Duration),
    /// Only for a passive request, which an older gateway never asks for.
    Dormant(Duration),
    Draining,
    Removed,
    DeadlineExceeded,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Cause {
    Failed,
    TimedOut,
    NotAllowed,
}

impl Desk {
    pub(super) fn new(live: &LiveRevision, endpoints: &[EndpointInUse]) -> Self {
        let (revision, spec) = (live.id(), live.spec());
        let endpoints = endpoints.iter().map(|endpoint| InUse {
            id: (&endpoint.id).into(),
            phase: match endpoint.phase {
                EndpointPhase::Starting => Phase::Starting,
                EndpointPhase::Ready => Phase::Ready,
                EndpointPhase::Ejected { .. } => Phase::Ejected,
                EndpointPhase::Draining => Phase::Draining,
                EndpointPhase::Gone => Phase::Gone,
            },
            in_flight: endpoint.in_flight,
        });
        Self {
            namespace: revision.namespace().to_owned(),
            revision: revision.name().to_owned(),
            service: (
                spec.service.namespace().to_owned(),
                spec.service.name().to_owned(),
            ),
            kind: backend_kind(&spec),
            concurrency: spec.container_concurrency,
            endpoints: endpoints.collect(),
        }
    }

    /// `None` for names that this process does not take for names: it serves none of them.
    pub(crate) fn inherited(&self) -> Option<Inherited> {
        let endpoints = self.endpoints.iter().map(|endpoint| EndpointInUse {
            id: (&endpoint.id).into(),
            phase: match endpoint.phase {
                Phase::Starting => EndpointPhase::Starting,
                // Judged anew: what made the other one set it aside may be over.
                Phase::Ready | Phase::Ejected => EndpointPhase::Ready,
                Phase::Draining => EndpointPhase::Draining,
                Phase::Gone => EndpointPhase::Gone,
            },
            in_flight: endpoint.in_flight,
        });
        Some(Inherited {
            revision: RevisionId::parse(&self.namespace, &self.revision).ok()?,
            service: ServiceId::parse(&self.service.0, &self.service.1).ok()?,
            kind: self.kind.clone(),
            concurrency: self.concurrency,
            endpoints: endpoints.collect(),
        })
    }
}

impl From<&EndpointId> for Id {
    fn from(id: &EndpointId) -> Self {
        Self {
            address: match &id.address {
                EndpointAddr::Tcp(address) => Address::Tcp(*address),
                EndpointAddr::Unix(path) => Address::Unix(path.clone()),
            },
            instance: id.instance.map(|instance| instance.0),
            tier: id.tier,
        }
    }
}

impl From<&Id> for EndpointId {
    fn from(id: &Id) -> Self {
        Self {
            address: match &id.address {
                Address::Tcp(address) => EndpointAddr::Tcp(*address),
                Address::Unix(path) => EndpointAddr::Unix(path.clone()),
            },
            instance: id.instance.map(InstanceId),
            tier: id.tier,
        }
    }
}

impl ToHost {
    pub(super) fn new(desk: u32, news: &News, now: Instant) -> Self {
        let news = match news {
            News::Want { want, wanted } => Item::Want(
                *want,
                Asked {
                    bytes: wanted.bytes,
                    left: wanted.deadline.map(|d| d.saturating_duration_since(now)),
                    waited: wanted.waited,
                    sticky: wanted.sticky.map(StickyKey::to_bits),
                    passive: wanted.passive,
                    tried: wanted
                        .tried
                        .iter()
                        .map(|(id, refused)| (id.into(), *refused))
                        .collect(),
                },
            ),
            News::Withdraw { want } => Item::Withdraw(*want),
            News::Done { endpoint } => Item::Done(endpoint.into()),
            News::Report { endpoint, outcome } => Item::Report(endpoint.into(), (*outcome).into()),
        };
        Self { desk, news }
    }
}

impl Asked {
    pub(super) fn wanted(&self, now: Instant) -> Wanted {
        Wanted {
            bytes: self.bytes,
            deadline: self.left.map(|left| now + left),
            sticky: self.sticky.map(StickyKey::from_bits),
            passive: self.passive,
            waited: self.waited,
            tried: self
                .tried
                .iter()
                .map(|(id, refused)| (id.into(), *refused))
                .collect(),
        }
    }
}

impl From<Outcome> for Told {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Connected => Self::Connected,
            Outcome::ConnectFailed => Self::ConnectFailed,
            Outcome::Responded { status } => Self::Responded(status),
            Outcome::ResponseTimeout => Self::ResponseTimeout,
            Outcome::Broke => Self::Broke,
        }
    }
}

impl From<Told> for Outcome {
    fn from(told: Told) -> Self {
        match told {
            Told::Connected => Self::Connected,
            Told::ConnectFailed => Self::ConnectFailed,
            Told::Responded(status) => Self::Responded { status },
            Told::ResponseTimeout => Self::ResponseTimeout,
            Told::Broke => Self::Broke,
        }
    }
}

impl From<&Rejection> for Refusal {
    fn from(rejection: &Rejection) -> Self {
        match rejection {
            Rejection::QueueFull { retry_after } => Self::QueueFull(*retry_after),
            Rejection::QueueTimeout { retry_after } => Self::QueueTimeout(*retry_after),
            Rejection::ActivationFailed { failure, retry_after } => Self::ActivationFailed {
                failure: match failure.failure {
                    Failure::Failed => Cause::Failed,
                    Failure::TimedOut => Cause::TimedOut,
                    Failure::NotAllowed => Cause::NotAllowed,
                },
                detail: failure.detail.clone(),
                again: failure.retry_after,
                retry_after: *retry_after,
            },
            Rejection::NoEndpoints => Self::NoEndpoints,
            Rejection::Overloaded { retry_after } => Self::Overloaded(*retry_after),
            Rejection::Dormant { retry_after } => Self::Dormant(*retry_after),
            Rejection::Draining => Self::Draining,
            Rejection::Removed => Self::Removed,
            Rejection::DeadlineExceeded => Self::DeadlineExceeded,
        }
    }
}

impl From<Refusal> for Rejection {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::QueueFull(retry_after) => Self::QueueFull { retry_after },
            Refusal::QueueTimeout(retry_after) => Self::QueueTimeout { retry_after },
            Refusal::ActivationFailed {
                failure,
                detail,
                again,
                retry_after,
            } => Self::ActivationFailed {
                failure: Arc::new(ActivationFailure {
                    failure: match failure {
                        Cause::Failed => Failure::Failed,
                        Cause::TimedOut => Failure::TimedOut,
                        Cause::NotAllowed => Failure::NotAllowed,
                    },
                    detail,
                    retry_after: again,
                }),
                retry_after,
            },
            Refusal::NoEndpoints => Self::NoEndpoints,
            Refusal::Overloaded(retry_after) => Self::Overloaded { retry_after },
            Refusal::Dormant(retry_after) => Self::Dormant { retry_after },
            Refusal::Draining => Self::Draining,
            Refusal::Removed => Self::Removed,
            Refusal::DeadlineExceeded => Self::DeadlineExceeded,
        }
    }
}

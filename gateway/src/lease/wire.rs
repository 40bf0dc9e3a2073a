//! Messages about leases, as they are encoded: JSON, by serde. Times are durations: two processes have no instant in common.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sluice_model::{ActivationFailure, EndpointAddr, Failure, InstanceId};

use crate::throttle::{Ask, EndpointId, LeaseMessage, Outcome, Rejection};

/// A [`LeaseMessage`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Said {
    Ask {
        waiting: u32,
        passive: u32,
        oldest: Duration,
        youngest: Duration,
        received: u64,
    },
    Return {
        endpoint: Id,
        slots: u32,
        received: u64,
    },
    Report(Id, Told),
    Holding {
        received: u64,
        slots: Vec<(Id, u32)>,
    },
    Lease {
        endpoint: Id,
        slots: u32,
        number: u64,
    },
    Join(u64),
    Joined(u64),
    Revoke(Id),
    Waiting(Option<Duration>),
    Busy,
    Refuse(Refusal),
}

/// An [`EndpointId`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Id {
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

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Told {
    Connected,
    ConnectFailed,
    Responded(u16),
    ResponseTimeout,
    Broke,
}

/// A [`Rejection`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Refusal {
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
pub(crate) enum Cause {
    Failed,
    TimedOut,
    NotAllowed,
}

impl From<LeaseMessage> for Said {
    fn from(message: LeaseMessage) -> Self {
        match message {
            LeaseMessage::Ask(ask) => Self::Ask {
                waiting: ask.waiting,
                passive: ask.passive,
                oldest: ask.oldest,
                youngest: ask.youngest,
                received: ask.received,
            },
            LeaseMessage::Return {
                endpoint,
                slots,
                received,
            } => Self::Return {
                endpoint: (&endpoint).into(),
                slots,
                received,
            },
            LeaseMessage::Report { endpoint, outcome } => Self::Report((&endpoint).into(), outcome.into()),
            LeaseMessage::Holding { received, slots } => Self::Holding {
                received,
                slots: slots.iter().map(|(id, slots)| (id.into(), *slots)).collect(),
            },
            LeaseMessage::Lease {
                endpoint,
                slots,
                number,
            } => Self::Lease {
                endpoint: (&endpoint).into(),
                slots,
                number,
            },
            LeaseMessage::Join { epoch } => Self::Join(epoch),
            LeaseMessage::Joined { epoch } => Self::Joined(epoch),
            LeaseMessage::Revoke { endpoint } => Self::Revoke((&endpoint).into()),
            LeaseMessage::Waiting { oldest } => Self::Waiting(oldest),
            LeaseMessage::Busy => Self::Busy,
            LeaseMessage::Refuse(rejection) => Self::Refuse((&rejection).into()),
        }
    }
}

impl From<Said> for LeaseMessage {
    fn from(said: Said) -> Self {
        match said {
            Said::Ask {
                waiting,
                passive,
                oldest,
                youngest,
                received,
            } => Self::Ask(Ask {
                waiting,
                passive,
                oldest,
                youngest,
                received,
            }),
            Said::Return {
                endpoint,
                slots,
                received,
            } => Self::Return {
                endpoint: (&endpoint).into(),
                slots,
                received,
            },
            Said::Report(endpoint, outcome) => Self::Report {
                endpoint: (&endpoint).into(),
                outcome: outcome.into(),
            },
            Said::Holding { received, slots } => Self::Holding {
                received,
                slots: slots.iter().map(|(id, slots)| (id.into(), *slots)).collect(),
            },
            Said::Lease {
                endpoint,
                slots,
                number,
            } => Self::Lease {
                endpoint: (&endpoint).into(),
                slots,
                number,
            },
            Said::Join(epoch) => Self::Join { epoch },
            Said::Joined(epoch) => Self::Joined { epoch },
            Said::Revoke(endpoint) => Self::Revoke {
                endpoint: (&endpoint).into(),
            },
            Said::Waiting(oldest) => Self::Waiting { oldest },
            Said::Busy => Self::Busy,
            Said::Refuse(refusal) => Self::Refuse(refusal.into()),
        }
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

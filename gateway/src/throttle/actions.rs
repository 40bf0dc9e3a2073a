//! Actions that the core decided on, for the shell to carry out once the lock is free.

use std::sync::Arc;
use std::time::Duration;

use sluice_model::{ActivationFailure, InstanceId};

use super::accounting::QueueKey;
use super::arrival::QueueTicket;
use super::budget::Reservation;
use super::endpoint::EndpointState;
use super::rejection::Rejection;

/// A slot of one endpoint that is taken for a request.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) endpoint: Arc<EndpointState>,
    /// Index of the endpoint in the core; valid until the slot is given back.
    pub(crate) slot: u32,
    /// Readiness epoch of the endpoint at the grant.
    pub(crate) readiness_epoch: u64,
    pub(crate) ticket: QueueTicket,
}

/// The core's decision on an arrival; the shell makes an [`Admission`](super::Admission) of it.
#[derive(Debug)]
pub(crate) enum CoreAdmission {
    Granted(Grant),
    Queued {
        seq: u64,
    },
    Rejected(Rejection),
    /// Boxed: the warm path moves admissions around and never has this one.
    NeedsEviction(Box<NeedsEviction>),
}

/// The gateway-wide budget is full and a fair share is due: let the throttler of `victim` evict a waiter into
/// `reservation`, then [`resume`](super::core::Core::resume) with it.
#[derive(Debug)]
pub(crate) struct NeedsEviction {
    pub(crate) ticket: QueueTicket,
    pub(crate) reservation: Reservation,
    pub(crate) victim: QueueKey,
}

/// A waiter that was resolved.
#[derive(Debug)]
pub(crate) struct Resolved<W> {
    pub(crate) waiter: W,
    pub(crate) waited: Duration,
    pub(crate) verdict: Result<Grant, Rejection>,
}

/// Why an endpoint was ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EjectCause {
    Refused,
    Failures,
    Probe,
}

impl EjectCause {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "a connection to it failed",
            Self::Failures => "its answers failed, one after the other",
            Self::Probe => "its readiness probe failed",
        }
    }
}

/// A notification for the control plane, metrics or the log.
#[derive(Debug, Clone)]
pub(crate) enum Signal {
    /// A tier is to be started.
    Activate {
        tier: u8,
    },
    Ready {
        tier: u8,
        instance: InstanceId,
    },
    Drained {
        tier: u8,
        instance: InstanceId,
    },
    /// The activation of a tier succeeded.
    Activated {
        tier: u8,
        took: Duration,
    },
    /// An endpoint was ejected.
    Ejected {
        endpoint: Arc<EndpointState>,
        cause: EjectCause,
        /// The longest duration of the ejection.
        time: Duration,
    },
    /// An ejected endpoint is used again.
    Reinstated {
        endpoint: Arc<EndpointState>,
        /// A probe proved the endpoint ready; else it is only tried.
        proven: bool,
    },
    /// The activation failed.
    ActivationFailed {
        took: Duration,
        failure: Arc<ActivationFailure>,
    },
}

/// Actions that the shell carries out after an event. Empty, and without an allocation, on the warm path.
#[must_use = "waiters and the control plane wait for these"]
#[derive(Debug)]
pub(crate) struct Actions<W> {
    pub(crate) resolved: Vec<Resolved<W>>,
    pub(crate) signals: Vec<Signal>,
    /// Probe tasks have to re-evaluate: probe at once, or end.
    pub(crate) wake_probes: bool,
}

impl<W> Default for Actions<W> {
    fn default() -> Self {
        Self {
            resolved: Vec::new(),
            signals: Vec::new(),
            wake_probes: false,
        }
    }
}

//! What the core decided, for the shell to carry out once the lock is free.

use std::sync::Arc;
use std::time::Duration;

use sluice_model::{ActivationFailure, InstanceId};

use super::accounting::QueueKey;
use super::arrival::QueueTicket;
use super::budget::Reservation;
use super::endpoint::EndpointState;
use super::rejection::Rejection;

/// One slot of one endpoint, taken.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) endpoint: Arc<EndpointState>,
    /// Where the core keeps the endpoint; valid until the slot is given back.
    pub(crate) slot: u32,
    /// Which readiness of the endpoint this is.
    pub(crate) readiness_epoch: u64,
    pub(crate) ticket: QueueTicket,
}

/// The answer to an arrival.
#[derive(Debug)]
pub(crate) enum CoreAdmission {
    Granted(Grant),
    Queued {
        seq: u64,
    },
    Rejected(Rejection),
    /// Boxed: the warm path moves verdicts around and never has this one.
    NeedsEviction(Box<NeedsEviction>),
}

/// The gateway is full, and somebody has to give way: let the owner of `victim` make `room`, then
/// [`resume`](super::core::Core::resume) with it.
#[derive(Debug)]
pub(crate) struct NeedsEviction {
    pub(crate) ticket: QueueTicket,
    pub(crate) reservation: Reservation,
    pub(crate) victim: QueueKey,
}

/// Somebody who waited and does not any more.
#[derive(Debug)]
pub(crate) struct Resolved<W> {
    pub(crate) waiter: W,
    pub(crate) waited: Duration,
    pub(crate) verdict: Result<Grant, Rejection>,
}

/// Why an endpoint was set aside.
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

/// News for the control plane, for metrics and the log.
#[derive(Debug, Clone)]
pub(crate) enum Signal {
    Activate,
    Ready(InstanceId),
    Drained(InstanceId),
    /// What was asked for is there.
    Activated {
        took: Duration,
    },
    /// An endpoint was set aside.
    Ejected {
        endpoint: Arc<EndpointState>,
        cause: EjectCause,
        /// For how long at most.
        time: Duration,
    },
    /// An endpoint that was set aside is used again.
    Reinstated {
        endpoint: Arc<EndpointState>,
        /// A probe said that it is well; else it is only tried.
        proven: bool,
    },
    /// What was asked for will not be there.
    ActivationFailed {
        took: Duration,
        failure: Arc<ActivationFailure>,
    },
}

/// Empty, and without an allocation, on the warm path.
#[must_use = "waiters and the control plane wait for these"]
#[derive(Debug)]
pub(crate) struct Actions<W> {
    pub(crate) resolved: Vec<Resolved<W>>,
    pub(crate) signals: Vec<Signal>,
    /// Probes have a reason to look at once, or to end.
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

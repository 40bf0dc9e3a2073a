//! Why a request gets no slot.

use std::sync::Arc;
use std::time::Duration;

use sluice_model::{ActivationFailure, Failure};
use thiserror::Error;

/// Why a request gets no slot, in the terms of the user contract.
#[derive(Debug, Clone, Error)]
pub enum Rejection {
    /// No place in the revision's queue (`queue_full`).
    #[error("the queue is full")]
    QueueFull {
        /// When another try may do better.
        retry_after: Duration,
    },
    /// No slot in time at a revision that runs (`queue_timeout`).
    #[error("no slot became free in time")]
    QueueTimeout {
        /// When another try may do better.
        retry_after: Duration,
    },
    /// It cannot start, did not in time, or must not (`activation_failed`, `activation_timeout`,
    /// `no_endpoints`): [`ActivationFailure::failure`] says which.
    #[error("activation failed: {}", .failure.detail)]
    ActivationFailed {
        /// What the control plane reported.
        failure: Arc<ActivationFailure>,
        /// When starting is tried again at the earliest.
        retry_after: Duration,
    },
    /// No endpoint, and nothing that could start one (`no_endpoints`). After a failed attempt: no
    /// other endpoint; the attempt's own failure is the better answer then.
    #[error("there is no endpoint")]
    NoEndpoints,
    /// The queues of all revisions together are full (`overloaded`).
    #[error("the gateway's queues are full")]
    Overloaded {
        /// When another try may do better.
        retry_after: Duration,
    },
    /// The gateway goes away (`draining`).
    #[error("the gateway is draining")]
    Draining,
    /// The revision was removed. Whoever holds an old table may look again in the new one.
    #[error("the revision was removed")]
    Removed,
    /// The request's own deadline is over.
    #[error("the request's deadline is over")]
    DeadlineExceeded,
}

impl Rejection {
    /// When another try may do better, where waiting helps; at least a second.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::QueueFull { retry_after }
            | Self::QueueTimeout { retry_after }
            | Self::Overloaded { retry_after }
            | Self::ActivationFailed { retry_after, .. } => Some(*retry_after),
            Self::NoEndpoints | Self::Draining | Self::Removed | Self::DeadlineExceeded => None,
        }
    }

    /// The activation did not come to an end in the time the waiter had.
    pub(crate) fn not_started_in_time(waited: Duration, retry_after: Duration) -> Self {
        Self::ActivationFailed {
            failure: Arc::new(ActivationFailure {
                failure: Failure::TimedOut,
                detail: format!("nothing was ready after {waited:.1?}"),
                retry_after,
            }),
            retry_after,
        }
    }
}

/// Why a throttler is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// The revision is no longer configured. Nobody waits any more, but a request that read the
    /// table before the swap still gets a free slot: a swap fails no request.
    Removed,
    /// The gateway's drain is over: nobody gets anything any more.
    Draining,
}

impl Closing {
    pub(crate) fn rejection(self) -> Rejection {
        match self {
            Self::Removed => Rejection::Removed,
            Self::Draining => Rejection::Draining,
        }
    }
}

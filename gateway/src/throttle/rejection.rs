//! Reasons why a request gets no slot.

use std::sync::Arc;
use std::time::Duration;

use sluice_model::{ActivationFailure, Failure};
use thiserror::Error;

/// Reasons why a request gets no slot, in the terms of the user contract.
#[derive(Debug, Clone, Error)]
pub enum Rejection {
    /// The revision's queue is full (`queue_full`).
    #[error("the queue is full")]
    QueueFull {
        /// `Retry-After`.
        retry_after: Duration,
    },
    /// No slot became free in time at a running revision (`queue_timeout`).
    #[error("no slot became free in time")]
    QueueTimeout {
        /// `Retry-After`.
        retry_after: Duration,
    },
    /// The revision cannot start, did not in time, or must not (`activation_failed`, `activation_timeout`,
    /// `no_endpoints`): [`ActivationFailure::failure`] says which.
    #[error("activation failed: {}", .failure.detail)]
    ActivationFailed {
        /// The control plane's report.
        failure: Arc<ActivationFailure>,
        /// When the next start is tried at the earliest.
        retry_after: Duration,
    },
    /// No endpoint, and no scaler that could start one (`no_endpoints`). After a failed attempt: no other
    /// endpoint; the attempt's own failure is the better response then.
    #[error("there is no endpoint")]
    NoEndpoints,
    /// The gateway-wide queue budget is exhausted (`overloaded`).
    #[error("the gateway's queues are full")]
    Overloaded {
        /// `Retry-After`.
        retry_after: Duration,
    },
    /// A passive request found no ready endpoint, and starts none (`dormant`).
    #[error("nothing is ready, and this request starts nothing")]
    Dormant {
        /// `Retry-After`.
        retry_after: Duration,
    },
    /// The gateway is draining (`draining`).
    #[error("the gateway is draining")]
    Draining,
    /// The revision was removed. A caller with an old table may look the revision up again in the new one.
    #[error("the revision was removed")]
    Removed,
    /// The request's own deadline is over.
    #[error("the request's deadline is over")]
    DeadlineExceeded,
}

impl Rejection {
    /// `Retry-After`, where waiting helps; at least one second.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::QueueFull { retry_after }
            | Self::QueueTimeout { retry_after }
            | Self::Overloaded { retry_after }
            | Self::Dormant { retry_after }
            | Self::ActivationFailed { retry_after, .. } => Some(*retry_after),
            Self::NoEndpoints | Self::Draining | Self::Removed | Self::DeadlineExceeded => None,
        }
    }

    /// A waiter's time was over before its activation ended.
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
    /// The revision is no longer configured. No request waits any more, but a request that read the table
    /// before the swap still gets a free slot: a swap fails no request.
    Removed,
    /// The gateway's drain is over: every request is rejected.
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

//! Reasons: why the gateway responded by itself, as one closed list for responses, metrics and logs.

use std::fmt;

use http::StatusCode;

/// Why a request did not simply get its backend's response.
///
/// [`Reason::as_str`] is the value of the `x-sluice-reason` header, of the metric label and of the log field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The request cannot be routed or framed safely.
    BadRequest,
    /// Host or path unknown on this listener.
    NoRoute,
    /// The client did not finish its request in time.
    RequestTimeout,
    /// The connection's certificate is not for this host.
    Misdirected,
    /// The head is over the configured limit.
    HeadersTooLarge,
    /// The target is over the configured limit.
    UriTooLong,
    /// The body is over the configured limit.
    BodyTooLarge,
    /// No endpoint could be reached.
    ConnectFailed,
    /// The backend's connection broke before its response.
    UpstreamError,
    /// No place in the queue, cold or warm.
    QueueFull,
    /// No slot in time, at a revision that is running.
    QueueTimeout,
    /// No instance can start.
    ActivationFailed,
    /// No instance started in time.
    ActivationTimeout,
    /// The revision has no endpoint, and nothing may be started.
    NoEndpoints,
    /// A waiting page was shown while an instance starts.
    Starting,
    /// Nothing is ready, and this request starts nothing (`noWake`).
    Dormant,
    /// The gateway's own bounds are reached.
    Overloaded,
    /// Still waiting when the drain's deadline passed.
    Draining,
    /// The request passed gateways of this kind more often than `limits.maxHops` (a routing loop).
    Loop,
    /// A timer of the revision expired: [`RequestRecord::timer`](super::RequestRecord::timer).
    Timeout,
    /// The client left. Log and metrics only.
    ClientGone,
    /// The backend's connection broke after the response head was passed on. Log and metrics only.
    UpstreamReset,
}

/// A gRPC status code; the discriminant is its number on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum GrpcStatus {
    /// CANCELLED
    Cancelled = 1,
    /// INVALID_ARGUMENT
    InvalidArgument = 3,
    /// DEADLINE_EXCEEDED
    DeadlineExceeded = 4,
    /// RESOURCE_EXHAUSTED
    ResourceExhausted = 8,
    /// FAILED_PRECONDITION
    FailedPrecondition = 9,
    /// UNIMPLEMENTED
    Unimplemented = 12,
    /// UNAVAILABLE
    Unavailable = 14,
}

impl GrpcStatus {
    /// The value of `grpc-status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cancelled => "1",
            Self::InvalidArgument => "3",
            Self::DeadlineExceeded => "4",
            Self::ResourceExhausted => "8",
            Self::FailedPrecondition => "9",
            Self::Unimplemented => "12",
            Self::Unavailable => "14",
        }
    }
}

impl Reason {
    /// Every reason, in the order of the contract; `reason as usize` is its index here.
    pub const ALL: [Self; 22] = [
        Self::BadRequest,
        Self::NoRoute,
        Self::RequestTimeout,
        Self::Misdirected,
        Self::HeadersTooLarge,
        Self::UriTooLong,
        Self::BodyTooLarge,
        Self::ConnectFailed,
        Self::UpstreamError,
        Self::QueueFull,
        Self::QueueTimeout,
        Self::ActivationFailed,
        Self::ActivationTimeout,
        Self::NoEndpoints,
        Self::Starting,
        Self::Dormant,
        Self::Overloaded,
        Self::Draining,
        Self::Loop,
        Self::Timeout,
        Self::ClientGone,
        Self::UpstreamReset,
    ];

    /// The name in header, label and log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::NoRoute => "no_route",
            Self::RequestTimeout => "request_timeout",
            Self::Misdirected => "misdirected",
            Self::HeadersTooLarge => "headers_too_large",
            Self::UriTooLong => "uri_too_long",
            Self::BodyTooLarge => "body_too_large",
            Self::ConnectFailed => "connect_failed",
            Self::UpstreamError => "upstream_error",
            Self::QueueFull => "queue_full",
            Self::QueueTimeout => "queue_timeout",
            Self::ActivationFailed => "activation_failed",
            Self::ActivationTimeout => "activation_timeout",
            Self::NoEndpoints => "no_endpoints",
            Self::Starting => "starting",
            Self::Dormant => "dormant",
            Self::Overloaded => "overloaded",
            Self::Draining => "draining",
            Self::Loop => "loop",
            Self::Timeout => "timeout",
            Self::ClientGone => "client_gone",
            Self::UpstreamReset => "upstream_reset",
        }
    }

    /// The HTTP status of the response. Those of the last two reasons are never sent: the client has left, or
    /// the head was already sent.
    pub fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::UriTooLong => StatusCode::URI_TOO_LONG,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::ConnectFailed | Self::UpstreamError | Self::UpstreamReset => StatusCode::BAD_GATEWAY,
            Self::QueueFull
            | Self::QueueTimeout
            | Self::ActivationFailed
            | Self::ActivationTimeout
            | Self::NoEndpoints
            | Self::Starting
            | Self::Dormant
            | Self::Overloaded
            | Self::Draining => StatusCode::SERVICE_UNAVAILABLE,
            Self::Loop => StatusCode::LOOP_DETECTED,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::ClientGone => StatusCode::from_u16(499).expect("499 is a status"),
        }
    }

    /// The gRPC status of the response. Retry policies of gRPC clients act on `UNAVAILABLE`, so exactly those
    /// reasons have it after which another attempt may succeed.
    pub fn grpc_status(self) -> GrpcStatus {
        match self {
            Self::BadRequest => GrpcStatus::InvalidArgument,
            Self::NoRoute => GrpcStatus::Unimplemented,
            Self::RequestTimeout | Self::Timeout => GrpcStatus::DeadlineExceeded,
            Self::HeadersTooLarge | Self::UriTooLong | Self::BodyTooLarge => GrpcStatus::ResourceExhausted,
            // A new connection may present another certificate.
            Self::Misdirected
            | Self::ConnectFailed
            | Self::UpstreamError
            | Self::QueueFull
            | Self::QueueTimeout
            | Self::ActivationFailed
            | Self::ActivationTimeout
            | Self::NoEndpoints
            | Self::Starting
            | Self::Dormant
            | Self::Overloaded
            | Self::Draining
            | Self::UpstreamReset => GrpcStatus::Unavailable,
            // A retry loops again.
            Self::Loop => GrpcStatus::FailedPrecondition,
            Self::ClientGone => GrpcStatus::Cancelled,
        }
    }

    /// Whether a later retry may succeed: the response has a `Retry-After` where a time is known.
    pub fn retryable(self) -> bool {
        match self {
            Self::QueueFull
            | Self::QueueTimeout
            | Self::ActivationFailed
            | Self::ActivationTimeout
            | Self::NoEndpoints
            | Self::Starting
            | Self::Dormant
            | Self::Overloaded
            | Self::Draining => true,
            Self::BadRequest
            | Self::NoRoute
            | Self::RequestTimeout
            | Self::Misdirected
            | Self::HeadersTooLarge
            | Self::UriTooLong
            | Self::BodyTooLarge
            | Self::ConnectFailed
            | Self::UpstreamError
            | Self::Loop
            | Self::Timeout
            | Self::ClientGone
            | Self::UpstreamReset => false,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_the_contracts() {
        let want = [
            ("bad_request", 400),
            ("no_route", 404),
            ("request_timeout", 408),
            ("misdirected", 421),
            ("headers_too_large", 431),
            ("uri_too_long", 414),
            ("body_too_large", 413),
            ("connect_failed", 502),
            ("upstream_error", 502),
            ("queue_full", 503),
            ("queue_timeout", 503),
            ("activation_failed", 503),
            ("activation_timeout", 503),
            ("no_endpoints", 503),
            ("starting", 503),
            ("dormant", 503),
            ("overloaded", 503),
            ("draining", 503),
            ("loop", 508),
            ("timeout", 504),
            ("client_gone", 499),
            ("upstream_reset", 502),
        ];
        let have = Reason::ALL.map(|r| (r.as_str(), r.status().as_u16()));
        assert_eq!(have, want);
    }

    #[test]
    fn the_handbook_says_the_same() {
        let handbook = include_str!("../../../docs/operating.md");
        for reason in Reason::ALL {
            let row = match reason {
                Reason::ClientGone => "| `client_gone` | 499 | | ".to_owned(),
                Reason::UpstreamReset => "| `upstream_reset` | | | ".to_owned(),
                sent => {
                    let (status, grpc) = (sent.status().as_u16(), sent.grpc_status().as_str());
                    format!("| `{sent}` | {status} | {grpc} | ")
                }
            };
            assert!(handbook.contains(&row), "no {row}");
        }
    }

    #[test]
    fn a_reason_is_its_own_index() {
        for (i, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, i, "{reason}");
        }
    }

    #[test]
    fn only_503_is_worth_waiting_for() {
        for reason in Reason::ALL {
            assert_eq!(reason.retryable(), reason.status() == 503, "{reason}");
        }
    }

    #[test]
    fn grpc_numbers_match_their_text() {
        for reason in Reason::ALL {
            let status = reason.grpc_status();
            assert_eq!(status.as_str(), (status as u8).to_string());
        }
        assert_eq!(Reason::NoRoute.grpc_status().as_str(), "12");
        assert_eq!(Reason::QueueFull.grpc_status().as_str(), "14");
    }
}

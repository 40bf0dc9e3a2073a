//! The record of a finished request.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use sluice_model::{EndpointAddr, Generation, RevisionId, ServiceId};

use super::phases::Phases;
use super::reason::Reason;

/// The client's protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestProtocol {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
    /// HTTP/2, with or without TLS.
    Http2,
    /// HTTP/1.1 until the 101, a WebSocket (or another upgrade) after it.
    Upgraded,
}

impl RequestProtocol {
    /// The value in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
            Self::Upgraded => "upgrade",
        }
    }
}

/// The timers of a revision, as a timeout names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// Of the whole request.
    Total,
    /// Until the response head.
    Start,
    /// Between bytes.
    Idle,
    /// Of the life of a stream.
    Age,
}

impl Timer {
    /// The value in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Start => "start",
            Self::Idle => "idle",
            Self::Age => "age",
        }
    }
}

/// The fields of one finished request that the access log and the metrics need.
///
/// A record borrows, so nothing is copied: it is built and used within one call at the end of a request. Fields
/// that a client chose are bytes, because a client may send any.
#[derive(Debug, Clone)]
pub struct RequestRecord<'a> {
    /// When the request head was complete.
    pub time: SystemTime,
    /// The `X-Request-Id` that the backend saw; the client's own where the client sent one.
    pub request_id: &'a [u8],
    /// The client's address: from the PROXY header, else the socket's.
    pub client: Option<IpAddr>,
    /// The method; empty when the request could not be read that far; so are the next two fields.
    pub method: &'a [u8],
    /// The host as sent.
    pub host: &'a [u8],
    /// The path as sent; a query is cut off before it is logged, since tokens travel in queries.
    pub path: &'a [u8],
    /// The client's protocol.
    pub protocol: RequestProtocol,
    /// The status of the response; `None` when no response head was sent.
    pub status: Option<u16>,
    /// The status that the response would have had, had a stream not begun with 200 while the request was held.
    pub final_status: Option<u16>,
    /// Why the response is not simply the backend's.
    pub reason: Option<Reason>,
    /// The timer behind [`Reason::Timeout`].
    pub timer: Option<Timer>,
    /// Details to the reason, in one line: which limit, which I/O error.
    pub detail: Option<&'a str>,
    /// The generation of the Snapshot that routed the request.
    pub generation: Generation,
    /// The service, if routing got that far.
    pub service: Option<&'a ServiceId>,
    /// The revision, if routing got that far.
    pub revision: Option<&'a RevisionId>,
    /// The endpoint of the last attempt.
    pub endpoint: Option<&'a EndpointAddr>,
    /// Bytes of the request body taken from the client.
    pub bytes_in: u64,
    /// Bytes of the response body given to the client.
    pub bytes_out: u64,
    /// From the complete head to the last byte.
    pub duration: Duration,
    /// From the complete head to the response head; `None` when none was sent.
    pub first_byte: Option<Duration>,
    /// Time spent waiting for a Permit; `None` when there was one at once.
    pub queue: Option<Duration>,
    /// Where the time until the response head went, for a request that waited.
    pub phases: Option<&'a Phases>,
    /// From the start of the last attempt to its response head.
    pub upstream: Option<Duration>,
    /// How many endpoints were tried.
    pub attempts: u32,
    /// `User-Agent` as sent.
    pub user_agent: Option<&'a [u8]>,
}

impl RequestRecord<'_> {
    /// The `code` label and the `status` field: the status of the response; 499 when the client left before
    /// anything was sent; 0 (rendered `000`) when the connection ended without a response for any
    /// other reason.
    pub fn code(&self) -> u16 {
        match (self.status, self.reason) {
            (Some(status), _) => status,
            (None, Some(Reason::ClientGone)) => 499,
            (None, _) => 0,
        }
    }

    /// The path without its query.
    pub(crate) fn path_only(&self) -> &[u8] {
        let end = self
            .path
            .iter()
            .position(|&b| b == b'?')
            .unwrap_or(self.path.len());
        &self.path[..end]
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A record of an unremarkable request, to vary in tests.
    pub(crate) fn plain() -> RequestRecord<'static> {
        RequestRecord {
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
            request_id: b"0190",
            client: Some(IpAddr::from([127, 0, 0, 1])),
            method: b"GET",
            host: b"greeter.default.localhost",
            path: b"/hello?token=secret",
            protocol: RequestProtocol::Http11,
            status: Some(200),
            final_status: None,
            reason: None,
            timer: None,
            detail: None,
            generation: Generation(1),
            service: None,
            revision: None,
            endpoint: None,
            bytes_in: 0,
            bytes_out: 12,
            duration: Duration::from_micros(1_234),
            first_byte: None,
            queue: None,
            phases: None,
            upstream: None,
            attempts: 1,
            user_agent: None,
        }
    }

    #[test]
    fn what_got_no_answer_has_a_code_of_its_own() {
        let gone = RequestRecord {
            status: None,
            reason: Some(Reason::ClientGone),
            ..plain()
        };
        assert_eq!(gone.code(), 499);
        let reset = RequestRecord {
            status: None,
            reason: None,
            ..plain()
        };
        assert_eq!(reset.code(), 0);
        // A response head that was sent counts, whatever happened later.
        let late = RequestRecord {
            reason: Some(Reason::ClientGone),
            ..plain()
        };
        assert_eq!(late.code(), 200);
    }
}

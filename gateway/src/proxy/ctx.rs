//! What is kept of a request between Pingora's hooks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Version;
use pingora_http::RequestHeader;
use pingora_proxy::Session;
use sluice_model::RequestView;

use super::heads::View;
use super::upstream::Dialer;
use crate::edge::ConnectionInfo;
use crate::observe::{Reason, RequestProtocol};
use crate::request::{Ending, RequestCtx};

/// How long an upload may stall once its answer is complete: it still holds its Permit.
const AFTER_ANSWER: Duration = Duration::from_secs(2);

/// How long it may go on, and with how many bytes. Generous, because a client that is cut off
/// before it has read the answer may lose it.
const AFTER_ANSWER_TOTAL: Duration = Duration::from_secs(10);
pub(super) const AFTER_ANSWER_BYTES: u64 = 64 << 20;

/// Interim responses that are passed on; nobody sends more than one or two, and Go's client, the
/// strictest there is, takes five.
pub(super) const MAX_INTERIM: u32 = 16;

/// A request as Pingora's hooks share it.
pub(super) struct Ctx {
    pub(super) request: RequestCtx,
    pub(super) info: Option<Arc<ConnectionInfo>>,
    /// Of the head that was sent.
    pub(super) status: Option<u16>,
    pub(super) body_in: u64,
    /// More body came than is allowed.
    pub(super) body_too_large: bool,
    /// Fresh connections that broke after the request was sent.
    pub(super) broken: u32,
    /// What connects, or connected, the last attempt if no connection was pooled.
    pub(super) dialer: Option<Arc<Dialer>>,
    /// Interim responses so far.
    pub(super) interim: u32,
    /// Bytes of the request that came after its answer was complete; `None` before.
    pub(super) late_bytes: Option<u64>,
    /// What the log needs, should the request be dropped in that state.
    pub(super) late: Option<Box<Late>>,
}

/// An [`Ending`] of its own: the session is gone when it is needed.
pub(super) struct Late {
    head: RequestHeader,
    bytes_out: u64,
}

impl Drop for Ctx {
    fn drop(&mut self) {
        if let Some(late) = self.late.take() {
            self.request.reason = Some(Reason::RequestTimeout);
            self.finish(&late.head, late.bytes_out);
        }
    }
}

impl Ctx {
    pub(super) fn new(request: RequestCtx) -> Self {
        Self {
            request,
            info: None,
            status: None,
            body_in: 0,
            body_too_large: false,
            broken: 0,
            dialer: None,
            interim: 0,
            late_bytes: None,
            late: None,
        }
    }

    /// Whether the last attempt had a probe's connection: its end says as little of the endpoint
    /// as that of a pooled one.
    pub(super) fn was_spare(&self) -> bool {
        self.dialer.as_ref().is_some_and(|dialer| dialer.was_spare())
    }

    /// The answer is complete. Pingora reads on until the upload ends, and the Permit is held:
    /// that must end soon.
    pub(super) fn answered(&mut self, session: &mut Session, last: usize) {
        if self.late_bytes.is_some() {
            return;
        }
        self.late_bytes = Some(0);
        if session.as_mut().is_body_done() {
            return self.request.timers.stop();
        }
        self.request.timers.answered(AFTER_ANSWER_TOTAL, Instant::now());
        session.set_read_timeout(Some(AFTER_ANSWER));
        self.late = Some(Box::new(Late {
            head: session.req_header().clone(),
            bytes_out: (session.body_bytes_sent() + last) as u64,
        }));
    }

    /// Logs and measures the request.
    pub(super) fn finish(&mut self, header: &RequestHeader, bytes_out: u64) {
        let view = View::new(header);
        let protocol = match header.version {
            Version::HTTP_10 => RequestProtocol::Http10,
            Version::HTTP_2 => RequestProtocol::Http2,
            _ => RequestProtocol::Http11,
        };
        let ending = Ending {
            method: header.method.as_str().as_bytes(),
            host: view.host().unwrap_or_default(),
            target: header.raw_path(),
            user_agent: view.header("user-agent"),
            protocol,
            status: self.status,
            bytes_in: self.body_in,
            bytes_out,
        };
        self.request.finish(&ending, Instant::now());
    }
}

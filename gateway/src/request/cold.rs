//! Cold answers: which requests get a waiting page or a stream, and which are passive.

use std::net::IpAddr;
use std::sync::Arc;

use sluice_model::{ColdAnswer, ColdStream, NoWake, RequestView, WaitingPage};

use super::accept::names_media_type;
use super::client_address::client_behind_proxies;
use super::ctx::{RequestCtx, Routed};
use super::headers::Fields;
use super::waiting_page::waiting_page;
use crate::local_response::LocalResponse;
use crate::throttle::clock;

/// Whether a waiting page may be the response: a browser's GET without a body.
pub fn takes_page(head: &(impl RequestView + Fields), bodiless: bool) -> bool {
    bodiless && head.method() == "GET" && names_media_type(head, "text/html")
}

/// Whether the response may be a stream that begins before the backend's: the client names the type, and waits neither
/// for an interim response nor for gRPC's trailers.
pub fn takes_stream(head: &(impl RequestView + Fields), stream: &ColdStream) -> bool {
    let grpc = head
        .header("content-type")
        .is_some_and(|kind| kind.len() >= 16 && kind[..16].eq_ignore_ascii_case(b"application/grpc"));
    !grpc
        && head.method() != "HEAD"
        && head.header("expect").is_none()
        && names_media_type(head, stream.format.media_type())
}

impl Routed {
    /// The cold answer of the route, or of the service; `None` where requests are held.
    fn cold(&self) -> Option<&ColdAnswer> {
        let own = self.route().and_then(|route| route.cold.as_deref());
        let answer = own.or(self.service.cold.as_deref())?;
        (*answer != ColdAnswer::Hold).then_some(answer)
    }
}

impl RequestCtx {
    /// The stream that a held request may get.
    pub fn cold_stream(&self) -> Option<ColdStream> {
        match self.routed.as_ref()?.cold()? {
            ColdAnswer::Stream(stream) => Some(*stream),
            ColdAnswer::Hold | ColdAnswer::Page(_) => None,
        }
    }

    /// The waiting page that a browser may get.
    pub fn page(&self) -> Option<&WaitingPage> {
        match self.routed.as_ref()?.cold()? {
            ColdAnswer::Page(page) => Some(page),
            ColdAnswer::Hold | ColdAnswer::Stream(_) => None,
        }
    }

    /// The waiting page in place of admission; `None` where an endpoint is ready, or where waiting is no matter of a
    /// start. A page is no waiter; see [`RevisionThrottler::visit`](crate::throttle::RevisionThrottler::visit).
    pub fn visit(&self) -> Option<LocalResponse> {
        let (routed, page) = self.routed.as_ref().zip(self.page())?;
        let state = routed.live.throttler().visit(page.keep(), clock())?;
        let templates = routed.pages.as_ref().zip(page.file.as_deref());
        let template = templates.and_then(|(pages, file)| pages.get(file));
        let (reason, page) = waiting_page(page, template.as_deref(), &state, self.settings().error_detail);
        Some(LocalResponse::Page(reason, page))
    }

    /// Whether the request is passive.
    pub fn is_passive(&self) -> bool {
        self.passive
    }

    /// The rules for passive requests, if the service has any.
    pub fn no_wake(&self) -> Option<&Arc<NoWake>> {
        self.routed.as_ref()?.service.no_wake.as_ref()
    }

    /// Decides by the service's rules whether the request is passive. `peer` is the connection's client.
    pub fn note_passive(&mut self, head: &(impl RequestView + Fields), peer: IpAddr) {
        let settings = self.settings();
        self.passive = self.no_wake().is_some_and(|rules| {
            let client = client_behind_proxies(head, peer, |address| settings.trusts(address));
            rules.matches(head, client)
        });
    }
}

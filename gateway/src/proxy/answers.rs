//! What the HTTP adapter says by itself: refusals, before a request is sent on and after what went
//! wrong on the way.

use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use pingora_core::protocols::http::server::Session as HttpSession;
use pingora_error::{Error, ErrorSource, ErrorType, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::ctx::Ctx;
use super::heads::View;
use crate::answer::{Answer, Rendered};
use crate::edge::ConnectionInfo;
use crate::observe::Reason;
use crate::request::{Incoming, Refusal, RequestCtx};

/// More body than `limits.maxBodyBytes`.
pub(super) fn body_too_large() -> Answer {
    Answer::new(Reason::BodyTooLarge, "the request body is larger than allowed")
}

/// Answers a request that is not sent on. One whose client left is only noted.
pub(super) async fn refuse(session: &mut Session, ctx: &mut Ctx, refusal: Refusal) -> Result<()> {
    if let Refusal::Answer(Answer {
        reason: Reason::ClientGone,
        ..
    }) = refusal
    {
        ctx.request.reason = Some(Reason::ClientGone);
        session.set_keepalive(None);
        return Ok(());
    }
    let rendered = ctx.request.refuse(&refusal);
    ctx.status = Some(rendered.status);
    if ctx.request.draining() {
        session.set_keepalive(None);
    }
    write_rendered(session.as_downstream_mut(), rendered).await
}

/// What an error before the response head is answered with; `None` when nobody listens.
pub(super) fn answer_for(session: &Session, e: &Error, ctx: &mut Ctx) -> Option<Answer> {
    if ctx.body_too_large {
        return Some(body_too_large());
    }
    if ctx.request.timers.body_late() {
        return Some(Answer::new(
            Reason::RequestTimeout,
            "the request body did not come in time",
        ));
    }
    if ctx.request.timers.fired().is_some() {
        return Some(Answer::new(Reason::Timeout, "the backend took too long"));
    }
    if ctx.request.timers.was_cut() || ctx.request.timers.was_evicted() {
        return Some(Answer::new(Reason::Draining, "what served this had to go"));
    }
    if *e.esource() == ErrorSource::Downstream {
        if let Some(fault) = super::body_fault(session) {
            let answer = Answer::new(fault.reason(), fault.to_string());
            return (fault.reason() != Reason::ClientGone).then_some(answer);
        }
        return match e.etype() {
            ErrorType::ReadTimedout => Some(Answer::new(
                Reason::RequestTimeout,
                "the request body did not come in time",
            )),
            ErrorType::InvalidHTTPHeader => Some(Answer::new(Reason::BadRequest, "the request is malformed")),
            _ => None,
        };
    }
    let failure = ctx.request.failure.take();
    Some(
        failure.unwrap_or_else(|| {
            Answer::new(Reason::UpstreamError, "the backend broke off before it answered")
        }),
    )
}

/// Finds out where a request goes, unless its head or its announced body is over a limit.
pub(super) fn route(
    session: &Session,
    request: &mut RequestCtx,
    info: &Arc<ConnectionInfo>,
) -> std::result::Result<(), Refusal> {
    let header = session.req_header();
    let view = View::new(header);
    let incoming = Incoming {
        info,
        view: &view,
        host: view.host(),
        target: header.uri.path_and_query().map_or("/", |pq| pq.as_str()),
        head_bytes: view.size(),
    };
    request.route(&incoming)?;
    let limits = request.limits();
    if session.is_http2() {
        // An h1 head was judged before it came here.
        view.judge(limits)?;
    }
    match (limits.max_body_bytes, view.content_length()) {
        (Some(max), Some(length)) if length > max => Err(body_too_large().into()),
        _ => Ok(()),
    }
}

/// Writes an answer of the gateway's own. The connection lives on when the request was read.
async fn write_rendered(session: &mut HttpSession, rendered: Rendered) -> Result<()> {
    let mut head = ResponseHeader::build(rendered.status, Some(rendered.headers.len() + 1))?;
    for (name, value) in rendered.headers {
        head.insert_header(name, value)?;
    }
    head.set_content_length(rendered.body.len())?;
    let no_body = rendered.body.is_empty() || session.req_header().method == Method::HEAD;
    if let HttpSession::H2(h2) = session {
        // A gRPC answer is trailers-only: its headers have to end the stream.
        h2.write_response_header(Box::new(head), no_body)?;
        if !no_body {
            h2.write_body(rendered.body, true).await?;
        }
        return Ok(());
    }
    session.write_response_header(Box::new(head)).await?;
    let body = if no_body { Bytes::new() } else { rendered.body };
    session.write_response_body(body, true).await
}

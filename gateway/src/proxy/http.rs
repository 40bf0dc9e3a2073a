//! The adapter between Pingora's HTTP proxying and the request path.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, Version};
use pingora_core::protocols::Digest;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, ErrorSource, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};
use sluice_model::Protocol;

use super::ctx::{AFTER_ANSWER_BYTES, Ctx, MAX_INTERIM};
use super::heads::{RequestFields, ResponseFields, View, rewrite_target, settle_framing};
use super::retry::{
    MAX_BROKEN, is_idempotent, may_try_again, not_processed, out_of_descriptors, put_off, was_reset,
};
use super::upstream::{self, Choice};
use super::{answers, current_timers, h2};
use crate::answer::Answer;
use crate::observe::{Reason, Timer};
use crate::request::{Attempt, Engine, HeadMut, Refusal, RequestCtx, from_backend, to_backend};
use crate::throttle::{Outcome, Permit};

/// How long an unread request body is drained after an early answer, to keep the connection.
const DRAIN_BODY: Duration = Duration::from_secs(1);

/// Pingora's hooks over the request path.
pub(super) struct HttpAdapter {
    pub(super) engine: Arc<Engine>,
}

impl HttpAdapter {
    async fn admit(session: &mut Session, ctx: &mut Ctx, first: bool) -> std::result::Result<(), Answer> {
        let close_watch = ctx.info.as_ref().map(|info| info.close_watch.clone());
        let gone = async {
            // An h2 stream ends by reset or with its connection; h1 with its connection.
            match session.downstream_session.watch_h2_stream_close() {
                Some(reset) => {
                    let _ = reset.await;
                }
                None => match close_watch {
                    Some(watch) => watch.closed().await,
                    None => std::future::pending().await,
                },
            }
        };
        if first {
            ctx.request.admit(gone).await
        } else {
            ctx.request.fail_over(gone).await
        }
    }
}

#[async_trait]
impl ProxyHttp for HttpAdapter {
    // Boxed: Pingora's future of a request holds it in several places.
    type CTX = Box<Ctx>;

    fn new_ctx(&self) -> Box<Ctx> {
        let timers = current_timers();
        let request = RequestCtx::new(&self.engine, timers, Instant::now());
        Box::new(Ctx::new(request))
    }

    fn init_downstream_modules(&self, _: &mut pingora_core::modules::http::HttpModules) {
        // The default registers a compression module, and a box for it per request.
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<bool> {
        let Some(info) = super::connection_info(session.digest()) else {
            return Err(Error::explain(
                ErrorType::InternalError,
                "a session without connection",
            ));
        };
        ctx.info = Some(Arc::clone(&info));
        let limits = ctx.request.limits().clone();
        session.set_total_drain_timeout(Some(DRAIN_BODY));
        if session.is_http2() {
            // A body without a length has no clock of its own here: a stream whose client says nothing
            // for long is ordinary gRPC. The revision's clocks bound it.
            session.set_write_timeout(Some(limits.write_timeout));
            if let Some(pace) = h2::announced_pace(session, &limits) {
                ctx.request.timers.expect_body(pace);
            }
        } else {
            // The guard under an h1 session keeps the time, and what Connection says was judged there.
            session.set_read_timeout(None);
            if !super::keeps_alive(session.digest()) {
                session.set_keepalive(None);
            }
            // A 100 goes out before the body is read; that alone must not end the connection.
            let expects = session.req_header().headers.contains_key("expect");
            session.set_close_on_response_before_downstream_finish(!expects);
            // Pingora takes any Upgrade for an upgrade; real ones never come here.
            session.req_header_mut().remove_header("upgrade");
        }
        loop {
            let outcome = match answers::route(session, &mut ctx.request, &info) {
                Ok(()) => Self::admit(session, ctx, true).await.map_err(Refusal::from),
                Err(refusal) => Err(refusal),
            };
            let Err(refusal) = outcome else { return Ok(false) };
            // Its revision was removed while it waited: the newer table knows where it goes.
            if !ctx.request.reread() {
                answers::refuse(session, ctx, refusal).await?;
                return Ok(true);
            }
        }
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<Box<HttpPeer>> {
        let choice = match (&ctx.request.next, &session.req_header().method) {
            (Attempt::FreshConnection, _) => Choice::Fresh,
            (_, &Method::GET | &Method::HEAD | &Method::OPTIONS) => Choice::Any,
            _ => Choice::NoProbes,
        };
        if ctx.request.next != Attempt::First
            && let Err(answer) = Self::admit(session, ctx, false).await
        {
            ctx.request.failure = Some(answer);
            return Err(Error::explain(ErrorType::InternalError, "no endpoint left"));
        }
        ctx.request.next = Attempt::First;
        ctx.request.attempts += 1;
        ctx.request.attempt_started = Some(Instant::now());
        let (Some(routed), Some(permit)) = (&ctx.request.routed, &ctx.request.permit) else {
            return Err(Error::explain(
                ErrorType::InternalError,
                "an attempt without Permit",
            ));
        };
        let endpoint = permit.endpoint();
        let (peer, dialer) = upstream::peer(&routed.spec, endpoint, ctx.request.limits(), choice)?;
        ctx.dialer = Some(dialer);
        Ok(peer)
    }

    async fn connected_to_upstream(
        &self,
        _: &mut Session,
        reused: bool,
        _: &HttpPeer,
        _: std::os::unix::io::RawFd,
        digest: Option<&Digest>,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        let now = Instant::now();
        if !reused && let Some(permit) = &ctx.request.permit {
            permit.report(Outcome::Connected, now);
        }
        let mut breaker = upstream::breaker(digest);
        if let (Some(routed), Some(permit)) = (&ctx.request.routed, &ctx.request.permit)
            && routed.spec.protocol == Protocol::H2c
        {
            breaker = breaker.map(|socket| upstream::with_pool(socket, permit.endpoint()));
            // It may close a stream's window while its socket takes bytes: whose fault a pause is
            // cannot be told.
            ctx.request.timers.body_done();
        }
        let endpoint = ctx.request.permit.as_ref().map(Permit::endpoint);
        ctx.request.timers.upstream(breaker, endpoint, now);
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        let (Some(info), Some(routed)) = (&ctx.info, &ctx.request.routed) else {
            return Err(Error::explain(
                ErrorType::InternalError,
                "a request without route",
            ));
        };
        let original = session.req_header();
        let view = View::new(original);
        let host = view.host().unwrap_or_default();
        let forwarding = ctx.request.forwarding(info, host);
        rewrite_target(request, routed, host)?;
        if let Some(cookies) = view.joined_cookies() {
            RequestFields(request).set("cookie", cookies);
        }
        to_backend(
            &mut RequestFields(request),
            forwarding,
            &routed.spec,
            routed.route(),
        );
        Ok(())
    }

    async fn request_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        if end {
            ctx.request.timers.body_done();
        }
        if end && body.as_ref().is_some_and(Bytes::is_empty) {
            // Pingora would write an empty chunk, which is the last one, and then the last one.
            *body = None;
        }
        let Some(body) = body else { return Ok(()) };
        let now = Instant::now();
        ctx.body_in += body.len() as u64;
        if let Some(late) = &mut ctx.late_bytes {
            *late += body.len() as u64;
            if *late > AFTER_ANSWER_BYTES {
                let e = Error::explain(ErrorType::ReadTimedout, "the upload goes on after its answer");
                return Err(e.into_down());
            }
        }
        ctx.request.timers.touch(now);
        ctx.request.timers.body_moved(now, body.len());
        if ctx
            .request
            .limits()
            .max_body_bytes
            .is_some_and(|max| ctx.body_in > max)
        {
            ctx.body_too_large = true;
            return Err(Error::explain(ErrorType::InvalidHTTPHeader, "body larger than allowed").into_down());
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        let status = response.status.as_u16();
        if status == 101 {
            // Upgrades never come here, so nobody asked for one; passed on, it would turn what
            // follows into bytes that no rule looks at.
            return Err(Error::explain(ErrorType::InvalidHTTPHeader, "101 without Upgrade").into_up());
        }
        if response.status.is_informational() {
            ctx.interim += 1;
            if ctx.interim > MAX_INTERIM {
                return Err(
                    Error::explain(ErrorType::InvalidHTTPHeader, "too many interim responses").into_up(),
                );
            }
            return Ok(());
        }
        settle_framing(response)?;
        let now = Instant::now();
        if status == 429 && !session.as_ref().retry_buffer_truncated() {
            let retry_after = response.headers.get("retry-after").map(|v| v.as_bytes());
            if put_off(&mut ctx.request, retry_after) {
                let mut e = Error::explain(ErrorType::HTTPStatus(429), "back-pressure").into_up();
                e.set_retry(true);
                return Err(e);
            }
        }
        ctx.request.head_received = true;
        ctx.request.timers.head_received(now);
        ctx.request.answers(now);
        ctx.request.upstream = ctx
            .request
            .attempt_started
            .map(|at| now.saturating_duration_since(at));
        if let Some(permit) = &ctx.request.permit {
            permit.report(Outcome::Responded { status }, now);
        }
        from_backend(&mut ResponseFields(response));
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        if response.status.is_informational() {
            return Ok(());
        }
        ctx.status = Some(response.status.as_u16());
        session.set_close_on_response_before_downstream_finish(true);
        if session.req_header().version == Version::HTTP_10
            && response.headers.contains_key("transfer-encoding")
        {
            // HTTP/1.0 knows no chunks: the end of the connection ends the body.
            response.remove_header("transfer-encoding");
            session.set_keepalive(None);
        }
        if ctx.request.draining() {
            session.set_keepalive(None);
        }
        if let Some(timing) = ctx.request.server_timing() {
            // The backend's own stays.
            response.append_header("server-timing", timing)?;
        }
        if is_whole(response, &session.req_header().method) {
            ctx.answered(session, 0);
        }
        Ok(())
    }

    async fn response_trailer_filter(
        &self,
        session: &mut Session,
        _: &mut http::HeaderMap,
        ctx: &mut Self::CTX,
    ) -> Result<Option<Bytes>> {
        // The last thing there is: a gRPC client may leave its side open for ever.
        ctx.answered(session, 0);
        Ok(None)
    }

    fn response_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Self::CTX,
    ) -> Result<Option<Duration>> {
        if end {
            let timers = &ctx.request.timers;
            if timers.fired().is_some() || timers.body_late() || timers.was_evicted() {
                // The connection that a clock broke reads as ended, which ends a body that
                // nothing else delimits.
                return Err(Error::explain(ErrorType::ReadTimedout, "a timer ran out").into_up());
            }
            ctx.answered(session, body.as_ref().map_or(0, Bytes::len));
        } else if body.is_some() {
            ctx.request.timers.touch(Instant::now());
        }
        Ok(None)
    }

    fn fail_to_connect(
        &self,
        _: &mut Session,
        _: &HttpPeer,
        ctx: &mut Self::CTX,
        mut e: Box<Error>,
    ) -> Box<Error> {
        if out_of_descriptors(&e) {
            // The gateway's own bound: no endpoint is to blame, and another would fail alike.
            ctx.request.fail_attempt(Reason::Overloaded, e.to_string());
            e.set_retry(false);
            return e;
        }
        if ctx.was_spare() {
            // HTTP/2 was to be spoken on a probe's connection, which the other side had closed.
            ctx.request.fail_attempt(Reason::ConnectFailed, e.to_string());
            ctx.request.next = Attempt::FreshConnection;
            e.set_retry(ctx.request.timers.fired().is_none());
            return e;
        }
        if let Some(permit) = &ctx.request.permit {
            permit.report(Outcome::ConnectFailed, Instant::now());
        }
        ctx.request.fail_attempt(Reason::ConnectFailed, e.to_string());
        // Nothing was sent: any request may go elsewhere.
        ctx.request.next = Attempt::OtherEndpoint;
        e.set_retry(ctx.request.timers.fired().is_none() && may_try_again(&ctx.request));
        e
    }

    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        mut e: Box<Error>,
        ctx: &mut Self::CTX,
        reused: bool,
    ) -> Box<Error> {
        ctx.request.timers.upstream(None, None, Instant::now());
        let reused = reused || ctx.was_spare();
        if matches!(ctx.request.next, Attempt::After(_)) {
            return e;
        }
        let fired = ctx.request.timers.fired();
        let timed_out = fired.is_some() || ctx.request.timers.body_late();
        // The total may be the client's own deadline, which says nothing of the endpoint.
        if fired == Some(Timer::Start)
            && !ctx.request.head_received
            && let Some(permit) = &ctx.request.permit
        {
            permit.report(Outcome::ResponseTimeout, Instant::now());
        }
        if *e.esource() == ErrorSource::Downstream || timed_out || ctx.request.head_received {
            e.set_retry(false);
            return e;
        }
        ctx.request.fail_attempt(Reason::UpstreamError, e.to_string());
        let on_purpose = ctx.request.timers.was_cut() || ctx.request.timers.was_evicted();
        if !reused
            && !on_purpose
            && let Some(permit) = &ctx.request.permit
        {
            permit.report(Outcome::Broke, Instant::now());
            ctx.broken += 1;
        }
        // A response came, if none that can be passed on: the request was looked at.
        let answered = matches!(e.etype(), ErrorType::InvalidHTTPHeader) || was_reset(&e);
        let replayable = !session.as_ref().retry_buffer_truncated() && !answered;
        let idempotent = is_idempotent(&session.req_header().method);
        let evicted = ctx.request.timers.was_evicted();
        ctx.request.next = if reused && !evicted {
            Attempt::FreshConnection
        } else {
            Attempt::OtherEndpoint
        };
        // It may be the request that breaks backends: not one after another of them.
        let spared = ctx.broken <= MAX_BROKEN;
        let safe = replayable && (idempotent && spared || not_processed(&e));
        e.set_retry(safe && may_try_again(&ctx.request));
        e
    }

    async fn fail_to_proxy(&self, session: &mut Session, e: &Error, ctx: &mut Self::CTX) -> FailToProxy {
        let gone = FailToProxy {
            error_code: 0,
            can_reuse_downstream: false,
        };
        if ctx.request.detail.is_none() {
            ctx.request.detail = Some(e.to_string());
        }
        let head_sent = session
            .response_written()
            .is_some_and(|head| !head.status.is_informational());
        if head_sent {
            let timers = &ctx.request.timers;
            let going = timers.was_cut() || timers.was_evicted();
            let reason = match (timers.fired(), e.esource()) {
                (Some(_), _) => Reason::Timeout,
                (None, _) if ctx.request.timers.body_late() => Reason::RequestTimeout,
                (None, ErrorSource::Downstream) if *e.etype() == ErrorType::ReadTimedout => {
                    Reason::RequestTimeout
                }
                (None, ErrorSource::Downstream) => Reason::ClientGone,
                (None, _) if going => Reason::Draining,
                (None, _) => Reason::UpstreamReset,
            };
            ctx.request.reason = Some(reason);
            let over = timers.fired() == Some(Timer::Age) || going;
            if over && super::is_event_stream(session) {
                // It may end anywhere: a client drops half an event and comes again.
                let _ = session
                    .as_downstream_mut()
                    .write_response_body(Bytes::new(), true)
                    .await;
            } else if !session.is_http2() && ctx.late_bytes.is_none() {
                super::break_off(session);
            }
            return gone;
        }
        let Some(answer) = answers::answer_for(session, e, ctx) else {
            ctx.request.reason = Some(Reason::ClientGone);
            return gone;
        };
        session.set_keepalive(None);
        if answers::refuse(session, ctx, answer.into()).await.is_err() {
            ctx.request.reason = Some(Reason::ClientGone);
            return gone;
        }
        FailToProxy {
            error_code: ctx.status.unwrap_or_default(),
            can_reuse_downstream: false,
        }
    }

    async fn logging(&self, session: &mut Session, _: Option<&Error>, ctx: &mut Self::CTX) {
        ctx.late = None;
        let sent = session.body_bytes_sent() as u64;
        ctx.finish(session.req_header(), sent);
    }

    fn suppress_error_log(&self, _: &Session, _: &Self::CTX, _: &Error) -> bool {
        // Every request has its line in the access log, with reason and detail.
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _: &Session,
        _: &Self::CTX,
        _: &Error,
        _: pingora_proxy::ProxyWarnLogContext,
    ) -> bool {
        true
    }
}

/// Whether nothing follows this head: no body, or a gRPC status that came without messages.
fn is_whole(response: &ResponseHeader, method: &Method) -> bool {
    let empty = |v: &http::HeaderValue| v.as_bytes() == b"0";
    *method == Method::HEAD
        || matches!(response.status.as_u16(), 204 | 304)
        || response.headers.get("content-length").is_some_and(empty)
        || response.headers.contains_key("grpc-status")
}

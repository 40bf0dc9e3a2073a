//! The forwarding engine: one request, from its head to its log line.
//!
//! [`serve`] routes a request, waits for a Permit, connects, and transfers request and response ([`duplex`]),
//! until one attempt gave a response or no further attempt is possible. One future without channels; the
//! client's side and the backend's side are type parameters ([`sides`]). Dropping the future at any moment
//! returns the Permit, and the request still gets its one log line.

mod cold;
mod duplex;
mod failure;
mod held_stream;
mod replay;
mod retry;
mod sides;
mod timer;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use sluice_model::RequestView;

use self::cold::hold;
use self::duplex::{Duplex, DuplexParts, Progress, TransferEnd};
use self::replay::ReplayBuffer;
use self::retry::may_use_probes;
pub(crate) use self::sides::{
    BackendFault, BackendResponse, BackendSide, BodyLength, ClientFault, ClientHead, ClientSide,
    OutgoingRequest, OutgoingResponse,
};
pub(crate) use self::timer::DeadlineTimer;
use crate::downstream::{Bounds, Ended, relay};
use crate::edge::{ByteStream, Drain};
use crate::local_response::{ErrorResponse, LocalResponse};
use crate::observe::{Reason, RequestProtocol, Timer};
use crate::request::{
    Engine, IncomingRequest, NextAttempt, Nominated, RequestCtx, RequestEdit, RequestEnd, host_for,
    target_for, upgrade_to_forward,
};
use crate::throttle::{Outcome, clock};
use crate::upstream::{self, Acquired, BackendConnection, ConnectionChoice};

/// Timeout of writing the head of a protocol switch.
const SWITCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves one request. The state of `client` afterwards decides whether its connection may serve another.
///
/// Cancel-safe: when the future is dropped half way, the client has got part of a response at most, and the
/// request is logged as far as it came.
pub(crate) async fn serve<C: ClientSide>(
    engine: &Arc<Engine>,
    client: &mut C,
    timer: &mut DeadlineTimer,
    started: Instant,
) where
    C::Stream: ByteStream + 'static,
{
    let mut exchange = Exchange {
        request: RequestCtx::new(engine, started),
        client,
        timer,
        replay: ReplayBuffer::default(),
        progress: Progress::default(),
        broken_connections: 0,
        response_ended: None,
        protocol: None,
    };
    exchange.run().await;
}

/// State of one request. Its drop logs the request, however it ended.
struct Exchange<'a, C: ClientSide> {
    client: &'a mut C,
    request: RequestCtx,
    timer: &'a mut DeadlineTimer,
    replay: ReplayBuffer,
    progress: Progress,
    /// Number of fresh connections that failed after the request was sent.
    broken_connections: u32,
    /// When the response was complete, where that was before the request was.
    response_ended: Option<Instant>,
    /// The protocol after a switch.
    protocol: Option<RequestProtocol>,
}

impl<C: ClientSide> Drop for Exchange<'_, C> {
    fn drop(&mut self) {
        let unanswered = self.progress.status.is_none() || self.progress.is_held();
        if unanswered && self.progress.final_status.is_none() && self.request.reason.is_none() {
            let closing = *self.request.drain().borrow() == Drain::Closing;
            self.request.reason = Some(if closing {
                Reason::Draining
            } else {
                Reason::ClientGone
            });
        }
        let head = self.client.head();
        let ending = RequestEnd {
            method: head.method().as_bytes(),
            host: head.host().unwrap_or_default(),
            target: head.target().as_bytes(),
            user_agent: head.header("user-agent"),
            protocol: self.protocol.unwrap_or_else(|| self.client.protocol()),
            status: self.progress.status,
            final_status: self.progress.final_status,
            bytes_in: self.progress.bytes_in,
            bytes_out: self.progress.bytes_out,
            trace_state: self.request.trace_state(head),
        };
        let ended = self.response_ended.unwrap_or_else(clock);
        self.request.finish(&ending, ended);
    }
}

/// The step after an attempt.
enum NextStep {
    /// Done: the client has its response, or is gone.
    Done,
    /// Another attempt, of the kind in the request's `next`.
    Retry,
    /// A local error response.
    Respond(ErrorResponse),
}

impl NextStep {
    /// Why the attempt before this step gave no whole response.
    fn failure(&self, request: &RequestCtx) -> Option<Reason> {
        match self {
            Self::Done => request.reason,
            // After a 429 there is none: the status says it.
            Self::Retry => request.failure.as_ref().map(|failure| failure.reason),
            Self::Respond(error) => Some(error.reason),
        }
    }
}

impl<C: ClientSide> Exchange<'_, C>
where
    C::Stream: ByteStream + 'static,
{
    async fn run(&mut self) {
        if let Err(response) = self.route_and_admit().await {
            return self.respond_local(&response).await;
        }
        loop {
            let next = self.attempt().await;
            self.request.attempt_ended(|request| next.failure(request));
            match next {
                NextStep::Done => return,
                NextStep::Respond(error) => return self.respond_local(&error.into()).await,
                NextStep::Retry => {}
            }
            if let Err(response) = self.readmit().await {
                return self.respond_local(&response).await;
            }
        }
    }

    /// Routes the request and waits for a Permit.
    async fn route_and_admit(&mut self) -> Result<(), LocalResponse> {
        loop {
            self.route()?;
            self.prepare_cold_answer()?;
            let gone = hold(&mut *self.client, self.timer, &mut self.progress, &self.request);
            let Err(error) = self.request.admit(gone).await else {
                return Ok(());
            };
            // The revision was removed during the wait: the request is routed again by the current table.
            if !self.request.reread() {
                return Err(error.into());
            }
        }
    }

    /// Waits for a Permit for another attempt.
    async fn readmit(&mut self) -> Result<(), LocalResponse> {
        let gone = hold(&mut *self.client, self.timer, &mut self.progress, &self.request);
        let admitted = self.request.fail_over(gone).await;
        let Err(error) = admitted else { return Ok(()) };
        if !self.request.reread() {
            return Err(error.into());
        }
        self.route_and_admit().await
    }

    fn route(&mut self) -> Result<(), LocalResponse> {
        let head = self.client.head();
        let tls = self.client.info().tls.is_some();
        self.request.begin_trace(head, tls, self.client.protocol());
        let incoming = IncomingRequest {
            info: self.client.info(),
            view: head,
            host: head.host(),
            target: head.target(),
            head_bytes: head.size() + usize::try_from(self.client.held_bytes()).unwrap_or(usize::MAX),
        };
        self.request.route(&incoming)?;
        if self.request.no_wake().is_some() {
            self.request.note_passive(head, self.client.info().client_ip());
        }
        head.check(self.request.limits())?;
        if head.must_switch() && !self.offers_switch() {
            let text = "what serves this host takes no WebSocket over HTTP/2";
            return Err(ErrorResponse::new(Reason::BadRequest, text)
                .with_status(501)
                .into());
        }
        match (self.request.limits().max_body_bytes, self.client.body_length()) {
            (Some(max), BodyLength::Known(length)) if length > max => Err(failure::body_too_large().into()),
            _ => Ok(()),
        }
    }

    /// Makes one attempt at the endpoint of the Permit.
    async fn attempt(&mut self) -> NextStep {
        let choice = match self.request.next {
            NextAttempt::FreshConnection => ConnectionChoice::Fresh,
            // A switch takes a fresh connection: the connection is not returned to the pool.
            _ if self.offers_switch() => ConnectionChoice::Fresh,
            _ if may_use_probes(self.client.head().method()) => ConnectionChoice::Any,
            _ => ConnectionChoice::NoProbes,
        };
        self.request.next = NextAttempt::First;
        self.request.attempts += 1;
        let warm = self.request.attempts == 1 && self.request.queued.is_zero();
        let now = if warm { self.request.started } else { clock() };
        self.request.attempt_started = Some(now);
        self.request.attempt_began(now);
        let acquired = {
            let Some((routed, permit)) = self.request.routed.as_ref().zip(self.request.permit.as_ref())
            else {
                return NextStep::Respond(ErrorResponse::new(
                    Reason::NoRoute,
                    "the request was not admitted",
                ));
            };
            upstream::take_idle(routed, permit.endpoint(), self.request.limits(), choice, now)
        };
        let acquired = match acquired {
            Some(idle) => idle,
            None => match Box::pin(self.connect(choice)).await {
                Ok(connected) => connected,
                Err(next) => return next,
            },
        };
        self.request.clocks.connected(now);
        match acquired.connection {
            BackendConnection::Http1(backend) => self.transfer(backend, acquired.idled).await,
            BackendConnection::Http2(backend) => self.transfer(backend, acquired.idled).await,
        }
    }

    /// Whether the client offers an upgrade that the revision forwards.
    fn offers_switch(&self) -> bool {
        let offered = self.client.head().upgrade().zip(self.request.routed.as_ref());
        offered.is_some_and(|(offered, routed)| upgrade_to_forward(offered, &routed.spec).is_some())
    }

    /// Connects to the endpoint of the Permit, under the request's deadlines.
    async fn connect(&mut self, choice: ConnectionChoice) -> Result<Acquired, NextStep> {
        let failed = {
            let request = &mut self.request;
            let Some((routed, permit)) = request.routed.as_ref().zip(request.permit.as_ref()) else {
                return Err(NextStep::Respond(ErrorResponse::new(
                    Reason::NoRoute,
                    "the request was not admitted",
                )));
            };
            let deadline = request.clocks.deadline();
            let mut connecting = pin!(upstream::connect(
                routed,
                permit.endpoint(),
                request.limits(),
                choice
            ));
            let mut draining = pin!(duplex::drain_cause(
                Arc::clone(permit.endpoint()),
                request.drain()
            ));
            let (client, timer) = (&mut *self.client, &mut *self.timer);
            let connected = poll_fn(|cx| {
                if let Poll::Ready(done) = connecting.as_mut().poll(cx) {
                    return Poll::Ready(Ok(done));
                }
                if client.poll_gone(cx).is_ready() {
                    return Poll::Ready(Err(TransferEnd::ClientFailed(ClientFault::Gone)));
                }
                if let Poll::Ready(cause) = draining.as_mut().poll(cx) {
                    return Poll::Ready(Err(TransferEnd::Draining(cause)));
                }
                match deadline {
                    Some(at) if timer.poll_at(cx, at).is_ready() => {
                        Poll::Ready(Err(TransferEnd::DeadlinePassed(request.clocks.missed(clock()))))
                    }
                    _ => Poll::Pending,
                }
            })
            .await;
            match connected {
                Ok(Ok(connected)) => {
                    permit.report(Outcome::Connected, clock());
                    Ok(connected)
                }
                Ok(Err(error)) => Err(Ok(error)),
                Err(end) => Err(Err(end)),
            }
        };
        match failed {
            Ok(connected) => Ok(connected),
            Err(Ok(error)) => Err(self.connect_failed(&error)),
            Err(Err(end)) => Err(self.transfer_failed(end, false, false)),
        }
    }

    /// Transfers the request and its response over an open connection. `idled` is a pooled connection: the
    /// backend may have closed it.
    async fn transfer<B: BackendSide>(&mut self, mut backend: B, idled: bool) -> NextStep
    where
        B::Stream: ByteStream + 'static,
    {
        let upgrade = match self.send_request_head(&mut backend) {
            Ok(upgrade) => upgrade,
            Err(fault) => {
                return self.transfer_failed(TransferEnd::BackendFailed(fault), idled, backend.was_sent());
            }
        };
        let mut duplex = Duplex::new(DuplexParts {
            client: &mut *self.client,
            backend: &mut backend,
            request: &mut self.request,
            timer: &mut *self.timer,
            replay: &mut self.replay,
            progress: &mut self.progress,
            upgrade,
        });
        let end = poll_fn(|cx| duplex.poll(cx)).await;
        drop(duplex);
        match end {
            TransferEnd::Complete => {
                backend.release();
                NextStep::Done
            }
            TransferEnd::ResponseOnly => {
                drop(backend);
                Box::pin(self.drain_upload()).await;
                NextStep::Done
            }
            TransferEnd::Switched => {
                Box::pin(self.relay(backend.into_stream())).await;
                NextStep::Done
            }
            TransferEnd::RetryLater => NextStep::Retry,
            TransferEnd::NotSpliced => {
                drop(backend);
                Box::pin(self.refuse_splice()).await;
                NextStep::Done
            }
            end => {
                let sent = backend.was_sent();
                self.transfer_failed(end, idled, sent)
            }
        }
    }

    /// Sends the request's head to the backend. Returns whether an upgrade was forwarded.
    fn send_request_head<B: BackendSide>(&mut self, backend: &mut B) -> Result<bool, BackendFault> {
        let head = self.client.head();
        let Some(routed) = &self.request.routed else {
            return Ok(false);
        };
        let sent_host = head.host().unwrap_or_default();
        let edit = RequestEdit {
            from: self.request.forwarding(self.client.info(), sent_host),
            revision: &routed.spec,
            route: routed.route(),
            target_headers: routed.target_headers(),
            network_hash: routed.network_hash(),
            activator: self.client.info().activator.is_some(),
            counted: self.request.is_counted(),
            nominated: if head.nominates_others() {
                Nominated::of(head)
            } else {
                Nominated::default()
            },
            join_cookies: head.has_crumbs(),
            trace: self.request.outgoing_trace(),
            plain: self.progress.is_held(),
        };
        let empty = self.client.body_length().is_empty();
        let upgrade = head.upgrade().filter(|_| empty && B::UPGRADES);
        let upgrade = upgrade.and_then(|offered| upgrade_to_forward(offered, &routed.spec));
        let target = target_for(head.target(), routed);
        let host = host_for(sent_host, routed);
        if self.replay.is_possible() {
            self.replay.rewind();
        }
        backend.request(
            head,
            &OutgoingRequest {
                target: &target,
                host: &host,
                length: self.client.body_length(),
                trailers: C::LENGTH_AND_TRAILERS,
                upgrade: upgrade.as_deref(),
                tls: self.client.info().tls.is_some(),
            },
            &edit,
        )?;
        Ok(upgrade.is_some())
    }

    /// Relays bytes between two connections that switched to another protocol.
    async fn relay(&mut self, backend: impl ByteStream + 'static) {
        let websocket = self
            .client
            .head()
            .upgrade()
            .is_some_and(|offered| offered.eq_ignore_ascii_case(b"websocket"));
        // After the switch only the tunnel's own bounds apply.
        self.request.clocks.stop();
        self.protocol = Some(RequestProtocol::Upgraded);
        let timeouts = self.request.routed.as_ref().map(|routed| routed.spec.timeouts);
        let bounds = Bounds {
            idle: timeouts.and_then(|t| t.idle),
            age: timeouts.and_then(|t| t.max_stream_age),
            drain: self.request.drain(),
            endpoint: self
                .request
                .permit
                .as_ref()
                .map(|permit| Arc::clone(permit.endpoint())),
            websocket,
        };
        // The 101 is flushed before any byte of the tunnel.
        let (client, timer) = (&mut *self.client, &mut *self.timer);
        let until = clock() + SWITCH_TIMEOUT;
        let written = poll_fn(|cx| match client.poll_flush(cx) {
            Poll::Ready(written) => Poll::Ready(written.is_ok()),
            Poll::Pending => timer.poll_at(cx, until).map(|()| false),
        });
        if !written.await {
            self.request.reason = Some(Reason::ClientGone);
            return;
        }
        let client = self.client.take_stream();
        let (traffic, ended) = relay(client, backend, bounds).await;
        self.progress.bytes_in = traffic.from_client;
        self.progress.bytes_out = traffic.from_backend;
        let (reason, timer) = match ended {
            Ended::Client | Ended::Backend => (None, None),
            Ended::Idle => (Some(Reason::Timeout), Some(Timer::Idle)),
            // A WebSocket was closed in order by a Close frame; other protocols have none and were cut.
            Ended::Aged | Ended::Draining if websocket => (None, None),
            Ended::Aged => (Some(Reason::Timeout), Some(Timer::Age)),
            Ended::Draining => (Some(Reason::Draining), None),
        };
        self.request.reason = reason;
        if let Some(timer) = timer {
            self.request.clocks.fire(timer);
        }
    }
}

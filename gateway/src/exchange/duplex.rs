//! Full-duplex transfer of one request and its response between two open connections.
//!
//! One state machine, polled by the request's task: the request body goes up and the response comes down at
//! the same time, each with back-pressure from its receiver, under the request's deadlines.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::HeaderMap;
use tokio::sync::watch;

use super::held_stream::{HeldStream, can_splice};
use super::replay::ReplayBuffer;
use super::sides::{BackendFault, BackendResponse, BackendSide, ClientFault, ClientSide, OutgoingResponse};
use super::timer::DeadlineTimer;
use crate::edge::Drain;
use crate::observe::Timer;
use crate::request::{BodyRate, Fields, RequestCtx, may_be_trailer};
use crate::throttle::{EndpointState, Outcome, clock};

/// Most interim responses that are forwarded; backends send one or two, and Go's client, the strictest there
/// is, accepts five.
const MAX_INTERIM: u32 = 16;

/// Age from which a request watches for a drain of its instance or of the gateway. Most requests are over by
/// then, and the watch costs a lock that all requests share.
const WATCH_AFTER: Duration = Duration::from_millis(50);

/// How a transfer ended.
#[derive(Debug)]
pub(super) enum TransferEnd {
    /// Request and response are complete.
    Complete,
    /// The response is complete; the rest of the request is not wanted.
    ResponseOnly,
    /// Both sides switched to another protocol.
    Switched,
    /// The backend asked for a later retry (429).
    RetryLater,
    /// The response cannot follow the head of a stream that was sent while the request was held.
    NotSpliced,
    /// The client's side failed.
    ClientFailed(ClientFault),
    /// More request body came than allowed.
    BodyTooLarge,
    /// The request body came too slowly.
    BodyTimeout,
    /// The client took no byte of the response for too long.
    WriteTimeout,
    /// The backend's side failed.
    BackendFailed(BackendFault),
    /// A deadline passed.
    DeadlinePassed(Timer),
    /// The instance or the gateway drains.
    Draining(DrainCause),
}

/// What is draining.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DrainCause {
    /// The instance.
    Instance,
    /// The gateway.
    Gateway,
}

/// State of the upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Upload {
    Sending,
    Flushing,
    Done,
    /// The backend accepts no more of the body; a response may still come.
    Stopped,
}

/// State of the download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Download {
    Waiting,
    Streaming,
    Flushing,
    Done,
}

/// Timeout and minimum rate of the request body.
#[derive(Debug)]
pub(super) struct BodyClock {
    /// `None` where a slow body is not the client's fault.
    pub(super) rate: Option<BodyRate>,
    /// When the wait for the next bytes of the body began.
    pub(super) waiting: Option<Instant>,
}

impl BodyClock {
    fn waits(&mut self) {
        if self.rate.is_some() && self.waiting.is_none() {
            self.waiting = Some(clock());
        }
    }

    fn moved(&mut self, bytes: usize) {
        if let (Some(rate), Some(since)) = (&mut self.rate, self.waiting.take()) {
            rate.received(clock().saturating_duration_since(since), bytes as u64);
        }
    }

    fn due(&self) -> Option<Instant> {
        Some(self.waiting? + self.rate?.time_left())
    }
}

/// Progress counters of an exchange.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The status of the response head that was sent.
    pub(super) status: Option<u16>,
    /// The stream to a held request's client, until it is spliced and all of it is sent.
    pub(super) stream: Option<Box<HeldStream>>,
    /// The status that the response would have had without the stream.
    pub(super) final_status: Option<u16>,
    /// Whether the response may end anywhere (server-sent events).
    pub(super) event_stream: bool,
    /// Bytes of the request body consumed from the client.
    pub(super) bytes_in: u64,
    /// Bytes of the response body sent to the client.
    pub(super) bytes_out: u64,
    /// Interim responses so far.
    pub(super) interim: u32,
}

impl Progress {
    /// Whether a stream's head was sent while the request was held, and nothing of a backend's response.
    pub(super) fn is_held(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.is_open())
    }

    fn held(&mut self) -> Option<&mut HeldStream> {
        self.stream.as_deref_mut().filter(|stream| stream.is_open())
    }
}

/// One transfer; see the module.
pub(super) struct Duplex<'x, C, B> {
    pub(super) client: &'x mut C,
    pub(super) backend: &'x mut B,
    pub(super) request: &'x mut RequestCtx,
    pub(super) timer: &'x mut DeadlineTimer,
    pub(super) replay: &'x mut ReplayBuffer,
    pub(super) progress: &'x mut Progress,
    pub(super) body: BodyClock,
    pub(super) write_timeout: Duration,
    pub(super) max_body: Option<u64>,
    pub(super) upgrade: bool,
    upload: Upload,
    /// Back-pressure: the backend accepts no more of the request body for now.
    stalled: bool,
    download: Download,
    /// Deadline of a stream that was asked to end, and how the transfer ends then.
    grace: Option<(Instant, TransferEnd)>,
    watch: Option<Pin<Box<dyn Future<Output = DrainCause> + Send>>>,
    watched: bool,
}

/// Arguments of [`Duplex::new`].
pub(super) struct DuplexParts<'x, C, B> {
    pub(super) client: &'x mut C,
    pub(super) backend: &'x mut B,
    pub(super) request: &'x mut RequestCtx,
    pub(super) timer: &'x mut DeadlineTimer,
    pub(super) replay: &'x mut ReplayBuffer,
    pub(super) progress: &'x mut Progress,
    /// Whether an upgrade was forwarded.
    pub(super) upgrade: bool,
}

impl<'x, C: ClientSide, B: BackendSide> Duplex<'x, C, B> {
    /// The transfer of a request whose head was given to `backend`.
    pub(super) fn new(parts: DuplexParts<'x, C, B>) -> Self {
        let limits = parts.request.limits();
        let paced = parts.client.is_paced();
        let rate = paced.then(|| BodyRate::new(limits.body_read_timeout, limits.min_body_rate));
        let empty = parts.client.body_length().is_empty();
        Self {
            write_timeout: limits.write_timeout,
            max_body: limits.max_body_bytes,
            client: parts.client,
            backend: parts.backend,
            request: parts.request,
            timer: parts.timer,
            replay: parts.replay,
            progress: parts.progress,
            body: BodyClock { rate, waiting: None },
            upgrade: parts.upgrade,
            upload: if empty { Upload::Flushing } else { Upload::Sending },
            stalled: false,
            download: Download::Waiting,
            grace: None,
            watch: None,
            watched: false,
        }
    }

    /// Makes all progress that is possible. Resolves once; dropping the transfer leaves both sides as they
    /// are.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<TransferEnd> {
        if let Poll::Ready(ended) = self.poll_up(cx) {
            return Poll::Ready(ended);
        }
        if let Poll::Ready(ended) = self.poll_down(cx) {
            return Poll::Ready(ended);
        }
        // While the body is not read because of back-pressure, the client's end has to be watched for.
        let unread = self.upload != Upload::Sending || self.stalled;
        if unread && self.client.poll_gone(cx).is_ready() {
            return Poll::Ready(TransferEnd::ClientFailed(ClientFault::Gone));
        }
        self.poll_clocks(cx)
    }

    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<TransferEnd> {
        self.stalled = false;
        while self.upload == Upload::Sending {
            let kept = !self.replay.unsent().is_empty();
            if !kept {
                if self.replay.is_whole() {
                    self.end_upload();
                    break;
                }
                match self.client.poll_body(cx) {
                    Poll::Ready(Ok(true)) => self.body.moved(self.client.data().len()),
                    Poll::Ready(Ok(false)) => {
                        self.body.waiting = None;
                        self.replay.end();
                        self.end_upload();
                        break;
                    }
                    Poll::Ready(Err(fault)) => return Poll::Ready(TransferEnd::ClientFailed(fault)),
                    Poll::Pending => {
                        match self.backend.poll_flush(cx) {
                            Poll::Ready(Ok(())) => self.body.waits(),
                            Poll::Ready(Err(_)) => self.upload = Upload::Stopped,
                            Poll::Pending => {}
                        }
                        return Poll::Pending;
                    }
                }
            }
            let data = if kept {
                self.replay.unsent()
            } else {
                self.client.data()
            };
            if !kept
                && self
                    .max_body
                    .is_some_and(|max| self.progress.bytes_in + data.len() as u64 > max)
            {
                return Poll::Ready(TransferEnd::BodyTooLarge);
            }
            match self.backend.poll_send(cx, data) {
                Poll::Ready(Ok(n)) if kept => self.replay.consume(n),
                Poll::Ready(Ok(n)) => {
                    self.replay.sent(&self.client.data()[..n]);
                    self.client.consume(n);
                    self.progress.bytes_in += n as u64;
                }
                Poll::Ready(Err(_)) => {
                    // The backend may have responded before it closed.
                    self.upload = Upload::Stopped;
                    break;
                }
                Poll::Pending => {
                    self.body.waiting = None;
                    self.stalled = true;
                    return Poll::Pending;
                }
            }
            self.request.clocks.touch(clock);
        }
        if self.upload == Upload::Stopped && self.download != Download::Waiting {
            return self.poll_discard(cx);
        }
        if self.upload == Upload::Flushing {
            match self.backend.poll_flush(cx) {
                Poll::Ready(Ok(())) => self.upload = Upload::Done,
                Poll::Ready(Err(_)) => self.upload = Upload::Stopped,
                Poll::Pending => {}
            }
        }
        Poll::Pending
    }

    /// Drops the rest of a body that the backend has responded to and accepts no more of: a client that reads
    /// only after it has sent everything would wait for ever.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<TransferEnd> {
        loop {
            match self.client.poll_body(cx) {
                Poll::Ready(Ok(true)) => {
                    let n = self.client.data().len();
                    self.client.consume(n);
                    self.progress.bytes_in += n as u64;
                }
                Poll::Ready(Err(fault)) => return Poll::Ready(TransferEnd::ClientFailed(fault)),
                Poll::Ready(Ok(false)) | Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn end_upload(&mut self) {
        let trailers = self.client.trailers().and_then(only_allowed);
        self.upload = match self.backend.finish(trailers) {
            Ok(()) => Upload::Flushing,
            Err(_) => Upload::Stopped,
        };
    }

    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<TransferEnd> {
        while self.download == Download::Waiting {
            match self.backend.poll_head(cx) {
                Poll::Ready(Ok(response)) => {
                    if let Some(ended) = self.head_arrived(&response) {
                        return Poll::Ready(ended);
                    }
                }
                Poll::Ready(Err(fault)) => return Poll::Ready(TransferEnd::BackendFailed(fault)),
                Poll::Pending => {
                    let Progress {
                        stream, bytes_out, ..
                    } = &mut *self.progress;
                    if let Some(stream) = stream.as_deref_mut().filter(|stream| stream.is_open())
                        && let Poll::Ready(Err(fault)) = stream.poll_write(cx, self.client, bytes_out)
                    {
                        return Poll::Ready(TransferEnd::ClientFailed(fault));
                    }
                    // Interim responses are flushed at once.
                    return match self.client.poll_flush(cx) {
                        Poll::Ready(Err(fault)) => Poll::Ready(TransferEnd::ClientFailed(fault)),
                        _ => Poll::Pending,
                    };
                }
            }
        }
        if self.download == Download::Streaming
            && let Some(stream) = &mut self.progress.stream
        {
            match stream.poll_write(cx, self.client, &mut self.progress.bytes_out) {
                Poll::Ready(Ok(())) => self.progress.stream = None,
                Poll::Ready(Err(fault)) => return Poll::Ready(TransferEnd::ClientFailed(fault)),
                Poll::Pending => return Poll::Pending,
            }
        }
        while self.download == Download::Streaming {
            match self.backend.poll_body(cx) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => {
                    let trailers = self.backend.trailers().and_then(only_allowed);
                    if let Err(fault) = self.client.finish(trailers) {
                        return Poll::Ready(TransferEnd::ClientFailed(fault));
                    }
                    self.download = Download::Flushing;
                    break;
                }
                Poll::Ready(Err(fault)) => return Poll::Ready(TransferEnd::BackendFailed(fault)),
                Poll::Pending => {
                    return match self.client.poll_flush(cx) {
                        Poll::Ready(Err(fault)) => Poll::Ready(TransferEnd::ClientFailed(fault)),
                        _ => Poll::Pending,
                    };
                }
            }
            match self.client.poll_send(cx, self.backend.data()) {
                Poll::Ready(Ok(n)) => {
                    self.backend.consume(n);
                    self.progress.bytes_out += n as u64;
                    self.request.clocks.touch(clock);
                }
                Poll::Ready(Err(fault)) => return Poll::Ready(TransferEnd::ClientFailed(fault)),
                Poll::Pending => return Poll::Pending,
            }
        }
        if self.download == Download::Flushing {
            match self.client.poll_flush(cx) {
                Poll::Ready(Ok(())) => self.download = Download::Done,
                Poll::Ready(Err(fault)) => return Poll::Ready(TransferEnd::ClientFailed(fault)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(if self.upload == Upload::Done {
            TransferEnd::Complete
        } else {
            TransferEnd::ResponseOnly
        })
    }

    /// Handles a response head; returns how the transfer ends, if it does.
    fn head_arrived(&mut self, response: &BackendResponse) -> Option<TransferEnd> {
        let malformed =
            |what: &'static str| Some(TransferEnd::BackendFailed(BackendFault::Malformed(what.into())));
        let status = response.status;
        if status == 101 && (!self.upgrade || self.backend.upgraded_to().is_none()) {
            // Forwarded, an unsolicited 101 would turn the rest into bytes that no rule checks.
            return malformed("101 without Upgrade");
        }
        if let (101, Some(token)) = (status, self.backend.upgraded_to())
            && !self.client.accepts_switch(token, self.backend.fields())
        {
            return malformed("101 to something else than was asked for");
        }
        if status < 200 && status != 101 {
            self.progress.interim += 1;
            if self.progress.interim > MAX_INTERIM {
                return malformed("too many interim responses");
            }
            let repeated = status == 100 && self.client.was_continued();
            if !repeated && !self.progress.is_held() {
                self.client.interim(status, self.backend.fields());
            }
            return None;
        }
        self.request.attempt_answered(status);
        let now = clock();
        let fields = self.backend.fields();
        if status == 429 && self.replay.is_possible() {
            let retry_after = fields.first("retry-after");
            if super::retry::spill(self.request) || super::retry::put_off(self.request, retry_after) {
                return Some(TransferEnd::RetryLater);
            }
        }
        let kind = fields.first("content-type").unwrap_or_default();
        self.progress.event_stream = is_event_stream(kind);
        self.request.head_received = true;
        self.request.clocks.head_received(now);
        self.request.response_started(now);
        let started = self.request.attempt_started;
        self.request.upstream = started.map(|at| now.saturating_duration_since(at));
        if let Some(permit) = &self.request.permit {
            permit.report(Outcome::Responded { status }, now);
        }
        if let Some(stream) = self.progress.held() {
            let fits = can_splice(stream.format(), status, self.backend.fields());
            if fits {
                stream.splice();
                self.download = Download::Streaming;
            }
            self.progress.final_status = Some(status);
            return (!fits).then_some(TransferEnd::NotSpliced);
        }
        // No head was sent, and from here on the backend's is.
        self.progress.stream = None;
        let timing = self.request.server_timing();
        let head = OutgoingResponse {
            status,
            phrase: self.backend.phrase(),
            fields,
            length: response.length,
            trailers: B::LENGTH_AND_TRAILERS,
            declared_length: response.declared_length,
            reason: None,
            timing: timing.as_deref(),
            upgrade: if status == 101 {
                self.backend.upgraded_to()
            } else {
                None
            },
            last: self.request.draining() || self.upload == Upload::Sending,
        };
        if let Err(fault) = self.client.respond(&head) {
            return Some(TransferEnd::ClientFailed(fault));
        }
        if status == 101 {
            self.progress.status = Some(self.client.switched_status());
            return Some(TransferEnd::Switched);
        }
        self.progress.status = Some(status);
        self.download = Download::Streaming;
        None
    }

    fn poll_clocks(&mut self, cx: &mut Context<'_>) -> Poll<TransferEnd> {
        loop {
            let blocked = self
                .client
                .blocked_since()
                .map(|since| since + self.write_timeout);
            let next = self.request.clocks.next();
            let watch = (!self.watched).then(|| self.request.started + WATCH_AFTER);
            let grace = self.grace.as_ref().map(|(until, _)| *until);
            let beat = self.progress.held().and_then(|stream| stream.due());
            let all = [
                blocked,
                next.map(|(at, _)| at),
                self.body.due(),
                watch,
                grace,
                beat,
            ];
            if let Some(watch) = &mut self.watch
                && let Poll::Ready(cause) = watch.as_mut().poll(cx)
            {
                self.watch = None;
                if cause == DrainCause::Gateway {
                    return Poll::Ready(TransferEnd::Draining(cause));
                }
                if let Some(ended) = self.ask_to_end(TransferEnd::Draining(cause)) {
                    return Poll::Ready(ended);
                }
                continue;
            }
            let Some(due) = all.into_iter().flatten().min() else {
                return Poll::Pending;
            };
            if self.timer.poll_at(cx, due).is_pending() {
                return Poll::Pending;
            }
            let now = clock();
            let over = |at: Option<Instant>| at.is_some_and(|at| at <= now);
            if over(watch) {
                self.watched = true;
                self.watch = self.watch();
            } else if let Some((_, timer)) = next.filter(|(at, _)| *at <= now) {
                if timer != Timer::Age {
                    return Poll::Ready(TransferEnd::DeadlinePassed(timer));
                }
                self.request.clocks.age_noted();
                if let Some(ended) = self.ask_to_end(TransferEnd::DeadlinePassed(timer)) {
                    return Poll::Ready(ended);
                }
            } else if over(beat) {
                let Progress {
                    stream, bytes_out, ..
                } = &mut *self.progress;
                if let Some(stream) = stream {
                    stream.beat(now, |text| text.push_str("ready, waiting for the answer"));
                    if let Poll::Ready(Err(fault)) = stream.poll_write(cx, self.client, bytes_out) {
                        return Poll::Ready(TransferEnd::ClientFailed(fault));
                    }
                }
            } else if over(blocked) {
                return Poll::Ready(TransferEnd::WriteTimeout);
            } else if over(self.body.due()) {
                return Poll::Ready(TransferEnd::BodyTimeout);
            } else if let Some((_, ended)) = self.grace.take_if(|(at, _)| *at <= now) {
                return Poll::Ready(ended);
            }
        }
    }

    /// Asks the client to end the stream; returns `ended` where the protocol cannot ask.
    fn ask_to_end(&mut self, ended: TransferEnd) -> Option<TransferEnd> {
        let grace = self.client.ask_to_end();
        if grace.is_zero() {
            return Some(ended);
        }
        if self.grace.is_none() {
            self.grace = Some((clock() + grace, ended));
        }
        None
    }

    fn watch(&self) -> Option<Pin<Box<dyn Future<Output = DrainCause> + Send>>> {
        let permit = self.request.permit.as_ref()?;
        Some(Box::pin(drain_cause(
            Arc::clone(permit.endpoint()),
            self.request.drain(),
        )))
    }
}

/// Resolves when the instance or the gateway drains.
pub(super) async fn drain_cause(endpoint: Arc<EndpointState>, drain: watch::Receiver<Drain>) -> DrainCause {
    tokio::select! {
        () = endpoint.ended() => DrainCause::Instance,
        () = closing(drain) => DrainCause::Gateway,
    }
}

/// Resolves at the gateway's drain deadline.
pub(super) async fn closing(mut drain: watch::Receiver<Drain>) {
    if drain.wait_for(|phase| *phase == Drain::Closing).await.is_err() {
        std::future::pending().await
    }
}

fn is_event_stream(content_type: &[u8]) -> bool {
    let essence = content_type.split(|&b| b == b';').next().unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
}

/// Filters trailers that may be forwarded; `None` when none remains.
fn only_allowed(mut trailers: HeaderMap) -> Option<HeaderMap> {
    let refused: Vec<_> = trailers
        .keys()
        .filter(|name| !may_be_trailer(name.as_str().as_bytes()))
        .cloned()
        .collect();
    for name in refused {
        trailers.remove(name);
    }
    (!trailers.is_empty()).then_some(trailers)
}

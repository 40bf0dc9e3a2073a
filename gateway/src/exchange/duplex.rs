//! The passage of one request and its response between two connections that are there.
//!
//! One state machine, polled by the request's task: the request body goes up and the response comes
//! down at the same time, each as fast as its taker takes it, under the request's clocks.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::HeaderMap;
use tokio::sync::watch;

use super::replay::Replay;
use super::sides::{Answered, BackendFault, BackendSide, ClientFault, ClientSide, ResponseHead};
use super::timer::DeadlineTimer;
use crate::edge::Drain;
use crate::observe::Timer;
use crate::request::{Fields, Pace, RequestCtx, may_be_trailer};
use crate::throttle::{EndpointState, Outcome, clock};

/// Interim responses that are passed on; nobody sends more than one or two, and Go's client, the
/// strictest there is, takes five.
const MAX_INTERIM: u32 = 16;

/// From this age on a request watches whether its instance or the gateway has to go. Most requests
/// are over by then, and the watch costs a lock that all requests share.
const WATCH_AFTER: Duration = Duration::from_millis(50);

/// How a passage ended.
#[derive(Debug)]
pub(super) enum Passage {
    /// Request and response are whole.
    Whole,
    /// The response is whole, the request is not and will not be read to its end.
    Early,
    /// Both sides speak another protocol from now on.
    Switched,
    /// The backend asked to come again later.
    PutOff,
    /// The client's side broke.
    Client(ClientFault),
    /// More request body came than allowed.
    TooLarge,
    /// The request body came too slowly.
    BodyLate,
    /// The client took no byte of the response for too long.
    WriteTimeout,
    /// The backend's side broke.
    Backend(BackendFault),
    /// A clock rang.
    Clock(Timer),
    /// What serves the request has to go.
    Going(Going),
}

/// What has to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Going {
    /// The instance.
    Instance,
    /// The gateway.
    Gateway,
}

/// How far the request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Upload {
    Sending,
    Flushing,
    Done,
    /// The backend takes no more of it; an answer may still come.
    Refused,
}

/// How far the response is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Download {
    Waiting,
    Streaming,
    Flushing,
    Done,
}

/// How slowly the request body may come.
#[derive(Debug)]
pub(super) struct BodyClock {
    /// `None` where the time says nothing of the client.
    pub(super) pace: Option<Pace>,
    /// Since when bytes of the body are waited for.
    pub(super) waiting: Option<Instant>,
}

impl BodyClock {
    fn waits(&mut self) {
        if self.pace.is_some() && self.waiting.is_none() {
            self.waiting = Some(clock());
        }
    }

    fn moved(&mut self, bytes: usize) {
        if let (Some(pace), Some(since)) = (&mut self.pace, self.waiting.take()) {
            pace.moved(clock().saturating_duration_since(since), bytes as u64);
        }
    }

    fn due(&self) -> Option<Instant> {
        Some(self.waiting? + self.pace?.patience())
    }
}

/// What an exchange counts and knows besides its request.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Of the response head that was sent.
    pub(super) status: Option<u16>,
    /// Whether the response is one that may end anywhere (server-sent events).
    pub(super) event_stream: bool,
    /// Bytes of the request body taken from the client.
    pub(super) bytes_in: u64,
    /// Bytes of the response body given to the client.
    pub(super) bytes_out: u64,
    /// Interim responses so far.
    pub(super) interim: u32,
}

/// One passage.
pub(super) struct Duplex<'x, C, B> {
    pub(super) client: &'x mut C,
    pub(super) backend: &'x mut B,
    pub(super) request: &'x mut RequestCtx,
    pub(super) timer: &'x mut DeadlineTimer,
    pub(super) replay: &'x mut Replay,
    pub(super) progress: &'x mut Progress,
    pub(super) body: BodyClock,
    pub(super) write_timeout: Duration,
    pub(super) max_body: Option<u64>,
    pub(super) upgrade: bool,
    upload: Upload,
    /// The backend takes no more of the request body for now.
    stalled: bool,
    download: Download,
    /// Until when a stream that was asked to end may go on, and what for.
    grace: Option<(Instant, Passage)>,
    watch: Option<Pin<Box<dyn Future<Output = Going> + Send>>>,
    watched: bool,
}

/// What [`Duplex::new`] borrows and is told.
pub(super) struct Parts<'x, C, B> {
    pub(super) client: &'x mut C,
    pub(super) backend: &'x mut B,
    pub(super) request: &'x mut RequestCtx,
    pub(super) timer: &'x mut DeadlineTimer,
    pub(super) replay: &'x mut Replay,
    pub(super) progress: &'x mut Progress,
    /// Whether an upgrade was passed on.
    pub(super) upgrade: bool,
}

impl<'x, C: ClientSide, B: BackendSide> Duplex<'x, C, B> {
    /// The passage of a request whose head was given to `backend`.
    pub(super) fn new(parts: Parts<'x, C, B>) -> Self {
        let limits = parts.request.limits();
        let paced = parts.client.is_paced();
        let pace = paced.then(|| Pace::new(limits.body_read_timeout, limits.min_body_rate));
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
            body: BodyClock { pace, waiting: None },
            upgrade: parts.upgrade,
            upload: if empty { Upload::Flushing } else { Upload::Sending },
            stalled: false,
            download: Download::Waiting,
            grace: None,
            watch: None,
            watched: false,
        }
    }

    /// Goes as far as possible. Resolves once; dropping it leaves both sides as they are.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Passage> {
        if let Poll::Ready(ended) = self.poll_up(cx) {
            return Poll::Ready(ended);
        }
        if let Poll::Ready(ended) = self.poll_down(cx) {
            return Poll::Ready(ended);
        }
        // A body that the backend does not take is not read, and its end not seen by reading.
        let unread = self.upload != Upload::Sending || self.stalled;
        if unread && self.client.poll_gone(cx).is_ready() {
            return Poll::Ready(Passage::Client(ClientFault::Gone));
        }
        self.poll_clocks(cx)
    }

    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Passage> {
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
                    Poll::Ready(Err(fault)) => return Poll::Ready(Passage::Client(fault)),
                    Poll::Pending => {
                        match self.backend.poll_flush(cx) {
                            Poll::Ready(Ok(())) => self.body.waits(),
                            Poll::Ready(Err(_)) => self.upload = Upload::Refused,
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
                return Poll::Ready(Passage::TooLarge);
            }
            match self.backend.poll_send(cx, data) {
                Poll::Ready(Ok(n)) if kept => self.replay.consume(n),
                Poll::Ready(Ok(n)) => {
                    self.replay.sent(&self.client.data()[..n]);
                    self.client.consume(n);
                    self.progress.bytes_in += n as u64;
                }
                Poll::Ready(Err(_)) => {
                    // It may have answered before it closed.
                    self.upload = Upload::Refused;
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
        if self.upload == Upload::Refused && self.download != Download::Waiting {
            return self.poll_discard(cx);
        }
        if self.upload == Upload::Flushing {
            match self.backend.poll_flush(cx) {
                Poll::Ready(Ok(())) => self.upload = Upload::Done,
                Poll::Ready(Err(_)) => self.upload = Upload::Refused,
                Poll::Pending => {}
            }
        }
        Poll::Pending
    }

    /// Throws away what still comes of a request that its backend has answered and takes no more of: a
    /// client that reads only once it has sent everything would wait for ever.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<Passage> {
        loop {
            match self.client.poll_body(cx) {
                Poll::Ready(Ok(true)) => {
                    let n = self.client.data().len();
                    self.client.consume(n);
                    self.progress.bytes_in += n as u64;
                }
                Poll::Ready(Err(fault)) => return Poll::Ready(Passage::Client(fault)),
                Poll::Ready(Ok(false)) | Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn end_upload(&mut self) {
        let trailers = self.client.trailers().and_then(only_allowed);
        self.upload = match self.backend.finish(trailers) {
            Ok(()) => Upload::Flushing,
            Err(_) => Upload::Refused,
        };
    }

    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Passage> {
        while self.download == Download::Waiting {
            match self.backend.poll_head(cx) {
                Poll::Ready(Ok(answered)) => {
                    if let Some(ended) = self.answered(answered) {
                        return Poll::Ready(ended);
                    }
                }
                Poll::Ready(Err(fault)) => return Poll::Ready(Passage::Backend(fault)),
                Poll::Pending => {
                    // An interim answer waits for nobody.
                    return match self.client.poll_flush(cx) {
                        Poll::Ready(Err(fault)) => Poll::Ready(Passage::Client(fault)),
                        _ => Poll::Pending,
                    };
                }
            }
        }
        while self.download == Download::Streaming {
            match self.backend.poll_body(cx) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => {
                    let trailers = self.backend.trailers().and_then(only_allowed);
                    if let Err(fault) = self.client.finish(trailers) {
                        return Poll::Ready(Passage::Client(fault));
                    }
                    self.download = Download::Flushing;
                    break;
                }
                Poll::Ready(Err(fault)) => return Poll::Ready(Passage::Backend(fault)),
                Poll::Pending => {
                    return match self.client.poll_flush(cx) {
                        Poll::Ready(Err(fault)) => Poll::Ready(Passage::Client(fault)),
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
                Poll::Ready(Err(fault)) => return Poll::Ready(Passage::Client(fault)),
                Poll::Pending => return Poll::Pending,
            }
        }
        if self.download == Download::Flushing {
            match self.client.poll_flush(cx) {
                Poll::Ready(Ok(())) => self.download = Download::Done,
                Poll::Ready(Err(fault)) => return Poll::Ready(Passage::Client(fault)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(if self.upload == Upload::Done {
            Passage::Whole
        } else {
            Passage::Early
        })
    }

    /// A head came; says how the passage ends, if it does.
    fn answered(&mut self, answered: Answered) -> Option<Passage> {
        let malformed = |what: &'static str| Some(Passage::Backend(BackendFault::Malformed(what.into())));
        let status = answered.status;
        if status == 101 && (!self.upgrade || self.backend.upgraded_to().is_none()) {
            // Passed on, it would turn what follows into bytes that no rule looks at.
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
            if !repeated {
                self.client.interim(status, self.backend.fields());
            }
            return None;
        }
        let now = clock();
        let fields = self.backend.fields();
        if status == 429 && self.replay.is_possible() {
            let retry_after = fields.first("retry-after");
            if super::retry::put_off(self.request, retry_after) {
                return Some(Passage::PutOff);
            }
        }
        let kind = fields.first("content-type").unwrap_or_default();
        self.progress.event_stream = is_event_stream(kind);
        self.request.head_received = true;
        self.request.clocks.head_received(now);
        self.request.answers(now);
        let started = self.request.attempt_started;
        self.request.upstream = started.map(|at| now.saturating_duration_since(at));
        if let Some(permit) = &self.request.permit {
            permit.report(Outcome::Responded { status }, now);
        }
        let timing = self.request.server_timing();
        let head = ResponseHead {
            status,
            phrase: self.backend.phrase(),
            fields,
            length: answered.length,
            trailers: B::LENGTH_AND_TRAILERS,
            told_length: answered.told_length,
            timing: timing.as_deref(),
            upgrade: if status == 101 {
                self.backend.upgraded_to()
            } else {
                None
            },
            last: self.request.draining() || self.upload == Upload::Sending,
        };
        if let Err(fault) = self.client.respond(&head) {
            return Some(Passage::Client(fault));
        }
        if status == 101 {
            self.progress.status = Some(self.client.switched_status());
            return Some(Passage::Switched);
        }
        self.progress.status = Some(status);
        self.download = Download::Streaming;
        None
    }

    fn poll_clocks(&mut self, cx: &mut Context<'_>) -> Poll<Passage> {
        loop {
            let blocked = self
                .client
                .blocked_since()
                .map(|since| since + self.write_timeout);
            let next = self.request.clocks.next();
            let watch = (!self.watched).then(|| self.request.started + WATCH_AFTER);
            let grace = self.grace.as_ref().map(|(until, _)| *until);
            let all = [blocked, next.map(|(at, _)| at), self.body.due(), watch, grace];
            if let Some(watch) = &mut self.watch
                && let Poll::Ready(going) = watch.as_mut().poll(cx)
            {
                self.watch = None;
                if going == Going::Gateway {
                    return Poll::Ready(Passage::Going(going));
                }
                if let Some(ended) = self.ask_to_end(Passage::Going(going)) {
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
                    return Poll::Ready(Passage::Clock(timer));
                }
                self.request.clocks.age_noted();
                if let Some(ended) = self.ask_to_end(Passage::Clock(timer)) {
                    return Poll::Ready(ended);
                }
            } else if over(blocked) {
                return Poll::Ready(Passage::WriteTimeout);
            } else if over(self.body.due()) {
                return Poll::Ready(Passage::BodyLate);
            } else if let Some((_, ended)) = self.grace.take_if(|(at, _)| *at <= now) {
                return Poll::Ready(ended);
            }
        }
    }

    /// Asks the client to end the stream; says that the passage ends, if nobody can be asked.
    fn ask_to_end(&mut self, ended: Passage) -> Option<Passage> {
        let grace = self.client.ask_to_end();
        if grace.is_zero() {
            return Some(ended);
        }
        if self.grace.is_none() {
            self.grace = Some((clock() + grace, ended));
        }
        None
    }

    fn watch(&self) -> Option<Pin<Box<dyn Future<Output = Going> + Send>>> {
        let permit = self.request.permit.as_ref()?;
        Some(Box::pin(going(
            Arc::clone(permit.endpoint()),
            self.request.drain(),
        )))
    }
}

/// Resolves when the instance or the gateway has to go.
pub(super) async fn going(endpoint: Arc<EndpointState>, drain: watch::Receiver<Drain>) -> Going {
    tokio::select! {
        () = endpoint.ended() => Going::Instance,
        () = closing(drain) => Going::Gateway,
    }
}

/// Resolves when the gateway has to go: at the drain's deadline.
pub(super) async fn closing(mut drain: watch::Receiver<Drain>) {
    if drain.wait_for(|phase| *phase == Drain::Closing).await.is_err() {
        std::future::pending().await
    }
}

fn is_event_stream(content_type: &[u8]) -> bool {
    let essence = content_type.split(|&b| b == b';').next().unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
}

/// The trailers that may be passed on; `None` when there is none.
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

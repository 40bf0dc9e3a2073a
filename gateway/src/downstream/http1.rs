//! The HTTP/1 connection loop: waits, reads a head, serves the request, and again.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use sluice_model::Limits;
use tokio::io::AsyncWrite;
use tokio::sync::watch;

use super::http1_client::Http1Client;
use crate::edge::{CloseReason, Connection, Drain};
use crate::exchange::{self, ClientSide, DeadlineTimer};
use crate::http1::{
    ChunkLimits, HeadFault, HeadInfo, HeadLimits, RejectedHead, RequestFraming, Scan, judge, scan,
};
use crate::local_response::ErrorResponse;
use crate::observe::{Reason, RequestProtocol};
use crate::request::{Engine, RequestCtx, RequestEnd, RequestId};
use crate::throttle::clock;

/// How long an idle connection still waits for a request once the gateway drains. Closing at once would reset
/// a request on its way.
const DRAIN_IDLE: Duration = Duration::from_secs(1);

/// Lingering close: bounds of reading on while the client may still send, so that the last response is not
/// lost to the reset that unread bytes cause (RFC 9112 9.6). Longest silence, longest duration, most bytes.
const LINGER_SILENCE: Duration = Duration::from_secs(2);
const LINGER: Duration = Duration::from_secs(10);
const LINGER_BYTES: u64 = 64 << 20;

/// Timeout of writing the last bytes of a connection.
const LAST_WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a head is rejected.
#[derive(Debug, Clone, Copy)]
enum HeadRejection {
    Fault(HeadFault),
    BodyTooLarge {
        length: u64,
        limit: u64,
    },
    Timeout,
    /// The client disconnected in the middle of a head; there is nobody to respond to.
    Gone,
}

impl HeadRejection {
    fn reason(self) -> Reason {
        match self {
            Self::Fault(HeadFault::HeadTooLarge { .. } | HeadFault::TooManyFields { .. }) => {
                Reason::HeadersTooLarge
            }
            Self::Fault(HeadFault::UriTooLong { .. }) => Reason::UriTooLong,
            Self::Fault(_) => Reason::BadRequest,
            Self::BodyTooLarge { .. } => Reason::BodyTooLarge,
            Self::Timeout => Reason::RequestTimeout,
            Self::Gone => Reason::ClientGone,
        }
    }

    /// The status, where it differs from the reason's own.
    fn status(self) -> Option<u16> {
        match self {
            Self::Fault(HeadFault::ConnectRefused) => Some(405),
            _ => None,
        }
    }
}

impl std::fmt::Display for HeadRejection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fault(fault) => fault.fmt(f),
            Self::BodyTooLarge { length, limit } => {
                write!(
                    f,
                    "the request body of {length} bytes is longer than {limit} bytes"
                )
            }
            Self::Timeout => f.write_str("the request head did not come in time"),
            Self::Gone => f.write_str("the client left in the middle of a request head"),
        }
    }
}

/// The next step of the connection.
enum NextHead {
    /// Serve this request.
    Request(HeadInfo),
    /// Close in order.
    Close,
    /// Respond to a rejected head, and close.
    Reject(HeadRejection),
}

/// Serves one connection to its end; returns why it ended.
pub(super) async fn serve(
    engine: &Arc<Engine>,
    connection: Connection,
    drain: watch::Receiver<Drain>,
) -> CloseReason {
    let chunks = ChunkLimits::from(&engine.table.peek().settings().limits);
    let mut http1 = Http1 {
        client: Http1Client::new(connection, chunks),
        timer: DeadlineTimer::new(),
        drain: DrainWatch::new(drain),
        born: clock(),
    };
    http1.run(engine).await;
    http1.close().await;
    http1.client.ends_for.unwrap_or(CloseReason::Served)
}

struct Http1 {
    client: Http1Client,
    timer: DeadlineTimer,
    drain: DrainWatch,
    born: Instant,
}

/// The limits that one iteration of the loop needs.
struct LoopLimits {
    head: HeadLimits,
    header_timeout: Duration,
    idle_timeout: Duration,
    max_age: Option<Duration>,
    max_body: Option<u64>,
    chunks: ChunkLimits,
}

impl LoopLimits {
    fn of(limits: &Limits) -> Self {
        Self {
            head: HeadLimits::from(limits),
            header_timeout: limits.header_timeout,
            idle_timeout: limits.idle_timeout,
            max_age: limits.max_connection_age,
            max_body: limits.max_body_bytes,
            chunks: ChunkLimits::from(limits),
        }
    }
}

impl Http1 {
    async fn run(&mut self, engine: &Arc<Engine>) {
        loop {
            let (head, now) = self.next(engine).await;
            match head {
                NextHead::Request(info) => self.client.begin(info),
                NextHead::Close => return,
                NextHead::Reject(rejection) => return self.reject(engine, rejection).await,
            }
            // Boxed, so that an idle connection keeps no room for the state of a request.
            Box::pin(exchange::serve(engine, &mut self.client, &mut self.timer, now)).await;
            let goes_on = self.client.may_continue();
            self.client.settle();
            if !goes_on {
                return;
            }
        }
    }

    /// Waits for the next request and reads its head. Also returns when the head was complete.
    async fn next(&mut self, engine: &Engine) -> (NextHead, Instant) {
        let limits = LoopLimits::of(&engine.table.peek().settings().limits);
        self.client.chunks = limits.chunks;
        let mut wait = HeadWait {
            since: None,
            begun: None,
            scanned: 0,
        };
        let head = poll_fn(|cx| self.poll_next(cx, &limits, &mut wait)).await;
        let now = clock();
        if let NextHead::Request(_) = head
            && limits
                .max_age
                .is_some_and(|max| now.saturating_duration_since(self.born) >= max)
        {
            self.client.aged = true;
            self.client.ends_for = Some(CloseReason::MaxAge);
        }
        (head, now)
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        limits: &LoopLimits,
        wait: &mut HeadWait,
    ) -> Poll<NextHead> {
        loop {
            let client = &mut self.client;
            if !client.reader.buffered().is_empty() {
                match scan(client.reader.buffered(), &limits.head, wait.scanned) {
                    Scan::Complete { len } => {
                        return Poll::Ready(judge_next(&client.reader.buffered()[..len], limits));
                    }
                    Scan::NeedMore { scanned } => wait.scanned = scanned,
                    Scan::Bad(fault) => return Poll::Ready(NextHead::Reject(HeadRejection::Fault(fault))),
                }
            }
            if client.ended {
                return Poll::Ready(client_ended(client.reader.buffered()));
            }
            let Some(io) = &mut client.io else {
                return Poll::Ready(NextHead::Close);
            };
            let most = limits.head.max_bytes.saturating_add(READ_BEYOND);
            match client.reader.buffer().poll_fill(cx, io, most) {
                Poll::Ready(Ok(1..)) => continue,
                Poll::Ready(_) => {
                    client.ended = true;
                    continue;
                }
                Poll::Pending => {}
            }
            return self.poll_waiting(cx, limits, wait);
        }
    }

    /// Applies the timeouts of a wait: resolves when one of them ends the wait.
    fn poll_waiting(
        &mut self,
        cx: &mut Context<'_>,
        limits: &LoopLimits,
        wait: &mut HeadWait,
    ) -> Poll<NextHead> {
        let began = !self.client.reader.buffered().is_empty();
        loop {
            let phase = self.drain.poll_phase(cx);
            let now = clock();
            let since = *wait.since.get_or_insert(now);
            let (due, reason) = if began {
                (
                    *wait.begun.get_or_insert(now) + limits.header_timeout,
                    CloseReason::HeaderTimeout,
                )
            } else {
                let idle = since + limits.idle_timeout;
                match phase {
                    Drain::Serving => (idle, CloseReason::IdleTimeout),
                    Drain::Draining => (idle.min(self.drain.since + DRAIN_IDLE), CloseReason::Drained),
                    Drain::Closing => (now, CloseReason::Drained),
                }
            };
            ready!(self.timer.poll_at(cx, due));
            if due > clock() {
                continue;
            }
            self.client.ends_for = Some(reason);
            return Poll::Ready(if began {
                NextHead::Reject(HeadRejection::Timeout)
            } else {
                NextHead::Close
            });
        }
    }

    /// Responds to a rejected head and logs it; the caller closes the connection.
    async fn reject(&mut self, engine: &Arc<Engine>, rejection: HeadRejection) {
        let mut request = RequestCtx::new(engine, clock());
        request.client = Some(self.client.info.client_ip());
        request.request_id = RequestId::of(None, || fastrand::u128(..));
        request.reason = Some(rejection.reason());
        let mut status = None;
        let mut bytes_out = 0;
        if !matches!(rejection, HeadRejection::Gone) {
            let mut error = ErrorResponse::new(rejection.reason(), rejection.to_string());
            error.status = rejection.status();
            let rendered = request.render_local(&error.into());
            self.client.respond_rejected(&rendered);
            bytes_out = rendered.body.len() as u64;
            status = self.flush().await.then_some(rendered.status);
        }
        let seen = RejectedHead::of(self.client.reader.buffered());
        let ending = RequestEnd {
            method: &seen.method,
            host: &seen.host,
            target: &seen.target,
            user_agent: seen.user_agent.as_deref(),
            protocol: RequestProtocol::Http11,
            status,
            final_status: None,
            bytes_in: 0,
            bytes_out,
            // No trace: a caller cannot be told from a head that is not to be trusted.
            trace_state: None,
        };
        request.finish(&ending, clock());
    }

    async fn flush(&mut self) -> bool {
        let (client, timer) = (&mut self.client, &mut self.timer);
        let until = clock() + LAST_WRITE_TIMEOUT;
        poll_fn(|cx| match client.poll_flush(cx) {
            Poll::Ready(written) => Poll::Ready(written.is_ok()),
            Poll::Pending => timer.poll_at(cx, until).map(|()| false),
        })
        .await
    }

    /// Closes the connection, lingering where the client may still send.
    async fn close(&mut self) {
        if self.client.aborted || self.client.io.is_none() || !self.flush().await {
            return;
        }
        let unasked = matches!(
            self.client.ends_for,
            Some(CloseReason::IdleTimeout | CloseReason::Drained)
        );
        let unread = unasked || !self.client.reader.complete() || !self.client.reader.buffered().is_empty();
        let Some(io) = &mut self.client.io else { return };
        let until = clock() + LAST_WRITE_TIMEOUT;
        let timer = &mut self.timer;
        let shut = poll_fn(|cx| match Pin::new(&mut *io).poll_shutdown(cx) {
            Poll::Ready(done) => Poll::Ready(done.is_ok()),
            Poll::Pending => timer.poll_at(cx, until).map(|()| false),
        });
        if !shut.await || self.client.ended || self.client.spent || !unread {
            return;
        }
        let (silence, all) = if unasked {
            (DRAIN_IDLE, DRAIN_IDLE)
        } else {
            (LINGER_SILENCE, LINGER)
        };
        let start = clock();
        let mut last = start;
        let mut left = LINGER_BYTES;
        let buffer = self.client.reader.buffer();
        let already = buffer.data().len();
        buffer.consume(already);
        poll_fn(|cx| {
            loop {
                match buffer.poll_fill(cx, io, crate::framing::BLOCK) {
                    Poll::Ready(Ok(n @ 1..)) if n as u64 <= left => {
                        left -= n as u64;
                        buffer.consume(n);
                        last = clock();
                    }
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return timer.poll_at(cx, (last + silence).min(start + all)),
                }
            }
        })
        .await;
    }
}

/// Most bytes of a body that are read together with its head.
const READ_BEYOND: usize = 16 * 1024;

/// State of one wait for a head.
struct HeadWait {
    since: Option<Instant>,
    /// When the first byte was received.
    begun: Option<Instant>,
    scanned: usize,
}

fn judge_next(head: &[u8], limits: &LoopLimits) -> NextHead {
    match judge(head, &limits.head) {
        Err(fault) => NextHead::Reject(HeadRejection::Fault(fault)),
        Ok(info) => match (info.framing, limits.max_body) {
            (RequestFraming::Length(length), Some(limit)) if length > limit => {
                NextHead::Reject(HeadRejection::BodyTooLarge { length, limit })
            }
            _ => NextHead::Request(info),
        },
    }
}

/// The client closed its side after `begun`, the bytes of an incomplete head.
fn client_ended(begun: &[u8]) -> NextHead {
    // Empty lines alone are not a truncated request.
    if begun.iter().all(u8::is_ascii_whitespace) {
        NextHead::Close
    } else {
        NextHead::Reject(HeadRejection::Gone)
    }
}

/// Watches the gateway's drain phase.
///
/// The wait list of the watch channel is shared by all connections, so each connection registers once and not
/// at every wait for a request: between two changes a check is one load.
struct DrainWatch {
    receiver: watch::Receiver<Drain>,
    phase: Drain,
    /// When the phase began.
    since: Instant,
    changed: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl DrainWatch {
    fn new(mut receiver: watch::Receiver<Drain>) -> Self {
        let phase = *receiver.borrow_and_update();
        Self {
            receiver,
            phase,
            since: clock(),
            changed: None,
        }
    }

    /// The current phase. The task is woken when another phase begins.
    fn poll_phase(&mut self, cx: &mut Context<'_>) -> Drain {
        loop {
            // An error means that the sender is gone: the phase cannot change any more.
            if self.receiver.has_changed().unwrap_or(false) {
                self.phase = *self.receiver.borrow_and_update();
                self.since = clock();
                self.changed = None;
            }
            if self.changed.is_some() {
                return self.phase;
            }
            let mut receiver = self.receiver.clone();
            let mut changed: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move {
                if receiver.changed().await.is_err() {
                    std::future::pending().await
                }
            });
            if changed.as_mut().poll(cx).is_pending() {
                self.changed = Some(changed);
                return self.phase;
            }
        }
    }
}

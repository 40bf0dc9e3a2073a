//! HTTP/2: pingora-core drives the connection, each stream goes the way of an h1 request.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora_core::apps::{HttpServerApp, ReusedHttpStream, ServerApp};
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora_core::server::ShutdownWatch;
use pingora_proxy::{HttpProxy, Session};
use sluice_model::Limits;
use tokio::sync::{Notify, watch};

use super::heads::View;
use super::http::HttpAdapter;
use super::{GOAWAY_GRACE, Proxy, current_timers, with_timers};
use crate::edge::{CloseReason, Connection, Drain};
use crate::h1::GuardedStream;
use crate::h2::FrameLimits;
use crate::request::Pace;

/// What one stream may send before its request is read on: small, because a held request's body
/// waits here.
const STREAM_WINDOW: u32 = 64 * 1024;

/// What all streams of a connection may send. Much larger than one stream's: held uploads must
/// not stop the others (RFC 9113 leaves both at 64 KiB).
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;

/// What one stream buffers on its way to a client that reads slowly, in bytes.
const SEND_BUFFER: usize = 64 * 1024;

/// Streams reset by the client that are remembered: beyond, the connection is ended (rapid reset).
const RESET_STREAMS: usize = 64;

/// How much of a head the HTTP/2 layer keeps: it counts 32 bytes more for each field, and answers what is beyond
/// with a bare 431. What is less than twice over a limit gets here, and a whole answer.
fn head_list_size(limits: &Limits) -> u32 {
    let size = 2 * limits.max_header_bytes + 32 * limits.max_headers;
    u32::try_from(size).unwrap_or(u32::MAX)
}

/// How long a connection without streams may stay after GOAWAY: until the client has read it, and what it sent
/// meanwhile is here.
const AFTER_GOAWAY: Duration = Duration::from_secs(1);

/// How long the streams of a connection may take to be reset at the drain's deadline.
const RESETS: Duration = Duration::from_secs(2);

/// How long a connection that came while the gateway drains may take to open its first stream.
const IDLE_WHILE_DRAINING: Duration = Duration::from_secs(1);

/// One connection's view of the shared proxy.
struct ConnectionApp {
    http: Arc<HttpProxy<HttpAdapter>>,
    h2: H2Options,
    drain: watch::Receiver<Drain>,
    /// Clients should go on with another connection.
    leave: Notify,
    activity: Activity,
}

/// The streams open on a connection, and since when there are none.
///
/// Pingora could watch over idleness, too, but drops the connection without GOAWAY, and not at all once it has
/// sent one: a client that keeps an idle connection would hold up the way out.
struct Activity {
    open: AtomicUsize,
    resting: Mutex<Instant>,
    ended: Notify,
}

impl Activity {
    fn new() -> Self {
        Self {
            open: AtomicUsize::new(0),
            resting: Mutex::new(Instant::now()),
            ended: Notify::new(),
        }
    }

    /// One more stream, until the guard is dropped.
    fn open(&self) -> OpenStream<'_> {
        self.open.fetch_add(1, Ordering::AcqRel);
        OpenStream(self)
    }

    /// Counts idleness from now.
    fn rest(&self) {
        *self.resting.lock() = Instant::now();
    }

    /// Resolves when no stream has been open for so long. Cancel-safe.
    async fn idle(&self, patience: Duration) {
        loop {
            while self.open.load(Ordering::Acquire) > 0 {
                self.ended.notified().await;
            }
            let due = *self.resting.lock() + patience;
            if due <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(due.into()).await;
        }
    }
}

struct OpenStream<'a>(&'a Activity);

impl Drop for OpenStream<'_> {
    fn drop(&mut self) {
        // Before the count: who sees none open sees since when.
        self.0.rest();
        if self.0.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.ended.notify_one();
        }
    }
}

impl ConnectionApp {
    fn new(proxy: &Proxy, limits: &Limits, drain: watch::Receiver<Drain>) -> Self {
        let mut h2 = default_h2_options();
        h2.max_header_list_size(head_list_size(limits))
            .max_concurrent_streams(limits.max_concurrent_streams)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buffer_size(SEND_BUFFER)
            .max_pending_accept_reset_streams(RESET_STREAMS)
            .max_concurrent_reset_streams(RESET_STREAMS);
        Self {
            http: Arc::clone(&proxy.http),
            h2,
            drain,
            leave: Notify::new(),
            activity: Activity::new(),
        }
    }
}

#[async_trait]
impl HttpServerApp for ConnectionApp {
    async fn process_new_http(
        self: &Arc<Self>,
        session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        let _open = self.activity.open();
        if *self.drain.borrow() != Drain::Serving {
            self.leave.notify_one();
        }
        let request = async {
            let timers = current_timers();
            let mut request = pin!(self.http.process_new_http(session, shutdown));
            tokio::select! {
                biased;
                reused = &mut request => return reused,
                () = timers.asked_to_end() => self.leave.notify_one(),
            }
            request.await
        };
        with_timers(request, GOAWAY_GRACE, &self.drain).await.flatten()
    }

    fn h2_options(&self) -> Option<H2Options> {
        Some(self.h2.clone())
    }
}

/// Serves one connection to its end, and tells why it ended. GOAWAY goes out when the gateway drains, the
/// connection is idle, it or a stream of it gets too old, or a stream's instance has to go; what is open
/// then may finish, and a connection that a client keeps although nothing is open on it is closed. At the
/// drain's deadline every stream is reset, and the connection is dropped with what is still open on it a
/// moment later.
///
/// A connection that comes while the gateway drains gets one stream before GOAWAY, as on HTTP/1 it
/// gets one answer: a client that is told to leave at once may only come back at once.
pub(super) async fn serve(
    proxy: &Proxy,
    connection: Connection,
    mut drain: watch::Receiver<Drain>,
) -> CloseReason {
    let found = *drain.borrow_and_update();
    if found == Drain::Closing {
        return CloseReason::Drained;
    }
    let limits = proxy.engine.table.peek().settings().limits.clone();
    let app = Arc::new(ConnectionApp::new(proxy, &limits, drain.clone()));
    let mut stream = Box::new(GuardedStream::new(connection, &limits, drain.clone()));
    let context = Arc::clone(stream.context());
    let metrics = proxy.engine.observer.metrics.clone();
    stream.watch_frames(FrameLimits::from(&limits), move |refusal| {
        metrics.stream_refused(refusal);
    });
    let (age, aged_for) = match found {
        Drain::Serving => (limits.max_connection_age, CloseReason::MaxAge),
        Drain::Draining | Drain::Closing => (Some(IDLE_WHILE_DRAINING), CloseReason::Drained),
    };
    let oldest = age.map(|age| Instant::now() + age);
    let (goaway, watch) = watch::channel(false);
    let serving = app.process_new(stream as Stream, &watch);
    tokio::pin!(serving);
    loop {
        let leaving = *goaway.borrow();
        let aged = async {
            match oldest {
                Some(at) if !leaving => tokio::time::sleep_until(at.into()).await,
                _ => std::future::pending().await,
            }
        };
        let idle = app.activity.idle(if leaving {
            AFTER_GOAWAY
        } else {
            limits.idle_timeout
        });
        tokio::select! {
            _ = &mut serving => break,
            changed = drain.changed() => {
                context.ends_for(CloseReason::Drained);
                if changed.is_err() || *drain.borrow() == Drain::Closing {
                    goaway.send_replace(true);
                    // Their tasks end the streams, and log them.
                    let _ = tokio::time::timeout(RESETS, &mut serving).await;
                    break;
                }
            }
            () = app.leave.notified() => {}
            () = aged => context.ends_for(aged_for),
            () = idle => match leaving {
                false => context.ends_for(CloseReason::IdleTimeout),
                // What still waits to be written has a timeout of its own.
                true if context.is_writing() => app.activity.rest(),
                // The client was told and does not go.
                true => break,
            },
        }
        if !goaway.send_replace(true) {
            // The time for the client to leave begins now, however long it was idle before.
            app.activity.rest();
        }
    }
    context.close_reason()
}

/// How slowly the body of an HTTP/2 request may come, where its length is announced.
pub(super) fn announced_pace(session: &Session, limits: &Limits) -> Option<Pace> {
    let length = View::new(session.req_header()).content_length()?;
    (length > 0).then(|| Pace::new(limits.body_read_timeout, limits.min_body_rate))
}

//! The HTTP/2 connection loop: each stream is a request in a task of its own.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use sluice_model::Limits;
use tokio::sync::{Notify, watch};

use super::frame_watch::{FrameWatch, WatchedIo};
use super::http2_client::Http2Client;
use crate::edge::{CloseReason, Connection, ConnectionInfo, Drain};
use crate::exchange::{self, DeadlineTimer};
use crate::h2::{FrameLimits, LastTurn};
use crate::request::Engine;
use crate::throttle::clock;

/// Initial flow-control window of one stream, in bytes: small, because the body of a request in the queue is
/// buffered here.
pub(super) const STREAM_WINDOW: u32 = 64 * 1024;

/// Flow-control window of a connection, in bytes. Much larger than one stream's: the uploads of queued
/// requests must not stop the others (RFC 9113 leaves both at 64 KiB).
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;

/// Send buffer of one stream, for a client that reads slowly, in bytes.
const SEND_BUFFER: usize = 64 * 1024;

/// Most streams reset by the client that the `h2` crate keeps; more end the connection (rapid reset).
const RESET_STREAMS: usize = 64;

/// How long a connection without streams stays open after GOAWAY: until the client has read the frame, and
/// streams that it opened meanwhile have arrived.
const AFTER_GOAWAY: Duration = Duration::from_secs(1);

/// How long the resets of a connection's streams may take at the drain's deadline.
const RESETS: Duration = Duration::from_secs(2);

/// How long a connection accepted while the gateway drains may take to open its first stream.
const IDLE_WHILE_DRAINING: Duration = Duration::from_secs(1);

/// Header list size of the `h2` crate, which counts 32 bytes more for each field, and responds to larger
/// heads with a bare 431. Heads of up to twice the limit reach the gateway's own check, whose 431 has a
/// reason.
fn head_list_size(limits: &Limits) -> u32 {
    let size = 2 * limits.max_header_bytes + 32 * limits.max_headers;
    u32::try_from(size).unwrap_or(u32::MAX)
}

/// Counter of a connection's open streams, with its idle time.
#[derive(Debug)]
struct Activity {
    open: AtomicUsize,
    rested: Mutex<Instant>,
    ended: Notify,
}

impl Activity {
    fn new() -> Self {
        Self {
            open: AtomicUsize::new(0),
            rested: Mutex::new(clock()),
            ended: Notify::new(),
        }
    }

    /// Counts a stream as open until the guard is dropped.
    fn open(self: &Arc<Self>) -> OpenStream {
        self.open.fetch_add(1, Ordering::AcqRel);
        OpenStream(Arc::clone(self))
    }

    /// Whether more than one stream is open.
    fn has_several(&self) -> bool {
        self.open.load(Ordering::Relaxed) > 1
    }

    /// Restarts the idle time.
    fn rest(&self) {
        *self.rested.lock() = clock();
    }

    /// Resolves when no stream has been open for `patience`. Cancel-safe.
    async fn idle(&self, patience: Duration) {
        loop {
            while self.open.load(Ordering::Acquire) > 0 {
                self.ended.notified().await;
            }
            let due = *self.rested.lock() + patience;
            if due <= clock() {
                return;
            }
            tokio::time::sleep_until(due.into()).await;
        }
    }
}

struct OpenStream(Arc<Activity>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        // Before the count: a reader that sees no open stream sees since when.
        self.0.rest();
        if self.0.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.ended.notify_one();
        }
    }
}

/// Serves one connection to its end; returns why it ended. GOAWAY is sent when the gateway drains, when the
/// connection is idle, when the connection or one of its streams reaches its maximum age, or when a stream's
/// instance drains. Streams that are open then may finish; a connection that a client keeps without streams
/// is closed. At the drain's deadline every stream is reset, and the connection is dropped a moment later.
///
/// A connection accepted while the gateway drains gets one stream before GOAWAY, as an HTTP/1 connection gets
/// one response: a client that gets GOAWAY at once may only reconnect at once.
pub(super) async fn serve(
    engine: &Arc<Engine>,
    connection: Connection,
    mut drain: watch::Receiver<Drain>,
) -> CloseReason {
    let found = *drain.borrow_and_update();
    if found == Drain::Closing {
        return CloseReason::Drained;
    }
    let limits = engine.table.peek().settings().limits.clone();
    let metrics = engine.observer.metrics.clone();
    let watched = Arc::new(FrameWatch::default());
    let io = WatchedIo::new(
        connection.io,
        Arc::clone(&watched),
        FrameLimits::from(&limits),
        limits.header_timeout,
        limits.write_timeout,
        Box::new(move |refusal| metrics.stream_refused(refusal)),
    );
    let mut builder = h2::server::Builder::new();
    builder
        .max_header_list_size(head_list_size(&limits))
        .max_concurrent_streams(limits.max_concurrent_streams)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(RESET_STREAMS)
        .max_concurrent_reset_streams(RESET_STREAMS);
    if connection.info.http2.web_socket {
        builder.enable_connect_protocol();
    }
    let http2 = Http2 {
        engine: Arc::clone(engine),
        info: connection.info,
        activity: Arc::new(Activity::new()),
        goaway: Arc::new(Notify::new()),
        drain: drain.clone(),
    };
    if let Ok(connection) = builder.handshake::<_, Bytes>(io).await {
        http2.run(connection, &watched, &limits, found).await;
    }
    watched.close_reason()
}

/// State that the streams of one connection share.
struct Http2 {
    engine: Arc<Engine>,
    info: Arc<ConnectionInfo>,
    activity: Arc<Activity>,
    /// Notified when GOAWAY is to be sent.
    goaway: Arc<Notify>,
    drain: watch::Receiver<Drain>,
}

type Server = h2::server::Connection<WatchedIo, Bytes>;

impl Http2 {
    async fn run(self, mut connection: Server, watched: &FrameWatch, limits: &Limits, found: Drain) {
        let mut drain = self.drain.clone();
        let (age, aged_for) = match found {
            Drain::Serving => (limits.max_connection_age, CloseReason::MaxAge),
            Drain::Draining | Drain::Closing => (Some(IDLE_WHILE_DRAINING), CloseReason::Drained),
        };
        let oldest = age.map(|age| clock() + age);
        let mut leaving = false;
        loop {
            let aged = async {
                match oldest {
                    Some(at) if !leaving => tokio::time::sleep_until(at.into()).await,
                    _ => std::future::pending().await,
                }
            };
            let idle = self.activity.idle(if leaving {
                AFTER_GOAWAY
            } else {
                limits.idle_timeout
            });
            tokio::select! {
                () = self.accept(&mut connection) => return,
                changed = drain.changed() => {
                    watched.ends_for(CloseReason::Drained);
                    if changed.is_err() || *drain.borrow() == Drain::Closing {
                        connection.graceful_shutdown();
                        // The tasks of the streams end and log them.
                        let _ = tokio::time::timeout(RESETS, self.accept(&mut connection)).await;
                        return;
                    }
                }
                () = self.goaway.notified() => {}
                () = aged => watched.ends_for(aged_for),
                () = idle => match leaving {
                    false => watched.ends_for(CloseReason::IdleTimeout),
                    // Pending writes have a timeout of their own.
                    true if watched.is_writing() => self.activity.rest(),
                    // The client ignored GOAWAY.
                    true => return,
                },
            }
            if !leaving {
                leaving = true;
                connection.graceful_shutdown();
                // The grace period begins now, however long the connection was idle before.
                self.activity.rest();
            }
        }
    }

    /// Accepts streams until the connection ends. Cancel-safe.
    async fn accept(&self, connection: &mut Server) {
        let mut turn = LastTurn::default();
        poll_fn(|cx| {
            if self.activity.has_several() {
                ready!(turn.poll(cx));
            }
            loop {
                match connection.poll_accept(cx) {
                    Poll::Ready(Some(Ok((request, respond)))) => self.begin(request, respond),
                    Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await;
    }

    fn begin(&self, request: http::Request<h2::RecvStream>, respond: h2::server::SendResponse<Bytes>) {
        let started = clock();
        let open = self.activity.open();
        if self.drain.has_changed().unwrap_or(true) || *self.drain.borrow() != Drain::Serving {
            self.goaway.notify_one();
        }
        let engine = Arc::clone(&self.engine);
        let client = Http2Client::new(Arc::clone(&self.info), request, respond, Arc::clone(&self.goaway));
        // A task per stream: streams do not wait for each other, and a panic ends one of them.
        tokio::spawn(async move {
            let (mut client, _open) = (client, open);
            let mut timer = DeadlineTimer::new();
            exchange::serve(&engine, &mut client, &mut timer, started).await;
        });
    }
}

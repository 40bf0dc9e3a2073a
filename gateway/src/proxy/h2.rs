//! HTTP/2: pingora-core drives the connection, each stream goes the way of an h1 request.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora_core::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream, ServerApp};
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora_core::server::ShutdownWatch;
use pingora_proxy::HttpProxy;
use sluice_model::Limits;
use tokio::sync::{Notify, watch};

use super::http::HttpAdapter;
use super::{GOAWAY_GRACE, Proxy, current_timers, with_timers};
use crate::edge::{Connection, Drain};
use crate::h1::GuardedStream;

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

/// How long the streams of a connection may take to be reset at the drain's deadline.
const RESETS: Duration = Duration::from_secs(2);

/// How long a connection that came while the gateway drains may take to open its first stream.
const IDLE_WHILE_DRAINING: Duration = Duration::from_secs(1);

/// One connection's view of the shared proxy.
struct ConnectionApp {
    http: Arc<HttpProxy<HttpAdapter>>,
    h2: H2Options,
    server: HttpServerOptions,
    drain: watch::Receiver<Drain>,
    /// Clients should go on with another connection.
    leave: Notify,
}

impl ConnectionApp {
    fn new(proxy: &Proxy, limits: &Limits, drain: watch::Receiver<Drain>) -> Self {
        let mut h2 = default_h2_options();
        h2.max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX))
            .max_concurrent_streams(limits.max_concurrent_streams)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buffer_size(SEND_BUFFER)
            .max_pending_accept_reset_streams(RESET_STREAMS)
            .max_concurrent_reset_streams(RESET_STREAMS);
        let mut server = HttpServerOptions::default();
        server.h2_idle_timeout = Some(limits.idle_timeout);
        Self {
            http: Arc::clone(&proxy.http),
            h2,
            server,
            drain,
            leave: Notify::new(),
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

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.server)
    }
}

/// Serves one connection to its end. GOAWAY goes out when the gateway drains, when the connection
/// or a stream of it gets too old, and when a stream's instance has to go; at the drain's deadline
/// every stream is reset, and the connection is dropped with what is still open on it a moment later.
///
/// A connection that comes while the gateway drains gets one stream before GOAWAY, as on HTTP/1 it
/// gets one answer: a client that is told to leave at once may only come back at once.
pub(super) async fn serve(proxy: &Proxy, connection: Connection, mut drain: watch::Receiver<Drain>) {
    let found = *drain.borrow_and_update();
    if found == Drain::Closing {
        return;
    }
    let limits = proxy.engine.serving.load().snapshot().settings().limits.clone();
    let app = Arc::new(ConnectionApp::new(proxy, &limits, drain.clone()));
    let stream = Box::new(GuardedStream::new(connection, &limits, drain.clone()));
    let age = match found {
        Drain::Serving => limits.max_connection_age,
        Drain::Draining | Drain::Closing => Some(IDLE_WHILE_DRAINING),
    };
    let oldest = age.map(|age| Instant::now() + age);
    let (goaway, watch) = watch::channel(false);
    let serving = app.process_new(stream as Stream, &watch);
    tokio::pin!(serving);
    loop {
        let aged = async {
            match oldest {
                Some(at) if !*goaway.borrow() => tokio::time::sleep_until(at.into()).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = &mut serving => return,
            changed = drain.changed() => {
                goaway.send_replace(true);
                if changed.is_err() || *drain.borrow() == Drain::Closing {
                    // Their tasks end the streams, and log them.
                    let _ = tokio::time::timeout(RESETS, &mut serving).await;
                    return;
                }
            }
            () = app.leave.notified() => {
                goaway.send_replace(true);
            }
            () = aged => {
                goaway.send_replace(true);
            }
        }
    }
}

//! Prepared connections through Pingora's HTTP proxying; upgrades through a tunnel of ours.
//!
//! Sluice owns the HTTP/1 keep-alive loop: it reads and judges each head, sends upgrades to the
//! tunnel and the rest to pingora-proxy, one request at a time. HTTP/2 is pingora-core's, with
//! each stream handed on the same way.

mod answers;
mod ctx;
mod h1;
mod h2;
mod heads;
mod http;
mod retry;
mod tunnel;
mod upstream;

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::protocols::Digest;
use pingora_core::server::configuration::ServerConf;
use pingora_proxy::{HttpProxy, Session};
use tokio::sync::watch;

pub use self::tunnel::FrameTracker;

use self::http::HttpAdapter;
use crate::edge::{CloseReason, Connection, ConnectionInfo, Drain, Serve, Wire};
use crate::h1::{BodyFault, ConnectionContext};
use crate::request::{Engine, RequestTimers};

/// Idle connections to backends kept over all endpoints. Pingora's 128 would close most of them
/// between two requests of a busy gateway.
const UPSTREAM_POOL: usize = 16_384;

/// Serves HTTP on prepared connections.
pub struct Proxy {
    engine: Arc<Engine>,
    http: Arc<HttpProxy<HttpAdapter>>,
    /// Pingora's own shutdown signal; turned on when the gateway drains.
    shutdown: watch::Sender<bool>,
}

impl Proxy {
    /// A proxy over the shared engine. `workers` is the number of worker threads.
    pub fn new(engine: Arc<Engine>, workers: usize) -> Self {
        let conf = ServerConf {
            threads: workers,
            // The adapter counts attempts itself: what a 429 puts off is bounded by time.
            max_retries: usize::MAX,
            upstream_keepalive_pool_size: UPSTREAM_POOL / workers.max(1),
            ..ServerConf::default()
        };
        let mut proxy = HttpProxy::new(
            HttpAdapter {
                engine: Arc::clone(&engine),
            },
            Arc::new(conf),
        );
        proxy.handle_init_modules();
        Self {
            engine,
            http: Arc::new(proxy),
            shutdown: watch::Sender::new(false),
        }
    }

    /// From now on responses end their connections.
    pub fn drain(&self) {
        self.shutdown.send_replace(true);
    }
}

#[async_trait]
impl Serve for Proxy {
    async fn serve(&self, connection: Connection, drain: watch::Receiver<Drain>) -> CloseReason {
        match connection.wire {
            Wire::Http1 => h1::serve(self, connection, drain).await,
            Wire::Http2 => h2::serve(self, connection, drain).await,
        }
    }
}

tokio::task_local! {
    /// The clocks of the request a task is serving: made before Pingora makes its context.
    static TIMERS: Arc<RequestTimers>;
}

/// How long an HTTP/2 stream may take to end once its client was told to: as long as a WebSocket.
/// An HTTP/1 response has no such words.
const GOAWAY_GRACE: Duration = Duration::from_secs(5);

/// Serves one request with clocks that run beside it, until the gateway closes what is open.
/// `grace` is what its streams get when they are asked to end. `None`: it was answered, but its
/// client went on sending for too long; it was dropped, and the connection or stream with it.
async fn with_timers<F: Future>(
    request: F,
    grace: Duration,
    drain: &watch::Receiver<Drain>,
) -> Option<F::Output> {
    let timers = Arc::new(RequestTimers::with_grace(grace));
    let (watch, cut) = (Arc::clone(&timers), Arc::clone(&timers));
    let mut drain = drain.clone();
    let closing = async move {
        if drain.wait_for(|phase| *phase == Drain::Closing).await.is_ok() {
            cut.cut();
        }
        std::future::pending::<Infallible>().await
    };
    TIMERS
        .scope(timers, async move {
            tokio::select! {
                biased;
                output = request => Some(output),
                () = watch.watch() => None,
                never = closing => match never {},
            }
        })
        .await
}

fn current_timers() -> Arc<RequestTimers> {
    TIMERS.try_with(Arc::clone).unwrap_or_default()
}

/// What is known of the connection a session came by.
fn connection_info(digest: Option<&Digest>) -> Option<Arc<ConnectionInfo>> {
    ConnectionContext::of(digest?).map(|context| Arc::clone(context.info()))
}

/// Sees to it that a response which breaks off does not look whole: where nothing but the
/// connection's end delimits its body, that end has to be a reset.
fn break_off(session: &Session) {
    let Some(head) = session.response_written() else {
        return;
    };
    let delimited = ["content-length", "transfer-encoding"]
        .iter()
        .any(|name| head.headers.contains_key(*name));
    if !delimited && let Some(context) = session.digest().and_then(ConnectionContext::of) {
        context.break_off();
    }
}

/// Whether what was sent is the head of server-sent events: a body that has no end of its own.
fn is_event_stream(session: &Session) -> bool {
    let head = session.response_written();
    let kind = head.and_then(|head| head.headers.get("content-type"));
    let kind = kind.map_or(&b""[..], |kind| kind.as_bytes());
    let essence = kind.split(|&b| b == b';').next().unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
}

/// Left on an h1 connection for the request about to be served: whether it may stay open.
struct KeepAlive(bool);

/// What was left for this request; a connection without word is closed.
fn keeps_alive(digest: Option<&Digest>) -> bool {
    let left = digest
        .and_then(ConnectionContext::of)
        .and_then(|context| context.take::<KeepAlive>());
    left.is_some_and(|keep| keep.0)
}

/// What the h1 guard found wrong with a request body, if that is why it cannot be read.
fn body_fault(session: &Session) -> Option<&BodyFault> {
    ConnectionContext::of(session.digest()?)?.fault()
}

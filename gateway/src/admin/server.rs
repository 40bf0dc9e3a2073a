//! The HTTP server of the admin and the health address.
//!
//! The server shares the process with the data plane, so its resources are bounded: connections in number and
//! age, heads in size and time; bodies are not read.
//!
//! What the admin address answers to whom is decided by [`access`](super::access).

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use sluice_model::{AdminAddress, RevisionId};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::access::{self, Refusal};
use super::feed::{EventStream, Feed, feed};
use super::graceful_shutdown::{ShutdownRequest, ShutdownSignal};
use super::query::{ExplainQuery, history_query};
use super::unix_socket::{self, SocketFile};
use super::upgrade;
use super::{AdminState, api, dashboard};
use crate::explain::explain;
use crate::observe::{LiveGauges, RevisionLoad};

/// Open connections at most. For one more the oldest connection without a request is closed: silent clients must
/// not keep a balancer's health check out.
const MAX_CONNECTIONS: usize = 64;

/// Time for a request head; also the idle time of a kept-alive connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Age at which a connection is shut down gracefully; [`LAST_ANSWER`] later it is closed.
const MAX_AGE: Duration = Duration::from_secs(60);

/// How long the last response of a connection may take.
const LAST_ANSWER: Duration = Duration::from_secs(10);

/// The longest request head, in bytes.
const MAX_HEAD: usize = 32 * 1024;

/// Back-off of the accept loop when `accept` fails (no file descriptors left); without it the loop would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The purpose of a server: which paths it serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// All paths: the admin address.
    Admin,
    /// `/healthz` and `/readyz`: the health address.
    Health,
    /// These and `/metrics`: the health address in a cluster, where Prometheus asks each Pod and loopback is out of its reach.
    HealthAndMetrics,
}

impl Purpose {
    fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Health | Self::HealthAndMetrics => "health",
        }
    }
}

/// The address cannot be bound.
#[derive(Debug, Error)]
#[error("cannot listen on {address} for {}: {}", .purpose.as_str(), cause(.address, .source))]
pub struct BindError {
    /// The configured address.
    pub address: AdminAddress,
    /// What the address is for.
    pub purpose: Purpose,
    /// The system's error.
    pub source: io::Error,
}

fn cause(address: &AdminAddress, source: &io::Error) -> String {
    match address {
        AdminAddress::Tcp(_) => crate::edge::bind_error_text(source),
        AdminAddress::Unix(_) => source.to_string(),
    }
}

/// A response: a whole one, or the stream of `/api/events`.
pub(super) type AdminBody = Either<Full<Bytes>, EventStream>;

/// The server of the admin or the health address: bound, not yet serving.
#[derive(Debug)]
pub struct AdminServer {
    listener: Listener,
    address: AdminAddress,
    purpose: Purpose,
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// The stream of a connection.
trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

impl Listener {
    async fn accept(&self) -> io::Result<Box<dyn Io>> {
        Ok(match self {
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

impl AdminServer {
    /// Binds the address; port 0 lets the system choose. A Unix socket has mode 0600, and takes the place of one that
    /// nobody serves on.
    ///
    /// # Errors
    /// [`BindError`], naming the address.
    pub async fn bind(address: impl Into<AdminAddress>, purpose: Purpose) -> Result<Self, BindError> {
        let address = address.into();
        let bound = match &address {
            AdminAddress::Tcp(tcp) => TcpListener::bind(tcp).await.and_then(|l| Self::tcp(l, purpose)),
            AdminAddress::Unix(path) => {
                unix_socket::bind(path).and_then(|l| Self::unix(l, &address, purpose))
            }
        };
        bound.map_err(|source| BindError {
            address,
            purpose,
            source,
        })
    }

    /// Takes over a listening socket that another process bound. `address` is the configured one.
    ///
    /// # Errors
    /// When the socket cannot be registered with the runtime.
    pub fn inherit(socket: OwnedFd, address: &AdminAddress, purpose: Purpose) -> io::Result<Self> {
        match address {
            AdminAddress::Tcp(_) => {
                let listener = std::net::TcpListener::from(socket);
                listener.set_nonblocking(true)?;
                Self::tcp(TcpListener::from_std(listener)?, purpose)
            }
            AdminAddress::Unix(_) => {
                let listener = StdUnixListener::from(socket);
                listener.set_nonblocking(true)?;
                Self::unix(listener, address, purpose)
            }
        }
    }

    fn tcp(listener: TcpListener, purpose: Purpose) -> io::Result<Self> {
        Ok(Self {
            address: listener.local_addr()?.into(),
            listener: Listener::Tcp(listener),
            purpose,
        })
    }

    fn unix(listener: StdUnixListener, address: &AdminAddress, purpose: Purpose) -> io::Result<Self> {
        Ok(Self {
            address: address.clone(),
            listener: Listener::Unix(UnixListener::from_std(listener)?),
            purpose,
        })
    }

    /// The address actually bound.
    pub fn address(&self) -> &AdminAddress {
        &self.address
    }

    /// The address actually bound, of a TCP socket.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match self.address {
            AdminAddress::Tcp(address) => Some(address),
            AdminAddress::Unix(_) => None,
        }
    }

    /// The file of a Unix socket, to be removed when the gateway goes.
    pub fn socket_file(&self) -> Option<SocketFile> {
        match &self.address {
            AdminAddress::Tcp(_) => None,
            AdminAddress::Unix(path) => Some(SocketFile::of(path)),
        }
    }

    /// A duplicate of the listening socket, for another process.
    ///
    /// # Errors
    /// When this process may have no more descriptors.
    pub fn socket(&self) -> io::Result<OwnedFd> {
        match &self.listener {
            Listener::Tcp(listener) => listener.as_fd().try_clone_to_owned(),
            Listener::Unix(listener) => listener.as_fd().try_clone_to_owned(),
        }
    }

    /// Serves until the graceful shutdown was asked for and every connection has ended, or until dropped;
    /// dropping closes every connection.
    pub async fn serve(self, state: Arc<dyn AdminState>, shutdown: ShutdownSignal) {
        let (request, accepting) = shutdown.split();
        let (feed, task) = feed(Arc::clone(&state));
        let is_admin = self.purpose == Purpose::Admin;
        let context = Arc::new(Context {
            address: self.address.clone(),
            purpose: self.purpose,
            state,
            feed,
            shutdown: request.clone(),
        });
        let answer = move |request| answer(Arc::clone(&context), request);
        let follow = async {
            match is_admin {
                true => task.run().await,
                // Nobody can ask for what it tells.
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.serve_with(answer, request, accepting) => {}
            () = follow => {}
        }
    }

    async fn serve_with<A, F>(
        self,
        answer: A,
        mut shutdown: ShutdownRequest,
        accepting: mpsc::Sender<Infallible>,
    ) where
        A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<AdminBody>> + Send + 'static,
    {
        // Owned here, so that dropping this future ends the connections.
        let mut connections = JoinSet::new();
        let mut first = shutdown.clone();
        tokio::select! {
            biased;
            () = first.requested() => {}
            () = self.accept(answer, &shutdown, &mut connections) => {}
        }
        // In this order: `stop_accepting` resolves only after the socket is closed.
        drop(self.listener);
        drop(accepting);
        shutdown.requested().await;
        while connections.join_next().await.is_some() {}
    }

    /// The accept loop; never returns.
    async fn accept<A, F>(&self, answer: A, shutdown: &ShutdownRequest, connections: &mut JoinSet<()>)
    where
        A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<AdminBody>> + Send + 'static,
    {
        let mut open: VecDeque<OpenConnection> = VecDeque::with_capacity(MAX_CONNECTIONS);
        let mut exhausted = false;
        loop {
            let stream = match self.listener.accept().await {
                Ok(stream) => stream,
                Err(error) => {
                    if !exhausted {
                        tracing::warn!(%error, address = %self.address, "cannot accept, waiting");
                        exhausted = true;
                    }
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            exhausted = false;
            while connections.try_join_next().is_some() {}
            open.retain(|connection| !connection.task.is_finished());
            while open.len() >= MAX_CONNECTIONS {
                match open
                    .iter()
                    .position(|connection| !connection.busy.load(Ordering::Relaxed))
                {
                    Some(idle) => open
                        .remove(idle)
                        .into_iter()
                        .for_each(|connection| connection.task.abort()),
                    None => {
                        connections.join_next().await;
                        open.retain(|connection| !connection.task.is_finished());
                    }
                }
            }
            let busy = Arc::new(AtomicBool::new(false));
            let task = connections.spawn(connection(
                stream,
                answer.clone(),
                shutdown.clone(),
                Arc::clone(&busy),
            ));
            open.push_back(OpenConnection { task, busy });
        }
    }
}

/// A connection that is open; kept in the order of accepting, the oldest first.
struct OpenConnection {
    task: AbortHandle,
    /// A request is being served.
    busy: Arc<AtomicBool>,
}

async fn connection<A, F>(
    stream: Box<dyn Io>,
    answer: A,
    mut shutdown: ShutdownRequest,
    busy: Arc<AtomicBool>,
) where
    A: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<AdminBody>>,
{
    let streams = AtomicBool::new(false);
    let service = service_fn(|request| {
        busy.store(true, Ordering::Relaxed);
        let (answer, busy, streams) = (answer(request), &busy, &streams);
        async move {
            let answer = answer.await;
            // A stream is the last response of its connection, and has an age of its own.
            let is_stream = matches!(answer.body(), Either::Right(_));
            streams.store(is_stream, Ordering::Relaxed);
            busy.store(is_stream, Ordering::Relaxed);
            Ok::<_, Infallible>(answer)
        }
    });
    let aged = async {
        sleep(MAX_AGE).await;
        if streams.load(Ordering::Relaxed) {
            std::future::pending().await
        }
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(%error, "admin connection");
            }
            return;
        }
        () = aged => {}
        () = shutdown.requested() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(LAST_ANSWER, connection).await;
}

/// What every request of a server is answered by.
struct Context {
    /// As bound.
    address: AdminAddress,
    purpose: Purpose,
    state: Arc<dyn AdminState>,
    feed: Feed,
    shutdown: ShutdownRequest,
}

async fn answer(context: Arc<Context>, request: Request<Incoming>) -> Response<AdminBody> {
    let Context {
        address,
        purpose,
        state,
        feed,
        shutdown,
    } = &*context;
    let purpose = *purpose;
    if purpose == Purpose::Admin {
        let allowed = access::check(&request, address, &state.table().settings().admin);
        if let Err(refusal) = allowed {
            return refused(refusal, request.uri().path());
        }
        match (request.method(), request.uri().path()) {
            (_, upgrade::PATH) => return upgrade::answer(&**state, &request).await,
            (&Method::GET, EVENTS) => return events(feed, shutdown.clone()),
            _ => {}
        }
    }
    // Health checks run on the async threads, so that they fail when these threads hang. All other paths take
    // time in proportion to the number of revisions, and run on a blocking thread.
    if let Some(answer) = health(&**state, &request) {
        return answer;
    }
    let is_served = match purpose {
        Purpose::Admin => true,
        Purpose::Health => false,
        Purpose::HealthAndMetrics => request.uri().path() == "/metrics",
    };
    if !is_served {
        return not_found();
    }
    let asked = Arc::clone(&context);
    let task = tokio::task::spawn_blocking(move || admin(&asked, request.uri()));
    task.await.unwrap_or_else(|e| {
        tracing::error!(error = %e, "an admin request panicked");
        text(
            StatusCode::INTERNAL_SERVER_ERROR,
            "this request hit a bug; the log says more\n",
        )
    })
}

/// The response to a health path, or to a method that no path takes; `None` for any other path.
fn health<B>(state: &dyn AdminState, request: &Request<B>) -> Option<Response<AdminBody>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "use GET\n");
        answer
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Some(answer);
    }
    match request.uri().path() {
        "/healthz" => Some(text(StatusCode::OK, "ok\n")),
        "/readyz" => Some(match state.ready() {
            Ok(generation) => text(StatusCode::OK, format!("ready, generation {generation}\n")),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
        }),
        _ => None,
    }
}

const EVENTS: &str = "/api/events";

/// The stream of `/api/events`, or 503 when as many follow as may.
fn events(feed: &Feed, shutdown: ShutdownRequest) -> Response<AdminBody> {
    let Some(stream) = feed.follow(shutdown) else {
        let error = "too many follow already: close a dashboard, or ask /api/revisions";
        return as_json(StatusCode::SERVICE_UNAVAILABLE, &json!({"error": error}));
    };
    let mut answer = typed(StatusCode::OK, "text/event-stream", "").map(|_| Either::Right(stream));
    // After the stream nothing is expected: a browser follows again on a new connection.
    answer
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

/// The response to a request that [`access::check`] refuses.
fn refused(refusal: Refusal, path: &str) -> Response<AdminBody> {
    tracing::debug!(?refusal, path, "admin request refused");
    let advice = refusal.advice();
    let mut answer = match path {
        upgrade::PATH => as_json(refusal.status(), &json!({"upgraded": false, "error": advice})),
        path if path.starts_with("/api/") => as_json(refusal.status(), &json!({"error": advice})),
        _ => text(refusal.status(), format!("{advice}\n")),
    };
    if refusal == Refusal::Token {
        let challenge = HeaderValue::from_static("Bearer realm=\"sluice\"");
        answer.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    }
    answer
}

fn admin(context: &Context, uri: &Uri) -> Response<AdminBody> {
    let state = &*context.state;
    match uri.path() {
        dashboard::PATH => dashboard::page(),
        "/api/history" => match history_query(uri.query().unwrap_or_default()) {
            Ok(revision) => hour(&context.feed, revision.as_ref()),
            Err(error) => as_json(StatusCode::BAD_REQUEST, &json!({"error": error})),
        },
        "/" => typed(StatusCode::OK, "text/html; charset=utf-8", INDEX),
        "/metrics" => typed(
            StatusCode::OK,
            "text/plain; version=0.0.4; charset=utf-8",
            metrics(state),
        ),
        "/api/routes" => as_json(StatusCode::OK, &api::routes(&state.table())),
        "/api/revisions" => as_json(StatusCode::OK, &api::revisions(state)),
        "/api/config" => as_json(StatusCode::OK, &api::config(state)),
        "/api/explain" => match ExplainQuery::parse(uri.query().unwrap_or_default()) {
            Ok(query) => as_json(
                StatusCode::OK,
                &explain(&state.table(), &state.bound().listeners, &query),
            ),
            Err(error) => as_json(StatusCode::BAD_REQUEST, &json!({"error": error.to_string()})),
        },
        _ => not_found(),
    }
}

fn metrics(state: &dyn AdminState) -> String {
    let loads = state.loads();
    let desired = |load: &RevisionLoad| {
        let status = state.status().revision_status(&load.revision)?;
        Some((load.revision.clone(), status.desired))
    };
    state.metrics().expose(&LiveGauges {
        desired: loads.iter().filter_map(desired).collect(),
        loads,
        tables: state.tables(),
        certificates: state.certificates(),
    })
}

/// The hour of a revision, or of the whole gateway.
fn hour(feed: &Feed, revision: Option<&RevisionId>) -> Response<AdminBody> {
    match feed.hour(revision) {
        Some(hour) => as_json(StatusCode::OK, &hour),
        None => {
            let error = "this revision had no request in the last hour";
            as_json(StatusCode::NOT_FOUND, &json!({"error": error}))
        }
    }
}

fn not_found() -> Response<AdminBody> {
    text(StatusCode::NOT_FOUND, "nothing here; / lists what there is\n")
}

pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<AdminBody> {
    typed(status, "text/plain; charset=utf-8", body)
}

pub(super) fn as_json(status: StatusCode, value: &Value) -> Response<AdminBody> {
    typed(status, "application/json", format!("{value:#}\n"))
}

pub(super) fn typed(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<AdminBody> {
    let mut response = Response::new(Either::Left(Full::new(body.into())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

const INDEX: &str = r#"<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Sluice</title>
<style>body{font:16px/1.5 system-ui,sans-serif;margin:3em auto;max-width:42em;padding:0 1em}td{padding-right:1.5em}</style>
<h1>Sluice</h1>
<table>
<tr><td><a href="/dashboard">/dashboard</a><td>all of it at a glance, live
<tr><td><a href="/healthz">/healthz</a><td>the process is alive
<tr><td><a href="/readyz">/readyz</a><td>a Snapshot is served and nothing drains
<tr><td><a href="/metrics">/metrics</a><td>Prometheus metrics
<tr><td><a href="/api/revisions">/api/revisions</a><td>what runs, as <code>sluice status</code> shows it
<tr><td><a href="/api/routes">/api/routes</a><td>hosts and where they lead
<tr><td><a href="/api/config">/api/config</a><td>settings in force, secrets left out
<tr><td><a href="/api/history">/api/history</a><td>the last hour in steps of 10 s; <code>?revision=default/greeter-v1</code>
<tr><td><a href="/api/events">/api/events</a><td>server-sent events: <code>snapshot</code>, then each <code>change</code>
<tr><td><code>POST /api/upgrade</code><td>what <code>sluice upgrade</code> asks for: the binary now on disk takes over
<tr><td><a href="/api/explain?url=http://greeter.default.localhost/">/api/explain?url=…</a><td>which revision would serve this, and why
</table>
"#;

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;

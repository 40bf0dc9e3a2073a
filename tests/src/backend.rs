//! An HTTP backend in the test's own process.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, Request, Response, Version};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

/// A response's body.
pub type Body = BoxBody<Bytes, io::Error>;

type Whole = dyn Fn(Seen) -> Response<Body> + Send + Sync;
type Streaming = dyn Fn(Request<Incoming>) -> BoxFuture<'static, Response<Body>> + Send + Sync;

#[derive(Clone)]
enum Handler {
    Whole(Arc<Whole>),
    Streaming(Arc<Streaming>),
}

/// A request as the backend saw it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub target: String,
    /// The HTTP version.
    pub version: Version,
    /// The fields.
    pub headers: HeaderMap,
    /// `Host`, or `:authority`.
    pub host: String,
    /// The body; empty where a streaming handler read it.
    pub body: Bytes,
}

impl Seen {
    /// A field as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }
}

/// A body of known length.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// A body of unknown length: what comes through the channel, until its end.
pub fn streamed(chunks: mpsc::Receiver<Bytes>) -> Body {
    let stream = tokio_stream::wrappers::ReceiverStream::new(chunks);
    BoxBody::new(StreamBody::new(stream.map(|chunk| Ok(Frame::data(chunk)))))
}

/// A 200 with this body.
pub fn ok(body: Body) -> Response<Body> {
    Response::new(body)
}

#[derive(Debug)]
struct State {
    seen: Mutex<Vec<Seen>>,
    in_flight: AtomicUsize,
    peak: AtomicUsize,
    connections: AtomicUsize,
    abandoned: AtomicUsize,
    gate: watch::Sender<bool>,
}

impl State {
    fn record(&self, seen: Seen) {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(seen);
    }
}

/// Counts a request from its head to its answer; also when the gateway goes away before.
struct InFlight {
    state: Arc<State>,
    answered: bool,
}

impl InFlight {
    fn enter(state: &Arc<State>) -> Self {
        let now = state.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        state.peak.fetch_max(now, Ordering::SeqCst);
        Self {
            state: Arc::clone(state),
            answered: false,
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.state.in_flight.fetch_sub(1, Ordering::SeqCst);
        if !self.answered {
            self.state.abandoned.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// How a backend is started.
pub struct Builder {
    handler: Handler,
    h2c: bool,
    tls: Option<TlsAcceptor>,
    at: Option<SocketAddr>,
}

impl Builder {
    /// Answers by this function of the whole request.
    pub fn answer(mut self, f: impl Fn(Seen) -> Response<Body> + Send + Sync + 'static) -> Self {
        self.handler = Handler::Whole(Arc::new(f));
        self
    }

    /// Answers by this function, which reads the body itself.
    pub fn stream<F, Fut>(mut self, f: F) -> Self
    where
        F: Fn(Request<Incoming>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Response<Body>> + Send + 'static,
    {
        self.handler = Handler::Streaming(Arc::new(move |request| Box::pin(f(request))));
        self
    }

    /// Speaks HTTP/2 without TLS instead of HTTP/1.
    pub fn h2c(mut self) -> Self {
        self.h2c = true;
        self
    }

    /// Speaks TLS.
    pub fn tls(mut self, acceptor: TlsAcceptor) -> Self {
        self.tls = Some(acceptor);
        self
    }

    /// Listens here: an address that an earlier backend of the same test had.
    pub fn at(mut self, addr: SocketAddr) -> Self {
        self.at = Some(addr);
        self
    }

    /// Starts it on a port of the kernel's choice.
    ///
    /// # Panics
    /// When nothing can be bound.
    pub async fn start(self) -> HttpBackend {
        let at = self.at.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        let listener = TcpListener::bind(at).await.expect("a free port");
        let addr = listener.local_addr().expect("a bound socket");
        let (state, server) = self.into_server();
        let accepting = Arc::clone(&state);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((io, _)) = listener.accept().await {
                // A socket that is gone already is no reason to stop.
                let _ = io.set_nodelay(true);
                accepting.connections.fetch_add(1, Ordering::SeqCst);
                connections.spawn(server.clone().serve(io));
                while connections.try_join_next().is_some() {}
            }
        });
        HttpBackend {
            addr: Some(addr),
            state,
            task,
        }
    }

    /// Starts it on a Unix socket.
    ///
    /// # Panics
    /// When the path cannot be bound.
    pub async fn start_unix(self, path: &Path) -> HttpBackend {
        let path: PathBuf = path.to_owned();
        let listener = UnixListener::bind(&path).expect("a free path");
        let (state, server) = self.into_server();
        let accepting = Arc::clone(&state);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((io, _)) = listener.accept().await {
                accepting.connections.fetch_add(1, Ordering::SeqCst);
                connections.spawn(server.clone().serve(io));
                while connections.try_join_next().is_some() {}
            }
        });
        HttpBackend {
            addr: None,
            state,
            task,
        }
    }

    fn into_server(self) -> (Arc<State>, Server) {
        let state = Arc::new(State {
            seen: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            abandoned: AtomicUsize::new(0),
            gate: watch::Sender::new(true),
        });
        let server = Server {
            state: Arc::clone(&state),
            handler: self.handler,
            h2c: self.h2c,
            tls: self.tls,
        };
        (state, server)
    }
}

#[derive(Clone)]
struct Server {
    state: Arc<State>,
    handler: Handler,
    h2c: bool,
    tls: Option<TlsAcceptor>,
}

impl Server {
    async fn serve(self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        match self.tls.clone() {
            None => self.speak(io).await,
            Some(tls) => {
                if let Ok(io) = tls.accept(io).await {
                    self.speak(io).await;
                }
            }
        }
    }

    async fn speak(self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let h2c = self.h2c;
        let service = service_fn(move |request| self.clone().respond(request));
        let io = TokioIo::new(io);
        // How a connection ended is for the client to judge.
        if h2c {
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(io, service).await;
        } else {
            let mut builder = hyper::server::conn::http1::Builder::new();
            let _ = builder.keep_alive(true).serve_connection(io, service).await;
        }
    }

    async fn respond(self, request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
        let mut in_flight = InFlight::enter(&self.state);
        let (parts, body) = request.into_parts();
        let response = match &self.handler {
            Handler::Whole(answer) => {
                let whole = seen(&parts, body.collect().await?.to_bytes());
                self.state.record(whole.clone());
                self.pass_gate().await;
                answer(whole)
            }
            Handler::Streaming(answer) => {
                self.state.record(seen(&parts, Bytes::new()));
                self.pass_gate().await;
                answer(Request::from_parts(parts, body)).await
            }
        };
        in_flight.answered = true;
        Ok(response)
    }

    async fn pass_gate(&self) {
        let mut gate = self.state.gate.subscribe();
        // The sender lives in the state that this server holds.
        let _ = gate.wait_for(|open| *open).await;
    }
}

fn seen(parts: &http::request::Parts, body: Bytes) -> Seen {
    let authority = parts.uri.authority().map(|a| a.as_str().to_owned());
    let host = parts.headers.get("host").and_then(|v| v.to_str().ok());
    Seen {
        method: parts.method.clone(),
        target: parts
            .uri
            .path_and_query()
            .map_or_else(|| parts.uri.to_string(), |pq| pq.as_str().to_owned()),
        version: parts.version,
        headers: parts.headers.clone(),
        host: authority.or_else(|| host.map(str::to_owned)).unwrap_or_default(),
        body,
    }
}

/// A running backend; dropping it closes its listener and its connections.
#[derive(Debug)]
pub struct HttpBackend {
    addr: Option<SocketAddr>,
    state: Arc<State>,
    task: JoinHandle<()>,
}

impl HttpBackend {
    /// Prepares one that answers every request with `name`.
    pub fn builder(name: &str) -> Builder {
        let name = Bytes::from(name.to_owned());
        Builder {
            handler: Handler::Whole(Arc::new(move |_| ok(full(name.clone())))),
            h2c: false,
            tls: None,
            at: None,
        }
    }

    /// Starts one that answers every request with `name`, over HTTP/1.
    pub async fn start(name: &str) -> Self {
        Self::builder(name).start().await
    }

    /// Where it listens.
    ///
    /// # Panics
    /// When it listens on a Unix socket.
    pub fn addr(&self) -> SocketAddr {
        self.addr.expect("a TCP backend")
    }

    /// Every request so far, in the order of arrival.
    pub fn seen(&self) -> Vec<Seen> {
        self.state
            .seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The last request.
    ///
    /// # Panics
    /// When there was none.
    pub fn last(&self) -> Seen {
        self.seen().pop().expect("a request reached the backend")
    }

    /// How many requests there were.
    pub fn count(&self) -> usize {
        self.state
            .seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Requests that are being answered now.
    pub fn in_flight(&self) -> usize {
        self.state.in_flight.load(Ordering::SeqCst)
    }

    /// The most requests there ever were at once.
    pub fn peak_in_flight(&self) -> usize {
        self.state.peak.load(Ordering::SeqCst)
    }

    /// Requests whose sender left before they were answered.
    pub fn abandoned(&self) -> usize {
        self.state.abandoned.load(Ordering::SeqCst)
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Lets requests arrive, but answers none until [`release`](Self::release).
    pub fn hold(&self) {
        self.state.gate.send_replace(false);
    }

    /// Answers what is held, and what comes.
    pub fn release(&self) {
        self.state.gate.send_replace(true);
    }
}

impl Drop for HttpBackend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

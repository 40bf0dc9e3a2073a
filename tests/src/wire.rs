//! A backend for HTTP/1 and HTTP/2 whose behaviour the path selects, and that records requests, parsed strictly.
//!
//! `/after` responds a moment after the request is complete; `/early` and paths below it respond after the head and
//! read on; `/early-close` does the same and ends the connection (over HTTP/2 the stream) after the body;
//! `/early-gone` responds after the head and closes; `/hang-up` and `/reset` close and reset without a response;
//! `/interim/103,103` sends these interim responses first; `/interim-refuse` responds 417 after the head. The body of
//! each response has the number of bytes received.

mod http1;
mod http2;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

use crate::wait::{SOON, wait_for};

/// The backend's delay: long enough for a gateway to have written everything that it will.
const SLOW: Duration = Duration::from_millis(30);

/// A protocol, of either side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 without TLS, by prior knowledge.
    Http2,
}

impl Protocol {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Http1, Self::Http2];

    /// The value of a revision's `protocol`.
    pub fn key(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "h2c",
        }
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It goes on.
    Open,
    /// As its framing says.
    Whole,
    /// Earlier, or by a reset.
    Cut,
}

/// How a request's body is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// Content-Length.
    Length(u64),
    /// Chunked, or END_STREAM without a length.
    Open,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    /// The method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// The fields in order; over HTTP/1 with the names as sent.
    pub fields: Vec<(String, String)>,
    /// How the body is framed.
    pub framing: Framing,
    /// What came of the body.
    pub body: Vec<u8>,
    /// Its trailers.
    pub trailers: Vec<(String, String)>,
    /// How it ended.
    pub end: End,
}

impl Request {
    /// The first value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.fields.iter();
        let found = fields.find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// What came on one connection, in order.
#[derive(Debug, Clone, Default)]
pub struct Connection {
    /// The requests.
    pub requests: Vec<Request>,
    /// Bytes that belong to no request, or a protocol error of the peer.
    pub stray: Option<String>,
}

type Shared = Arc<Mutex<Vec<Connection>>>;

/// Fields that every answer has besides its length.
type Extra = Arc<Vec<(String, String)>>;

/// Where one connection records.
#[derive(Debug, Clone)]
struct Record {
    shared: Shared,
    connection: usize,
    extra: Extra,
}

impl Record {
    fn new(shared: &Shared, extra: &Extra) -> Self {
        let mut connections = lock(shared);
        connections.push(Connection::default());
        Self {
            shared: Arc::clone(shared),
            connection: connections.len() - 1,
            extra: Arc::clone(extra),
        }
    }

    fn begin(&self, request: Request) -> usize {
        self.with(|connection| {
            connection.requests.push(request);
            connection.requests.len() - 1
        })
    }

    fn change(&self, request: usize, change: impl FnOnce(&mut Request)) {
        self.with(|connection| change(&mut connection.requests[request]));
    }

    fn stray(&self, what: String) {
        self.with(|connection| {
            connection.stray.get_or_insert(what);
        });
    }

    fn with<T>(&self, f: impl FnOnce(&mut Connection) -> T) -> T {
        f(&mut lock(&self.shared)[self.connection])
    }
}

fn lock(shared: &Shared) -> MutexGuard<'_, Vec<Connection>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a path asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Script {
    After,
    Early,
    EarlyClose,
    EarlyGone,
    HangUp,
    Reset,
    Interim(Vec<u16>),
    Refuse,
}

impl Script {
    fn of(target: &str) -> Self {
        let path = target.split('?').next().unwrap_or_default();
        match path {
            "/early" => Self::Early,
            "/early-close" => Self::EarlyClose,
            "/early-gone" => Self::EarlyGone,
            "/hang-up" => Self::HangUp,
            "/reset" => Self::Reset,
            "/interim-refuse" => Self::Refuse,
            _ if path.starts_with("/early/") => Self::Early,
            _ => match path.strip_prefix("/interim/") {
                Some(codes) => Self::Interim(codes.split(',').filter_map(|c| c.parse().ok()).collect()),
                None => Self::After,
            },
        }
    }
}

/// A running backend; dropping it closes everything.
#[derive(Debug)]
pub struct WireBackend {
    addr: SocketAddr,
    shared: Shared,
    task: JoinHandle<()>,
}

impl WireBackend {
    /// Starts one.
    ///
    /// # Panics
    /// When nothing can be bound.
    pub async fn start(protocol: Protocol) -> Self {
        Self::answering(protocol, Vec::new()).await
    }

    /// Starts one whose final answers have these fields, too.
    ///
    /// # Panics
    /// When nothing can be bound.
    pub async fn answering(protocol: Protocol, extra: Vec<(String, String)>) -> Self {
        let extra = Extra::new(extra);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let addr = listener.local_addr().expect("a bound socket");
        let shared = Shared::default();
        let recording = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            let mut running = JoinSet::new();
            while let Ok((io, _)) = listener.accept().await {
                // A socket that is gone already is no reason to stop.
                let _ = io.set_nodelay(true);
                let record = Record::new(&recording, &extra);
                match protocol {
                    Protocol::Http1 => running.spawn(http1::serve(io, record)),
                    Protocol::Http2 => running.spawn(http2::serve(io, record)),
                };
                while running.try_join_next().is_some() {}
            }
        });
        Self { addr, shared, task }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// All connections so far.
    pub fn connections(&self) -> Vec<Connection> {
        lock(&self.shared).clone()
    }

    /// All requests so far for this target.
    pub fn requests(&self, target: &str) -> Vec<Request> {
        let connections = self.connections();
        let all = connections.into_iter().flat_map(|c| c.requests);
        all.filter(|r| r.target == target).collect()
    }

    /// Waits until the last request for a target is as wanted.
    pub async fn wait(&self, target: &str, what: &str, wanted: impl Fn(&Request) -> bool) -> Request {
        wait_for(&format!("{target}: {what}"), SOON, async || {
            self.requests(target).pop().filter(&wanted)
        })
        .await
    }

    /// All bytes that belong to no request, and all protocol errors.
    pub fn stray(&self) -> Vec<String> {
        self.connections().into_iter().filter_map(|c| c.stray).collect()
    }
}

impl Drop for WireBackend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

//! The HTTP server of the admin and the health address.
//!
//! The server shares the process with the data plane, so its resources are bounded: connections in number and
//! age, heads in size and time; bodies are not read.
//!
//! What is answered is in [`answers`](super::answers).

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

use http::{Request, Response};
use http_body_util::Either;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use sluice_model::AdminAddress;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::AdminState;
use super::answers::{AdminBody, Context, answer};
use super::feed::feed;
use super::graceful_shutdown::{ShutdownRequest, ShutdownSignal};
use super::unix_socket::{self, SocketFile};

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

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;

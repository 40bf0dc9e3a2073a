//! A prepared connection, as the edge hands it to HTTP.

use std::fmt;
use std::future::Future;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use sluice_model::{Http2Settings, Visibility};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::metrics::CloseReason;

/// A byte stream in both directions, plain or decrypted.
pub trait ByteStream: AsyncRead + AsyncWrite + Unpin + Send + Sync + fmt::Debug {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + Sync + fmt::Debug> ByteStream for T {}

/// The HTTP version of a connection, decided by ALPN or by the client's first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2, over TLS or by prior knowledge.
    Http2,
}

/// The drain phase of the gateway, as every connection sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Drain {
    /// The gateway does not drain.
    Serving,
    /// Responses carry `Connection: close` or GOAWAY; open requests and streams may finish.
    Draining,
    /// The drain's deadline is over: connections end now, WebSockets with Close 1001.
    Closing,
}

/// The result of a TLS handshake.
#[derive(Debug, Clone)]
pub struct TlsInfo {
    /// The server name (SNI) the client asked for, lower case.
    pub sni: Option<String>,
    /// The names that the served certificate covers, lower case; wildcards as `*.example.com`.
    pub names: Arc<[String]>,
}

impl TlsInfo {
    /// Whether the served certificate covers a normalised host; a wildcard covers exactly one label.
    pub fn covers(&self, host: &str) -> bool {
        self.names.iter().any(|name| match name.strip_prefix("*.") {
            Some(suffix) => host
                .split_once('.')
                .is_some_and(|(label, rest)| !label.is_empty() && rest == suffix),
            None => name == host,
        })
    }
}

/// Watches a socket for the client's FIN or RST without reading a byte.
///
/// The watch is on the TCP socket itself, so it works below TLS and with an unread body.
///
/// The watch does not own the socket: [`ConnectionInfo`] may outlive its connection, in a log record say, and
/// must not keep the descriptor open.
#[derive(Debug, Clone)]
pub struct CloseWatch(Weak<TcpStream>);

impl CloseWatch {
    /// Watches `socket` for as long as another owner holds it.
    pub fn new(socket: &Arc<TcpStream>) -> Self {
        Self(Arc::downgrade(socket))
    }

    /// Makes the coming close a reset (SO_LINGER 0), for a response that an orderly close would complete.
    pub fn reset_on_close(&self) {
        if let Some(socket) = self.0.upgrade() {
            // An error means that the connection is broken already, and needs no reset.
            let _ = SockRef::from(&*socket).set_linger(Some(Duration::ZERO));
        }
    }

    /// Resolves when the peer closed its side, the connection broke, or our side closed the socket.
    /// Cancel-safe.
    pub async fn closed(&self) {
        let Some(socket) = self.0.upgrade() else { return };
        // PRIORITY readiness includes read-closed but not readable: unread data does not wake the watch.
        // Urgent data would, if the socket were registered for it, which tokio's TcpStream never is; a
        // wake-up without read-closed is cleared all the same, so that no kernel can make the loop spin.
        while let Ok(ready) = socket.ready(Interest::PRIORITY).await {
            if ready.is_read_closed() || ready.is_error() {
                return;
            }
            let _ = socket.try_io(Interest::PRIORITY, || Err::<(), _>(ErrorKind::WouldBlock.into()));
        }
    }
}

/// What is known of a connection for its whole life: addresses, listener, TLS.
#[derive(Debug)]
pub struct ConnectionInfo {
    /// Index into [`Settings::listeners`](sluice_model::Settings::listeners) as they were at accept time.
    pub listener: usize,
    /// Which routes the listener may serve.
    pub visibility: Visibility,
    /// The local address the client connected to.
    pub local: SocketAddr,
    /// The peer of the socket: the client or a load balancer.
    pub peer: SocketAddr,
    /// The client: the source address of the PROXY header, else the peer.
    pub client: SocketAddr,
    /// What TLS settled; `None` on a plain connection.
    pub tls: Option<TlsInfo>,
    /// Settings of HTTP/2 on this listener.
    pub http2: Http2Settings,
    /// The cluster's domain, where requests name a revision; see
    /// [`ListenerSettings::activator`](sluice_model::ListenerSettings::activator).
    pub activator: Option<Arc<str>>,
    /// Resolves when the client is gone.
    pub close_watch: CloseWatch,
}

impl ConnectionInfo {
    /// The client's IP address in canonical form (no IPv4-mapped IPv6).
    pub fn client_ip(&self) -> IpAddr {
        self.client.ip().to_canonical()
    }
}

/// A prepared connection, ready for HTTP.
#[derive(Debug)]
pub struct Connection {
    /// The byte stream; no byte of HTTP was consumed.
    pub io: Box<dyn ByteStream>,
    /// What is known of the connection.
    pub info: Arc<ConnectionInfo>,
    /// The HTTP version.
    pub http_version: HttpVersion,
}

/// The boxed future of [`ConnectionHandler::serve`]; resolves to why the connection was closed.
pub type HandlerFuture<'s> = Pin<Box<dyn Future<Output = CloseReason> + Send + 's>>;

/// Serves prepared connections. A trait, because the edge must not know HTTP, and its tests serve echoes.
pub trait ConnectionHandler: Send + Sync + 'static {
    /// Serves one connection to its end and returns why it was closed. `drain` is the drain phase, to be
    /// watched. Dropping the future closes the connection.
    fn serve(&self, connection: Connection, drain: watch::Receiver<Drain>) -> HandlerFuture<'_>;
}

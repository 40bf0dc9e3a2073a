//! A prepared connection: what the edge hands to HTTP.

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

/// Bytes both ways, plain or decrypted.
pub trait ByteStream: AsyncRead + AsyncWrite + Unpin + Send + Sync + fmt::Debug {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + Sync + fmt::Debug> ByteStream for T {}

/// Which HTTP a connection speaks; settled by ALPN or by the client's first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2, over TLS or by prior knowledge.
    Http2,
}

/// How far the gateway is on its way out, as every connection sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Drain {
    /// Not at all.
    Serving,
    /// Answers carry `Connection: close` or GOAWAY; what is open may finish.
    Draining,
    /// The deadline is over: end now, WebSockets with 1001.
    Closing,
}

/// What TLS settled.
#[derive(Debug, Clone)]
pub struct TlsInfo {
    /// The name the client asked for, lower case.
    pub sni: Option<String>,
    /// The names the served certificate covers, lower case; wildcards as `*.example.com`.
    pub names: Arc<[String]>,
}

impl TlsInfo {
    /// Whether the served certificate covers a normalised host; a wildcard covers one label.
    pub fn covers(&self, host: &str) -> bool {
        self.names.iter().any(|name| match name.strip_prefix("*.") {
            Some(suffix) => host
                .split_once('.')
                .is_some_and(|(label, rest)| !label.is_empty() && rest == suffix),
            None => name == host,
        })
    }
}

/// Resolves when the client is gone, without reading a byte of what it sent.
///
/// Sees a FIN or RST on the socket itself, so it works over TLS and with an unread body.
///
/// It does not own the socket: what is known of a connection may outlive it, in a log record say, and must
/// not keep its descriptor open.
#[derive(Debug, Clone)]
pub struct CloseWatch(Weak<TcpStream>);

impl CloseWatch {
    /// Watches this socket for as long as somebody else holds it.
    pub fn new(socket: &Arc<TcpStream>) -> Self {
        Self(Arc::downgrade(socket))
    }

    /// Makes the close to come a reset, for a response that an orderly one would complete.
    pub fn reset_on_close(&self) {
        if let Some(socket) = self.0.upgrade() {
            // It may be broken already; then there is nothing left to say to the client.
            let _ = SockRef::from(&*socket).set_linger(Some(Duration::ZERO));
        }
    }

    /// Resolves when the peer closed its side, the connection broke, or our side closed it. Cancel-safe.
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

/// What is known of a connection for its whole life.
#[derive(Debug)]
pub struct ConnectionInfo {
    /// Index into [`Settings::listeners`](sluice_model::Settings::listeners) as they were when it was accepted.
    pub listener: usize,
    /// What the listener may serve.
    pub visibility: Visibility,
    /// The address the client connected to.
    pub local: SocketAddr,
    /// The socket's other end: the client or a balancer.
    pub peer: SocketAddr,
    /// The client: what PROXY announced, else the peer.
    pub client: SocketAddr,
    /// What TLS settled; `None` on a plain connection.
    pub tls: Option<TlsInfo>,
    /// What is offered where HTTP/2 is spoken.
    pub http2: Http2Settings,
    /// Resolves when the client is gone.
    pub close_watch: CloseWatch,
}

impl ConnectionInfo {
    /// The client's address in its canonical form (no IPv4-mapped IPv6).
    pub fn client_ip(&self) -> IpAddr {
        self.client.ip().to_canonical()
    }
}

/// A connection ready for HTTP.
#[derive(Debug)]
pub struct Connection {
    /// The bytes; nothing of HTTP is consumed yet.
    pub io: Box<dyn ByteStream>,
    /// What is known of it.
    pub info: Arc<ConnectionInfo>,
    /// Which HTTP it speaks.
    pub http_version: HttpVersion,
}

/// A connection's service to its end, boxed: resolves to why the connection was closed.
pub type HandlerFuture<'s> = Pin<Box<dyn Future<Output = CloseReason> + Send + 's>>;

/// Serves prepared connections. A trait, so that the edge does not know HTTP, and its tests can echo.
pub trait ConnectionHandler: Send + Sync + 'static {
    /// Serves one connection to its end; `drain` tells when to hurry.
    fn serve(&self, connection: Connection, drain: watch::Receiver<Drain>) -> HandlerFuture<'_>;
}

//! Connections to endpoints: how they are dialled, pooled and broken.

use std::net::Shutdown;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pingora_core::connectors::L4Connect;
use pingora_core::protocols::l4::socket::SocketAddr as PeerAddr;
use pingora_core::protocols::l4::stream::Stream as L4Stream;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::{Digest, GetProxyDigest};
use pingora_core::upstreams::peer::{
    ALPN, HttpPeer, HttpUpstreamRequestPolicy, PeerOptions, Scheme as PeerScheme,
};
use pingora_error::{Error, ErrorType, Result};
use pingora_http::ResponseHeader;
use sluice_model::{Backend, EndpointAddr, Limits, Protocol, RevisionSpec, Scheme};
use socket2::{SockRef, Socket};
use tokio::net::{TcpStream, UnixStream};

use crate::edge::ByteStream;
use crate::request::Breakable;
use crate::spare::Plain;
use crate::throttle::EndpointState;

/// Breaks one upstream connection from outside the session that owns it.
///
/// Holds a second descriptor of the socket: the first belongs to pingora, which gives no access.
struct SocketBreaker(Socket);

impl Breakable for SocketBreaker {
    fn break_now(&self) {
        // It may be gone already; then there is nothing to break.
        let _ = self.0.shutdown(Shutdown::Both);
    }

    fn is_blocked(&self) -> bool {
        let mut asked = [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)];
        // Zero descriptors are ready: it cannot be written to, nor has it broken.
        matches!(poll(&mut asked, PollTimeout::ZERO), Ok(0))
    }
}

/// Which connection to an endpoint an attempt may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// Any: a pooled one, the one a probe left, a new one.
    Any,
    /// A pooled or a new one. For a request that must not be sent twice: whether one that idled was
    /// closed by the other side is known too late.
    NoProbes,
    /// One that nothing used before.
    Fresh,
}

/// Dials an endpoint for pingora's connector, with a bound on how long that takes; a connection
/// that a probe left there saves it.
#[derive(Debug)]
pub(super) struct Dialer {
    timeout: Duration,
    endpoint: Arc<EndpointState>,
    choice: Choice,
    speaks_first: bool,
    spare: AtomicBool,
}

impl Dialer {
    /// Whether it gave away a probe's connection: if that breaks, the other side had closed it.
    pub(super) fn was_spare(&self) -> bool {
        self.spare.load(Ordering::Relaxed)
    }

    fn take_spare(&self) -> Option<Plain> {
        let slot = self.endpoint.spare();
        if self.choice != Choice::Any {
            // A server that serves one connection at a time must not be kept busy by it.
            slot.close();
            return None;
        }
        let connection = slot.take(self.speaks_first)?;
        self.spare.store(true, Ordering::Relaxed);
        Some(connection)
    }
}

#[async_trait]
impl L4Connect for Dialer {
    async fn connect(&self, addr: &PeerAddr) -> Result<L4Stream> {
        let dial = async {
            let connection = match self.take_spare() {
                Some(spare) => spare,
                None => connect(addr).await?,
            };
            match connection {
                Plain::Tcp(socket) => {
                    let breaker = SockRef::from(&socket).try_clone()?;
                    Ok((L4Stream::from(socket), breaker))
                }
                Plain::Unix(socket) => {
                    let breaker = SockRef::from(&socket).try_clone()?;
                    Ok((L4Stream::from(socket), breaker))
                }
            }
        };
        let (mut stream, breaker) = match tokio::time::timeout(self.timeout, dial).await {
            Ok(Ok(connected)) => connected,
            Ok(Err(e)) => return Err(connect_error(addr, e)),
            Err(_) => {
                return Err(Error::explain(
                    ErrorType::ConnectTimedout,
                    format!("connecting to {addr}"),
                ));
            }
        };
        let breaker: Arc<dyn Breakable> = Arc::new(SocketBreaker(breaker));
        // The digest is the one thing pingora carries from here to the request's hooks.
        let head = Box::new(ResponseHeader::build(200, Some(0))?);
        stream.set_proxy_digest(ProxyDigest::new(head, Some(Box::new(breaker))));
        Ok(stream)
    }
}

async fn connect(addr: &PeerAddr) -> std::io::Result<Plain> {
    match addr {
        PeerAddr::Inet(addr) => TcpStream::connect(addr).await.map(Plain::Tcp),
        PeerAddr::Unix(addr) => {
            let path = addr.as_pathname().ok_or(std::io::ErrorKind::InvalidInput)?;
            UnixStream::connect(path).await.map(Plain::Unix)
        }
    }
}

fn connect_error(addr: &PeerAddr, e: std::io::Error) -> Box<Error> {
    let kind = match e.kind() {
        std::io::ErrorKind::ConnectionRefused => ErrorType::ConnectRefused,
        std::io::ErrorKind::HostUnreachable | std::io::ErrorKind::NetworkUnreachable => {
            ErrorType::ConnectNoRoute
        }
        _ => ErrorType::ConnectError,
    };
    Error::because(kind, format!("connecting to {addr}"), e)
}

/// The handle by which a connection that pingora made through us can be broken.
pub(super) fn breaker(digest: Option<&Digest>) -> Option<Arc<dyn Breakable>> {
    digest?
        .proxy_digest
        .as_ref()?
        .user_data
        .as_ref()?
        .downcast_ref::<Arc<dyn Breakable>>()
        .cloned()
}

/// Breaks an HTTP/2 connection. Pingora puts it back into its pool whatever its stream ended with,
/// and the pool learns of the break a moment later: until then nobody must get it.
struct PooledBreaker {
    socket: Arc<dyn Breakable>,
    endpoint: Arc<EndpointState>,
}

impl Breakable for PooledBreaker {
    fn break_now(&self) {
        self.endpoint.renew_pool();
        self.socket.break_now();
    }

    fn is_blocked(&self) -> bool {
        self.socket.is_blocked()
    }
}

/// A breaker that keeps the broken connection from being taken out of the pool again.
pub(super) fn with_pool(socket: Arc<dyn Breakable>, endpoint: &Arc<EndpointState>) -> Arc<dyn Breakable> {
    Arc::new(PooledBreaker {
        socket,
        endpoint: Arc::clone(endpoint),
    })
}

/// How pingora reaches one endpoint, and what will do it if no connection is pooled.
///
/// # Errors
/// `ConnectError` for a Unix path that no socket address can hold.
pub(super) fn peer(
    spec: &RevisionSpec,
    endpoint: &Arc<EndpointState>,
    limits: &Limits,
    choice: Choice,
) -> Result<(Box<HttpPeer>, Arc<Dialer>)> {
    let address = match &endpoint.address {
        EndpointAddr::Tcp(addr) => PeerAddr::Inet(*addr),
        EndpointAddr::Unix(path) => {
            let addr = std::os::unix::net::SocketAddr::from_pathname(path).map_err(|e| {
                Error::because(
                    ErrorType::ConnectError,
                    format!("unix socket {}", path.display()),
                    e,
                )
            })?;
            PeerAddr::Unix(addr)
        }
    };
    let (scheme, sni) = match &spec.backend {
        Backend::Url(url) if url.scheme == Scheme::Https => (PeerScheme::HTTPS, url.host.as_str().to_owned()),
        _ => (PeerScheme::HTTP, String::new()),
    };
    let mut options = PeerOptions::new();
    let dialer = Arc::new(Dialer {
        timeout: limits.connect_timeout,
        endpoint: Arc::clone(endpoint),
        choice,
        speaks_first: spec.protocol == Protocol::H2c,
        spare: AtomicBool::new(false),
    });
    options.custom_l4 = Some(Arc::clone(&dialer) as _);
    options.total_connection_timeout = Some(limits.connect_timeout * 2);
    options.idle_timeout = Some(limits.upstream_idle_timeout);
    options.http_upstream_request_policy = HttpUpstreamRequestPolicy::deny_upgrades();
    // One stream a connection: a request's clocks break its connection (see RequestTimers), which
    // must not take others with it.
    options.max_h2_streams = 1;
    options.alpn = match spec.protocol {
        Protocol::Http1 => ALPN::H1,
        Protocol::H2c | Protocol::H2 => ALPN::H2,
    };
    let group_key = match choice {
        Choice::Fresh => endpoint.pool_key() ^ fastrand::u64(1..),
        Choice::Any | Choice::NoProbes => endpoint.pool_key(),
    };
    let peer = HttpPeer {
        _address: address,
        scheme,
        sni,
        proxy: None,
        client_cert_key: None,
        group_key,
        options,
    };
    Ok((Box::new(peer), dialer))
}

/// Dials an endpoint for a connection of our own, over TLS where the backend is an https URL.
///
/// # Errors
/// What the system says, or `TimedOut`.
pub(super) async fn dial(
    spec: &RevisionSpec,
    endpoint: &EndpointState,
    timeout: Duration,
) -> std::io::Result<Box<dyn ByteStream>> {
    // A tunnel outlives any request: not worth telling a stale connection from a broken one.
    endpoint.spare().close();
    let dial = async {
        let plain: Box<dyn ByteStream> = match &endpoint.address {
            EndpointAddr::Tcp(addr) => {
                let socket = TcpStream::connect(addr).await?;
                socket.set_nodelay(true)?;
                Box::new(socket)
            }
            EndpointAddr::Unix(path) => Box::new(UnixStream::connect(path).await?),
        };
        match &spec.backend {
            Backend::Url(url) if url.scheme == Scheme::Https => {
                let name = rustls_pki_types::ServerName::try_from(url.host.as_str().to_owned())
                    .map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidInput, e))?;
                let tls = tokio_rustls::TlsConnector::from(Arc::clone(client_config()))
                    .connect(name, plain)
                    .await?;
                Ok(Box::new(tls) as Box<dyn ByteStream>)
            }
            _ => Ok(plain),
        }
    };
    tokio::time::timeout(timeout, dial)
        .await
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

/// TLS towards backends: the system's roots, HTTP/1.1 only. Read once: reading them takes long.
fn client_config() -> &'static Arc<rustls::ClientConfig> {
    static CONFIG: OnceLock<Arc<rustls::ClientConfig>> = OnceLock::new();
    CONFIG.get_or_init(|| {
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring knows the default versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Arc::new(config)
    })
}

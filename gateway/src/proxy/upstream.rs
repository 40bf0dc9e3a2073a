//! Connections to endpoints: how they are dialled, pooled and broken.

use std::cell::RefCell;
use std::net::Shutdown;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
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
}

/// Dials endpoints for pingora's connector, with a bound on how long that takes.
#[derive(Debug)]
struct Dialer {
    timeout: Duration,
}

impl Dialer {
    /// One with this bound. A peer needs one on every attempt, and nearly always the same: each thread
    /// keeps the last it made.
    fn with(timeout: Duration) -> Arc<Self> {
        thread_local! {
            static LAST: RefCell<Option<Arc<Dialer>>> = const { RefCell::new(None) };
        }
        LAST.with_borrow_mut(|last| match last {
            Some(dialer) if dialer.timeout == timeout => Arc::clone(dialer),
            _ => Arc::clone(last.insert(Arc::new(Self { timeout }))),
        })
    }
}

#[async_trait]
impl L4Connect for Dialer {
    async fn connect(&self, addr: &PeerAddr) -> Result<L4Stream> {
        let dial = async {
            match addr {
                PeerAddr::Inet(addr) => {
                    let socket = TcpStream::connect(addr).await?;
                    let breaker = SockRef::from(&socket).try_clone()?;
                    Ok((L4Stream::from(socket), breaker))
                }
                PeerAddr::Unix(addr) => {
                    let path = addr.as_pathname().ok_or(std::io::ErrorKind::InvalidInput)?;
                    let socket = UnixStream::connect(path).await?;
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
}

/// A breaker that keeps the broken connection from being taken out of the pool again.
pub(super) fn with_pool(socket: Arc<dyn Breakable>, endpoint: &Arc<EndpointState>) -> Arc<dyn Breakable> {
    Arc::new(PooledBreaker {
        socket,
        endpoint: Arc::clone(endpoint),
    })
}

/// How pingora reaches one endpoint. `fresh` asks for a connection that nothing used before.
///
/// # Errors
/// `ConnectError` for a Unix path that no socket address can hold.
pub(super) fn peer(
    spec: &RevisionSpec,
    address: &EndpointAddr,
    pool_key: u64,
    limits: &Limits,
    fresh: bool,
) -> Result<Box<HttpPeer>> {
    let address = match address {
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
    options.custom_l4 = Some(Dialer::with(limits.connect_timeout));
    options.total_connection_timeout = Some(limits.connect_timeout * 2);
    options.idle_timeout = Some(limits.upstream_idle_timeout);
    options.http_upstream_request_policy = HttpUpstreamRequestPolicy::deny_upgrades();
    // One stream a connection: a request's clocks break its connection (see RequestTimers), which
    // must not take others with it.
    options.max_h2_streams = 1;
    options.alpn = match spec.protocol {
        Protocol::Http1 => ALPN::H1,
        Protocol::H2c => ALPN::H2,
    };
    let group_key = if fresh {
        pool_key ^ fastrand::u64(1..)
    } else {
        pool_key
    };
    Ok(Box::new(HttpPeer {
        _address: address,
        scheme,
        sni,
        proxy: None,
        client_cert_key: None,
        group_key,
        options,
    }))
}

/// Dials an endpoint for a connection of our own, over TLS where the backend is an https URL.
///
/// # Errors
/// What the system says, or `TimedOut`.
pub(super) async fn dial(
    spec: &RevisionSpec,
    address: &EndpointAddr,
    timeout: Duration,
) -> std::io::Result<Box<dyn ByteStream>> {
    let dial = async {
        let plain: Box<dyn ByteStream> = match address {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dialer_is_kept_as_long_as_its_bound_is_the_same() {
        let (one, two) = (Duration::from_secs(1), Duration::from_secs(2));
        let first = Dialer::with(one);
        assert!(Arc::ptr_eq(&first, &Dialer::with(one)));
        let second = Dialer::with(two);
        assert_eq!((first.timeout, second.timeout), (one, two));
    }
}

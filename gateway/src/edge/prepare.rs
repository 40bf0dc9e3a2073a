//! Connection set-up, from an accepted socket to a connection ready for HTTP: PROXY header, client limit,
//! TLS, protocol detection.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use ipnet::IpNet;
use sluice_model::{Limits, ProxyProtocol, ProxyProtocolMode};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::debug;

use super::connection::{ByteStream, CloseWatch, Connection, ConnectionInfo, Drain, HttpVersion};
use super::connection_limits::{ClientConnectionGuard, ConnectionLimiter};
use super::listener::ListenerConfig;
use super::metrics::CloseReason;
use super::proxy_protocol::{self, Header, ProxyAddresses};
use super::stream::{SocketStream, read_more};

const H2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a connection may send nothing while the gateway drains.
const SILENT_WHILE_DRAINING: Duration = Duration::from_secs(1);

/// A prepared connection with the guard of its client's limit.
pub(super) struct Prepared {
    pub(super) connection: Connection,
    pub(super) client: ClientConnectionGuard,
}

/// Prepares one connection. The caller sets the deadline; dropping the future closes the connection.
///
/// # Errors
/// Why the connection is to be closed. No error is sent to the client, since its protocol is not known yet.
pub(super) async fn prepare(
    socket: TcpStream,
    peer: SocketAddr,
    bound: SocketAddr,
    config: &ListenerConfig,
    limiter: &Arc<ConnectionLimiter>,
    limits: &Limits,
    drain: &mut watch::Receiver<Drain>,
) -> Result<Prepared, CloseReason> {
    let peer = canonical(peer);
    let acquire = |client: SocketAddr| {
        limiter
            .acquire_client(client.ip(), limits.max_connections_per_client)
            .ok_or(CloseReason::ClientLimit)
    };
    let mut seen = BytesMut::new();
    let (guard, announced) = match &config.proxy_protocol {
        // Before the first read: silent connections have to count too.
        None => {
            let guard = acquire(peer)?;
            first_bytes(&socket, &mut seen, drain).await?;
            (guard, None)
        }
        Some(spoken) => {
            first_bytes(&socket, &mut seen, drain).await?;
            let announced = read_proxy_header(spoken, &socket, peer, &mut seen).await?;
            let guard = acquire(announced.map_or(peer, |a| canonical(a.source)))?;
            if seen.is_empty() {
                first_bytes(&socket, &mut seen, drain).await?;
            }
            (guard, announced)
        }
    };
    let client = announced.map_or(peer, |a| canonical(a.source));
    let local = match announced {
        Some(announced) => announced.destination,
        None if bound.ip().is_unspecified() => socket.local_addr().map_err(|_| CloseReason::ClientGone)?,
        None => bound,
    };
    let plain = match &config.tls {
        Some(_) => None,
        None => Some(sniff(&socket, &mut seen).await?),
    };
    let socket = Arc::new(socket);
    let close_watch = CloseWatch::new(&socket);
    let stream = SocketStream::new(socket, seen.freeze());
    let (io, tls, http_version): (Box<dyn ByteStream>, _, _) = match (&config.tls, plain) {
        (Some(tls), _) => {
            let (stream, info, http_version) = tls.accept(stream).await.map_err(|error| {
                // Logged at debug level only, and counted: scanners cause failed handshakes all day.
                debug!(%peer, %client, %bound, %error, "TLS handshake failed");
                CloseReason::TlsFailed
            })?;
            (Box::new(stream), Some(info), http_version)
        }
        (None, http_version) => (Box::new(stream), None, http_version.unwrap_or(HttpVersion::Http1)),
    };
    let info = ConnectionInfo {
        listener: config.index,
        visibility: config.visibility,
        local: canonical(local),
        peer,
        client,
        tls,
        http2: config.http2,
        activator: config.activator.clone(),
        close_watch,
    };
    Ok(Prepared {
        connection: Connection {
            io,
            info: Arc::new(info),
            http_version,
        },
        client: guard,
    })
}

/// Unmaps IPv4-mapped addresses: clients of a dual-stack listener are IPv4 clients.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        v4 @ IpAddr::V4(_) => SocketAddr::new(v4, address.port()),
        // The address as it is, for its scope id.
        IpAddr::V6(_) => address,
    }
}

/// Waits for the client's first bytes; while the gateway drains, only for a short while.
async fn first_bytes(
    socket: &TcpStream,
    seen: &mut BytesMut,
    drain: &mut watch::Receiver<Drain>,
) -> Result<(), CloseReason> {
    let hurry = async {
        // Cannot fail: the sender lives as long as any connection. If it were gone, that would be a drain,
        // too.
        let _ = drain.wait_for(|phase| *phase >= Drain::Draining).await;
        sleep(SILENT_WHILE_DRAINING).await;
    };
    tokio::select! {
        biased;
        some = more_bytes(socket, seen) => some,
        () = hurry => Err(CloseReason::Drained),
    }
}

/// Reads more of the first bytes; end of stream is an error here.
async fn more_bytes(socket: &TcpStream, seen: &mut BytesMut) -> Result<(), CloseReason> {
    match read_more(socket, seen).await {
        Ok(1..) => Ok(()),
        // Some load balancers end their probe with a reset.
        Ok(0) | Err(_) if seen.is_empty() => Err(CloseReason::Probe),
        Ok(0) | Err(_) => Err(CloseReason::ClientGone),
    }
}

/// Parses the PROXY header at the front of the first bytes, if there is one, and leaves what follows.
async fn read_proxy_header(
    spoken: &ProxyProtocol,
    socket: &TcpStream,
    peer: SocketAddr,
    seen: &mut BytesMut,
) -> Result<Option<ProxyAddresses>, CloseReason> {
    let allowed = may_send_header(&spoken.from, peer);
    loop {
        match proxy_protocol::parse(seen) {
            Header::NeedMore => more_bytes(socket, seen).await?,
            Header::Absent => {
                return match spoken.mode {
                    ProxyProtocolMode::Optional => Ok(None),
                    ProxyProtocolMode::Required => Err(CloseReason::ProxyMissing),
                };
            }
            Header::Parsed { .. } | Header::Bad(_) if !allowed => return Err(CloseReason::ProxyForbidden),
            Header::Parsed { addresses, used } => {
                seen.advance(used);
                return Ok(addresses);
            }
            Header::Bad(reason) => {
                debug!(%peer, %reason, "malformed PROXY header");
                return Err(CloseReason::ProxyMalformed);
            }
        }
    }
}

fn may_send_header(from: &[IpNet], peer: SocketAddr) -> bool {
    from.iter().any(|net| net.contains(&peer.ip()))
}

/// Protocol detection: HTTP/2 by prior knowledge begins with its preface; anything else is for the HTTP/1
/// codec to judge.
async fn sniff(socket: &TcpStream, seen: &mut BytesMut) -> Result<HttpVersion, CloseReason> {
    loop {
        let n = seen.len().min(H2_PREFACE.len());
        if seen[..n] != H2_PREFACE[..n] {
            return Ok(HttpVersion::Http1);
        }
        if n == H2_PREFACE.len() {
            return Ok(HttpVersion::Http2);
        }
        more_bytes(socket, seen).await?;
    }
}

#[cfg(test)]
#[path = "prepare_tests.rs"]
mod tests;

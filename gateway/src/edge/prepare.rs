//! From an accepted socket to a connection ready for HTTP: PROXY header, client limit, TLS, first bytes.

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

use super::census::{Census, ClientPlace};
use super::conn::{ByteStream, CloseWatch, Connection, ConnectionInfo, Drain, Wire};
use super::listener::Door;
use super::metrics::CloseReason;
use super::proxy_protocol::{self, Announced, Header};
use super::stream::{SocketStream, read_more};

const H2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a connection may say nothing once the gateway is on its way out.
const SILENT_WHILE_DRAINING: Duration = Duration::from_secs(1);

/// A connection and its place among its client's.
pub(super) struct Prepared {
    pub(super) connection: Connection,
    pub(super) client: ClientPlace,
}

/// Prepares one connection. The caller bounds the time; dropping the future closes the connection.
///
/// # Errors
/// Why it is to be closed. Nothing was answered: it is not known yet in what.
pub(super) async fn prepare(
    socket: TcpStream,
    peer: SocketAddr,
    bound: SocketAddr,
    door: &Door,
    census: &Arc<Census>,
    limits: &Limits,
    drain: &mut watch::Receiver<Drain>,
) -> Result<Prepared, CloseReason> {
    let peer = canonical(peer);
    let enter = |client: SocketAddr| {
        census
            .enter_client(client.ip(), limits.max_connections_per_client)
            .ok_or(CloseReason::ClientLimit)
    };
    let mut seen = BytesMut::new();
    let (place, announced) = match &door.proxy_protocol {
        // Before a byte is waited for: silent connections count most of all.
        None => {
            let place = enter(peer)?;
            first(&socket, &mut seen, drain).await?;
            (place, None)
        }
        Some(spoken) => {
            first(&socket, &mut seen, drain).await?;
            let announced = announced(spoken, &socket, peer, &mut seen).await?;
            let place = enter(announced.map_or(peer, |a| canonical(a.source)))?;
            if seen.is_empty() {
                first(&socket, &mut seen, drain).await?;
            }
            (place, announced)
        }
    };
    let client = announced.map_or(peer, |a| canonical(a.source));
    let local = match announced {
        Some(announced) => announced.destination,
        None if bound.ip().is_unspecified() => socket.local_addr().map_err(|_| CloseReason::ClientGone)?,
        None => bound,
    };
    let plain = match &door.tls {
        Some(_) => None,
        None => Some(sniff(&socket, &mut seen).await?),
    };
    let socket = Arc::new(socket);
    let close_watch = CloseWatch::new(&socket);
    let stream = SocketStream::new(socket, seen.freeze());
    let (io, tls, wire): (Box<dyn ByteStream>, _, _) = match (&door.tls, plain) {
        (Some(tls), _) => {
            let (stream, info, wire) = tls.accept(stream).await.map_err(|error| {
                // Scanners do this all day: counted, and told only to who asks for it.
                debug!(%peer, %client, %bound, %error, "TLS handshake failed");
                CloseReason::TlsFailed
            })?;
            (Box::new(stream), Some(info), wire)
        }
        (None, wire) => (Box::new(stream), None, wire.unwrap_or(Wire::Http1)),
    };
    let info = ConnectionInfo {
        listener: door.index,
        visibility: door.visibility,
        local: canonical(local),
        peer,
        client,
        tls,
        http2: door.http2,
        close_watch,
    };
    Ok(Prepared {
        connection: Connection {
            io,
            info: Arc::new(info),
            wire,
        },
        client: place,
    })
}

/// IPv4 clients of a dual-stack listener are IPv4 clients.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        v4 @ IpAddr::V4(_) => SocketAddr::new(v4, address.port()),
        // As it is: it may have a scope.
        IpAddr::V6(_) => address,
    }
}

/// Waits for the client's first bytes; a client that says nothing does not hold up the way out.
async fn first(
    socket: &TcpStream,
    seen: &mut BytesMut,
    drain: &mut watch::Receiver<Drain>,
) -> Result<(), CloseReason> {
    let hurry = async {
        // The sender lives as long as any connection; were it gone, this would be the way out, too.
        let _ = drain.wait_for(|phase| *phase >= Drain::Draining).await;
        sleep(SILENT_WHILE_DRAINING).await;
    };
    tokio::select! {
        biased;
        some = more(socket, seen) => some,
        () = hurry => Err(CloseReason::Drained),
    }
}

/// Reads more first bytes; the client's leaving is an error here.
async fn more(socket: &TcpStream, seen: &mut BytesMut) -> Result<(), CloseReason> {
    match read_more(socket, seen).await {
        Ok(1..) => Ok(()),
        // Some balancers end their probe with a reset.
        Ok(0) | Err(_) if seen.is_empty() => Err(CloseReason::Probe),
        Ok(0) | Err(_) => Err(CloseReason::ClientGone),
    }
}

/// Takes the PROXY header from the first bytes, if there is one, and leaves what follows it.
async fn announced(
    spoken: &ProxyProtocol,
    socket: &TcpStream,
    peer: SocketAddr,
    seen: &mut BytesMut,
) -> Result<Option<Announced>, CloseReason> {
    let allowed = may_announce(&spoken.from, peer);
    loop {
        match proxy_protocol::parse(seen) {
            Header::NeedMore => more(socket, seen).await?,
            Header::Absent => {
                return match spoken.mode {
                    ProxyProtocolMode::Optional => Ok(None),
                    ProxyProtocolMode::Required => Err(CloseReason::ProxyMissing),
                };
            }
            Header::Parsed { .. } | Header::Bad(_) if !allowed => return Err(CloseReason::ProxyForbidden),
            Header::Parsed { announced, used } => {
                seen.advance(used);
                return Ok(announced);
            }
            Header::Bad(reason) => {
                debug!(%peer, %reason, "malformed PROXY header");
                return Err(CloseReason::ProxyMalformed);
            }
        }
    }
}

fn may_announce(from: &[IpNet], peer: SocketAddr) -> bool {
    from.iter().any(|net| net.contains(&peer.ip()))
}

/// HTTP/2 by prior knowledge starts with its preface; everything else is HTTP/1's to judge.
async fn sniff(socket: &TcpStream, seen: &mut BytesMut) -> Result<Wire, CloseReason> {
    loop {
        let n = seen.len().min(H2_PREFACE.len());
        if seen[..n] != H2_PREFACE[..n] {
            return Ok(Wire::Http1);
        }
        if n == H2_PREFACE.len() {
            return Ok(Wire::Http2);
        }
        more(socket, seen).await?;
    }
}

#[cfg(test)]
#[path = "prepare_tests.rs"]
mod tests;

//! Dialling an endpoint.
//!
//! The socket is made by the functions beneath Pingora's transport connector
//! ([`pingora_core::protocols::l4::ext`]), which hand out tokio's own stream. The connector's
//! `new_stream` wraps that one into buffers and digests that a pooled connection would carry along,
//! and gives no way back to it: see ARCHITECTURE.md for what both cost.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use pingora_core::protocols::l4::ext;
use pingora_error::{BError, ErrorType};
use sluice_model::EndpointAddr;
use tokio_rustls::TlsConnector;

use super::io::BackendIo;
use super::tls::{BackendTlsError, UpstreamTls};

/// A connection that was just made.
#[derive(Debug)]
pub(crate) struct Connected {
    /// The connection.
    pub(crate) io: BackendIo,
    /// Whether ALPN chose HTTP/2. Never without TLS.
    pub(crate) alpn_h2: bool,
}

/// Why dialling failed. Without the address, which the caller knows.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The gateway is out of file descriptors. Not the endpoint's fault.
    #[error("out of file descriptors")]
    OutOfDescriptors,
    /// The connect timeout passed, TLS included.
    #[error("not connected within {0:?}")]
    TimedOut(Duration),
    /// The port is closed.
    #[error("connection refused")]
    Refused,
    /// No route, no such socket file, no permission.
    #[error("{0}")]
    Io(io::Error),
    /// The TLS handshake failed: an untrusted certificate, no common version or protocol, or a broken
    /// connection.
    #[error("TLS handshake: {0}")]
    Tls(io::Error),
    /// The revision's TLS config cannot be made.
    #[error("{0}")]
    Unprepared(#[from] BackendTlsError),
    /// The backend does not speak HTTP/2.
    #[error("HTTP/2: {0}")]
    Http2(Cow<'static, str>),
}

impl ConnectError {
    /// Whether the gateway, and no endpoint, is at fault.
    pub(crate) fn is_out_of_descriptors(&self) -> bool {
        matches!(self, Self::OutOfDescriptors)
    }
}

/// Dials an endpoint, over TLS where `tls` is given. `timeout` bounds connect and handshake together. Sets
/// TCP_NODELAY.
///
/// Cancel-safe: dropping the future closes the socket.
///
/// # Errors
/// [`ConnectError`].
pub(crate) async fn connect(
    address: &EndpointAddr,
    tls: Option<&UpstreamTls>,
    timeout: Duration,
) -> Result<Connected, ConnectError> {
    tokio::time::timeout(timeout, dial(address, tls))
        .await
        .unwrap_or(Err(ConnectError::TimedOut(timeout)))
}

async fn dial(address: &EndpointAddr, tls: Option<&UpstreamTls>) -> Result<Connected, ConnectError> {
    let stream = match address {
        EndpointAddr::Tcp(address) => {
            let stream = ext::connect(address, None).await.map_err(of_pingora)?;
            stream.set_nodelay(true).map_err(of_system)?;
            stream
        }
        EndpointAddr::Unix(path) => {
            let io = BackendIo::Unix(ext::connect_uds(path).await.map_err(of_pingora)?);
            debug_assert!(tls.is_none(), "https URLs have no Unix sockets");
            return Ok(Connected { io, alpn_h2: false });
        }
    };
    let Some(tls) = tls else {
        let io = BackendIo::Tcp(stream);
        return Ok(Connected { io, alpn_h2: false });
    };
    let connector = TlsConnector::from(Arc::clone(&tls.config));
    let stream = connector
        .connect(tls.name.clone(), stream)
        .await
        .map_err(ConnectError::Tls)?;
    let alpn_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok(Connected {
        io: BackendIo::Tls(Box::new(stream)),
        alpn_h2,
    })
}

fn of_system(e: io::Error) -> ConnectError {
    match e.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EMFILE | Errno::ENFILE) => ConnectError::OutOfDescriptors,
        Some(Errno::ECONNREFUSED) => ConnectError::Refused,
        _ => ConnectError::Io(e),
    }
}

/// Finds the system's error inside Pingora's.
fn of_pingora(e: BError) -> ConnectError {
    let mut cause = e
        .cause
        .as_deref()
        .map(|c| c as &(dyn std::error::Error + 'static));
    while let Some(inner) = cause {
        let said = inner
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error);
        if let Some(code) = said {
            return of_system(io::Error::from_raw_os_error(code));
        }
        cause = inner.source();
    }
    match e.etype() {
        ErrorType::ConnectRefused => ConnectError::Refused,
        _ => ConnectError::Io(io::Error::other(e.to_string())),
    }
}

#[cfg(test)]
#[path = "connect_tests.rs"]
mod tests;

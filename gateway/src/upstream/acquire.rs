//! Connection acquisition for an attempt: an idle connection, the one left by a probe, or a new one.

use std::sync::Arc;
use std::time::Instant;

use sluice_model::{Limits, Protocol};

use super::connect::{ConnectError, connect as dial};
use super::http1::Http1Backend;
use super::http2::Http2Backend;
use super::io::BackendIo;
use crate::request::Routed;
use crate::throttle::EndpointState;

/// Which connections an attempt may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectionChoice {
    /// An idle connection, the one left by a probe, or a new one.
    Any,
    /// An idle or a new connection. For a request that must not be sent twice: a close of a probe's
    /// connection is detected too late.
    NoProbes,
    /// A new connection.
    Fresh,
}

/// A connection for one exchange.
pub(crate) struct Acquired {
    /// The connection.
    pub(crate) connection: BackendConnection,
    /// Whether the connection was idle: the backend may have closed it, which does not count as the
    /// endpoint's failure.
    pub(crate) idled: bool,
}

/// A connection to a backend, by protocol.
pub(crate) enum BackendConnection {
    /// HTTP/1.1.
    Http1(Http1Backend),
    /// HTTP/2.
    Http2(Http2Backend),
}

/// Takes an idle connection to `endpoint`, or a stream on an open one; `None` when a connection has to be
/// made.
pub(crate) fn take_idle(
    routed: &Routed,
    endpoint: &Arc<EndpointState>,
    limits: &Limits,
    choice: ConnectionChoice,
    now: Instant,
) -> Option<Acquired> {
    if choice == ConnectionChoice::Fresh {
        return None;
    }
    if routed.spec.protocol != Protocol::Http1 {
        let backend = endpoint.streams().open(&routed.spec)?;
        return Some(Acquired {
            connection: BackendConnection::Http2(backend),
            idled: true,
        });
    }
    let idle = endpoint.idle().take(now, limits.upstream_idle_timeout);
    let io = idle.or_else(|| take_prewarmed(endpoint, choice))?;
    let backend = Http1Backend::new(io, Arc::clone(endpoint), limits);
    Some(Acquired {
        connection: BackendConnection::Http1(backend),
        idled: true,
    })
}

/// Takes the connection of the probe that found the endpoint ready.
fn take_prewarmed(endpoint: &EndpointState, choice: ConnectionChoice) -> Option<BackendIo> {
    if choice != ConnectionChoice::Any {
        // Closed, so that a server which serves one connection at a time is not kept busy by it.
        endpoint.prewarmed().close();
        return None;
    }
    endpoint.prewarmed().take(false).map(BackendIo::from)
}

/// Connects to `endpoint`, within `limits.connectTimeout`. Cancel-safe: dropping the future closes the
/// half-open connection.
///
/// # Errors
/// [`ConnectError`].
pub(crate) async fn connect(
    routed: &Routed,
    endpoint: &Arc<EndpointState>,
    limits: &Limits,
    choice: ConnectionChoice,
) -> Result<Acquired, ConnectError> {
    if choice != ConnectionChoice::Any {
        endpoint.prewarmed().close();
    }
    if routed.spec.protocol != Protocol::Http1 {
        let backend = endpoint.streams().connect(routed, endpoint, limits).await?;
        return Ok(Acquired {
            connection: BackendConnection::Http2(backend),
            idled: false,
        });
    }
    let tls = routed.live.tls(endpoint.tier).get().await?;
    let connected = dial(&endpoint.address, tls.as_deref(), limits.connect_timeout).await?;
    Ok(Acquired {
        connection: BackendConnection::Http1(Http1Backend::new(connected.io, Arc::clone(endpoint), limits)),
        idled: false,
    })
}

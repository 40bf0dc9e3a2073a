//! Which connection to an endpoint an attempt gets: an idle one, the one a probe left, a new one.

use std::sync::Arc;
use std::time::Instant;

use sluice_model::{Limits, Protocol};

use super::connect::{ConnectError, connect as dial};
use super::http1::Http1Backend;
use super::http2::Http2Backend;
use super::io::Io;
use crate::request::Routed;
use crate::spare::Plain;
use crate::throttle::EndpointState;

/// Which connections an attempt may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Any: an idle one, the one a probe left, a new one.
    Any,
    /// An idle or a new one. For a request that must not be sent twice: whether one that a probe left
    /// was closed by the other side is known too late.
    NoProbes,
    /// One that nothing used before.
    Fresh,
}

/// A connection for one exchange.
pub(crate) struct Acquired {
    /// The connection.
    pub(crate) connection: Connection,
    /// Whether it idled: the other side may have closed it, which is nobody's failure.
    pub(crate) idled: bool,
}

/// A connection by what it speaks.
pub(crate) enum Connection {
    /// HTTP/1.1.
    Http1(Http1Backend),
    /// HTTP/2.
    Http2(Http2Backend),
}

/// An idle connection to `endpoint`, or a stream on one that is open; `None` where one has to be made.
pub(crate) fn take_idle(
    routed: &Routed,
    endpoint: &Arc<EndpointState>,
    limits: &Limits,
    choice: Use,
    now: Instant,
) -> Option<Acquired> {
    if choice == Use::Fresh {
        return None;
    }
    if routed.spec.protocol != Protocol::Http1 {
        let backend = endpoint.streams().open(&routed.spec)?;
        return Some(Acquired {
            connection: Connection::Http2(backend),
            idled: true,
        });
    }
    let idle = endpoint.idle().take(now, limits.upstream_idle_timeout);
    let io = idle.or_else(|| take_spare(endpoint, choice))?;
    let backend = Http1Backend::new(io, Arc::clone(endpoint), limits);
    Some(Acquired {
        connection: Connection::Http1(backend),
        idled: true,
    })
}

/// The connection of the probe that found the endpoint ready.
fn take_spare(endpoint: &EndpointState, choice: Use) -> Option<Io> {
    if choice != Use::Any {
        // A server that serves one connection at a time must not be kept busy by it.
        endpoint.spare().close();
        return None;
    }
    Some(match endpoint.spare().take(false)? {
        Plain::Tcp(socket) => Io::Tcp(socket),
        Plain::Unix(socket) => Io::Unix(socket),
    })
}

/// Makes a connection to `endpoint`, within `limits.connectTimeout`. Cancel-safe: dropping the future
/// closes what was begun.
///
/// # Errors
/// [`ConnectError`].
pub(crate) async fn connect(
    routed: &Routed,
    endpoint: &Arc<EndpointState>,
    limits: &Limits,
    choice: Use,
) -> Result<Acquired, ConnectError> {
    if choice != Use::Any {
        endpoint.spare().close();
    }
    if routed.spec.protocol != Protocol::Http1 {
        let backend = endpoint.streams().connect(routed, endpoint, limits).await?;
        return Ok(Acquired {
            connection: Connection::Http2(backend),
            idled: false,
        });
    }
    let tls = routed.live.tls().get().await?;
    let connected = dial(&endpoint.address, tls.as_deref(), limits.connect_timeout).await?;
    Ok(Acquired {
        connection: Connection::Http1(Http1Backend::new(connected.io, Arc::clone(endpoint), limits)),
        idled: false,
    })
}

//! Everything before HTTP: bind, accept, limits, PROXY, TLS, sniffing, per-connection drain.
//!
//! `listener_set` holds the listeners and the way out, `inherited_sockets` passes them to another process; `listener` accepts and owns each connection's task;
//! `prepare` takes a socket through `proxy_protocol`, `connection_limits`, `tls` (over `certificates`) and the
//! first bytes to what [`ConnectionHandler`] gets; `stream` and `connection` are what it gets. `expiry` says which
//! certificates end soon.

pub(crate) mod certificates;
mod connection;
mod connection_limits;
mod expiry;
mod inherited_sockets;
mod listener;
mod listener_set;
mod metrics;
mod prebind;
mod prepare;
pub mod proxy_protocol;
mod stream;
#[cfg(test)]
mod testing;
mod tls;

pub use certificates::{Certificate, CertificateError};
pub use connection::{
    ByteStream, CloseWatch, Connection, ConnectionHandler, ConnectionInfo, Drain, HandlerFuture, HttpVersion,
    TlsInfo,
};
pub use inherited_sockets::FrozenListeners;
pub(crate) use listener::bind_error_text;
pub use listener::{CurrentSettings, ListenerBindError};
pub use listener_set::{Edge, ListenerError, ListenerStatus};
pub use metrics::{CloseReason, ConnectionProtocol, EdgeMetrics, ListenerMetrics};
pub use stream::SocketStream;
pub use tls::{Reload, TlsTerminator};

//! The network edge, before HTTP: binding, accept loops, connection limits, PROXY protocol, TLS, protocol
//! detection, per-connection drain.
//!
//! `listener_set` holds the listeners and drains them; `prebind` and `inherited_sockets` provide sockets
//! other than by binding at once; `listener` runs an accept loop and the task of each connection; `prepare`
//! takes a socket through `proxy_protocol`, `connection_limits`, `tls` (over `certificates` of files and
//! `service_certificates`, by name in `sni_map`) and the first bytes to the [`Connection`] that
//! [`ConnectionHandler`] gets, read from `stream`. `expiry` logs certificates that end soon.

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
mod service_certificates;
mod sni_map;
mod stream;
#[cfg(test)]
pub(crate) mod testing;
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
pub use service_certificates::CertificateChange;
pub use stream::SocketStream;
pub use tls::{Reload, TlsTerminator};

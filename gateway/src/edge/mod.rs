//! Everything before HTTP: bind, accept, limits, PROXY, TLS, sniffing, per-connection drain.
//!
//! `gate` holds the listeners and the way out, `handover` passes them to another process; `listener` accepts and owns each connection's task;
//! `prepare` takes a socket through `proxy_protocol`, `census`, `tls` (over `certificates`) and the
//! first bytes to what [`Serve`] gets; `stream` and `conn` are what it gets. `expiry` says which
//! certificates end soon.

mod census;
pub(crate) mod certificates;
mod conn;
mod expiry;
mod gate;
mod handover;
mod listener;
mod metrics;
mod prepare;
pub mod proxy_protocol;
mod reserve;
mod stream;
#[cfg(test)]
mod testing;
mod tls;

pub use certificates::{Certificate, CertificateError};
pub use conn::{ByteStream, CloseWatch, Connection, ConnectionInfo, Drain, Serve, Serving, TlsInfo, Wire};
pub use gate::{Edge, ListenerError, ListenerStatus};
pub use handover::HeldEdge;
pub(crate) use listener::why_not_bound;
pub use listener::{BindError, SettingsNow};
pub use metrics::{CloseReason, EdgeMetrics, ListenerMetrics, Protocol};
pub use stream::SocketStream;
pub use tls::{Reload, TlsTerminator};

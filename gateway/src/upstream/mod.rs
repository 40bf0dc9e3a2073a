//! Connections to backends: dialling (`connect`), TLS (`tls`), transports (`io`), the keep-alive pool
//! (`idle`), and the backend's side of an exchange (`http1`, `http2`).
//!
//! An endpoint owns its idle connections; a revision owns its TLS config.

mod acquire;
mod connect;
mod http1;
mod http2;
mod idle;
mod io;
mod prewarmed;
#[cfg(test)]
mod testing;
mod tls;

pub(crate) use acquire::{Acquired, BackendConnection, ConnectionChoice, connect, take_idle};
pub(crate) use connect::ConnectError;
pub(crate) use http2::{MapSink, StreamConnections};
pub(crate) use idle::IdleConnections;
pub(crate) use prewarmed::{PlainStream, PrewarmedSlot};
pub(crate) use tls::RevisionTls;
pub(crate) use tls::client_config;
pub use tls::{BackendTlsError, check_tls};

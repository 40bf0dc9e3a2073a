//! Connections to backends: how they are dialled (`connect`), secured (`tls`), read and written
//! (`io`), and kept for the next request (`idle`).
//!
//! An endpoint owns its idle connections; a revision owns its TLS.

mod connect;
mod idle;
mod io;
#[cfg(test)]
mod testing;
mod tls;

pub(crate) use connect::{ConnectError, Connected, connect};
pub(crate) use idle::IdleConnections;
pub(crate) use io::Io;
pub use tls::{BackendTlsError, check_tls};
pub(crate) use tls::{TlsSlot, UpstreamTls};

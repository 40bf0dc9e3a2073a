//! Everything before HTTP: bind, accept, limits, PROXY, TLS, sniffing, per-connection drain.

mod conn;

pub use conn::{ByteStream, CloseWatch, Connection, ConnectionInfo, Drain, Serve, TlsInfo, Wire};

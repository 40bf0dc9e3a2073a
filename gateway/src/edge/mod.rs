//! Everything before HTTP: bind, accept, limits, PROXY, TLS, sniffing, per-connection drain.

mod conn;
pub mod proxy_protocol;
mod stream;

pub use conn::{ByteStream, CloseWatch, Connection, ConnectionInfo, Drain, Serve, TlsInfo, Wire};
pub use stream::SocketStream;

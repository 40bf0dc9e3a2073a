//! Dialling: a client's connections, plain or over TLS.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A connection of either kind.
pub type Io = Box<dyn ByteStream>;

/// What HTTP is spoken over.
pub trait ByteStream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> ByteStream for S {}

/// Where to connect to, and how.
#[derive(Clone)]
pub enum Dial {
    /// Without TLS.
    Plain(SocketAddr),
    /// Over TLS, asking for this name.
    Tls(SocketAddr, ServerName<'static>, TlsConnector),
}

impl Dial {
    /// Over TLS.
    ///
    /// # Panics
    /// When `name` is no server name.
    pub fn tls(addr: SocketAddr, name: &str, connector: TlsConnector) -> Self {
        let name = ServerName::try_from(name.to_owned()).expect("a server name");
        Self::Tls(addr, name, connector)
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// The refusal, or a failed handshake.
    pub async fn connect(&self) -> io::Result<Io> {
        let (Self::Plain(addr) | Self::Tls(addr, ..)) = self;
        let tcp = TcpStream::connect(addr).await?;
        tcp.set_nodelay(true)?;
        Ok(match self {
            Self::Plain(_) => Box::new(tcp),
            Self::Tls(_, name, connector) => Box::new(connector.connect(name.clone(), tcp).await?),
        })
    }
}

impl From<SocketAddr> for Dial {
    fn from(addr: SocketAddr) -> Self {
        Self::Plain(addr)
    }
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(addr) => write!(f, "{addr}"),
            Self::Tls(addr, name, _) => write!(f, "{} at {addr}", name.to_str()),
        }
    }
}

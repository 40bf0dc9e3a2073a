//! An HTTP/2 client on the `h2` crate: one connection, streams as the test opens them, no retries.

use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// A finished response.
#[derive(Debug)]
pub struct H2Response {
    /// The status.
    pub status: u16,
    /// The header fields.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// The trailers, if any came.
    pub trailers: Option<HeaderMap>,
}

impl H2Response {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }
}

/// A connection; dropping it closes it.
#[derive(Debug)]
pub struct H2 {
    /// Opens streams.
    pub send: SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

impl H2 {
    /// Connects without TLS, by prior knowledge.
    ///
    /// # Panics
    /// When the connection is refused or no HTTP/2.
    pub async fn connect(addr: SocketAddr) -> Self {
        let io = TcpStream::connect(addr).await.expect("the gateway accepts");
        io.set_nodelay(true).expect("a live socket");
        Self::over(io).await
    }

    /// Speaks over a stream that is there already.
    ///
    /// # Panics
    /// When the other side speaks no HTTP/2.
    pub async fn over(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let (send, connection) = h2::client::handshake(io).await.expect("HTTP/2 is spoken");
        Self {
            send,
            connection: tokio::spawn(connection),
        }
    }

    /// Sends a whole request and reads the whole response.
    ///
    /// # Errors
    /// The stream's or the connection's error.
    pub async fn exchange(&self, request: Request<()>, body: Bytes) -> Result<H2Response, h2::Error> {
        let mut send = self.send.clone().ready().await?;
        let (response, mut stream) = send.send_request(request, body.is_empty())?;
        if !body.is_empty() {
            stream.send_data(body, true)?;
        }
        collect(response.await?).await
    }
}

impl Drop for H2 {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Reads a response to its end.
///
/// # Errors
/// The stream's or the connection's error.
pub async fn collect(response: Response<h2::RecvStream>) -> Result<H2Response, h2::Error> {
    let (parts, mut body) = response.into_parts();
    let mut bytes = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        bytes.extend_from_slice(&chunk);
    }
    Ok(H2Response {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: bytes.into(),
        trailers: body.trailers().await?,
    })
}

/// A GET.
pub fn get(scheme: &str, host: &str, path: &str) -> Request<()> {
    with_method("GET", scheme, host, path)
}

/// A request with any method.
///
/// # Panics
/// When the parts are no URI.
pub fn with_method(method: &str, scheme: &str, host: &str, path: &str) -> Request<()> {
    Request::builder()
        .method(method)
        .uri(format!("{scheme}://{host}{path}"))
        .body(())
        .expect("a valid request")
}

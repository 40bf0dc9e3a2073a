//! Clients with full control over the bytes and their timing: HTTP/1.1 by hand, HTTP/2 on `h2`, TLS on rustls.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Failure;

/// A generous timeout for operations that should take milliseconds.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Connects with TCP_NODELAY.
pub(crate) async fn connect(to: SocketAddr) -> Result<TcpStream, Failure> {
    let failed = |e| Failure::io(&format!("connecting to {to}"), e);
    let stream = TcpStream::connect(to).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    Ok(stream)
}

/// The head of a GET.
pub(crate) fn head(host: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: measure\r\nAccept: */*\r\n\r\n")
}

/// Reads one response of known length and returns its status.
///
/// # Errors
/// As [`whole_response`].
pub(crate) async fn response(stream: &mut (impl AsyncRead + Unpin)) -> Result<u16, Failure> {
    whole_response(stream).await.map(|(status, _)| status)
}

/// Reads one response of known length; returns its status and its bytes.
///
/// # Errors
/// An error of the connection, an end before the last byte, or an invalid response.
pub(crate) async fn whole_response(stream: &mut (impl AsyncRead + Unpin)) -> Result<(u16, Vec<u8>), Failure> {
    let mut buf = Vec::with_capacity(512);
    loop {
        if let Some((status, length)) = parse(&buf)
            && buf.len() >= length
        {
            return Ok((status, buf));
        }
        let mut piece = [0; 4096];
        match stream.read(&mut piece).await {
            Ok(0) => {
                let got = String::from_utf8_lossy(&buf).into_owned();
                return Err(Failure::Unexpected(format!("the connection ended after '{got}'")));
            }
            Ok(n) => buf.extend_from_slice(&piece[..n]),
            Err(e) => return Err(Failure::io("reading a response", e)),
        }
    }
}

/// The status, and the length with the head, of a response with a complete head.
fn parse(buf: &[u8]) -> Option<(u16, usize)> {
    let end = buf.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&buf[..end]).ok()?;
    let status = head.get(9..12)?.parse().ok()?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<usize>().ok())?
    });
    Some((status, end + length.unwrap_or(0)))
}

/// Sends a request and reads its response.
pub(crate) async fn exchange<S>(stream: &mut S, head: &str) -> Result<u16, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let sent = stream.write_all(head.as_bytes()).await;
    sent.map_err(|e| Failure::io("sending a request", e))?;
    tokio::time::timeout(LONG, response(stream))
        .await
        .unwrap_or_else(|_| Err(Failure::Unexpected(format!("no response within {LONG:?}"))))
}

/// The body of a GET on a connection of its own.
pub(crate) async fn get(from: SocketAddr, host: &str, path: &str) -> Result<String, Failure> {
    let mut stream = connect(from).await?;
    let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let failed = |e| Failure::io(&format!("GET {path} from {from}"), e);
    stream.write_all(head.as_bytes()).await.map_err(failed)?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.map_err(failed)?;
    let text = String::from_utf8_lossy(&all);
    match text.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.to_owned()),
        _ => Err(Failure::Unexpected(format!(
            "GET {path} from {from} gave '{text}'"
        ))),
    }
}

/// An HTTP/2 connection by prior knowledge; its task ends when the handle is dropped.
pub(crate) struct H2 {
    send: h2::client::SendRequest<Bytes>,
    task: tokio::task::JoinHandle<()>,
}

impl H2 {
    pub(crate) async fn connect(to: SocketAddr) -> Result<Self, Failure> {
        let stream = connect(to).await?;
        let failed = |e: h2::Error| Failure::Unexpected(format!("HTTP/2 with {to}: {e}"));
        let (send, connection) = h2::client::handshake(stream).await.map_err(failed)?;
        let task = tokio::spawn(async move {
            // An error of the connection reaches every stream.
            let _ = connection.await;
        });
        Ok(Self { send, task })
    }

    /// Opens a stream; the future returns the response.
    pub(crate) async fn get(&self, host: &str) -> Result<h2::client::ResponseFuture, Failure> {
        let failed = |e: h2::Error| Failure::Unexpected(format!("a stream: {e}"));
        let request = http::Request::get(format!("http://{host}/"))
            .header("user-agent", "measure")
            .header("accept", "*/*")
            .body(())
            .map_err(|e| Failure::Unexpected(e.to_string()))?;
        let mut send = self.send.clone().ready().await.map_err(failed)?;
        let (response, _) = send.send_request(request, true).map_err(failed)?;
        Ok(response)
    }
}

impl Drop for H2 {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads the response of a stream to its end, and returns its status.
pub(crate) async fn h2_response(response: h2::client::ResponseFuture) -> Result<u16, Failure> {
    let failed = |e: h2::Error| Failure::Unexpected(format!("a stream: {e}"));
    let response = response.await.map_err(failed)?;
    let status = response.status().as_u16();
    let mut body = response.into_body();
    while let Some(chunk) = body.data().await {
        let size = chunk.map_err(failed)?.len();
        body.flow_control().release_capacity(size).map_err(failed)?;
    }
    Ok(status)
}

/// A verifier that accepts every certificate: the cost of signature checks in a client is not measured here.
#[derive(Debug)]
struct Gullible(Vec<SignatureScheme>);

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

/// A TLS 1.3 client with one cipher suite and one ALPN protocol, never resumed: the negotiated parameters are the
/// same with every server that supports them.
pub(crate) fn tls_one_cipher(alpn: &[u8]) -> TlsConnector {
    let mut provider = ring::default_provider();
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    provider.cipher_suites = vec![ring::cipher_suite::TLS13_AES_128_GCM_SHA256];
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring knows TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible(schemes)))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![alpn.to_vec()];
    TlsConnector::from(Arc::new(config))
}

/// Performs the TLS handshake over an existing connection.
pub(crate) async fn handshake(
    connector: &TlsConnector,
    name: &str,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>, Failure> {
    let name = ServerName::try_from(name.to_owned()).map_err(|e| Failure::Unexpected(e.to_string()))?;
    match tokio::time::timeout(LONG, connector.connect(name, stream)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(e)) => Err(Failure::io("a TLS handshake", e)),
        Err(_) => Err(Failure::Unexpected(format!("no TLS handshake within {LONG:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_ends_where_its_length_says() {
        let text = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 3\r\n\r\nabc";
        assert_eq!(parse(text), Some((503, text.len())));
        assert_eq!(parse(&text[..20]), None);
        assert_eq!(parse(b"HTTP/1.1 204 No Content\r\n\r\n").map(|p| p.0), Some(204));
        assert_eq!(parse(b"nonsense\r\n\r\n"), None);
    }
}

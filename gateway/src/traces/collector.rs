//! The HTTP client of the exporter: POSTs over one connection, which is kept.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use sluice_model::BackendTls;
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_rustls::TlsConnector;

use super::export::Post;
use super::otlp::PartialSuccess;
use super::settings::TraceSettings;
use crate::upstream::client_config;

/// Most bytes of a response's body.
const MAX_RESPONSE: usize = 64 << 10;

/// Why a POST was not accepted.
#[derive(Debug)]
pub(super) struct Failure {
    /// One line. Holds neither fields nor path, which may be secrets.
    pub(super) why: String,
    /// Whether the same POST may succeed later.
    pub(super) retry: bool,
    /// The collector's `Retry-After`.
    pub(super) after: Option<Duration>,
}

impl Failure {
    /// A failure of the connection, after which the POST may succeed.
    pub(super) fn broken(why: impl ToString) -> Self {
        Self {
            why: why.to_string(),
            retry: true,
            after: None,
        }
    }

    fn refused(why: impl ToString) -> Self {
        Self {
            retry: false,
            ..Self::broken(why)
        }
    }
}

/// A client of one collector.
#[derive(Debug)]
pub(super) struct Collector {
    host: String,
    port: u16,
    path: PathAndQuery,
    fields: HeaderMap,
    tls: Option<Arc<BackendTls>>,
    gzip: bool,
    connection: Option<Connection>,
}

#[derive(Debug)]
struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    /// Moves the bytes; ended with this value.
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Collector {
    /// A client without a connection; `settings.endpoint` was checked.
    pub(super) fn new(settings: &TraceSettings) -> Self {
        let (endpoint, https) = (&settings.endpoint, is_https(&settings.endpoint));
        let host = endpoint.host().unwrap_or_default();
        let mut fields = settings.headers.clone();
        // After the configured fields, which must not replace those of the protocol.
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        if settings.gzip {
            fields.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        let product = concat!("sluice/", env!("CARGO_PKG_VERSION"));
        fields.insert(USER_AGENT, HeaderValue::from_static(product));
        let authority = endpoint.authority().map_or("", |authority| authority.as_str());
        if let Ok(authority) = HeaderValue::try_from(authority) {
            fields.insert(HOST, authority);
        }
        Self {
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: endpoint.port_u16().unwrap_or(if https { 443 } else { 80 }),
            path: endpoint
                .path_and_query()
                .cloned()
                .unwrap_or_else(|| PathAndQuery::from_static("/")),
            fields,
            tls: https.then(|| {
                Arc::new(BackendTls {
                    ca_file: settings.certificate.clone(),
                    certificate: settings.client_certificate.clone(),
                    server_name: None,
                    insecure_skip_verify: false,
                })
            }),
            gzip: settings.gzip,
            connection: None,
        }
    }

    /// Posts one body. Has no timeout of its own; a dropped future closes the connection.
    ///
    /// # Errors
    /// Whatever is not a response with a 2xx status.
    async fn send(&mut self, body: Bytes) -> Result<PartialSuccess, Failure> {
        let mut connection = self.connected().await?;
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = Uri::from(self.path.clone());
        *request.headers_mut() = self.fields.clone();
        let response = connection.sender.send_request(request).await;
        let response = response.map_err(Failure::broken)?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_RESPONSE).collect().await;
        match (head.status.is_success(), body) {
            (true, Ok(body)) => {
                // Both ends are where the next request begins.
                self.connection = Some(connection);
                Ok(PartialSuccess::read(&body.to_bytes()))
            }
            (true, Err(error)) => Err(Failure::refused(format!("its response is unreadable: {error}"))),
            (false, _) => Err(refusal(head.status, &head.headers)),
        }
    }

    /// The kept connection where it is still open, else a new one.
    async fn connected(&mut self) -> Result<Connection, Failure> {
        if let Some(mut kept) = self.connection.take()
            && kept.sender.ready().await.is_ok()
        {
            return Ok(kept);
        }
        let address = (self.host.as_str(), self.port);
        let tcp = TcpStream::connect(address).await;
        let tcp = tcp.map_err(|e| Failure::broken(format!("cannot connect: {e}")))?;
        let _ = tcp.set_nodelay(true);
        let Some(tls) = &self.tls else {
            return open(tcp).await;
        };
        // Files are read for each connection, so that a rotated certificate is found.
        let tls = Arc::clone(tls);
        let config = spawn_blocking(move || client_config(&tls)).await;
        let config: ClientConfig = match config {
            Ok(Ok(config)) => config,
            Ok(Err(error)) => return Err(Failure::broken(error)),
            Err(_) => return Err(Failure::broken("the gateway is going away")),
        };
        let name = match self.host.parse::<IpAddr>() {
            Ok(address) => ServerName::IpAddress(address.into()),
            Err(_) => ServerName::try_from(self.host.clone()).map_err(Failure::refused)?,
        };
        let connector = TlsConnector::from(Arc::new(config));
        let tls = connector.connect(name, tcp).await;
        open(tls.map_err(|e| Failure::broken(format!("TLS failed: {e}")))?).await
    }
}

impl Post for Collector {
    fn encoded(&self, body: Vec<u8>) -> Bytes {
        Bytes::from(if self.gzip { gzip(&body) } else { body })
    }

    async fn post(&mut self, body: Bytes) -> Result<PartialSuccess, Failure> {
        self.send(body).await
    }
}

/// Whether a URL's scheme is https.
fn is_https(url: &Uri) -> bool {
    url.scheme_str() == Some("https")
}

async fn open<S>(stream: S) -> Result<Connection, Failure>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, driver) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(Failure::broken)?;
    let driver = tokio::spawn(async move {
        // Its error is the request's, too.
        let _ = driver.await;
    });
    Ok(Connection { sender, driver })
}

/// A response that is not 2xx: those that OTLP calls retryable may be followed by the same POST.
fn refusal(status: StatusCode, fields: &HeaderMap) -> Failure {
    let after = fields.get(RETRY_AFTER);
    let after = after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
    Failure {
        why: format!("it answers {status}"),
        retry: matches!(status.as_u16(), 429 | 502 | 503 | 504),
        after: after.map(Duration::from_secs),
    }
}

/// A gzip member (RFC 1952) without name and time.
fn gzip(body: &[u8]) -> Vec<u8> {
    // The fastest level: spans repeat the same keys, which any level finds.
    let compressed = miniz_oxide::deflate::compress_to_vec(body, 1);
    let mut out = Vec::with_capacity(compressed.len() + 18);
    out.extend_from_slice(b"\x1f\x8b\x08\0\0\0\0\0\0\xff");
    out.extend_from_slice(&compressed);
    out.extend_from_slice(&crc32fast::hash(body).to_le_bytes());
    // The length modulo 2^32.
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out
}

#[cfg(test)]
#[path = "collector_tests.rs"]
mod tests;

//! The HTTP client of webhooks: one POST on a connection of its own. Calls are rare, and a pooled connection could be stale
//! just when a request waits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;

use super::{Answer, reply};

/// The bound of a reply's body, in bytes.
const MAX_REPLY: usize = 64 << 10;

/// A reply. `body` is `None` when it was too long.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) retry_after: Option<Duration>,
    pub(super) body: Option<Bytes>,
}

/// The HTTP client. Errors name the host alone: path, query and headers may hold secrets.
#[derive(Default)]
pub(super) struct Client {
    /// A client that trusts the system's roots, which are read when https is first needed.
    tls: OnceCell<Arc<ClientConfig>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// A client that trusts these roots only.
    #[cfg(test)]
    pub(super) fn trusting(roots: RootCertStore) -> Self {
        Self {
            tls: OnceCell::new_with(Some(tls_config(roots))),
        }
    }

    /// Posts a body. Without a timeout of its own; a dropped future closes the connection.
    pub(super) async fn post(
        &self,
        url: &str,
        headers: &BTreeMap<String, String>,
        key: &str,
        body: Vec<u8>,
    ) -> Result<Reply, Answer> {
        let target = Target::parse(url)?;
        let request = request(&target, headers, key, body)?;
        let address = (target.host.as_str(), target.port);
        let tcp = TcpStream::connect(address)
            .await
            .map_err(|e| target.failed("cannot connect", &e))?;
        if !target.tls {
            return exchange(tcp, request, &target).await;
        }
        let name = ServerName::try_from(target.host.clone())
            .map_err(|_| Answer::Refused(format!("{} cannot be the name of a TLS server", target.host)))?;
        let config = self.tls.get_or_try_init(native_config).await?;
        let tls = TlsConnector::from(Arc::clone(config))
            .connect(name, tcp)
            .await
            .map_err(|e| target.failed("TLS failed", &e))?;
        exchange(tls, request, &target).await
    }
}

/// The parts of a URL.
struct Target {
    tls: bool,
    host: String,
    port: u16,
    authority: String,
    path: String,
}

impl Target {
    /// The configuration was checked: a failure here names no part of the URL.
    fn parse(url: &str) -> Result<Self, Answer> {
        let bad = || Answer::Refused("the webhook's URL cannot be used".to_owned());
        let uri: Uri = url.parse().map_err(|_| bad())?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(bad()),
        };
        let authority = uri.authority().ok_or_else(bad)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        Ok(Self {
            tls,
            host: host.to_owned(),
            port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            authority: authority.as_str().to_owned(),
            path: uri.path_and_query().map_or("/", |p| p.as_str()).to_owned(),
        })
    }

    fn failed(&self, what: &str, error: &dyn std::error::Error) -> Answer {
        Answer::Retry {
            detail: format!("{what} to the platform at {}: {error}", self.authority),
            after: None,
        }
    }
}

fn request(
    target: &Target,
    headers: &BTreeMap<String, String>,
    key: &str,
    body: Vec<u8>,
) -> Result<Request<Full<Bytes>>, Answer> {
    let mut fields = HeaderMap::new();
    fields.insert(USER_AGENT, HeaderValue::from_static("sluice"));
    fields.insert(ACCEPT, HeaderValue::from_static("application/json"));
    for (name, text) in headers {
        let field = HeaderName::try_from(name.as_str()).ok();
        let value = HeaderValue::try_from(text.as_str()).ok();
        let (Some(field), Some(mut value)) = (field, value) else {
            return Err(Answer::Refused(format!("the header '{name}' cannot be sent")));
        };
        value.set_sensitive(true);
        fields.insert(field, value);
    }
    // After the configured headers, which must not replace those of the protocol.
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    fields.insert(CONNECTION, HeaderValue::from_static("close"));
    let unusable = |_| Answer::Refused("the webhook's URL cannot be used".to_owned());
    if !fields.contains_key(HOST) {
        fields.insert(HOST, HeaderValue::try_from(&target.authority).map_err(unusable)?);
    }
    fields.insert("idempotency-key", HeaderValue::try_from(key).map_err(unusable)?);
    let mut request = Request::post(target.path.as_str())
        .body(Full::new(Bytes::from(body)))
        .map_err(|_| Answer::Refused("the webhook's URL cannot be used".to_owned()))?;
    *request.headers_mut() = fields;
    Ok(request)
}

async fn exchange<S>(io: S, request: Request<Full<Bytes>>, target: &Target) -> Result<Reply, Answer>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |e: &dyn std::error::Error| target.failed("the call was lost: no answer", e);
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_REPLY)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|e| failed(&e))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
        let (head, body) = response.into_parts();
        // The body of an error status may have any length.
        let body = if head.status.is_success() {
            match Limited::new(body, MAX_REPLY).collect().await {
                Ok(whole) => Some(whole.to_bytes()),
                Err(e) if e.is::<LengthLimitError>() => None,
                Err(e) => return Err(failed(e.as_ref())),
            }
        } else {
            Some(Bytes::new())
        };
        Ok(Reply {
            status: head.status,
            retry_after: head.headers.get(RETRY_AFTER).and_then(reply::retry_after),
            body,
        })
    };
    // The connection task moves the bytes, and ends with the answer; errors are reported by the request.
    let drive = async {
        let _ = connection.await;
        std::future::pending().await
    };
    tokio::select! {
        answer = answer => answer,
        never = drive => never,
    }
}

async fn native_config() -> Result<Arc<ClientConfig>, Answer> {
    let lost = |e: &dyn std::fmt::Display| Answer::Retry {
        detail: format!("the machine's certificates cannot be read: {e}"),
        after: None,
    };
    let found = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs)
        .await
        .map_err(|e| lost(&e))?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found
            .errors
            .first()
            .map_or_else(|| "there are none".to_owned(), ToString::to_string);
        return Err(lost(&why));
    }
    Ok(tls_config(roots))
}

fn tls_config(roots: RootCertStore) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring speaks the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

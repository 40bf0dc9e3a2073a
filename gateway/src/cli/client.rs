//! The client of the admin API.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use sluice_model::{AdminAddress, Secret, ServiceId};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// The default address of the admin server.
pub(super) const DEFAULT_ADMIN: &str = "http://127.0.0.1:9900";

const DEFAULT_PORT: u16 = 9900;

/// Timeout of a whole exchange.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The longest response accepted: some 100,000 revisions.
const MAX_ANSWER: usize = 64 << 20;

/// The address of an admin server: `http://host:port`, `host:port`, `host` or `unix:/path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminUrl {
    /// TCP.
    Tcp {
        /// A name, or an address; IPv6 in brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

impl FromStr for AdminUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with("https://") {
            return Err("the admin address speaks plain HTTP: http://HOST:PORT".to_owned());
        }
        if text.starts_with("unix:") {
            return match text.parse()? {
                AdminAddress::Unix(path) => Ok(Self::Unix(path)),
                AdminAddress::Tcp(_) => Err("write it as unix:/path".to_owned()),
            };
        }
        let bad = || format!("write it as {DEFAULT_ADMIN}");
        let rest = text.strip_prefix("http://").unwrap_or(text);
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let authority: http::uri::Authority = authority.parse().map_err(|_| bad())?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(bad());
        }
        let port = match authority.port() {
            Some(port) => port.as_u16(),
            None if authority.as_str() == authority.host() => DEFAULT_PORT,
            None => return Err(bad()),
        };
        Ok(Self::Tcp {
            host: authority.host().to_owned(),
            port,
        })
    }
}

impl fmt::Display for AdminUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "http://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl AdminUrl {
    /// The `Host` of a request. The host of a Unix socket is this machine.
    fn authority(&self) -> String {
        match self {
            Self::Tcp { host, port } => format!("{host}:{port}"),
            Self::Unix(_) => "localhost".to_owned(),
        }
    }
}

/// Errors of the admin client. Each message says what to do.
#[derive(Debug, Error)]
pub enum AdminError {
    /// Nothing listens at the address, or the address cannot be reached.
    #[error("cannot reach a gateway at {url}: {source}{}", hint(.source))]
    Unreachable {
        /// The admin address.
        url: AdminUrl,
        /// The system's error.
        source: io::Error,
    },
    /// The response is not that of an admin server.
    #[error(
        "{url} does not answer like a gateway's admin address: {what}; name the right one with --admin URL"
    )]
    Strange {
        /// The admin address.
        url: AdminUrl,
        /// What is wrong with the response.
        what: String,
    },
    /// The gateway does not know the name that it was reached by.
    #[error(
        "{url}: the gateway does not go by this name: use its IP address, or list the name in its admin.hosts"
    )]
    Misdirected {
        /// The admin address.
        url: AdminUrl,
    },
    /// No response in time.
    #[error("{url} did not answer within {} s", limit.as_secs())]
    Slow {
        /// The admin address.
        url: AdminUrl,
        /// The timeout.
        limit: Duration,
    },
    /// The request was sent, and the connection broke before the response.
    #[error("{url} went away without an answer: {what}")]
    Broken {
        /// The admin address.
        url: AdminUrl,
        /// The error.
        what: String,
    },
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::ConnectionRefused => {
            "\n  Is `sluice run` running? It prints its admin address at start; name another one with --admin URL."
        }
        _ => "\n  Name the gateway's admin address with --admin URL.",
    }
}

/// Sends a GET request. Cancel-safe; takes at most [`TIMEOUT`].
pub(super) async fn get(url: &AdminUrl, target: &str) -> Result<(StatusCode, Bytes), AdminError> {
    let request = AdminRequest {
        method: Method::GET,
        target,
        token: None,
    };
    within(url, TIMEOUT, send(url, request)).await
}

/// The response of `/api/revisions`, of one service or of all.
pub(super) async fn revisions(url: &AdminUrl, service: Option<&ServiceId>) -> Result<Value, AdminError> {
    let strange = |what: String| AdminError::Strange {
        url: url.clone(),
        what,
    };
    let query = service.map_or_else(String::new, |service| format!("?service={service}"));
    let (status, body) = get(url, &format!("/api/revisions{query}")).await?;
    if status != StatusCode::OK {
        return Err(strange(format!("/api/revisions is {status}")));
    }
    let value: Value = serde_json::from_slice(&body).map_err(|e| strange(e.to_string()))?;
    if value.get("revisions").is_none_or(|r| !r.is_array()) {
        return Err(strange("/api/revisions lists no revisions".to_owned()));
    }
    Ok(value)
}

/// Whether a response of `/api/revisions` has none.
pub(super) fn is_empty(value: &Value) -> bool {
    value["revisions"].as_array().is_none_or(Vec::is_empty)
}

/// Sends a POST request without a body, with the admin token if there is one. Cancel-safe; takes at most `limit`.
pub(super) async fn post(
    url: &AdminUrl,
    target: &str,
    token: Option<&Secret>,
    limit: Duration,
) -> Result<(StatusCode, Bytes), AdminError> {
    let request = AdminRequest {
        method: Method::POST,
        target,
        token,
    };
    within(url, limit, send(url, request)).await
}

async fn within<T>(
    url: &AdminUrl,
    limit: Duration,
    conversation: impl Future<Output = Result<T, AdminError>>,
) -> Result<T, AdminError> {
    match timeout(limit, conversation).await {
        Ok(result) => result,
        Err(_) => Err(AdminError::Slow {
            url: url.clone(),
            limit,
        }),
    }
}

struct AdminRequest<'r> {
    method: Method,
    target: &'r str,
    token: Option<&'r Secret>,
}

async fn send(url: &AdminUrl, request: AdminRequest<'_>) -> Result<(StatusCode, Bytes), AdminError> {
    let unreachable = |source| AdminError::Unreachable {
        url: url.clone(),
        source,
    };
    match url {
        AdminUrl::Tcp { host, port } => {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let stream = TcpStream::connect((host, *port)).await.map_err(unreachable)?;
            exchange(url, stream, request).await
        }
        AdminUrl::Unix(path) => {
            let stream = UnixStream::connect(path).await.map_err(unreachable)?;
            exchange(url, stream, request).await
        }
    }
}

async fn exchange(
    url: &AdminUrl,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: AdminRequest<'_>,
) -> Result<(StatusCode, Bytes), AdminError> {
    let strange = |what: &dyn fmt::Display| AdminError::Strange {
        url: url.clone(),
        what: what.to_string(),
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| strange(&e))?;
    let AdminRequest {
        method,
        target,
        token,
    } = request;
    let mut request = Request::builder()
        .method(&method)
        .uri(target)
        .header("host", url.authority())
        .header("connection", "close");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {}", token.reveal()));
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| strange(&e))?;
    let exchange = async {
        let answer = sender.send_request(request).await;
        let answer = answer.map_err(|e| match method {
            // The process that responds to an upgrade shuts down right after.
            Method::POST if e.is_incomplete_message() => AdminError::Broken {
                url: url.clone(),
                what: e.to_string(),
            },
            _ => strange(&e),
        })?;
        let status = answer.status();
        if status == StatusCode::MISDIRECTED_REQUEST {
            return Err(AdminError::Misdirected { url: url.clone() });
        }
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        Ok((status, body.map_err(|e| strange(&e))?.to_bytes()))
    };
    // The connection has to be polled during the exchange, which returns the connection's error, too.
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        biased;
        result = &mut exchange => result,
        _ = connection => exchange.await,
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn urls_are_read_leniently() {
        for (text, want) in [
            ("http://127.0.0.1:9900", "http://127.0.0.1:9900"),
            ("http://127.0.0.1:9900/", "http://127.0.0.1:9900"),
            ("localhost:1", "http://localhost:1"),
            ("gateway", "http://gateway:9900"),
            ("http://[::1]:1", "http://[::1]:1"),
            ("unix:/run/a.sock", "unix:/run/a.sock"),
        ] {
            assert_eq!(text.parse::<AdminUrl>().unwrap().to_string(), want);
        }
        for text in [
            "https://127.0.0.1:9900",
            "",
            "http://",
            "http://a/b",
            "http://a:99999",
            "http://u:p@a",
            "unix:",
        ] {
            assert!(text.parse::<AdminUrl>().is_err(), "{text}");
        }
        assert!(
            "https://a"
                .parse::<AdminUrl>()
                .unwrap_err()
                .contains("plain HTTP")
        );
    }

    fn url(address: SocketAddr) -> AdminUrl {
        address.to_string().parse().unwrap()
    }

    async fn listener() -> (TcpListener, AdminUrl) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = url(listener.local_addr().unwrap());
        (listener, url)
    }

    #[tokio::test]
    async fn a_refused_connection_says_what_to_do() {
        let (listener, url) = listener().await;
        drop(listener);
        let text = get(&url, "/").await.unwrap_err().to_string();
        assert!(
            text.contains(&url.to_string()) && text.contains("sluice run") && text.contains("--admin"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn answers_and_what_is_none() {
        let (listener, url) = listener().await;
        let serve = async |bytes: &'static [u8]| {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 512];
            assert!(stream.read(&mut head).await.unwrap() > 0);
            stream.write_all(bytes).await.unwrap();
        };
        let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        let (answer, ()) = tokio::join!(get(&url, "/"), serve(ok));
        assert_eq!(answer.unwrap(), (StatusCode::OK, Bytes::from_static(b"ok")));
        let misdirected = b"HTTP/1.1 421 Misdirected Request\r\ncontent-length: 0\r\n\r\n";
        let (answer, ()) = tokio::join!(get(&url, "/"), serve(misdirected));
        let text = answer.unwrap_err().to_string();
        assert!(text.contains("admin.hosts"), "{text}");
        for bytes in [
            &b"SSH-2.0-OpenSSH\r\n"[..],
            b"",
            b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok",
        ] {
            let (answer, ()) = tokio::join!(get(&url, "/"), serve(bytes));
            let text = answer.unwrap_err().to_string();
            assert!(text.contains("does not answer like"), "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_not_waited_for_for_ever() {
        let (_listener, url) = listener().await;
        assert!(matches!(get(&url, "/").await, Err(AdminError::Slow { .. })));
    }
}

//! Local responses of the gateway: error responses and redirects, the same on every protocol.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use crate::http1::HttpDate;
use crate::observe::Reason;

/// An error response: a reason with one line of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorResponse {
    /// The reason.
    pub reason: Reason,
    /// One line for people; never contains what `errorDetail: false` withholds.
    pub text: Cow<'static, str>,
    /// The value of `Retry-After`, where a retry may succeed.
    pub retry_after: Option<Duration>,
    /// The status, where it differs from the reason's own.
    pub status: Option<u16>,
}

/// A response by the gateway in place of the backend's.
#[derive(Debug)]
pub enum LocalResponse {
    /// An error.
    Error(ErrorResponse),
    /// A redirect.
    Redirect(RenderedResponse),
    /// An answer that the gateway can give for the backend, to a probe.
    Answer(RenderedResponse),
    /// A waiting page, and why it is shown.
    Page(Reason, RenderedResponse),
}

impl From<ErrorResponse> for LocalResponse {
    fn from(response: ErrorResponse) -> Self {
        Self::Error(response)
    }
}

/// The format of an error response, by what the client understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseFormat {
    /// One line of text.
    Text,
    /// A JSON object.
    Json,
    /// A trailers-only response with status 200.
    Grpc,
}

/// A rendered response, to be written by either protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderedResponse {
    /// The HTTP status.
    pub status: u16,
    /// Fields besides Content-Length, in lower case.
    pub headers: Vec<(&'static str, String)>,
    /// The body; empty for gRPC.
    pub body: Bytes,
}

impl ResponseFormat {
    /// Chooses the format by `Accept` and `Content-Type`. gRPC is recognised by its content type.
    pub fn of(accept: Option<&[u8]>, content_type: Option<&[u8]>) -> Self {
        let starts = |value: Option<&[u8]>, with: &[u8]| value.is_some_and(|v| v.starts_with(with));
        if starts(content_type, b"application/grpc") && !starts(content_type, b"application/grpc-web") {
            return Self::Grpc;
        }
        let json = accept.is_some_and(|accept| {
            accept.split(|&b| b == b',').map(<[u8]>::trim_ascii).any(|kind| {
                let kind = kind.split(|&b| b == b';').next().unwrap_or_default().trim_ascii();
                kind == b"application/json" || kind.ends_with(b"+json")
            })
        });
        if json { Self::Json } else { Self::Text }
    }
}

impl ErrorResponse {
    /// An error response with the reason's status and this text.
    pub fn new(reason: Reason, text: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason,
            text: text.into(),
            retry_after: None,
            status: None,
        }
    }

    /// Sets `Retry-After`.
    #[must_use]
    pub fn retry_after(mut self, after: Option<Duration>) -> Self {
        self.retry_after = after;
        self
    }

    /// Overrides the reason's status.
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = Some(status);
        self
    }

    /// Renders the error response.
    pub fn render(&self, format: ResponseFormat, request_id: &str) -> RenderedResponse {
        let mut headers = vec![("x-sluice-reason", self.reason.as_str().to_owned())];
        if !request_id.is_empty() {
            headers.push(("x-request-id", request_id.to_owned()));
        }
        if let Some(after) = self.retry_after {
            // Rounded up: a retry that comes too early fails.
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            headers.push(("retry-after", seconds.max(1).to_string()));
        }
        match format {
            ResponseFormat::Grpc => {
                headers.push(("content-type", "application/grpc".to_owned()));
                headers.push(("grpc-status", self.reason.grpc_status().as_str().to_owned()));
                headers.push(("grpc-message", percent_encode(&self.text)));
                RenderedResponse {
                    status: 200,
                    headers,
                    body: Bytes::new(),
                }
            }
            ResponseFormat::Json => {
                headers.push(("content-type", "application/json".to_owned()));
                let body = serde_json::json!({
                    "reason": self.reason.as_str(),
                    "message": self.text,
                    "requestId": request_id,
                });
                RenderedResponse {
                    status: self.status.unwrap_or_else(|| self.reason.status().as_u16()),
                    headers,
                    body: Bytes::from(format!("{body}\n")),
                }
            }
            ResponseFormat::Text => {
                headers.push(("content-type", "text/plain; charset=utf-8".to_owned()));
                let body = Bytes::from(format!("{}: {}\n", self.reason.as_str(), self.text));
                RenderedResponse {
                    status: self.status.unwrap_or_else(|| self.reason.status().as_u16()),
                    headers,
                    body,
                }
            }
        }
    }
}

/// The redirect of `httpOption: redirected`: 301 for GET and HEAD, 308 for other methods, because clients
/// repeat other methods as a GET without body after a 301 (RFC 9110 15.4.2, 15.4.9).
///
/// `host` has to be normalised, and `path_and_query` to be part of a URI: see
/// [`OriginForm::to_uri`](crate::request::OriginForm::to_uri).
pub fn redirect_to_https(method: &str, host: &str, path_and_query: &str) -> RenderedResponse {
    let headers = vec![
        ("location", format!("https://{host}{path_and_query}")),
        ("content-type", "text/plain; charset=utf-8".to_owned()),
    ];
    RenderedResponse {
        status: if matches!(method, "GET" | "HEAD") {
            301
        } else {
            308
        },
        headers,
        body: Bytes::from_static(b"moved to https\n"),
    }
}

/// Percent-encodes a gRPC message: printable ASCII stays, other bytes and `%` are escaped.
fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if (0x20..=0x7e).contains(&byte) && byte != b'%' {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

impl RenderedResponse {
    /// Adds the `Date` field, which every local response has (RFC 9110 6.6.1).
    #[must_use]
    pub fn dated(mut self, now: SystemTime) -> Self {
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let date = String::from_utf8_lossy(HttpDate::new().at(seconds)).into_owned();
        self.headers.push(("date", date));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dialect_follows_accept_and_content_type() {
        assert_eq!(ResponseFormat::of(None, None), ResponseFormat::Text);
        assert_eq!(ResponseFormat::of(Some(b"*/*"), None), ResponseFormat::Text);
        assert_eq!(
            ResponseFormat::of(Some(b"text/html, application/json;q=0.9"), None),
            ResponseFormat::Json
        );
        assert_eq!(
            ResponseFormat::of(Some(b"application/problem+json"), None),
            ResponseFormat::Json
        );
        assert_eq!(
            ResponseFormat::of(None, Some(b"application/grpc+proto")),
            ResponseFormat::Grpc
        );
        assert_eq!(
            ResponseFormat::of(None, Some(b"application/grpc-web")),
            ResponseFormat::Text
        );
    }

    #[test]
    fn answers_say_reason_and_when_to_come_back() {
        let response = ErrorResponse::new(Reason::QueueFull, "no place in the queue")
            .retry_after(Some(Duration::from_millis(1500)));
        let text = response.render(ResponseFormat::Text, "id-1");
        assert_eq!(text.status, 503);
        assert!(
            text.headers
                .contains(&("x-sluice-reason", "queue_full".to_owned()))
        );
        assert!(text.headers.contains(&("retry-after", "2".to_owned())));
        assert_eq!(&text.body[..], b"queue_full: no place in the queue\n");
        let grpc = response.render(ResponseFormat::Grpc, "id-1");
        assert_eq!((grpc.status, grpc.body.is_empty()), (200, true));
        let json = response.render(ResponseFormat::Json, "id-1");
        let value: serde_json::Value = serde_json::from_slice(&json.body).expect("json");
        assert_eq!(value["reason"], "queue_full");
    }

    #[test]
    fn redirects_keep_the_method() {
        for (method, status) in [
            ("GET", 301),
            ("HEAD", 301),
            ("POST", 308),
            ("PUT", 308),
            ("OPTIONS", 308),
        ] {
            let redirect = redirect_to_https(method, "a.example", "/x?y=1");
            let location = ("location", "https://a.example/x?y=1".to_owned());
            assert_eq!(
                (redirect.status, &redirect.headers[0]),
                (status, &location),
                "{method}"
            );
        }
    }

    #[test]
    fn grpc_messages_are_escaped() {
        assert_eq!(percent_encode("100% ü\n"), "100%25 %C3%BC%0A");
    }
}

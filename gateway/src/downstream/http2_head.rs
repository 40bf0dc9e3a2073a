//! Request heads of HTTP/2: validation, and extended CONNECT.

use http::{HeaderValue, Method, request};
use sluice_model::{Limits, RequestView};

use super::websocket_stream::WebSocketKey;
use crate::exchange::ClientHead;
use crate::http1::judge_target;
use crate::local_response::ErrorResponse;
use crate::observe::Reason;
use crate::request::Fields;

/// The protocol of an extended CONNECT (RFC 8441 4).
#[derive(Debug)]
enum ExtendedConnect {
    /// Not an extended CONNECT.
    No,
    /// WebSocket.
    WebSocket(WebSocketKey),
    /// Another protocol.
    Unknown,
}

/// The request head of an HTTP/2 stream.
#[derive(Debug)]
pub(super) struct StreamHead {
    parts: request::Parts,
    /// The protocol of an extended CONNECT.
    connect: ExtendedConnect,
    /// Several Cookie fields, joined; `None` for one field or none.
    cookies: Option<Vec<u8>>,
    crumbs: bool,
}

impl StreamHead {
    /// Wraps a received head. An extended CONNECT for WebSocket becomes the equivalent GET with an upgrade of
    /// HTTP/1.1 (RFC 8441 5): from here on there is one kind of WebSocket.
    pub(super) fn new(mut parts: request::Parts) -> Self {
        let connect = match parts.extensions.remove::<h2::ext::Protocol>() {
            None => ExtendedConnect::No,
            Some(protocol) if protocol.as_ref().eq_ignore_ascii_case(b"websocket") => {
                let key = WebSocketKey::generate();
                parts.method = Method::GET;
                if let Ok(value) = HeaderValue::from_bytes(key.as_bytes()) {
                    parts.headers.insert(http::header::SEC_WEBSOCKET_KEY, value);
                }
                ExtendedConnect::WebSocket(key)
            }
            Some(_) => ExtendedConnect::Unknown,
        };
        let mut crumbs = parts.headers.get_all(http::header::COOKIE).iter();
        let several = crumbs.next().is_some() && crumbs.next().is_some();
        let cookies = several.then(|| {
            let all = parts.headers.get_all(http::header::COOKIE);
            let all: Vec<_> = all.iter().map(HeaderValue::as_bytes).collect();
            all.join(&b"; "[..])
        });
        Self {
            crumbs: several,
            cookies,
            connect,
            parts,
        }
    }

    /// Whether the request is HEAD, whose response has no body.
    pub(super) fn is_head(&self) -> bool {
        self.parts.method == Method::HEAD
    }

    /// The key generated for a WebSocket.
    pub(super) fn web_socket(&self) -> Option<&WebSocketKey> {
        match &self.connect {
            ExtendedConnect::WebSocket(key) => Some(key),
            ExtendedConnect::No | ExtendedConnect::Unknown => None,
        }
    }

    pub(super) fn content_length(&self) -> Option<u64> {
        self.parts
            .headers
            .get(http::header::CONTENT_LENGTH)?
            .to_str()
            .ok()?
            .parse()
            .ok()
    }

    /// Faults that are malformed by RFC 9113 and pass the `h2` crate, or that HTTP/1 heads are rejected for.
    fn fault(&self) -> Option<&'static str> {
        let fields = &self.parts.headers;
        // 8.2.1: a value neither begins nor ends with whitespace, which HTTP/1 would trim.
        let blank = |b: Option<&u8>| matches!(b, Some(b' ' | b'\t'));
        let padded = |value: &HeaderValue| {
            let value = value.as_bytes();
            blank(value.first()) || blank(value.last())
        };
        if fields.values().any(padded) {
            return Some("a field value begins or ends with whitespace");
        }
        if !matches!(self.parts.uri.scheme_str(), None | Some("http" | "https")) {
            return Some("the scheme is neither http nor https");
        }
        if self.target() == "*" && self.parts.method != Method::OPTIONS {
            return Some("only OPTIONS may ask for *");
        }
        // 8.3.1: Host must not differ from :authority.
        let mut hosts = fields.get_all(http::header::HOST).iter();
        if let (Some(host), authority) = (hosts.next(), self.parts.uri.authority()) {
            let differs = |a: &str| !host.as_bytes().eq_ignore_ascii_case(a.as_bytes());
            if hosts.next().is_some() || authority.is_some_and(|a| differs(a.as_str())) {
                return Some("two hosts");
            }
        }
        let mut lengths = fields.get_all(http::header::CONTENT_LENGTH).iter();
        if let Some(length) = lengths.next() {
            let digits = length.as_bytes();
            let octal = digits.len() > 1 && digits[0] == b'0';
            if lengths.next().is_some() || octal || !digits.iter().all(u8::is_ascii_digit) {
                return Some("Content-Length is not one number");
            }
        }
        None
    }
}

impl Fields for StreamHead {
    fn each<'h>(&'h self, mut each: impl FnMut(&'h [u8], &'h [u8])) {
        for (name, value) in &self.parts.headers {
            each(name.as_str().as_bytes(), value.as_bytes());
        }
    }

    fn first(&self, name: &str) -> Option<&[u8]> {
        self.parts.headers.get(name).map(HeaderValue::as_bytes)
    }
}

impl RequestView for StreamHead {
    fn method(&self) -> &str {
        self.parts.method.as_str()
    }

    fn path(&self) -> &str {
        self.parts.uri.path()
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        match &self.cookies {
            Some(cookies) if name == "cookie" => Some(cookies),
            _ => self.first(name),
        }
    }
}

impl ClientHead for StreamHead {
    fn target(&self) -> &str {
        self.parts
            .uri
            .path_and_query()
            .map_or("/", http::uri::PathAndQuery::as_str)
    }

    fn host(&self) -> Option<&[u8]> {
        let authority = self.parts.uri.authority().map(|a| a.as_str().as_bytes());
        authority.or_else(|| self.first("host"))
    }

    fn size(&self) -> usize {
        let fields = self
            .parts
            .headers
            .iter()
            .map(|(n, v)| n.as_str().len() + v.len() + 4);
        self.target().len() + fields.sum::<usize>()
    }

    fn takes_trailers(&self) -> bool {
        // In HTTP/2 `te` has no other value (RFC 9113 8.2.2), and trailers need no permission.
        self.first("te")
            .is_some_and(|te| te.eq_ignore_ascii_case(b"trailers"))
    }

    fn nominates_others(&self) -> bool {
        false
    }

    fn has_crumbs(&self) -> bool {
        self.crumbs
    }

    fn check(&self, limits: &Limits) -> Result<(), ErrorResponse> {
        let target = self.target();
        if target.len() > limits.max_uri_bytes {
            return Err(ErrorResponse::new(
                Reason::UriTooLong,
                "the request's target is longer than allowed",
            ));
        }
        // As strict as for HTTP/1: a target that backends may read differently must not pass by either
        // protocol.
        judge_target(target.as_bytes())
            .map_err(|fault| ErrorResponse::new(Reason::BadRequest, fault.to_string()))?;
        if matches!(self.connect, ExtendedConnect::Unknown) {
            let text = "of extended CONNECT only WebSocket is served";
            return Err(ErrorResponse::new(Reason::BadRequest, text).with_status(501));
        }
        if self.parts.method == Method::CONNECT {
            return Err(ErrorResponse::new(Reason::BadRequest, "CONNECT is not served").with_status(405));
        }
        if let Some(fault) = self.fault() {
            return Err(ErrorResponse::new(Reason::BadRequest, fault));
        }
        if self.parts.headers.len() > limits.max_headers || self.size() > limits.max_header_bytes {
            return Err(ErrorResponse::new(
                Reason::HeadersTooLarge,
                "the request's head is larger than allowed",
            ));
        }
        Ok(())
    }

    fn upgrade(&self) -> Option<&[u8]> {
        self.web_socket().map(|_| &b"websocket"[..])
    }

    fn must_switch(&self) -> bool {
        self.web_socket().is_some()
    }
}

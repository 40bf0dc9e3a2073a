//! Pingora's message heads as the request path sees them.

use std::borrow::Cow;

use http::header::{CONTENT_LENGTH, HOST, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{Method, StatusCode, Version};
use pingora_error::{Error, ErrorType, OrErr, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use sluice_model::{Backend, Limits, RequestView, Scheme, UrlBackend};

use crate::answer::Answer;
use crate::observe::Reason;
use crate::request::{HeadMut, Refusal, Routed, judge_target};

/// A request head, to be looked at.
pub(super) struct View<'h> {
    header: &'h RequestHeader,
    /// Cookie crumbs of HTTP/2, joined; `None` where there is one field or none.
    cookies: Option<Vec<u8>>,
}

impl<'h> View<'h> {
    pub(super) fn new(header: &'h RequestHeader) -> Self {
        let mut crumbs = header.headers.get_all(http::header::COOKIE).iter();
        let cookies = match (crumbs.next(), crumbs.next()) {
            (Some(first), Some(second)) => {
                let rest = crumbs.map(HeaderValue::as_bytes);
                let all: Vec<_> = [first.as_bytes(), second.as_bytes()]
                    .into_iter()
                    .chain(rest)
                    .collect();
                Some(all.join(&b"; "[..]))
            }
            _ => None,
        };
        Self { header, cookies }
    }

    /// Host or `:authority` as sent.
    pub(super) fn host(&self) -> Option<&'h [u8]> {
        let authority = self.header.uri.authority().map(|a| a.as_str().as_bytes());
        authority.or_else(|| self.header.headers.get(HOST).map(HeaderValue::as_bytes))
    }

    /// Bytes the head takes, about.
    pub(super) fn size(&self) -> usize {
        let fields = self
            .header
            .headers
            .iter()
            .map(|(n, v)| n.as_str().len() + v.len() + 4);
        self.header.raw_path().len() + fields.sum::<usize>()
    }

    /// All cookies in one field, where they came in several: HTTP/2 may split them, HTTP/1 must
    /// not (RFC 9113 8.2.3).
    pub(super) fn joined_cookies(&self) -> Option<&[u8]> {
        self.cookies.as_deref()
    }

    pub(super) fn content_length(&self) -> Option<u64> {
        self.header
            .headers
            .get(CONTENT_LENGTH)?
            .to_str()
            .ok()?
            .parse()
            .ok()
    }

    /// What HTTP/2 itself does not judge: our limits, and what HTTP/1 would carry as something else. An h1 head is
    /// judged where it is read.
    pub(super) fn judge(&self, limits: &Limits) -> std::result::Result<(), Refusal> {
        if self.header.raw_path().len() > limits.max_uri_bytes {
            return Err(
                Answer::new(Reason::UriTooLong, "the request's target is longer than allowed").into(),
            );
        }
        // As strict as for HTTP/1: what one backend reads another way must not depend on the protocol.
        if let Err(fault) = judge_target(self.header.raw_path()) {
            return Err(Answer::new(Reason::BadRequest, fault.to_string()).into());
        }
        if let Some(fault) = self.fault() {
            return Err(Answer::new(Reason::BadRequest, fault).into());
        }
        if self.header.headers.len() > limits.max_headers || self.size() > limits.max_header_bytes {
            return Err(Answer::new(
                Reason::HeadersTooLarge,
                "the request's head is larger than allowed",
            )
            .into());
        }
        Ok(())
    }
}

impl View<'_> {
    /// What is malformed by RFC 9113 and passes the library, or is refused over HTTP/1.
    fn fault(&self) -> Option<&'static str> {
        let fields = &self.header.headers;
        // 8.2.1: a value neither begins nor ends with whitespace. HTTP/1 would cut it off.
        let blank = |b: Option<&u8>| matches!(b, Some(b' ' | b'\t'));
        let padded = |value: &HeaderValue| {
            let value = value.as_bytes();
            blank(value.first()) || blank(value.last())
        };
        if fields.values().any(padded) {
            return Some("a field value begins or ends with whitespace");
        }
        if !matches!(self.header.uri.scheme_str(), None | Some("http" | "https")) {
            return Some("the scheme is neither http nor https");
        }
        if self.header.raw_path() == b"*" && self.header.method != Method::OPTIONS {
            return Some("only OPTIONS may ask for *");
        }
        // 8.3.1: a Host that differs from :authority.
        let mut hosts = fields.get_all(HOST).iter();
        if let (Some(host), authority) = (hosts.next(), self.header.uri.authority()) {
            let differs = |a: &str| !host.as_bytes().eq_ignore_ascii_case(a.as_bytes());
            if hosts.next().is_some() || authority.is_some_and(|a| differs(a.as_str())) {
                return Some("two hosts");
            }
        }
        let mut lengths = fields.get_all(CONTENT_LENGTH).iter();
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

impl RequestView for View<'_> {
    fn method(&self) -> &str {
        self.header.method.as_str()
    }

    fn path(&self) -> &str {
        self.header.uri.path()
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        if name == "cookie"
            && let Some(cookies) = &self.cookies
        {
            return Some(cookies);
        }
        self.header.headers.get(name).map(HeaderValue::as_bytes)
    }
}

macro_rules! head_mut {
    ($name:ident, $header:ty) => {
        /// A message head whose fields are changed by the request path.
        pub(super) struct $name<'h>(pub(super) &'h mut $header);

        impl HeadMut for $name<'_> {
            fn get(&self, name: &str) -> Option<&[u8]> {
                self.0.headers.get(name).map(HeaderValue::as_bytes)
            }

            fn joined(&self, name: &str) -> Option<Vec<u8>> {
                let values: Vec<_> = self
                    .0
                    .headers
                    .get_all(name)
                    .iter()
                    .map(HeaderValue::as_bytes)
                    .collect();
                (!values.is_empty()).then(|| values.join(&b", "[..]))
            }

            fn set(&mut self, name: &str, value: &[u8]) {
                let (Ok(name), Ok(value)) = (
                    HeaderName::from_bytes(name.as_bytes()),
                    HeaderValue::from_bytes(value),
                ) else {
                    return;
                };
                // Fails only when a map is full, which limits on heads keep out of reach.
                let _ = self.0.insert_header(name, value);
            }

            fn set_known(&mut self, name: &'static str, value: &[u8]) {
                if let Ok(value) = HeaderValue::from_bytes(value) {
                    // Pingora makes the name it needs of this; a `HeaderName` it would copy twice.
                    let _ = self.0.insert_header(name, value);
                }
            }

            fn remove(&mut self, name: &str) {
                self.0.remove_header(name);
            }

            fn names_with_prefix(&self, prefix: &str) -> Vec<String> {
                let names = self.0.headers.keys().map(HeaderName::as_str);
                names
                    .filter(|n| n.starts_with(prefix))
                    .map(str::to_owned)
                    .collect()
            }
        }
    };
}

head_mut!(RequestFields, RequestHeader);
head_mut!(ResponseFields, ResponseHeader);

/// Host of a URL backend: with its port unless it is the scheme's own.
pub(super) fn url_host(url: &UrlBackend) -> String {
    let default = match url.scheme {
        Scheme::Http => 80,
        Scheme::Https => 443,
    };
    if url.port == default {
        url.host.to_string()
    } else {
        format!("{}:{}", url.host, url.port)
    }
}

/// Makes a response's framing one that every client reads alike: what HTTP/1 clients forgive,
/// HTTP/2 clients take for a broken stream.
///
/// # Errors
/// `InvalidHTTPHeader` when its length cannot be told.
pub(super) fn settle_framing(response: &mut ResponseHeader) -> Result<()> {
    if response.version == Version::HTTP_10 {
        // The version is each hop's own; the body was read as the backend's version asks for.
        response.set_version(Version::HTTP_11);
    }
    if response.status == StatusCode::NO_CONTENT {
        response.remove_header(&CONTENT_LENGTH);
        response.remove_header(&TRANSFER_ENCODING);
        return Ok(());
    }
    let lengths = response.headers.get_all(CONTENT_LENGTH);
    let Some(first) = lengths.iter().next().cloned() else {
        return Ok(());
    };
    let is_number = !first.is_empty() && first.as_bytes().iter().all(u8::is_ascii_digit);
    if !is_number || lengths.iter().any(|other| *other != first) {
        let e = Error::explain(ErrorType::InvalidHTTPHeader, "no single Content-Length");
        return Err(e.into_up());
    }
    response.insert_header(CONTENT_LENGTH, first)
}

/// The path and query the backend gets, if not the client's.
pub(super) fn rewritten_target<'t>(target: &'t str, routed: &Routed) -> Option<Cow<'t, str>> {
    let (path, query) = target
        .split_once('?')
        .map_or((target, None), |(p, q)| (p, Some(q)));
    let by_route = routed.route().and_then(|route| route.rewritten_path(path));
    let prefix = match &routed.spec.backend {
        Backend::Url(url) => url.path_prefix.as_str(),
        _ => "",
    };
    if by_route.is_none() && prefix.is_empty() {
        return None;
    }
    let path = by_route.as_deref().unwrap_or(path);
    let query = query.map(|q| format!("?{q}")).unwrap_or_default();
    Some(Cow::Owned(format!("{prefix}{path}{query}")))
}

/// The Host the backend gets, if not the client's.
pub(super) fn rewritten_host(routed: &Routed) -> Option<String> {
    let by_route = routed.route().and_then(|route| route.rewrite_host.clone());
    by_route.or_else(|| match &routed.spec.backend {
        Backend::Url(url) => Some(url_host(url)),
        _ => None,
    })
}

/// Sets target and Host of a request for the backend; `host` is what the client sent.
pub(super) fn rewrite_target(request: &mut RequestHeader, routed: &Routed, host: &[u8]) -> Result<()> {
    let target = request
        .uri
        .path_and_query()
        .map_or("/", |pq| pq.as_str())
        .to_owned();
    let new = rewritten_target(&target, routed);
    if new.is_some() || request.uri.authority().is_some() {
        let uri = new.as_deref().unwrap_or(&target).parse::<http::Uri>();
        request.set_uri(uri.or_err(ErrorType::InternalError, "rewriting the path")?);
    }
    let rewritten = rewritten_host(routed);
    let host = rewritten.as_deref().map_or(host, str::as_bytes);
    let host = HeaderValue::from_bytes(host)
        .map_err(|e| Error::because(ErrorType::InternalError, "rewriting Host", e))?;
    request.insert_header(HOST, host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(status: u16, lengths: &[&str]) -> Result<ResponseHeader> {
        let mut response = ResponseHeader::build(status, None)?;
        for length in lengths {
            response.append_header(CONTENT_LENGTH, *length)?;
        }
        settle_framing(&mut response)?;
        Ok(response)
    }

    #[test]
    fn fields_are_set_and_replaced_whoever_owns_the_name() {
        let mut request = RequestHeader::build("GET", b"/", None).expect("a request");
        request
            .insert_header("X-Request-Id", "the client's")
            .expect("a field");
        let mut fields = RequestFields(&mut request);
        fields.set_known("x-request-id", b"ours");
        fields.set("x-from", b"v2");
        // No header can hold it.
        fields.set_known("x-bad", b"a\r\nb: c");
        assert_eq!(fields.get("x-request-id"), Some(&b"ours"[..]));
        assert_eq!(fields.get("x-from"), Some(&b"v2"[..]));
        assert_eq!(fields.get("x-bad"), None);
        let mut wire = Vec::new();
        request.header_to_h1_wire(&mut wire);
        assert_eq!(
            String::from_utf8_lossy(&wire),
            "x-request-id: ours\r\nx-from: v2\r\n"
        );
    }

    #[test]
    fn a_response_has_one_length_or_none() {
        for (status, sent, passed) in [
            (200, &["3"][..], Some("3")),
            (200, &["3", "3"], Some("3")),
            (204, &["3"], None),
            (304, &["3"], Some("3")),
        ] {
            let response = settled(status, sent).expect("clear enough");
            let lengths: Vec<_> = response.headers.get_all(CONTENT_LENGTH).iter().collect();
            let passed: Vec<_> = passed.into_iter().collect();
            assert_eq!(lengths, passed, "{status} {sent:?}");
        }
        for unclear in [&["3", "4"][..], &["3, 3"], &["+3"], &[""]] {
            assert!(settled(200, unclear).is_err(), "{unclear:?}");
        }
    }
}

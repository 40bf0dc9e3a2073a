//! Validation of a request head: whether it can be routed and framed safely.

use std::ops::Range;

use memchr::{memchr, memrchr};
use sluice_model::{NameError, normalize_host};

use super::fault::{FieldFault, HeadFault};
use super::head::{HeadInfo, RequestFraming, Upgrade, Version};
use super::limits::HeadLimits;
use super::scan::first_line;
use super::syntax::{
    ConnectionHeader, FieldLine, Span, TransferEncoding, decimal, elements, field_line, is_grpc,
    is_protocol_list, line_len, token_len,
};
use super::target::{TargetFault, judge_target};

/// Parses and validates a request head: everything up to and including the empty line; bytes after it are
/// ignored.
///
/// Stricter than RFC 9112 where two parsers of the same bytes could disagree: every parser behind the gateway
/// reads a head that passes in the same way. One pass over the bytes; allocates nothing.
///
/// # Errors
/// The first [`HeadFault`] found.
pub fn judge(head: &[u8], limits: &HeadLimits) -> Result<HeadInfo, HeadFault> {
    let start = first_line(head)?.ok_or(FieldFault::Incomplete)?;
    let end = start + line_len(&head[start..])?;
    let request = RequestLine::parse(head, start..end, limits)?;
    let mut facts = RequestFacts::default();
    let mut count = 0;
    let mut at = end + 2;
    while let Some(line) = field_line(head, at)? {
        count += 1;
        if count > limits.max_headers {
            return Err(HeadFault::TooManyFields {
                limit: limits.max_headers,
            });
        }
        facts.add(&line)?;
        at = line.next;
    }
    let len = at + 2;
    if len > limits.bytes() {
        return Err(HeadFault::HeadTooLarge {
            limit: limits.max_bytes,
        });
    }
    let http11 = request.version == Version::Http11;
    let framing = facts.framing(request.version)?;
    let (host, plain_host) = request.host(head, facts.host)?;
    let offered = facts.upgrade.filter(|_| facts.connection.upgrade && http11);
    Ok(HeadInfo {
        len,
        framing,
        version: request.version,
        keep_alive: !facts.connection.close && (facts.connection.keep_alive || http11),
        expect_continue: facts.expect_continue && http11,
        absolute_form: request.authority.is_some(),
        grpc: facts.grpc,
        te_trailers: facts.te_trailers && http11,
        nominates_others: facts.connection.others,
        cookie_fields: facts.cookie_fields,
        host,
        upgrade: offered.map(|(token, websocket)| Upgrade {
            websocket: websocket && &head[request.method.clone()] == b"GET",
            token,
        }),
        user_agent: facts.user_agent,
        accept: facts.accept,
        content_type: facts.content_type,
        x_request_id: facts.x_request_id,
        method_at: position(request.method.start),
        target_at: position(request.target.start),
        path_at: position(request.path.start),
        path_end: position(request.path.end),
        target_end: position(request.target.end),
        fields_at: position(end + 2),
        host_field: facts.host.is_some(),
        plain_host,
    })
}

/// A position in the head; the limit on a head's size keeps all positions within 32 bits.
fn position(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

#[derive(Debug)]
struct RequestLine {
    method: Range<usize>,
    target: Range<usize>,
    version: Version,
    /// The scheme's default port and the position of the authority, when the target is a URL.
    authority: Option<(u16, Range<usize>)>,
    path: Range<usize>,
}

impl RequestLine {
    fn parse(head: &[u8], line: Range<usize>, limits: &HeadLimits) -> Result<Self, HeadFault> {
        let bytes = &head[line.clone()];
        let space = token_len(bytes);
        if space == 0 || !matches!(bytes.get(space), None | Some(b' ')) {
            return Err(HeadFault::BadMethod);
        }
        let method = line.start..line.start + space;
        let last = memrchr(b' ', bytes)
            .filter(|&last| last > space)
            .ok_or(HeadFault::Http09)?;
        let target = method.end + 1..line.start + last;
        if target.len() > limits.max_uri_bytes {
            return Err(HeadFault::UriTooLong {
                limit: limits.max_uri_bytes,
            });
        }
        let version = match &bytes[last + 1..] {
            b"HTTP/1.1" => Version::Http11,
            b"HTTP/1.0" => Version::Http10,
            b"HTTP/2.0" if bytes.starts_with(b"PRI * ") => return Err(HeadFault::Http2Preface),
            [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
                if major.is_ascii_digit() && minor.is_ascii_digit() =>
            {
                return Err(HeadFault::UnsupportedVersion);
            }
            _ => return Err(HeadFault::BadVersion),
        };
        judge_target(&head[target.clone()]).map_err(|fault| match fault {
            TargetFault::Empty => HeadFault::BadTargetForm,
            TargetFault::Byte(byte) => HeadFault::BadTargetByte(byte),
            TargetFault::Fragment => HeadFault::Fragment,
        })?;
        if &head[method.clone()] == b"CONNECT" {
            return Err(HeadFault::ConnectRefused);
        }
        Self {
            path: target.clone(),
            method,
            target,
            version,
            authority: None,
        }
        .resolve(head)
    }

    /// Splits the target by its form (RFC 9112, 3.2).
    fn resolve(mut self, head: &[u8]) -> Result<Self, HeadFault> {
        let target = &head[self.target.clone()];
        if target == b"*" {
            return if &head[self.method.clone()] == b"OPTIONS" {
                Ok(self)
            } else {
                Err(HeadFault::BadTargetForm)
            };
        }
        if target.first() != Some(&b'/') {
            let (prefix, port) = scheme(target).ok_or(HeadFault::BadTargetForm)?;
            let from = self.target.start + prefix;
            let len = head[from..self.target.end]
                .iter()
                .position(|b| matches!(b, b'/' | b'?'))
                .unwrap_or(self.target.end - from);
            if head[from..from + len].contains(&b'@') {
                return Err(HeadFault::Userinfo);
            }
            self.authority = Some((port, from..from + len));
            self.path = from + len..self.target.end;
        }
        if let Some(mark) = memchr(b'?', &head[self.path.clone()]) {
            self.path.end = self.path.start + mark;
        }
        Ok(self)
    }

    /// Validates the Host field and, where the target is a URL, its authority. Returns the position of the
    /// host, and how many of its bytes are its normal form already.
    fn host(&self, head: &[u8], field: Option<Span>) -> Result<(Option<Span>, u8), HeadFault> {
        if field.is_none() && self.version == Version::Http11 {
            return Err(HeadFault::HostMissing);
        }
        let field = field.map(|span| (span, span.of(head)));
        let mut buf = [0; 256];
        let named = match field {
            Some((_, raw)) => Some(normalize_host(raw, &mut buf).map_err(HeadFault::HostInvalid)?),
            None => None,
        };
        let Some((scheme_port, authority)) = &self.authority else {
            return Ok(match (field, named) {
                (Some((span, raw)), Some(named)) => (Some(span), plain(raw, named)),
                _ => (None, 0),
            });
        };
        let span = Span::at(authority.start, authority.len());
        let authority = &head[authority.clone()];
        let mut buf = [0; 256];
        let target = normalize_host(authority, &mut buf).map_err(HeadFault::HostInvalid)?;
        if let (Some(named), Some((_, raw))) = (named, field) {
            let port = |raw| port(raw).map(|port| port.unwrap_or(*scheme_port));
            if named != target || port(raw)? != port(authority)? {
                return Err(HeadFault::HostMismatch);
            }
        }
        Ok((span, plain(authority, target)))
    }
}

/// The length of the prefix of `raw` that equals `normal`; 0 when it differs.
fn plain(raw: &[u8], normal: &str) -> u8 {
    if raw.starts_with(normal.as_bytes()) {
        u8::try_from(normal.len()).unwrap_or_default()
    } else {
        0
    }
}

/// The length of `scheme://` and the scheme's port.
fn scheme(target: &[u8]) -> Option<(usize, u16)> {
    [(&b"http://"[..], 80), (b"https://", 443)]
        .into_iter()
        .find(|(prefix, _)| {
            target
                .get(..prefix.len())
                .is_some_and(|t| t.eq_ignore_ascii_case(prefix))
        })
        .map(|(prefix, port)| (prefix.len(), port))
}

/// The port of a valid host; an empty port counts as none, as in RFC 3986.
fn port(raw: &[u8]) -> Result<Option<u16>, HeadFault> {
    let digits = raw
        .iter()
        .rposition(|b| matches!(b, b':' | b']'))
        .filter(|&at| raw[at] == b':')
        .map(|at| &raw[at + 1..])
        .unwrap_or_default();
    if digits.is_empty() {
        return Ok(None);
    }
    std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| digits.parse().ok())
        .map(Some)
        .ok_or(HeadFault::HostInvalid(NameError::BadPort))
}

/// Facts collected from the fields that framing, routing and keep-alive depend on.
#[derive(Debug, Default)]
struct RequestFacts {
    host: Option<Span>,
    length: Option<u64>,
    coding: TransferEncoding,
    connection: ConnectionHeader,
    /// The first Upgrade that can be forwarded, and whether it is `websocket` alone.
    upgrade: Option<(Span, bool)>,
    expect_continue: bool,
    te_trailers: bool,
    grpc: bool,
    cookie_fields: u32,
    user_agent: Option<Span>,
    accept: Option<Span>,
    content_type: Option<Span>,
    x_request_id: Option<Span>,
}

impl RequestFacts {
    #[inline]
    fn add(&mut self, line: &FieldLine<'_>) -> Result<(), HeadFault> {
        let (name, value) = (line.name, line.value);
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        // By length first: most fields match none of the names.
        match name.len() {
            2 if is(b"te") => {
                self.te_trailers |= elements(value).any(|e| e.eq_ignore_ascii_case(b"trailers"));
            }
            4 if is(b"host") => {
                if self.host.is_some() {
                    return Err(HeadFault::HostRepeated);
                }
                self.host = line.span();
            }
            6 if is(b"accept") => self.accept = self.accept.or_else(|| line.span()),
            6 if is(b"cookie") => self.cookie_fields += 1,
            6 if is(b"expect") => self.expect_continue |= value.eq_ignore_ascii_case(b"100-continue"),
            7 if is(b"upgrade") && self.upgrade.is_none() && is_protocol_list(value) => {
                let websocket = value.eq_ignore_ascii_case(b"websocket");
                self.upgrade = line.span().map(|span| (span, websocket));
            }
            10 if is(b"user-agent") => self.user_agent = self.user_agent.or_else(|| line.span()),
            10 if is(b"connection") => self.connection.add(value),
            12 if is(b"content-type") => {
                self.grpc |= is_grpc(value);
                self.content_type = self.content_type.or_else(|| line.span());
            }
            12 if is(b"x-request-id") => self.x_request_id = self.x_request_id.or_else(|| line.span()),
            14 if is(b"content-length") => self.length(value)?,
            17 if is(b"transfer-encoding") => self.coding.add(value),
            _ => {}
        }
        Ok(())
    }

    fn length(&mut self, value: &[u8]) -> Result<(), HeadFault> {
        match self.length.replace(content_length(value)?) {
            Some(_) => Err(HeadFault::ContentLengthRepeated),
            None => Ok(()),
        }
    }

    /// Message framing by RFC 9112, 6.3, except that a request with both Content-Length and
    /// Transfer-Encoding, which 6.1 lets a server accept, is rejected.
    fn framing(&self, version: Version) -> Result<RequestFraming, HeadFault> {
        let TransferEncoding {
            chunked,
            others,
            ends_chunked,
            fields,
        } = self.coding;
        match (fields, self.length) {
            (0, None) => Ok(RequestFraming::None),
            (0, Some(length)) => Ok(RequestFraming::Length(length)),
            (_, Some(_)) => Err(HeadFault::ContentLengthWithTransferEncoding),
            _ if version == Version::Http10 => Err(HeadFault::TransferEncodingIn10),
            _ if chunked > 1 => Err(HeadFault::ChunkedTwice),
            _ if !ends_chunked => Err(HeadFault::NotChunkedLast),
            _ if others > 0 => Err(HeadFault::UnknownCoding),
            _ => Ok(RequestFraming::Chunked),
        }
    }
}

fn content_length(value: &[u8]) -> Result<u64, HeadFault> {
    if value.contains(&b',') {
        return Err(HeadFault::ContentLengthList);
    }
    // Some parsers take a leading zero for octal.
    let octal = value.len() > 1 && value[0] == b'0';
    decimal(value)
        .filter(|_| !octal)
        .ok_or(HeadFault::ContentLengthMalformed)
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "corpus_tests.rs"]
mod corpus;

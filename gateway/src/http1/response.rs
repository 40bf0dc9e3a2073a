//! Validation of a backend's response head: whether it can be forwarded and framed safely.

use http::StatusCode;

use super::fault::ResponseFault;
use super::head::Version;
use super::limits::ResponseLimits;
use super::scan::{Scan, head_end};
use super::syntax::{
    ConnectionHeader, ConnectionOptions, FieldLine, FieldLines, Span, TransferEncoding, decimal, field_line,
    is_grpc, is_protocol_list, is_value, is_value_byte, line_len,
};

/// The kind of request, as far as the response's framing depends on it (RFC 9112, 6.3). CONNECT is never
/// forwarded, so its rule is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseTo {
    /// A HEAD request: no body follows, whatever the fields say.
    Head,
    /// Any other request.
    Other,
}

impl ResponseTo {
    /// The kind of a request by its method, which is case-sensitive.
    pub fn method(method: &str) -> Self {
        match method {
            "HEAD" => Self::Head,
            _ => Self::Other,
        }
    }
}

/// How a response's body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseFraming {
    /// No body: the response is to HEAD, or its status is 1xx, 204 or 304.
    None,
    /// After this many bytes.
    Length(u64),
    /// After the last chunk.
    Chunked,
    /// Where the backend closes the connection. A reset is not an end.
    UntilClose,
}

impl ResponseFraming {
    /// Whether no body byte follows.
    pub fn is_empty(self) -> bool {
        matches!(self, Self::None | Self::Length(0))
    }
}

/// A parsed response head, as positions in its bytes. [`ResponseHead`] joins it with the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResponseInfo {
    /// The head's length.
    pub len: usize,
    /// How the body ends.
    pub framing: ResponseFraming,
    /// The value that all Content-Length fields agree on, also where no body follows (HEAD, 304): where the
    /// forwarder writes a Content-Length, it writes one field of this value. `None` for 1xx and 204, which
    /// have none (RFC 9110, 8.6).
    pub content_length: Option<u64>,
    /// The number of Content-Length fields.
    pub content_length_fields: u32,
    /// The status code, 100 to 999.
    pub status: u16,
    /// The HTTP version.
    pub version: Version,
    /// Whether the connection may carry another request after this response (keep-alive).
    pub keep_alive: bool,
    /// Whether Connection nominates other fields, besides `close`, `keep-alive`, `upgrade` and `te`:
    /// [`ResponseHead::connection_options`] lists them.
    pub nominates_others: bool,
    /// Whether there is a Date field.
    pub date: bool,
    /// Whether the content is gRPC's (not gRPC-Web's).
    pub grpc: bool,
    /// The protocol that follows, only of a 101 whose Connection nominates Upgrade. A 101 without an Upgrade
    /// does not accept an upgrade.
    pub upgrade: Option<Span>,
    /// The reason phrase; `None` when it is empty.
    pub phrase: Option<Span>,
    pub(super) fields_at: u32,
}

impl ResponseInfo {
    /// Whether another head follows (1xx). 101 is a final response.
    pub fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }
}

/// A validated response head with its bytes.
#[derive(Debug, Clone, Copy)]
pub struct ResponseHead<'b> {
    /// The validated bytes, from the head's beginning.
    pub bytes: &'b [u8],
    /// The parsed head.
    pub info: &'b ResponseInfo,
}

impl<'b> ResponseHead<'b> {
    /// Joins a parsed head with its bytes. `info` must be the result for these bytes; for others, only the
    /// absence of panics is guaranteed.
    pub fn new(bytes: &'b [u8], info: &'b ResponseInfo) -> Self {
        Self { bytes, info }
    }

    /// The reason phrase, as it was sent; empty when there is none.
    pub fn phrase(&self) -> &'b [u8] {
        self.info.phrase.map_or(b"", |span| span.of(self.bytes))
    }

    /// All fields in their order, names as they were sent, values without surrounding whitespace.
    pub fn fields(&self) -> FieldLines<'b> {
        let end = self.info.len.saturating_sub(2);
        FieldLines::over(
            self.bytes
                .get(self.info.fields_at as usize..end)
                .unwrap_or_default(),
        )
    }

    /// The first value of a field; `name` in any case.
    pub fn field(&self, name: &str) -> Option<&'b [u8]> {
        self.fields().value_of(name.as_bytes())
    }

    /// The options of the Connection fields.
    pub fn connection_options(&self) -> ConnectionOptions<'b> {
        ConnectionOptions::of(self.fields())
    }

    /// The bytes of a span.
    pub fn slice(&self, span: Span) -> &'b [u8] {
        span.of(self.bytes)
    }
}

/// The first bytes of every HTTP/1 response.
const BEGIN: &[u8] = b"HTTP/1.";

/// Finds the end of a response head in `buf`, which begins where the head begins. `from` is 0 at first, then
/// the `scanned` of the last [`Scan::NeedMore`]: each byte is scanned once, whatever pieces the head arrives
/// in.
///
/// A response that is not HTTP/1 is rejected by its first bytes: a backend that speaks another protocol would
/// otherwise be waited for. No empty line before the status line is tolerated: RFC 9112, 2.2 knows them
/// before requests only, and behind a response they are unsolicited bytes.
pub fn scan_response(buf: &[u8], limits: &ResponseLimits, from: usize) -> Scan<ResponseFault> {
    let begin = &buf[..buf.len().min(BEGIN.len())];
    if !BEGIN.starts_with(begin) {
        return Scan::Bad(ResponseFault::NotHttp1);
    }
    let end = buf.len().min(limits.bytes());
    match head_end(&buf[..end], 0, from) {
        Ok(Some(len)) => Scan::Complete { len },
        Err(fault) => Scan::Bad(fault.into()),
        Ok(None) if buf.len() > limits.bytes() => Scan::Bad(ResponseFault::HeadTooLarge {
            limit: limits.max_bytes,
        }),
        Ok(None) => Scan::NeedMore { scanned: end },
    }
}

/// Parses and validates a response head: everything up to and including the empty line; bytes after it are
/// ignored. One pass over the bytes; allocates nothing.
///
/// As strict as [`judge`](super::judge) about lines and fields: a response in which a gateway and its client
/// see two different ends lets one client read another client's response. Tolerated are deviations with one
/// possible reading: a missing reason phrase, equal Content-Length fields, leading zeros in them, and a
/// Content-Length or Transfer-Encoding where there is no body.
///
/// # Errors
/// The first [`ResponseFault`] found.
pub fn judge_response(
    head: &[u8],
    limits: &ResponseLimits,
    to: ResponseTo,
) -> Result<ResponseInfo, ResponseFault> {
    let end = line_len(head)?;
    let (version, status) = status_line(&head[..end])?;
    let phrase = &head[end.min(PHRASE_AT)..end];
    if !is_value(phrase) {
        let bad = phrase.iter().find(|&&b| !is_value_byte(b));
        return Err(ResponseFault::BadPhraseByte(bad.copied().unwrap_or_default()));
    }
    let mut facts = ResponseFacts::default();
    let mut count = 0;
    let mut at = end + 2;
    while let Some(line) = field_line(head, at)? {
        count += 1;
        if count > limits.max_fields {
            return Err(ResponseFault::TooManyFields {
                limit: limits.max_fields,
            });
        }
        facts.add(&line)?;
        at = line.next;
    }
    let len = at + 2;
    if len > limits.bytes() {
        return Err(ResponseFault::HeadTooLarge {
            limit: limits.max_bytes,
        });
    }
    let framing = facts.framing(version, status, to)?;
    let ResponseFacts {
        connection, length, ..
    } = facts;
    // Some backends send a body after a status that has none: its bytes would be read as the next response,
    // so the connection is not kept alive.
    let bodyless = status < 200 || status == 204;
    let clean = !bodyless || (length.is_none_or(|length| length == 0) && facts.coding.fields == 0);
    let persists = !connection.close && (connection.keep_alive || version == Version::Http11);
    Ok(ResponseInfo {
        len,
        framing,
        content_length: length.filter(|_| !bodyless),
        content_length_fields: facts.length_fields,
        status,
        version,
        keep_alive: persists && clean && framing != ResponseFraming::UntilClose && status != 101,
        nominates_others: connection.others,
        date: facts.date,
        grpc: facts.grpc,
        upgrade: facts.upgrade.filter(|_| status == 101 && connection.upgrade),
        phrase: Span::at(end - phrase.len(), phrase.len()).filter(|_| !phrase.is_empty()),
        fields_at: u32::try_from(end + 2).unwrap_or(u32::MAX),
    })
}

/// Offset of the reason phrase: after `HTTP/1.1 200 `.
const PHRASE_AT: usize = 13;

/// Parses version and status of a status line (RFC 9112, 4). The phrase and the space before it may be
/// missing: section 4 demands the space of servers, and many leave it out with the phrase. A line that ends
/// after three digits has no second reading.
///
/// A status of 600 or more is forwarded as it is: RFC 9110, 15 wants clients to treat it as a 5xx, and some
/// APIs use such statuses.
fn status_line(line: &[u8]) -> Result<(Version, u16), ResponseFault> {
    let (version, rest) = match line {
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'1', rest @ ..] => (Version::Http11, rest),
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0', rest @ ..] => (Version::Http10, rest),
        _ => return Err(ResponseFault::NotHttp1),
    };
    let [b' ', digits @ ..] = rest else {
        return Err(ResponseFault::NotHttp1);
    };
    let (Some(digits), None | Some(b' ')) = (digits.get(..3), digits.get(3)) else {
        return Err(ResponseFault::BadStatus);
    };
    match StatusCode::from_bytes(digits) {
        Ok(status) => Ok((version, status.as_u16())),
        Err(_) => Err(ResponseFault::BadStatus),
    }
}

/// Facts collected from the fields that framing and keep-alive depend on.
#[derive(Debug, Default)]
struct ResponseFacts {
    length: Option<u64>,
    length_fields: u32,
    coding: TransferEncoding,
    connection: ConnectionHeader,
    upgrade: Option<Span>,
    date: bool,
    grpc: bool,
}

impl ResponseFacts {
    #[inline]
    fn add(&mut self, line: &FieldLine<'_>) -> Result<(), ResponseFault> {
        let (name, value) = (line.name, line.value);
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        // By length first: most fields match none of the names.
        match name.len() {
            4 if is(b"date") => self.date = true,
            7 if is(b"upgrade") && self.upgrade.is_none() && is_protocol_list(value) => {
                self.upgrade = line.span();
            }
            10 if is(b"connection") => self.connection.add(value),
            12 if is(b"content-type") => self.grpc |= is_grpc(value),
            14 if is(b"content-length") => self.length(value)?,
            17 if is(b"transfer-encoding") => self.coding.add(value),
            _ => {}
        }
        Ok(())
    }

    /// Accepts equal Content-Length fields: RFC 9110, 8.6 lets a recipient replace them by one field, or
    /// refuse. The forwarder writes its own field, so equal ones and leading zeros, which are in the grammar,
    /// do not get past the gateway. A list in one field is refused: it is what a proxy leaves that joins
    /// fields, and two messages may have been joined.
    fn length(&mut self, value: &[u8]) -> Result<(), ResponseFault> {
        if value.contains(&b',') {
            return Err(ResponseFault::ContentLengthList);
        }
        let length = decimal(value).ok_or(ResponseFault::ContentLengthMalformed)?;
        self.length_fields += 1;
        match self.length.replace(length) {
            Some(before) if before != length => Err(ResponseFault::ContentLengthDiffers),
            _ => Ok(()),
        }
    }

    /// Message framing by RFC 9112, 6.3, except that what the RFC calls an attempt to smuggle is rejected.
    fn framing(
        &self,
        version: Version,
        status: u16,
        to: ResponseTo,
    ) -> Result<ResponseFraming, ResponseFault> {
        let TransferEncoding {
            chunked,
            others,
            fields,
            ..
        } = self.coding;
        if fields > 0 {
            if self.length.is_some() {
                return Err(ResponseFault::ContentLengthWithTransferEncoding);
            }
            if version == Version::Http10 {
                return Err(ResponseFault::TransferEncodingIn10);
            }
            if chunked != 1 || others > 0 {
                return Err(ResponseFault::NotChunkedAlone);
            }
        }
        // A body is rejected here, because another head follows an interim response: the connection cannot
        // just be closed after the body.
        if status < 200 && (fields > 0 || self.length.is_some_and(|length| length > 0)) {
            return Err(ResponseFault::InterimWithBody);
        }
        if to == ResponseTo::Head || status < 200 || matches!(status, 204 | 304) {
            return Ok(ResponseFraming::None);
        }
        Ok(match self.length {
            _ if fields > 0 => ResponseFraming::Chunked,
            Some(length) => ResponseFraming::Length(length),
            None => ResponseFraming::UntilClose,
        })
    }
}

#[cfg(test)]
#[path = "response_tests.rs"]
mod tests;

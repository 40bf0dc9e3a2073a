//! Whether a backend's response head can be passed on and framed safely.

use http::StatusCode;

use super::fault::ResponseFault;
use super::head::Version;
use super::limits::ResponseLimits;
use super::scan::{Scan, head_end};
use super::syntax::{
    ConnectionHeader, ConnectionOptions, FieldLine, FieldLines, Span, TransferEncoding, decimal, field_line,
    is_grpc, is_protocol_list, is_value, is_value_byte, line_len,
};

/// What the request was, as far as the response's framing depends on it (RFC 9112, 6.3). CONNECT
/// never gets to a backend, so its rule is not here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseTo {
    /// A HEAD request: no body follows, whatever the fields say.
    Head,
    /// Any other request.
    Other,
}

impl ResponseTo {
    /// Of a request's method, which is case-sensitive.
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
    /// There is none: the response is to HEAD, or its status is 1xx, 204 or 304.
    None,
    /// After this many bytes.
    Length(u64),
    /// After the last chunk.
    Chunked,
    /// Where the backend closes. A reset is no end.
    UntilClose,
}

impl ResponseFraming {
    /// Whether no body byte follows.
    pub fn is_empty(self) -> bool {
        matches!(self, Self::None | Self::Length(0))
    }
}

/// What a response head says, as positions in its bytes. [`ResponseHead`] reads them with the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResponseInfo {
    /// The head's length.
    pub len: usize,
    /// How the body ends.
    pub framing: ResponseFraming,
    /// What the Content-Length fields agree on, also where no body follows (HEAD, 304): the forwarder
    /// writes one field of this number where it writes any. Not in answers of 1xx and 204, which have
    /// none (RFC 9110, 8.6).
    pub content_length: Option<u64>,
    /// How many Content-Length fields there were.
    pub content_length_fields: u32,
    /// 100 to 999.
    pub status: u16,
    /// Its version.
    pub version: Version,
    /// Whether the connection may carry another request once this response is over.
    pub keep_alive: bool,
    /// Whether Connection names fields of its own, beside `close`, `keep-alive`, `upgrade` and `te`:
    /// [`ResponseHead::connection_options`] has them.
    pub nominates_others: bool,
    /// Whether there is a Date field.
    pub date: bool,
    /// Whether the content is gRPC's (not gRPC-Web's).
    pub grpc: bool,
    /// The protocol spoken from here on: only of a 101 whose Connection nominates Upgrade. A 101
    /// without one is no answer to an upgrade.
    pub upgrade: Option<Span>,
    /// The reason phrase; `None` when it is empty.
    pub phrase: Option<Span>,
    pub(super) fields_at: u32,
}

impl ResponseInfo {
    /// Whether another head follows this one. 101 is the last one.
    pub fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }
}

/// A judged response head with its bytes.
#[derive(Debug, Clone, Copy)]
pub struct ResponseHead<'b> {
    /// The bytes that were judged, from their beginning.
    pub bytes: &'b [u8],
    /// What they say.
    pub info: &'b ResponseInfo,
}

impl<'b> ResponseHead<'b> {
    /// Both together. `info` must have come from these bytes; from others, nothing is promised but the
    /// absence of panics.
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

    /// What Connection names.
    pub fn connection_options(&self) -> ConnectionOptions<'b> {
        ConnectionOptions::of(self.fields())
    }

    /// A span's bytes.
    pub fn slice(&self, span: Span) -> &'b [u8] {
        span.of(self.bytes)
    }
}

/// What every response begins with.
const BEGIN: &[u8] = b"HTTP/1.";

/// Looks for the end of a response head in `buf`, which begins where the head begins. `from` is 0 at
/// first, then the last [`Scan::NeedMore`]'s; each byte is looked at once whatever pieces it comes in.
///
/// What is no HTTP/1 is told from its first bytes: a backend that speaks another protocol would else
/// be waited for. No empty line before the status line is tolerated: RFC 9112, 2.2 knows them before
/// requests only, and behind a response they are bytes that nobody asked for.
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

/// Judges a response head: everything up to and including the empty line; bytes after it are not
/// looked at. One pass over the bytes; allocates nothing.
///
/// As strict as [`judge`](super::judge) with lines and fields: a response in which a gateway and its
/// client see two different ends lets one client read another one's answer. Tolerated is what has one
/// reading only: a missing reason phrase, equal Content-Length fields, leading zeros in them, and a
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
    // A body announced where there is none is sent by some all the same: bytes behind this response
    // would be read as the next one.
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

/// Where a reason phrase begins: after `HTTP/1.1 200 `.
const PHRASE_AT: usize = 13;

/// Version and status of a status line (RFC 9112, 4), of which the phrase and the space before it may
/// be missing: section 4 demands the space of servers, and many leave it out with the phrase. There is
/// no second reading of a line that ends after three digits.
///
/// A status of 600 or more is passed on as it is: RFC 9110, 15 wants clients to take it for a 5xx,
/// which is for the client to do, and some APIs use them.
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

/// What the fields say that matters for framing and the connection.
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
        // By length first: most fields are none of these.
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

    /// RFC 9110, 8.6 lets a recipient replace equal fields by one of the same number, or refuse: the
    /// forwarder writes its own field, so equal ones and leading zeros, which are in the grammar, do not
    /// get past us. A list in one field is refused: it is what a joining of fields leaves, and two
    /// messages may have been joined.
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

    /// RFC 9112, 6.3, but that what it calls an attempt to smuggle is refused instead of read one way.
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
        // Behind an interim response comes another head, so there is no closing after its body.
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

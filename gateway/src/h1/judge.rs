//! Whether a head can be routed and framed safely.

use std::ops::Range;

use sluice_model::{NameError, normalize_host};

use super::fault::HeadFault;
use super::head::{Framing, HeadInfo, Upgrade, Version};
use super::limits::HeadLimits;
use super::scan::first_line;
use crate::request::judge_target;

/// Judges a head: everything up to and including the empty line; bytes after it are not looked at.
///
/// Stricter than RFC 9112 where two readers of the same bytes could disagree: what passes here is
/// read the same way by every parser behind us.
///
/// # Errors
/// The first [`HeadFault`] found.
pub fn judge(head: &[u8], limits: &HeadLimits) -> Result<HeadInfo, HeadFault> {
    let start = first_line(head)?.ok_or(HeadFault::Incomplete)?;
    let line = line_at(head, start)?;
    let request = RequestLine::parse(head, &line, limits)?;
    let fields_start = line.end + 2;
    let mut at = fields_start;
    let mut tally = Tally::default();
    let mut count = 0;
    loop {
        let line = line_at(head, at)?;
        at = line.end + 2;
        if line.is_empty() {
            break;
        }
        count += 1;
        if count > limits.max_headers {
            return Err(HeadFault::TooManyFields {
                limit: limits.max_headers,
            });
        }
        let (name, value) = split_field(&head[line])?;
        tally.add(name, value)?;
    }
    if at > limits.max_bytes {
        return Err(HeadFault::HeadTooLarge {
            limit: limits.max_bytes,
        });
    }
    let framing = tally.framing(request.version)?;
    Ok(HeadInfo {
        len: at,
        version: request.version,
        host: request.host(head, tally.host)?,
        framing,
        keep_alive: tally.keep_alive(request.version),
        expect_continue: tally.expect_continue && request.version == Version::Http11,
        upgrade: tally.upgrade(&request, head, framing),
        absolute_form: request.authority.is_some(),
        grpc: tally.grpc,
        method: request.method,
        target: request.target,
        authority: request.authority.map(|(_, range)| range),
        path: request.path,
        query: request.query,
        fields: fields_start..at - 2,
        host_field: tally.host.is_some(),
    })
}

/// RFC 9110's `tchar`.
pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A field value's bytes: tab, visible ASCII, space, and the opaque ones above.
pub(super) fn is_value_byte(byte: u8) -> bool {
    byte == b'\t' || (byte >= 0x20 && byte != 0x7f)
}

/// Splits and checks one field line (without its end): name, value without surrounding whitespace.
pub(super) fn split_field(line: &[u8]) -> Result<(&[u8], &[u8]), HeadFault> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(HeadFault::Folding);
    }
    let colon = line.iter().position(|&b| b == b':').ok_or(HeadFault::NoColon)?;
    let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
    match name.last() {
        None => return Err(HeadFault::EmptyName),
        Some(b' ' | b'\t') => return Err(HeadFault::SpaceBeforeColon),
        Some(_) => {}
    }
    if let Some(&byte) = name.iter().find(|&&b| !is_token_byte(b)) {
        return Err(HeadFault::BadNameByte(byte));
    }
    if let Some(&byte) = value.iter().find(|&&b| !is_value_byte(b)) {
        return Err(HeadFault::BadValueByte(byte));
    }
    Ok((name, value))
}

/// Only space and tab are optional whitespace: `trim_ascii` would also eat form feeds.
fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = bytes {
        bytes = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// The line that begins at `at`, without its CRLF.
fn line_at(head: &[u8], at: usize) -> Result<Range<usize>, HeadFault> {
    let skip = head[at..]
        .iter()
        .position(|&b| b == b'\r' || b == b'\n')
        .ok_or(HeadFault::Incomplete)?;
    let end = at + skip;
    match head[end..] {
        [b'\n', ..] => Err(HeadFault::BareLf),
        [b'\r', b'\n', ..] => Ok(at..end),
        [b'\r'] => Err(HeadFault::Incomplete),
        _ => Err(HeadFault::BareCr),
    }
}

#[derive(Debug)]
struct RequestLine {
    method: Range<usize>,
    target: Range<usize>,
    version: Version,
    /// The scheme's port, and where the authority is, when the target is a URL.
    authority: Option<(u16, Range<usize>)>,
    path: Range<usize>,
    query: Option<Range<usize>>,
}

impl RequestLine {
    fn parse(head: &[u8], line: &Range<usize>, limits: &HeadLimits) -> Result<Self, HeadFault> {
        let bytes = &head[line.clone()];
        let space = bytes.iter().position(|&b| b == b' ').unwrap_or(bytes.len());
        if space == 0 || !bytes[..space].iter().all(|&b| is_token_byte(b)) {
            return Err(HeadFault::BadMethod);
        }
        let method = line.start..line.start + space;
        let last = bytes
            .iter()
            .rposition(|&b| b == b' ')
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
        judge_target(&head[target.clone()])?;
        if &head[method.clone()] == b"CONNECT" {
            return Err(HeadFault::ConnectRefused);
        }
        Self {
            path: target.clone(),
            method,
            target,
            version,
            authority: None,
            query: None,
        }
        .resolve(head)
    }

    /// Takes the target apart by its form.
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
        if let Some(mark) = head[self.path.clone()].iter().position(|&b| b == b'?') {
            let mark = self.path.start + mark;
            self.query = Some(mark + 1..self.path.end);
            self.path.end = mark;
        }
        Ok(self)
    }

    /// The normalised host of Host and, where the target is a URL, of its authority.
    fn host(&self, head: &[u8], field: Option<&[u8]>) -> Result<Option<Box<str>>, HeadFault> {
        if field.is_none() && self.version == Version::Http11 {
            return Err(HeadFault::HostMissing);
        }
        let mut buf = [0; 256];
        let named = field
            .map(|raw| normalize_host(raw, &mut buf))
            .transpose()
            .map_err(HeadFault::HostInvalid)?;
        let Some((scheme_port, authority)) = &self.authority else {
            return Ok(named.map(Box::from));
        };
        let authority = &head[authority.clone()];
        let mut buf = [0; 256];
        let target = normalize_host(authority, &mut buf).map_err(HeadFault::HostInvalid)?;
        if let (Some(named), Some(raw)) = (named, field) {
            let port = |raw| port(raw).map(|port| port.unwrap_or(*scheme_port));
            if named != target || port(raw)? != port(authority)? {
                return Err(HeadFault::HostMismatch);
            }
        }
        Ok(Some(target.into()))
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

/// The port of a host that normalised; an empty one counts as none, as in RFC 3986.
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

/// What the fields say that matters for framing, routing and the connection.
#[derive(Debug, Default)]
struct Tally<'h> {
    host: Option<&'h [u8]>,
    length: Option<u64>,
    coding: Option<Coding>,
    close: bool,
    keep: bool,
    nominates_upgrade: bool,
    upgrade: Option<&'h [u8]>,
    expect_continue: bool,
    grpc: bool,
}

/// What Transfer-Encoding says, all of its fields together.
#[derive(Debug, Default)]
struct Coding {
    chunked: usize,
    others: usize,
    ends_chunked: bool,
}

impl<'h> Tally<'h> {
    fn add(&mut self, name: &'h [u8], value: &'h [u8]) -> Result<(), HeadFault> {
        // By length first: most fields are none of these, and no two of these are equally long.
        let known: &[u8] = match name.len() {
            4 => b"host",
            6 => b"expect",
            7 => b"upgrade",
            10 => b"connection",
            12 => b"content-type",
            14 => b"content-length",
            17 => b"transfer-encoding",
            _ => return Ok(()),
        };
        if !name.eq_ignore_ascii_case(known) {
            return Ok(());
        }
        match known.len() {
            4 => {
                if self.host.replace(value).is_some() {
                    return Err(HeadFault::HostRepeated);
                }
            }
            6 => self.expect_continue |= value.eq_ignore_ascii_case(b"100-continue"),
            7 => self.upgrade = Some(value),
            10 => self.connection(value),
            12 => self.grpc |= is_grpc(value),
            14 => {
                if self.length.replace(content_length(value)?).is_some() {
                    return Err(HeadFault::ContentLengthRepeated);
                }
            }
            _ => self.coding.get_or_insert_default().add(value),
        }
        Ok(())
    }

    fn connection(&mut self, value: &[u8]) {
        for option in value.split(|&b| b == b',').map(trim) {
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep |= option.eq_ignore_ascii_case(b"keep-alive");
            self.nominates_upgrade |= option.eq_ignore_ascii_case(b"upgrade");
        }
    }

    fn framing(&self, version: Version) -> Result<Framing, HeadFault> {
        match (&self.coding, self.length) {
            (None, None) => Ok(Framing::None),
            (None, Some(length)) => Ok(Framing::Length(length)),
            (Some(_), Some(_)) => Err(HeadFault::ContentLengthWithTransferEncoding),
            (Some(_), None) if version == Version::Http10 => Err(HeadFault::TransferEncodingIn10),
            (Some(coding), None) => coding.check().map(|()| Framing::Chunked),
        }
    }

    fn keep_alive(&self, version: Version) -> bool {
        !self.close && (self.keep || version == Version::Http11)
    }

    fn upgrade(&self, request: &RequestLine, head: &[u8], framing: Framing) -> Option<Upgrade> {
        let token = self.upgrade?;
        // With a body there is no saying which protocol its bytes belong to.
        (self.nominates_upgrade && request.version == Version::Http11 && framing.is_empty()).then(|| {
            Upgrade {
                websocket: token.eq_ignore_ascii_case(b"websocket")
                    && &head[request.method.clone()] == b"GET",
                token: String::from_utf8_lossy(token).into(),
            }
        })
    }
}

impl Coding {
    fn add(&mut self, value: &[u8]) {
        for coding in value.split(|&b| b == b',').map(trim) {
            self.ends_chunked = coding.eq_ignore_ascii_case(b"chunked");
            if self.ends_chunked {
                self.chunked += 1;
            } else {
                self.others += 1;
            }
        }
    }

    fn check(&self) -> Result<(), HeadFault> {
        if self.chunked > 1 {
            Err(HeadFault::ChunkedTwice)
        } else if !self.ends_chunked {
            Err(HeadFault::NotChunkedLast)
        } else if self.others > 0 {
            Err(HeadFault::UnknownCoding)
        } else {
            Ok(())
        }
    }
}

fn content_length(value: &[u8]) -> Result<u64, HeadFault> {
    if value.contains(&b',') {
        return Err(HeadFault::ContentLengthList);
    }
    // Digits are checked by hand: `parse` takes a sign. Some readers take a leading zero for octal.
    let octal = value.len() > 1 && value[0] == b'0';
    if value.is_empty() || octal || !value.iter().all(u8::is_ascii_digit) {
        return Err(HeadFault::ContentLengthMalformed);
    }
    std::str::from_utf8(value)
        .ok()
        .and_then(|digits| digits.parse().ok())
        .ok_or(HeadFault::ContentLengthMalformed)
}

/// `application/grpc` and its `+proto` and parameters, not `application/grpc-web`.
fn is_grpc(value: &[u8]) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    value
        .get(..GRPC.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(GRPC))
        && matches!(value.get(GRPC.len()), None | Some(b'+' | b';' | b' ' | b'\t'))
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "corpus_tests.rs"]
mod corpus;

#[cfg(test)]
#[path = "agreement_tests.rs"]
mod agreement;

//! Lexical rules that requests, responses and trailers share: lines, fields and tokens.

use std::num::NonZeroU32;
use std::ops::Range;

use memchr::{memchr, memchr2};

use super::fault::FieldFault;

/// Lookup table of token bytes: RFC 9110's `tchar` (5.6.2).
static TOKEN_BYTES: [bool; 256] = token_bytes();

const fn token_bytes() -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0u8;
    loop {
        table[byte as usize] = byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            );
        if byte == u8::MAX {
            return table;
        }
        byte += 1;
    }
}

/// Whether a byte is RFC 9110's `tchar`.
#[inline]
pub(super) fn is_token_byte(byte: u8) -> bool {
    TOKEN_BYTES[usize::from(byte)]
}

/// Whether a byte is allowed in a field value: tab, visible ASCII, space, and the opaque bytes above (RFC
/// 9110, 5.5).
#[inline]
pub(super) fn is_value_byte(byte: u8) -> bool {
    byte == b'\t' || (byte >= 0x20 && byte != 0x7f)
}

/// Whether all bytes are allowed in a field value. Without an early exit, so that the loop is vectorised.
pub(super) fn is_value(bytes: &[u8]) -> bool {
    bytes.iter().fold(true, |good, &b| good & is_value_byte(b))
}

/// The length of the token at the front of `bytes`.
#[inline]
pub(super) fn token_len(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .position(|&b| !is_token_byte(b))
        .unwrap_or(bytes.len())
}

/// Position of a part of a head: eight bytes, also as an `Option`. Never at the head's first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    end: NonZeroU32,
    len: u32,
}

impl Span {
    /// The span of `len` bytes from `start`; `None` when it lies beyond 4 GiB or ends at 0.
    pub(super) fn at(start: usize, len: usize) -> Option<Self> {
        let end = u32::try_from(start + len).ok().and_then(NonZeroU32::new)?;
        Some(Self {
            end,
            // `len` is no more than `end`.
            len: len as u32,
        })
    }

    /// The span as a range of indices.
    pub fn range(self) -> Range<usize> {
        let end = self.end.get() as usize;
        end - self.len as usize..end
    }

    /// The bytes of the span. `head` must be the validated head; of other bytes, only the absence of panics
    /// is guaranteed.
    pub fn of(self, head: &[u8]) -> &[u8] {
        head.get(self.range()).unwrap_or_default()
    }
}

/// The length of the first line of `rest`, without its CRLF.
#[inline]
pub(super) fn line_len(rest: &[u8]) -> Result<usize, FieldFault> {
    let end = memchr2(b'\r', b'\n', rest).ok_or(FieldFault::Incomplete)?;
    match rest[end..] {
        [b'\r', b'\n', ..] => Ok(end),
        [b'\n', ..] => Err(FieldFault::BareLf),
        [_] => Err(FieldFault::Incomplete),
        _ => Err(FieldFault::BareCr),
    }
}

/// One field line and its position in the head.
#[derive(Debug)]
pub(super) struct FieldLine<'h> {
    pub(super) name: &'h [u8],
    /// The value without surrounding whitespace.
    pub(super) value: &'h [u8],
    pub(super) value_at: usize,
    /// Position of the next line.
    pub(super) next: usize,
}

impl FieldLine<'_> {
    /// Position of the value.
    pub(super) fn span(&self) -> Option<Span> {
        Span::at(self.value_at, self.value.len())
    }
}

/// Parses and validates the field line at `at`; `None` at the empty line.
#[inline]
pub(super) fn field_line(head: &[u8], at: usize) -> Result<Option<FieldLine<'_>>, FieldFault> {
    let rest = head.get(at..).unwrap_or_default();
    let len = line_len(rest)?;
    if len == 0 {
        return Ok(None);
    }
    let line = &rest[..len];
    let colon = token_len(line);
    if colon == 0 || line.get(colon) != Some(&b':') {
        return Err(name_fault(line));
    }
    let (name, raw) = (&line[..colon], &line[colon + 1..]);
    let value = trim_end(raw);
    let skipped = blanks(value);
    let value = &value[skipped..];
    if !is_value(value) {
        let bad = value.iter().find(|&&b| !is_value_byte(b));
        return Err(FieldFault::BadValueByte(bad.copied().unwrap_or_default()));
    }
    Ok(Some(FieldLine {
        name,
        value,
        value_at: at + colon + 1 + skipped,
        next: at + len + 2,
    }))
}

/// The fault of a field line whose name is bad.
#[cold]
fn name_fault(line: &[u8]) -> FieldFault {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return FieldFault::Folding;
    }
    let Some(colon) = memchr(b':', line) else {
        return FieldFault::NoColon;
    };
    match &line[..colon] {
        [] => FieldFault::EmptyName,
        [.., b' ' | b'\t'] => FieldFault::SpaceBeforeColon,
        name => {
            let bad = name.iter().find(|&&b| !is_token_byte(b));
            FieldFault::BadNameByte(bad.copied().unwrap_or_default())
        }
    }
}

/// The number of leading spaces and tabs. Only these two are optional whitespace: `trim_ascii` would also
/// remove form feeds.
#[inline]
fn blanks(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .position(|b| !matches!(b, b' ' | b'\t'))
        .unwrap_or(bytes.len())
}

#[inline]
fn trim_end(mut bytes: &[u8]) -> &[u8] {
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// Removes surrounding spaces and tabs.
pub(super) fn trim(bytes: &[u8]) -> &[u8] {
    let bytes = trim_end(bytes);
    &bytes[blanks(bytes)..]
}

/// The elements of a comma-separated list, empty ones included.
pub(super) fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&b| b == b',').map(trim)
}

/// Iterator over the fields of a validated head or trailer section, in their order: names as they were sent,
/// values without surrounding whitespace. Allocates nothing.
#[derive(Debug, Clone, Default)]
pub struct FieldLines<'h>(&'h [u8]);

impl<'h> FieldLines<'h> {
    /// Iterates over validated field lines including their line ends, without the empty line.
    pub(super) fn over(lines: &'h [u8]) -> Self {
        Self(lines)
    }

    /// The value of the next field of this name, in any case.
    pub fn value_of(&mut self, name: &[u8]) -> Option<&'h [u8]> {
        self.find(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }
}

impl<'h> Iterator for FieldLines<'h> {
    type Item = (&'h [u8], &'h [u8]);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        // The lines were validated: each has its colon and its CRLF, and no other CR.
        let end = memchr(b'\r', self.0)?;
        let line = &self.0[..end];
        self.0 = self.0.get(end + 2..).unwrap_or_default();
        let colon = memchr(b':', line)?;
        Some((&line[..colon], trim(&line[colon + 1..])))
    }
}

/// Iterator over the options of all Connection fields of a head, as they were sent: `close`, `keep-alive`,
/// and the names of fields for this connection only (RFC 9110, 7.6.1).
#[derive(Debug, Clone)]
pub struct ConnectionOptions<'h> {
    fields: FieldLines<'h>,
    value: &'h [u8],
}

impl<'h> ConnectionOptions<'h> {
    pub(super) fn of(fields: FieldLines<'h>) -> Self {
        Self { fields, value: b"" }
    }
}

impl<'h> Iterator for ConnectionOptions<'h> {
    type Item = &'h [u8];

    fn next(&mut self) -> Option<&'h [u8]> {
        loop {
            while self.value.is_empty() {
                self.value = self.fields.value_of(b"connection")?;
            }
            let end = memchr(b',', self.value).unwrap_or(self.value.len());
            let option = trim(&self.value[..end]);
            self.value = self.value.get(end + 1..).unwrap_or_default();
            if !option.is_empty() {
                return Some(option);
            }
        }
    }
}

/// The options of all Connection fields together (RFC 9110, 7.6.1).
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct ConnectionHeader {
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
    /// Whether other fields are named, besides `Upgrade`, `TE` and `Keep-Alive`, which are never forwarded.
    pub(super) others: bool,
}

impl ConnectionHeader {
    pub(super) fn add(&mut self, value: &[u8]) {
        for option in elements(value) {
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if option.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade = true;
            } else if !option.is_empty() && !option.eq_ignore_ascii_case(b"te") {
                self.others = true;
            }
        }
    }
}

/// The codings of all Transfer-Encoding fields together.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct TransferEncoding {
    pub(super) chunked: u32,
    pub(super) others: u32,
    pub(super) ends_chunked: bool,
    pub(super) fields: u32,
}

impl TransferEncoding {
    pub(super) fn add(&mut self, value: &[u8]) {
        self.fields += 1;
        for coding in elements(value) {
            self.ends_chunked = coding.eq_ignore_ascii_case(b"chunked");
            if self.ends_chunked {
                self.chunked += 1;
            } else {
                self.others += 1;
            }
        }
    }
}

/// Whether an Upgrade field is a list of protocols (RFC 9110, 7.8) that can be forwarded as it is.
pub(super) fn is_protocol_list(value: &[u8]) -> bool {
    !value.is_empty()
        && value
            .iter()
            .all(|&b| is_token_byte(b) || matches!(b, b'/' | b',' | b' ' | b'\t'))
}

/// Whether a Content-Type is gRPC's: `application/grpc` with its `+proto` and parameters, not
/// `application/grpc-web`.
pub(super) fn is_grpc(value: &[u8]) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    value.split_at_checked(GRPC.len()).is_some_and(|(start, rest)| {
        start.eq_ignore_ascii_case(GRPC) && matches!(rest.first(), None | Some(b'+' | b';' | b' ' | b'\t'))
    })
}

/// Parses a number of decimal digits and nothing else; `None` also when it overflows 64 bits. By hand,
/// because `parse` accepts a sign.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |number, &digit| {
        let value = digit.wrapping_sub(b'0');
        if value > 9 {
            return None;
        }
        number.checked_mul(10)?.checked_add(u64::from(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_of_a_span_is_as_small_as_a_span() {
        assert_eq!(size_of::<Option<Span>>(), 8);
        assert_eq!(Span::at(0, 0), None);
        let span = Span::at(2, 3).unwrap();
        assert_eq!(
            (span.range(), span.of(b"abcdef"), span.of(b"ab")),
            (2..5, &b"cde"[..], &b""[..])
        );
        assert_eq!(Span::at(4, 0).unwrap().of(b"abcdef"), b"");
    }

    #[test]
    fn numbers_have_digits_only() {
        assert_eq!(decimal(b"0"), Some(0));
        assert_eq!(decimal(b"18446744073709551615"), Some(u64::MAX));
        for bad in [
            "",
            "18446744073709551616",
            "+1",
            "-1",
            "1 ",
            "0x1",
            "1,1",
            "\u{0665}",
        ] {
            assert_eq!(decimal(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn options_come_one_by_one_over_all_fields() {
        let fields = b"Connection: close, ,X-One\r\nA: b\r\nCONNECTION:\r\nconnection:\tX-Two,\r\n";
        let options: Vec<_> = ConnectionOptions::of(FieldLines::over(fields)).collect();
        assert_eq!(options, [&b"close"[..], b"X-One", b"X-Two"]);
    }
}

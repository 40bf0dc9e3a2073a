//! Incremental search for the end of a head.

use memchr::memchr;

use super::fault::{FieldFault, HeadFault};
use super::limits::HeadLimits;
use super::syntax::is_token_byte;

/// Empty lines tolerated before a request line (RFC 9112, 2.2): some old clients send one after a POST body.
/// A client that sends more keeps a connection busy.
const MAX_EMPTY_LINES: usize = 4;

/// Bytes of a request line besides its target: method, two spaces, version.
const REQUEST_LINE_EXTRA: usize = 64;

/// The result of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scan<F = HeadFault> {
    /// The end was not found. Pass `scanned` as `from` once there are more bytes.
    NeedMore {
        /// Bytes that need no second scan.
        scanned: usize,
    },
    /// The head is the first `len` bytes, empty lines before it included.
    Complete {
        /// The head's length.
        len: usize,
    },
    /// The head is invalid whatever follows.
    Bad(F),
}

/// Finds the end of a request head in `buf`, which begins where the head begins. `from` is 0 at first, then
/// the `scanned` of the last [`Scan::NeedMore`]: each byte is scanned once, whatever pieces the head arrives
/// in.
///
/// Detects early what must not be waited for: an oversized head, wrong line ends, a first byte that begins no
/// request. [`judge`](super::judge) validates the rest.
pub fn scan(buf: &[u8], limits: &HeadLimits, from: usize) -> Scan {
    let start = match first_line(buf) {
        Ok(Some(start)) => start,
        Ok(None) => return Scan::NeedMore { scanned: 0 },
        Err(fault) => return Scan::Bad(fault),
    };
    // A TLS ClientHello or other noise is recognised by its first byte; waiting for a line end would hold the
    // connection until its deadline.
    if !is_token_byte(buf[start]) {
        return Scan::Bad(HeadFault::BadMethod);
    }
    let uri_too_long = HeadFault::UriTooLong {
        limit: limits.max_uri_bytes,
    };
    let in_first_line = |end: usize| !buf[start..end].contains(&b'\n');
    let line_end = start
        .saturating_add(limits.max_uri_bytes)
        .saturating_add(REQUEST_LINE_EXTRA);
    // Checked once, by the call whose bytes cross the mark: the total work stays linear.
    if from <= line_end && buf.len() > line_end && in_first_line(line_end + 1) {
        return Scan::Bad(uri_too_long);
    }
    let end = buf.len().min(limits.bytes());
    match head_end(&buf[..end], start, from) {
        Ok(Some(len)) => return Scan::Complete { len },
        Ok(None) => {}
        Err(fault) => return Scan::Bad(fault.into()),
    }
    if buf.len() > limits.bytes() {
        let line = in_first_line(end.max(start));
        return Scan::Bad(if line && limits.max_uri_bytes < limits.max_bytes {
            uri_too_long
        } else {
            HeadFault::HeadTooLarge {
                limit: limits.max_bytes,
            }
        });
    }
    Scan::NeedMore { scanned: end }
}

/// Position behind the empty line that ends the head which begins at `start`, searched from `from` on.
pub(super) fn head_end(buf: &[u8], start: usize, from: usize) -> Result<Option<usize>, FieldFault> {
    let mut at = from.max(start).min(buf.len());
    while let Some(skip) = memchr(b'\n', &buf[at..]) {
        let lf = at + skip;
        if lf == 0 || buf[lf - 1] != b'\r' {
            return Err(FieldFault::BareLf);
        }
        if lf >= start + 3 && buf[lf - 3..lf] == *b"\r\n\r" {
            return Ok(Some(lf + 1));
        }
        at = lf + 1;
    }
    Ok(None)
}

/// Position of the request line, past empty lines; `None` when more bytes are needed.
pub(super) fn first_line(buf: &[u8]) -> Result<Option<usize>, HeadFault> {
    let mut at = 0;
    loop {
        match buf[at..] {
            [] | [b'\r'] => return Ok(None),
            [b'\r', b'\n', ..] if at == 2 * MAX_EMPTY_LINES => return Err(HeadFault::EmptyLines),
            [b'\r', b'\n', ..] => at += 2,
            [b'\r', ..] => return Err(FieldFault::BareCr.into()),
            [b'\n', ..] => return Err(FieldFault::BareLf.into()),
            [..] => return Ok(Some(at)),
        }
    }
}

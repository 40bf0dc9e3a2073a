//! Where a head ends, found while it arrives.

use memchr::memchr;

use super::fault::{FieldFault, HeadFault};
use super::limits::HeadLimits;
use super::syntax::is_token_byte;

/// Empty lines tolerated before a request line (RFC 9112, 2.2): some old clients send one after a
/// POST body. More than a few is somebody keeping a connection busy.
const MAX_EMPTY_LINES: usize = 4;

/// What a request line may have beside its target: method, two spaces, version.
const REQUEST_LINE_EXTRA: usize = 64;

/// What is known of a head so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scan<F = HeadFault> {
    /// The head goes on. Pass `scanned` as `from` with more bytes.
    NeedMore {
        /// Bytes that need no second look.
        scanned: usize,
    },
    /// The head is the first `len` bytes, empty lines before it included.
    Complete {
        /// The head's length.
        len: usize,
    },
    /// No continuation makes this a head that is let through.
    Bad(F),
}

/// Looks for the end of a head in `buf`, which begins where the head begins. `from` is 0 at first,
/// then the last [`Scan::NeedMore`]'s; each byte is looked at once whatever pieces it comes in.
///
/// Finds what must be found before the end is there (size, line ends that end the wrong way, a
/// first byte that begins no request); the rest is [`judge`](super::judge)'s.
pub fn scan(buf: &[u8], limits: &HeadLimits, from: usize) -> Scan {
    let start = match first_line(buf) {
        Ok(Some(start)) => start,
        Ok(None) => return Scan::NeedMore { scanned: 0 },
        Err(fault) => return Scan::Bad(fault),
    };
    // A TLS ClientHello or other noise is told from a request by its first byte; waiting for a line
    // end would hold the connection until the deadline.
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
    // Asked once, by the call whose bytes cross the mark: the total work stays linear.
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

/// Where the empty line ends that ends the head which begins at `start`, looked for from `from` on.
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

/// Where the request line begins, past empty lines; `None` when more bytes are needed to tell.
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

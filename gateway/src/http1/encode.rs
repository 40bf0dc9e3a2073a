//! Encoder of heads and chunks: everything is appended to a buffer.
//!
//! The input was validated, or is the gateway's own: nothing is checked here except, in debug builds, that no
//! line end is smuggled in.

use http::StatusCode;

use super::head::Version;

/// Writes a request line. The version is always 1.1, which is the version of this codec (RFC 9110, 2.5).
pub fn request_line(out: &mut Vec<u8>, method: &str, target: &str) {
    request_line_of(out, method, &[target]);
}

/// Writes a request line whose target is in parts, such as path, `?` and query.
pub fn request_line_of(out: &mut Vec<u8>, method: &str, target: &[&str]) {
    debug_assert!(is_line(method.as_bytes()) && target.iter().all(|part| is_line(part.as_bytes())));
    let len: usize = target.iter().map(|part| part.len()).sum();
    out.reserve(method.len() + len + 12);
    out.extend_from_slice(method.as_bytes());
    out.push(b' ');
    for part in target {
        out.extend_from_slice(part.as_bytes());
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
}

/// Writes a status line. Without a phrase, the status's standard phrase is written, or none for an unknown
/// status; the space before it is always there (RFC 9112, 4).
pub fn status_line(out: &mut Vec<u8>, version: Version, status: u16, phrase: Option<&[u8]>) {
    debug_assert!((100..=999).contains(&status) && phrase.is_none_or(is_line));
    if (version, status, phrase) == (Version::Http11, 200, None) {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        return;
    }
    out.extend_from_slice(match version {
        Version::Http10 => b"HTTP/1.0 ",
        Version::Http11 => b"HTTP/1.1 ",
    });
    decimal(out, u64::from(status));
    out.push(b' ');
    let own = || StatusCode::from_u16(status).ok()?.canonical_reason();
    match phrase {
        Some(phrase) => out.extend_from_slice(phrase),
        None => out.extend_from_slice(own().unwrap_or_default().as_bytes()),
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes one field.
#[inline]
pub fn field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    debug_assert!(is_line(name) && is_line(value));
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Writes `content-length`.
pub fn content_length(out: &mut Vec<u8>, length: u64) {
    out.extend_from_slice(b"content-length: ");
    decimal(out, length);
    out.extend_from_slice(b"\r\n");
}

/// Writes `transfer-encoding: chunked`.
pub fn transfer_encoding_chunked(out: &mut Vec<u8>) {
    out.extend_from_slice(b"transfer-encoding: chunked\r\n");
}

/// Ends a head.
pub fn end_of_head(out: &mut Vec<u8>) {
    out.extend_from_slice(b"\r\n");
}

/// Writes the size line of a chunk of `len` bytes; the bytes and [`CHUNK_END`] follow. `len` must not be 0,
/// which would end the body.
pub fn chunk_size(out: &mut Vec<u8>, len: usize) {
    debug_assert!(len > 0);
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 2 * size_of::<usize>()];
    let mut at = text.len();
    let mut left = len;
    loop {
        at -= 1;
        text[at] = DIGITS[left & 0xf];
        left >>= 4;
        if left == 0 {
            break;
        }
    }
    out.extend_from_slice(&text[at..]);
    out.extend_from_slice(b"\r\n");
}

/// The line end behind a chunk's bytes.
pub const CHUNK_END: &[u8] = b"\r\n";

/// The last chunk of a body without trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Writes the last chunk and trailers.
pub fn last_chunk<'t>(out: &mut Vec<u8>, trailers: impl IntoIterator<Item = (&'t [u8], &'t [u8])>) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers {
        field(out, name, value);
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes a number in decimal digits.
pub fn decimal(out: &mut Vec<u8>, number: u64) {
    let mut text = [0; 20];
    let mut at = text.len();
    let mut left = number;
    loop {
        at -= 1;
        // At most 9, so the cast loses nothing.
        text[at] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    out.extend_from_slice(&text[at..]);
}

fn is_line(bytes: &[u8]) -> bool {
    !bytes.iter().any(|b| matches!(b, b'\r' | b'\n' | 0))
}

#[cfg(test)]
#[path = "encode_tests.rs"]
mod tests;

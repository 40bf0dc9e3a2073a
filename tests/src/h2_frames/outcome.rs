//! The outcome of a stream, with just enough HPACK to read a status.

use std::fmt;

use tokio::io::{AsyncRead, AsyncWrite};

use super::{ACK, Frames, frame, kind};

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A final response head came.
    Status(u16),
    /// The stream was reset, with this code.
    Reset(u32),
    /// The connection was ended, with this code.
    GoAway(u32),
    /// The connection ended without a word.
    Closed,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "{status}"),
            Self::Reset(code) => write!(f, "reset {}", error_name(*code)),
            Self::GoAway(code) => write!(f, "goaway {}", error_name(*code)),
            Self::Closed => f.write_str("close"),
        }
    }
}

/// RFC 9113 7's name of an error code.
fn error_name(code: u32) -> &'static str {
    const NAMES: [&str; 14] = [
        "NO_ERROR",
        "PROTOCOL_ERROR",
        "INTERNAL_ERROR",
        "FLOW_CONTROL_ERROR",
        "SETTINGS_TIMEOUT",
        "STREAM_CLOSED",
        "FRAME_SIZE_ERROR",
        "REFUSED_STREAM",
        "CANCEL",
        "COMPRESSION_ERROR",
        "CONNECT_ERROR",
        "ENHANCE_YOUR_CALM",
        "INADEQUATE_SECURITY",
        "HTTP_1_1_REQUIRED",
    ];
    usize::try_from(code)
        .ok()
        .and_then(|code| NAMES.get(code).copied())
        .unwrap_or("unknown")
}

impl<S: AsyncRead + AsyncWrite + Unpin> Frames<S> {
    /// Reads until it is clear what becomes of a stream; acknowledges SETTINGS and PING meanwhile.
    ///
    /// # Panics
    /// When a response has no status that can be read: it has to be the first on its connection.
    pub async fn outcome(&mut self, stream: u32) -> Outcome {
        loop {
            let Ok(came) = self.next().await else {
                return Outcome::Closed;
            };
            let ours = came.stream == stream;
            match came.kind {
                kind::HEADERS if ours => match status(&came.payload) {
                    // Interim responses go before.
                    Some(100..200) => {}
                    Some(status) => return Outcome::Status(status),
                    None => panic!("no status in {:?}", came.payload),
                },
                kind::RST_STREAM if ours => return Outcome::Reset(came.code().expect("a code")),
                kind::GOAWAY => match came.code().expect("a code") {
                    0 => {}
                    code => return Outcome::GoAway(code),
                },
                kind::SETTINGS | kind::PING if came.flags & ACK == 0 => {
                    let echo: &[u8] = if came.kind == kind::PING {
                        &came.payload
                    } else {
                        b""
                    };
                    if self.send(&frame(came.kind, ACK, 0, echo)).await.is_err() {
                        return Outcome::Closed;
                    }
                }
                _ => {}
            }
        }
    }
}

/// The status at the beginning of a connection's first response: indexed in the static table, or a literal with
/// the name from there.
fn status(block: &[u8]) -> Option<u16> {
    // A change of the dynamic table's size may come first.
    let start = block.iter().position(|b| b & 0xe0 != 0x20)?;
    let block = &block[start..];
    match block {
        [indexed @ 0x88..=0x8e, ..] => Some([200, 204, 206, 304, 400, 404, 500][usize::from(indexed - 0x88)]),
        // Not indexed, never indexed, or to be indexed: the name is the static table's eighth.
        [0x08 | 0x18 | 0x48, length, value @ ..] => {
            let value = value.get(..usize::from(length & 0x7f))?;
            if length & 0x80 == 0 {
                return std::str::from_utf8(value).ok()?.parse().ok();
            }
            huffman_digits(value)
        }
        _ => None,
    }
}

/// Three digits in the code of RFC 7541 B: 0 to 2 take five bits, 3 to 9 six.
fn huffman_digits(bytes: &[u8]) -> Option<u16> {
    let mut bits = bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |n| u16::from(byte >> n & 1)));
    let mut number = 0;
    for _ in 0..3 {
        let mut code = 0;
        for _ in 0..5 {
            code = code << 1 | bits.next()?;
        }
        let digit = match code {
            0..=2 => code,
            _ => (code << 1 | bits.next()?) - 0x19 + 3,
        };
        number = number * 10 + digit;
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_read_in_every_form() {
        assert_eq!(status(&[0x88]), Some(200));
        assert_eq!(status(&[0x20, 0x8d]), Some(404));
        assert_eq!(status(b"\x08\x03421"), Some(421));
        // RFC 7541 C.6.1 and C.6.2.
        assert_eq!(status(&[0x48, 0x82, 0x64, 0x02]), Some(302));
        assert_eq!(status(&[0x48, 0x83, 0x64, 0x0e, 0xff]), Some(307));
        assert_eq!(status(&[0x40]), None);
    }
}

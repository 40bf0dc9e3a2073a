//! HTTP/2 frame by frame, for what no client library would send.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// The largest payload that every peer takes.
const MAX_FRAME: usize = 16_384;

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

/// A connection without TLS.
#[derive(Debug)]
pub struct RawH2 {
    io: TcpStream,
    /// What is to go out with the next flush.
    out: Vec<u8>,
}

impl RawH2 {
    /// Connects; preface and empty settings go out with the first flush.
    ///
    /// # Errors
    /// The refusal.
    pub async fn connect(addr: SocketAddr) -> io::Result<Self> {
        let io = TcpStream::connect(addr).await?;
        io.set_nodelay(true)?;
        let out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let mut conn = Self { io, out };
        conn.frame(SETTINGS, 0, 0, b"");
        Ok(conn)
    }

    /// Adds a field block as it is given, in as many frames as it takes.
    pub fn headers(&mut self, stream: u32, fields: &[(Vec<u8>, Vec<u8>)], end: bool) {
        let mut block = Vec::new();
        for (name, value) in fields {
            // RFC 7541 6.2.2: literal, not indexed, new name. No Huffman code.
            block.push(0);
            for text in [name, value] {
                push_length(&mut block, text.len());
                block.extend_from_slice(text);
            }
        }
        let mut pieces = block.chunks(MAX_FRAME).peekable();
        let mut kind = HEADERS;
        let mut flags = if end { END_STREAM } else { 0 };
        while let Some(piece) = pieces.next() {
            if pieces.peek().is_none() {
                flags |= END_HEADERS;
            }
            self.frame(kind, flags, stream, piece);
            (kind, flags) = (CONTINUATION, 0);
        }
    }

    /// Adds data.
    pub fn data(&mut self, stream: u32, data: &[u8], end: bool) {
        let flags = if end { END_STREAM } else { 0 };
        self.frame(DATA, flags, stream, data);
    }

    /// Sends what was added, in one piece as far as the kernel takes it: what the other side makes of one frame
    /// must not race with the next.
    ///
    /// # Errors
    /// The broken connection.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.io.write_all(&std::mem::take(&mut self.out)).await
    }

    /// Reads until it is clear what becomes of a stream.
    pub async fn outcome(&mut self, stream: u32) -> Outcome {
        loop {
            let Ok((kind, flags, on, payload)) = self.read_frame().await else {
                return Outcome::Closed;
            };
            match kind {
                HEADERS if on == stream => match status(&payload) {
                    // Interim responses go before.
                    Some(100..200) => {}
                    Some(status) => return Outcome::Status(status),
                    None => panic!("no status in {payload:?}"),
                },
                RST_STREAM if on == stream => return Outcome::Reset(number(&payload)),
                GOAWAY if number(&payload[4..]) != 0 => return Outcome::GoAway(number(&payload[4..])),
                SETTINGS | PING if flags & ACK == 0 => {
                    let echo: &[u8] = if kind == PING { &payload } else { b"" };
                    self.frame(kind, ACK, 0, echo);
                    if self.flush().await.is_err() {
                        return Outcome::Closed;
                    }
                }
                _ => {}
            }
        }
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let len = u32::try_from(payload.len()).expect("a test's frame is small");
        self.out.extend_from_slice(&len.to_be_bytes()[1..]);
        self.out.extend_from_slice(&[kind, flags]);
        self.out.extend_from_slice(&stream.to_be_bytes());
        self.out.extend_from_slice(payload);
    }

    async fn read_frame(&mut self) -> io::Result<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.io.read_exact(&mut head).await?;
        let mut payload =
            vec![0; usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])];
        self.io.read_exact(&mut payload).await?;
        Ok((head[3], head[4], number(&head[5..]) & 0x7fff_ffff, payload))
    }
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// RFC 7541 5.1, with a prefix of seven bits.
fn push_length(out: &mut Vec<u8>, len: usize) {
    if len < 127 {
        out.push(len as u8);
        return;
    }
    out.push(127);
    let mut left = len - 127;
    while left >= 128 {
        out.push((left % 128 + 128) as u8);
        left /= 128;
    }
    out.push(left as u8);
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

//! A raw HTTP/2 client that sends single frames, for input that no client library would send.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::TcpStream;

mod outcome;

pub use outcome::Outcome;

/// The connection preface.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types.
pub mod kind {
    #![allow(missing_docs)]
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Of DATA and HEADERS.
pub const END_STREAM: u8 = 1;
/// Of SETTINGS and PING.
pub const ACK: u8 = 1;
/// Of HEADERS and CONTINUATION.
pub const END_HEADERS: u8 = 4;

/// The largest payload that every peer takes.
const MAX_PAYLOAD: usize = 16_384;

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream.
    pub stream: u32,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code of a RST_STREAM or a GOAWAY.
    pub fn code(&self) -> Option<u32> {
        let at = if self.kind == kind::GOAWAY { 4 } else { 0 };
        let bytes = self.payload.get(at..at + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    }
}

/// The bytes of a frame.
///
/// # Panics
/// When the payload is longer than a frame can be.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("a frame's payload");
    assert!(len < 1 << 24, "a frame's payload");
    let mut out = len.to_be_bytes()[1..].to_vec();
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// The header block of a request without TLS for `/`: indexed fields and literals, no Huffman.
pub fn head(method: &str, host: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    // :scheme http, :path /
    let mut block = vec![0x86, 0x84];
    match method {
        "GET" => block.push(0x82),
        "POST" => block.push(0x83),
        other => {
            block.push(2);
            text(&mut block, other.as_bytes());
        }
    }
    block.push(1);
    text(&mut block, host.as_bytes());
    for (name, value) in fields {
        literal(&mut block, name.as_bytes(), value.as_bytes());
    }
    block
}

/// RFC 7541 6.2.2: a field that is not added to the table, its name in full.
fn literal(block: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    block.push(0);
    text(block, name);
    text(block, value);
}

/// RFC 7541 5.2: a text without Huffman code, its length (5.1) with a prefix of seven bits.
fn text(block: &mut Vec<u8>, text: &[u8]) {
    match text.len().checked_sub(127) {
        None => block.push(text.len() as u8),
        Some(mut left) => {
            block.push(127);
            while left >= 128 {
                block.push((left % 128 + 128) as u8);
                left /= 128;
            }
            block.push(left as u8);
        }
    }
    block.extend_from_slice(text);
}

/// A whole request head in one frame.
pub fn request(stream: u32, method: &str, host: &str, fields: &[(&str, &str)], end: bool) -> Vec<u8> {
    let flags = END_HEADERS | if end { END_STREAM } else { 0 };
    frame(kind::HEADERS, flags, stream, &head(method, host, fields))
}

/// A field block as it is given, pseudo-header fields and all, in as many frames as it takes.
pub fn headers(stream: u32, fields: &[(Vec<u8>, Vec<u8>)], end: bool) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        literal(&mut block, name, value);
    }
    let mut out = Vec::new();
    let mut pieces = block.chunks(MAX_PAYLOAD).peekable();
    let mut kind = kind::HEADERS;
    let mut flags = if end { END_STREAM } else { 0 };
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            flags |= END_HEADERS;
        }
        out.extend(frame(kind, flags, stream, piece));
        (kind, flags) = (kind::CONTINUATION, 0);
    }
    out
}

/// A connection that sends exactly the given frames; SETTINGS and PING are acknowledged only during
/// [`outcome`](Self::outcome).
#[derive(Debug)]
pub struct Frames<S = TcpStream> {
    io: S,
    buf: Vec<u8>,
}

/// The outcome of a flood.
#[derive(Debug, Default)]
pub struct Onslaught {
    /// Bytes that were accepted for sending.
    pub sent: usize,
    /// Frames that came meanwhile, until the end.
    pub received: Vec<Frame>,
    /// The other side ended the connection.
    pub ended: bool,
}

impl Onslaught {
    /// How many frames of a type came.
    pub fn count(&self, kind: u8) -> usize {
        self.received.iter().filter(|f| f.kind == kind).count()
    }
}

impl Frames<TcpStream> {
    /// Connects by prior knowledge and sends preface and SETTINGS.
    ///
    /// # Errors
    /// The refusal.
    pub async fn connect(addr: SocketAddr) -> io::Result<Self> {
        let io = TcpStream::connect(addr).await?;
        io.set_nodelay(true)?;
        let mut frames = Self::over(io);
        frames.send(PREFACE).await?;
        frames.send(&frame(kind::SETTINGS, 0, 0, b"")).await?;
        Ok(frames)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Frames<S> {
    /// Speaks over a stream that is there already; nothing is sent.
    pub fn over(io: S) -> Self {
        Self { io, buf: Vec::new() }
    }

    /// Sends exact bytes.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.io.write_all(bytes).await?;
        self.io.flush().await
    }

    /// The next frame.
    ///
    /// # Errors
    /// An end of file, also in the middle of a frame, or a reset.
    pub async fn next(&mut self) -> io::Result<Frame> {
        loop {
            if let Some(frame) = take(&mut self.buf) {
                return Ok(frame);
            }
            if self.io.read_buf(&mut self.buf).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The next frame of a type; others are dropped.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub async fn next_of(&mut self, kind: u8) -> io::Result<Frame> {
        loop {
            let frame = self.next().await?;
            if frame.kind == kind {
                return Ok(frame);
            }
        }
    }

    /// Reads until the other side ends the connection, however it does.
    pub async fn until_end(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Ok(frame) = self.next().await {
            frames.push(frame);
        }
        frames
    }

    /// Sends what `next` makes until the connection ends or `most` bytes went, reading all the while.
    pub async fn onslaught(self, most: usize, mut next: impl FnMut(usize) -> Vec<u8>) -> Onslaught {
        let (mut read, mut write) = split(self.io);
        let mut buf = self.buf;
        let reading = async {
            let mut received = Vec::new();
            loop {
                while let Some(frame) = take(&mut buf) {
                    received.push(frame);
                }
                if !matches!(read.read_buf(&mut buf).await, Ok(1..)) {
                    return received;
                }
            }
        };
        let writing = async {
            let mut sent = 0;
            let mut round = 0;
            while sent < most {
                // Many in one write: the sender must not be the slow one.
                let mut burst = Vec::new();
                while burst.len() < 32 * 1024 {
                    burst.extend(next(round));
                    round += 1;
                }
                if write.write_all(&burst).await.is_err() {
                    return (sent, true);
                }
                sent += burst.len();
            }
            (sent, false)
        };
        tokio::pin!(reading);
        let mut outcome = Onslaught::default();
        let written = tokio::select! {
            received = &mut reading => {
                (outcome.received, outcome.ended) = (received, true);
                None
            }
            written = writing => Some(written),
        };
        if let Some((sent, broken)) = written {
            outcome.sent = sent;
            // The end may still be on its way.
            if let Ok(received) = tokio::time::timeout(crate::wait::SOON, reading).await {
                (outcome.received, outcome.ended) = (received, true);
            }
            outcome.ended |= broken;
        }
        outcome
    }
}

fn take(buf: &mut Vec<u8>) -> Option<Frame> {
    let head: [u8; 9] = buf.get(..9)?.try_into().ok()?;
    let [a, b, c, kind, flags, stream @ ..] = head;
    let len = u32::from_be_bytes([0, a, b, c]) as usize;
    let payload = buf.get(9..9 + len)?.to_vec();
    buf.drain(..9 + len);
    Some(Frame {
        kind,
        flags,
        // The highest bit is reserved.
        stream: u32::from_be_bytes(stream) & 0x7fff_ffff,
        payload,
    })
}

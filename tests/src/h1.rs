//! A raw HTTP/1 client: exact bytes out, strictly parsed bytes in, no retries.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// How long a single read may take.
const READ_LIMIT: Duration = Duration::from_secs(30);

/// A response.
#[derive(Debug, Clone)]
pub struct H1Response {
    /// 0 or 1, of HTTP/1.x.
    pub minor_version: u8,
    /// The status.
    pub status: u16,
    /// The fields in order, names as sent.
    pub headers: Vec<(String, String)>,
    /// The body, decoded.
    pub body: Vec<u8>,
    /// How the body's end was known.
    pub framing: Framing,
}

/// How a body's end is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    Empty,
    /// `Content-Length`.
    Length(u64),
    /// Chunked.
    Chunked,
    /// The connection's end.
    Close,
}

impl H1Response {
    /// The first value of a field.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("not JSON ({e}): {} {}", self.status, self.text()))
    }

    /// The gateway's reason, when the answer is its own.
    pub fn reason(&self) -> Option<&str> {
        self.header("x-sluice-reason")
    }

    /// Whether the sender announced the end of the connection (`Connection: close`, or HTTP/1.0 without keep-alive).
    pub fn closes(&self) -> bool {
        self.framing == Framing::Close
            || self.header("connection").map_or(self.minor_version == 0, |v| {
                v.to_ascii_lowercase().contains("close")
            })
    }
}

/// The bytes of a request. A body, or a method that has one, gets a `Content-Length`.
pub fn request(method: &str, host: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut out = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n");
    for (name, value) in headers {
        out.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() || matches!(method, "POST" | "PUT" | "PATCH") {
        out.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    out.push_str("\r\n");
    let mut bytes = out.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// The bytes of a plain GET.
pub fn get(host: &str, target: &str) -> Vec<u8> {
    request("GET", host, target, &[], b"")
}

/// One request on a connection of its own.
///
/// # Errors
/// Whatever went wrong, without a second try.
pub async fn fetch(addr: SocketAddr, request: &[u8]) -> io::Result<H1Response> {
    let mut conn = H1::connect(addr).await?;
    conn.send(request).await?;
    conn.response_to(request).await
}

/// A connection.
#[derive(Debug)]
pub struct H1<S = TcpStream> {
    io: S,
    buf: Vec<u8>,
}

impl H1<TcpStream> {
    /// Connects.
    ///
    /// # Errors
    /// The refusal.
    pub async fn connect(addr: SocketAddr) -> io::Result<Self> {
        let io = TcpStream::connect(addr).await?;
        io.set_nodelay(true)?;
        Ok(Self::over(io))
    }

    /// Connects from an address of this machine's choice, such as 127.0.0.7.
    ///
    /// # Errors
    /// The refusal.
    pub async fn connect_from(source: IpAddr, addr: SocketAddr) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(source, 0))?;
        let io = socket.connect(addr).await?;
        io.set_nodelay(true)?;
        Ok(Self::over(io))
    }

    /// Ends the connection by a reset instead of an orderly close.
    pub fn reset(self) {
        // What fails here is only the politeness of the close.
        let _ = self.io.set_zero_linger();
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> H1<S> {
    /// Speaks over a stream that is there already.
    pub fn over(io: S) -> Self {
        Self { io, buf: Vec::new() }
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The broken connection.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.io.write_all(bytes).await?;
        self.io.flush().await
    }

    /// Sends a request and reads its response.
    ///
    /// # Errors
    /// An end of file, a reset, a response that cannot be parsed.
    pub async fn exchange(&mut self, request: &[u8]) -> io::Result<H1Response> {
        self.send(request).await?;
        self.response_to(request).await
    }

    /// Reads the final response to `request`, whose method decides whether a body follows.
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange).
    pub async fn response_to(&mut self, request: &[u8]) -> io::Result<H1Response> {
        let head_only = request.starts_with(b"HEAD ");
        loop {
            let mut response = self.head(head_only).await?;
            if response.status == 101 || response.status >= 200 {
                self.finish(&mut response).await?;
                return Ok(response);
            }
        }
    }

    /// Reads one head, an interim one too; the body is left where it is.
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange).
    pub async fn head(&mut self, head_only: bool) -> io::Result<H1Response> {
        let end = loop {
            if let Some(at) = self.buf.windows(4).position(|w| w == b"\r\n\r\n") {
                break at;
            }
            if self.fill().await? == 0 {
                return Err(eof(&format!("in a response head, after {:?}", lossy(&self.buf))));
            }
        };
        let head: Vec<u8> = self.buf.drain(..end + 4).collect();
        parse_head(&head[..end], head_only)
    }

    /// Reads the body of a response whose head came by [`head`](Self::head).
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange).
    pub async fn finish(&mut self, response: &mut H1Response) -> io::Result<()> {
        response.body = match response.framing {
            Framing::Empty => Vec::new(),
            Framing::Length(len) => {
                self.exactly(usize::try_from(len).map_err(io::Error::other)?)
                    .await?
            }
            Framing::Close => {
                while self.fill().await? > 0 {}
                std::mem::take(&mut self.buf)
            }
            Framing::Chunked => {
                let mut body = Vec::new();
                while let Some(chunk) = self.chunk().await? {
                    body.extend_from_slice(&chunk);
                }
                body
            }
        };
        Ok(())
    }

    /// Reads one chunk; `None` after the last one.
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange).
    pub async fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let line = self.line().await?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).map_err(|_| bad(&format!("chunk size {line:?}")))?;
        if size == 0 {
            while !self.line().await?.is_empty() {}
            return Ok(None);
        }
        let data = self.exactly(size).await?;
        if !self.line().await?.is_empty() {
            return Err(bad("a chunk is longer than it says"));
        }
        Ok(Some(data))
    }

    /// Reads exactly `len` bytes.
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange).
    pub async fn exactly(&mut self, len: usize) -> io::Result<Vec<u8>> {
        while self.buf.len() < len {
            if self.fill().await? == 0 {
                return Err(eof(&format!("after {} of {len} body bytes", self.buf.len())));
            }
        }
        Ok(self.buf.drain(..len).collect())
    }

    /// Reads and drops `len` bytes without keeping them.
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange).
    pub async fn discard(&mut self, len: u64) -> io::Result<()> {
        let mut left = len;
        loop {
            let now = left.min(self.buf.len() as u64);
            left -= now;
            self.buf.drain(..usize::try_from(now).map_err(io::Error::other)?);
            if left == 0 {
                return Ok(());
            }
            if self.fill().await? == 0 {
                return Err(eof(&format!("{left} body bytes too early")));
            }
        }
    }

    /// Waits for the other side to close without another byte.
    ///
    /// # Errors
    /// When a byte comes, or a reset.
    pub async fn closed(&mut self) -> io::Result<()> {
        if self.buf.is_empty() && self.fill().await? == 0 {
            return Ok(());
        }
        Err(bad(&format!("more bytes: {:?}", lossy(&self.buf))))
    }

    /// Takes the stream out again, with what was read ahead.
    pub fn into_parts(self) -> (S, Vec<u8>) {
        (self.io, self.buf)
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(at) = self.buf.windows(2).position(|w| w == b"\r\n") {
                let line: Vec<u8> = self.buf.drain(..at + 2).collect();
                return Ok(lossy(&line[..at]));
            }
            if self.fill().await? == 0 {
                return Err(eof("in a chunk"));
            }
        }
    }

    async fn fill(&mut self) -> io::Result<usize> {
        let mut chunk = [0u8; 16 * 1024];
        let read = tokio::time::timeout(READ_LIMIT, self.io.read(&mut chunk))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "nothing came"))??;
        self.buf.extend_from_slice(&chunk[..read]);
        Ok(read)
    }
}

fn parse_head(head: &[u8], head_only: bool) -> io::Result<H1Response> {
    let text = std::str::from_utf8(head).map_err(|_| bad("the head is not text"))?;
    let mut lines = text.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let rest = status_line
        .strip_prefix("HTTP/1.")
        .ok_or_else(|| bad(&format!("status line {status_line:?}")))?;
    let (minor, rest) = rest.split_once(' ').ok_or_else(|| bad(status_line))?;
    let status: u16 = rest
        .get(..3)
        .and_then(|s| s.parse().ok())
        .ok_or_else(|| bad(status_line))?;
    let headers = lines
        .map(|line| {
            let (name, value) = line.split_once(':').ok_or_else(|| bad(line))?;
            if name.is_empty() || name.contains([' ', '\t']) {
                return Err(bad(line));
            }
            Ok((name.to_owned(), value.trim().to_owned()))
        })
        .collect::<io::Result<Vec<_>>>()?;
    let mut response = H1Response {
        minor_version: minor.parse().map_err(|_| bad(status_line))?,
        status,
        headers,
        body: Vec::new(),
        framing: Framing::Empty,
    };
    response.framing = framing(&response, head_only)?;
    Ok(response)
}

fn framing(response: &H1Response, head_only: bool) -> io::Result<Framing> {
    let bodyless = head_only || response.status < 200 || matches!(response.status, 204 | 304);
    let chunked = response
        .header("transfer-encoding")
        .is_some_and(|v| v.eq_ignore_ascii_case("chunked"));
    let length = response.header("content-length");
    if chunked && length.is_some() {
        return Err(bad("both Transfer-Encoding and Content-Length"));
    }
    Ok(match length {
        _ if bodyless => Framing::Empty,
        _ if chunked => Framing::Chunked,
        Some(len) => Framing::Length(len.parse().map_err(|_| bad(len))?),
        None => Framing::Close,
    })
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn eof(context: &str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("end of file {context}"))
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed: {what}"))
}

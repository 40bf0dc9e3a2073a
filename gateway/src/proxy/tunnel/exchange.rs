//! The upgrade request and its response, on the wire.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use sluice_model::RequestView;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::super::ctx::MAX_INTERIM;
use super::super::heads::{rewritten_host, rewritten_target};
use crate::edge::ByteStream;
use crate::h1::{ChunkDecoder, ChunkLimits, Head};
use crate::request::{Forwarding, HeadMut, Routed, from_backend, strip_hop_by_hop, to_backend};

/// Fields of a response head that are parsed at most.
const MAX_FIELDS: usize = 128;

/// Bytes moved at once.
const BUFFER: usize = 16 * 1024;

/// A backend that answered.
pub(super) struct Opened {
    pub(super) backend: Box<dyn ByteStream>,
    pub(super) response: Response,
    /// What came after its head.
    pub(super) early: Vec<u8>,
}

/// Which side broke a response body off.
pub(super) enum Broke {
    Client,
    Backend,
}

/// Header fields in order, names in lower case.
#[derive(Debug, Clone, Default)]
pub(super) struct Fields(Vec<(String, Vec<u8>)>);

impl Fields {
    pub(super) fn of(head: &Head) -> Self {
        Self(
            head.fields()
                .map(|(n, v)| (n.to_ascii_lowercase(), v.to_vec()))
                .collect(),
        )
    }

    pub(super) fn value(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_slice())
    }

    pub(super) fn view<'f>(&'f self, head: &'f Head) -> View<'f> {
        let cookies = self.joined_with("cookie", b"; ");
        View {
            head,
            fields: self,
            cookies,
        }
    }

    fn joined_with(&self, name: &str, separator: &[u8]) -> Option<Vec<u8>> {
        let values: Vec<_> = self
            .0
            .iter()
            .filter(|(n, _)| n == name)
            .map(|(_, v)| v.as_slice())
            .collect();
        (!values.is_empty()).then(|| values.join(separator))
    }

    /// The request as the backend gets it.
    pub(super) fn to_backend(&self, head: &Head, routed: &Routed, forwarding: Forwarding<'_>) -> Vec<u8> {
        let mut fields = self.clone();
        strip_hop_by_hop(&mut fields);
        let host = rewritten_host(routed).map_or_else(|| forwarding.host.to_vec(), String::into_bytes);
        to_backend(&mut fields, forwarding, &routed.spec, routed.route());
        fields.set("host", &host);
        fields.set("connection", b"Upgrade");
        if let Some(upgrade) = head.offer() {
            fields.set("upgrade", upgrade.token.as_bytes());
        }
        let target = match head.query() {
            Some(query) => format!("{}?{query}", head.path()),
            None => head.path().to_owned(),
        };
        let rewritten = rewritten_target(&target, routed);
        let target = rewritten.as_deref().unwrap_or(&target);
        let mut out = format!("{} {target} HTTP/1.1\r\n", head.method()).into_bytes();
        fields.write(&mut out);
        out
    }

    fn write(&self, out: &mut Vec<u8>) {
        for (name, value) in &self.0 {
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"\r\n");
    }
}

impl HeadMut for Fields {
    fn get(&self, name: &str) -> Option<&[u8]> {
        self.value(name)
    }

    fn joined(&self, name: &str) -> Option<Vec<u8>> {
        self.joined_with(name, b", ")
    }

    fn set(&mut self, name: &str, value: &[u8]) {
        let fits = http::HeaderName::from_bytes(name.as_bytes()).is_ok()
            && http::HeaderValue::from_bytes(value).is_ok();
        if !fits {
            return;
        }
        match self.0.iter_mut().find(|(n, _)| n == name) {
            Some((_, slot)) => {
                *slot = value.to_vec();
                let first = self.0.iter().position(|(n, _)| n == name);
                let mut at = 0;
                self.0.retain(|(n, _)| {
                    let keep = n != name || Some(at) == first;
                    at += 1;
                    keep
                });
            }
            None => self.0.push((name.to_owned(), value.to_vec())),
        }
    }

    fn remove(&mut self, name: &str) {
        self.0.retain(|(n, _)| n != name);
    }

    fn names_with_prefix(&self, prefix: &str) -> Vec<String> {
        self.0
            .iter()
            .filter(|(n, _)| n.starts_with(prefix))
            .map(|(n, _)| n.clone())
            .collect()
    }
}

/// An upgrade request, to be looked at.
pub(super) struct View<'f> {
    head: &'f Head,
    fields: &'f Fields,
    cookies: Option<Vec<u8>>,
}

impl RequestView for View<'_> {
    fn method(&self) -> &str {
        self.head.method()
    }

    fn path(&self) -> &str {
        self.head.path()
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        if name == "cookie" {
            return self.cookies.as_deref();
        }
        self.fields.value(name)
    }
}

/// A response head.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) status: u16,
    phrase: String,
    fields: Fields,
}

impl Response {
    /// Adds a field beside those of the same name.
    pub(super) fn add(&mut self, name: &str, value: Vec<u8>) {
        self.fields.0.push((name.to_owned(), value));
    }

    /// The head as the client gets it.
    pub(super) fn to_client(&self, upgrade: Option<&str>) -> Vec<u8> {
        let mut fields = self.fields.clone();
        let spoken = fields.value("upgrade").map(<[u8]>::to_vec);
        from_backend(&mut fields);
        if self.status == 101 {
            fields.remove("content-length");
            fields.remove("transfer-encoding");
            fields.set("connection", b"Upgrade");
            if let Some(token) = spoken.as_deref().or_else(|| upgrade.map(str::as_bytes)) {
                fields.set("upgrade", token);
            }
        } else {
            fields.set("connection", b"close");
        }
        let mut out = format!("HTTP/1.1 {} {}\r\n", self.status, self.phrase).into_bytes();
        fields.write(&mut out);
        out
    }

    /// Whether nothing but the connection's end delimits its body.
    pub(super) fn ends_with_connection(&self, method: &str) -> bool {
        matches!(self.body(method), Ok(Body::UntilClose))
    }

    fn body(&self, method: &str) -> io::Result<Body> {
        if method == "HEAD" || matches!(self.status, 204 | 304) {
            return Ok(Body::Length(0));
        }
        if let Some(coding) = self.fields.joined("transfer-encoding") {
            let chunked =
                coding.eq_ignore_ascii_case(b"chunked") && self.fields.value("content-length").is_none();
            return if chunked {
                Ok(Body::Chunked)
            } else {
                Err(bad("the response's framing is ambiguous"))
            };
        }
        match self.fields.joined("content-length") {
            None => Ok(Body::UntilClose),
            Some(length) => {
                let text = std::str::from_utf8(&length)
                    .ok()
                    .filter(|t| t.bytes().all(|b| b.is_ascii_digit()));
                let length = text.and_then(|t| t.parse().ok());
                length
                    .map(Body::Length)
                    .ok_or_else(|| bad("the response's Content-Length is not a number"))
            }
        }
    }
}

enum Body {
    Length(u64),
    Chunked,
    UntilClose,
}

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Sends the request and reads the final response head, bounded by `max_head` bytes; interim
/// responses are skipped. Returns what came after the head, too.
///
/// # Errors
/// The connection broke, or what came is no response.
pub(super) async fn ask(
    backend: &mut Box<dyn ByteStream>,
    request: &[u8],
    max_head: usize,
) -> io::Result<(Response, Vec<u8>)> {
    backend.write_all(request).await?;
    backend.flush().await?;
    let mut buffer = Vec::with_capacity(2048);
    let mut interim = 0;
    loop {
        if let Some((response, used)) = parse(&buffer)? {
            buffer.drain(..used);
            if (100..200).contains(&response.status) && response.status != 101 {
                interim += 1;
                if interim > MAX_INTERIM {
                    return Err(bad("too many interim responses"));
                }
                continue;
            }
            return Ok((response, buffer));
        }
        if buffer.len() > max_head {
            return Err(bad("the response head is too large"));
        }
        if backend.read_buf(&mut buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn parse(buffer: &[u8]) -> io::Result<Option<(Response, usize)>> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let used = match response.parse(buffer) {
        Ok(httparse::Status::Complete(used)) => used,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(bad("what the backend sent is no HTTP response")),
    };
    let (Some(status), phrase) = (response.code, response.reason.unwrap_or_default().to_owned()) else {
        return Err(bad("what the backend sent has no status"));
    };
    let fields = response
        .headers
        .iter()
        .map(|f| (f.name.to_ascii_lowercase(), f.value.to_vec()))
        .collect();
    Ok(Some((
        Response {
            status,
            phrase,
            fields: Fields(fields),
        },
        used,
    )))
}

/// Passes on the body of a response that is no upgrade; `passed` hears of the bytes as they go.
///
/// # Errors
/// [`Broke`] when either side broke off.
pub(super) async fn relay_body(
    client: &mut Box<dyn ByteStream>,
    backend: &mut Box<dyn ByteStream>,
    response: &Response,
    early: Vec<u8>,
    method: &str,
    limits: ChunkLimits,
    mut passed: impl FnMut(u64),
) -> Result<(), Broke> {
    let mut body = response.body(method).map_err(|_| Broke::Backend)?;
    let mut chunks = ChunkDecoder::new(limits);
    let mut buffer = early;
    loop {
        let (take, done) = match &mut body {
            Body::Length(left) => {
                let take = buffer.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= take as u64;
                (take, *left == 0)
            }
            Body::Chunked => match chunks.advance(&buffer) {
                Ok(take) => (take, chunks.complete()),
                Err(_) => return Err(Broke::Backend),
            },
            Body::UntilClose => (buffer.len(), false),
        };
        if client.write_all(&buffer[..take]).await.is_err() || client.flush().await.is_err() {
            return Err(Broke::Client);
        }
        passed(take as u64);
        if done {
            return Ok(());
        }
        buffer.clear();
        buffer.reserve(BUFFER);
        match backend.read_buf(&mut buffer).await {
            Ok(0) if matches!(body, Body::UntilClose) => return Ok(()),
            Ok(0) | Err(_) => return Err(Broke::Backend),
            Ok(_) => {}
        }
    }
}

/// A connection with bytes that were read from it too early in front.
#[derive(Debug)]
pub(super) struct Replay {
    early: Vec<u8>,
    at: usize,
    io: Box<dyn ByteStream>,
}

impl Replay {
    pub(super) fn new(early: Vec<u8>, io: Box<dyn ByteStream>) -> Self {
        Self { early, at: 0, io }
    }
}

impl AsyncRead for Replay {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.at < self.early.len() {
            let take = (self.early.len() - self.at).min(buf.remaining());
            buf.put_slice(&self.early[self.at..self.at + take]);
            self.at += take;
            if self.at == self.early.len() {
                self.early = Vec::new();
                self.at = 0;
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Replay {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

//! What a judged head says.

use std::ops::{Deref, Range};

use bytes::{BufMut, Bytes, BytesMut};

use super::fault::HeadFault;
use super::judge::{judge, split_field};
use super::limits::HeadLimits;

/// The HTTP version of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// How a request's body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// After this many bytes.
    Length(u64),
    /// After the last chunk.
    Chunked,
}

impl Framing {
    /// Whether no body byte follows.
    pub fn is_empty(self) -> bool {
        matches!(self, Self::None | Self::Length(0))
    }
}

/// Another protocol that a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgrade {
    /// Whether it is a WebSocket handshake: GET and `websocket` alone.
    pub websocket: bool,
    /// What the Upgrade field says.
    pub token: Box<str>,
}

/// What a head says, as positions in its bytes. [`Head`] has the bytes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadInfo {
    /// The head's length, empty lines before it included.
    pub len: usize,
    /// Its version.
    pub version: Version,
    /// The normalised host; `None` only in HTTP/1.0.
    pub host: Option<Box<str>>,
    /// How the body ends.
    pub framing: Framing,
    /// Whether the client lets the connection serve another request.
    pub keep_alive: bool,
    /// Whether the client waits for 100 before it sends the body.
    pub expect_continue: bool,
    /// The protocol asked for: only if Connection nominates Upgrade, the version is 1.1 and there is
    /// no body. Else Upgrade is to be ignored and removed, as RFC 9110 allows.
    pub upgrade: Option<Upgrade>,
    /// Whether the target was a URL.
    pub absolute_form: bool,
    /// Whether the content is gRPC's (not gRPC-Web's).
    pub grpc: bool,
    pub(super) method: Range<usize>,
    pub(super) target: Range<usize>,
    /// The URL's authority when the target is one.
    pub(super) authority: Option<Range<usize>>,
    /// Empty when a URL has no path.
    pub(super) path: Range<usize>,
    pub(super) query: Option<Range<usize>>,
    /// The field lines with their ends, without the empty line.
    pub(super) fields: Range<usize>,
    pub(super) host_field: bool,
}

impl HeadInfo {
    /// The method, as it was sent. `head` is the bytes that were judged, here and below.
    pub fn method<'h>(&self, head: &'h [u8]) -> &'h str {
        text(head, &self.method)
    }

    /// The request target, as it was sent.
    pub fn target<'h>(&self, head: &'h [u8]) -> &'h str {
        text(head, &self.target)
    }

    /// The path without the query: `*` for OPTIONS of the whole server, else it begins with `/`.
    pub fn path<'h>(&self, head: &'h [u8]) -> &'h str {
        match text(head, &self.path) {
            // RFC 9112, 3.2.4: OPTIONS of a URL with neither path nor query means the server.
            "" if self.query.is_none() && self.method(head) == "OPTIONS" => "*",
            "" => "/",
            path => path,
        }
    }

    /// What follows the `?`, if there is one.
    pub fn query<'h>(&self, head: &'h [u8]) -> Option<&'h str> {
        self.query.as_ref().map(|range| text(head, range))
    }

    /// All fields in their order, names as they were sent, values without surrounding whitespace.
    pub fn fields<'h>(&self, head: &'h [u8]) -> Fields<'h> {
        Fields(head.get(self.fields.clone()).unwrap_or_default())
    }
}

/// Judged positions hold ASCII only.
fn text<'h>(head: &'h [u8], range: &Range<usize>) -> &'h str {
    head.get(range.clone())
        .and_then(|bytes| std::str::from_utf8(bytes).ok())
        .unwrap_or_default()
}

/// The fields of a judged head. Allocates nothing.
#[derive(Debug, Clone)]
pub struct Fields<'h>(&'h [u8]);

impl<'h> Iterator for Fields<'h> {
    type Item = (&'h str, &'h [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let end = self.0.windows(2).position(|pair| pair == b"\r\n")?;
        let (line, rest) = self.0.split_at(end);
        self.0 = &rest[2..];
        let (name, value) = split_field(line).ok()?;
        Some((std::str::from_utf8(name).ok()?, value))
    }
}

/// A judged head with its bytes. Reads like a [`HeadInfo`].
#[derive(Debug, Clone)]
pub struct Head {
    bytes: Bytes,
    info: HeadInfo,
}

impl Head {
    /// Judges a whole head.
    ///
    /// # Errors
    /// [`HeadFault`] when it is refused.
    pub fn judge(bytes: Bytes, limits: &HeadLimits) -> Result<Self, HeadFault> {
        let info = judge(&bytes, limits)?;
        Ok(Self { bytes, info })
    }

    /// The bytes that were judged.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The method, as it was sent.
    pub fn method(&self) -> &str {
        self.info.method(&self.bytes)
    }

    /// The request target, as it was sent.
    pub fn target(&self) -> &str {
        self.info.target(&self.bytes)
    }

    /// The path without the query: `*` for OPTIONS of the whole server, else it begins with `/`.
    pub fn path(&self) -> &str {
        self.info.path(&self.bytes)
    }

    /// What follows the `?`, if there is one.
    pub fn query(&self) -> Option<&str> {
        self.info.query(&self.bytes)
    }

    /// All fields in their order, names as they were sent, values without surrounding whitespace.
    pub fn fields(&self) -> Fields<'_> {
        self.info.fields(&self.bytes)
    }

    /// The first value of a field; `name` in any case.
    pub fn field(&self, name: &str) -> Option<&[u8]> {
        self.fields()
            .find(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// What the next parser reads: the same head without empty lines before it, in origin-form.
    ///
    /// A URL as target is turned into its path here because the next parser compares authorities
    /// byte by byte, and because an origin server expects a path. Nothing is lost: it was judged
    /// equal to Host, and becomes Host where an HTTP/1.0 client sent none.
    pub(super) fn replay(&self) -> Bytes {
        let info = &self.info;
        if !info.absolute_form {
            return self.bytes.slice(info.method.start..info.len);
        }
        let mut out = BytesMut::with_capacity(info.len);
        out.put_slice(&self.bytes[info.method.clone()]);
        out.put_u8(b' ');
        out.put_slice(self.path().as_bytes());
        if let Some(query) = self.query() {
            out.put_u8(b'?');
            out.put_slice(query.as_bytes());
        }
        out.put_slice(&self.bytes[info.target.end..info.fields.start]);
        if let (false, Some(authority)) = (info.host_field, &info.authority) {
            out.put_slice(b"Host: ");
            out.put_slice(&self.bytes[authority.clone()]);
            out.put_slice(b"\r\n");
        }
        out.put_slice(&self.bytes[info.fields.start..info.len]);
        out.freeze()
    }
}

impl Deref for Head {
    type Target = HeadInfo;

    fn deref(&self) -> &HeadInfo {
        &self.info
    }
}

//! A parsed request head.

use sluice_model::normalize_host;

use super::syntax::{ConnectionOptions, FieldLines, Span};

/// The HTTP version of a message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    #[default]
    Http11,
}

/// How a request's body ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RequestFraming {
    /// No body.
    #[default]
    None,
    /// After this many bytes.
    Length(u64),
    /// After the last chunk.
    Chunked,
}

impl RequestFraming {
    /// Whether no body byte follows.
    pub fn is_empty(self) -> bool {
        matches!(self, Self::None | Self::Length(0))
    }
}

/// An upgrade to another protocol that a request offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upgrade {
    /// Whether the request is a WebSocket handshake: GET, and `websocket` alone.
    pub websocket: bool,
    /// The value of the Upgrade field, a list of protocols; of several fields the first one counts.
    pub token: Span,
}

/// A parsed request head, as positions in its bytes. [`RequestHead`] joins it with the bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeadInfo {
    /// The head's length, empty lines before it included.
    pub len: usize,
    /// How the body ends.
    pub framing: RequestFraming,
    /// The HTTP version.
    pub version: Version,
    /// Whether the client allows another request on the connection (keep-alive).
    pub keep_alive: bool,
    /// Whether the client waits for 100 Continue before it sends the body.
    pub expect_continue: bool,
    /// Whether the target was a URL (absolute-form).
    pub absolute_form: bool,
    /// Whether the content is gRPC's (not gRPC-Web's).
    pub grpc: bool,
    /// Whether the client accepts trailers: TE names them, and the version has them (RFC 9110, 6.5.1).
    pub te_trailers: bool,
    /// Whether Connection nominates other fields, besides `close`, `keep-alive`, `upgrade` and `te`:
    /// [`RequestHead::connection_options`] lists them.
    pub nominates_others: bool,
    /// The number of Cookie fields; several have to be joined with `; ` for a backend that speaks HTTP/1.
    pub cookie_fields: u32,
    /// The host as it was sent, its port included: the target's when that is a URL, else the Host
    /// field's. `None` only in HTTP/1.0.
    pub host: Option<Span>,
    /// The offered upgrade, only if Connection nominates Upgrade and the version is 1.1. Where
    /// [`framing`](Self::framing) has a body, the offer has to be ignored, as RFC 9110, 7.8 allows: it would
    /// be unknown which protocol the body's bytes belong to.
    pub upgrade: Option<Upgrade>,
    /// The first User-Agent.
    pub user_agent: Option<Span>,
    /// The first Accept.
    pub accept: Option<Span>,
    /// The first Content-Type.
    pub content_type: Option<Span>,
    /// The first X-Request-Id.
    pub x_request_id: Option<Span>,
    pub(super) method_at: u32,
    pub(super) target_at: u32,
    /// Start of the path: after the authority when the target is a URL. Empty when a URL has no path.
    pub(super) path_at: u32,
    /// End of the path: at the `?`, or at the target's end.
    pub(super) path_end: u32,
    pub(super) target_end: u32,
    pub(super) fields_at: u32,
    /// Whether there was a Host field.
    pub(super) host_field: bool,
    /// The length of the prefix of `host` that is its normal form; 0 when `host` has to be normalised.
    pub(super) plain_host: u8,
}

/// A validated request head with its bytes.
#[derive(Debug, Clone, Copy)]
pub struct RequestHead<'b> {
    /// The validated bytes, from the head's beginning.
    pub bytes: &'b [u8],
    /// The parsed head.
    pub info: &'b HeadInfo,
}

impl<'b> RequestHead<'b> {
    /// Joins a parsed head with its bytes. `info` must be the result for these bytes; for others, only the
    /// absence of panics is guaranteed.
    pub fn new(bytes: &'b [u8], info: &'b HeadInfo) -> Self {
        Self { bytes, info }
    }

    /// The method, as it was sent.
    pub fn method(&self) -> &'b str {
        self.text(self.info.method_at, self.info.target_at.saturating_sub(1))
    }

    /// The request target, as it was sent.
    pub fn target(&self) -> &'b str {
        self.text(self.info.target_at, self.info.target_end)
    }

    /// The path without the query: `*` for OPTIONS of the whole server, otherwise it begins with `/`.
    pub fn path(&self) -> &'b str {
        match self.text(self.info.path_at, self.info.path_end) {
            // RFC 9112, 3.2.4: OPTIONS of a URL with neither path nor query means the server.
            "" if self.query().is_none() && self.method() == "OPTIONS" => "*",
            "" => "/",
            path => path,
        }
    }

    /// The query without its `?`, if there is one.
    pub fn query(&self) -> Option<&'b str> {
        let HeadInfo {
            path_end, target_end, ..
        } = *self.info;
        (path_end < target_end).then(|| self.text(path_end + 1, target_end))
    }

    /// Path and query in one piece, to be forwarded when neither is rewritten; `None` when the target is a
    /// URL without a path.
    pub fn path_and_query(&self) -> Option<&'b str> {
        let HeadInfo {
            path_at,
            path_end,
            target_end,
            ..
        } = *self.info;
        (path_at < path_end).then(|| self.text(path_at, target_end))
    }

    /// The host as it was sent, its port included.
    pub fn host(&self) -> Option<&'b [u8]> {
        self.info.host.map(|span| span.of(self.bytes))
    }

    /// The normalised host: lower case, without port and trailing dot. `buf` is used only when the client
    /// sent another form.
    pub fn host_name<'a>(&self, buf: &'a mut [u8; 256]) -> Option<&'a str>
    where
        'b: 'a,
    {
        let raw = self.host()?;
        match self.info.plain_host {
            // Cannot fail: the host was validated.
            0 => normalize_host(raw, buf).ok(),
            len => raw.get(..usize::from(len)).map(ascii),
        }
    }

    /// The authority, when the target is a URL.
    pub fn authority(&self) -> Option<&'b [u8]> {
        self.info.absolute_form.then(|| self.host()).flatten()
    }

    /// Whether the client sent a Host field.
    pub fn has_host_field(&self) -> bool {
        self.info.host_field
    }

    /// All fields in their order, names as they were sent, values without surrounding whitespace.
    pub fn fields(&self) -> FieldLines<'b> {
        let end = self.info.len.saturating_sub(2);
        FieldLines::over(
            self.bytes
                .get(self.info.fields_at as usize..end)
                .unwrap_or_default(),
        )
    }

    /// The first value of a field; `name` in any case.
    pub fn field(&self, name: &str) -> Option<&'b [u8]> {
        self.fields().value_of(name.as_bytes())
    }

    /// The options of the Connection fields.
    pub fn connection_options(&self) -> ConnectionOptions<'b> {
        ConnectionOptions::of(self.fields())
    }

    /// The bytes of a span.
    pub fn slice(&self, span: Span) -> &'b [u8] {
        span.of(self.bytes)
    }

    fn text(&self, from: u32, to: u32) -> &'b str {
        self.bytes.get(from as usize..to as usize).map_or("", ascii)
    }
}

/// The text of a validated part, which is ASCII.
fn ascii(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

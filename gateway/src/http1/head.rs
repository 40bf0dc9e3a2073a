//! What a judged request head says.

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
    /// There is none.
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

/// Another protocol that a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upgrade {
    /// Whether it is a WebSocket handshake: GET and `websocket` alone.
    pub websocket: bool,
    /// What the Upgrade field says: protocols, of which the first field's count.
    pub token: Span,
}

/// What a request head says, as positions in its bytes. [`RequestHead`] reads them with the bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeadInfo {
    /// The head's length, empty lines before it included.
    pub len: usize,
    /// How the body ends.
    pub framing: RequestFraming,
    /// Its version.
    pub version: Version,
    /// Whether the client lets the connection serve another request.
    pub keep_alive: bool,
    /// Whether the client waits for 100 before it sends the body.
    pub expect_continue: bool,
    /// Whether the target was a URL.
    pub absolute_form: bool,
    /// Whether the content is gRPC's (not gRPC-Web's).
    pub grpc: bool,
    /// Whether the client takes trailers: TE names them, and the version has them (RFC 9110, 6.5.1).
    pub te_trailers: bool,
    /// Whether Connection names fields of its own, beside `close`, `keep-alive`, `upgrade` and `te`:
    /// [`RequestHead::connection_options`] has them.
    pub nominates_others: bool,
    /// Cookie fields; more than one are to be joined with `; ` for one that speaks HTTP/1.
    pub cookie_fields: u32,
    /// The host as it was sent, its port included: the target's when that is a URL, else the Host
    /// field's. `None` only in HTTP/1.0.
    pub host: Option<Span>,
    /// The protocol asked for: only if Connection nominates Upgrade and the version is 1.1. Where
    /// [`framing`](Self::framing) says that a body follows, it is to be passed over, as RFC 9110, 7.8
    /// allows: there is no saying which protocol the body's bytes belong to.
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
    /// Where the path begins: after the authority when the target is a URL. Empty when a URL has none.
    pub(super) path_at: u32,
    /// Where it ends: at the `?`, or where the target ends.
    pub(super) path_end: u32,
    pub(super) target_end: u32,
    pub(super) fields_at: u32,
    /// Whether there was a Host field.
    pub(super) host_field: bool,
    /// How many bytes of `host` are its normal form; 0 when it must be normalised.
    pub(super) plain_host: u8,
}

/// A judged request head with its bytes.
#[derive(Debug, Clone, Copy)]
pub struct RequestHead<'b> {
    /// The bytes that were judged, from their beginning.
    pub bytes: &'b [u8],
    /// What they say.
    pub info: &'b HeadInfo,
}

impl<'b> RequestHead<'b> {
    /// Both together. `info` must have come from these bytes; from others, nothing is promised but the
    /// absence of panics.
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

    /// The path without the query: `*` for OPTIONS of the whole server, else it begins with `/`.
    pub fn path(&self) -> &'b str {
        match self.text(self.info.path_at, self.info.path_end) {
            // RFC 9112, 3.2.4: OPTIONS of a URL with neither path nor query means the server.
            "" if self.query().is_none() && self.method() == "OPTIONS" => "*",
            "" => "/",
            path => path,
        }
    }

    /// What follows the `?`, if there is one.
    pub fn query(&self) -> Option<&'b str> {
        let HeadInfo {
            path_end, target_end, ..
        } = *self.info;
        (path_end < target_end).then(|| self.text(path_end + 1, target_end))
    }

    /// Path and query as they lie together, to be passed on when neither is rewritten; `None` when
    /// they do not, because the target is a URL without a path.
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

    /// The normalised host: lower case, without port and trailing dot. `buf` is used only where it was
    /// not sent like that.
    pub fn host_name<'a>(&self, buf: &'a mut [u8; 256]) -> Option<&'a str>
    where
        'b: 'a,
    {
        let raw = self.host()?;
        match self.info.plain_host {
            // It was normalised when it was judged.
            0 => normalize_host(raw, buf).ok(),
            len => raw.get(..usize::from(len)).map(ascii),
        }
    }

    /// The part of a URL as target that names the server.
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

    /// What Connection names.
    pub fn connection_options(&self) -> ConnectionOptions<'b> {
        ConnectionOptions::of(self.fields())
    }

    /// A span's bytes.
    pub fn slice(&self, span: Span) -> &'b [u8] {
        span.of(self.bytes)
    }

    fn text(&self, from: u32, to: u32) -> &'b str {
        self.bytes.get(from as usize..to as usize).map_or("", ascii)
    }
}

/// Judged positions hold ASCII only.
fn ascii(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

//! Header rewriting: the fields forwarded to the backend, and those forwarded to the client.
//!
//! Pure and protocol-neutral: one pass over the fields of a head ([`Fields`]), each forwarded to a
//! [`FieldSink`] or dropped, then the fields that the gateway sets. Nothing is copied in between.

use std::fmt::Write as _;
use std::net::IpAddr;

use sluice_model::{RevisionId, RevisionSpec, Route};

use super::network_probe::{HASH_OVERRIDE, NETWORK_HASH};
use super::trace::OutgoingTrace;
use crate::traces::{TRACEPARENT, TRACESTATE};

/// The fields of a message head, in order.
pub trait Fields {
    /// Calls `each` with the name and the value of every field, names as the head has them.
    fn each<'h>(&'h self, each: impl FnMut(&'h [u8], &'h [u8]));

    /// The first value of a field; `name` in lower case.
    fn first(&self, name: &str) -> Option<&[u8]>;
}

/// The output of a head's fields.
pub trait FieldSink {
    /// Appends a field. Name and value were validated, or are the gateway's own.
    fn field(&mut self, name: &[u8], value: &[u8]);
}

/// Fields that carry the routing decision to the backend; a client's own are dropped.
const DECISION_FIELDS: [&str; 4] = [
    "knative-serving-revision",
    "knative-serving-namespace",
    "knative-serving-tag",
    "knative-serving-default-route",
];

/// Fields by which Knative's components tell each other how a request travels; a client's own are dropped.
const INTERNAL_FIELDS: [&str; 4] = [
    "k-proxy-request",
    "k-original-host",
    "k-passthrough-lb",
    "k-kubelet-probe",
];

/// Request field that asks for `Server-Timing`, the phases until the response head; not forwarded.
pub(super) const TIMING_HEADER: &str = "x-sluice-timing";

/// Hop counter for loop detection: the passes of a request through gateways of this kind.
pub const HOPS_HEADER: &str = "x-sluice-hops";

/// Forwarding fields besides `x-forwarded-*`.
const FORWARDING_FIELDS: [&str; 2] = ["forwarded", "x-real-ip"];

/// Hop-by-hop fields: RFC 9110 7.6.1 and their relatives.
const HOP_BY_HOP: [&str; 6] = [
    "connection",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "upgrade",
];

/// Fields that frame or address a message: the writer of the message sets them.
const FRAMING: [&str; 3] = ["host", "content-length", "transfer-encoding"];

/// The longest request id accepted from a client, in bytes.
const MAX_REQUEST_ID: usize = 128;

/// Most names in `Connection` fields that count. Clients nominate a few; without a bound every field would be
/// compared with thousands of names.
const MAX_NOMINATIONS: usize = 32;

/// The content of the forwarding headers of a request.
#[derive(Debug, Clone, Copy)]
pub struct Forwarding<'a> {
    /// The client's address, after PROXY.
    pub client: IpAddr,
    /// Whether the client is a trusted proxy, whose own forwarding headers count.
    pub trusted: bool,
    /// Whether the client connected by TLS.
    pub tls: bool,
    /// The Host the client sent.
    pub host: &'a [u8],
    /// The id of the request; see [`RequestId`].
    pub request_id: &'a str,
    /// The number of passes through gateways of this kind, this pass included.
    pub hops: u32,
}

/// The edits of a request head for its backend.
#[derive(Debug, Clone, Copy)]
pub struct RequestEdit<'a> {
    /// The forwarding headers.
    pub from: Forwarding<'a>,
    /// The revision chosen.
    pub revision: &'a RevisionSpec,
    /// The route that matched.
    pub route: Option<&'a Route>,
    /// The headers of the chosen target of the split; these come after those of the route.
    pub target_headers: &'a [(String, String)],
    /// The version of the Ingress that the route was made of, for a service that was made of one. Such a service has
    /// the fields of the routing decision in the headers of its targets.
    pub network_hash: Option<&'a str>,
    /// The request came to an activator: what an ingress before it says of its own decision goes on to queue-proxy.
    pub activator: bool,
    /// The request is counted by this gateway for the cluster's autoscaler, so that queue-proxy counts it as proxied.
    pub counted: bool,
    /// The names in the request's `Connection` fields.
    pub nominated: Nominated<'a>,
    /// Whether crumbs of `Cookie` are joined into one field, as HTTP/2 may split them and HTTP/1
    /// must not (RFC 9113 8.2.3).
    pub join_cookies: bool,
    /// The trace fields; `None` leaves the client's as they are.
    pub trace: Option<OutgoingTrace>,
    /// Whether the response has to be whole and without a coding, because its head was sent before it came: fields
    /// that ask for another response are dropped.
    pub plain: bool,
}

/// Fields that ask for a response with a coding, for a part, or for none at all.
const NOT_PLAIN: [&str; 5] = [
    "accept-encoding",
    "range",
    "if-range",
    "if-none-match",
    "if-modified-since",
];

/// The names that the `Connection` fields of a head nominate (RFC 9110 7.6.1).
#[derive(Debug, Clone, Copy, Default)]
pub struct Nominated<'h> {
    names: [&'h [u8]; MAX_NOMINATIONS],
    len: usize,
}

impl<'h> Nominated<'h> {
    /// Collects the nominated names of a head.
    pub fn of(head: &'h impl Fields) -> Self {
        let mut all = Self::default();
        head.each(|name, value| {
            if name.eq_ignore_ascii_case(b"connection") {
                all.add(value);
            }
        });
        all
    }

    fn add(&mut self, value: &'h [u8]) {
        let names = value.split(|&b| b == b',').map(<[u8]>::trim_ascii);
        for name in names.filter(|name| !name.is_empty()) {
            if let Some(place) = self.names.get_mut(self.len) {
                *place = name;
                self.len += 1;
            }
        }
    }

    fn has(&self, name: &[u8]) -> bool {
        self.names[..self.len]
            .iter()
            .any(|n| n.eq_ignore_ascii_case(name))
    }
}

fn is_any(name: &[u8], of: &[&str]) -> bool {
    of.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
}

fn starts_with(name: &[u8], prefix: &str) -> bool {
    name.get(..prefix.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
}

/// Forwards a request's fields to the backend. The caller writes Host and framing, and `Upgrade` where an
/// offer is forwarded.
pub fn request_fields(head: &impl Fields, edit: &RequestEdit<'_>, out: &mut impl FieldSink) {
    let trusted = edit.from.trusted;
    let (mut proto, mut forwarded_host) = (false, false);
    let mut chain = Joined::new(b", ");
    let mut cookies = Joined::new(b"; ");
    head.each(|name, value| {
        if is_edited(name, edit) {
            return;
        }
        if starts_with(name, "x-forwarded-") {
            if !trusted {
                return;
            }
            if name.eq_ignore_ascii_case(b"x-forwarded-for") {
                return chain.add(value);
            }
            proto |= name.eq_ignore_ascii_case(b"x-forwarded-proto");
            forwarded_host |= name.eq_ignore_ascii_case(b"x-forwarded-host");
        } else if let Some(hash) = edit.network_hash
            && value == HASH_OVERRIDE
            && name.eq_ignore_ascii_case(NETWORK_HASH.as_bytes())
        {
            return out.field(name, hash.as_bytes());
        } else if edit.join_cookies && name.eq_ignore_ascii_case(b"cookie") {
            return cookies.add(value);
        }
        out.field(name, value);
    });
    cookies.write(b"cookie", out);
    let set = |out: &mut _, name: &str, value: &[u8]| {
        if !is_configured(name.as_bytes(), edit) {
            FieldSink::field(out, name.as_bytes(), value);
        }
    };
    let mut client = ShortText::new();
    let _ = write!(client, "{}", edit.from.client);
    chain.add(client.as_bytes());
    if !is_configured(b"x-forwarded-for", edit) {
        chain.write(b"x-forwarded-for", out);
    }
    if !proto {
        let scheme: &[u8] = if edit.from.tls { b"https" } else { b"http" };
        set(out, "x-forwarded-proto", scheme);
    }
    if !forwarded_host {
        set(out, "x-forwarded-host", edit.from.host);
    }
    set(out, "x-request-id", edit.from.request_id.as_bytes());
    let mut hops = ShortText::new();
    let _ = write!(hops, "{}", edit.from.hops);
    out.field(HOPS_HEADER.as_bytes(), hops.as_bytes());
    if let Some(trace) = &edit.trace {
        set(out, TRACEPARENT, &trace.traceparent);
    }
    let of_target = edit.target_headers.iter().map(|(name, value)| (name, value));
    if let Some(route) = edit.route {
        for (name, value) in &*route.append_headers {
            let later = edit.revision.request_headers.iter().chain(of_target.clone());
            if is_settable(name.as_bytes(), edit)
                && !later.map(|(n, _)| n).any(|n| n.eq_ignore_ascii_case(name))
            {
                out.field(name.as_bytes(), value.as_bytes());
            }
        }
    }
    for (name, value) in of_target.chain(&edit.revision.request_headers) {
        if is_settable(name.as_bytes(), edit) {
            out.field(name.as_bytes(), value.as_bytes());
        }
    }
    if edit.counted {
        out.field(b"k-proxy-request", b"activator");
    }
    if edit.network_hash.is_some() || edit.activator {
        return;
    }
    let revision: &RevisionId = &edit.revision.id;
    out.field(b"knative-serving-revision", revision.name().as_bytes());
    out.field(b"knative-serving-namespace", revision.namespace().as_bytes());
}

/// Whether the gateway drops a client's field, or sets the field itself.
fn is_edited(name: &[u8], edit: &RequestEdit<'_>) -> bool {
    // By length first: most fields match none of the names.
    let known = match name.len() {
        2 | 4 | 7 | 9 | 10 | 14 | 16..=19 => {
            is_any(name, &HOP_BY_HOP)
                || is_any(name, &FRAMING)
                || is_any(
                    name,
                    &[
                        "trailer",
                        "proxy-authenticate",
                        "proxy-authorization",
                        "x-real-ip",
                    ],
                ) && !(edit.from.trusted && name.eq_ignore_ascii_case(b"x-real-ip"))
        }
        _ => false,
    };
    known
        || starts_with(name, "knative-serving-") && is_any(name, decision_fields(edit))
        || starts_with(name, "k-") && is_internal(name, edit)
        || is_any(name, &[TIMING_HEADER, HOPS_HEADER, "x-request-id"])
        || !edit.from.trusted && is_any(name, &FORWARDING_FIELDS)
        || edit.trace.as_ref().is_some_and(|trace| is_replaced(name, trace))
        || edit.nominated.len > 0 && edit.nominated.has(name) && !is_protected(name)
        || edit.plain && is_any(name, &NOT_PLAIN)
        || is_configured(name, edit)
}

/// The fields of a routing decision that are dropped: of an ingress before an activator those of the revision alone.
fn decision_fields(edit: &RequestEdit<'_>) -> &'static [&'static str] {
    match edit.activator {
        false => &DECISION_FIELDS,
        true => &DECISION_FIELDS[..2],
    }
}

/// Whether a field by which Knative's components tell each other something is dropped. An activator passes the original
/// host on, which queue-proxy restores, and drops the version of a route, which only a probe has.
fn is_internal(name: &[u8], edit: &RequestEdit<'_>) -> bool {
    match edit.activator {
        false => is_any(name, &INTERNAL_FIELDS),
        true => {
            let passed = is_any(name, &["k-original-host"]);
            !passed && (is_any(name, &INTERNAL_FIELDS) || is_any(name, &[NETWORK_HASH]))
        }
    }
}

/// Whether a client's trace field is dropped, because the gateway's replaces it or because it belongs to no valid trace.
fn is_replaced(name: &[u8], trace: &OutgoingTrace) -> bool {
    is_any(name, &[TRACEPARENT]) || !trace.keeps_state && is_any(name, &[TRACESTATE])
}

/// Fields that a client's `Connection` cannot remove: the gateway adds them or relies on them.
fn is_protected(name: &[u8]) -> bool {
    is_any(
        name,
        &[
            "host",
            "content-length",
            "transfer-encoding",
            "authorization",
            "cookie",
        ],
    ) || starts_with(name, "x-forwarded-")
        || is_any(name, &FORWARDING_FIELDS)
}

/// Whether a configured field is appended: the writer of a message sets the fields that frame and address it,
/// and no file sets the fields of the routing decision.
fn is_settable(name: &[u8], edit: &RequestEdit<'_>) -> bool {
    let decides = edit.network_hash.is_none() && is_any(name, &DECISION_FIELDS[..2]);
    !is_any(name, &FRAMING) && !is_any(name, &HOP_BY_HOP) && !decides
}

/// Whether the route, the target or the revision configures this field.
fn is_configured(name: &[u8], edit: &RequestEdit<'_>) -> bool {
    let is_it = |n: &String| n.as_bytes().eq_ignore_ascii_case(name);
    let has_it = |headers: &[(String, String)]| headers.iter().any(|(n, _)| is_it(n));
    edit.route.is_some_and(|route| has_it(&route.append_headers))
        || edit.revision.request_headers.keys().any(is_it)
        || has_it(edit.target_headers)
}

/// Forwards a response's fields to the client. The caller writes framing. Returns whether the response has a
/// `Date`.
pub fn response_fields(head: &impl Fields, out: &mut impl FieldSink) -> bool {
    let nominated = Nominated::of(head);
    let mut dated = false;
    head.each(|name, value| {
        let nominated = nominated.len > 0
            && nominated.has(name)
            // Nominating `Set-Cookie` is an attack or a mistake.
            && !name.eq_ignore_ascii_case(b"set-cookie");
        if nominated
            || is_any(name, &HOP_BY_HOP)
            || is_any(name, &FRAMING[1..])
            || name.eq_ignore_ascii_case(b"x-sluice-reason")
        {
            return;
        }
        dated |= name.eq_ignore_ascii_case(b"date");
        out.field(name, value);
    });
    dated
}

/// Whether a trailer field may be forwarded: not where the field frames, routes, authenticates, conditions or
/// describes the content (RFC 9110 6.5.1), is a cookie, or is the gateway's to set.
pub fn may_be_trailer(name: &[u8]) -> bool {
    const NEVER: [&str; 38] = [
        "accept-encoding",
        "age",
        "authorization",
        "cache-control",
        "content-encoding",
        "content-length",
        "content-range",
        "content-type",
        "cookie",
        "date",
        "expect",
        "expires",
        "forwarded",
        "host",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "location",
        "max-forwards",
        "pragma",
        "proxy-authenticate",
        "proxy-authorization",
        "range",
        "retry-after",
        "set-cookie",
        "trailer",
        "transfer-encoding",
        "vary",
        "warning",
        "www-authenticate",
        "x-real-ip",
        "x-request-id",
        "x-sluice-hops",
        "x-sluice-reason",
        "x-sluice-timing",
        "server-timing",
    ];
    !is_any(name, &NEVER)
        && !is_any(name, &HOP_BY_HOP)
        && !starts_with(name, "x-forwarded-")
        && !starts_with(name, "knative-serving-")
}

/// Joins values into one field, without an allocation for a single value.
struct Joined<'v> {
    separator: &'static [u8],
    first: Option<&'v [u8]>,
    all: Vec<u8>,
}

impl<'v> Joined<'v> {
    fn new(separator: &'static [u8]) -> Self {
        Self {
            separator,
            first: None,
            all: Vec::new(),
        }
    }

    fn add(&mut self, value: &'v [u8]) {
        let Some(first) = self.first else {
            self.first = Some(value);
            return;
        };
        if self.all.is_empty() {
            self.all.extend_from_slice(first);
        }
        self.all.extend_from_slice(self.separator);
        self.all.extend_from_slice(value);
    }

    fn write(&self, name: &[u8], out: &mut impl FieldSink) {
        match self.first {
            Some(_) if !self.all.is_empty() => out.field(name, &self.all),
            Some(first) => out.field(name, first),
            None => {}
        }
    }
}

/// A text buffer on the stack, long enough for an address or a number.
struct ShortText {
    bytes: [u8; 48],
    len: usize,
}

impl ShortText {
    fn new() -> Self {
        Self {
            bytes: [0; 48],
            len: 0,
        }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl std::fmt::Write for ShortText {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.len + text.len();
        let place = self.bytes.get_mut(self.len..end).ok_or(std::fmt::Error)?;
        place.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// The id of a request: the client's where it is valid, otherwise 32 hexadecimal digits.
#[derive(Debug, Clone)]
pub enum RequestId {
    /// None yet.
    None,
    /// Generated by the gateway.
    Made([u8; 32]),
    /// Sent by the client.
    Sent(Box<str>),
}

impl RequestId {
    /// Accepts the client's id if it is valid, otherwise renders `random`.
    pub fn of(sent: Option<&[u8]>, random: impl FnOnce() -> u128) -> Self {
        let fit = sent
            .filter(|id| !id.is_empty() && id.len() <= MAX_REQUEST_ID && id.iter().all(u8::is_ascii_graphic));
        if let Some(id) = fit.and_then(|id| std::str::from_utf8(id).ok()) {
            return Self::Sent(id.into());
        }
        let mut random = random();
        let mut digits = [0; 32];
        for digit in digits.iter_mut().rev() {
            *digit = b"0123456789abcdef"[(random & 15) as usize];
            random >>= 4;
        }
        Self::Made(digits)
    }

    /// The id as text; empty when there is none yet.
    pub fn as_str(&self) -> &str {
        match self {
            Self::None => "",
            Self::Made(digits) => std::str::from_utf8(digits).unwrap_or_default(),
            Self::Sent(id) => id,
        }
    }
}

/// Parses a [`HOPS_HEADER`]: the passes so far; a malformed value counts as 0.
pub fn hops(value: Option<&[u8]>) -> u32 {
    value
        .filter(|v| !v.is_empty() && v.len() <= 9 && v.iter().all(u8::is_ascii_digit))
        .and_then(|v| std::str::from_utf8(v).ok()?.parse().ok())
        .unwrap_or(0)
}

/// Finds the value of a cookie in `Cookie` fields joined by `; `.
pub fn cookie<'v>(header: &'v [u8], name: &str) -> Option<&'v [u8]> {
    header.split(|&b| b == b';').find_map(|pair| {
        let pair = pair.trim_ascii();
        let eq = pair.iter().position(|&b| b == b'=')?;
        (&pair[..eq] == name.as_bytes()).then(|| &pair[eq + 1..])
    })
}

/// Parses a `grpc-timeout` value: up to eight digits and a unit.
pub fn grpc_timeout(value: &[u8]) -> Option<std::time::Duration> {
    use std::time::Duration;
    let (unit, digits) = value.split_last()?;
    // Digits only: `parse` accepts a sign.
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let n: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(n * 3600),
        b'M' => Duration::from_secs(n * 60),
        b'S' => Duration::from_secs(n),
        b'm' => Duration::from_millis(n),
        b'u' => Duration::from_micros(n),
        b'n' => Duration::from_nanos(n),
        _ => return None,
    })
}

#[cfg(test)]
#[path = "headers_tests.rs"]
mod tests;

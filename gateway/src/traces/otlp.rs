//! The spans of a finished request as OTLP messages (opentelemetry-proto 1.x, `trace.proto`), with the attributes of the HTTP
//! semantic conventions.
//!
//! Encoded at the request's end, on its thread: what waits for its POST is bytes, whose number is known. `opentelemetry-proto` decodes
//! them in the tests.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::{Duration, Instant, UNIX_EPOCH};

use sluice_model::EndpointAddr;

use super::context::{SpanId, TraceContext};
use super::protobuf::{Value, bytes, fields, fixed32, fixed64, foreign_text, message, uint};
use super::request_trace::{Attempt, RequestTrace, Wait};
use crate::observe::{Milestones, Phases, RequestProtocol, RequestRecord};

/// Most bytes of a path, of a `User-Agent`, of a `tracestate`, and of other texts that somebody else chose. Larger ones are cut off.
const MAX_PATH: usize = 1024;
const MAX_USER_AGENT: usize = 512;
const MAX_STATE: usize = 512;
const MAX_TEXT: usize = 256;

/// Numbers of fields, as `trace.proto`, `common.proto` and `resource.proto` have them.
mod field {
    pub(super) const TRACE_ID: u32 = 1;
    pub(super) const SPAN_ID: u32 = 2;
    pub(super) const TRACE_STATE: u32 = 3;
    pub(super) const PARENT_SPAN_ID: u32 = 4;
    pub(super) const NAME: u32 = 5;
    pub(super) const KIND: u32 = 6;
    pub(super) const START: u32 = 7;
    pub(super) const END: u32 = 8;
    pub(super) const ATTRIBUTES: u32 = 9;
    pub(super) const STATUS: u32 = 15;
    pub(super) const FLAGS: u32 = 16;

    pub(super) const STATUS_MESSAGE: u32 = 2;
    pub(super) const STATUS_CODE: u32 = 3;

    pub(super) const KEY: u32 = 1;
    pub(super) const VALUE: u32 = 2;
    pub(super) const STRING: u32 = 1;
    pub(super) const INT: u32 = 3;

    pub(super) const RESOURCE_SPANS: u32 = 1;
    pub(super) const RESOURCE: u32 = 1;
    pub(super) const RESOURCE_ATTRIBUTES: u32 = 1;
    pub(super) const SCOPE_SPANS: u32 = 2;
    pub(super) const SCOPE: u32 = 1;
    pub(super) const SCOPE_NAME: u32 = 1;
    pub(super) const SCOPE_VERSION: u32 = 2;
    pub(super) const SPANS: u32 = 2;

    pub(super) const PARTIAL_SUCCESS: u32 = 1;
    pub(super) const REJECTED_SPANS: u32 = 1;
    pub(super) const ERROR_MESSAGE: u32 = 2;
}

/// Values of `Span.kind`.
const INTERNAL: u64 = 1;
const SERVER: u64 = 2;
const CLIENT: u64 = 3;

/// The value of `Status.code` for errors.
const ERROR: u64 = 2;

/// Bits of `Span.flags`: whether it is known where the parent is, and that it is in another process.
const HAS_IS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

/// A finished request.
pub(super) struct FinishedRequest<'a> {
    pub(super) trace: &'a RequestTrace,
    pub(super) record: &'a RequestRecord<'a>,
    /// When the request's head was complete: the same moment as the record's time.
    pub(super) started: Instant,
    pub(super) ended: Instant,
    /// The caller's `tracestate`, where its `traceparent` is valid.
    pub(super) state: Option<&'a [u8]>,
}

/// Encodes the spans of a request, each as an entry of `ScopeSpans.spans`; returns how many. `draw` gives identifiers.
pub(super) fn request_spans(
    out: &mut Vec<u8>,
    request: &FinishedRequest<'_>,
    mut draw: impl FnMut() -> u64,
) -> usize {
    let clock = WallClock::of(request);
    server_span(out, request, &clock);
    let mut count = 1;
    for wait in &request.trace.waits {
        count += wait_spans(out, request, wait, &clock, &mut draw);
    }
    for (index, attempt) in request.trace.attempts.iter().enumerate() {
        attempt_span(out, request, attempt, index, &clock);
        count += 1;
    }
    count
}

/// Turns points of the monotonic clock into nanoseconds since 1970. Each request's points count from one reading of the wall clock, so
/// that its spans fit together whatever the wall clock does meanwhile.
struct WallClock {
    started: Instant,
    ended: Instant,
    nanos: u64,
}

impl WallClock {
    fn of(request: &FinishedRequest<'_>) -> Self {
        let since = request.record.time.duration_since(UNIX_EPOCH);
        Self {
            started: request.started,
            ended: request.ended.max(request.started),
            nanos: nanos(since.unwrap_or_default()),
        }
    }

    /// Points outside the request count as its begin or its end.
    fn at(&self, point: Instant) -> u64 {
        let point = point.clamp(self.started, self.ended);
        self.nanos.saturating_add(nanos(point - self.started))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The fields that every span has.
struct Frame<'a> {
    context: TraceContext,
    parent: Option<SpanId>,
    flags: u32,
    kind: u64,
    from: u64,
    until: u64,
    state: Option<&'a [u8]>,
}

fn span(out: &mut Vec<u8>, frame: &Frame<'_>, rest: impl FnOnce(&mut Vec<u8>)) {
    message(out, field::SPANS, |out| {
        bytes(out, field::TRACE_ID, &frame.context.trace.to_bytes());
        bytes(out, field::SPAN_ID, &frame.context.span.to_bytes());
        if let Some(state) = frame.state {
            foreign_text(out, field::TRACE_STATE, state, MAX_STATE);
        }
        if let Some(parent) = frame.parent {
            bytes(out, field::PARENT_SPAN_ID, &parent.to_bytes());
        }
        uint(out, field::KIND, frame.kind);
        fixed64(out, field::START, frame.from);
        fixed64(out, field::END, frame.until);
        fixed32(out, field::FLAGS, u32::from(frame.context.sampled) | frame.flags);
        rest(out);
    });
}

fn server_span(out: &mut Vec<u8>, request: &FinishedRequest<'_>, clock: &WallClock) {
    let (trace, record) = (request.trace, request.record);
    let remote = if trace.has_parent() { IS_REMOTE } else { 0 };
    let frame = Frame {
        context: trace.own,
        parent: trace.parent,
        flags: HAS_IS_REMOTE | remote,
        kind: SERVER,
        from: clock.at(request.started),
        until: clock.at(request.ended),
        state: request.state,
    };
    span(out, &frame, |out| {
        message(out, field::NAME, |out| {
            out.extend_from_slice(known_method(record.method).unwrap_or("HTTP").as_bytes());
            if let Some(service) = record.service {
                out.push(b' ');
                out.extend_from_slice(service.name().as_bytes());
            }
        });
        method(out, record.method);
        text(
            out,
            "url.scheme",
            if trace.tls { b"https" } else { b"http" },
            MAX_TEXT,
        );
        text(out, "url.path", record.path_only(), MAX_PATH);
        let (host, port) = host_and_port(record.host);
        if !host.is_empty() {
            text(out, "server.address", host, MAX_TEXT);
        }
        optional_int(out, "server.port", port);
        let version = protocol_version(trace.protocol);
        text(out, "network.protocol.version", version.as_bytes(), MAX_TEXT);
        if let Some(client) = record.client {
            address(out, "client.address", client);
        }
        optional_text(out, "user_agent.original", record.user_agent, MAX_USER_AGENT);
        optional_int(out, "http.response.status_code", record.status);
        optional_text(
            out,
            "sluice.namespace",
            record.service.map(|s| s.namespace().as_bytes()),
            MAX_TEXT,
        );
        optional_text(
            out,
            "sluice.service",
            record.service.map(|s| s.name().as_bytes()),
            MAX_TEXT,
        );
        optional_text(
            out,
            "sluice.revision",
            record.revision.map(|r| r.name().as_bytes()),
            MAX_TEXT,
        );
        optional_text(
            out,
            "sluice.reason",
            record.reason.map(|r| r.as_str().as_bytes()),
            MAX_TEXT,
        );
        let id = Some(record.request_id).filter(|id| !id.is_empty());
        optional_text(out, "sluice.request_id", id, MAX_TEXT);
        let failed = record.status.is_none_or(|status| status >= 500);
        let failed = match record.reason {
            // A client that leaves is no failure of the server's.
            Some(reason) => failed && record.code() != 499 || reason.status().is_server_error(),
            None => failed,
        };
        if failed {
            let reason = record.reason.map(|reason| reason.as_str());
            error(out, reason, record.code(), record.detail);
        }
    });
}

/// The phases of a wait. Without a start there is one: `queued`.
fn wait_spans(
    out: &mut Vec<u8>,
    request: &FinishedRequest<'_>,
    wait: &Wait,
    clock: &WallClock,
    draw: &mut impl FnMut() -> u64,
) -> usize {
    let phases = Phases::of(&Milestones {
        arrived: wait.from,
        start: wait.start,
        admitted: Some(wait.until),
        first_byte: wait.until,
    });
    let mut point = wait.from;
    let mut count = 0;
    for (name, took) in phases.waiting() {
        let from = point;
        point += took;
        let frame = child(
            request,
            SpanId::random(&mut *draw),
            INTERNAL,
            clock.at(from),
            clock.at(point),
        );
        span(out, &frame, |out| bytes(out, field::NAME, name.as_bytes()));
        count += 1;
    }
    count
}

fn attempt_span(
    out: &mut Vec<u8>,
    request: &FinishedRequest<'_>,
    attempt: &Attempt,
    index: usize,
    clock: &WallClock,
) {
    let until = attempt.until.unwrap_or(request.ended).max(attempt.from);
    let frame = child(
        request,
        attempt.span,
        CLIENT,
        clock.at(attempt.from),
        clock.at(until),
    );
    span(out, &frame, |out| {
        bytes(out, field::NAME, b"attempt");
        method(out, request.record.method);
        match &attempt.endpoint {
            Some(EndpointAddr::Tcp(socket)) => {
                address(out, "server.address", socket.ip());
                int(out, "server.port", socket.port().into());
            }
            Some(EndpointAddr::Unix(path)) => {
                text(
                    out,
                    "server.address",
                    path.as_os_str().as_encoded_bytes(),
                    MAX_TEXT,
                );
            }
            None => {}
        }
        if index > 0 {
            int(out, "http.request.resend_count", index as u64);
        }
        optional_int(out, "http.response.status_code", attempt.status);
        let reason = match attempt.until {
            Some(_) => attempt.reason,
            None => request.record.reason,
        };
        if reason.is_some() || attempt.status.is_none_or(|status| status >= 400) {
            let reason = reason.map(|reason| reason.as_str());
            error(out, reason, attempt.status.unwrap_or_default(), None);
        }
    });
}

fn child<'a>(request: &FinishedRequest<'a>, id: SpanId, kind: u64, from: u64, until: u64) -> Frame<'a> {
    Frame {
        context: TraceContext {
            span: id,
            ..request.trace.own
        },
        parent: Some(request.trace.own.span),
        flags: HAS_IS_REMOTE,
        kind,
        from,
        until,
        state: request.state,
    }
}

/// Marks a span as failed, by reason, else by status.
fn error(out: &mut Vec<u8>, reason: Option<&str>, code: u16, detail: Option<&str>) {
    let mut digits = String::new();
    let kind = reason.unwrap_or_else(|| {
        // A String takes everything.
        let _ = write!(digits, "{code}");
        &digits
    });
    text(out, "error.type", kind.as_bytes(), MAX_TEXT);
    message(out, field::STATUS, |out| {
        if let Some(detail) = detail {
            foreign_text(out, field::STATUS_MESSAGE, detail.as_bytes(), MAX_TEXT);
        }
        uint(out, field::STATUS_CODE, ERROR);
    });
}

/// The method by the conventions: those of RFC 9110 and PATCH, else `_OTHER` beside what was sent.
fn method(out: &mut Vec<u8>, sent: &[u8]) {
    let known = known_method(sent);
    text(
        out,
        "http.request.method",
        known.unwrap_or("_OTHER").as_bytes(),
        MAX_TEXT,
    );
    if known.is_none() && !sent.is_empty() {
        text(out, "http.request.method_original", sent, MAX_TEXT);
    }
}

fn known_method(sent: &[u8]) -> Option<&'static str> {
    const KNOWN: [&str; 9] = [
        "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
    ];
    KNOWN.into_iter().find(|known| known.as_bytes() == sent)
}

fn protocol_version(protocol: RequestProtocol) -> &'static str {
    match protocol {
        RequestProtocol::Http10 => "1.0",
        RequestProtocol::Http11 | RequestProtocol::Upgraded => "1.1",
        RequestProtocol::Http2 => "2",
    }
}

/// Splits a Host. Brackets stay out of the address.
fn host_and_port(host: &[u8]) -> (&[u8], Option<u16>) {
    let port_of = |text: &[u8]| std::str::from_utf8(text).ok()?.parse().ok();
    if let Some(rest) = host.strip_prefix(b"[")
        && let Some(end) = rest.iter().position(|&b| b == b']')
    {
        let port = rest[end + 1..].strip_prefix(b":").and_then(port_of);
        return (&rest[..end], port);
    }
    match host.iter().position(|&b| b == b':') {
        Some(colon) => (&host[..colon], port_of(&host[colon + 1..])),
        None => (host, None),
    }
}

fn attribute(out: &mut Vec<u8>, field: u32, key: &str, value: impl FnOnce(&mut Vec<u8>)) {
    message(out, field, |out| {
        bytes(out, field::KEY, key.as_bytes());
        message(out, field::VALUE, value);
    });
}

fn text(out: &mut Vec<u8>, key: &str, value: &[u8], most: usize) {
    attribute(out, field::ATTRIBUTES, key, |out| {
        foreign_text(out, field::STRING, value, most);
    });
}

fn optional_text(out: &mut Vec<u8>, key: &str, value: Option<&[u8]>, most: usize) {
    if let Some(value) = value {
        text(out, key, value, most);
    }
}

fn address(out: &mut Vec<u8>, key: &str, value: IpAddr) {
    attribute(out, field::ATTRIBUTES, key, |out| {
        message(out, field::STRING, |out| {
            // A Vec takes everything.
            let _ = std::io::Write::write_fmt(out, format_args!("{value}"));
        });
    });
}

fn int(out: &mut Vec<u8>, key: &str, value: u64) {
    attribute(out, field::ATTRIBUTES, key, |out| uint(out, field::INT, value));
}

fn optional_int(out: &mut Vec<u8>, key: &str, value: Option<u16>) {
    if let Some(value) = value {
        int(out, key, value.into());
    }
}

/// What every POST has around its spans: the resource and the instrumentation scope.
#[derive(Debug)]
pub(super) struct Envelope {
    resource: Vec<u8>,
    scope: Vec<u8>,
}

impl Envelope {
    /// Of these attributes of the resource.
    pub(super) fn new(attributes: &[(String, String)]) -> Self {
        let (mut resource, mut scope) = (Vec::new(), Vec::new());
        message(&mut resource, field::RESOURCE, |out| {
            for (key, value) in attributes {
                attribute(out, field::RESOURCE_ATTRIBUTES, key, |out| {
                    bytes(out, field::STRING, value.as_bytes());
                });
            }
        });
        message(&mut scope, field::SCOPE, |out| {
            bytes(out, field::SCOPE_NAME, b"sluice");
            bytes(out, field::SCOPE_VERSION, env!("CARGO_PKG_VERSION").as_bytes());
        });
        Self { resource, scope }
    }

    /// An `ExportTraceServiceRequest` with these spans.
    pub(super) fn request(&self, spans: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.resource.len() + self.scope.len() + spans.len() + 32);
        message(&mut out, field::RESOURCE_SPANS, |out| {
            out.extend_from_slice(&self.resource);
            message(out, field::SCOPE_SPANS, |out| {
                out.extend_from_slice(&self.scope);
                out.extend_from_slice(spans);
            });
        });
        out
    }
}

/// What a collector says of a POST that it accepted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PartialSuccess {
    /// How many spans it refused for good.
    pub(super) rejected: u64,
    /// Why, or a warning; cut off.
    pub(super) why: String,
}

impl PartialSuccess {
    /// Reads an `ExportTraceServiceResponse`; what cannot be read counts as full success.
    pub(super) fn read(response: &[u8]) -> Self {
        let mut read = Self::default();
        for (number, value) in fields(response) {
            let Value::Bytes(partial) = value else { continue };
            if number != field::PARTIAL_SUCCESS {
                continue;
            }
            for inner in fields(partial) {
                match inner {
                    (field::REJECTED_SPANS, Value::Varint(count)) => read.rejected = count,
                    (field::ERROR_MESSAGE, Value::Bytes(why)) => {
                        let why = String::from_utf8_lossy(why);
                        read.why = why.chars().take(MAX_TEXT).collect();
                    }
                    _ => {}
                }
            }
        }
        read
    }
}

#[cfg(test)]
#[path = "otlp_tests.rs"]
mod tests;

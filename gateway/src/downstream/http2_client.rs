//! The client's side of an exchange over HTTP/2: one stream.

use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use bytes::{Buf, Bytes};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, request};
use sluice_model::{Limits, RequestView};
use tokio::sync::Notify;

use crate::answer::{Answer, Rendered};
use crate::edge::ConnectionInfo;
use crate::exchange::{BodyLength, ClientFault, ClientSide, RequestHead, ResponseHead};
use crate::http1::{HttpDate, judge_target};
use crate::observe::{Reason, RequestProtocol};
use crate::request::{FieldSink, Fields, response_fields};
use crate::throttle::clock;
use crate::upstream::MapSink;

/// How long a stream may take to end once its client was told to, in a GOAWAY: as long as a WebSocket.
const GOAWAY_GRACE: Duration = Duration::from_secs(5);

/// The largest piece of a response body that is given to a stream at once, in bytes.
const PIECE: usize = 16 * 1024;

/// A request head of HTTP/2.
#[derive(Debug)]
pub(super) struct StreamHead {
    parts: request::Parts,
    /// Cookie crumbs joined; `None` where there is one field or none.
    cookies: Option<Vec<u8>>,
    crumbs: bool,
}

impl StreamHead {
    pub(super) fn new(parts: request::Parts) -> Self {
        let mut crumbs = parts.headers.get_all(http::header::COOKIE).iter();
        let several = crumbs.next().is_some() && crumbs.next().is_some();
        let cookies = several.then(|| {
            let all = parts.headers.get_all(http::header::COOKIE);
            let all: Vec<_> = all.iter().map(HeaderValue::as_bytes).collect();
            all.join(&b"; "[..])
        });
        Self {
            crumbs: several,
            cookies,
            parts,
        }
    }

    fn content_length(&self) -> Option<u64> {
        self.parts
            .headers
            .get(http::header::CONTENT_LENGTH)?
            .to_str()
            .ok()?
            .parse()
            .ok()
    }

    /// What is malformed by RFC 9113 and passes the library, or is refused over HTTP/1.
    fn fault(&self) -> Option<&'static str> {
        let fields = &self.parts.headers;
        // 8.2.1: a value neither begins nor ends with whitespace. HTTP/1 would cut it off.
        let blank = |b: Option<&u8>| matches!(b, Some(b' ' | b'\t'));
        let padded = |value: &HeaderValue| {
            let value = value.as_bytes();
            blank(value.first()) || blank(value.last())
        };
        if fields.values().any(padded) {
            return Some("a field value begins or ends with whitespace");
        }
        if !matches!(self.parts.uri.scheme_str(), None | Some("http" | "https")) {
            return Some("the scheme is neither http nor https");
        }
        if self.target() == "*" && self.parts.method != Method::OPTIONS {
            return Some("only OPTIONS may ask for *");
        }
        // 8.3.1: a Host that differs from :authority.
        let mut hosts = fields.get_all(http::header::HOST).iter();
        if let (Some(host), authority) = (hosts.next(), self.parts.uri.authority()) {
            let differs = |a: &str| !host.as_bytes().eq_ignore_ascii_case(a.as_bytes());
            if hosts.next().is_some() || authority.is_some_and(|a| differs(a.as_str())) {
                return Some("two hosts");
            }
        }
        let mut lengths = fields.get_all(http::header::CONTENT_LENGTH).iter();
        if let Some(length) = lengths.next() {
            let digits = length.as_bytes();
            let octal = digits.len() > 1 && digits[0] == b'0';
            if lengths.next().is_some() || octal || !digits.iter().all(u8::is_ascii_digit) {
                return Some("Content-Length is not one number");
            }
        }
        None
    }
}

impl Fields for StreamHead {
    fn each<'h>(&'h self, mut each: impl FnMut(&'h [u8], &'h [u8])) {
        for (name, value) in &self.parts.headers {
            each(name.as_str().as_bytes(), value.as_bytes());
        }
    }

    fn first(&self, name: &str) -> Option<&[u8]> {
        self.parts.headers.get(name).map(HeaderValue::as_bytes)
    }
}

impl RequestView for StreamHead {
    fn method(&self) -> &str {
        self.parts.method.as_str()
    }

    fn path(&self) -> &str {
        self.parts.uri.path()
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        match &self.cookies {
            Some(cookies) if name == "cookie" => Some(cookies),
            _ => self.first(name),
        }
    }
}

impl RequestHead for StreamHead {
    fn target(&self) -> &str {
        self.parts
            .uri
            .path_and_query()
            .map_or("/", http::uri::PathAndQuery::as_str)
    }

    fn host(&self) -> Option<&[u8]> {
        let authority = self.parts.uri.authority().map(|a| a.as_str().as_bytes());
        authority.or_else(|| self.first("host"))
    }

    fn size(&self) -> usize {
        let fields = self
            .parts
            .headers
            .iter()
            .map(|(n, v)| n.as_str().len() + v.len() + 4);
        self.target().len() + fields.sum::<usize>()
    }

    fn takes_trailers(&self) -> bool {
        // In HTTP/2 `te` says nothing else (RFC 9113 8.2.2), and trailers need no permission.
        self.first("te")
            .is_some_and(|te| te.eq_ignore_ascii_case(b"trailers"))
    }

    fn nominates_others(&self) -> bool {
        false
    }

    fn has_crumbs(&self) -> bool {
        self.crumbs
    }

    fn check(&self, limits: &Limits) -> Result<(), Answer> {
        let target = self.target();
        if target.len() > limits.max_uri_bytes {
            return Err(Answer::new(
                Reason::UriTooLong,
                "the request's target is longer than allowed",
            ));
        }
        // As strict as for HTTP/1: what one backend reads another way must not depend on the protocol.
        judge_target(target.as_bytes())
            .map_err(|fault| Answer::new(Reason::BadRequest, fault.to_string()))?;
        if self.parts.method == Method::CONNECT {
            return Err(Answer::new(Reason::BadRequest, "CONNECT is not served").with_status(405));
        }
        if let Some(fault) = self.fault() {
            return Err(Answer::new(Reason::BadRequest, fault));
        }
        if self.parts.headers.len() > limits.max_headers || self.size() > limits.max_header_bytes {
            return Err(Answer::new(
                Reason::HeadersTooLarge,
                "the request's head is larger than allowed",
            ));
        }
        Ok(())
    }
}

/// How far the response is.
#[derive(Debug)]
enum Answering {
    Not(SendResponse<Bytes>),
    Body(SendStream<Bytes>),
    Ended(SendStream<Bytes>),
    /// Only between two of the others.
    Gone,
}

/// One stream of an HTTP/2 connection.
#[derive(Debug)]
pub(super) struct Http2Client {
    info: Arc<ConnectionInfo>,
    head: StreamHead,
    body: RecvStream,
    chunk: Bytes,
    length: BodyLength,
    trailers: Option<HeaderMap>,
    expects: bool,
    continued: bool,
    answering: Answering,
    /// Body bytes that were announced and are still to come, where nothing can follow them.
    left: Option<u64>,
    /// The response's length was announced.
    sized: bool,
    /// Since when the client's window is closed.
    blocked: Option<Instant>,
    /// Clients of the connection should go on with another one.
    leave: Arc<Notify>,
}

impl Http2Client {
    pub(super) fn new(
        info: Arc<ConnectionInfo>,
        request: http::Request<RecvStream>,
        respond: SendResponse<Bytes>,
        leave: Arc<Notify>,
    ) -> Self {
        let (parts, body) = request.into_parts();
        let head = StreamHead::new(parts);
        let length = match head.content_length() {
            _ if body.is_end_stream() => BodyLength::Empty,
            Some(length) => BodyLength::Known(length),
            None => BodyLength::Unknown,
        };
        let expect = head.first("expect");
        Self {
            expects: expect.is_some_and(|e| e.eq_ignore_ascii_case(b"100-continue")),
            info,
            head,
            body,
            chunk: Bytes::new(),
            length,
            trailers: None,
            continued: false,
            answering: Answering::Not(respond),
            left: None,
            sized: false,
            blocked: None,
            leave,
        }
    }

    fn send_head(&mut self, status: u16, fields: HeaderMap, end: bool) -> Result<(), ClientFault> {
        let Answering::Not(respond) = &mut self.answering else {
            return Err(ClientFault::Gone);
        };
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(status).map_err(|_| ClientFault::Gone)?;
        *response.headers_mut() = fields;
        let stream = respond
            .send_response(response, end)
            .map_err(|_| ClientFault::Gone)?;
        self.answering = if end {
            Answering::Ended(stream)
        } else {
            Answering::Body(stream)
        };
        Ok(())
    }
}

fn date() -> HeaderValue {
    thread_local! {
        static DATE: std::cell::RefCell<HttpDate> = std::cell::RefCell::new(HttpDate::new());
    }
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    DATE.with_borrow_mut(|date| {
        let date = date.at(seconds.map_or(0, |since| since.as_secs()));
        HeaderValue::from_bytes(date).unwrap_or_else(|_| HeaderValue::from_static(""))
    })
}

impl ClientSide for Http2Client {
    type Head = StreamHead;
    type Stream = tokio::io::Empty;

    const LENGTH_AND_TRAILERS: bool = true;

    fn info(&self) -> &Arc<ConnectionInfo> {
        &self.info
    }

    fn head(&self) -> &StreamHead {
        &self.head
    }

    fn protocol(&self) -> RequestProtocol {
        RequestProtocol::Http2
    }

    fn body_length(&self) -> BodyLength {
        self.length
    }

    fn is_paced(&self) -> bool {
        // A body without a length has no pace: a stream whose client says nothing for long is
        // ordinary gRPC. The revision's clocks bound it.
        matches!(self.length, BodyLength::Known(_))
    }

    fn waiting_bytes(&self) -> u64 {
        // What the client may send before anybody reads.
        match self.length {
            BodyLength::Empty => 0,
            BodyLength::Known(length) => length.min(u64::from(super::http2::STREAM_WINDOW)),
            BodyLength::Unknown => u64::from(super::http2::STREAM_WINDOW),
        }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, ClientFault>> {
        if self.expects && !self.continued {
            self.continued = true;
            if let Answering::Not(respond) = &mut self.answering {
                let mut interim = Response::new(());
                *interim.status_mut() = StatusCode::CONTINUE;
                respond
                    .send_informational(interim)
                    .map_err(|_| ClientFault::Gone)?;
            }
        }
        while self.chunk.is_empty() {
            match ready!(self.body.poll_data(cx)) {
                Some(Ok(chunk)) => self.chunk = chunk,
                Some(Err(_)) => return Poll::Ready(Err(ClientFault::Gone)),
                None => {
                    let trailers = ready!(self.body.poll_trailers(cx));
                    self.trailers = trailers.map_err(|_| ClientFault::Gone)?;
                    return Poll::Ready(Ok(false));
                }
            }
        }
        Poll::Ready(Ok(true))
    }

    fn data(&self) -> &[u8] {
        &self.chunk
    }

    fn consume(&mut self, n: usize) {
        self.chunk.advance(n);
        // Fails only for a stream that is gone.
        let _ = self.body.flow_control().release_capacity(n);
    }

    fn trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take()
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.answering {
            Answering::Not(respond) => respond.poll_reset(cx).map(|_| ()),
            Answering::Body(stream) | Answering::Ended(stream) => stream.poll_reset(cx).map(|_| ()),
            Answering::Gone => Poll::Ready(()),
        }
    }

    fn interim(&mut self, status: u16, fields: &impl Fields) {
        self.continued |= status == 100;
        if let (Answering::Not(respond), Ok(status)) = (&mut self.answering, StatusCode::from_u16(status)) {
            let mut sink = MapSink::default();
            response_fields(fields, &mut sink);
            let mut interim = Response::new(());
            *interim.status_mut() = status;
            *interim.headers_mut() = sink.0;
            // A stream that was reset tells so by itself.
            let _ = respond.send_informational(interim);
        }
    }

    fn was_continued(&self) -> bool {
        self.continued
    }

    fn respond<F: Fields>(&mut self, head: &ResponseHead<'_, F>) -> Result<(), ClientFault> {
        let mut sink = MapSink::default();
        let dated = response_fields(head.fields, &mut sink);
        if !dated {
            sink.0.insert(http::header::DATE, date());
        }
        if let Some(timing) = head.timing {
            sink.field(b"server-timing", timing.as_bytes());
        }
        let bodiless = self.head.parts.method == Method::HEAD || matches!(head.status, 204 | 304);
        let length = match head.length {
            BodyLength::Known(length) => Some(length),
            BodyLength::Empty | BodyLength::Unknown => head.told_length,
        };
        if let Some(length) = length
            && head.status != 204
        {
            sink.0
                .insert(http::header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        self.sized = matches!(head.length, BodyLength::Known(_));
        self.left = match head.length {
            BodyLength::Known(length) if !head.trailers => Some(length),
            _ => None,
        };
        let end = bodiless || head.length.is_empty();
        self.send_head(head.status, sink.0, end)
    }

    fn answer(&mut self, answer: &Rendered, _: bool) -> Result<(), ClientFault> {
        let mut sink = MapSink::default();
        for (name, value) in &answer.headers {
            sink.field(name.as_bytes(), value.as_bytes());
        }
        let length = HeaderValue::from(answer.body.len());
        sink.0.insert(http::header::CONTENT_LENGTH, length);
        // A gRPC answer is trailers-only: its headers have to end the stream.
        let end = answer.body.is_empty() || self.head.parts.method == Method::HEAD;
        self.send_head(answer.status, sink.0, end)?;
        if let Answering::Body(stream) = &mut self.answering {
            // A line of text fits any window that lets a stream begin.
            stream
                .send_data(answer.body.clone(), true)
                .map_err(|_| ClientFault::Gone)?;
        }
        Ok(())
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, ClientFault>> {
        let Answering::Body(stream) = &mut self.answering else {
            return Poll::Ready(Err(ClientFault::Gone));
        };
        let want = data.len().min(PIECE);
        stream.reserve_capacity(want);
        while stream.capacity() == 0 {
            let polled = stream.poll_capacity(cx);
            if polled.is_pending() && self.blocked.is_none() {
                self.blocked = Some(clock());
            }
            if !matches!(ready!(polled), Some(Ok(_))) {
                return Poll::Ready(Err(ClientFault::Gone));
            }
        }
        self.blocked = None;
        let n = stream.capacity().min(want);
        let left = self.left.map(|left| left.saturating_sub(n as u64));
        let end = left == Some(0);
        let sent = stream.send_data(Bytes::copy_from_slice(&data[..n]), end);
        self.left = left;
        if end && let Answering::Body(stream) = std::mem::replace(&mut self.answering, Answering::Gone) {
            self.answering = Answering::Ended(stream);
        }
        Poll::Ready(sent.map(|()| n).map_err(|_| ClientFault::Gone))
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ClientFault>> {
        // The connection's task writes.
        Poll::Ready(Ok(()))
    }

    fn finish(&mut self, trailers: Option<HeaderMap>) -> Result<(), ClientFault> {
        let Answering::Body(stream) = &mut self.answering else {
            return Ok(());
        };
        let ended = match trailers {
            Some(trailers) => stream.send_trailers(trailers),
            None => stream.send_data(Bytes::new(), true),
        };
        ended.map_err(|_| ClientFault::Gone)
    }

    fn blocked_since(&self) -> Option<Instant> {
        self.blocked
    }

    fn abort(&mut self) {
        match &mut self.answering {
            Answering::Not(respond) => respond.send_reset(h2::Reason::CANCEL),
            Answering::Body(stream) => stream.send_reset(h2::Reason::INTERNAL_ERROR),
            Answering::Ended(_) | Answering::Gone => {}
        }
    }

    fn write_timed_out(&mut self) {}

    fn end_early(&mut self) -> bool {
        !self.sized && self.finish(None).is_ok()
    }

    fn ask_to_end(&mut self) -> Duration {
        self.leave.notify_one();
        GOAWAY_GRACE
    }

    fn take_stream(&mut self) -> tokio::io::Empty {
        tokio::io::empty()
    }
}

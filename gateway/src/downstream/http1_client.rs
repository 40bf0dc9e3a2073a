//! The client's side of an exchange over HTTP/1.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use http::HeaderMap;
use sluice_model::{Limits, RequestView};

use super::date_now;
use crate::edge::{ByteStream, CloseReason, Connection, ConnectionInfo};
use crate::exchange::{BodyLength, ClientFault, ClientHead, ClientSide, OutgoingResponse};
use crate::framing::{BodyFraming, BodyReader, Buffer, HeadSink, MessageWriter, PrefixedIo, ReadFault};
use crate::http1::{self, ChunkLimits, HeadInfo, RequestFraming, Version, encode};
use crate::local_response::{ErrorResponse, RenderedResponse};
use crate::observe::{Reason, RequestProtocol};
use crate::request::{FieldSink, Fields, response_fields};

/// Most bytes of pipelined requests that are read while one is served, to detect that the client left.
const READ_AHEAD: usize = 8 * 1024;

/// A received and validated request head.
#[derive(Debug)]
pub(super) struct ReceivedHead {
    bytes: Buffer,
    info: HeadInfo,
    /// Path and query, where they are not in one piece in the head.
    target: Option<Box<str>>,
    /// The values of several `Cookie` fields, joined.
    cookies: Option<Box<[u8]>>,
}

impl ReceivedHead {
    /// Joins a head with the bytes it was validated from.
    pub(super) fn new(bytes: Buffer, info: HeadInfo) -> Self {
        let view = http1::RequestHead::new(bytes.data(), &info);
        let target = match view.path_and_query() {
            Some(_) => None,
            None => Some(match view.query() {
                Some(query) => format!("{}?{query}", view.path()).into(),
                None => view.path().into(),
            }),
        };
        let crumbs = || {
            view.fields()
                .filter(|(name, _)| name.eq_ignore_ascii_case(b"cookie"))
        };
        let cookies = (info.cookie_fields > 1).then(|| {
            crumbs()
                .map(|(_, value)| value)
                .collect::<Vec<_>>()
                .join(&b"; "[..])
                .into()
        });
        Self {
            info,
            target,
            cookies,
            bytes,
        }
    }

    fn view(&self) -> http1::RequestHead<'_> {
        http1::RequestHead::new(self.bytes.data(), &self.info)
    }
}

impl Fields for ReceivedHead {
    fn each<'h>(&'h self, mut each: impl FnMut(&'h [u8], &'h [u8])) {
        for (name, value) in self.view().fields() {
            each(name, value);
        }
    }

    fn first(&self, name: &str) -> Option<&[u8]> {
        self.view().field(name)
    }
}

impl RequestView for ReceivedHead {
    fn method(&self) -> &str {
        self.view().method()
    }

    fn path(&self) -> &str {
        self.view().path()
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        let span = match name {
            "cookie" if self.cookies.is_some() => return self.cookies.as_deref(),
            "user-agent" => self.info.user_agent,
            "accept" => self.info.accept,
            "content-type" => self.info.content_type,
            "x-request-id" => self.info.x_request_id,
            "cookie" if self.info.cookie_fields == 0 => None,
            _ => return self.view().field(name),
        };
        span.map(|span| span.of(self.bytes.data()))
    }
}

impl ClientHead for ReceivedHead {
    fn target(&self) -> &str {
        match &self.target {
            Some(target) => target,
            None => self.view().path_and_query().unwrap_or("/"),
        }
    }

    fn host(&self) -> Option<&[u8]> {
        self.view().host()
    }

    fn size(&self) -> usize {
        self.info.len
    }

    fn takes_trailers(&self) -> bool {
        self.info.te_trailers
    }

    fn nominates_others(&self) -> bool {
        self.info.nominates_others
    }

    fn has_crumbs(&self) -> bool {
        self.info.cookie_fields > 1
    }

    fn check(&self, _: &Limits) -> Result<(), ErrorResponse> {
        if !self.info.nominates_others {
            return Ok(());
        }
        // A client that nominates these wants the backend to read the request in another way than the gateway
        // did (RFC 9110 7.6.1 forbids it for fields that are meant for all recipients).
        match self.view().connection_options().find(|name| relied_on(name)) {
            Some(name) => {
                let name = String::from_utf8_lossy(name);
                let text = format!("Connection names {name}, which is not the connection's");
                Err(ErrorResponse::new(Reason::BadRequest, text))
            }
            None => Ok(()),
        }
    }

    fn upgrade(&self) -> Option<&[u8]> {
        Some(self.info.upgrade?.token.of(self.bytes.data()))
    }
}

/// Whether the gateway routes or frames by a field, or sets the field itself.
fn relied_on(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 6] = [
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"forwarded",
        b"x-real-ip",
        b"x-request-id",
    ];
    NAMES.iter().any(|known| name.eq_ignore_ascii_case(known))
        || name.len() > 12 && name[..12].eq_ignore_ascii_case(b"x-forwarded-")
}

/// State of `Expect: 100-continue`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Continue {
    NotAsked,
    Asked,
    Sent,
}

type Closed = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// One HTTP/1 connection: owned by its loop between requests, by the exchange during one.
pub(super) struct Http1Client {
    pub(super) io: Option<Box<dyn ByteStream>>,
    pub(super) info: Arc<ConnectionInfo>,
    pub(super) reader: BodyReader,
    pub(super) writer: MessageWriter,
    pub(super) chunks: ChunkLimits,
    /// Whether the connection reached its maximum age.
    pub(super) aged: bool,
    /// Why the gateway ends the connection.
    pub(super) ends_for: Option<CloseReason>,
    head: ReceivedHead,
    expect: Continue,
    /// Resolves when the client is gone, where its bytes must not be read to detect that.
    closed: Option<Closed>,
    /// Whether the client closed its side.
    pub(super) ended: bool,
    /// Whether the connection ends after this response.
    last: bool,
    responded: bool,
    /// Whether the client used up its time for the rest of a body.
    pub(super) spent: bool,
    /// Whether a response was cut.
    pub(super) aborted: bool,
    /// Whether the response's body ends with the connection.
    until_close: bool,
}

impl fmt::Debug for Http1Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http1Client")
            .field("client", &self.info.client)
            .field("reader", &self.reader)
            .finish_non_exhaustive()
    }
}

impl Http1Client {
    /// A connection on which no byte was received.
    pub(super) fn new(connection: Connection, chunks: ChunkLimits) -> Self {
        Self {
            io: Some(connection.io),
            info: connection.info,
            reader: BodyReader::default(),
            writer: MessageWriter::default(),
            chunks,
            aged: false,
            ends_for: None,
            head: ReceivedHead {
                bytes: Buffer::default(),
                info: HeadInfo::default(),
                target: None,
                cookies: None,
            },
            expect: Continue::NotAsked,
            closed: None,
            ended: false,
            last: false,
            responded: false,
            spent: false,
            aborted: false,
            until_close: false,
        }
    }

    /// Begins the exchange of a head whose bytes are at the front of the reader's buffer.
    pub(super) fn begin(&mut self, info: HeadInfo) {
        let bytes = self.reader.buffer().split_to(info.len);
        match info.framing {
            RequestFraming::None => self.reader.expect_length(0),
            RequestFraming::Length(length) => self.reader.expect_length(length),
            RequestFraming::Chunked => self.reader.expect_chunks(self.chunks, true),
        }
        self.expect = if info.expect_continue {
            Continue::Asked
        } else {
            Continue::NotAsked
        };
        self.last = self.aged || !info.keep_alive;
        self.responded = false;
        self.head = ReceivedHead::new(bytes, info);
    }

    /// Whether the connection may serve another request: request and response are complete, and neither side
    /// ended the connection.
    pub(super) fn may_continue(&self) -> bool {
        self.io.is_some()
            && self.responded
            && !self.last
            && !self.aborted
            && !self.ended
            && self.reader.complete()
            && self.writer.is_flushed()
            && !self.writer.is_short()
    }

    /// Frees memory that only an exchange needs.
    pub(super) fn settle(&mut self) {
        self.head.bytes = Buffer::default();
        self.head.target = None;
        self.head.cookies = None;
        self.closed = None;
        self.reader.buffer().release();
        self.writer.release();
    }

    /// Writes the response to a rejected head; the connection ends with it.
    pub(super) fn respond_rejected(&mut self, response: &RenderedResponse) {
        self.head.info = HeadInfo::default();
        self.last = true;
        // Cannot fail in HTTP/1, which only fills a buffer here.
        let _ = self.respond_local(response, true);
    }

    fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let watch = &self.info.close_watch;
        let closed = self.closed.get_or_insert_with(|| {
            let watch = watch.clone();
            Box::pin(async move { watch.closed().await })
        });
        ready!(closed.as_mut().poll(cx));
        self.ended = true;
        Poll::Ready(())
    }

    fn begin_response(&mut self, status: u16, length: BodyLength) -> BodyFraming {
        self.responded = true;
        let http10 = self.head.info.version == Version::Http10;
        let bodiless = self.head.method() == "HEAD" || matches!(status, 100..=199 | 204 | 304);
        match length {
            _ if bodiless => BodyFraming::Length(0),
            BodyLength::Empty => BodyFraming::Length(0),
            BodyLength::Known(length) => BodyFraming::Length(length),
            BodyLength::Unknown if http10 => {
                self.last = true;
                self.until_close = true;
                BodyFraming::UntilClose
            }
            BodyLength::Unknown => BodyFraming::Chunked { left: 0 },
        }
    }

    /// Writes the fields of framing and connection, and ends the head.
    fn end_head(&mut self, body: BodyFraming, length: Option<u64>, switches: bool) {
        let http10 = self.head.info.version == Version::Http10;
        let last = self.last;
        let out = self.writer.head();
        if let Some(length) = length {
            encode::content_length(out, length);
        } else if matches!(body, BodyFraming::Chunked { .. }) {
            encode::transfer_encoding_chunked(out);
        }
        if switches {
        } else if last {
            encode::field(out, b"connection", b"close");
        } else if http10 {
            encode::field(out, b"connection", b"keep-alive");
        }
        encode::end_of_head(out);
        self.writer.begin_body(body);
    }
}

fn gone(_: std::io::Error) -> ClientFault {
    ClientFault::Gone
}

impl ClientSide for Http1Client {
    type Head = ReceivedHead;
    type Stream = PrefixedIo<Box<dyn ByteStream>>;

    const LENGTH_AND_TRAILERS: bool = false;

    fn info(&self) -> &Arc<ConnectionInfo> {
        &self.info
    }

    fn head(&self) -> &ReceivedHead {
        &self.head
    }

    fn protocol(&self) -> RequestProtocol {
        match self.head.info.version {
            Version::Http10 => RequestProtocol::Http10,
            Version::Http11 => RequestProtocol::Http11,
        }
    }

    fn body_length(&self) -> BodyLength {
        match self.head.info.framing {
            RequestFraming::None => BodyLength::Empty,
            RequestFraming::Length(length) => BodyLength::Known(length),
            RequestFraming::Chunked => BodyLength::Unknown,
        }
    }

    fn is_paced(&self) -> bool {
        true
    }

    fn release_memory(&mut self) {
        self.head.bytes.shrink();
        if self.reader.buffered().is_empty() {
            self.reader.buffer().release();
        } else {
            self.reader.buffer().shrink();
        }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, ClientFault>> {
        let Some(io) = &mut self.io else {
            return Poll::Ready(Err(ClientFault::Gone));
        };
        if self.expect == Continue::Asked {
            self.expect = Continue::Sent;
            if !self.responded && self.reader.buffered().is_empty() {
                self.writer
                    .head()
                    .extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            }
        }
        if self.expect == Continue::Sent && !self.responded && !self.writer.is_flushed() {
            ready!(self.writer.poll_flush(cx, io)).map_err(gone)?;
        }
        self.reader.poll_data(cx, io).map_err(|fault| match fault {
            ReadFault::Chunk(fault) => ClientFault::Chunk(fault),
            ReadFault::Cut | ReadFault::Io(_) => {
                self.ended = true;
                ClientFault::Gone
            }
        })
    }

    fn data(&self) -> &[u8] {
        self.reader.data()
    }

    fn consume(&mut self, n: usize) {
        self.reader.consume(n);
    }

    fn trailers(&mut self) -> Option<HeaderMap> {
        self.reader.trailers()
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.ended {
            return Poll::Ready(());
        }
        if !self.reader.complete() {
            return self.poll_closed(cx);
        }
        let Some(io) = &mut self.io else {
            return Poll::Ready(());
        };
        while self.reader.buffered().len() < READ_AHEAD {
            let read = ready!(self.reader.buffer().poll_fill(cx, io, READ_AHEAD));
            if !matches!(read, Ok(1..)) {
                self.ended = true;
                return Poll::Ready(());
            }
        }
        // Further bytes stay in the socket, the FIN included.
        self.poll_closed(cx)
    }

    fn interim(&mut self, status: u16, fields: &impl Fields) {
        // HTTP/1.0 has no interim responses (RFC 9110 15.2).
        if self.head.info.version == Version::Http10 {
            return;
        }
        if status == 100 {
            self.expect = Continue::Sent;
        }
        let out = self.writer.head();
        encode::status_line(out, Version::Http11, status, None);
        response_fields(fields, &mut HeadSink(out));
        encode::end_of_head(out);
    }

    fn was_continued(&self) -> bool {
        self.expect == Continue::Sent
    }

    fn respond<F: Fields>(&mut self, head: &OutgoingResponse<'_, F>) -> Result<(), ClientFault> {
        // The connection ends if the body was not read to its end: nothing reads on after the response.
        self.last |= head.last || !self.reader.complete();
        // Bytes behind a declined upgrade offer may belong to either protocol: the connection ends.
        self.last |= self.head.info.upgrade.is_some() && !self.reader.buffered().is_empty();
        let body = self.begin_response(head.status, head.length);
        let phrase = (!head.phrase.is_empty()).then_some(head.phrase);
        let out = self.writer.head();
        encode::status_line(out, Version::Http11, head.status, phrase);
        let dated = response_fields(head.fields, &mut HeadSink(out));
        if !dated && head.status != 101 {
            encode::field(out, b"date", &date_now());
        }
        if let Some(reason) = head.reason {
            encode::field(out, b"x-sluice-reason", reason.as_bytes());
        }
        if let Some(timing) = head.timing {
            encode::field(out, b"server-timing", timing.as_bytes());
        }
        if let Some(token) = head.upgrade {
            encode::field(out, b"connection", b"Upgrade");
            encode::field(out, b"upgrade", token);
        }
        let length = match (body, head.declared_length) {
            _ if matches!(head.status, 100..=199 | 204) => None,
            (BodyFraming::Length(0), Some(told)) => Some(told),
            (BodyFraming::Length(0), None) if self.head.method() == "HEAD" || head.status == 304 => None,
            (BodyFraming::Length(length), _) => Some(length),
            _ => None,
        };
        self.end_head(body, length, head.upgrade.is_some());
        Ok(())
    }

    fn respond_local(&mut self, response: &RenderedResponse, last: bool) -> Result<(), ClientFault> {
        self.last |= last || !self.reader.complete();
        let length = response.body.len() as u64;
        let body = self.begin_response(response.status, BodyLength::Known(length));
        let out = self.writer.head();
        encode::status_line(out, Version::Http11, response.status, None);
        for (name, value) in &response.headers {
            HeadSink(out).field(name.as_bytes(), value.as_bytes());
        }
        self.end_head(body, Some(length), false);
        if body != BodyFraming::Length(0) {
            self.writer.head().extend_from_slice(&response.body);
            self.writer.begin_body(BodyFraming::Length(0));
        }
        Ok(())
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, ClientFault>> {
        let Some(io) = &mut self.io else {
            return Poll::Ready(Err(ClientFault::Gone));
        };
        self.writer.poll_send(cx, io, data).map_err(gone)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ClientFault>> {
        let Some(io) = &mut self.io else {
            return Poll::Ready(Err(ClientFault::Gone));
        };
        self.writer.poll_flush(cx, io).map_err(gone)
    }

    fn finish(&mut self, trailers: Option<HeaderMap>) -> Result<(), ClientFault> {
        let trailers = trailers.filter(|_| self.head.info.te_trailers);
        let fields = trailers.iter().flatten();
        self.writer
            .finish(fields.map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())));
        Ok(())
    }

    fn blocked_since(&self) -> Option<Instant> {
        self.writer.blocked_since()
    }

    fn abort(&mut self) {
        self.aborted = true;
        if self.responded && self.until_close {
            // A FIN would make the response look complete.
            self.info.close_watch.reset_on_close();
        }
    }

    fn body_timed_out(&mut self) {
        self.ends_for.get_or_insert(CloseReason::BodyTimeout);
    }

    fn stop_reading_body(&mut self) {
        self.spent = true;
    }

    fn write_timed_out(&mut self) {
        self.ends_for.get_or_insert(CloseReason::WriteTimeout);
    }

    fn end_early(&mut self) -> bool {
        self.last = true;
        self.writer.end_chunks()
    }

    fn ask_to_end(&mut self) -> Duration {
        Duration::ZERO
    }

    fn take_stream(&mut self) -> Self::Stream {
        let early = self.reader.buffered().into();
        self.last = true;
        let io = self.io.take();
        PrefixedIo::new(early, io.unwrap_or_else(|| Box::new(tokio::io::empty())))
    }
}

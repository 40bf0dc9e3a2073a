//! The backend's side of an exchange over HTTP/1.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::HeaderMap;
use sluice_model::Limits;

use super::io::BackendIo;
use crate::exchange::{BackendFault, BackendResponse, BackendSide, BodyLength, ClientHead, OutgoingRequest};
use crate::framing::{BodyFraming, BodyReader, HeadSink, MessageWriter, PrefixedIo, ReadFault};
use crate::http1::{
    ChunkLimits, ResponseFraming, ResponseHead, ResponseInfo, ResponseLimits, ResponseTo, Scan, encode,
    judge_response, scan_response,
};
use crate::request::{Fields, RequestEdit, request_fields};
use crate::throttle::{EndpointState, clock};

/// The backend's side of an exchange over HTTP/1.1.
#[derive(Debug)]
pub(crate) struct Http1Backend {
    io: BackendIo,
    endpoint: Arc<EndpointState>,
    max_idle: Duration,
    reader: BodyReader,
    writer: MessageWriter,
    limits: ResponseLimits,
    chunks: ChunkLimits,
    to: ResponseTo,
    trailers: bool,
    /// The parsed head, whose bytes are at the front of the reader's buffer.
    head: Option<ResponseInfo>,
    scanned: usize,
    /// Whether the response allows another request on the connection (keep-alive).
    keep_alive: bool,
}

impl Http1Backend {
    /// A backend side on an open connection without an exchange under way.
    pub(super) fn new(io: BackendIo, endpoint: Arc<EndpointState>, limits: &Limits) -> Self {
        Self {
            io,
            endpoint,
            max_idle: limits.upstream_idle_timeout,
            reader: BodyReader::default(),
            writer: MessageWriter::default(),
            limits: response_limits(limits),
            chunks: ChunkLimits::from(limits),
            to: ResponseTo::Other,
            trailers: false,
            head: None,
            scanned: 0,
            keep_alive: false,
        }
    }

    /// Consumes the current head from the buffer.
    fn pass_head(&mut self) -> Option<ResponseInfo> {
        let info = self.head.take()?;
        self.reader.buffer().consume(info.len);
        self.scanned = 0;
        Some(info)
    }

    fn begin_body(&mut self, info: &ResponseInfo) {
        match info.framing {
            ResponseFraming::None => self.reader.expect_length(0),
            ResponseFraming::Length(length) => self.reader.expect_length(length),
            ResponseFraming::Chunked => self.reader.expect_chunks(self.chunks, self.trailers),
            ResponseFraming::UntilClose => self.reader.expect_close(),
        }
    }
}

impl Fields for Http1Backend {
    fn each<'h>(&'h self, mut each: impl FnMut(&'h [u8], &'h [u8])) {
        if let Some(info) = &self.head {
            for (name, value) in ResponseHead::new(self.reader.buffered(), info).fields() {
                each(name, value);
            }
        }
    }

    fn first(&self, name: &str) -> Option<&[u8]> {
        let info = self.head.as_ref()?;
        ResponseHead::new(self.reader.buffered(), info).field(name)
    }
}

impl BackendSide for Http1Backend {
    const UPGRADES: bool = true;
    const LENGTH_AND_TRAILERS: bool = false;

    type Fields = Self;
    type Stream = PrefixedIo<BackendIo>;

    fn request<H: ClientHead>(
        &mut self,
        head: &H,
        line: &OutgoingRequest<'_>,
        edit: &RequestEdit<'_>,
    ) -> Result<(), BackendFault> {
        self.to = ResponseTo::method(head.method());
        self.trailers = head.takes_trailers();
        let out = self.writer.head();
        encode::request_line(out, head.method(), line.target);
        encode::field(out, b"host", line.host);
        request_fields(head, edit, &mut HeadSink(out));
        if self.trailers {
            encode::field(out, b"te", b"trailers");
        }
        match (line.upgrade, self.trailers) {
            (Some(token), _) => {
                encode::field(out, b"connection", b"Upgrade");
                encode::field(out, b"upgrade", token);
            }
            (None, true) => encode::field(out, b"connection", b"te"),
            (None, false) => {}
        }
        let body = match line.length {
            BodyLength::Empty => {
                // RFC 9110 8.6: methods that give content a meaning announce that there is none.
                if matches!(head.method(), "POST" | "PUT" | "PATCH") {
                    encode::content_length(out, 0);
                }
                BodyFraming::Length(0)
            }
            BodyLength::Known(length) => {
                encode::content_length(out, length);
                BodyFraming::Length(length)
            }
            BodyLength::Unknown => {
                encode::transfer_encoding_chunked(out);
                BodyFraming::Chunked { left: 0 }
            }
        };
        encode::end_of_head(out);
        self.writer.begin_body(body);
        Ok(())
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, BackendFault>> {
        self.writer
            .poll_send(cx, &mut self.io, data)
            .map_err(BackendFault::Broke)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BackendFault>> {
        self.writer
            .poll_flush(cx, &mut self.io)
            .map_err(BackendFault::Broke)
    }

    fn finish(&mut self, _: Option<HeaderMap>) -> Result<(), BackendFault> {
        // Trailers of a request are dropped over HTTP/1: few backends expect any, and some take them for
        // fields of the head.
        self.writer.finish(std::iter::empty());
        Ok(())
    }

    fn was_sent(&self) -> bool {
        self.writer.has_written()
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<BackendResponse, BackendFault>> {
        self.pass_head();
        loop {
            if !self.reader.buffered().is_empty() {
                match scan_response(self.reader.buffered(), &self.limits, self.scanned) {
                    Scan::Complete { len } => {
                        let info = judge_response(&self.reader.buffered()[..len], &self.limits, self.to)
                            .map_err(malformed)?;
                        self.keep_alive = info.keep_alive;
                        self.head = Some(info);
                        return Poll::Ready(Ok(backend_response(&info)));
                    }
                    Scan::NeedMore { scanned } => self.scanned = scanned,
                    Scan::Bad(fault) => return Poll::Ready(Err(malformed(fault))),
                }
            }
            let most = self.limits.max_bytes.saturating_add(READ_BEYOND);
            let read = ready!(self.reader.buffer().poll_fill(cx, &mut self.io, most));
            if read.map_err(BackendFault::Broke)? == 0 {
                let e = io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the backend closed before it answered",
                );
                return Poll::Ready(Err(BackendFault::Broke(e)));
            }
        }
    }

    fn fields(&self) -> &Self {
        self
    }

    fn phrase(&self) -> &[u8] {
        self.head.as_ref().map_or(b"", |info| {
            ResponseHead::new(self.reader.buffered(), info).phrase()
        })
    }

    fn upgraded_to(&self) -> Option<&[u8]> {
        let info = self.head.as_ref()?;
        Some(info.upgrade?.of(self.reader.buffered()))
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, BackendFault>> {
        if let Some(info) = self.pass_head() {
            self.begin_body(&info);
        }
        self.reader
            .poll_data(cx, &mut self.io)
            .map_err(|fault| match fault {
                ReadFault::Chunk(fault) => BackendFault::Malformed(fault.to_string().into()),
                ReadFault::Cut => BackendFault::Broke(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the backend closed in the middle of its answer",
                )),
                ReadFault::Io(e) => BackendFault::Broke(e),
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

    fn release(self) {
        let clean = self.keep_alive
            && self.reader.complete()
            && !self.reader.has_more()
            && self.writer.is_flushed()
            && !self.writer.is_short();
        if clean {
            self.endpoint.idle().put(self.io, clock(), self.max_idle);
        }
    }

    fn into_stream(mut self) -> PrefixedIo<BackendIo> {
        self.pass_head();
        let early = self.reader.buffered().into();
        PrefixedIo::new(early, self.io)
    }
}

/// Size limits of a backend's head: the same as a client's, except for the number of fields.
fn response_limits(limits: &Limits) -> ResponseLimits {
    ResponseLimits {
        max_bytes: limits.max_header_bytes,
        max_fields: MAX_FIELDS.max(limits.max_headers),
    }
}

/// Lower bound of the limit on a backend's fields: backends may send more than clients may.
const MAX_FIELDS: usize = 256;

/// Most bytes of a body that are read together with its head.
const READ_BEYOND: usize = 16 * 1024;

fn malformed(fault: impl std::fmt::Display) -> BackendFault {
    BackendFault::Malformed(fault.to_string().into())
}

fn backend_response(info: &ResponseInfo) -> BackendResponse {
    BackendResponse {
        status: info.status,
        length: match info.framing {
            ResponseFraming::None => BodyLength::Empty,
            ResponseFraming::Length(length) => BodyLength::Known(length),
            ResponseFraming::Chunked | ResponseFraming::UntilClose => BodyLength::Unknown,
        },
        declared_length: info.content_length,
    }
}

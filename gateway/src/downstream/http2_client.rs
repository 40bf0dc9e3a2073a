//! The client's side of an exchange over HTTP/2: one stream.

use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use tokio::sync::Notify;

use super::date_now;
use super::http2_head::StreamHead;
use super::websocket_stream::{PIECE, StreamIo};
use crate::edge::ConnectionInfo;
use crate::exchange::{BodyLength, ClientFault, ClientSide, OutgoingResponse};
use crate::local_response::RenderedResponse;
use crate::observe::RequestProtocol;
use crate::request::{FieldSink, Fields, response_fields};
use crate::throttle::clock;
use crate::upstream::MapSink;

/// Grace period of a stream after GOAWAY, as long as a WebSocket's.
const GOAWAY_GRACE: Duration = Duration::from_secs(5);

/// State of the response.
#[derive(Debug)]
enum ResponseState {
    Pending(SendResponse<Bytes>),
    Streaming(SendStream<Bytes>),
    Ended(SendStream<Bytes>),
    /// Taken out, during a change of state.
    Taken,
}

/// One stream of an HTTP/2 connection.
#[derive(Debug)]
pub(super) struct Http2Client {
    info: Arc<ConnectionInfo>,
    head: StreamHead,
    /// The request body; `None` once a tunnel took it.
    body: Option<RecvStream>,
    chunk: Bytes,
    length: BodyLength,
    trailers: Option<HeaderMap>,
    expects: bool,
    continued: bool,
    response: ResponseState,
    /// Remaining bytes of an announced length, where no trailers can follow them.
    left: Option<u64>,
    /// Whether the response's length was announced.
    sized: bool,
    /// When the client's flow-control window closed.
    blocked: Option<Instant>,
    /// Notified when GOAWAY is to be sent on the connection.
    goaway: Arc<Notify>,
}

impl Http2Client {
    pub(super) fn new(
        info: Arc<ConnectionInfo>,
        request: http::Request<RecvStream>,
        respond: SendResponse<Bytes>,
        goaway: Arc<Notify>,
    ) -> Self {
        let (parts, body) = request.into_parts();
        let head = StreamHead::new(parts);
        let length = match head.content_length() {
            // The bytes of a WebSocket request are no body: after the switch they are frames.
            _ if body.is_end_stream() || head.web_socket().is_some() => BodyLength::Empty,
            Some(length) => BodyLength::Known(length),
            None => BodyLength::Unknown,
        };
        let expect = head.first("expect");
        Self {
            expects: expect.is_some_and(|e| e.eq_ignore_ascii_case(b"100-continue")),
            info,
            head,
            body: Some(body),
            chunk: Bytes::new(),
            length,
            trailers: None,
            continued: false,
            response: ResponseState::Pending(respond),
            left: None,
            sized: false,
            blocked: None,
            goaway,
        }
    }

    fn send_head(&mut self, status: u16, fields: HeaderMap, end: bool) -> Result<(), ClientFault> {
        let ResponseState::Pending(respond) = &mut self.response else {
            return Err(ClientFault::Gone);
        };
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(status).map_err(|_| ClientFault::Gone)?;
        *response.headers_mut() = fields;
        let stream = respond
            .send_response(response, end)
            .map_err(|_| ClientFault::Gone)?;
        self.response = if end {
            ResponseState::Ended(stream)
        } else {
            ResponseState::Streaming(stream)
        };
        Ok(())
    }
}

impl ClientSide for Http2Client {
    type Head = StreamHead;
    type Stream = StreamIo;

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
        // A body without a length has no minimum rate: a long pause is ordinary in gRPC streams. The
        // revision's timeouts bound it.
        matches!(self.length, BodyLength::Known(_))
    }

    fn held_bytes(&self) -> u64 {
        // The client may fill the stream's window before the body is read.
        match self.length {
            BodyLength::Empty if self.head.web_socket().is_some() => u64::from(super::http2::STREAM_WINDOW),
            BodyLength::Empty => 0,
            BodyLength::Known(length) => length.min(u64::from(super::http2::STREAM_WINDOW)),
            BodyLength::Unknown => u64::from(super::http2::STREAM_WINDOW),
        }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, ClientFault>> {
        if self.expects && !self.continued {
            self.continued = true;
            if let ResponseState::Pending(respond) = &mut self.response {
                let mut interim = Response::new(());
                *interim.status_mut() = StatusCode::CONTINUE;
                respond
                    .send_informational(interim)
                    .map_err(|_| ClientFault::Gone)?;
            }
        }
        let Some(body) = &mut self.body else {
            return Poll::Ready(Err(ClientFault::Gone));
        };
        while self.chunk.is_empty() {
            match ready!(body.poll_data(cx)) {
                Some(Ok(chunk)) => self.chunk = chunk,
                Some(Err(_)) => return Poll::Ready(Err(ClientFault::Gone)),
                None => {
                    let trailers = ready!(body.poll_trailers(cx));
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
        if let Some(body) = &mut self.body {
            // Fails only for a stream that is gone.
            let _ = body.flow_control().release_capacity(n);
        }
    }

    fn trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take()
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.response {
            ResponseState::Pending(respond) => respond.poll_reset(cx).map(|_| ()),
            ResponseState::Streaming(stream) | ResponseState::Ended(stream) => {
                stream.poll_reset(cx).map(|_| ())
            }
            ResponseState::Taken => Poll::Ready(()),
        }
    }

    fn interim(&mut self, status: u16, fields: &impl Fields) {
        self.continued |= status == 100;
        if let (ResponseState::Pending(respond), Ok(status)) =
            (&mut self.response, StatusCode::from_u16(status))
        {
            let mut sink = MapSink::default();
            response_fields(fields, &mut sink);
            let mut interim = Response::new(());
            *interim.status_mut() = status;
            *interim.headers_mut() = sink.0;
            // An error means that the stream was reset, which is detected elsewhere.
            let _ = respond.send_informational(interim);
        }
    }

    fn was_continued(&self) -> bool {
        self.continued
    }

    fn switched_status(&self) -> u16 {
        200
    }

    fn accepts_switch(&self, token: &[u8], fields: &impl Fields) -> bool {
        let accept = fields.first("sec-websocket-accept");
        token.eq_ignore_ascii_case(b"websocket")
            && self
                .head
                .web_socket()
                .is_some_and(|key| accept.is_some_and(|accept| key.is_accepted_by(accept)))
    }

    fn respond<F: Fields>(&mut self, head: &OutgoingResponse<'_, F>) -> Result<(), ClientFault> {
        let mut sink = MapSink::default();
        let dated = response_fields(head.fields, &mut sink);
        if !dated {
            sink.field(b"date", &date_now());
        }
        if let Some(reason) = head.reason {
            sink.field(b"x-sluice-reason", reason.as_bytes());
        }
        if let Some(timing) = head.timing {
            sink.field(b"server-timing", timing.as_bytes());
        }
        if head.status == 101 {
            // RFC 8441 5: 200 in place of 101; the accept key is part of HTTP/1.1 only.
            sink.0.remove(http::header::SEC_WEBSOCKET_ACCEPT);
            return self.send_head(200, sink.0, false);
        }
        let bodiless = self.head.is_head() || matches!(head.status, 204 | 304);
        let length = match head.length {
            BodyLength::Known(length) => Some(length),
            BodyLength::Empty | BodyLength::Unknown => head.declared_length,
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

    fn respond_local(&mut self, response: &RenderedResponse, _: bool) -> Result<(), ClientFault> {
        let mut sink = MapSink::default();
        for (name, value) in &response.headers {
            sink.field(name.as_bytes(), value.as_bytes());
        }
        let length = HeaderValue::from(response.body.len());
        sink.0.insert(http::header::CONTENT_LENGTH, length);
        // A gRPC response is trailers-only: its head has to end the stream.
        let end = response.body.is_empty() || self.head.is_head();
        self.send_head(response.status, sink.0, end)?;
        if let ResponseState::Streaming(stream) = &mut self.response {
            // One line of text fits any window.
            stream
                .send_data(response.body.clone(), true)
                .map_err(|_| ClientFault::Gone)?;
        }
        Ok(())
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, ClientFault>> {
        let ResponseState::Streaming(stream) = &mut self.response else {
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
        if end
            && let ResponseState::Streaming(stream) =
                std::mem::replace(&mut self.response, ResponseState::Taken)
        {
            self.response = ResponseState::Ended(stream);
        }
        Poll::Ready(sent.map(|()| n).map_err(|_| ClientFault::Gone))
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ClientFault>> {
        // The connection's task writes.
        Poll::Ready(Ok(()))
    }

    fn finish(&mut self, trailers: Option<HeaderMap>) -> Result<(), ClientFault> {
        let ResponseState::Streaming(stream) = &mut self.response else {
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
        match &mut self.response {
            ResponseState::Pending(respond) => respond.send_reset(h2::Reason::CANCEL),
            ResponseState::Streaming(stream) => stream.send_reset(h2::Reason::INTERNAL_ERROR),
            ResponseState::Ended(_) | ResponseState::Taken => {}
        }
    }

    fn write_timed_out(&mut self) {}

    fn end_early(&mut self) -> bool {
        !self.sized && self.finish(None).is_ok()
    }

    fn ask_to_end(&mut self) -> Duration {
        self.goaway.notify_one();
        GOAWAY_GRACE
    }

    fn take_stream(&mut self) -> StreamIo {
        let send = match std::mem::replace(&mut self.response, ResponseState::Taken) {
            ResponseState::Streaming(stream) => Some(stream),
            ResponseState::Pending(_) | ResponseState::Ended(_) | ResponseState::Taken => None,
        };
        StreamIo::new(self.body.take(), std::mem::take(&mut self.chunk), send)
    }
}

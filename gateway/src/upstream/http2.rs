//! Exchanges as streams on HTTP/2 connections to a backend.
//!
//! A connection belongs to its endpoint and carries as many streams at a time as the revision and the
//! backend's SETTINGS allow. What happens to one stream (a clock, a reset, a client that does not read)
//! is a matter of that stream: it is reset, and the connection goes on.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version};
use parking_lot::Mutex;
use sluice_model::{Limits, RevisionSpec};

use super::connect::{ConnectError, connect as dial};
use super::io::BackendIo;
use super::prewarmed::PlainStream;
use crate::exchange::{BackendFault, BackendResponse, BackendSide, BodyLength, ClientHead, OutgoingRequest};
use crate::h2::LastTurn;
use crate::request::{FieldSink, Fields, RequestEdit, Routed, request_fields};
use crate::throttle::{EndpointState, clock};

/// What a backend may send on one stream, and on all of them, before it is taken, in bytes.
const STREAM_WINDOW: u32 = 128 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;

/// What one stream buffers on its way to a backend that reads slowly, in bytes.
const SEND_BUFFER: usize = 64 * 1024;

/// Streams that may begin before the backend's SETTINGS are there. What a burst had begun beyond the backend's
/// own limit would wait on the connection, or be refused, while there is room on another one (RFC 9113 5.1.2).
const BEFORE_SETTINGS: usize = 0;

/// The largest piece of a request body that is given to a stream at once, in bytes.
const PIECE: usize = 16 * 1024;

/// Gathers fields in a header map.
#[derive(Debug, Default)]
pub(crate) struct MapSink(pub(crate) HeaderMap);

impl FieldSink for MapSink {
    fn field(&mut self, name: &[u8], value: &[u8]) {
        // Both were judged; what a map cannot hold is left out.
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            let _ = self.0.try_append(name, value);
        }
    }
}

/// The fields of a header map.
#[derive(Debug, Default)]
pub(crate) struct MapFields(pub(crate) HeaderMap);

impl Fields for MapFields {
    fn each<'h>(&'h self, mut each: impl FnMut(&'h [u8], &'h [u8])) {
        for (name, value) in &self.0 {
            each(name.as_str().as_bytes(), value.as_bytes());
        }
    }

    fn first(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name).map(HeaderValue::as_bytes)
    }
}

/// One HTTP/2 connection.
#[derive(Debug)]
struct Shared {
    send: SendRequest<Bytes>,
    open: AtomicUsize,
    /// It takes no further stream.
    closed: AtomicBool,
    /// When its last stream ended.
    rested: Mutex<Instant>,
}

/// The HTTP/2 connections to one endpoint.
#[derive(Debug, Default)]
pub(crate) struct StreamConnections {
    connections: Arc<Mutex<Vec<Arc<Shared>>>>,
    /// One connection is made at a time: whoever waits meanwhile finds room on it.
    making: tokio::sync::Mutex<()>,
}

impl StreamConnections {
    /// A stream on a connection that is there and has room.
    pub(super) fn open(&self, spec: &RevisionSpec) -> Option<Http2Backend> {
        let most = usize::try_from(spec.max_streams_per_connection).unwrap_or(usize::MAX);
        let mut connections = self.connections.lock();
        connections.retain(|shared| !shared.closed.load(Ordering::Acquire));
        let room = |shared: &&Arc<Shared>| {
            shared.open.load(Ordering::Acquire) < most.min(shared.send.current_max_send_streams())
        };
        let shared = connections.iter().find(room)?;
        Some(Http2Backend::on(shared))
    }

    /// A stream on a connection that is made for it, or was made for another meanwhile, within
    /// `limits.connectTimeout`: the time in which others try counts, or those who wait for an address that
    /// does not answer would try one after another.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub(super) async fn connect(
        &self,
        routed: &Routed,
        endpoint: &Arc<EndpointState>,
        limits: &Limits,
    ) -> Result<Http2Backend, ConnectError> {
        let timeout = limits.connect_timeout;
        tokio::time::timeout(timeout, self.make(routed, endpoint, limits))
            .await
            .unwrap_or(Err(ConnectError::TimedOut(timeout)))
    }

    async fn make(
        &self,
        routed: &Routed,
        endpoint: &Arc<EndpointState>,
        limits: &Limits,
    ) -> Result<Http2Backend, ConnectError> {
        let _turn = self.making.lock().await;
        if let Some(stream) = self.open(&routed.spec) {
            return Ok(stream);
        }
        let timeout = limits.connect_timeout;
        let io = match endpoint.prewarmed().take(true) {
            Some(PlainStream::Tcp(socket)) if routed.live.tls(endpoint.tier).is_plain() => {
                BackendIo::Tcp(socket)
            }
            Some(PlainStream::Unix(socket)) if routed.live.tls(endpoint.tier).is_plain() => {
                BackendIo::Unix(socket)
            }
            _ => {
                let tls = routed.live.tls(endpoint.tier).get().await?;
                let connected = dial(&endpoint.address, tls.as_deref(), timeout).await?;
                if tls.is_some() && !connected.alpn_h2 {
                    return Err(ConnectError::Http2(
                        "the backend does not speak it over TLS (ALPN)".into(),
                    ));
                }
                connected.io
            }
        };
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buffer_size(SEND_BUFFER)
            .max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX))
            .initial_max_send_streams(BEFORE_SETTINGS)
            .enable_push(false);
        let failed = |e: h2::Error| ConnectError::Http2(e.to_string().into());
        let (send, mut connection) = builder.handshake(io).await.map_err(failed)?;
        let announced = poll_fn(|cx| {
            if let Poll::Ready(ended) = Pin::new(&mut connection).poll(cx) {
                let closed = || ConnectError::Http2("the backend closed before it sent SETTINGS".into());
                return Poll::Ready(Err(ended.err().map_or_else(closed, failed)));
            }
            match send.current_max_send_streams() {
                BEFORE_SETTINGS => Poll::Pending,
                _ => Poll::Ready(Ok(())),
            }
        });
        match tokio::time::timeout(timeout, announced).await {
            Ok(announced) => announced?,
            Err(_) => return Err(ConnectError::TimedOut(timeout)),
        }
        let shared = Arc::new(Shared {
            send,
            open: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            rested: Mutex::new(clock()),
        });
        let stream = Http2Backend::on(&shared);
        let pool = Arc::downgrade(&self.connections);
        self.connections.lock().push(Arc::clone(&shared));
        tokio::spawn(drive(
            connection,
            Arc::downgrade(&shared),
            pool,
            limits.upstream_idle_timeout,
        ));
        Ok(stream)
    }

    /// Lets no further stream begin; those that run go on.
    pub(crate) fn close(&self) {
        self.connections.lock().clear();
    }
}

/// Drives one connection until it ends, or has had no stream for `max_idle`.
async fn drive(
    connection: h2::client::Connection<BackendIo, Bytes>,
    shared: Weak<Shared>,
    pool: Weak<Mutex<Vec<Arc<Shared>>>>,
    max_idle: Duration,
) {
    let mut connection = pin!(connection);
    let mut rest = pin!(tokio::time::sleep(max_idle));
    let mut turn = LastTurn::default();
    poll_fn(|cx| {
        let open = shared
            .upgrade()
            .map_or(0, |shared| shared.open.load(Ordering::Relaxed));
        if open > 1 {
            ready!(turn.poll(cx));
        }
        loop {
            // An error reaches the streams that it ends.
            if connection.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            ready!(rest.as_mut().poll(cx));
            let Some(shared) = shared.upgrade() else {
                // Its handles are gone; the connection says goodbye and ends.
                rest.as_mut()
                    .reset(tokio::time::Instant::now() + max_idle.max(Duration::from_secs(1)));
                continue;
            };
            let rested = *shared.rested.lock();
            if shared.open.load(Ordering::Acquire) == 0 && rested + max_idle <= clock() {
                forget(&shared, &pool);
            }
            rest.as_mut()
                .reset(tokio::time::Instant::now() + max_idle.max(Duration::from_millis(10)));
        }
    })
    .await;
    if let Some(shared) = shared.upgrade() {
        forget(&shared, &pool);
    }
}

fn forget(shared: &Arc<Shared>, pool: &Weak<Mutex<Vec<Arc<Shared>>>>) {
    shared.closed.store(true, Ordering::Release);
    if let Some(pool) = pool.upgrade() {
        pool.lock().retain(|other| !Arc::ptr_eq(other, shared));
    }
}

/// The backend's side of an exchange over HTTP/2.
#[derive(Debug)]
pub(crate) struct Http2Backend {
    shared: Arc<Shared>,
    stream: Option<SendStream<Bytes>>,
    response: Option<ResponseFuture>,
    body: Option<RecvStream>,
    chunk: Bytes,
    /// Of the last head.
    fields: MapFields,
    trailers: Option<HeaderMap>,
    /// Body bytes that were announced and are still to come, where nothing can follow them.
    left: Option<u64>,
    ended: bool,
    /// Of a HEAD request.
    head_only: bool,
}

impl Http2Backend {
    fn on(shared: &Arc<Shared>) -> Self {
        shared.open.fetch_add(1, Ordering::AcqRel);
        Self {
            shared: Arc::clone(shared),
            stream: None,
            response: None,
            body: None,
            chunk: Bytes::new(),
            fields: MapFields::default(),
            trailers: None,
            left: None,
            ended: false,
            head_only: false,
        }
    }

    fn fault(&self, e: h2::Error) -> BackendFault {
        if e.is_go_away() || e.is_io() {
            self.shared.closed.store(true, Ordering::Release);
        }
        let refused = e.reason() == Some(h2::Reason::REFUSED_STREAM);
        if e.is_remote() && (refused || e.is_go_away() && e.reason() == Some(h2::Reason::NO_ERROR)) {
            return BackendFault::NotProcessed;
        }
        match e.reason() {
            Some(reason) if e.is_reset() && e.is_remote() => BackendFault::Reset(reason),
            Some(_) if !e.is_remote() && !e.is_io() => BackendFault::Malformed(e.to_string().into()),
            _ => BackendFault::Broke(
                e.into_io()
                    .unwrap_or_else(|| std::io::ErrorKind::ConnectionReset.into()),
            ),
        }
    }

    fn answered(&mut self, status: u16, fields: HeaderMap, length: BodyLength) -> BackendResponse {
        let told = fields.get(http::header::CONTENT_LENGTH);
        let declared_length = told.and_then(|value| value.to_str().ok()?.parse().ok());
        let declared_length = declared_length.filter(|_| status != 204);
        self.fields = MapFields(fields);
        BackendResponse {
            status,
            length: match (length, declared_length) {
                (BodyLength::Unknown, Some(length)) => BodyLength::Known(length),
                _ => length,
            },
            declared_length,
        }
    }
}

impl Drop for Http2Backend {
    fn drop(&mut self) {
        // First the time: who sees no stream sees since when.
        *self.shared.rested.lock() = clock();
        self.shared.open.fetch_sub(1, Ordering::AcqRel);
    }
}

impl BackendSide for Http2Backend {
    const UPGRADES: bool = false;
    const LENGTH_AND_TRAILERS: bool = true;

    type Fields = MapFields;
    type Stream = tokio::io::Empty;

    fn request<H: ClientHead>(
        &mut self,
        head: &H,
        line: &OutgoingRequest<'_>,
        edit: &RequestEdit<'_>,
    ) -> Result<(), BackendFault> {
        let malformed = |what: &'static str| BackendFault::Malformed(what.into());
        self.head_only = head.method() == "HEAD";
        let mut sink = MapSink::default();
        request_fields(head, edit, &mut sink);
        if head.takes_trailers() {
            sink.field(b"te", b"trailers");
        }
        if let BodyLength::Known(length) = line.length {
            // The last byte ends the stream where nothing can follow it.
            self.left = (!line.trailers).then_some(length);
            sink.0
                .insert(http::header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(if line.tls { Scheme::HTTPS } else { Scheme::HTTP });
        parts.authority =
            Some(Authority::try_from(line.host).map_err(|_| malformed("the host fits no URI"))?);
        let target = PathAndQuery::try_from(line.target).map_err(|_| malformed("the target fits no URI"))?;
        parts.path_and_query = Some(target);
        let uri = Uri::from_parts(parts).map_err(|_| malformed("the target fits no URI"))?;
        let mut request = Request::new(());
        *request.method_mut() = Method::from_bytes(head.method().as_bytes())
            .map_err(|_| malformed("the method fits no request"))?;
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = sink.0;
        let end = line.length.is_empty();
        match self.shared.send.clone().send_request(request, end) {
            Ok((response, stream)) => {
                self.response = Some(response);
                self.stream = Some(stream);
                self.ended = end;
                Ok(())
            }
            Err(e) => {
                // The connection took no stream: nothing was sent.
                self.shared.closed.store(true, Ordering::Release);
                tracing::debug!(error = %e, "no stream to a backend");
                Err(BackendFault::NotProcessed)
            }
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, BackendFault>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(Err(BackendFault::NotProcessed));
        };
        let want = data.len().min(PIECE);
        stream.reserve_capacity(want);
        while stream.capacity() == 0 {
            match ready!(stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(e)) => return Poll::Ready(Err(self.fault(e))),
                None => return Poll::Ready(Err(BackendFault::Reset(h2::Reason::NO_ERROR))),
            }
        }
        let n = stream.capacity().min(want);
        let left = self.left.map(|left| left.saturating_sub(n as u64));
        let end = left == Some(0);
        match stream.send_data(Bytes::copy_from_slice(&data[..n]), end) {
            Ok(()) => {
                self.left = left;
                self.ended |= end;
                Poll::Ready(Ok(n))
            }
            Err(e) => Poll::Ready(Err(self.fault(e))),
        }
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BackendFault>> {
        // The connection's task writes.
        Poll::Ready(Ok(()))
    }

    fn finish(&mut self, trailers: Option<HeaderMap>) -> Result<(), BackendFault> {
        let Some(stream) = self.stream.as_mut().filter(|_| !self.ended) else {
            return Ok(());
        };
        self.ended = true;
        let ended = match trailers {
            Some(trailers) => stream.send_trailers(trailers),
            None => stream.send_data(Bytes::new(), true),
        };
        ended.map_err(|e| self.fault(e))
    }

    fn was_sent(&self) -> bool {
        self.stream.is_some()
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<BackendResponse, BackendFault>> {
        let Some(response) = &mut self.response else {
            return Poll::Ready(Err(BackendFault::NotProcessed));
        };
        match response.poll_informational(cx) {
            Poll::Ready(Some(Ok(interim))) => {
                let (parts, ()) = interim.into_parts();
                return Poll::Ready(Ok(self.answered(
                    parts.status.as_u16(),
                    parts.headers,
                    BodyLength::Empty,
                )));
            }
            Poll::Ready(Some(Err(e))) => return Poll::Ready(Err(self.fault(e))),
            Poll::Ready(None) | Poll::Pending => {}
        }
        let (parts, body) = match ready!(Pin::new(response).poll(cx)) {
            Ok(response) => response.into_parts(),
            Err(e) => return Poll::Ready(Err(self.fault(e))),
        };
        let status = parts.status.as_u16();
        // RFC 9110 6.4.1: no content follows these heads. A backend that sends DATA all the same has its stream
        // reset (RFC 9113 8.1.1), as an HTTP/1 connection is closed: nobody is given the bytes, and the head counts.
        let bodiless = self.head_only || matches!(status, 204 | 304);
        let length = if bodiless || body.is_end_stream() {
            BodyLength::Empty
        } else {
            BodyLength::Unknown
        };
        self.response = None;
        self.body = (!bodiless).then_some(body);
        Poll::Ready(Ok(self.answered(status, parts.headers, length)))
    }

    fn fields(&self) -> &MapFields {
        &self.fields
    }

    fn phrase(&self) -> &[u8] {
        b""
    }

    fn upgraded_to(&self) -> Option<&[u8]> {
        None
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, BackendFault>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(Ok(false));
        };
        while self.chunk.is_empty() {
            match ready!(body.poll_data(cx)) {
                Some(Ok(chunk)) => self.chunk = chunk,
                Some(Err(e)) => return Poll::Ready(Err(self.fault(e))),
                None => {
                    match ready!(body.poll_trailers(cx)) {
                        Ok(trailers) => self.trailers = trailers,
                        Err(e) => return Poll::Ready(Err(self.fault(e))),
                    }
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

    fn release(self) {}

    fn into_stream(self) -> tokio::io::Empty {
        tokio::io::empty()
    }
}

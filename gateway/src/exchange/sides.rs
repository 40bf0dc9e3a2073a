//! The interfaces of the two sides of an exchange: the client and the backend.
//!
//! Each side is implemented for HTTP/1 and for HTTP/2; the engine is generic over both, so that each of the
//! four pairs is compiled into one future without a channel or a boxed call in between. Both sides are polled
//! by the task of the request. A body is passed as slices of its source's read buffer, so back-pressure needs
//! no accounting: a source reads on only after its bytes were consumed.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::HeaderMap;
use sluice_model::{Limits, RequestView};
use thiserror::Error;

use crate::edge::ConnectionInfo;
use crate::http1::ChunkFault;
use crate::local_response::{ErrorResponse, RenderedResponse};
use crate::observe::RequestProtocol;
use crate::request::{Fields, RequestEdit};

/// The client's request head, of either protocol.
pub(crate) trait ClientHead: RequestView + Fields {
    /// Path and query as sent; `*` for the server as a whole.
    fn target(&self) -> &str;

    /// Host or `:authority` as sent.
    fn host(&self) -> Option<&[u8]>;

    /// The approximate size of the head, in bytes.
    fn size(&self) -> usize;

    /// Whether the client accepts trailers (`TE: trailers`).
    fn takes_trailers(&self) -> bool;

    /// Whether `Connection` nominates other fields.
    fn nominates_others(&self) -> bool {
        false
    }

    /// Whether `Cookie` may have come in several fields.
    fn has_crumbs(&self) -> bool {
        false
    }

    /// Rejects heads that are valid in this protocol and not served by the gateway.
    ///
    /// # Errors
    /// The error response.
    fn check(&self, _: &Limits) -> Result<(), ErrorResponse> {
        Ok(())
    }

    /// The protocols of the client's upgrade offer, as sent.
    fn upgrade(&self) -> Option<&[u8]> {
        None
    }

    /// Whether only an upgrade serves the request: without one there is no response to it.
    fn must_switch(&self) -> bool {
        false
    }
}

/// The length of a body, as announced by its head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyLength {
    /// No body.
    Empty,
    /// This many bytes.
    Known(u64),
    /// Unknown until the body's end.
    Unknown,
}

impl BodyLength {
    /// Whether the body has no bytes.
    pub(crate) fn is_empty(self) -> bool {
        matches!(self, Self::Empty | Self::Known(0))
    }
}

/// Why the client's side failed.
#[derive(Debug, Error)]
pub(crate) enum ClientFault {
    /// Malformed chunk framing.
    #[error(transparent)]
    Chunk(#[from] ChunkFault),
    /// The client disconnected or reset the stream.
    #[error("the client left in the middle of the request")]
    Gone,
}

/// A response head to be sent to the client.
pub(crate) struct OutgoingResponse<'a, F> {
    /// The status.
    pub(crate) status: u16,
    /// The backend's reason phrase; empty for the status's standard phrase.
    pub(crate) phrase: &'a [u8],
    /// The backend's fields.
    pub(crate) fields: &'a F,
    /// The announced length of the body.
    pub(crate) length: BodyLength,
    /// Whether trailers may follow a body of known length.
    pub(crate) trailers: bool,
    /// The announced length of a response without body: of HEAD, or of a 304.
    pub(crate) declared_length: Option<u64>,
    /// The value of `x-sluice-reason`, where the response is the gateway's own.
    pub(crate) reason: Option<&'static str>,
    /// The value of `Server-Timing`, where the client asked for the field.
    pub(crate) timing: Option<&'a str>,
    /// The protocol that follows a 101.
    pub(crate) upgrade: Option<&'a [u8]>,
    /// Whether the connection ends with this response.
    pub(crate) last: bool,
}

/// The client's side of one exchange.
pub(crate) trait ClientSide {
    /// The request head.
    type Head: ClientHead;

    /// The byte stream after an upgrade: after a 101, or the 200 that replaces it in HTTP/2.
    type Stream;

    /// Whether trailers may follow a body of known length.
    const LENGTH_AND_TRAILERS: bool;

    /// Information on the connection.
    fn info(&self) -> &Arc<ConnectionInfo>;

    /// The request head. Unchanged to the end of the exchange.
    fn head(&self) -> &Self::Head;

    /// The client's protocol.
    fn protocol(&self) -> RequestProtocol;

    /// The length of the request body.
    fn body_length(&self) -> BodyLength;

    /// Whether body timeout and minimum rate apply.
    fn is_paced(&self) -> bool;

    /// Bytes besides the head that may be buffered for the client while the request waits.
    fn held_bytes(&self) -> u64 {
        0
    }

    /// Frees memory that a waiting request does not need.
    fn release_memory(&mut self) {}

    /// Resolves to true when [`data`](Self::data) has body bytes, to false at the body's end. The first call
    /// sends 100 Continue to a client that waits for it.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, ClientFault>>;

    /// Body bytes at hand.
    fn data(&self) -> &[u8];

    /// Consumes the first `n` bytes of [`data`](Self::data).
    fn consume(&mut self, n: usize);

    /// The trailers of a body that was read to its end, unfiltered.
    fn trailers(&mut self) -> Option<HeaderMap>;

    /// Resolves when the client is gone. Reads no byte of a body.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Forwards an interim response.
    fn interim(&mut self, status: u16, fields: &impl Fields);

    /// Whether 100 Continue was sent.
    fn was_continued(&self) -> bool;

    /// The status of an accepted upgrade in this protocol.
    fn switched_status(&self) -> u16 {
        101
    }

    /// Whether a 101 with these fields accepts the upgrade, as far as the gateway offered it itself.
    fn accepts_switch(&self, _token: &[u8], _fields: &impl Fields) -> bool {
        true
    }

    /// Begins the response; it has been written once [`poll_flush`](Self::poll_flush) resolved.
    ///
    /// # Errors
    /// The stream was reset.
    fn respond<F: Fields>(&mut self, head: &OutgoingResponse<'_, F>) -> Result<(), ClientFault>;

    /// Writes a local response, body included. `last` ends the connection.
    ///
    /// # Errors
    /// The stream was reset.
    fn respond_local(&mut self, response: &RenderedResponse, last: bool) -> Result<(), ClientFault>;

    /// Accepts bytes of the response body from the front of `data`, one at least; resolves to how many.
    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, ClientFault>>;

    /// Resolves once everything given is on its way.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ClientFault>>;

    /// Ends a complete response. Flush afterwards.
    fn finish(&mut self, trailers: Option<HeaderMap>) -> Result<(), ClientFault>;

    /// When the client stopped accepting bytes (flow control or a full socket buffer).
    fn blocked_since(&self) -> Option<Instant>;

    /// Aborts an incomplete response, so that the client does not take it for a complete one.
    fn abort(&mut self);

    /// Records a body timeout as the reason why the connection ends.
    fn body_timed_out(&mut self) {}

    /// Gives up the rest of the request body.
    fn stop_reading_body(&mut self) {}

    /// Records a write timeout as the reason why the connection ends.
    fn write_timed_out(&mut self);

    /// Ends a response whose body may end anywhere; returns whether the protocol can end it in order.
    fn end_early(&mut self) -> bool;

    /// Asks the client to end its stream, where the protocol can; returns how long that may take, zero where
    /// it cannot.
    fn ask_to_end(&mut self) -> Duration;

    /// Takes the byte stream after a 101 was written; only the head remains.
    fn take_stream(&mut self) -> Self::Stream;
}

/// The beginning of a backend's response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BackendResponse {
    /// The status.
    pub(crate) status: u16,
    /// The announced length of the body.
    pub(crate) length: BodyLength,
    /// The announced length of a response without body.
    pub(crate) declared_length: Option<u64>,
}

/// Why the backend's side failed.
#[derive(Debug, Error)]
pub(crate) enum BackendFault {
    /// The connection broke or closed before the end of the response.
    #[error("{0}")]
    Broke(io::Error),
    /// The response is no HTTP, or cannot be forwarded safely.
    #[error("{0}")]
    Malformed(Cow<'static, str>),
    /// The backend reset the stream with an error.
    #[error("the backend reset the stream: {0}")]
    Reset(h2::Reason),
    /// The backend did not process the request: REFUSED_STREAM or GOAWAY.
    #[error("the backend did not process the request")]
    NotProcessed,
}

/// A request to be sent to the backend, besides its fields.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OutgoingRequest<'a> {
    /// Path and query.
    pub(crate) target: &'a str,
    /// Host.
    pub(crate) host: &'a [u8],
    /// The announced length of the body.
    pub(crate) length: BodyLength,
    /// Whether trailers may follow a body of known length.
    pub(crate) trailers: bool,
    /// The protocols of the forwarded upgrade offer.
    pub(crate) upgrade: Option<&'a [u8]>,
    /// Whether the client connected by TLS.
    pub(crate) tls: bool,
}

/// The backend's side of one exchange, on an open connection.
pub(crate) trait BackendSide {
    /// Whether the protocol has upgrades.
    const UPGRADES: bool;

    /// Whether trailers may follow a body of known length.
    const LENGTH_AND_TRAILERS: bool;

    /// The fields of a response head.
    type Fields: Fields;

    /// The byte stream after a 101.
    type Stream;

    /// Begins the request.
    ///
    /// # Errors
    /// The connection accepts no further request.
    fn request<H: ClientHead>(
        &mut self,
        head: &H,
        line: &OutgoingRequest<'_>,
        edit: &RequestEdit<'_>,
    ) -> Result<(), BackendFault>;

    /// Accepts bytes of the request body from the front of `data`, one at least; resolves to how many.
    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, BackendFault>>;

    /// Resolves once everything given is on its way.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BackendFault>>;

    /// Ends a complete request. Flush afterwards.
    fn finish(&mut self, trailers: Option<HeaderMap>) -> Result<(), BackendFault>;

    /// Whether any byte of the request can have reached the backend.
    fn was_sent(&self) -> bool;

    /// Resolves to the next response head, interim ones included.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<BackendResponse, BackendFault>>;

    /// The fields of the head that [`poll_head`](Self::poll_head) found.
    fn fields(&self) -> &Self::Fields;

    /// The reason phrase of that head.
    fn phrase(&self) -> &[u8];

    /// The token of `Upgrade` in that head.
    fn upgraded_to(&self) -> Option<&[u8]>;

    /// Resolves to true when [`data`](Self::data) has body bytes, to false at the body's end.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, BackendFault>>;

    /// Body bytes at hand.
    fn data(&self) -> &[u8];

    /// Consumes the first `n` bytes of [`data`](Self::data).
    fn consume(&mut self, n: usize);

    /// The trailers of a body that was read to its end, unfiltered.
    fn trailers(&mut self) -> Option<HeaderMap>;

    /// Returns the connection to the pool after a complete exchange.
    fn release(self);

    /// Takes the byte stream after a 101.
    fn into_stream(self) -> Self::Stream;
}

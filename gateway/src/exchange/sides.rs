//! The two sides of an exchange: where a request comes from and where it goes.
//!
//! Each is implemented for HTTP/1 and for HTTP/2; the engine is generic over both, so that each of
//! the four pairs is compiled into one future without a channel or a boxed call in between. Both sides
//! are polled by the task of the request. A body goes through as slices of whatever buffer its source
//! reads into, so back-pressure needs no accounting of its own: nobody reads before what was read is
//! taken.

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

/// A request head of either protocol.
pub(crate) trait ClientHead: RequestView + Fields {
    /// Path and query as sent; `*` for the server as a whole.
    fn target(&self) -> &str;

    /// Host or `:authority` as sent.
    fn host(&self) -> Option<&[u8]>;

    /// Bytes the head takes, about.
    fn size(&self) -> usize;

    /// Whether the client takes trailers (`TE: trailers`).
    fn takes_trailers(&self) -> bool;

    /// Whether `Connection` names fields of its own.
    fn nominates_others(&self) -> bool {
        false
    }

    /// Whether `Cookie` may have come in several crumbs.
    fn has_crumbs(&self) -> bool {
        false
    }

    /// Judges what a head of this protocol may have and the gateway does not serve.
    ///
    /// # Errors
    /// The answer to give.
    fn check(&self, _: &Limits) -> Result<(), ErrorResponse> {
        Ok(())
    }

    /// The protocols the client offers to upgrade to, as sent.
    fn upgrade(&self) -> Option<&[u8]> {
        None
    }

    /// Whether only a switch of protocols serves the request: there is no answer to it without.
    fn must_switch(&self) -> bool {
        false
    }
}

/// What is known of a body before it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyLength {
    /// There is none.
    Empty,
    /// So many bytes.
    Known(u64),
    /// Until its end.
    Unknown,
}

impl BodyLength {
    /// Whether no byte follows the head.
    pub(crate) fn is_empty(self) -> bool {
        matches!(self, Self::Empty | Self::Known(0))
    }
}

/// Why a request body ends before its time.
#[derive(Debug, Error)]
pub(crate) enum ClientFault {
    /// Chunk framing that is not served.
    #[error(transparent)]
    Chunk(#[from] ChunkFault),
    /// The client left, reset the stream, or its connection broke.
    #[error("the client left in the middle of the request")]
    Gone,
}

/// The head of a response on its way to the client.
pub(crate) struct OutgoingResponse<'a, F> {
    /// The status.
    pub(crate) status: u16,
    /// The reason phrase as the backend sent it; empty for the status's own.
    pub(crate) phrase: &'a [u8],
    /// The backend's fields.
    pub(crate) fields: &'a F,
    /// What is known of the body.
    pub(crate) length: BodyLength,
    /// Whether trailers may follow a body of known length.
    pub(crate) trailers: bool,
    /// The length that a response without body still tells: of HEAD, or of a 304.
    pub(crate) declared_length: Option<u64>,
    /// `Server-Timing`, where the client asked.
    pub(crate) timing: Option<&'a str>,
    /// The protocol that follows a 101.
    pub(crate) upgrade: Option<&'a [u8]>,
    /// Whether the connection ends with this response.
    pub(crate) last: bool,
}

/// The client's side of one exchange.
pub(crate) trait ClientSide {
    /// Its request head.
    type Head: ClientHead;

    /// What upgraded bytes go through after a 101, or after the 200 that stands for one.
    type Stream;

    /// Whether trailers may follow a body of known length.
    const LENGTH_AND_TRAILERS: bool;

    /// The connection.
    fn info(&self) -> &Arc<ConnectionInfo>;

    /// The request head. Stays as it is to the end of the exchange.
    fn head(&self) -> &Self::Head;

    /// What the client speaks.
    fn protocol(&self) -> RequestProtocol;

    /// What is known of the request body.
    fn body_length(&self) -> BodyLength;

    /// Whether the time that its body takes says something of the client.
    fn is_paced(&self) -> bool;

    /// Bytes besides the head that the client may have sent before anybody reads.
    fn held_bytes(&self) -> u64 {
        0
    }

    /// The request is about to wait: memory that only a running exchange needs is given back.
    fn release_memory(&mut self) {}

    /// Resolves to true when [`data`](Self::data) has body bytes, to false at the body's end. The
    /// first call sends 100 Continue where the client waits for that.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, ClientFault>>;

    /// Body bytes at hand.
    fn data(&self) -> &[u8];

    /// Consumes the first `n` bytes of [`data`](Self::data).
    fn consume(&mut self, n: usize);

    /// Trailers of a body that was read to its end, unfiltered.
    fn trailers(&mut self) -> Option<HeaderMap>;

    /// Resolves once the client is gone. Reads nothing of a body.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Passes on an interim answer.
    fn interim(&mut self, status: u16, fields: &impl Fields);

    /// Whether 100 Continue went out already.
    fn was_continued(&self) -> bool;

    /// The status that tells a client of this protocol that its connection or stream was switched.
    fn switched_status(&self) -> u16 {
        101
    }

    /// Whether a 101 with these fields agrees to what was asked for, as far as the gateway asked itself.
    fn accepts_switch(&self, _token: &[u8], _fields: &impl Fields) -> bool {
        true
    }

    /// Begins the response. It is on its way once [`poll_flush`](Self::poll_flush) resolved.
    ///
    /// # Errors
    /// The stream was reset.
    fn respond<F: Fields>(&mut self, head: &OutgoingResponse<'_, F>) -> Result<(), ClientFault>;

    /// Answers by the gateway itself, body and all. `last` ends the connection.
    ///
    /// # Errors
    /// The stream was reset.
    fn respond_local(&mut self, response: &RenderedResponse, last: bool) -> Result<(), ClientFault>;

    /// Takes bytes of the response body from the front of `data`, one at least; says how many.
    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, ClientFault>>;

    /// Resolves once everything given is on its way.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ClientFault>>;

    /// The response is whole. Flush afterwards.
    fn finish(&mut self, trailers: Option<HeaderMap>) -> Result<(), ClientFault>;

    /// Since when the client takes no byte of what is given.
    fn blocked_since(&self) -> Option<Instant>;

    /// The response is not whole and will not be: the client must not take it for whole.
    fn abort(&mut self);

    /// The request body came too slowly: the connection ends for that reason.
    fn body_timed_out(&mut self) {}

    /// Nobody will read the rest of the request body.
    fn stop_reading_body(&mut self) {}

    /// The client took nothing for too long: its connection ends for that reason.
    fn write_timed_out(&mut self);

    /// Ends a response whose body may end anywhere, and says whether the protocol can end it in order.
    fn end_early(&mut self) -> bool;

    /// Asks the client to end its stream, where the protocol has words for that; how long that may take.
    fn ask_to_end(&mut self) -> Duration;

    /// Takes the connection, after a 101 was written: of the exchange only its head is left.
    fn take_stream(&mut self) -> Self::Stream;
}

/// What a backend answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BackendResponse {
    /// The status.
    pub(crate) status: u16,
    /// What is known of the body.
    pub(crate) length: BodyLength,
    /// The length that a response without body still tells.
    pub(crate) declared_length: Option<u64>,
}

/// Why a backend's connection is of no use for this exchange.
#[derive(Debug, Error)]
pub(crate) enum BackendFault {
    /// The connection broke, or ended, before or in the answer.
    #[error("{0}")]
    Broke(io::Error),
    /// What came is no HTTP response, or one that cannot be passed on safely.
    #[error("{0}")]
    Malformed(Cow<'static, str>),
    /// The backend ended the stream by an error of its own.
    #[error("the backend reset the stream: {0}")]
    Reset(h2::Reason),
    /// The backend said that it did not look at the request: REFUSED_STREAM or a GOAWAY.
    #[error("the backend did not process the request")]
    NotProcessed,
}

/// What a request to the backend says besides its fields.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OutgoingRequest<'a> {
    /// Path and query.
    pub(crate) target: &'a str,
    /// Host.
    pub(crate) host: &'a [u8],
    /// What is known of the body.
    pub(crate) length: BodyLength,
    /// Whether trailers may follow a body of known length.
    pub(crate) trailers: bool,
    /// The protocols that are offered to upgrade to.
    pub(crate) upgrade: Option<&'a [u8]>,
    /// Whether the client came by TLS.
    pub(crate) tls: bool,
}

/// The backend's side of one exchange, on a connection that is there.
pub(crate) trait BackendSide {
    /// Whether the protocol has upgrades.
    const UPGRADES: bool;

    /// Whether trailers may follow a body of known length.
    const LENGTH_AND_TRAILERS: bool;

    /// The fields of a response head.
    type Fields: Fields;

    /// What upgraded bytes go through after a 101.
    type Stream;

    /// Begins the request.
    ///
    /// # Errors
    /// The connection cannot take a request any more.
    fn request<H: ClientHead>(
        &mut self,
        head: &H,
        line: &OutgoingRequest<'_>,
        edit: &RequestEdit<'_>,
    ) -> Result<(), BackendFault>;

    /// Takes bytes of the request body from the front of `data`, one at least; says how many.
    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, BackendFault>>;

    /// Resolves once everything given is on its way.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BackendFault>>;

    /// The request is whole. Flush afterwards.
    fn finish(&mut self, trailers: Option<HeaderMap>) -> Result<(), BackendFault>;

    /// Whether any byte of the request can have reached the backend.
    fn was_sent(&self) -> bool;

    /// Resolves when a head is there, interim ones included. The next call looks for the next one.
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

    /// Trailers of a body that was read to its end, unfiltered.
    fn trailers(&mut self) -> Option<HeaderMap>;

    /// The exchange is over, request and response both whole: the connection may serve another.
    fn release(self);

    /// The connection after a 101.
    fn into_stream(self) -> Self::Stream;
}

//! Reader of message bodies, from the bytes behind their heads.

use std::io;
use std::task::{Context, Poll, ready};

use http::{HeaderMap, HeaderName, HeaderValue};
use thiserror::Error;
use tokio::io::AsyncRead;

use super::buffer::{BLOCK, Buffer};
use crate::http1::{ChunkDecoder, ChunkFault, ChunkLimits};

/// Why a body cannot be read to its end.
#[derive(Debug, Error)]
pub(crate) enum ReadFault {
    /// Malformed chunk framing.
    #[error(transparent)]
    Chunk(#[from] ChunkFault),
    /// The stream ended before the body did.
    #[error("the connection ended in the middle of a body")]
    Cut,
    /// The stream broke.
    #[error("the connection broke in a body: {0}")]
    Io(#[from] io::Error),
}

#[derive(Debug)]
enum Body {
    /// Remaining bytes.
    Length(u64),
    Chunked {
        // Boxed: few bodies are chunked, and an idle connection has to stay small.
        decoder: Box<ChunkDecoder>,
        /// Payload bytes at the front of the buffer.
        ready: usize,
    },
    UntilClose,
    /// Ended by the stream's end.
    Closed,
}

/// Reads one body after another from a stream through a [`Buffer`].
#[derive(Debug)]
pub(crate) struct BodyReader {
    buffer: Buffer,
    body: Body,
}

impl Default for BodyReader {
    fn default() -> Self {
        Self {
            buffer: Buffer::default(),
            body: Body::Length(0),
        }
    }
}

impl BodyReader {
    /// The read buffer: between messages it holds the next head, then the body.
    pub(crate) fn buffer(&mut self) -> &mut Buffer {
        &mut self.buffer
    }

    /// The bytes that were read and not consumed.
    pub(crate) fn buffered(&self) -> &[u8] {
        self.buffer.data()
    }

    /// Begins a body of `length` bytes.
    pub(crate) fn expect_length(&mut self, length: u64) {
        self.body = Body::Length(length);
    }

    /// Begins a chunked body; its trailers are kept only if `keep_trailers`.
    pub(crate) fn expect_chunks(&mut self, limits: ChunkLimits, keep_trailers: bool) {
        let decoder = if keep_trailers {
            ChunkDecoder::keeping_trailers(limits)
        } else {
            ChunkDecoder::new(limits)
        };
        self.body = Body::Chunked {
            decoder: Box::new(decoder),
            ready: 0,
        };
    }

    /// Begins a body that ends with the stream.
    pub(crate) fn expect_close(&mut self) {
        self.body = Body::UntilClose;
    }

    /// Whether the body was consumed to its end.
    pub(crate) fn complete(&self) -> bool {
        match &self.body {
            Body::Length(left) => *left == 0,
            Body::Chunked { decoder, ready } => *ready == 0 && decoder.complete(),
            Body::UntilClose => false,
            Body::Closed => true,
        }
    }

    /// Whether bytes follow the body that belong to no message yet.
    pub(crate) fn has_more(&self) -> bool {
        self.complete() && !self.buffer.is_empty()
    }

    /// Resolves to true when [`data`](Self::data) has body bytes, to false at the body's end. Cancel-safe.
    ///
    /// # Errors
    /// [`ReadFault`]; the stream is of no use afterwards.
    pub(crate) fn poll_data<R: AsyncRead + Unpin + ?Sized>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut R,
    ) -> Poll<Result<bool, ReadFault>> {
        loop {
            if self.find()? {
                return Poll::Ready(Ok(true));
            }
            if self.complete() {
                return Poll::Ready(Ok(false));
            }
            if ready!(self.buffer.poll_fill(cx, io, BLOCK))? == 0 {
                if matches!(self.body, Body::UntilClose) {
                    self.body = Body::Closed;
                    return Poll::Ready(Ok(false));
                }
                return Poll::Ready(Err(ReadFault::Cut));
            }
        }
    }

    /// Removes chunk framing from the buffer's front; returns whether the buffer has body bytes.
    fn find(&mut self) -> Result<bool, ChunkFault> {
        if let Body::Chunked { decoder, ready } = &mut self.body {
            while *ready == 0 && !self.buffer.is_empty() && !decoder.complete() {
                let piece = decoder.decode(self.buffer.data())?;
                self.buffer.consume(piece.skip);
                *ready = piece.data;
            }
        }
        Ok(!self.data().is_empty())
    }

    /// The body bytes in the buffer.
    pub(crate) fn data(&self) -> &[u8] {
        let bytes = self.buffer.data();
        let length = match &self.body {
            Body::Length(left) => usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len())),
            Body::Chunked { ready, .. } => *ready,
            Body::UntilClose => bytes.len(),
            Body::Closed => 0,
        };
        &bytes[..length]
    }

    /// Consumes the first `n` bytes of [`data`](Self::data).
    pub(crate) fn consume(&mut self, n: usize) {
        match &mut self.body {
            Body::Length(left) => *left -= n as u64,
            Body::Chunked { ready, .. } => *ready -= n,
            Body::UntilClose | Body::Closed => {}
        }
        self.buffer.consume(n);
    }

    /// Trailers of a chunked body that was read to its end; `None` when there are none.
    pub(crate) fn trailers(&self) -> Option<HeaderMap> {
        let Body::Chunked { decoder, .. } = &self.body else {
            return None;
        };
        let mut map = HeaderMap::new();
        for (name, value) in decoder.trailers() {
            if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
                map.append(name, value);
            }
        }
        (!map.is_empty()).then_some(map)
    }
}

//! Writer of messages: a head and small pieces are gathered, large pieces are written beside them in one
//! system call (writev).

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::AsyncWrite;

use crate::http1::encode;
use crate::request::FieldSink;
use crate::throttle::clock;

/// Largest piece that is copied behind the gathered bytes, in bytes: copying is cheaper than another slice to
/// write.
const COPY_LIMIT: usize = 1024;

/// Most bytes that are gathered before a write.
const GATHER_LIMIT: usize = 8 * 1024;

/// Output buffers that a thread's pool keeps, and the largest capacity of one, in bytes.
const POOLED_BUFFERS: usize = 64;
const POOLED_CAPACITY: usize = 2 * GATHER_LIMIT;

thread_local! {
    static BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A sink that appends fields to an HTTP/1 head.
pub(crate) struct HeadSink<'o>(pub(crate) &'o mut Vec<u8>);

impl FieldSink for HeadSink<'_> {
    fn field(&mut self, name: &[u8], value: &[u8]) {
        encode::field(self.0, name, value);
    }
}

/// Framing of an outgoing body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyFraming {
    /// This many bytes remain; 0 also for no body.
    Length(u64),
    /// Chunked; `left` bytes of the current chunk remain.
    Chunked {
        /// Remaining bytes of the current chunk.
        left: usize,
    },
    /// Ended by the connection's end.
    UntilClose,
}

/// Writes one message after another. Bytes given to the writer have been written only once
/// [`poll_flush`](Self::poll_flush) resolved.
#[derive(Debug)]
pub(crate) struct MessageWriter {
    out: Vec<u8>,
    sent: usize,
    body: BodyFraming,
    /// When the stream stopped accepting bytes.
    blocked: Option<Instant>,
    written: bool,
}

impl Default for MessageWriter {
    fn default() -> Self {
        Self {
            out: Vec::new(),
            sent: 0,
            body: BodyFraming::Length(0),
            blocked: None,
            written: false,
        }
    }
}

impl MessageWriter {
    /// The output buffer, for a head to be appended.
    pub(crate) fn head(&mut self) -> &mut Vec<u8> {
        if self.out.capacity() == 0 {
            self.out = BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_default();
        }
        &mut self.out
    }

    /// Sets the framing of the body behind the head.
    pub(crate) fn begin_body(&mut self, body: BodyFraming) {
        self.body = body;
    }

    /// Whether every byte given was written.
    pub(crate) fn is_flushed(&self) -> bool {
        self.out.is_empty()
    }

    /// Whether any byte was written.
    pub(crate) fn has_written(&self) -> bool {
        self.written
    }

    /// When the stream stopped accepting bytes; `None` while it accepts them.
    pub(crate) fn blocked_since(&self) -> Option<Instant> {
        self.blocked
    }

    /// Whether the body lacks its end: announced with a length, or begun in chunks.
    pub(crate) fn is_short(&self) -> bool {
        match self.body {
            BodyFraming::Length(left) => left > 0,
            BodyFraming::Chunked { .. } | BodyFraming::UntilClose => true,
        }
    }

    /// Returns the buffer to the pool if every byte was written.
    pub(crate) fn release(&mut self) {
        if self.out.is_empty() && self.out.capacity() > 0 {
            recycle(std::mem::take(&mut self.out));
        }
    }

    /// Accepts bytes of the body from the front of `data`, one at least; resolves to how many. Cancel-safe.
    ///
    /// # Errors
    /// The stream's error. `InvalidData` for bytes beyond the announced length.
    pub(crate) fn poll_send<W: AsyncWrite + Unpin + ?Sized>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut W,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        debug_assert!(!data.is_empty(), "nothing to send");
        if let BodyFraming::Chunked { left } = &mut self.body
            && *left == 0
        {
            *left = data.len();
            let size = *left;
            encode::chunk_size(self.head(), size);
        }
        let part = match self.body {
            BodyFraming::Length(left) => {
                usize::try_from(left).map_or(data.len(), |left| left.min(data.len()))
            }
            BodyFraming::Chunked { left } => left.min(data.len()),
            BodyFraming::UntilClose => data.len(),
        };
        let part = &data[..part];
        if part.is_empty() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "more body than announced",
            )));
        }
        if part.len() <= COPY_LIMIT && self.out.len() - self.sent + part.len() <= GATHER_LIMIT {
            self.head().extend_from_slice(part);
            self.account(part.len());
            return Poll::Ready(Ok(part.len()));
        }
        loop {
            let gathered = self.out.len() - self.sent;
            let slices = [IoSlice::new(&self.out[self.sent..]), IoSlice::new(part)];
            let slices = if gathered == 0 { &slices[1..] } else { &slices[..] };
            let written = ready!(write_once(&mut self.blocked, cx, io, slices))?;
            self.written = true;
            if written < gathered {
                self.sent += written;
                continue;
            }
            self.out.clear();
            self.sent = 0;
            let taken = written - gathered;
            if taken > 0 {
                self.account(taken);
                return Poll::Ready(Ok(taken));
            }
        }
    }

    /// Ends the body; `trailers` are written where it is chunked.
    pub(crate) fn finish<'t>(&mut self, trailers: impl Iterator<Item = (&'t [u8], &'t [u8])>) {
        if let BodyFraming::Chunked { left } = self.body {
            debug_assert_eq!(left, 0, "a chunk lacks bytes");
            encode::last_chunk(self.head(), trailers);
        }
        // A body with a length stays short if bytes are missing: its end is not the message's.
        if !matches!(self.body, BodyFraming::Length(_)) {
            self.body = BodyFraming::Length(0);
        }
    }

    /// Ends a body without a length between two chunks. Returns false where that is not possible.
    pub(crate) fn end_chunks(&mut self) -> bool {
        match self.body {
            BodyFraming::Chunked { left: 0 } => {
                self.finish(std::iter::empty());
                true
            }
            BodyFraming::UntilClose => {
                self.body = BodyFraming::Length(0);
                true
            }
            BodyFraming::Chunked { .. } | BodyFraming::Length(_) => false,
        }
    }

    /// Flushes; resolves once every byte given was written. Cancel-safe.
    ///
    /// # Errors
    /// The stream's error.
    pub(crate) fn poll_flush<W: AsyncWrite + Unpin + ?Sized>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut W,
    ) -> Poll<io::Result<()>> {
        while self.sent < self.out.len() {
            let slices = [IoSlice::new(&self.out[self.sent..])];
            self.sent += ready!(write_once(&mut self.blocked, cx, io, &slices))?;
            self.written = true;
        }
        self.out.clear();
        self.sent = 0;
        let flushed = Pin::new(io).poll_flush(cx);
        note_blocked(&mut self.blocked, flushed.is_pending());
        flushed
    }

    /// Counts `taken` bytes of the body, and ends a complete chunk.
    fn account(&mut self, taken: usize) {
        match &mut self.body {
            BodyFraming::Length(left) => *left -= taken as u64,
            BodyFraming::Chunked { left } => {
                *left -= taken;
                if *left == 0 {
                    self.head().extend_from_slice(b"\r\n");
                }
            }
            BodyFraming::UntilClose => {}
        }
    }
}

fn write_once<W: AsyncWrite + Unpin + ?Sized>(
    blocked: &mut Option<Instant>,
    cx: &mut Context<'_>,
    io: &mut W,
    slices: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let io = Pin::new(io);
    let polled = match slices {
        [one] => io.poll_write(cx, one),
        _ if io.is_write_vectored() => io.poll_write_vectored(cx, slices),
        _ => io.poll_write(cx, &slices[0]),
    };
    note_blocked(blocked, polled.is_pending());
    match ready!(polled)? {
        0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        written => Poll::Ready(Ok(written)),
    }
}

fn note_blocked(blocked: &mut Option<Instant>, pending: bool) {
    if !pending {
        *blocked = None;
    } else if blocked.is_none() {
        *blocked = Some(clock());
    }
}

impl Drop for MessageWriter {
    fn drop(&mut self) {
        recycle(std::mem::take(&mut self.out));
    }
}

fn recycle(mut buffer: Vec<u8>) {
    if buffer.capacity() == 0 || buffer.capacity() > POOLED_CAPACITY {
        return;
    }
    buffer.clear();
    BUFFERS.with_borrow_mut(|buffers| {
        if buffers.len() < POOLED_BUFFERS {
            buffers.push(buffer);
        }
    });
}

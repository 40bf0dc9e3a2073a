//! A message on its way out: its head and small pieces are gathered, large pieces are written beside
//! them in one system call.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::AsyncWrite;

use crate::http1::encode;
use crate::request::FieldSink;
use crate::throttle::clock;

/// A piece of up to this size is copied behind what is gathered: cheaper than another slice to write.
const COPY_LIMIT: usize = 1024;

/// No more than this is gathered before something is written, in bytes.
const GATHER_LIMIT: usize = 8 * 1024;

/// Output buffers that a thread keeps for later, and how large one may be.
const POOLED_BUFFERS: usize = 64;
const POOLED_CAPACITY: usize = 2 * GATHER_LIMIT;

thread_local! {
    static BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Appends fields to an HTTP/1 head.
pub(crate) struct HeadSink<'o>(pub(crate) &'o mut Vec<u8>);

impl FieldSink for HeadSink<'_> {
    fn field(&mut self, name: &[u8], value: &[u8]) {
        encode::field(self.0, name, value);
    }
}

/// How the body of a message that is written is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyFraming {
    /// There is none, or this many bytes still to come.
    Length(u64),
    /// In chunks; so many bytes of the chunk under way are still to come.
    Chunked {
        /// Bytes of the chunk that has begun.
        left: usize,
    },
    /// Until the end of the connection.
    UntilClose,
}

/// Writes one message after another. What was given to the writer is on its way only once
/// [`poll_flush`](Self::poll_flush) resolved.
#[derive(Debug)]
pub(crate) struct MessageWriter {
    out: Vec<u8>,
    sent: usize,
    body: BodyFraming,
    /// Since when the stream takes no byte.
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
    /// Where a head is to be appended.
    pub(crate) fn head(&mut self) -> &mut Vec<u8> {
        if self.out.capacity() == 0 {
            self.out = BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_default();
        }
        &mut self.out
    }

    /// How the body behind the head is framed.
    pub(crate) fn begin_body(&mut self, body: BodyFraming) {
        self.body = body;
    }

    /// Whether everything given is written.
    pub(crate) fn is_flushed(&self) -> bool {
        self.out.is_empty()
    }

    /// Whether the stream took any byte.
    pub(crate) fn has_written(&self) -> bool {
        self.written
    }

    /// Since when the stream takes no byte of what is given; `None` while the stream takes bytes.
    pub(crate) fn blocked_since(&self) -> Option<Instant> {
        self.blocked
    }

    /// Whether a body that was announced with a length, or begun in chunks, lacks its end.
    pub(crate) fn is_short(&self) -> bool {
        match self.body {
            BodyFraming::Length(left) => left > 0,
            BodyFraming::Chunked { .. } | BodyFraming::UntilClose => true,
        }
    }

    /// Gives the buffer back to the pool if everything is written.
    pub(crate) fn release(&mut self) {
        if self.out.is_empty() && self.out.capacity() > 0 {
            recycle(std::mem::take(&mut self.out));
        }
    }

    /// Takes bytes of the body from the front of `data`, one at least; says how many.
    ///
    /// # Errors
    /// The stream's. `InvalidData` for a byte beyond the announced length.
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

    /// The body is at its end; `trailers` are written where it is chunked.
    pub(crate) fn finish<'t>(&mut self, trailers: impl Iterator<Item = (&'t [u8], &'t [u8])>) {
        if let BodyFraming::Chunked { left } = self.body {
            debug_assert_eq!(left, 0, "a chunk lacks bytes");
            encode::last_chunk(self.head(), trailers);
        }
        // A body with a length stays short if bytes lack: its end is not the message's.
        if !matches!(self.body, BodyFraming::Length(_)) {
            self.body = BodyFraming::Length(0);
        }
    }

    /// Ends a body that has no end of its own, between two chunks. False where that is not possible.
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

    /// Resolves once everything given is written.
    ///
    /// # Errors
    /// The stream's.
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

    /// Counts `taken` bytes of the body, and ends a chunk that is full.
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

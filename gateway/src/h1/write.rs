//! Writing: a response head waits for its body's first bytes, and no client may stall us.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::AsyncWrite;

use super::body::BodyFault;
use super::stream::GuardedStream;
use super::timer::WaitTimer;
use crate::edge::Wire;

/// A response head longer than this goes out alone.
const MAX_HELD: usize = 8 * 1024;

/// Slices written at once beside the held head: a chunk is three.
const MAX_SLICES: usize = 8;

/// What is not written yet, and since when.
#[derive(Debug, Default)]
pub(super) struct WriteSide {
    /// The response head, until the next write or flush. Pingora writes head and body apart, and
    /// flushes in between only when the head should go first; one syscall instead of two.
    held: BytesMut,
    /// The next write is the first of a response.
    fresh: bool,
    timer: WaitTimer,
}

impl WriteSide {
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// A new request: what is written next is its response's head.
    pub(super) fn message_starts(&mut self) {
        self.fresh = true;
        if self.held.is_empty() {
            self.held = BytesMut::new();
        }
    }

    /// Whether `data` was taken to be written with what follows it.
    fn hold(&mut self, data: &[u8]) -> bool {
        let hold = self.fresh && data.len() <= MAX_HELD;
        self.fresh = false;
        if hold {
            self.held.extend_from_slice(data);
        }
        hold
    }
}

impl GuardedStream {
    /// Counts what was written and watches over how long nothing was.
    fn poll_guarded<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.context.set_writing(polled.is_pending());
        if polled.is_ready() {
            self.out.timer.moved();
            return polled;
        }
        if !self.context.is_given_up(cx) {
            ready!(self.out.timer.poll_expired(cx, self.limits.write_timeout));
        }
        Poll::Ready(Err(self.end(BodyFault::WriteTimeout)))
    }

    /// Writes `data` behind the held head; how many bytes of `data` went.
    fn poll_write_slices(&mut self, cx: &mut Context<'_>, data: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            let held = self.out.held.len();
            let polled = if held == 0 {
                Pin::new(&mut self.io).poll_write_vectored(cx, data)
            } else {
                let mut slices = [IoSlice::new(&[]); MAX_SLICES + 1];
                slices[0] = IoSlice::new(&self.out.held);
                let count = data.len().min(MAX_SLICES);
                slices[1..=count].copy_from_slice(&data[..count]);
                Pin::new(&mut self.io).poll_write_vectored(cx, &slices[..=count])
            };
            let written = ready!(self.poll_guarded(cx, polled))?;
            self.context.count_out(written);
            self.frames_sent(data, written);
            self.out.held.advance(written.min(held));
            // With the head still to go, nothing of `data` has gone, and 0 would mean a closed pipe.
            if held == 0 || written > held {
                return Poll::Ready(Ok(written.saturating_sub(held)));
            }
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            if written == held && data.iter().all(|slice| slice.is_empty()) {
                return Poll::Ready(Ok(0));
            }
        }
    }

    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.held.is_empty() {
            ready!(self.poll_write_slices(cx, &[]))?;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for GuardedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(data)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // HTTP/2 gathers its frames itself.
        if this.context.wire() == Wire::Http1
            && let [only] = data
            && this.out.hold(only)
        {
            return Poll::Ready(Ok(only.len()));
        }
        this.poll_write_slices(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_held(cx))?;
        let polled = Pin::new(&mut this.io).poll_flush(cx);
        this.poll_guarded(cx, polled)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_held(cx))?;
        let polled = Pin::new(&mut this.io).poll_shutdown(cx);
        this.poll_guarded(cx, polled)
    }
}

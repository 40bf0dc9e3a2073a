//! The guarded byte stream of an HTTP/2 connection: frames are counted in both directions, an unfinished head
//! ends by the header timeout, and a client that does not read by the write timeout.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::edge::{ByteStream, CloseReason};
use crate::exchange::DeadlineTimer;
use crate::h2::{Flood, FrameGuard, FrameLimits, OutboundEvent, StreamRefusal};
use crate::throttle::clock;

/// State shared between the guarded stream and the connection's loop.
#[derive(Debug, Default)]
pub(super) struct FrameWatch {
    ends_for: OnceLock<CloseReason>,
    /// Whether bytes wait for the client to accept them.
    writing: AtomicBool,
}

impl FrameWatch {
    /// Records why the gateway ends the connection. The first reason stays: later ones are its consequences.
    pub(super) fn ends_for(&self, reason: CloseReason) {
        let _ = self.ends_for.set(reason);
    }

    /// Why the connection ended: [`CloseReason::Served`] unless the gateway had another reason.
    pub(super) fn close_reason(&self) -> CloseReason {
        self.ends_for.get().copied().unwrap_or(CloseReason::Served)
    }

    /// Whether bytes wait for the client to accept them.
    pub(super) fn is_writing(&self) -> bool {
        self.writing.load(Ordering::Relaxed)
    }
}

type OnRefused = Box<dyn Fn(StreamRefusal) + Send + Sync>;

/// A byte stream whose frames are counted by a [`FrameGuard`].
pub(super) struct WatchedIo {
    io: Box<dyn ByteStream>,
    watch: Arc<FrameWatch>,
    guard: FrameGuard,
    refused: OnRefused,
    head_timeout: Duration,
    write_timeout: Duration,
    read_timer: DeadlineTimer,
    write_timer: DeadlineTimer,
    /// When the wait for a head began, and the head's number.
    awaited: Option<(Instant, u64)>,
    blocked: Option<Instant>,
}

impl fmt::Debug for WatchedIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchedIo")
            .field("watch", &self.watch)
            .finish_non_exhaustive()
    }
}

impl WatchedIo {
    /// Guards a connection from its first byte on. `refused` is called for each stream that the `h2` crate
    /// refuses by itself.
    pub(super) fn new(
        io: Box<dyn ByteStream>,
        watch: Arc<FrameWatch>,
        limits: FrameLimits,
        head_timeout: Duration,
        write_timeout: Duration,
        refused: OnRefused,
    ) -> Self {
        Self {
            io,
            watch,
            guard: FrameGuard::new(limits, clock()),
            refused,
            head_timeout,
            write_timeout,
            read_timer: DeadlineTimer::new(),
            write_timer: DeadlineTimer::new(),
            awaited: None,
            blocked: None,
        }
    }

    /// Records the reason and writes a GOAWAY as far as that is possible at once, without waiting for the
    /// client.
    fn close_with_goaway(&mut self, cx: &mut Context<'_>, reason: CloseReason) -> io::Error {
        self.watch.ends_for(reason);
        if let Some(goaway) = self.guard.goaway()
            && Pin::new(&mut self.io).poll_write(cx, &goaway).is_ready()
        {
            let _ = Pin::new(&mut self.io).poll_flush(cx);
        }
        io::Error::new(io::ErrorKind::ConnectionAborted, reason.as_str())
    }

    /// Applies the write timeout to a write.
    fn poll_written<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            if self.blocked.take().is_some() {
                self.watch.writing.store(false, Ordering::Relaxed);
            }
            return polled;
        }
        let since = *self.blocked.get_or_insert_with(|| {
            self.watch.writing.store(true, Ordering::Relaxed);
            clock()
        });
        ready!(self.write_timer.poll_at(cx, since + self.write_timeout));
        self.watch.ends_for(CloseReason::WriteTimeout);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Inspects bytes that were written to the client.
    fn sent(&mut self, bytes: &[u8]) {
        let (watch, refused) = (&self.watch, &self.refused);
        self.guard.sent(bytes, clock, |event| match event {
            OutboundEvent::Refused(refusal) => refused(refusal),
            OutboundEvent::Flood(flood) => watch.ends_for(reason_of(flood)),
            OutboundEvent::HeaderBomb => watch.ends_for(CloseReason::HeaderBomb),
            OutboundEvent::Protocol => watch.ends_for(CloseReason::ProtocolError),
        });
    }
}

impl AsyncRead for WatchedIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = out.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(cx, out);
        let Poll::Ready(read) = polled else {
            if !this.guard.awaits_head() {
                this.awaited = None;
                return Poll::Pending;
            }
            let heads = this.guard.heads();
            let since = match this.awaited {
                Some((since, awaited)) if awaited == heads => since,
                _ => clock(),
            };
            this.awaited = Some((since, heads));
            ready!(this.read_timer.poll_at(cx, since + this.head_timeout));
            return Poll::Ready(Err(this.close_with_goaway(cx, CloseReason::HeaderTimeout)));
        };
        read?;
        match this.guard.received(&out.filled()[before..], clock) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(flood) => {
                out.set_filled(before);
                Poll::Ready(Err(this.close_with_goaway(cx, reason_of(flood))))
            }
        }
    }
}

impl AsyncWrite for WatchedIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.io).poll_write(cx, buf);
        let written = ready!(this.poll_written(cx, polled))?;
        this.sent(&buf[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.io).poll_write_vectored(cx, slices);
        let written = ready!(this.poll_written(cx, polled))?;
        let mut left = written;
        for slice in slices {
            let part = &slice[..slice.len().min(left)];
            left -= part.len();
            this.sent(part);
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.io).poll_flush(cx);
        this.poll_written(cx, polled)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.io).poll_shutdown(cx);
        this.poll_written(cx, polled)
    }
}

fn reason_of(flood: Flood) -> CloseReason {
    match flood {
        Flood::Resets => CloseReason::ResetFlood,
        Flood::Continuation => CloseReason::ContinuationFlood,
        Flood::Ping => CloseReason::PingFlood,
        Flood::Settings => CloseReason::SettingsFlood,
        Flood::WindowUpdate => CloseReason::WindowUpdateFlood,
        Flood::Priority => CloseReason::PriorityFlood,
        Flood::Empty => CloseReason::EmptyFrameFlood,
    }
}

//! HTTP/2 on a guarded connection: bytes pass as they are, and their frames are watched.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::stream::GuardedStream;
use super::timer::WaitTimer;
use crate::edge::CloseReason;
use crate::h2::{Flood, FrameGuard, FrameLimits, Refusal, Told};

type Refused = Box<dyn Fn(Refusal) + Send + Sync>;

/// The watch over one connection's frames.
pub(super) struct FrameSide {
    guard: FrameGuard,
    timer: WaitTimer,
    /// The head that the timer is for.
    timed: u64,
    refused: Refused,
}

impl fmt::Debug for FrameSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameSide")
            .field("guard", &self.guard)
            .finish_non_exhaustive()
    }
}

impl GuardedStream {
    /// Watches the frames of an HTTP/2 connection from its first byte on. `refused` is told of each stream that
    /// the HTTP/2 layer refuses by itself; it must neither block nor panic.
    pub fn watch_frames(&mut self, limits: FrameLimits, refused: impl Fn(Refusal) + Send + Sync + 'static) {
        self.frames = Some(Box::new(FrameSide {
            guard: FrameGuard::new(limits, Instant::now()),
            timer: WaitTimer::default(),
            timed: 0,
            refused: Box::new(refused),
        }));
    }

    pub(super) fn poll_read_http2(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, out);
        let Some(side) = &mut self.frames else {
            self.context.count_in(out.filled().len() - before);
            return polled;
        };
        let Poll::Ready(read) = polled else {
            if !side.guard.awaits_head() {
                return Poll::Pending;
            }
            if side.timed != side.guard.heads() {
                side.timed = side.guard.heads();
                side.timer.moved();
            }
            ready!(side.timer.poll_expired(cx, self.limits.head_timeout));
            return Poll::Ready(Err(self.turn_away(cx, CloseReason::HeaderTimeout)));
        };
        read?;
        let bytes = &out.filled()[before..];
        self.context.count_in(bytes.len());
        match side.guard.received(bytes, Instant::now) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(flood) => {
                out.set_filled(before);
                Poll::Ready(Err(self.turn_away(cx, reason_of(flood))))
            }
        }
    }

    /// Looks at the first `written` bytes of what went to the client.
    pub(super) fn frames_sent(&mut self, data: &[IoSlice<'_>], mut written: usize) {
        let Some(side) = &mut self.frames else { return };
        let (context, refused) = (&self.context, &side.refused);
        for slice in data {
            let part = &slice[..slice.len().min(written)];
            written -= part.len();
            side.guard.sent(part, Instant::now, |told| match told {
                Told::Refused(refusal) => refused(refusal),
                Told::Flood(flood) => context.ends_for(reason_of(flood)),
                Told::HeaderBomb => context.ends_for(CloseReason::HeaderBomb),
                Told::Protocol => context.ends_for(CloseReason::ProtocolError),
            });
        }
    }

    /// Notes the reason and tells the client as far as that is possible at once: it is not waited for.
    fn turn_away(&mut self, cx: &mut Context<'_>, reason: CloseReason) -> io::Error {
        self.context.ends_for(reason);
        let goaway = self.frames.as_ref().and_then(|side| side.guard.goaway());
        if let Some(goaway) = goaway
            && Pin::new(&mut self.io).poll_write(cx, &goaway).is_ready()
        {
            let _ = Pin::new(&mut self.io).poll_flush(cx);
        }
        io::Error::new(io::ErrorKind::ConnectionAborted, reason.as_str())
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

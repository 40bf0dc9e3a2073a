//! A connection that hands out one request at a time.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use sluice_model::Limits;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::body::{BodyFault, BodyGuard};
use super::context::ConnectionContext;
use super::fault::HeadError;
use super::frames::FrameSide;
use super::head::Head;
use super::limits::GuardLimits;
use super::pingora::Digests;
use super::timer::WaitTimer;
use super::write::WriteSide;
use crate::edge::{ByteStream, CloseReason, Connection, ConnectionInfo, Drain, Wire};
use crate::http1::{Framing, Glimpse, HeadLimits, Scan, scan};
use crate::request::Pace;

/// Bytes taken from the socket at once while a head is read or a request is served.
const READ_CHUNK: usize = 4 * 1024;

/// How much of the next requests is read while one is served: only to see the client leave.
const READ_AHEAD: usize = 8 * 1024;

/// How long an idle connection still waits for a request once the gateway drains. Closing at once
/// would reset a request that is on its way.
const DRAIN_IDLE: Duration = Duration::from_secs(1);

/// How long a connection that is closed early is read and thrown away, so that the last answer is
/// not lost to the reset that unread bytes cause.
const LINGER: Duration = Duration::from_secs(2);

type ClientLeft = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// A prepared connection as Pingora's stream.
///
/// On HTTP/1 the keep-alive loop is the caller's: [`next_head`](Self::next_head), then serve the
/// stream (it reads as exactly that head and its body, then waits, and reads as ended once the
/// client left), then back to `next_head` while [`message_complete`](Self::message_complete). From
/// Pingora the stream comes back boxed; `into_any()` and a downcast give it back.
///
/// On HTTP/2 bytes pass as they are; the write timeout and the counters apply, and what
/// [`watch_frames`](Self::watch_frames) says.
pub struct GuardedStream {
    pub(super) io: Box<dyn ByteStream>,
    pub(super) context: Arc<ConnectionContext>,
    pub(super) digests: Digests,
    pub(super) limits: GuardLimits,
    pub(super) out: WriteSide,
    drain: watch::Receiver<Drain>,
    /// What is left of the head to replay.
    replay: Bytes,
    /// What was read and not handed out: body bytes first, then the next requests.
    ahead: BytesMut,
    body: BodyGuard,
    /// Of the current body.
    pace: Pace,
    read_timer: WaitTimer,
    /// Since when somebody waits for body bytes.
    waiting: Option<Instant>,
    pub(super) frames: Option<Box<FrameSide>>,
    client_left: Option<ClientLeft>,
    /// The client closed its side.
    ended: bool,
    /// No further request is taken from this connection.
    spent: bool,
    /// The head that was refused, where it was whole.
    refused: Bytes,
}

impl GuardedStream {
    /// Guards a connection. `drain` tells idle ones when to go.
    pub fn new(connection: Connection, limits: &Limits, drain: watch::Receiver<Drain>) -> Self {
        let context = Arc::new(ConnectionContext::new(connection.info, connection.wire));
        let limits = GuardLimits::from(limits);
        Self {
            io: connection.io,
            digests: Digests::new(&context),
            context,
            limits,
            out: WriteSide::default(),
            drain,
            replay: Bytes::new(),
            ahead: BytesMut::new(),
            body: BodyGuard::DONE,
            pace: limits.body_pace,
            read_timer: WaitTimer::default(),
            waiting: None,
            frames: None,
            client_left: None,
            ended: false,
            spent: false,
            refused: Bytes::new(),
        }
    }

    /// Follows a reload: the limits of bodies and writes from the next request on.
    pub fn set_limits(&mut self, limits: &Limits) {
        self.limits = GuardLimits::from(limits);
    }

    /// What is known of the connection.
    pub fn info(&self) -> &Arc<ConnectionInfo> {
        self.context.info()
    }

    /// What request phases see of this connection, too.
    pub fn context(&self) -> &Arc<ConnectionContext> {
        &self.context
    }

    /// Waits for the next request and reads its whole head. HTTP/1 only.
    ///
    /// `Ok(None)`: there is none and nothing to answer. The client closed, stayed idle for
    /// `idle_timeout`, the gateway drains, or the last message was not read to its end. Close with
    /// Pingora's `Shutdown::shutdown`. `header_timeout` is for the whole head, from its first byte.
    ///
    /// Cancel-safe in that no byte is lost, but a head begun gets a new deadline with the next call.
    ///
    /// # Errors
    /// [`HeadError`]: answer with its status, if it has one, through [`refuse`](Self::refuse).
    pub async fn next_head(
        &mut self,
        limits: &HeadLimits,
        header_timeout: Duration,
        idle_timeout: Duration,
    ) -> Result<Option<Head>, HeadError> {
        if !self.message_complete() {
            return Ok(None);
        }
        self.out.message_starts();
        self.client_left = None;
        if self.ahead.is_empty() {
            // An idle connection holds no buffer; most connections are idle.
            self.ahead = BytesMut::new();
            self.replay = Bytes::new();
            if self.ended || !self.first_byte(idle_timeout).await {
                self.spent = true;
                return Ok(None);
            }
        }
        let deadline = Instant::now() + header_timeout;
        let head = timeout_at(deadline, self.read_head(limits))
            .await
            .unwrap_or(Err(HeadError::Timeout));
        match &head {
            Ok(Some(head)) => {
                self.replay = head.replay();
                self.body = BodyGuard::new(head.framing, &self.limits);
                self.pace = self.limits.body_pace;
                self.waiting = None;
                self.read_timer.moved();
            }
            Ok(None) => self.spent = true,
            Err(error) => {
                self.spent = true;
                if matches!(error, HeadError::Timeout) {
                    self.context.ends_for(CloseReason::HeaderTimeout);
                }
            }
        }
        head
    }

    /// Whether the current message was handed out to its end and nothing went wrong, so that the
    /// connection may serve another one. True before the first.
    pub fn message_complete(&self) -> bool {
        !self.spent && self.replay.is_empty() && self.body.complete() && self.fault().is_none()
    }

    /// Why the guard ended the connection, if it did.
    pub fn fault(&self) -> Option<&BodyFault> {
        self.context.fault()
    }

    /// Bytes read from the client so far.
    pub fn bytes_in(&self) -> u64 {
        self.context.bytes_in()
    }

    /// Bytes written to the client so far.
    pub fn bytes_out(&self) -> u64 {
        self.context.bytes_out()
    }

    /// Gives the bare connection back, for a tunnel, with what was read after the last head.
    ///
    /// The head itself is not among those bytes: [`next_head`](Self::next_head) returned it. Nothing
    /// must have been written yet.
    pub fn into_parts(self) -> (Box<dyn ByteStream>, Vec<u8>) {
        debug_assert!(self.out.is_empty(), "a response head would be lost");
        (self.io, self.ahead.into())
    }

    /// What can be told of the head that [`next_head`](Self::next_head) refused.
    pub fn glimpse(&self) -> Glimpse {
        let head = if self.refused.is_empty() {
            &self.ahead
        } else {
            &self.refused[..]
        };
        Glimpse::of(head)
    }

    /// Writes a whole response to a request that is not served, and closes so that it arrives.
    pub async fn refuse(mut self, response: &[u8]) {
        self.spent = true;
        if self.write_all(response).await.is_ok() {
            self.close().await;
        }
    }

    /// Flushes and closes; reads on for a moment where the client may still be sending.
    pub(super) async fn close(&mut self) {
        if self.context.is_broken_off() {
            return;
        }
        // A request may be on its way to a connection that ends because none came.
        let unasked = matches!(
            self.context.close_reason(),
            CloseReason::IdleTimeout | CloseReason::Drained
        );
        let unread = unasked || !self.message_complete() || !self.ahead.is_empty();
        // Named in full: Pingora has a trait with a method of the same name.
        if AsyncWriteExt::shutdown(self).await.is_err() || self.ended || !unread {
            return;
        }
        let linger = if unasked { DRAIN_IDLE } else { LINGER };
        let _ = timeout(linger, async {
            while let Ok(1..) = poll_fn(|cx| self.poll_fill(cx)).await {
                self.ahead.clear();
            }
        })
        .await;
    }

    /// Waits until there is a byte; false when the connection should go instead.
    async fn first_byte(&mut self, idle_timeout: Duration) -> bool {
        let mut drain = self.drain.clone();
        let idle = sleep(idle_timeout);
        tokio::pin!(idle);
        // Without a sender nobody drains any more.
        let mut told = true;
        let mut reason = CloseReason::IdleTimeout;
        loop {
            match *drain.borrow_and_update() {
                Drain::Serving => {}
                Drain::Draining => {
                    reason = CloseReason::Drained;
                    let soon = Instant::now() + DRAIN_IDLE;
                    if soon < idle.deadline() {
                        idle.as_mut().reset(soon);
                    }
                }
                Drain::Closing => {
                    self.context.ends_for(CloseReason::Drained);
                    return false;
                }
            }
            tokio::select! {
                biased;
                read = poll_fn(|cx| self.poll_fill(cx)) => return matches!(read, Ok(1..)),
                () = &mut idle => {
                    self.context.ends_for(reason);
                    return false;
                }
                changed = drain.changed(), if told => told = changed.is_ok(),
            }
        }
    }

    async fn read_head(&mut self, limits: &HeadLimits) -> Result<Option<Head>, HeadError> {
        let mut from = 0;
        let len = loop {
            match scan(&self.ahead, limits, from) {
                Scan::Complete { len } => break len,
                Scan::Bad(fault) => return Err(fault.into()),
                Scan::NeedMore { scanned } => from = scanned,
            }
            match poll_fn(|cx| self.poll_fill(cx)).await {
                Ok(1..) => {}
                // Nothing but empty lines came: that is no request cut short.
                _ if self.ahead.iter().all(u8::is_ascii_whitespace) => return Ok(None),
                Ok(0) => return Err(HeadError::ClientGone),
                Err(error) => return Err(HeadError::Io(error)),
            }
        };
        let bytes = self.ahead.split_to(len).freeze();
        let judged = Head::judge(bytes.clone(), limits).map_err(HeadError::from);
        let judged = judged.and_then(|head| match (head.framing, self.limits.max_body_bytes) {
            (Framing::Length(length), Some(limit)) if length > limit => {
                Err(HeadError::BodyTooLarge { length, limit })
            }
            _ => Ok(head),
        });
        if judged.is_err() {
            self.refused = bytes;
        }
        judged.map(Some)
    }

    /// Reads once from the socket into `ahead`; 0 at its end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // On the stack, so that a connection waiting for its first byte needs no buffer.
        let mut chunk = [const { MaybeUninit::uninit() }; READ_CHUNK];
        let mut chunk = ReadBuf::uninit(&mut chunk);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut chunk))?;
        let read = chunk.filled().len();
        self.ended |= read == 0;
        self.ahead.extend_from_slice(chunk.filled());
        self.context.count_in(read);
        Poll::Ready(Ok(read))
    }

    fn poll_read_body(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let want = self.ahead.len().min(out.remaining());
            let taken = self.accept(want)?;
            out.put_slice(&self.ahead[..taken]);
            self.ahead.advance(taken);
            return Poll::Ready(Ok(()));
        }
        // Straight into the reader's buffer: an upload is not copied once more.
        let room = self.body.ceiling(out.remaining());
        let mut part = ReadBuf::new(out.initialize_unfilled_to(room));
        match Pin::new(&mut self.io).poll_read(cx, &mut part) {
            Poll::Pending => {
                self.waiting.get_or_insert_with(Instant::now);
                ready!(self.read_timer.poll_expired(cx, self.pace.patience()));
                return Poll::Ready(Err(self.end(BodyFault::ReadTimeout)));
            }
            Poll::Ready(result) => result?,
        }
        self.read_timer.moved();
        let data = part.filled();
        let waited = self
            .waiting
            .take()
            .map_or(Duration::ZERO, |since| since.elapsed());
        self.pace.moved(waited, data.len() as u64);
        self.context.count_in(data.len());
        if data.is_empty() {
            self.ended = true;
            self.context.record(BodyFault::ClientGone);
            return Poll::Ready(Ok(()));
        }
        let taken = match self.body.accept(data) {
            Ok(taken) => taken,
            Err(fault) => return Poll::Ready(Err(self.end(fault))),
        };
        self.ahead.extend_from_slice(&data[taken..]);
        out.advance(taken);
        Poll::Ready(Ok(()))
    }

    fn accept(&mut self, want: usize) -> io::Result<usize> {
        match self.body.accept(&self.ahead[..want]) {
            Ok(taken) => Ok(taken),
            Err(fault) => Err(self.end(fault)),
        }
    }

    /// After the message: never ready while the client is there, at its end once it left.
    fn poll_client_left(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.ended && self.ahead.len() < READ_AHEAD {
            ready!(self.poll_fill(cx))?;
        }
        if !self.ended {
            // The bound is reached and what is behind it stays in the socket, the end included:
            // the socket itself has to tell.
            let info = self.context.info();
            let left = self.client_left.get_or_insert_with(|| {
                let watch = info.close_watch.clone();
                Box::pin(async move { watch.closed().await })
            });
            ready!(left.as_mut().poll(cx));
            self.ended = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Records why the connection ends.
    pub(super) fn end(&self, fault: BodyFault) -> io::Error {
        self.context.record(fault);
        fault.into()
    }
}

impl AsyncRead for GuardedStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.context.wire() == Wire::Http2 {
            return this.poll_read_http2(cx, out);
        }
        if let Some(&fault) = this.fault() {
            return Poll::Ready(Err(fault.into()));
        }
        if out.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if !this.replay.is_empty() {
            let part = this.replay.split_to(this.replay.len().min(out.remaining()));
            out.put_slice(&part);
            return Poll::Ready(Ok(()));
        }
        if this.body.complete() {
            this.poll_client_left(cx)
        } else {
            this.poll_read_body(cx, out)
        }
    }
}

impl fmt::Debug for GuardedStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardedStream")
            .field("context", &self.context)
            .field("ahead", &self.ahead.len())
            .field("body", &self.body)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "pieces_tests.rs"]
mod pieces;

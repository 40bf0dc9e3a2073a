//! What the phases of a request can know of the connection they run on.

use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Context;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use pingora_core::protocols::{Digest, UniqueIDType};

use super::body::BodyFault;
use crate::edge::{CloseReason, ConnectionInfo, Wire};

/// Shared between a [`GuardedStream`](super::GuardedStream) and whoever serves requests from it.
///
/// Pingora owns the stream while a request runs and hands out its digest only, so this travels in
/// `ProxyDigest::user_data` and comes back with [`ConnectionContext::of`].
pub struct ConnectionContext {
    info: Arc<ConnectionInfo>,
    wire: Wire,
    id: UniqueIDType,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    fault: OnceLock<BodyFault>,
    broken_off: AtomicBool,
    /// Bytes wait for the client to accept them.
    writing: AtomicBool,
    /// What the client does not accept is of no use any more.
    given_up: AtomicBool,
    give_up: AtomicWaker,
    ended_for: OnceLock<CloseReason>,
    parcel: Mutex<Option<Box<dyn Any + Send>>>,
}

impl ConnectionContext {
    pub(super) fn new(info: Arc<ConnectionInfo>, wire: Wire) -> Self {
        static NEXT_ID: AtomicI32 = AtomicI32::new(0);
        Self {
            info,
            wire,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            fault: OnceLock::new(),
            broken_off: AtomicBool::new(false),
            writing: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
            give_up: AtomicWaker::new(),
            ended_for: OnceLock::new(),
            parcel: Mutex::new(None),
        }
    }

    /// The context of a Pingora session: `ConnectionContext::of(session.digest()?)`. The same for
    /// HTTP/1 requests and HTTP/2 streams; `None` when the stream is not a guarded one.
    pub fn of(digest: &Digest) -> Option<&Arc<Self>> {
        let user_data = digest.proxy_digest.as_ref()?.user_data.as_ref()?;
        user_data.downcast_ref()
    }

    /// What is known of the connection.
    pub fn info(&self) -> &Arc<ConnectionInfo> {
        &self.info
    }

    /// Which HTTP it speaks.
    pub fn wire(&self) -> Wire {
        self.wire
    }

    /// Bytes read from the client so far, all requests together.
    pub fn bytes_in(&self) -> u64 {
        self.bytes_in.load(Ordering::Relaxed)
    }

    /// Bytes written to the client so far, all requests together.
    pub fn bytes_out(&self) -> u64 {
        self.bytes_out.load(Ordering::Relaxed)
    }

    /// Why the guard ended the connection, if it did. Says what Pingora's read or write error means.
    pub fn fault(&self) -> Option<&BodyFault> {
        self.fault.get()
    }

    /// Ends the connection by a reset instead of an orderly close: the response under way is not
    /// whole, and only its end would tell. HTTP/1 only.
    pub fn break_off(&self) {
        self.broken_off.store(true, Ordering::Relaxed);
        self.info.close_watch.reset_on_close();
    }

    pub(super) fn set_writing(&self, writing: bool) {
        // Read first: it rarely changes, and its line is shared.
        if self.writing.load(Ordering::Relaxed) != writing {
            self.writing.store(writing, Ordering::Relaxed);
        }
    }

    pub(super) fn is_broken_off(&self) -> bool {
        self.broken_off.load(Ordering::Relaxed)
    }

    /// Whether bytes wait for the client to accept them.
    pub fn is_writing(&self) -> bool {
        self.writing.load(Ordering::Relaxed)
    }

    /// Fails a write that waits for the client, and every later one that has to.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::SeqCst);
        self.give_up.wake();
    }

    /// Whether a write that has to wait fails instead; if not yet, it is woken once it is to.
    pub(super) fn is_given_up(&self, cx: &Context<'_>) -> bool {
        self.give_up.register(cx.waker());
        self.given_up.load(Ordering::SeqCst)
    }

    /// Notes why the gateway ends the connection. The first reason stays: what follows is its consequence.
    pub fn ends_for(&self, reason: CloseReason) {
        let _ = self.ended_for.set(reason);
    }

    /// Why the connection ended: [`CloseReason::Served`] unless the gateway had another reason.
    pub fn close_reason(&self) -> CloseReason {
        let noted = self.ended_for.get().copied();
        noted
            .or_else(|| self.fault.get().and_then(BodyFault::closes_for))
            .unwrap_or(CloseReason::Served)
    }

    /// Leaves something for the phases of the request that is about to be served (its
    /// [`Head`](super::Head), say). HTTP/1 only: there is one request at a time.
    pub fn put(&self, parcel: Box<dyn Any + Send>) {
        *self.parcel.lock() = Some(parcel);
    }

    /// Takes what [`put`](Self::put) left, if it is a `T`.
    pub fn take<T: 'static>(&self) -> Option<Box<T>> {
        let mut slot = self.parcel.lock();
        match slot.take()?.downcast() {
            Ok(parcel) => Some(parcel),
            Err(other) => {
                *slot = Some(other);
                None
            }
        }
    }

    pub(super) fn id(&self) -> UniqueIDType {
        self.id
    }

    pub(super) fn count_in(&self, bytes: usize) {
        self.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn count_out(&self, bytes: usize) {
        self.bytes_out.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The first fault stays: what follows is its consequence.
    pub(super) fn record(&self, fault: BodyFault) {
        let _ = self.fault.set(fault);
    }
}

impl fmt::Debug for ConnectionContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionContext")
            .field("id", &self.id)
            .field("client", &self.info.client)
            .field("wire", &self.wire)
            .field("fault", &self.fault.get())
            .finish_non_exhaustive()
    }
}

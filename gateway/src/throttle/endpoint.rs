//! One endpoint for its whole life: what requests, probes and the admin API share of it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use sluice_model::{EndpointAddr, InstanceId, stable_hash};
use tokio::sync::Notify;

use super::start_timeline::StartTimeline;
use crate::upstream::{IdleConnections, PrewarmedSlot, StreamConnections};

/// How often what has never answered may be taken for ready and hang up. From then on it is an endpoint like others,
/// which fails: what closes every connection, since it speaks another protocol say, must not hold each request up.
const MOST_REFUTED: u32 = 5;

/// One endpoint for its whole life, as a [`Permit`](super::Permit) sees it.
#[derive(Debug)]
pub struct EndpointState {
    /// Where it is.
    pub address: EndpointAddr,
    /// Which instance it is, if the control plane started it.
    pub instance: Option<InstanceId>,
    /// Unique in this process and never reused: a connection pool keyed by it cannot mix up two
    /// instances that had the same port one after the other.
    pub key: u64,
    pub(super) hash: u64,
    /// Mirrors `!health.is_spotless()`, written under the lock.
    pub(super) troubled: AtomicBool,
    /// A response came from it since it was started, or nobody asks whether it is ready.
    answered: AtomicBool,
    /// How often it was taken for ready before it was. Written under the lock.
    refuted: AtomicU32,
    /// When it came up. Looked at only by those who waited.
    start_timeline: Mutex<StartTimeline>,
    /// The connection of the probe that found it ready.
    prewarmed: PrewarmedSlot,
    /// Connections between two requests.
    idle: IdleConnections,
    /// HTTP/2 connections that carry streams.
    streams: StreamConnections,
    /// What it still has is to end.
    ended: AtomicBool,
    ended_notify: Notify,
}

impl EndpointState {
    /// A new endpoint with a key of its own.
    pub fn new(address: EndpointAddr, instance: Option<InstanceId>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            hash: stable_hash(address.to_string().as_bytes()),
            address,
            instance,
            key: NEXT.fetch_add(1, Ordering::Relaxed),
            troubled: AtomicBool::new(false),
            answered: AtomicBool::new(false),
            refuted: AtomicU32::new(0),
            start_timeline: Mutex::default(),
            prewarmed: PrewarmedSlot::default(),
            idle: IdleConnections::default(),
            streams: StreamConnections::default(),
            ended: AtomicBool::new(false),
            ended_notify: Notify::new(),
        }
    }

    /// Its time is over: whatever is in flight on it is to end. For good.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.close_connections();
        self.ended_notify.notify_waiters();
    }

    /// Resolves once what is in flight on it is to end. Cancel-safe.
    pub async fn ended(&self) {
        let notified = self.ended_notify.notified();
        // The flag after the news are listened for: neither order of events is missed.
        if !self.ended.load(Ordering::SeqCst) {
            notified.await;
        }
    }

    /// When it came up, as far as that is known.
    pub fn start_timeline(&self) -> StartTimeline {
        *self.start_timeline.lock()
    }

    pub(crate) fn set_start_timeline(&self, start_timeline: StartTimeline) {
        *self.start_timeline.lock() = start_timeline;
    }

    /// Where a probe leaves its connection for the first request.
    pub(crate) fn prewarmed(&self) -> &PrewarmedSlot {
        &self.prewarmed
    }

    /// Its connections between two requests. Closed once it gets no more requests.
    pub(crate) fn idle(&self) -> &IdleConnections {
        &self.idle
    }

    /// Its HTTP/2 connections.
    pub(crate) fn streams(&self) -> &StreamConnections {
        &self.streams
    }

    /// No further request begins on a connection that is there.
    pub(super) fn close_connections(&self) {
        self.idle.close();
        self.streams.close();
    }

    /// A response came from it: it is what it was started for.
    pub(crate) fn mark_answered(&self) {
        // A line that many threads read is written once.
        if !self.has_answered() {
            self.answered.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it answered since it was started.
    pub(crate) fn has_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// Whether only probes say that it is ready: a connection that breaks then says that it is not yet.
    pub(crate) fn is_unproven(&self) -> bool {
        !self.has_answered() && self.refuted() < MOST_REFUTED
    }

    /// How often it was taken for ready before it was.
    pub(crate) fn refuted(&self) -> u32 {
        self.refuted.load(Ordering::Relaxed)
    }

    /// It was taken for ready before it was. Under the lock.
    pub(super) fn refute(&self) {
        self.refuted.fetch_add(1, Ordering::Relaxed);
    }

    /// Something elsewhere may stop it and start it again: what it did before says nothing any more. Under the lock.
    pub(super) fn doubt(&self) {
        self.answered.store(false, Ordering::Relaxed);
        self.refuted.store(0, Ordering::Relaxed);
    }

    /// Whether a success has something to make good.
    pub(crate) fn is_troubled(&self) -> bool {
        self.troubled.load(Ordering::Relaxed)
    }
}

/// Where an endpoint is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointPhase {
    /// Known, not proven ready.
    Starting,
    /// Used.
    Ready,
    /// Set aside after failures.
    Ejected {
        /// Until then.
        until: Instant,
        /// A failing probe did it, so a succeeding one may undo it.
        by_probe: bool,
    },
    /// Finishes what it has and gets nothing new.
    Draining,
    /// Forgotten, but for what is still in flight on it.
    Gone,
}

//! State of one endpoint for its whole life, shared by requests, probes and the admin API.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use sluice_model::{EndpointAddr, InstanceId, stable_hash};
use tokio::sync::Notify;

use super::start_timeline::StartTimeline;
use crate::upstream::{IdleConnections, PrewarmedSlot, StreamConnections};

/// How often an endpoint that has never answered may be taken for ready and hang up. Beyond that, a broken
/// connection counts as an ordinary failure: an endpoint that closes every connection, because it speaks
/// another protocol say, must not hold each request up.
const MOST_REFUTED: u32 = 5;

/// One endpoint for its whole life, as a [`Permit`](super::Permit) refers to it.
#[derive(Debug)]
pub struct EndpointState {
    /// Its address.
    pub address: EndpointAddr,
    /// Its instance, if the control plane started it.
    pub instance: Option<InstanceId>,
    /// The index of its tier; 0 in a revision without tiers.
    pub tier: u8,
    /// Unique in this process and never reused: two instances that have the same port one after the other
    /// cannot be mixed up.
    pub key: u64,
    pub(super) hash: u64,
    /// Lock-free mirror of the outlier detector's `!is_spotless()`, written under the lock.
    pub(super) troubled: AtomicBool,
    /// A response came from it since it was started, or nothing probes its readiness.
    answered: AtomicBool,
    /// How often it was taken for ready too early. Written under the lock.
    refuted: AtomicU32,
    /// Timeline of its start. Read only for requests that waited.
    start_timeline: Mutex<StartTimeline>,
    /// The pre-warmed connection: that of the probe that found it ready.
    prewarmed: PrewarmedSlot,
    /// Keep-alive pool of idle HTTP/1 connections.
    idle: IdleConnections,
    /// HTTP/2 connections that carry streams.
    streams: StreamConnections,
    /// Set when requests in flight on it have to end.
    ended: AtomicBool,
    ended_notify: Notify,
    /// Wakes the probe task of this endpoint alone; a wake-up before it waits is kept for it.
    probe: Notify,
}

impl EndpointState {
    /// A new endpoint with a key of its own.
    pub fn new(address: EndpointAddr, instance: Option<InstanceId>) -> Self {
        Self::in_tier(0, address, instance)
    }

    /// As [`new`](Self::new), of one tier of a revision.
    pub fn in_tier(tier: u8, address: EndpointAddr, instance: Option<InstanceId>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            hash: stable_hash(address.to_string().as_bytes()),
            address,
            instance,
            tier,
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
            probe: Notify::new(),
        }
    }

    /// Ends it for good: requests in flight on it are to end.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.close_connections();
        self.ended_notify.notify_waiters();
    }

    /// Wakes the probe task: the phase has changed, or what it probes for.
    pub fn wake_probe(&self) {
        self.probe.notify_one();
    }

    /// Waits until the probe task has to look again. For that one task; cancel-safe.
    pub async fn probe_wakeup(&self) {
        self.probe.notified().await;
    }

    /// Resolves once requests in flight on it are to end. Cancel-safe.
    pub async fn ended(&self) {
        let notified = self.ended_notify.notified();
        // The flag is read after the notification is registered: neither order of events is missed.
        if !self.ended.load(Ordering::SeqCst) {
            notified.await;
        }
    }

    /// Timeline of its start, as far as that is known.
    pub fn start_timeline(&self) -> StartTimeline {
        *self.start_timeline.lock()
    }

    pub(crate) fn set_start_timeline(&self, start_timeline: StartTimeline) {
        *self.start_timeline.lock() = start_timeline;
    }

    /// The pre-warmed connection that a probe leaves for the first request.
    pub(crate) fn prewarmed(&self) -> &PrewarmedSlot {
        &self.prewarmed
    }

    /// Its keep-alive pool. Closed once it gets no more requests.
    pub(crate) fn idle(&self) -> &IdleConnections {
        &self.idle
    }

    /// Its HTTP/2 connections.
    pub(crate) fn streams(&self) -> &StreamConnections {
        &self.streams
    }

    /// Closes its pools: no further request begins on a present connection.
    pub(super) fn close_connections(&self) {
        self.idle.close();
        self.streams.close();
    }

    /// Records that a response came from it: it is proven ready.
    pub(crate) fn mark_answered(&self) {
        // A cache line that many threads read is written once.
        if !self.has_answered() {
            self.answered.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it answered since it was started.
    pub(crate) fn has_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// Whether only probes say that it is ready: a connection that breaks then refutes the readiness.
    pub(crate) fn is_unproven(&self) -> bool {
        !self.has_answered() && self.refuted() < MOST_REFUTED
    }

    /// How often it was taken for ready too early.
    pub(crate) fn refuted(&self) -> u32 {
        self.refuted.load(Ordering::Relaxed)
    }

    /// Records a readiness that was believed too early. Call it under the lock.
    pub(super) fn refute(&self) {
        self.refuted.fetch_add(1, Ordering::Relaxed);
    }

    /// Forgets its proofs of readiness: another platform may stop it and start it again. Call it under the
    /// lock.
    pub(super) fn doubt(&self) {
        self.answered.store(false, Ordering::Relaxed);
        self.refuted.store(0, Ordering::Relaxed);
    }

    /// Whether a success would reset its outlier detection.
    pub(crate) fn is_troubled(&self) -> bool {
        self.troubled.load(Ordering::Relaxed)
    }
}

/// The states of an endpoint's life cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointPhase {
    /// Known, not proven ready.
    Starting,
    /// Takes requests.
    Ready,
    /// Ejected after failures.
    Ejected {
        /// Until then.
        until: Instant,
        /// A failing probe ejected it, so a successful one reinstates it.
        by_probe: bool,
    },
    /// Draining: finishes its requests and gets no new one.
    Draining,
    /// Removed, but for requests that are still in flight on it.
    Gone,
}

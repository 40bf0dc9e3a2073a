//! One endpoint for its whole life: what requests, probes and the admin API share of it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use sluice_model::{EndpointAddr, InstanceId, stable_hash};
use tokio::sync::Notify;

use super::launch::Launch;
use crate::spare::SpareSlot;
use crate::upstream::{IdleConnections, StreamConnections};

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
    /// Which connections to it may be used; see [`pool_key`](Self::pool_key).
    epoch: AtomicU64,
    /// Mirrors `!health.is_spotless()`, written under the lock.
    pub(super) troubled: AtomicBool,
    /// When it came up. Looked at only by those who waited.
    launch: Mutex<Launch>,
    /// The connection of the probe that found it ready.
    spare: SpareSlot,
    /// Connections between two requests.
    idle: IdleConnections,
    /// HTTP/2 connections that carry streams.
    streams: StreamConnections,
    /// What it still has is to end.
    over: AtomicBool,
    over_news: Notify,
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
            epoch: AtomicU64::new(0),
            troubled: AtomicBool::new(false),
            launch: Mutex::default(),
            spare: SpareSlot::default(),
            idle: IdleConnections::default(),
            streams: StreamConnections::default(),
            over: AtomicBool::new(false),
            over_news: Notify::new(),
        }
    }

    /// Its time is over: whatever is in flight on it is to end. For good.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
        self.close_connections();
        self.over_news.notify_waiters();
    }

    /// Resolves once what is in flight on it is to end. Cancel-safe.
    pub async fn ended(&self) {
        let news = self.over_news.notified();
        // The flag after the news are listened for: neither order of events is missed.
        if !self.over.load(Ordering::SeqCst) {
            news.await;
        }
    }

    /// When it came up, as far as that is known.
    pub fn launch(&self) -> Launch {
        *self.launch.lock()
    }

    pub(crate) fn set_launch(&self, launch: Launch) {
        *self.launch.lock() = launch;
    }

    /// Where a probe leaves its connection for the first request.
    pub fn spare(&self) -> &SpareSlot {
        &self.spare
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

    /// The key of its connections in a pool.
    pub fn pool_key(&self) -> u64 {
        // Keys count up from 1 and never come near the upper bits.
        self.key ^ (self.epoch.load(Ordering::Relaxed) << 40)
    }

    /// Leaves all pooled connections behind: one of them was broken on purpose and may still be
    /// taken for a good one.
    pub fn renew_pool(&self) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
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

//! The table that a request reads: a Snapshot and the live state of its revisions.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use sluice_model::{RevisionId, Snapshot, TrafficSplit, draw_point};

use super::live::LiveRevision;

/// A Snapshot with the live state of its revisions.
#[derive(Debug)]
pub struct Serving {
    snapshot: Arc<Snapshot>,
    live: Box<[Arc<LiveRevision>]>,
    /// One per split that has something to draw, by the split's address: splits are inside the
    /// Snapshot, which this holds, so they neither move nor go while it lives.
    draws: HashMap<usize, Draw>,
    alive: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Draw {
    seed: u64,
    next: AtomicU64,
}

impl Serving {
    pub(super) fn new(
        snapshot: Arc<Snapshot>,
        live: Box<[Arc<LiveRevision>]>,
        alive: Arc<AtomicUsize>,
    ) -> Self {
        let services = snapshot.services().iter();
        let splits = services.flat_map(|s| s.routes.iter().map(|r| &r.split).chain([&s.split]));
        let draws = splits.filter(|split| split.only().is_none()).map(|split| {
            let draw = Draw {
                seed: fastrand::u64(..),
                next: AtomicU64::new(0),
            };
            (address(split), draw)
        });
        let draws = draws.collect();
        alive.fetch_add(1, Ordering::Relaxed);
        Self {
            snapshot,
            live,
            draws,
            alive,
        }
    }

    /// The Snapshot.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Live state, parallel to [`Snapshot::revisions`].
    pub fn live(&self) -> &[Arc<LiveRevision>] {
        &self.live
    }

    /// The live state of a revision by name.
    pub fn get(&self, revision: &RevisionId) -> Option<&Arc<LiveRevision>> {
        // The very first table is empty while its live state is made.
        self.live.get(self.snapshot.position(revision)?)
    }

    /// The next point to pick from a split of this Snapshot with. Every split has a sequence of
    /// its own, with a random start, that no other split's requests disturb.
    pub fn next_draw(&self, split: &TrafficSplit) -> u32 {
        match self.draws.get(&address(split)) {
            Some(draw) => draw_point(draw.seed, draw.next.fetch_add(1, Ordering::Relaxed)),
            // One target has everything: every point picks it.
            None => 0,
        }
    }

    pub(super) fn holds(&self, live: &Arc<LiveRevision>) -> bool {
        self.get(live.id()).is_some_and(|mine| Arc::ptr_eq(mine, live))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::Relaxed);
    }
}

fn address(split: &TrafficSplit) -> usize {
    std::ptr::from_ref(split).addr()
}

/// The reading end.
#[derive(Debug, Clone)]
pub struct ServingReader {
    current: Arc<ArcSwap<Serving>>,
}

impl ServingReader {
    pub(super) fn new(current: Arc<ArcSwap<Serving>>) -> Self {
        Self { current }
    }

    /// The current table. A request calls this once and keeps the `Arc`.
    pub fn load(&self) -> Arc<Serving> {
        self.current.load_full()
    }
}

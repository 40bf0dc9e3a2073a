//! What lives with a service of the table.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sluice_model::{Service, SnapshotReader, draw_point};

use super::live::LiveRevision;

/// The one table that requests read: routes, and the live state of each service on its entry.
pub type Snapshot = sluice_model::Snapshot<Arc<LiveService>>;

/// The reading end of it.
pub type Reader = SnapshotReader<Arc<LiveService>>;

/// The live state of a service. Generations share it while the service stays as it is; a service that
/// changed gets another one, with the live state of its revisions and the sequences of its splits in it.
#[derive(Debug)]
pub struct LiveService {
    revisions: Box<[Arc<LiveRevision>]>,
    /// One for each split: the service's own, then those of its routes. Without one where a target
    /// has everything; empty where one has in all of them.
    draws: Box<[Option<Arc<Draw>>]>,
}

/// The sequence of points of a split. A cache line of its own: whoever draws writes it, and nobody
/// else reads anything there.
#[derive(Debug)]
#[repr(align(128))]
struct Draw {
    seed: u64,
    next: AtomicU64,
}

impl LiveService {
    /// Of a service, whose revisions have these live states. Splits go on where those of `before`
    /// are, so that a reload does not start their sequences anew.
    pub(super) fn new(service: &Service, revisions: Box<[Arc<LiveRevision>]>, before: Option<&Self>) -> Self {
        let draws = service.splits().enumerate().map(|(nth, split)| {
            split.only().is_none().then(|| {
                let before = before.and_then(|before| before.draws.get(nth)?.clone());
                before.unwrap_or_else(|| {
                    Arc::new(Draw {
                        seed: fastrand::u64(..),
                        next: AtomicU64::new(0),
                    })
                })
            })
        });
        let draws: Box<[_]> = draws.collect();
        let used = draws.iter().any(Option::is_some);
        Self {
            draws: if used { draws } else { Box::default() },
            revisions,
        }
    }

    /// Of a service that is only looked at.
    #[cfg(test)]
    pub(crate) fn stateless(service: &Service) -> Self {
        Self::new(service, Box::default(), None)
    }

    /// The live state of its revisions: index it with
    /// [`TrafficTarget::slot`](sluice_model::TrafficTarget::slot).
    pub fn revisions(&self) -> &[Arc<LiveRevision>] {
        &self.revisions
    }

    /// The next point to pick from the split of a route with, or from the service's own. Every split
    /// has a sequence of its own, with a random start, that no other split's requests disturb.
    pub fn next_draw(&self, route: Option<usize>) -> u32 {
        let split = route.map_or(0, |route| route + 1);
        match self.draws.get(split) {
            Some(Some(draw)) => draw_point(draw.seed, draw.next.fetch_add(1, Ordering::Relaxed)),
            // One target has everything: every point picks it.
            _ => 0,
        }
    }
}

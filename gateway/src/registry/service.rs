//! Live state of a service on its table entry.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sluice_model::{Service, SnapshotReader, draw_point};

use super::live::LiveRevision;
use super::page_templates::PageTemplates;

/// The routing table that requests read, with the live state of each service on its entry.
pub type Snapshot = sluice_model::Snapshot<Arc<LiveService>>;

/// The reader of the table.
pub type Reader = SnapshotReader<Arc<LiveService>>;

/// The live state of a service. Generations share it while the service is unchanged; a changed service gets a
/// new one, which takes over the live state of its revisions and the draw sequences of its splits.
#[derive(Debug)]
pub struct LiveService {
    revisions: Box<[Arc<LiveRevision>]>,
    /// `None` where every split has one target with 100 %, as in nearly all services of a large table.
    draws: Option<Box<Draws>>,
    /// Templates of waiting pages; `None` where the service names no file, as nearly all services.
    pages: Option<Arc<PageTemplates>>,
}

/// The draw sequences of all splits of a service.
#[derive(Debug)]
struct Draws {
    /// By split: the first rule's own, those of its routes, then the same of the other rules. `None` where one target has
    /// 100 %.
    of_splits: Box<[Option<Arc<Draw>>]>,
    /// The index in `of_splits` of the first split of each rule but the first.
    rules: Box<[usize]>,
}

/// Sequence of draw points of a split. On a cache line of its own: every draw writes it, and nothing else there
/// is read.
#[derive(Debug)]
#[repr(align(128))]
struct Draw {
    seed: u64,
    next: AtomicU64,
}

impl LiveService {
    /// The live state of a service with these revisions. Splits continue the sequences of `before`, so that a
    /// reload does not restart them.
    pub(super) fn new(service: &Service, revisions: Box<[Arc<LiveRevision>]>, before: Option<&Self>) -> Self {
        let draws = service.splits().enumerate().map(|(nth, split)| {
            split.only().is_none().then(|| {
                let before = before.and_then(|before| before.draws.as_ref()?.of_splits.get(nth)?.clone());
                before.unwrap_or_else(|| {
                    Arc::new(Draw {
                        seed: fastrand::u64(..),
                        next: AtomicU64::new(0),
                    })
                })
            })
        });
        let of_splits: Box<[_]> = draws.collect();
        let used = of_splits.iter().any(Option::is_some);
        let pages = PageTemplates::load(service, before.and_then(|before| before.pages.as_deref()));
        let starts = service.rules().scan(0, |start, rule| {
            *start += 1 + rule.routes.len();
            Some(*start)
        });
        Self {
            pages: pages.map(Arc::new),
            draws: used.then(|| {
                let rules = starts.take(service.further.len()).collect();
                Box::new(Draws { of_splits, rules })
            }),
            revisions,
        }
    }

    /// The live state of a service that is only displayed.
    #[cfg(test)]
    pub(crate) fn stateless(service: &Service) -> Self {
        Self::new(service, Box::default(), None)
    }

    /// The live state of its revisions: index it with
    /// [`TrafficTarget::slot`](sluice_model::TrafficTarget::slot).
    pub fn revisions(&self) -> &[Arc<LiveRevision>] {
        &self.revisions
    }

    /// Templates of its waiting pages, if it names files.
    pub fn pages(&self) -> Option<&Arc<PageTemplates>> {
        self.pages.as_ref()
    }

    /// The next draw point for the split of a rule's `route`, or for the rule's own split. Every split has a sequence
    /// of its own, with a random start, that requests of other splits do not disturb.
    pub fn next_draw(&self, rule: usize, route: Option<usize>) -> u32 {
        let draw = self.draws.as_ref().and_then(|draws| {
            let first = rule.checked_sub(1).and_then(|further| draws.rules.get(further));
            let split = first.copied().unwrap_or_default() + route.map_or(0, |route| route + 1);
            draws.of_splits.get(split)?.as_deref()
        });
        // Without a sequence one target has 100 %: every point picks it.
        draw.map_or(0, |draw| {
            draw_point(draw.seed, draw.next.fetch_add(1, Ordering::Relaxed))
        })
    }
}

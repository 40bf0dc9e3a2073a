//! The bound on all queues together.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use sluice_model::QueueTotals;

/// Counts waiters and their bytes over all revisions and says when it is too much.
///
/// Only held requests touch it, never the warm path. It knows totals, not queues: displacing a
/// waiter of the longest queue in favour of a service below its share belongs where `reserve` is
/// refused, the only place where the bound bites.
#[derive(Debug)]
pub struct QueueBudget {
    depth: AtomicUsize,
    bytes: AtomicU64,
    max_depth: AtomicUsize,
    max_bytes: AtomicU64,
}

impl QueueBudget {
    /// An empty one.
    pub fn new(totals: QueueTotals) -> Self {
        Self {
            depth: AtomicUsize::new(0),
            bytes: AtomicU64::new(0),
            max_depth: AtomicUsize::new(totals.depth),
            max_bytes: AtomicU64::new(totals.bytes),
        }
    }

    /// Changes the bounds. Who waits already goes on waiting.
    pub fn set_totals(&self, totals: QueueTotals) {
        self.max_depth.store(totals.depth, Ordering::Relaxed);
        self.max_bytes.store(totals.bytes, Ordering::Relaxed);
    }

    /// Waiters and bytes now.
    pub fn used(&self) -> QueueTotals {
        QueueTotals {
            depth: self.depth.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }

    /// Takes a place; false, and nothing taken, when it would exceed a bound.
    pub(crate) fn reserve(&self, bytes: u64) -> bool {
        // Add, then look: concurrent arrivals may both be refused at the bound, never both let in.
        let depth = self.depth.fetch_add(1, Ordering::Relaxed) + 1;
        let total = self
            .bytes
            .fetch_add(bytes, Ordering::Relaxed)
            .saturating_add(bytes);
        let fits = depth <= self.max_depth.load(Ordering::Relaxed)
            && total <= self.max_bytes.load(Ordering::Relaxed);
        if !fits {
            self.free(bytes);
        }
        fits
    }

    /// Gives a place back.
    pub(crate) fn free(&self, bytes: u64) {
        self.depth.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_above_either_bound_and_takes_nothing_then() {
        let budget = QueueBudget::new(QueueTotals { depth: 2, bytes: 10 });
        assert!(budget.reserve(4));
        assert!(!budget.reserve(7));
        assert!(budget.reserve(6));
        assert!(!budget.reserve(0));
        budget.free(4);
        assert_eq!(budget.used(), QueueTotals { depth: 1, bytes: 6 });
        budget.set_totals(QueueTotals { depth: 1, bytes: 10 });
        assert!(!budget.reserve(0));
    }
}

//! Striped counters: every thread writes a stripe of its own, and a reader adds the stripes up. The warm path
//! of a request writes no cache line that another thread writes.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The number of stripes: at least one per data thread on most machines; with more threads, some share one.
pub(super) const STRIPES: usize = 8;

/// A `T` for each thread. A stripe takes memory with its thread's first write: a revision of a large routing
/// table is used by few threads or none.
#[derive(Debug)]
pub(super) struct Stripes<T>([OnceLock<Box<Padded<T>>>; STRIPES]);

/// Padding against false sharing: two cache lines, which a processor fetches at once, hold nothing of another
/// stripe.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded<T>(T);

impl<T> Default for Stripes<T> {
    fn default() -> Self {
        Self([const { OnceLock::new() }; STRIPES])
    }
}

impl<T: Default> Stripes<T> {
    /// The stripe of this thread. Another thread may share the stripe where there are more threads than
    /// stripes.
    pub(super) fn mine(&self) -> &T {
        &self.0[nth_of_this_thread() % STRIPES].get_or_init(Box::default).0
    }
}

impl<T> Stripes<T> {
    /// Every stripe that was written to.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().filter_map(|stripe| Some(&stripe.get()?.0))
    }
}

/// Numbers threads in the order of their first use: the data threads, which start together, get stripes of
/// their own.
fn nth_of_this_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NTH: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    NTH.with(|nth| *nth)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn each_thread_keeps_to_one_stripe_and_all_add_up() {
        let stripes = Stripes::<AtomicU64>::default();
        assert_eq!(stripes.iter().count(), 0, "nothing was written");
        std::thread::scope(|scope| {
            for _ in 0..2 * STRIPES {
                scope.spawn(|| {
                    let mine: *const AtomicU64 = stripes.mine();
                    for _ in 0..1_000 {
                        assert!(std::ptr::eq(stripes.mine(), mine));
                        stripes.mine().fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        let sum: u64 = stripes.iter().map(|n| n.load(Ordering::Relaxed)).sum();
        assert_eq!(sum, 2_000 * STRIPES as u64);
    }

    #[test]
    fn threads_in_a_row_write_different_cache_lines() {
        let stripes = Stripes::<AtomicU64>::default();
        let mut lines = BTreeSet::new();
        let mut threads = 0;
        // Other tests start threads meanwhile, so the order of stripes is not fixed.
        while stripes.iter().count() < STRIPES && threads < 10_000 {
            let line = || std::ptr::from_ref(stripes.mine()).addr() / 128;
            lines.insert(std::thread::scope(|scope| scope.spawn(line).join().unwrap()));
            threads += 1;
        }
        assert_eq!(lines.len(), STRIPES, "after {threads} threads");
    }
}

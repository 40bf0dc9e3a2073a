//! A parallel map that keeps the order of its items, for the first load of many files.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, available_parallelism, scope};

/// The number of items that a worker thread takes at once.
const CHUNK: usize = 64;

/// The bound of worker threads. More threads would wait for the one thread that takes the results.
const MAX_WORKERS: usize = 8;

/// The number of worker threads: one for each core, up to [`MAX_WORKERS`].
pub(crate) fn workers() -> usize {
    available_parallelism().map_or(1, NonZero::get).min(MAX_WORKERS)
}

/// Calls `work` on each item, and `take` with each result on the calling thread, in the order of the items, while
/// `workers` threads go on with the rest. With one worker, or few items, all work runs on the calling thread. Every
/// thread has its own state `S`. Panics where `work` panics.
pub(crate) fn map_in_order<T: Send, S, R: Send>(
    items: Vec<T>,
    workers: usize,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, T) -> R + Sync,
    mut take: impl FnMut(R),
) {
    if workers <= 1 || items.len() <= CHUNK {
        let mut state = state();
        items.into_iter().for_each(|item| take(work(&mut state, item)));
        return;
    }
    let mut items = items.into_iter();
    let mut count = 0;
    let chunks = std::iter::from_fn(move || {
        let chunk: Vec<T> = items.by_ref().take(CHUNK).collect();
        count += 1;
        (!chunk.is_empty()).then_some((count - 1, chunk))
    });
    let chunks = Mutex::new(chunks);
    let next_chunk = || chunks.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work_off = |state: &mut S, chunk: Vec<T>| -> Vec<R> {
        let results = chunk.into_iter().map(|item| work(state, item));
        results.collect()
    };
    scope(|threads| {
        let (done, results) = sync_channel(2 * workers);
        for _ in 0..workers {
            let (done, next_chunk, work_off, state) = (done.clone(), &next_chunk, &work_off, &state);
            let run = move || {
                let mut state = state();
                while let Some((nth, chunk)) = next_chunk() {
                    if done.send((nth, work_off(&mut state, chunk))).is_err() {
                        break;
                    }
                }
            };
            // If the system refuses a thread, the other threads do its work.
            let _ = Builder::new()
                .name("sluice-load".to_owned())
                .spawn_scoped(threads, run);
        }
        drop(done);
        let (mut early, mut next) = (BTreeMap::new(), 0);
        for (nth, chunk) in results {
            early.insert(nth, chunk);
            while let Some(chunk) = early.remove(&next) {
                chunk.into_iter().for_each(&mut take);
                next += 1;
            }
        }
    });
    // Items that no thread took, because no thread could be started.
    let mut state = state();
    while let Some((_, chunk)) = next_chunk() {
        work_off(&mut state, chunk).into_iter().for_each(&mut take);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_items_whatever_each_takes() {
        for workers in [1, 2, 7] {
            let items: Vec<u64> = (0..10_000).collect();
            let mut got = Vec::new();
            let slow = |count: &mut u64, item: u64| {
                *count += 1;
                // The first of each chunk is the slowest.
                let turns = if item.is_multiple_of(CHUNK as u64) {
                    20_000
                } else {
                    1
                };
                (0..turns).fold(item, |sum, _| std::hint::black_box(sum))
            };
            map_in_order(items.clone(), workers, || 0, slow, |item| got.push(item));
            assert_eq!(got, items);
        }
    }

    #[test]
    fn a_panic_comes_out() {
        let work = |(): &mut (), item: u32| assert_ne!(item, 777);
        let all = || map_in_order((0..1_000).collect(), 3, || (), work, |()| {});
        assert!(std::panic::catch_unwind(all).is_err());
    }
}

//! The bounded queue between requests and the exporter: encoded spans, in batches.
//!
//! A request appends its spans to the last batch under a short lock and never waits; what does not fit is dropped and counted. The
//! spans of a request stay together: a trace is kept whole, or dropped whole.

use std::collections::VecDeque;

use metrics::Counter;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

/// Encoded spans for one POST.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    pub(super) spans: usize,
    /// How many requests the spans belong to.
    pub(super) traces: u64,
}

#[derive(Debug, Default)]
struct Pending {
    /// Only the last one may be below the size of a batch.
    batches: VecDeque<Batch>,
    /// Spans in all batches.
    spans: usize,
    /// Traces that the exporter has taken, and neither delivered nor given up.
    taken: u64,
    closed: bool,
}

/// The queue.
#[derive(Debug)]
pub(super) struct SpanQueue {
    pending: Mutex<Pending>,
    max_spans: usize,
    max_batch: usize,
    dropped: Counter,
    /// A batch is full.
    full: Notify,
    closed: watch::Sender<bool>,
}

impl SpanQueue {
    /// Holds at most `max_spans`, in batches of at most `max_batch` (or of one request's spans, where those are more). `dropped`
    /// counts traces.
    pub(super) fn new(max_spans: usize, max_batch: usize, dropped: Counter) -> Self {
        Self {
            pending: Mutex::default(),
            max_spans,
            max_batch,
            dropped,
            full: Notify::new(),
            closed: watch::Sender::new(false),
        }
    }

    /// Takes the spans of one request, or drops and counts them. Never waits for the exporter.
    pub(super) fn push(&self, bytes: &[u8], spans: usize) {
        let mut pending = self.pending.lock();
        if pending.closed || pending.spans + spans > self.max_spans {
            drop(pending);
            self.dropped.increment(1);
            return;
        }
        pending.spans += spans;
        let fits = pending
            .batches
            .back()
            .is_some_and(|last| last.spans + spans <= self.max_batch);
        if !fits {
            pending.batches.push_back(Batch::default());
        }
        let many = pending.batches.len() > 1;
        if let Some(last) = pending.batches.back_mut() {
            last.bytes.extend_from_slice(bytes);
            last.spans += spans;
            last.traces += 1;
            let full = many && !fits || last.spans >= self.max_batch;
            drop(pending);
            if full {
                self.full.notify_one();
            }
        }
    }

    /// The oldest batch: a full one, or where `partial` any. The caller reports its end by [`settled`](Self::settled).
    pub(super) fn take(&self, partial: bool) -> Option<Batch> {
        let mut pending = self.pending.lock();
        let first = pending.batches.front()?;
        if !partial && pending.batches.len() == 1 && first.spans < self.max_batch {
            return None;
        }
        let batch = pending.batches.pop_front()?;
        pending.spans -= batch.spans;
        pending.taken += batch.traces;
        Some(batch)
    }

    /// Ends a batch that was taken: `lost` of its traces were not delivered, and are counted.
    pub(super) fn settled(&self, batch: &Batch, lost: u64) {
        self.pending.lock().taken -= batch.traces;
        self.dropped.increment(lost);
    }

    /// Resolves when a batch is full. Cancel-safe.
    pub(super) async fn filled(&self) {
        self.full.notified().await;
    }

    /// Takes no more spans: later ones are dropped and counted.
    pub(super) fn close(&self) {
        self.pending.lock().closed = true;
        self.closed.send_replace(true);
    }

    /// Resolves once the queue is closed. Cancel-safe.
    pub(super) async fn closed(&self) {
        // An error would mean that the sender is gone, which this queue owns.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }

    /// Whether the queue is closed.
    pub(super) fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// Drops and counts everything that is not delivered; returns how many traces that were.
    pub(super) fn abandon(&self) -> u64 {
        let pending = std::mem::replace(
            &mut *self.pending.lock(),
            Pending {
                closed: true,
                ..Pending::default()
            },
        );
        let lost = pending.taken + pending.batches.iter().map(|batch| batch.traces).sum::<u64>();
        self.dropped.increment(lost);
        lost
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use proptest::prelude::*;

    use super::*;

    fn queue(max_spans: usize, max_batch: usize) -> (SpanQueue, Arc<AtomicU64>) {
        let count = Arc::new(AtomicU64::new(0));
        let dropped = Counter::from_arc(Arc::clone(&count));
        (SpanQueue::new(max_spans, max_batch, dropped), count)
    }

    fn spans(queue: &SpanQueue, partial: bool) -> Vec<usize> {
        std::iter::from_fn(|| queue.take(partial))
            .map(|batch| batch.spans)
            .collect()
    }

    #[test]
    fn only_full_batches_are_taken_before_their_time() {
        let (queue, _) = queue(100, 4);
        queue.push(b"abc", 3);
        assert!(queue.take(false).is_none());
        queue.push(b"de", 2);
        let first = queue.take(false).unwrap();
        assert_eq!((&first.bytes[..], first.spans, first.traces), (&b"abc"[..], 3, 1));
        assert!(queue.take(false).is_none(), "the second one is not full");
        assert_eq!(spans(&queue, true), [2]);
    }

    #[test]
    fn what_does_not_fit_is_dropped_whole_and_counted() {
        let (queue, dropped) = queue(5, 2);
        queue.push(b"", 3);
        queue.push(b"", 3);
        queue.push(b"", 2);
        assert_eq!(dropped.load(Ordering::Relaxed), 1);
        assert_eq!(spans(&queue, false), [3, 2], "one request's spans stay together");
        queue.push(b"", 5);
        assert_eq!(dropped.load(Ordering::Relaxed), 1, "there is room again");
    }

    #[test]
    fn what_is_given_up_at_the_end_is_counted() {
        let (queue, dropped) = queue(100, 2);
        for _ in 0..5 {
            queue.push(b"", 2);
        }
        let (first, second) = (queue.take(true).unwrap(), queue.take(true).unwrap());
        queue.settled(&first, 0);
        queue.close();
        assert!(queue.is_closed());
        queue.push(b"", 1);
        assert_eq!(queue.abandon(), 4, "three in the queue, one under way");
        assert_eq!(dropped.load(Ordering::Relaxed), 5);
        assert_eq!(second.traces, 1);
    }

    #[tokio::test]
    async fn a_full_batch_and_the_end_are_told() {
        let (queue, _) = queue(100, 2);
        queue.push(b"", 2);
        queue.filled().await;
        queue.close();
        queue.closed().await;
    }

    proptest! {
        #[test]
        fn every_trace_is_delivered_or_counted(
            max in 1..20usize,
            batch in 1..20usize,
            steps in proptest::collection::vec((1..8usize, 0..3u8), 0..60),
        ) {
            let (queue, dropped) = queue(max, batch);
            let (mut pushed, mut delivered) = (0, 0);
            for (spans, take) in steps {
                queue.push(&vec![0; spans], spans);
                pushed += 1;
                if take > 0 && let Some(batch) = queue.take(take > 1) {
                    prop_assert_eq!(batch.bytes.len(), batch.spans);
                    prop_assert!(batch.spans <= max);
                    delivered += batch.traces;
                    queue.settled(&batch, 0);
                }
                let held: usize = queue.pending.lock().batches.iter().map(|batch| batch.spans).sum();
                prop_assert!(held <= max);
                prop_assert_eq!(held, queue.pending.lock().spans);
            }
            queue.abandon();
            prop_assert_eq!(delivered + dropped.load(Ordering::Relaxed), pushed);
        }
    }
}

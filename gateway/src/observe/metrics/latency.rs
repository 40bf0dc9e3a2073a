//! Latency histograms: recorded as HDR histograms, exposed as Prometheus histograms.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use sluice_model::latency_bucket;

use super::stripes::Stripes;

/// Upper bounds of the buckets: in microseconds, and in seconds as the `le` label has it.
pub(super) const BOUNDS: [(u64, &str); 16] = [
    (500, "0.0005"),
    (1_000, "0.001"),
    (2_500, "0.0025"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (250_000, "0.25"),
    (500_000, "0.5"),
    (1_000_000, "1"),
    (2_500_000, "2.5"),
    (5_000_000, "5"),
    (10_000_000, "10"),
    (30_000_000, "30"),
    (60_000_000, "60"),
];

/// The bounds in microseconds alone.
pub(in crate::observe) const LATENCY_BOUNDS: [u64; BOUNDS.len()] = {
    let mut micros = [0; BOUNDS.len()];
    let mut i = 0;
    while i < micros.len() {
        micros[i] = BOUNDS[i].0;
        i += 1;
    }
    micros
};

/// The longest duration recorded, in microseconds; longer ones count as this (the sum stays exact). Bounds a
/// histogram at 26 KB.
const LONGEST: u64 = 3_600_000_000;

/// Two digits: an error below 1 %, which may put a duration that close to a bound into the next
/// bucket, never into the one before.
const DIGITS: u8 = 2;

/// A histogram of one series. Takes memory with the first duration of a thread, and grows with the longest
/// one.
#[derive(Debug, Default)]
pub(super) struct Latency {
    stripes: Stripes<Mutex<Recorded>>,
}

#[derive(Debug)]
struct Recorded {
    micros: Histogram<u64>,
    sum: Duration,
}

impl Default for Recorded {
    fn default() -> Self {
        Self {
            micros: Histogram::new(DIGITS).expect("the number of digits is in range"),
            sum: Duration::ZERO,
        }
    }
}

/// A series at one moment.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Buckets {
    /// Durations up to each of [`BOUNDS`]; cumulative.
    pub(super) cumulative: [u64; BOUNDS.len()],
    /// The number of durations.
    pub(super) count: u64,
    /// The sum of all durations.
    pub(super) sum: Duration,
}

impl Latency {
    /// Records one duration: some 20 ns under the lock of this thread's stripe, which other threads seldom take.
    pub(super) fn record(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).map_or(LONGEST, |m| m.min(LONGEST));
        let mut recorded = self.stripes.mine().lock();
        // The histogram resizes itself and so takes every value; the saturating variant would not resize.
        let taken = recorded.micros.record(micros);
        debug_assert!(taken.is_ok(), "{micros} did not fit: {taken:?}");
        recorded.sum = recorded.sum.saturating_add(duration);
    }

    /// The number of durations so far, and their sum. Costs less than [`buckets`](Self::buckets).
    pub(super) fn total(&self) -> (u64, Duration) {
        let totals = self.stripes.iter().map(|stripe| {
            let recorded = stripe.lock();
            (recorded.micros.len(), recorded.sum)
        });
        totals.fold((0, Duration::ZERO), |(count, sum), (n, more)| {
            (count + n, sum.saturating_add(more))
        })
    }

    /// All durations so far; `None` before the first.
    pub(super) fn buckets(&self) -> Option<Buckets> {
        buckets(std::iter::once(self))
    }
}

/// All durations so far of several histograms, by the finer buckets of the judgement of rollouts.
pub(super) fn fine<'l>(all: impl Iterator<Item = &'l Latency>) -> Vec<(u16, u64)> {
    let mut counts = BTreeMap::<u16, u64>::new();
    for stripe in all.flat_map(|latency| latency.stripes.iter()) {
        let recorded = stripe.lock();
        for value in recorded.micros.iter_recorded() {
            *counts
                .entry(latency_bucket(value.value_iterated_to()))
                .or_default() += value.count_at_value();
        }
    }
    counts.into_iter().collect()
}

/// All durations so far of several histograms; `None` before the first.
pub(super) fn buckets<'l>(all: impl Iterator<Item = &'l Latency>) -> Option<Buckets> {
    let mut out = Buckets::default();
    for stripe in all.flat_map(|latency| latency.stripes.iter()) {
        let recorded = stripe.lock();
        for value in recorded.micros.iter_recorded() {
            let count = value.count_at_value();
            // The value is the upper end of its HDR bucket.
            let first = BOUNDS.partition_point(|&(bound, _)| bound < value.value_iterated_to());
            if let Some(bucket) = out.cumulative.get_mut(first) {
                *bucket += count;
            }
            out.count += count;
        }
        out.sum = out.sum.saturating_add(recorded.sum);
    }
    for i in 1..BOUNDS.len() {
        out.cumulative[i] += out.cumulative[i - 1];
    }
    (out.count > 0).then_some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn labels_say_what_bounds_are() {
        for (micros, label) in BOUNDS {
            let seconds: f64 = label.parse().unwrap();
            assert!((seconds * 1e6 - micros as f64).abs() < 1e-6, "{label}");
        }
        assert!(BOUNDS.is_sorted());
    }

    proptest! {
        #[test]
        fn buckets_count_what_was_recorded(micros in proptest::collection::vec(0..100_000_000u64, 1..100)) {
            let latency = Latency::default();
            for &m in &micros {
                latency.record(Duration::from_micros(m));
            }
            let buckets = latency.buckets().unwrap();
            prop_assert_eq!(buckets.count, micros.len() as u64);
            prop_assert_eq!(buckets.sum, Duration::from_micros(micros.iter().sum()));
            let fine = fine(std::iter::once(&latency));
            prop_assert_eq!(fine.iter().map(|(_, count)| count).sum::<u64>(), buckets.count);
            for (bucket, have) in fine {
                let near = |m: u64| m.abs_diff(sluice_model::latency_bound(bucket)) <= sluice_model::latency_bound(bucket) / 7 + 8;
                prop_assert!(micros.iter().filter(|m| near(**m)).count() as u64 >= have);
            }
            for ((bound, _), have) in BOUNDS.into_iter().zip(buckets.cumulative) {
                let exact = micros.iter().filter(|&&m| m <= bound).count() as u64;
                let surely = micros.iter().filter(|&&m| m < bound - bound / 100).count() as u64;
                prop_assert!(surely <= have && have <= exact, "{bound}: {surely} <= {have} <= {exact}");
            }
        }
    }

    #[test]
    fn threads_add_up_and_the_longest_fits() {
        let latency = Latency::default();
        assert_eq!(latency.buckets(), None);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..1000).for_each(|_| latency.record(Duration::from_millis(3))));
            }
        });
        latency.record(Duration::MAX);
        latency.record(Duration::from_secs(86_400));
        let buckets = latency.buckets().unwrap();
        assert_eq!(buckets.count, 8002);
        assert_eq!(buckets.cumulative[2], 0);
        assert_eq!(buckets.cumulative[3..], [8000; 13]);
        assert_eq!(latency.total(), (buckets.count, buckets.sum));
    }
}

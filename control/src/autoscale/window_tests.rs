//! Vectors of Knative Serving, pkg/autoscaler/aggregation/bucketing_test.go.

use super::*;

/// Far from zero, so that "three seconds before" exists.
const T0: u64 = 1_000;

fn at(offset: i64) -> Duration {
    Duration::from_secs(T0.checked_add_signed(offset).expect("after zero"))
}

fn ring(window: u64) -> TimedBuckets {
    TimedBuckets::new(Duration::from_secs(window))
}

fn filled(window: u64, values: &[f64]) -> TimedBuckets {
    let mut ring = ring(window);
    for (second, value) in (0..).zip(values) {
        ring.record(at(second), *value);
    }
    ring
}

#[track_caller]
fn close(actual: f64, expected: f64) {
    assert!((actual - expected).abs() < 1e-6, "{actual} is not {expected}");
}

/// TestTimedFloat64BucketsWindowAverage.
#[test]
fn linear_average() {
    let mut ring = ring(5);
    ring.record(at(0), 1.0);
    close(ring.average(at(0)), 1.0);
    for second in 1..5 {
        ring.record(at(second), second as f64 + 1.0);
    }
    close(ring.average(at(4)), 3.0);
    close(ring.average(at(3) + Duration::from_millis(600)), 3.0);
    close(ring.average(at(6)), (15.0 - 1.0 - 2.0) / 3.0);
    close(ring.average(at(10)), 0.0);
    ring.record(at(6), 91.0);
    close(ring.average(at(6)), (15.0 - 1.0 - 2.0 + 91.0) / 5.0);

    let minute = 66;
    ring.record(at(minute), 1984.0);
    close(ring.average(at(minute)), 1984.0);
    ring.record(at(minute - 3), 4.0);
    close(ring.average(at(minute)), (4.0 + 1984.0) / 4.0);
    ring.record(at(minute + 1), 5.0);
    close(ring.average(at(minute + 1)), 1993.0 / 5.0);
    ring.record(at(minute - 2), 10.0);
    close(ring.average(at(minute + 1)), 400.6);
    ring.record(at(minute - 5), 10.0);
    ring.record(at(minute - 4), 10.0);
    close(ring.average(at(minute + 1)), 400.6);
    ring.record(at(minute + 6), 10.0);
    close(ring.average(at(minute + 6)), 10.0);
}

/// TestDescendingRecord.
#[test]
fn descending_writes() {
    let mut ring = ring(5);
    for second in (0..9).rev() {
        ring.record(at(second), 5.0);
    }
    close(ring.average(at(5)), 5.0);
}

/// TestTimedFloat64BucketsWindowUpdate.
#[test]
fn resize_keeps_the_newest() {
    let mut ring = filled(5, &[2.0, 3.0, 4.0, 5.0, 6.0]);
    close(ring.average(at(4)), 4.0);
    ring.resize(Duration::from_secs(10), at(4));
    close(ring.average(at(4)), 4.0);
    ring.record(at(5), 7.0);
    close(ring.average(at(5)), 27.0 / 6.0);
    ring.resize(Duration::from_secs(10), at(5));
    close(ring.average(at(5)), 27.0 / 6.0);
    ring.resize(Duration::from_secs(4), at(5));
    close(ring.average(at(5)), 5.5);
}

/// TestTimedFloat64BucketsWindowUpdate: a ring that is out of date starts anew.
#[test]
fn resize_of_a_stale_ring_forgets() {
    let mut ring = filled(5, &[2.0, 3.0, 4.0, 5.0, 6.0]);
    ring.resize(Duration::from_secs(7), at(9));
    assert!(ring.is_empty(at(9)));
    ring.record(at(9), 8.0);
    close(ring.average(at(9)), 8.0);
}

/// TestTimedFloat64BucketsWeightedAverage and TestSmoothingCoeff.
#[test]
fn weighted_average() {
    for (buckets, coefficient) in [(6, 0.78456), (40, 0.20567), (60, 0.2), (100, 0.2)] {
        let actual = exponential_coefficient(buckets);
        assert!((actual - coefficient).abs() < 1e-5, "{buckets}: {actual}");
    }
    let falling = filled(4, &[10.0, 10.0, 5.0, 5.0]);
    close(falling.weighted(at(3), 0.6), 5.544);
    let rising = filled(4, &[5.0, 5.0, 10.0, 10.0]);
    close(rising.weighted(at(3), 0.6), 9.072);
    let five = filled(5, &[2.0, 3.0, 4.0, 5.0, 6.0]);
    assert!((five.weighted_average(at(4)) - 5.812).abs() < 5e-4);
    close(five.weighted_average(at(9)), 0.0);
}

/// TestTimedFloat64BucketsIsEmpty: within the window it is not empty.
#[test]
fn emptiness() {
    let mut ring = ring(5);
    assert!(ring.is_empty(at(0)));
    ring.record(at(0), 0.0);
    assert!(!ring.is_empty(at(5)));
    assert!(ring.is_empty(at(6)));
}

/// TestTimedFloat64BucketsSimple: values of one second add up, those of a gap are zeros.
#[test]
fn a_second_adds_up() {
    let mut ring = ring(5);
    ring.record(at(0), 5.0);
    ring.record(at(0) + Duration::from_millis(900), 5.0);
    close(ring.average(at(0)), 10.0);
    ring.record(at(3), 2.0);
    close(ring.average(at(3)), 12.0 / 4.0);
}

#[test]
fn an_average_over_nothing_is_exactly_zero() {
    let mut ring = ring(7);
    for second in 0..100 {
        ring.record(at(second), 0.1 + second as f64 / 3.0);
    }
    for second in 100..107 {
        ring.record(at(second), 0.0);
    }
    assert_eq!(ring.average(at(106)).to_bits(), 0.0f64.to_bits());
}

#[test]
fn nonsense_counts_as_nothing() {
    let mut ring = ring(5);
    ring.record(at(0), f64::NAN);
    ring.record(at(0), -1.0);
    close(ring.average(at(0)), 0.0);
    ring.record(at(0), f64::INFINITY);
    assert!(ring.average(at(0)).is_finite());
}

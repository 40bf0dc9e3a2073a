use proptest::prelude::*;

use super::*;

fn id(n: usize) -> RevisionId {
    // The longest names there are.
    let name = format!("{n:0>63}");
    RevisionId::parse(&"n".repeat(63), &format!("r{}", &name[1..])).unwrap()
}

fn counts(requests: u64) -> RequestCounts {
    RequestCounts {
        requests,
        ..RequestCounts::default()
    }
}

fn durations(bucket: usize, count: u64) -> DurationCounts {
    let mut durations = DurationCounts::default();
    durations.buckets[bucket] = count;
    durations
}

/// A step in which these revisions had so many requests, and what they have counted in all.
fn step(history: &mut History, step: u64, revisions: impl Iterator<Item = (usize, u64, u64)>) {
    let revisions = revisions.map(|(n, requests, all)| {
        let has_earlier = all > requests;
        let counts = RequestCounts {
            has_earlier,
            ..counts(requests)
        };
        (id(n), counts, move || durations(0, all))
    });
    history.record(step, RequestCounts::default(), revisions);
}

fn requests<'p>(points: impl Iterator<Item = &'p Point>) -> Vec<u32> {
    points.map(|point| point.requests).collect()
}

#[test]
fn an_hour_of_a_thousand_series_stays_within_16_mib() {
    let mut history = History::default();
    let mut left_out = 0;
    for now in 0..STEPS as u64 + 100 {
        // Three times as many revisions as there are places; a third of them has traffic, each third in its turn, and
        // now and then all of them.
        let requests = |n: usize| u64::from(n as u64 % 3 == now / 20 % 3 || now % 50 == 49);
        let all = (0..3 * MAX_SERIES).map(|n| (n, requests(n), 1_000));
        step(&mut history, now + 1_000, all);
        left_out += history.left_out();
        assert!(history.series.len() <= MAX_SERIES);
        assert!(history.bytes() <= MAX_BYTES, "{} bytes", history.bytes());
    }
    assert_eq!(history.series.len(), MAX_SERIES);
    assert!(left_out > 0);
    // What is counted is what a point takes, and all of the places.
    assert!(history.bytes() > MAX_SERIES * STEPS * size_of::<Point>());
    assert_eq!(history.series.values().map(|s| s.points.len()).max(), Some(STEPS));
    // Whether the table has grown once more depends on its random keys.
    history.series.reserve(2 * MAX_SERIES);
    assert!(history.series.capacity() > 2 * MAX_SERIES);
    assert!(history.bytes() <= MAX_BYTES, "{} bytes", history.bytes());
}

#[test]
fn steps_fall_out_after_an_hour() {
    let mut history = History::default();
    let first = 77;
    step(&mut history, first, [(1, 5, 5)].into_iter());
    step(&mut history, first + 1, [(1, 7, 12)].into_iter());
    // Three steps were missed.
    step(&mut history, first + 5, [(1, 1, 13)].into_iter());
    let hour = requests(history.series(&id(1)).unwrap());
    assert_eq!(hour.len(), STEPS);
    assert_eq!(hour[STEPS - 6..], [5, 7, 0, 0, 0, 1]);
    assert_eq!(requests(history.total())[STEPS - 6..], [5, 7, 0, 0, 0, 1]);
    assert_eq!((history.latest(&id(1)), history.last()), (1, Some(first + 5)));
    step(&mut history, first + STEPS as u64, [(1, 0, 13)].into_iter());
    assert_eq!(requests(history.series(&id(1)).unwrap())[..2], [7, 0]);
    // A gap of more than an hour leaves nothing.
    step(&mut history, first + 9_999, [(1, 1, 14)].into_iter());
    let hour = requests(history.series(&id(1)).unwrap());
    assert_eq!((hour.iter().sum::<u32>(), hour[STEPS - 1]), (1, 1));
    assert!(history.series(&id(2)).is_none());
}

#[test]
fn durations_are_asked_for_by_need_alone() {
    let mut history = History::default();
    step(&mut history, 1, [(1, 2, 2)].into_iter());
    let idle = [(id(1), counts(0), || -> DurationCounts {
        panic!("nothing is new")
    })];
    history.record(2, RequestCounts::default(), idle.into_iter());
    assert_eq!(requests(history.total())[STEPS - 2..], [2, 0]);
}

#[test]
fn requests_without_a_revision_and_load_count_in_the_total() {
    let mut history = History::default();
    let unrouted = RequestCounts {
        requests: 7,
        errors: 2,
        ..RequestCounts::default()
    };
    let busy = RequestCounts {
        in_flight: 70_000,
        queued: 3,
        ..RequestCounts::default()
    };
    history.record(1, unrouted, [(id(1), busy, DurationCounts::default)].into_iter());
    let last = *history.total().last().unwrap();
    assert_eq!((last.requests, last.errors), (7, 2));
    assert_eq!((last.in_flight, last.queued), (u16::MAX, 3));
    assert_eq!(history.ids().count(), 0, "no request of its own");
}

#[test]
fn a_cold_start_is_shown_by_its_phases() {
    let mut history = History::default();
    let cold = |cold, phases| DurationCounts {
        cold,
        phases,
        ..durations(3, cold)
    };
    let mut record = |step, requests, durations: DurationCounts| {
        let one = [(id(1), counts(requests), move || durations)];
        history.record(step, RequestCounts::default(), one.into_iter());
        *history.series(&id(1)).unwrap().last().unwrap()
    };
    let point = record(1, 2, cold(2, [10, 20, 3_000, 4, 50]));
    assert_eq!((point.cold, point.phases), (2, [5, 10, 1_500, 2, 25]));
    let point = record(2, 1, cold(3, [11, 20, 3_000, 4, 50]));
    assert_eq!((point.cold, point.phases), (1, [1, 0, 0, 0, 0]));
    let point = record(3, 0, cold(3, [11, 20, 3_000, 4, 50]));
    assert_eq!((point.cold, point.phases), (0, [0; 5]));
}

#[test]
fn a_newcomer_takes_the_place_of_who_was_idle_for_longest() {
    let mut history = History::default();
    // All but the first one have a request in each step after the first.
    let full = |now: u64| (0..MAX_SERIES).map(move |n| (n, u64::from(n > 0 || now == 1), now));
    step(&mut history, 1, full(1));
    step(&mut history, 2, full(2));
    let with = |now, requests| full(now).chain([(MAX_SERIES, requests, 100 * now)]);
    step(&mut history, 3, with(3, 9));
    assert_eq!(history.left_out(), 1, "nobody was idle for a minute");
    assert!(history.series(&id(MAX_SERIES)).is_none());
    step(&mut history, 7, with(7, 2));
    assert_eq!(history.left_out(), 0);
    assert!(history.series(&id(0)).is_none(), "the only idle one");
    let last = |history: &History| *history.series(&id(MAX_SERIES)).unwrap().last().unwrap();
    // How long those took nobody can tell: it was counted together with what came before.
    assert_eq!((last(&history).requests, last(&history).median), (2, 0));
    step(&mut history, 8, with(8, 4));
    assert_eq!(last(&history).requests, 4);
    assert!(last(&history).median > 0);
    // One without a request takes nobody's place, however idle others are.
    let idle = (0..=MAX_SERIES).map(|n| (n, 0, 100));
    step(&mut history, 99, idle);
    assert!(history.series(&id(0)).is_none());
    assert_eq!((history.series.len(), history.left_out()), (MAX_SERIES, 0));
}

#[test]
fn a_counter_that_began_anew_is_no_flood() {
    let mut history = History::default();
    step(&mut history, 1, [(1, 1_000, 1_000)].into_iter());
    step(&mut history, 2, [(1, 3, 3)].into_iter());
    let last = *history.series(&id(1)).unwrap().last().unwrap();
    assert_eq!(last.requests, 3);
    assert!(last.median > 0 && last.median <= 500, "{last:?}");
}

proptest! {
    #[test]
    fn quantiles_lie_in_their_bucket(counts in proptest::array::uniform17(0..1_000u64), percent in 1..100u64) {
        let at = quantile(&counts, percent);
        let all: u64 = counts.iter().sum();
        if all == 0 {
            prop_assert_eq!(at, 0);
        } else {
            let bounds = super::super::metrics::LATENCY_BOUNDS;
            let rank = (all * percent).div_ceil(100);
            let mut below = 0;
            let bucket = counts.iter().position(|n| { below += n; below >= rank }).unwrap();
            let lower = if bucket == 0 { 0 } else { bounds[bucket - 1] };
            let upper = bounds.get(bucket).copied().unwrap_or(lower);
            prop_assert!(lower <= at.into() && u64::from(at) <= upper, "{lower} <= {at} <= {upper}");
        }
    }
}

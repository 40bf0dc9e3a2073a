//! The last hour in steps of 10 s: a ring of points for the whole gateway, and one for each revision with traffic.
//!
//! Sampled from the counters that requests move anyway: nothing here is on a request's path. A step of a revision
//! without a new request reads its status counters and nothing else.
//!
//! **Bounds:** [`MAX_SERIES`] revisions and [`MAX_BYTES`] together. A revision beyond that takes the place of one that
//! had no request for a minute, the longest idle first; while there is none it is left out, and counted.
//!
//! Pure: counts and the step's number are passed in.

use std::collections::HashMap;
use std::time::Duration;

use sluice_model::RevisionId;

use super::phases::NAMES;

/// The length of a step.
pub const STEP: Duration = Duration::from_secs(10);

/// Steps of an hour.
pub const STEPS: usize = 360;

/// Revisions with a series of their own.
pub const MAX_SERIES: usize = 1_000;

/// The memory of all series together.
const MAX_BYTES: usize = 16 << 20;

// Everything but the names, which a test counts. A hash table that is more than half full grows when removals have used
// up its free places, so that it may have four places for each series: they hold pointers.
const _: () = {
    let series = STEPS * size_of::<Point>() + size_of::<Series>();
    let places = 4 * MAX_SERIES.next_power_of_two() * (size_of::<(RevisionId, Box<Series>)>() + 1);
    assert!((MAX_SERIES + 1) * series + places + MAX_SERIES * NAME_BYTES < MAX_BYTES);
};

/// The longest name of a revision, with its namespace and the bytes of their allocation.
const NAME_BYTES: usize = 2 * 63 + 32;

/// Steps without a request after which a series gives its place to another one.
const IDLE: u64 = 6;

/// Durations are counted in these buckets: upper bounds in microseconds, and one more without a bound.
pub(super) const BUCKETS: usize = super::metrics::LATENCY_BOUNDS.len() + 1;

/// What a revision has counted since the last step, and its load now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestCounts {
    /// Requests that finished.
    pub requests: u64,
    /// Those of them that ended with a 5xx, or with no answer at all.
    pub errors: u64,
    /// There were requests before the last step.
    pub has_earlier: bool,
    /// Requests that hold a Permit.
    pub in_flight: u32,
    /// Requests that wait.
    pub queued: u32,
}

/// The durations that a revision has counted so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DurationCounts {
    /// Requests by duration, not cumulative.
    pub(super) buckets: [u64; BUCKETS],
    /// Requests that waited for a start.
    pub(super) cold: u64,
    /// The sum of each phase of those, in microseconds.
    pub(super) phases: [u64; NAMES.len()],
}

/// One step of a series.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Point {
    /// Requests that finished.
    pub requests: u32,
    /// Those of them that ended with a 5xx, or with no answer at all.
    pub errors: u32,
    /// The median of their durations in microseconds, interpolated within a bucket of the metric; 0 where none
    /// is known.
    pub median: u32,
    /// The 99th percentile, likewise.
    pub p99: u32,
    /// Requests that waited for a start.
    pub cold: u32,
    /// The mean of each phase of those, in microseconds.
    pub phases: [u32; NAMES.len()],
    /// Requests that held a Permit at the end of the step; 65,535 may be more.
    pub in_flight: u16,
    /// Requests that waited at the end of the step; 65,535 may be more.
    pub queued: u16,
}

/// The names of [`Point::phases`], in order.
pub const PHASES: [&str; NAMES.len()] = NAMES;

/// The ring of one series. `step` modulo the length is the index.
type Ring = Box<[Point]>;

#[derive(Debug)]
struct Series {
    points: Ring,
    /// As of the last step with a request; `None` where a new series has yet to learn them.
    durations: Option<DurationCounts>,
    /// The last step with a request.
    active: u64,
}

/// The store.
#[derive(Debug)]
pub struct History {
    series: HashMap<RevisionId, Box<Series>>,
    total: Ring,
    /// The last step recorded.
    last: Option<u64>,
    left_out: usize,
}

impl Default for History {
    fn default() -> Self {
        Self {
            series: HashMap::new(),
            total: ring(),
            last: None,
            left_out: 0,
        }
    }
}

fn ring() -> Ring {
    vec![Point::default(); STEPS].into_boxed_slice()
}

impl History {
    /// Records the step with this number, which is greater than the last one. `unrouted` are requests without a
    /// revision. Durations of a revision are asked for when it has a new request.
    pub fn record<D: FnOnce() -> DurationCounts>(
        &mut self,
        step: u64,
        unrouted: RequestCounts,
        revisions: impl Iterator<Item = (RevisionId, RequestCounts, D)>,
    ) {
        self.clear_until(step);
        let at = index(step);
        let mut total = Sum::default();
        total.add(&unrouted);
        self.left_out = 0;
        for (id, counts, durations) in revisions {
            total.add(&counts);
            if !self.series.contains_key(&id) && !self.admit(&id, counts, step) {
                continue;
            }
            if let Some(series) = self.series.get_mut(&id) {
                series.record(step, at, counts, durations, &mut total);
            }
        }
        self.total[at] = total.point();
    }

    /// The last step recorded.
    pub fn last(&self) -> Option<u64> {
        self.last
    }

    /// Revisions with requests in the last step that have no series, for want of a place.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// The hour of the whole gateway, the oldest step first. Durations are those of revisions with a series.
    pub fn total(&self) -> impl Iterator<Item = &Point> {
        self.in_order(&self.total)
    }

    /// The hour of one revision, the oldest step first; `None` for one without traffic.
    pub fn series(&self, id: &RevisionId) -> Option<impl Iterator<Item = &Point>> {
        Some(self.in_order(&self.series.get(id)?.points))
    }

    /// Every revision with traffic, in no particular order.
    pub fn ids(&self) -> impl Iterator<Item = &RevisionId> {
        self.series.keys()
    }

    /// The requests of a revision in the last step.
    pub fn latest(&self, id: &RevisionId) -> u32 {
        let latest = self
            .last
            .and_then(|step| Some(&self.series.get(id)?.points[index(step)]));
        latest.map_or(0, |point| point.requests)
    }

    /// The memory of all series, with their names and the map's own.
    pub fn bytes(&self) -> usize {
        let own = size_of::<Self>() + size_of_val(&*self.total);
        // A hash table has one byte of its own for each place.
        let place = size_of::<(RevisionId, Box<Series>)>() + 1;
        let names = self
            .series
            .keys()
            .map(|id| id.namespace().len() + id.name().len() + 32);
        let series = self.series.values();
        let series = series.map(|series| size_of_val(&**series) + size_of_val(&*series.points));
        own + self.series.capacity().next_power_of_two() * place
            + names.sum::<usize>()
            + series.sum::<usize>()
    }

    fn in_order<'r>(&self, ring: &'r Ring) -> impl Iterator<Item = &'r Point> {
        let first = self.last.map_or(0, |step| index(step + 1));
        ring[first..].iter().chain(&ring[..first])
    }

    /// Clears the points from the last step, excluded, to this one: those of an hour ago.
    fn clear_until(&mut self, step: u64) {
        let before = self.last.unwrap_or_else(|| step.saturating_sub(1));
        let first = (before + 1).max(step.saturating_sub(STEPS as u64 - 1));
        let (total, series) = (&mut self.total, self.series.values_mut());
        for ring in series.map(|series| &mut series.points).chain([total]) {
            for missed in first..=step {
                ring[index(missed)] = Point::default();
            }
        }
        self.last = Some(step.max(before));
    }

    /// Makes a series for a revision with a new request. Returns whether there is one now.
    fn admit(&mut self, id: &RevisionId, counts: RequestCounts, step: u64) -> bool {
        if counts.requests == 0 {
            return false;
        }
        if self.series.len() >= MAX_SERIES && !self.make_room(step) {
            self.left_out += 1;
            return false;
        }
        let series = Series {
            points: ring(),
            durations: (!counts.has_earlier).then(DurationCounts::default),
            active: step,
        };
        self.series.insert(id.clone(), Box::new(series));
        true
    }

    /// Removes the series that was idle for longest, if it was for long enough.
    fn make_room(&mut self, step: u64) -> bool {
        let oldest = self.series.iter().min_by_key(|(_, series)| series.active);
        let Some((id, _)) = oldest.filter(|(_, series)| series.active + IDLE <= step) else {
            return false;
        };
        let id = id.clone();
        self.series.remove(&id);
        true
    }
}

impl Series {
    fn record(
        &mut self,
        step: u64,
        at: usize,
        counts: RequestCounts,
        durations: impl FnOnce() -> DurationCounts,
        total: &mut Sum,
    ) {
        let mut own = Sum::default();
        own.add(&counts);
        if counts.requests > 0 {
            let now = durations();
            // What was counted before this series began is not of this step.
            if let Some(before) = self.durations.replace(now) {
                own.add_durations(&now, &before);
                total.add_durations(&now, &before);
            }
            self.active = step;
        }
        self.points[at] = own.point();
    }
}

/// What a counter grew by. One that shrank began anew: its revision was removed and came back.
fn since(now: u64, before: u64) -> u64 {
    now.checked_sub(before).unwrap_or(now)
}

fn index(step: u64) -> usize {
    usize::try_from(step % STEPS as u64).unwrap_or_default()
}

/// What a point is made of.
#[derive(Debug, Default)]
struct Sum {
    requests: u64,
    errors: u64,
    buckets: [u64; BUCKETS],
    cold: u64,
    phases: [u64; NAMES.len()],
    in_flight: u64,
    queued: u64,
}

impl Sum {
    fn add(&mut self, counts: &RequestCounts) {
        self.requests += counts.requests;
        self.errors += counts.errors;
        self.in_flight += u64::from(counts.in_flight);
        self.queued += u64::from(counts.queued);
    }

    fn add_durations(&mut self, now: &DurationCounts, before: &DurationCounts) {
        for ((sum, now), before) in self.buckets.iter_mut().zip(now.buckets).zip(before.buckets) {
            *sum += since(now, before);
        }
        for ((sum, now), before) in self.phases.iter_mut().zip(now.phases).zip(before.phases) {
            *sum += since(now, before);
        }
        self.cold += since(now.cold, before.cold);
    }

    fn point(&self) -> Point {
        let to_u32 = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let to_u16 = |n: u64| u16::try_from(n).unwrap_or(u16::MAX);
        Point {
            requests: to_u32(self.requests),
            errors: to_u32(self.errors),
            median: quantile(&self.buckets, 50),
            p99: quantile(&self.buckets, 99),
            cold: to_u32(self.cold),
            phases: self
                .phases
                .map(|sum| to_u32(sum.checked_div(self.cold).unwrap_or(0))),
            in_flight: to_u16(self.in_flight),
            queued: to_u16(self.queued),
        }
    }
}

/// A quantile in microseconds, interpolated within its bucket as Prometheus's `histogram_quantile` does; in the bucket
/// without a bound it is the greatest bound.
fn quantile(buckets: &[u64; BUCKETS], percent: u64) -> u32 {
    let count: u64 = buckets.iter().sum();
    let wanted = (count * percent).div_ceil(100);
    let mut below = 0;
    let mut lower = 0;
    for (bucket, upper) in buckets.iter().zip(super::metrics::LATENCY_BOUNDS) {
        if below + bucket >= wanted && *bucket > 0 {
            let within = (upper - lower) * (wanted - below) / bucket;
            return u32::try_from(lower + within).unwrap_or(u32::MAX);
        }
        below += bucket;
        lower = upper;
    }
    if count == 0 {
        0
    } else {
        u32::try_from(lower).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;

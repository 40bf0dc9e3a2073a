//! Phases of a request: a breakdown of its time to first byte.

use std::fmt::{self, Write as _};
use std::time::{Duration, Instant};

use crate::throttle::StartTimeline;

/// Points in time of a request, and of the start that it waited for. A point that is `None` did not happen, or
/// not before the next known point.
#[derive(Debug, Clone, Copy)]
pub struct Milestones {
    /// The request's head was complete.
    pub arrived: Instant,
    /// The start that the request waited for.
    pub start: Option<StartTimeline>,
    /// The request stopped waiting: with an endpoint, or with a rejection. `None`: the request never waited.
    pub admitted: Option<Instant>,
    /// The response head was there.
    pub first_byte: Instant,
}

/// The consecutive phases of a request until its response head. They add up to the time from arrival to first
/// byte, to the microsecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phases {
    durations: [Duration; NAMES.len()],
    /// The request waited for a start.
    cold: bool,
}

/// Names of the phases, as in metrics, log and header, in the order of time. `queued` lasts until a start is
/// decided, or without a start until there is an endpoint.
pub(super) const NAMES: [&str; 5] = ["queued", "starting", "booting", "admitting", "first_byte"];

impl Phases {
    /// Computes the phases. Points of a start before the request's arrival give phases of no length, so the order
    /// of events does not matter.
    pub fn of(at: &Milestones) -> Self {
        let end = at.first_byte.max(at.arrived);
        let admitted = at.admitted.unwrap_or(at.arrived);
        let start = at.start.unwrap_or_default();
        let ready = start.ready.unwrap_or(admitted);
        let started = start.started.unwrap_or(ready);
        let ordered = start.ordered.unwrap_or(started);
        let (mut before, mut shown) = (at.arrived, 0);
        let durations = [ordered, started, ready, admitted, end].map(|next| {
            before = next.clamp(before, end);
            // Points are rounded, not differences: the rounded phases have to add up, too.
            let point = u64::try_from((before - at.arrived).as_micros()).unwrap_or(u64::MAX);
            Duration::from_micros(point - std::mem::replace(&mut shown, point))
        });
        let cold = at.start.is_some();
        Self { durations, cold }
    }

    /// Whether the request waited for a start.
    pub fn is_cold(&self) -> bool {
        self.cold
    }

    /// Name and length of each phase that applies: without a start only the first and the last.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, Duration)> + '_ {
        let all = NAMES.into_iter().zip(self.durations).enumerate();
        let last = NAMES.len() - 1;
        all.filter(move |(i, _)| self.cold || *i == 0 || *i == last)
            .map(|(_, phase)| phase)
    }

    /// Name and length of each phase until the request was admitted: without a start only `queued`.
    pub fn waiting(&self) -> impl Iterator<Item = (&'static str, Duration)> + '_ {
        let shown = if self.cold { NAMES.len() - 1 } else { 1 };
        NAMES.into_iter().zip(self.durations).take(shown)
    }

    /// The length of each phase, by index in [`NAMES`].
    pub(super) fn durations(&self) -> &[Duration; NAMES.len()] {
        &self.durations
    }

    /// The sum of all phases: from arrival to first byte.
    pub fn total(&self) -> Duration {
        self.durations.iter().sum()
    }

    /// The value of a `Server-Timing` field.
    pub fn server_timing(&self) -> String {
        let mut out = String::new();
        for (name, took) in self.iter() {
            let separator = if out.is_empty() { "" } else { ", " };
            let took = Millis(took);
            // A String takes everything.
            let _ = write!(out, "{separator}sluice_{name};dur={took}");
        }
        out
    }
}

/// A duration in milliseconds with three decimals: a JSON number, exact to the microsecond.
pub(super) struct Millis(pub(super) Duration);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.as_micros();
        write!(f, "{}.{:03}", micros / 1000, micros % 1000)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lengths(at: &Milestones) -> Vec<(&'static str, u128)> {
        let phases = Phases::of(at);
        phases
            .iter()
            .map(|(name, took)| (name, took.as_millis()))
            .collect()
    }

    #[test]
    fn who_came_first_sees_every_phase_and_who_joined_late_only_what_was_left() {
        let t0 = Instant::now();
        let t = |ms| t0 + Duration::from_millis(ms);
        let first = Milestones {
            arrived: t(100),
            start: Some(StartTimeline {
                ordered: Some(t(101)),
                started: Some(t(104)),
                ready: Some(t(404)),
            }),
            admitted: Some(t(405)),
            first_byte: t(415),
        };
        let want = [
            ("queued", 1),
            ("starting", 3),
            ("booting", 300),
            ("admitting", 1),
            ("first_byte", 10),
        ];
        assert_eq!(lengths(&first), want);
        let late = Milestones {
            arrived: t(300),
            ..first
        };
        let want = [
            ("queued", 0),
            ("starting", 0),
            ("booting", 104),
            ("admitting", 1),
            ("first_byte", 10),
        ];
        assert_eq!(lengths(&late), want);
        let warm = Milestones { start: None, ..first };
        assert_eq!(lengths(&warm), [("queued", 305), ("first_byte", 10)]);
        let at_once = Milestones {
            admitted: None,
            ..warm
        };
        assert_eq!(lengths(&at_once), [("queued", 0), ("first_byte", 315)]);
    }

    #[test]
    fn what_never_came_ends_with_the_waiting() {
        let t0 = Instant::now();
        let t = |ms| t0 + Duration::from_millis(ms);
        let failed = |ordered, started| Milestones {
            arrived: t(0),
            start: Some(StartTimeline {
                ordered,
                started,
                ready: None,
            }),
            admitted: Some(t(60)),
            first_byte: t(61),
        };
        let of = |at: Milestones| lengths(&at).into_iter().map(|(_, ms)| ms).collect::<Vec<_>>();
        assert_eq!(of(failed(Some(t(5)), Some(t(9)))), [5, 4, 51, 0, 1]);
        assert_eq!(of(failed(Some(t(5)), None)), [5, 55, 0, 0, 1]);
        assert_eq!(of(failed(None, None)), [60, 0, 0, 0, 1]);
    }

    #[test]
    fn server_timing_is_a_list_of_durations() {
        let arrived = Instant::now();
        let phases = Phases::of(&Milestones {
            arrived,
            start: None,
            admitted: Some(arrived + Duration::from_micros(1_234)),
            first_byte: arrived + Duration::from_micros(1_300),
        });
        let want = "sluice_queued;dur=1.234, sluice_first_byte;dur=0.066";
        assert_eq!(phases.server_timing(), want);
    }

    proptest! {
        #[test]
        fn phases_add_up_whatever_came_when(
            arrived in 0..1_000u64,
            start in proptest::option::of(proptest::array::uniform3(proptest::option::of(0..3_000u64))),
            admitted in proptest::option::of(0..3_000u64),
            first_byte in 0..3_000u64,
        ) {
            let t0 = Instant::now();
            let t = |us: u64| t0 + Duration::from_micros(us);
            let phases = Phases::of(&Milestones {
                arrived: t(arrived),
                start: start.map(|[ordered, started, ready]| StartTimeline {
                    ordered: ordered.map(t),
                    started: started.map(t),
                    ready: ready.map(t),
                }),
                admitted: admitted.map(t),
                first_byte: t(first_byte),
            });
            let seen = Duration::from_micros(first_byte.saturating_sub(arrived));
            prop_assert_eq!(phases.total(), seen);
            let shown: Duration = phases.iter().map(|(_, took)| took).sum();
            prop_assert_eq!(shown, seen, "what is not shown has no length");
            prop_assert_eq!(phases.is_cold(), start.is_some());
        }
    }
}

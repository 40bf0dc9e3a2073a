//! Floor and ceiling of several schedules at a time.

use std::time::Duration;

use super::Schedule;

/// The floor and the ceiling of the schedules that are active.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ScheduleBounds {
    /// The greatest floor.
    pub(crate) floor: Option<u32>,
    /// The least ceiling, which replaces the base's; [`NO_LIMIT`](super::NO_LIMIT) lifts it.
    pub(crate) ceiling: Option<u32>,
}

impl ScheduleBounds {
    /// The bounds at `at`, in seconds since 1970, and until when they hold at least. A schedule with a floor counts from
    /// `lead` seconds before its window, so that its instances are ready when the window begins.
    pub(crate) fn at(schedules: &[Schedule], at: i64, lead: i64) -> (Self, i64) {
        let mut bounds = Self::default();
        let mut until = i64::MAX;
        for schedule in schedules {
            let lead = if schedule.min_scale.is_some() { lead } else { 0 };
            let next = schedule.next_after(at);
            let soon = next.filter(|window| window.from <= at.saturating_add(lead));
            if let Some(window) = schedule.open_at(at).or(soon) {
                until = until.min(window.until);
                bounds.floor = bounds.floor.max(schedule.min_scale);
                bounds.ceiling = match (bounds.ceiling, schedule.max_scale) {
                    (Some(one), Some(other)) => Some(one.min(other)),
                    (one, other) => one.or(other),
                };
            } else if let Some(next) = next {
                until = until.min(next.from - lead);
            }
        }
        (bounds, until.max(at.saturating_add(1)))
    }
}

/// The bounds of a revision's schedules, computed again only when they may have changed.
#[derive(Debug, Clone, Default)]
pub(crate) struct ScheduleClock {
    bounds: ScheduleBounds,
    /// When they were computed, and until when they hold: `None` before the first time.
    valid: Option<(i64, i64)>,
    lead: i64,
}

impl ScheduleClock {
    /// The bounds at `at`, in seconds since 1970, with starts that take `lead`. A clock that was set back is followed.
    pub(crate) fn bounds(&mut self, schedules: &[Schedule], at: i64, lead: Duration) -> ScheduleBounds {
        let lead = i64::try_from(lead.as_secs()).unwrap_or(i64::MAX) + i64::from(lead.subsec_nanos() > 0);
        let holds = self.valid.is_some_and(|(from, until)| from <= at && at < until);
        if !holds || lead != self.lead {
            let (bounds, until) = ScheduleBounds::at(schedules, at, lead);
            (self.bounds, self.valid, self.lead) = (bounds, Some((at, until)), lead);
        }
        self.bounds
    }

    /// Forgets what was computed: the schedules were edited.
    pub(crate) fn forget(&mut self) {
        self.valid = None;
    }
}

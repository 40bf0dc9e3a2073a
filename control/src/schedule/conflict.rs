//! A floor above a ceiling, found by walking through the windows of all schedules of a revision.

use super::{NO_LIMIT, REFERENCE, Schedule, ScheduleBounds};

/// Windows of one schedule that are looked at: more than a leap year of a daily one.
const WINDOWS: usize = 400;

/// A time at which the floor is above the ceiling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Conflict {
    /// The schedule whose floor it is, or else whose ceiling.
    pub(crate) schedule: usize,
    /// Seconds since 1970.
    pub(crate) at: i64,
    pub(crate) floor: u32,
    pub(crate) ceiling: u32,
}

/// The first conflict of these schedules with each other and with the base's minimum and maximum, as far as it can be seen
/// in advance. Bounds change only where a window begins or ends, so only those times are looked at.
pub(crate) fn conflict(schedules: &[Schedule], min_scale: u32, max_scale: Option<u32>) -> Option<Conflict> {
    let suspects = suspects(schedules, min_scale, max_scale);
    for (nth, schedule) in schedules.iter().enumerate().filter(|(nth, _)| suspects[*nth]) {
        let mut at = REFERENCE;
        for _ in 0..WINDOWS {
            let Some(window) = schedule.next_after(at) else {
                break;
            };
            for edge in [window.from, window.until] {
                let (bounds, _) = ScheduleBounds::at(schedules, edge, 0);
                let floor = bounds.floor.unwrap_or(0).max(min_scale);
                let ceiling = bounds.ceiling.or(max_scale).unwrap_or(NO_LIMIT);
                if floor > ceiling {
                    let open = |one: &Schedule| one.open_at(edge).is_some();
                    let raises = |one: &Schedule| one.min_scale == Some(floor) && open(one);
                    let limits = |one: &Schedule| one.max_scale == Some(ceiling) && open(one);
                    let named = schedules.iter().position(raises);
                    return Some(Conflict {
                        schedule: named.or_else(|| schedules.iter().position(limits)).unwrap_or(nth),
                        at: edge,
                        floor,
                        ceiling,
                    });
                }
            }
            at = window.from;
        }
    }
    None
}

/// The schedules whose windows have to be looked at: those whose floor is above a ceiling that may hold at the same time, or
/// whose ceiling is below such a floor. For most configurations there is none.
fn suspects(schedules: &[Schedule], min_scale: u32, max_scale: Option<u32>) -> Vec<bool> {
    let crossed = |one: &Schedule| {
        let floor = one.min_scale.unwrap_or(0);
        let ceiling = one.max_scale.unwrap_or(NO_LIMIT);
        let others = schedules.iter().any(|other| {
            floor > other.max_scale.unwrap_or(NO_LIMIT) || other.min_scale.unwrap_or(0) > ceiling
        });
        // The base's maximum holds only where no active schedule has one.
        let base = one.max_scale.is_none() && floor > max_scale.unwrap_or(NO_LIMIT);
        others || base || min_scale > ceiling
    };
    let mut suspects: Vec<bool> = schedules.iter().map(crossed).collect();
    if suspects.contains(&true) {
        // Where a window with a ceiling ends, the base's maximum holds again.
        for (suspect, schedule) in suspects.iter_mut().zip(schedules) {
            *suspect |= schedule.max_scale.is_some();
        }
    }
    suspects
}

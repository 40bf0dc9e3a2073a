//! Floors and ceilings besides the policy's, inside of which the reactive decision moves: the greatest floor wins, and a
//! ceiling wins over every floor.

use std::borrow::Cow;

use sluice_model::ScaleWants;

use super::reason::Limit;
use crate::plan::AutoscalePolicy;
use crate::schedule::{NO_LIMIT, ScheduleBounds};

/// Floors and ceilings at one moment; none of them holds for a revision that no traffic can reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Bounds {
    /// Of the schedules.
    pub(crate) schedule: ScheduleBounds,
    /// The floor of a forecast that is trusted.
    pub(crate) forecast: Option<u32>,
    /// The floor of a rollout.
    pub(crate) rollout: Option<u32>,
}

impl Bounds {
    /// The policy with these bounds as its minimum and maximum; `None` where they change nothing.
    pub(crate) fn apply<'p>(
        &self,
        policy: &'p AutoscalePolicy,
        reachable: bool,
    ) -> Option<Cow<'p, AutoscalePolicy>> {
        if !reachable || *self == Self::default() {
            return None;
        }
        let ceiling = self.ceiling(policy);
        let floor = self.floor(policy).0.min(ceiling.unwrap_or(NO_LIMIT));
        Some(Cow::Owned(AutoscalePolicy {
            min_scale: floor,
            max_scale: ceiling,
            ..policy.clone()
        }))
    }

    /// The name of a limit that [`clamp`](super::clamp) found with the policy of [`apply`](Self::apply).
    pub(crate) fn named(&self, limit: Limit, policy: &AutoscalePolicy) -> Limit {
        match limit {
            Limit::MinScale => {
                let (floor, by) = self.floor(policy);
                match self.ceiling(policy) {
                    Some(ceiling) if ceiling < floor => self.ceiling_by(),
                    _ => by,
                }
            }
            Limit::MaxScale => self.ceiling_by(),
            other => other,
        }
    }

    /// Adds what these bounds and the policy's want.
    pub(crate) fn tell(&self, wants: &mut ScaleWants, policy: &AutoscalePolicy, reachable: bool) {
        wants.max_scale = policy.max_scale;
        if reachable {
            wants.schedule = self.schedule.floor;
            wants.forecast = self.forecast;
            wants.rollout = self.rollout;
            wants.min_scale = policy.min_scale;
            wants.max_scale = self.ceiling(policy);
        }
    }

    /// The greatest floor, and whose it is. Of equal ones the policy's is named, then the schedule's.
    fn floor(&self, policy: &AutoscalePolicy) -> (u32, Limit) {
        let others = [
            (self.schedule.floor, Limit::Schedule),
            (self.forecast, Limit::Forecast),
            (self.rollout, Limit::Rollout),
        ];
        let mut greatest = (policy.min_scale, Limit::MinScale);
        for (floor, by) in others {
            if let Some(floor) = floor.filter(|floor| *floor > greatest.0) {
                greatest = (floor, by);
            }
        }
        greatest
    }

    fn ceiling(&self, policy: &AutoscalePolicy) -> Option<u32> {
        match self.schedule.ceiling {
            Some(NO_LIMIT) => None,
            Some(ceiling) => Some(ceiling),
            None => policy.max_scale,
        }
    }

    fn ceiling_by(&self) -> Limit {
        match self.schedule.ceiling {
            Some(_) => Limit::ScheduleCeiling,
            None => Limit::MaxScale,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autoscale::tracker::tests::plan;

    fn policy(min_scale: u32, max_scale: Option<u32>) -> AutoscalePolicy {
        AutoscalePolicy {
            min_scale,
            max_scale,
            ..plan(60).policy
        }
    }

    fn bounds(floor: Option<u32>, ceiling: Option<u32>, forecast: Option<u32>) -> Bounds {
        Bounds {
            schedule: ScheduleBounds { floor, ceiling },
            forecast,
            rollout: None,
        }
    }

    #[test]
    fn the_greatest_floor_wins_and_a_ceiling_wins_over_it() {
        for (base, bounds, want, by) in [
            ((0, None), bounds(Some(2), None, None), (2, None), Limit::Schedule),
            (
                (3, None),
                bounds(Some(2), None, Some(1)),
                (3, None),
                Limit::MinScale,
            ),
            (
                (2, None),
                bounds(Some(2), None, Some(2)),
                (2, None),
                Limit::MinScale,
            ),
            (
                (0, Some(5)),
                bounds(Some(2), None, Some(4)),
                (4, Some(5)),
                Limit::Forecast,
            ),
            (
                (0, Some(5)),
                bounds(None, None, Some(40)),
                (5, Some(5)),
                Limit::MaxScale,
            ),
            (
                (0, Some(5)),
                bounds(Some(8), Some(20), None),
                (8, Some(20)),
                Limit::Schedule,
            ),
            (
                (0, Some(5)),
                bounds(None, Some(1), Some(3)),
                (1, Some(1)),
                Limit::ScheduleCeiling,
            ),
            (
                (0, Some(5)),
                bounds(None, Some(NO_LIMIT), Some(30)),
                (30, None),
                Limit::Forecast,
            ),
        ] {
            let policy = policy(base.0, base.1);
            let applied = bounds.apply(&policy, true).expect("they change something");
            assert_eq!((applied.min_scale, applied.max_scale), want, "{bounds:?}");
            assert_eq!(bounds.named(Limit::MinScale, &policy), by, "{bounds:?}");
        }
    }

    #[test]
    fn a_rollout_is_a_floor_like_others() {
        let policy = policy(1, Some(5));
        let raised = Bounds {
            rollout: Some(4),
            ..bounds(Some(2), None, None)
        };
        assert_eq!(
            raised.apply(&policy, true).map(|policy| policy.min_scale),
            Some(4)
        );
        assert_eq!(raised.named(Limit::MinScale, &policy), Limit::Rollout);
        let above = Bounds {
            rollout: Some(9),
            ..Bounds::default()
        };
        assert_eq!(above.apply(&policy, true).map(|policy| policy.min_scale), Some(5));
    }

    #[test]
    fn nothing_holds_for_what_nobody_can_reach() {
        let policy = policy(1, Some(5));
        let bounds = bounds(Some(2), Some(9), Some(3));
        assert!(bounds.apply(&policy, false).is_none());
        let mut wants = ScaleWants::default();
        bounds.tell(&mut wants, &policy, false);
        assert_eq!(
            (wants.schedule, wants.min_scale, wants.max_scale),
            (None, 0, Some(5))
        );
        bounds.tell(&mut wants, &policy, true);
        assert_eq!(
            (wants.schedule, wants.forecast, wants.max_scale),
            (Some(2), Some(3), Some(9))
        );
    }
}

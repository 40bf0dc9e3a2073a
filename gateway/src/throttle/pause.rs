//! The pause of a service: every arrival waits in the queue, also one that could be served at once, and no slot is given out
//! before the resume. For a migration: requests in flight run to their end, and none fails meanwhile.
//!
//! A pause closes the endpoints of the load balancer, as an upgrade does, so that the warm path pays nothing for it. The bounds
//! of the queue and its timeout are as ever. A start that fails ends no wait: it is tried again when its back-off is over,
//! before the resume or after.

use std::time::Instant;

use super::actions::Actions;
use super::core::{Activation, Core, Supply};

impl<W> Core<W> {
    /// Pauses or resumes. A resume admits waiters in order of arrival, as far as there are slots.
    pub(crate) fn pause(&mut self, paused: bool, now: Instant) -> Actions<W> {
        let mut actions = self.begin(now);
        if self.paused == paused {
            return actions;
        }
        self.paused = paused;
        self.endpoints.hold(paused);
        self.patient = !paused;
        self.settle(now, &mut actions);
        actions
    }

    /// When the back-off of a failed start is over that requests wait for; `None` where none waits for it.
    pub(super) fn retry_due(&self) -> Option<Instant> {
        if self.all_active() == 0 || self.endpoints.counts().ready > 0 || self.is_flipped() {
            return None;
        }
        let tiers = self.tiers.iter().enumerate();
        let due = tiers.filter_map(|(index, tier)| match &tier.activation {
            // One that is on its way is waited for.
            Activation::Failed { until, .. }
                if tier.supply == Supply::Activated && !self.endpoints.is_one_coming(index) =>
            {
                Some(*until)
            }
            _ => None,
        });
        due.min()
    }

    /// Whether the last instance stays although nothing waits and nothing is in flight.
    pub(super) fn is_kept(&self) -> bool {
        self.needed || self.paused
    }
}

#[cfg(test)]
#[path = "pause_tests.rs"]
mod tests;

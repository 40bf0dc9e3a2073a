//! The pause of a service: every arrival waits in the queue, also one that could be served at once, and no slot is given out
//! before the resume. For a migration: requests in flight run to their end, and none fails meanwhile.
//!
//! A pause closes the endpoints of the load balancer, as an upgrade does, so that the warm path pays nothing for it. The bounds
//! of the queue and its timeout are as ever; what a start, or its failure, says ends no wait.

use std::time::Instant;

use super::actions::Actions;
use super::core::Core;

impl<W> Core<W> {
    /// Pauses or resumes. A resume admits waiters in order of arrival, as far as there are slots, and forgets failed
    /// starts: their cause may be over.
    pub(crate) fn pause(&mut self, paused: bool, now: Instant) -> Actions<W> {
        let mut actions = self.begin(now);
        if self.paused == paused {
            return actions;
        }
        self.paused = paused;
        self.endpoints.hold(paused || self.remote.is_some());
        if !paused {
            for tier in 0..self.tiers.len() {
                self.forgive(u8::try_from(tier).expect("a handful of tiers"));
            }
        }
        self.settle(now, &mut actions);
        actions
    }

    /// Whether the last instance stays although nothing waits and nothing is in flight.
    pub(super) fn is_kept(&self) -> bool {
        self.needed || self.paused
    }
}

#[cfg(test)]
#[path = "pause_tests.rs"]
mod tests;

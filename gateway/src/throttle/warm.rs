//! The warm path of the core: a slot is free, nobody waits, nothing is due.
//!
//! Nearly every request of a busy gateway takes it twice, under its revision's lock. It decides what
//! `arrive` and `release` would, which take it first, so the simulations see it, too.

use std::time::Instant;

use super::arrival::Arrival;
use super::core::Core;
use super::effects::Grant;
use super::endpoint::EndpointPhase;

impl<W> Core<W> {
    /// What [`arrive`](Self::arrive) comes to when a slot is free. `None` changes nothing: then it
    /// is not so simple.
    pub(crate) fn arrive_warm(&mut self, arrival: Arrival, now: Instant) -> Option<Grant> {
        let late = arrival.deadline.is_some_and(|d| d <= now);
        if late || !self.is_calm(now) || self.closed.is_some() || !self.endpoints.has_open() {
            return None;
        }
        self.load.advance(self.held(), now);
        self.load.arrived();
        let place = self.next_place(arrival);
        let slot = self.endpoints.pick(&place).expect("one is open");
        let grant = self.grant(slot, place);
        #[cfg(test)]
        self.check();
        Some(grant)
    }

    /// What [`release`](Self::release) comes to when nobody wants the slot and the endpoint stays.
    /// `false` changes nothing: then it is not so simple.
    pub(crate) fn release_warm(&mut self, slot: u32, now: Instant) -> bool {
        if !self.is_calm(now) || self.endpoints.slot(slot).phase != EndpointPhase::Ready {
            return false;
        }
        self.load.advance(self.held(), now);
        self.endpoints.release(slot);
        #[cfg(test)]
        self.check();
        true
    }

    /// Nobody waits, no ejection is over, and no other gateway wants to know: nothing else is to be
    /// done at this time.
    fn is_calm(&self, now: Instant) -> bool {
        let due = self.endpoints.eject_due().is_some_and(|due| due <= now);
        self.queue.is_empty() && !due && self.remote.is_none()
    }
}

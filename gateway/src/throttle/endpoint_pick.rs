//! The choice of the endpoint that takes a request.

use sluice_model::{StickyKey, rendezvous};

use super::arrival::QueueTicket;
use super::endpoint_set::{EndpointSet, below, bit};

impl EndpointSet {
    /// Picks an open endpoint: by the sticky key if there is one, else the less loaded of two random choices.
    /// An endpoint that already failed this request is picked only when there is no other.
    /// A request that a tier answered with 429 is sent to another tier, whether that one serves or rests.
    pub(crate) fn pick(&mut self, ticket: &QueueTicket) -> Option<u32> {
        if !ticket.tried.is_empty()
            && let refused @ 1.. = ticket.refused_tiers()
        {
            return self.pick_outside(refused);
        }
        if self.open.is_empty() {
            return None;
        }
        if let Some(key) = ticket.arrival.sticky {
            return self.pick_sticky(key, ticket);
        }
        if !ticket.tried.is_empty() {
            let least = |set: &Self, fresh: bool| {
                let fits = |i: &&u32| !fresh || !ticket.has_tried(set.record(**i).readiness_epoch);
                set.open
                    .iter()
                    .filter(fits)
                    .min_by_key(|i| set.record(**i).in_flight)
                    .copied()
            };
            return least(self, true).or_else(|| least(self, false));
        }
        let n = self.open.len();
        if n == 1 {
            return Some(self.open[0]);
        }
        let random = self.next_random();
        let a = below(random >> 32, n);
        let b = below(random & 0xffff_ffff, n - 1);
        let b = if b >= a { b + 1 } else { b };
        let (a, b) = (self.open[a], self.open[b]);
        let fewer = self.record(b).in_flight < self.record(a).in_flight;
        Some(if fewer { b } else { a })
    }

    /// The least loaded endpoint with a free slot of the last tier that has a ready one and is not in this set.
    pub(crate) fn pick_outside(&self, refused: u8) -> Option<u32> {
        if self.held {
            return None;
        }
        let tiers = self.tiers.iter().enumerate();
        let mut tiers = tiers.filter(|(tier, record)| refused & bit(*tier) == 0 && record.counts.ready > 0);
        let (tier, _) = tiers.next_back()?;
        let free = self
            .iter()
            .filter(|(_, e)| usize::from(e.tier) == tier && e.has_room());
        free.min_by_key(|(_, e)| e.in_flight).map(|(i, _)| i)
    }

    /// The first open endpoint in the key's rendezvous order.
    fn pick_sticky(&self, key: StickyKey, ticket: &QueueTicket) -> Option<u32> {
        let choose = |fresh: bool| {
            rendezvous(
                key,
                self.open.iter().map(|&i| {
                    let record = self.record(i);
                    (
                        record.state.hash,
                        u32::from(!fresh || !ticket.has_tried(record.readiness_epoch)),
                    )
                }),
            )
        };
        choose(true).or_else(|| choose(false)).map(|n| self.open[n])
    }
}

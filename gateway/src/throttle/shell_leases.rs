//! Leases in the async shell: messages of other processes in, and where those to them go. See `lease`.

use std::sync::Arc;
use std::time::Instant;

#[cfg(test)]
use sluice_model::EndpointAddr;

#[cfg(test)]
use super::endpoint::EndpointPhase;
#[cfg(test)]
use super::lease::Owner;
use super::lease::{Deal, EndpointInUse, LeaseMessage, PeerId};
use super::shell::{Outlet, RevisionThrottler};

impl RevisionThrottler {
    /// Hands all slots over to a newer process, which every later message goes to. Returns the endpoints with their slots in
    /// use at this instant.
    pub fn flip(self: &Arc<Self>, newer: Outlet, now: Instant) -> Vec<EndpointInUse> {
        self.shared.lock().outlets.insert(PeerId::NEWER, newer);
        self.run(|core| core.flip(now))
    }

    /// Takes the slots back: the newer process failed before it leased any.
    pub fn flip_back(self: &Arc<Self>, now: Instant) {
        self.shared.lock().outlets.remove(&PeerId::NEWER);
        self.apply(|core| core.flip_back(now));
    }

    /// Rejects waiters and arrivals as draining: the newer process is gone.
    pub fn abandon(self: &Arc<Self>, now: Instant) {
        self.shared.lock().outlets.remove(&PeerId::NEWER);
        self.apply(|core| core.abandon(now));
    }

    /// Whether a newer process owns the slots and probes readiness.
    pub fn is_flipped(&self) -> bool {
        self.shared.lock().core.is_flipped()
    }

    /// Takes over endpoints of an older process with what it has in use, and sends messages to it. Unknown addresses are
    /// added only with `may_add`.
    pub fn adopt(self: &Arc<Self>, endpoints: &[EndpointInUse], may_add: bool, older: Outlet, now: Instant) {
        self.shared.lock().outlets.insert(PeerId::OLDER, older);
        self.apply(|core| core.adopt(endpoints, may_add, now));
    }

    /// Handles a message of another process.
    pub fn hear(self: &Arc<Self>, peer: PeerId, message: LeaseMessage, now: Instant) {
        self.apply(|core| core.hear(peer, message, now));
    }

    /// Another process is gone, and whatever it held with it.
    pub fn peer_gone(self: &Arc<Self>, peer: PeerId, now: Instant) {
        self.apply(|core| core.gone(peer, now));
        self.shared.lock().outlets.remove(&peer);
    }

    /// A connection to a replica begins, or either side's throttler on a connection that is there: messages to it go here, and
    /// what was said before is void. `greeting` is said first. `usable`: until when the replica's leases are.
    pub fn meet(
        self: &Arc<Self>,
        peer: PeerId,
        outlet: Outlet,
        greeting: Option<LeaseMessage>,
        usable: Option<Instant>,
        now: Instant,
    ) {
        // In one event: a lease that another thread sends in between would be of the old numbers.
        self.run_with(|shared| {
            shared.outlets.insert(peer, outlet);
            ((), shared.core.meet(peer, greeting, usable, now))
        });
    }

    /// The connection to a replica has ended.
    pub fn part(self: &Arc<Self>, peer: PeerId, now: Instant) {
        self.shared.lock().outlets.remove(&peer);
        self.apply(|core| core.part(peer, now));
    }

    /// The lease of a replica's slots is usable until then; `None`: it has ended.
    pub fn renew(self: &Arc<Self>, peer: PeerId, until: Option<Instant>, now: Instant) {
        self.apply(|core| core.renew(peer, until, now));
    }

    /// Deals the endpoints out among replicas; what becomes this process's own waits for [`settle_deal`](Self::settle_deal).
    pub fn share(self: &Arc<Self>, deal: &Arc<Deal>, now: Instant) {
        self.apply(|core| core.share(deal, now));
    }

    /// Asks owners anew for slots, if requests wait.
    pub fn ask_again(self: &Arc<Self>, now: Instant) {
        self.apply(|core| core.ask_again(now));
    }

    /// Every other replica has said what it holds.
    pub fn settle_deal(self: &Arc<Self>, now: Instant) {
        self.apply(|core| core.settle_deal(now));
    }

    /// Tells a replica what this process holds of its slots, after all that was said before.
    pub fn tell_holding(self: &Arc<Self>, peer: PeerId, now: Instant) {
        self.apply(|core| core.tell_holding(peer, now));
    }

    /// A replica that said what it holds has said nothing of this revision.
    pub fn held_nothing(self: &Arc<Self>, peer: PeerId, now: Instant) {
        self.apply(|core| core.held_nothing(peer, now));
    }

    /// The leases and endpoints, for a simulation that fails.
    #[cfg(test)]
    pub(crate) fn dump(&self) -> String {
        let shared = self.shared.lock();
        let core = &shared.core;
        let endpoints = core.endpoints.iter().map(|(i, e)| {
            format!(
                "{i} {} {:?} {:?} in flight {} leased {} lent {} ghosts {}",
                e.state.address, e.phase, e.owner, e.in_flight, e.leased, e.lent, e.ghosts_busy
            )
        });
        let endpoints: Vec<String> = endpoints.collect();
        format!(
            "{} wait\n{}\n{:?}",
            core.queue.len(),
            endpoints.join("\n"),
            core.leases
        )
    }

    /// Addresses of this process's own endpoints that take no requests.
    #[cfg(test)]
    pub(crate) fn owned_but_not_ready(&self) -> Vec<EndpointAddr> {
        let shared = self.shared.lock();
        let known = shared.core.known();
        let known = known.filter(|e| e.owner == Owner::Me && e.phase != EndpointPhase::Ready);
        known.map(|e| e.state.address.clone()).collect()
    }

    /// Whether this process owns an endpoint.
    #[cfg(test)]
    pub(crate) fn owns_any(&self) -> bool {
        self.shared.lock().core.known().any(|e| e.owner == Owner::Me)
    }

    /// The timer, for a simulation in which no task runs.
    #[cfg(test)]
    pub(crate) fn tick_now(self: &Arc<Self>, now: Instant) {
        self.apply(|core| core.expire(now));
    }

    /// Slots that another process holds.
    pub fn slots_of(&self, peer: PeerId) -> u32 {
        self.shared.lock().core.slots_of(peer)
    }
}

//! The holder's side of leases: it asks owners for slots while requests wait, and returns what it does not need.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use super::actions::Actions;
use super::core::Core;
use super::endpoint::{EndpointPhase, EndpointState};
use super::lease::{Ask, EndpointId, EndpointInUse, LeaseMessage, Owner, OwnerLink, Ownership, PeerId};
use super::rejection::{Closing, Rejection};

/// The older process of an upgrade.
impl<W> Core<W> {
    /// Hands the slots over to the newer process. Returns the endpoints with their slots in use.
    pub(crate) fn flip(&mut self, now: Instant) -> (Vec<EndpointInUse>, Actions<W>) {
        let mut actions = self.begin(now);
        self.leases().owners.insert(PeerId::NEWER, OwnerLink::default());
        self.endpoints.set_ownership(Ownership::Newer);
        self.settle(now, &mut actions);
        let endpoints = self.endpoints.iter().map(|(_, record)| EndpointInUse {
            id: record.id(),
            phase: record.phase,
            in_flight: record.busy(),
        });
        (endpoints.collect(), actions)
    }

    /// Takes the slots back, as if nothing had happened: the newer process failed before it leased any.
    pub(crate) fn flip_back(&mut self, now: Instant) -> Actions<W> {
        let mut actions = self.begin(now);
        if self.is_flipped() {
            self.unflip();
            actions.wake_probes = true;
        }
        self.settle(now, &mut actions);
        actions
    }

    /// Rejects waiters and arrivals for good: the newer process is gone after it took over. Requests in flight run to their
    /// end.
    pub(crate) fn abandon(&mut self, now: Instant) -> Actions<W> {
        if !self.is_flipped() {
            return self.begin(now);
        }
        self.unflip();
        self.close(Closing::Draining, now)
    }

    fn unflip(&mut self) {
        self.leases().owners.remove(&PeerId::NEWER);
        self.endpoints.set_ownership(Ownership::Alone);
    }
}

impl<W> Core<W> {
    /// Tells an owner all that this process holds of its slots.
    pub(crate) fn tell_holding(&mut self, peer: PeerId, now: Instant) -> Actions<W> {
        let mut actions = self.begin(now);
        let slots = self.held_of(peer);
        let leases = self.leases();
        let received = leases.owners.get(&peer).map_or(0, |owner| owner.received);
        // An owner that knows of none takes silence for none.
        if received > 0 || !slots.is_empty() {
            leases.post(peer, LeaseMessage::Holding { received, slots });
        }
        if let Some(owner) = leases.owners.get_mut(&peer) {
            owner.asked = 0;
            owner.passive = 0;
        }
        self.settle(now, &mut actions);
        actions
    }

    /// What this process holds of a replica's slots.
    pub(super) fn held_of(&self, peer: PeerId) -> Vec<(EndpointId, u32)> {
        let held = self.endpoints.iter();
        let held = held.filter(|(_, record)| record.owner == Owner::Peer(peer) && record.leased > 0);
        held.map(|(_, record)| (record.id(), record.leased)).collect()
    }

    pub(super) fn leased(&mut self, peer: PeerId, id: &EndpointId, slots: u32, number: u64) {
        let flipped = self.is_flipped();
        let Some(owner) = self
            .leases
            .as_mut()
            .and_then(|leases| leases.owners.get_mut(&peer))
        else {
            return;
        };
        owner.received = number;
        let known = self.endpoints.find_id(id);
        let known = known.filter(|slot| self.endpoints.record(*slot).phase != EndpointPhase::Gone);
        let slot = match known {
            Some(slot) => Some(slot),
            // What the newer process found or started.
            None if flipped => {
                let state = EndpointState::in_tier(self.tier_of(id), id.address.clone(), id.instance);
                Some(self.endpoints.insert(Arc::new(state), EndpointPhase::Ready))
            }
            None => None,
        };
        match slot.map(|slot| (slot, self.endpoints.record(slot))) {
            // Dealt to another one meanwhile: that one is told by what is held, which this is no part of.
            Some((_, record)) if record.owner != Owner::Peer(peer) => {}
            Some((slot, record))
                if record.phase != EndpointPhase::Draining && !record.has_lapsed && self.closed.is_none() =>
            {
                // The owner judges its endpoints, by what all processes report.
                if record.phase != EndpointPhase::Ready {
                    self.endpoints.set_phase(slot, EndpointPhase::Ready);
                }
                self.endpoints.lease(slot, slots);
                if let Some(owner) = self.leases().owners.get_mut(&peer) {
                    owner.asked = owner.asked.saturating_sub(slots);
                    owner.is_busy = false;
                }
            }
            // Not asked for again at once, which would bring the same slots: with the next renewal.
            _ => self.return_slots(peer, id.clone(), slots),
        }
    }

    pub(super) fn revoked(&mut self, peer: PeerId, id: &EndpointId) {
        if let Some(slot) = self.endpoints.find_id(id)
            && self.endpoints.record(slot).owner == Owner::Peer(peer)
        {
            self.endpoints.record_mut(slot).is_revoked = true;
            self.return_idle(slot, u32::MAX);
        }
    }

    /// Somebody waits for this owner's slots, or nobody any more.
    pub(super) fn awaited(&mut self, peer: PeerId, since: Option<Instant>) {
        let Some(owner) = self.leases().owners.get_mut(&peer) else {
            return;
        };
        owner.awaited_since = since;
        if since.is_some() {
            let idle: Vec<u32> = self.endpoints.idle.iter().copied().collect();
            for slot in idle {
                if self.endpoints.record(slot).owner == Owner::Peer(peer) {
                    self.return_idle(slot, u32::MAX);
                }
            }
        }
    }

    /// The newer process rejects whoever waits here.
    pub(super) fn refused(
        &mut self,
        peer: PeerId,
        rejection: &Rejection,
        now: Instant,
        actions: &mut Actions<W>,
    ) {
        if peer != PeerId::NEWER {
            return;
        }
        if let Some(owner) = self.leases().owners.get_mut(&peer) {
            owner.asked = 0;
            owner.passive = 0;
        }
        if matches!(rejection, Rejection::Dormant { .. }) {
            self.reject_passive(now, actions, rejection);
        } else {
            self.reject_all(now, actions, rejection);
        }
    }

    /// Whether a leased slot that is about to be free goes back at once: the owner's waiters have waited longer than this
    /// process's.
    pub(super) fn goes_back(&self, slot: u32) -> bool {
        let record = self.endpoints.record(slot);
        let Owner::Peer(peer) = record.owner else {
            return false;
        };
        let returns = record.is_revoked || record.has_lapsed || self.closed.is_some();
        let own = self.waiting_since();
        let leases = self.leases.as_ref();
        let owner = leases.and_then(|leases| leases.owners.get(&peer));
        let theirs = owner.and_then(|owner| owner.awaited_since);
        returns || theirs.is_some_and(|theirs| own.is_none_or(|own| theirs < own))
    }

    /// Returns free slots: all of them where none is kept, else when they are looked at.
    pub(super) fn give_back_idle(&mut self, now: Instant) {
        for (peer, endpoint, slots) in self.endpoints.take_abandoned() {
            self.return_slots(peer, endpoint, slots);
        }
        if self.endpoints.idle.is_empty() {
            self.leases().linger_due = None;
            return;
        }
        let linger = self.linger();
        let due = *self.leases().linger_due.get_or_insert(now + linger);
        if !linger.is_zero() && due > now {
            return;
        }
        let idle: Vec<u32> = self.endpoints.idle.iter().copied().collect();
        for slot in idle {
            let most = if linger.is_zero() {
                u32::MAX
            } else {
                self.endpoints.record(slot).least_idle
            };
            self.return_idle(slot, most);
            if self.endpoints.is_there(slot) {
                let record = self.endpoints.record_mut(slot);
                record.least_idle = record.idle();
            }
        }
        self.leases().linger_due = (!self.endpoints.idle.is_empty()).then_some(now + linger);
    }

    /// Asks anew for what waits, in case that the owner has forgotten, or did not know the revision yet.
    pub(crate) fn ask_again(&mut self, now: Instant) -> Actions<W> {
        if self.queue.is_empty() {
            return Actions::default();
        }
        let mut actions = self.begin(now);
        for owner in self.leases().owners.values_mut() {
            owner.asked = 0;
            owner.is_busy = false;
        }
        self.settle(now, &mut actions);
        actions
    }

    /// Asks for slots while requests wait: one owner after the other, until one has a free slot.
    pub(super) fn ask_owners(&mut self, now: Instant) {
        let leases = self.leases();
        if leases.owners.is_empty() {
            return;
        }
        let (waiting, passive) = self.unserved();
        let targets: Vec<PeerId> =
            if waiting > 0 || self.leases().owners.values().any(|owner| owner.asked > 0) {
                self.owners_to_ask()
            } else {
                return;
            };
        let (oldest, youngest) = self.ages(now);
        let mut posts = Vec::new();
        let mut is_asked = false;
        let is_flipped = self.is_flipped();
        let live = if is_flipped {
            BTreeSet::new()
        } else {
            self.endpoints.live_owners()
        };
        for peer in targets {
            let Some(owner) = self.leases().owners.get_mut(&peer) else {
                continue;
            };
            let waiting = if is_asked || !(is_flipped || live.contains(&peer)) {
                0
            } else {
                waiting
            };
            // Another number is told when it is another order of magnitude, when the first begins to wait, and when none does.
            let tells = match (owner.asked, waiting) {
                (0, 0) => false,
                (0, _) | (_, 0) => true,
                (asked, waiting) => waiting > asked.saturating_mul(2) || waiting < asked / 2,
            };
            if tells || (waiting > 0 && owner.passive != passive.min(waiting)) {
                owner.asked = waiting;
                owner.passive = passive.min(waiting);
                posts.push((
                    peer,
                    Ask {
                        waiting,
                        passive: owner.passive,
                        oldest,
                        youngest,
                        received: owner.received,
                    },
                ));
            }
            is_asked |= waiting > 0 && !owner.is_busy;
        }
        for (peer, ask) in posts {
            self.leases().post(peer, LeaseMessage::Ask(ask));
        }
    }

    /// Waiters that any tier may serve, those of an older process included, and how many are passive.
    fn unserved(&self) -> (u32, u32) {
        if self.paused && !self.is_flipped() {
            // A slot would be of no use before the resume. In an upgrade the newer process knows of that.
            return (0, 0);
        }
        let waiting = self.queue.len() - self.queue.spilled().len();
        let own = u32::try_from(waiting).unwrap_or(u32::MAX);
        let passive = u32::try_from(self.queue.passive()).unwrap_or(u32::MAX);
        (
            own.saturating_add(self.older_waiting()),
            passive.saturating_add(self.older_passive()),
        )
    }

    /// The owners of endpoints that are ready or may be soon, each throttler beginning with another one; then those that are asked in vain.
    fn owners_to_ask(&mut self) -> Vec<PeerId> {
        if self.is_flipped() {
            return vec![PeerId::NEWER];
        }
        let live = self.endpoints.live_owners();
        let mut all: Vec<PeerId> = live.iter().copied().collect();
        if !all.is_empty() {
            let first = self.first_owner as usize % all.len();
            all.rotate_left(first);
        }
        let owners = self.leases.iter().flat_map(|leases| &leases.owners);
        let in_vain = owners.filter(|(peer, owner)| owner.asked > 0 && !live.contains(peer));
        all.extend(in_vain.map(|(peer, _)| *peer));
        all
    }

    /// How long the oldest and the youngest waiter have waited.
    fn ages(&self, now: Instant) -> (std::time::Duration, std::time::Duration) {
        let own = [self.waiting_since(), self.queue.youngest_since()];
        let others = self.next_holder().map(|(_, since)| since);
        let all = own.into_iter().chain([others]).flatten();
        let age = |since: Instant| now.saturating_duration_since(since);
        let (first, last) = (all.clone().min(), all.max());
        (
            first.map(age).unwrap_or_default(),
            last.map(age).unwrap_or_default(),
        )
    }

    /// Returns free slots of an endpoint, unless the endpoint is gone, and what was leased of it with it.
    pub(super) fn return_idle(&mut self, slot: u32, most: u32) {
        if !self.endpoints.is_there(slot) {
            return;
        }
        let (owner, id) = {
            let record = self.endpoints.record(slot);
            (record.owner, record.id())
        };
        let slots = self.endpoints.give_up(slot, most);
        if let (Owner::Peer(peer), 1..) = (owner, slots) {
            self.return_slots(peer, id, slots);
        }
    }

    fn return_slots(&mut self, peer: PeerId, endpoint: EndpointId, slots: u32) {
        let leases = self.leases();
        // Without a connection the owner is told once there is one: of what is held then.
        if let Some(owner) = leases.owners.get(&peer) {
            let received = owner.received;
            let message = LeaseMessage::Return {
                endpoint,
                slots,
                received,
            };
            leases.post(peer, message);
        }
    }
}

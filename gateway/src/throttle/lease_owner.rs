//! The owner's side of leases: it lends slots to whoever has waited longest, in this process or in another one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::actions::{Actions, Signal};
use super::core::Core;
use super::endpoint::{EndpointPhase, EndpointState};
use super::lease::{Ask, EndpointId, EndpointInUse, HolderLink, LeaseMessage, MAX_SLOTS, PeerId};
use super::rejection::Rejection;

impl<W> Core<W> {
    /// Takes over endpoints of an older process with the slots that it has in use, above the limit if need be: those
    /// requests are in flight already. Unknown configured addresses are added only while names are still being looked up
    /// (`may_add`); what is in flight on them is counted all the same.
    pub(crate) fn adopt(&mut self, endpoints: &[EndpointInUse], may_add: bool, now: Instant) -> Actions<W> {
        let mut actions = self.begin(now);
        let older = HolderLink::new(true, now);
        self.leases().holders.entry(PeerId::OLDER).or_insert(older);
        for left in endpoints {
            let phase = match left.phase {
                // Whether the endpoint fails for this process, too, is found out by this process's own requests.
                EndpointPhase::Ejected { .. } => EndpointPhase::Ready,
                phase => phase,
            };
            let known = self.endpoints.find_id(&left.id);
            let adds = phase != EndpointPhase::Gone && (left.id.instance.is_some() || may_add);
            let slot = match known {
                Some(slot) => {
                    let proven = phase == EndpointPhase::Ready;
                    if proven && self.endpoints.record(slot).phase == EndpointPhase::Starting {
                        self.endpoints.set_phase(slot, EndpointPhase::Ready);
                    }
                    slot
                }
                None if adds || left.in_flight > 0 => {
                    let tier = self.tier_of(&left.id);
                    let state = EndpointState::in_tier(tier, left.id.address.clone(), left.id.instance);
                    let phase = if adds { phase } else { EndpointPhase::Draining };
                    self.endpoints.insert(Arc::new(state), phase)
                }
                None => continue,
            };
            if left.in_flight > 0 {
                self.count_lent(PeerId::OLDER, slot, left.in_flight);
            }
            if known.is_none() && !adds {
                self.endpoints.set_phase(slot, EndpointPhase::Gone);
            }
            // `Demand::Ready` may have been on its way when the older process stopped.
            let tier = self.tier_of(&left.id);
            match (phase, left.id.instance) {
                (EndpointPhase::Ready, Some(instance)) => {
                    actions.signals.push(Signal::Ready { tier, instance });
                }
                (EndpointPhase::Draining, Some(instance)) if left.in_flight == 0 => {
                    actions.signals.push(Signal::Drained { tier, instance });
                }
                _ => {}
            }
        }
        self.settle(now, &mut actions);
        actions
    }

    /// Requests of an older process that wait, and are to be scaled for: replicas scale for their own.
    pub(super) fn older_waiting(&self) -> u32 {
        self.older().map_or(0, |older| older.wanted)
    }

    /// As [`older_waiting`](Self::older_waiting), without passive requests.
    pub(super) fn older_active(&self) -> u32 {
        self.older()
            .map_or(0, |older| older.wanted.saturating_sub(older.passive))
    }

    /// Slots of a tier that an older process has in use.
    pub(super) fn older_in_flight(&self, tier: usize) -> u32 {
        if self.older().is_some() {
            self.endpoints.lent_of(tier)
        } else {
            0
        }
    }

    /// Whether requests of other processes wait for slots of this one.
    pub(super) fn is_awaited_elsewhere(&self) -> bool {
        self.leases.as_ref().is_some_and(|leases| !leases.is_calm())
    }

    /// As [`older_in_flight`](Self::older_in_flight), of all tiers.
    pub(super) fn all_older_in_flight(&self) -> u32 {
        if self.older().is_some() {
            self.endpoints.lent()
        } else {
            0
        }
    }

    fn older(&self) -> Option<&HolderLink> {
        self.leases.as_ref()?.holders.get(&PeerId::OLDER)
    }

    /// Slots that another process holds.
    pub(crate) fn slots_of(&self, peer: PeerId) -> u32 {
        self.leases.as_ref().map_or(0, |leases| leases.slots_of(peer))
    }

    pub(super) fn asked(&mut self, peer: PeerId, ask: Ask, now: Instant, actions: &mut Actions<W>) {
        let Some(holder) = self.leases().holders.get_mut(&peer) else {
            return;
        };
        holder.confirm(ask.received);
        let on_their_way: u32 = holder.unconfirmed.iter().map(|(_, _, slots)| slots).sum();
        let began = holder.wanted == 0;
        holder.wanted = ask.waiting.saturating_sub(on_their_way);
        holder.passive = ask.passive.min(holder.wanted);
        holder.asked = holder.wanted;
        holder.oldest = now.checked_sub(ask.oldest).unwrap_or(now);
        holder.youngest = now.checked_sub(ask.youngest).unwrap_or(now);
        holder.told_busy = false;
        let waits = holder.wanted > 0;
        if peer == PeerId::OLDER
            && waits
            && let Some(rejection) = self.no_wait(now)
        {
            self.refuse_older(&rejection);
        }
        actions.wake_probes |= waits && began && self.endpoints.counts().starting > 0;
    }

    pub(super) fn returned(
        &mut self,
        peer: PeerId,
        id: &EndpointId,
        slots: u32,
        received: u64,
        actions: &mut Actions<W>,
    ) {
        let Some(holder) = self
            .leases
            .as_mut()
            .and_then(|leases| leases.holders.get_mut(&peer))
        else {
            return;
        };
        holder.confirm(received);
        let mut left = slots;
        // One return may be for an endpoint and for what it was before it came back.
        while left > 0
            && let Some(leases) = &self.leases
            && let Some(holder) = leases.holders.get(&peer)
            && let Some(slot) = self
                .endpoints
                .find_lent(id, |slot| holder.lent.contains_key(&slot))
        {
            let some = left.min(holder.lent[&slot]);
            self.uncount_lent(peer, slot, some, actions);
            left -= some;
        }
    }

    /// A holder says all it holds.
    pub(super) fn held_by(
        &mut self,
        peer: PeerId,
        received: u64,
        slots: &[(EndpointId, u32)],
        now: Instant,
        actions: &mut Actions<W>,
    ) {
        let mut holds: BTreeMap<u32, u32> = BTreeMap::new();
        for (id, slots) in slots.iter().filter(|(_, slots)| *slots > 0) {
            let slot = self.endpoints.find_id(id).unwrap_or_else(|| {
                // An address that is not known here yet, or no more: a ghost, which counts when the address comes.
                let state = EndpointState::in_tier(self.tier_of(id), id.address.clone(), id.instance);
                self.endpoints.insert(Arc::new(state), EndpointPhase::Draining)
            });
            let held = holds.entry(slot).or_default();
            *held = held.saturating_add(*slots).min(MAX_SLOTS);
        }
        let holder = HolderLink::new(false, now);
        let holder = self.leases().holders.entry(peer).or_insert(holder);
        holder.is_known = true;
        holder.confirm(received);
        let before = std::mem::take(&mut holder.lent);
        let on_their_way: Vec<_> = holder.unconfirmed.iter().map(|(_, key, n)| (*key, *n)).collect();
        for (key, slots) in on_their_way {
            // An endpoint with a slot on its way is there.
            if let Some(slot) = self.endpoints.find(key) {
                let held = holds.entry(slot).or_default();
                *held = held.saturating_add(slots).min(MAX_SLOTS);
            }
        }
        for (slot, slots) in &holds {
            self.count_lent(peer, *slot, *slots);
        }
        for (slot, slots) in before {
            self.free(slot, slots, actions);
        }
        for slot in holds.into_keys() {
            let record = self.endpoints.record(slot);
            if record.phase == EndpointPhase::Draining && record.state.instance.is_none() {
                self.endpoints.set_phase(slot, EndpointPhase::Gone);
            }
        }
    }

    /// A holder has said all it holds, and nothing of this revision.
    pub(crate) fn held_nothing(&mut self, peer: PeerId, now: Instant) -> Actions<W> {
        self.hear(
            peer,
            LeaseMessage::Holding {
                received: 0,
                slots: Vec::new(),
            },
            now,
        )
    }

    /// The process that has waited longest for a slot, this one not counted, and since when.
    pub(super) fn next_holder(&self) -> Option<(PeerId, Instant)> {
        let holders = self.leases.as_ref()?.holders.iter();
        let waiting = holders.filter_map(|(peer, holder)| Some((*peer, holder.next_since()?)));
        waiting.min_by_key(|(_, since)| *since)
    }

    /// Lends a slot to this process; `false` where none is free.
    pub(super) fn lend(&mut self, peer: PeerId) -> bool {
        let Some(slot) = self.endpoints.pick_lendable() else {
            return false;
        };
        self.count_lent(peer, slot, 1);
        let record = self.endpoints.record(slot);
        let (endpoint, key) = (record.id(), record.state.key);
        let leases = self.leases();
        let mut number = 0;
        if let Some(holder) = leases.holders.get_mut(&peer) {
            holder.wanted -= 1;
            holder.passive = holder.passive.min(holder.wanted);
            holder.told_busy = false;
            holder.sent += 1;
            number = holder.sent;
            holder.unconfirmed.push_back((number, key, 1));
        }
        let slots = 1;
        leases.post(
            peer,
            LeaseMessage::Lease {
                endpoint,
                slots,
                number,
            },
        );
        true
    }

    /// Rejects what waits in an older process.
    pub(super) fn refuse_older(&mut self, rejection: &Rejection) {
        let Some(leases) = &mut self.leases else { return };
        let Some(older) = leases.holders.get_mut(&PeerId::OLDER) else {
            return;
        };
        let only_passive = matches!(rejection, Rejection::Dormant { .. });
        let refused = if only_passive { older.passive } else { older.wanted };
        if refused > 0 {
            older.wanted -= refused;
            older.passive = 0;
            leases.post(PeerId::OLDER, LeaseMessage::Refuse(rejection.clone()));
        }
    }

    /// Whether passive requests of an older process wait.
    pub(super) fn older_passive(&self) -> u32 {
        self.older().map_or(0, |older| older.passive)
    }

    /// Revokes slots of endpoints that take no more requests, and says who waits and who has to wait.
    pub(super) fn tell_holders(&mut self, now: Instant) {
        let revoked = self.endpoints.take_revocations();
        let own = self.waiting_since();
        let others = self.next_holder();
        let Some(leases) = &mut self.leases else { return };
        let mut posts = Vec::new();
        for (peer, holder) in &mut leases.holders {
            for slot in revoked.iter().filter(|slot| holder.lent.contains_key(slot)) {
                let endpoint = self.endpoints.record(*slot).id();
                posts.push((*peer, LeaseMessage::Revoke { endpoint }));
            }
            if !holder.is_known {
                continue;
            }
            let other = others.filter(|(other, _)| other != peer).map(|(_, since)| since);
            let oldest = [own, other].into_iter().flatten().min();
            if holder.told_waiting != oldest && (!holder.lent.is_empty() || oldest.is_none()) {
                holder.told_waiting = oldest;
                let oldest = oldest.map(|since| now.saturating_duration_since(since));
                posts.push((*peer, LeaseMessage::Waiting { oldest }));
            }
            if holder.wanted > 0 && !std::mem::replace(&mut holder.told_busy, true) && *peer != PeerId::OLDER
            {
                posts.push((*peer, LeaseMessage::Busy));
            }
        }
        for (peer, message) in posts {
            leases.post(peer, message);
        }
    }

    /// Another replica owns an endpoint now, and is told by the holders themselves.
    pub(super) fn forget_holders_of(&mut self, slot: u32) {
        let key = self.endpoints.record(slot).state.key;
        let Some(leases) = &mut self.leases else { return };
        let mut lent = 0;
        for holder in leases.holders.values_mut() {
            lent += holder.lent.remove(&slot).unwrap_or(0);
            holder.unconfirmed.retain(|(_, leased, _)| *leased != key);
        }
        if lent > 0 {
            self.endpoints.take_back(slot, lent);
        }
    }

    /// Slots of a holder are free.
    pub(super) fn free(&mut self, slot: u32, slots: u32, actions: &mut Actions<W>) {
        let endpoint = self.endpoints.record(slot);
        if endpoint.phase == EndpointPhase::Draining && endpoint.busy() == slots {
            actions.signals.extend(endpoint.drained());
        }
        let returns = self.goes_back(slot);
        self.endpoints.take_back(slot, slots);
        if returns {
            self.return_idle(slot, slots);
        }
    }

    fn count_lent(&mut self, peer: PeerId, slot: u32, slots: u32) {
        self.endpoints.lend(slot, slots);
        if let Some(holder) = self.leases().holders.get_mut(&peer) {
            *holder.lent.entry(slot).or_default() += slots;
        }
    }

    fn uncount_lent(&mut self, peer: PeerId, slot: u32, slots: u32, actions: &mut Actions<W>) {
        if let Some(holder) = self.leases().holders.get_mut(&peer)
            && let Some(lent) = holder.lent.get_mut(&slot)
        {
            *lent -= slots;
            if *lent == 0 {
                holder.lent.remove(&slot);
            }
        }
        self.free(slot, slots, actions);
    }

    /// The tier of another process's endpoint, which a process of another version may number differently.
    pub(super) fn tier_of(&self, id: &EndpointId) -> u8 {
        if usize::from(id.tier) < self.tiers.len() {
            id.tier
        } else {
            0
        }
    }
}

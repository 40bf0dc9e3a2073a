//! The load balancer's part of leases: whose the slots of an endpoint are, how many are lent or leased, and *ghosts*.
//!
//! A ghost is a removed endpoint with slots in use. A configured address that comes back (a Pod that is ready again) is a new
//! endpoint with connections of its own, yet the same server: what its ghosts hold counts against its limit.

use std::collections::BTreeSet;

use super::endpoint::{EndpointPhase, EndpointState};
use super::endpoint_set::{EndpointRecord, EndpointSet, below, index};
use super::lease::{EndpointId, MAX_SLOTS, Owner, Ownership, PeerId};

impl EndpointRecord {
    pub(crate) fn id(&self) -> EndpointId {
        self.state.id()
    }

    fn is(&self, id: &EndpointId) -> bool {
        self.state.instance == id.instance && self.state.address == id.address && self.tier == id.tier
    }
}

impl EndpointState {
    /// Its identity in other processes.
    pub fn id(&self) -> EndpointId {
        EndpointId {
            address: self.address.clone(),
            instance: self.instance,
            tier: self.tier,
        }
    }
}

impl EndpointSet {
    /// The endpoint with this identity, one that is not gone before one that is.
    pub(crate) fn find_id(&self, id: &EndpointId) -> Option<u32> {
        let known = || self.iter().filter(|(_, record)| record.is(id));
        let live = known().find(|(_, record)| record.phase != EndpointPhase::Gone);
        live.map(|(i, _)| i).or_else(|| self.ghosts.get(id).copied())
    }

    /// The endpoint with this identity whose slots this peer is known to hold: a ghost before its heir.
    pub(crate) fn find_lent(&self, id: &EndpointId, holds: impl Fn(u32) -> bool) -> Option<u32> {
        let known = self.iter().filter(|(_, record)| record.is(id));
        known.map(|(i, _)| i).find(|i| holds(*i))
    }

    /// Counts slots as held by another process.
    pub(crate) fn lend(&mut self, i: u32, slots: u32) {
        let record = self.record_mut(i);
        record.lent += slots;
        let tier = usize::from(record.tier);
        self.lent += slots;
        self.tiers[tier].lent += slots;
        let mut at = self.record(i).heir;
        while let Some(heir) = at {
            self.record_mut(heir).ghosts_busy += slots;
            self.refresh(heir);
            at = self.record(heir).heir;
        }
        self.refresh(i);
    }

    /// Slots that another process held are free.
    pub(crate) fn take_back(&mut self, i: u32, slots: u32) {
        let record = self.record_mut(i);
        let slots = slots.min(record.lent);
        record.lent -= slots;
        let tier = usize::from(record.tier);
        self.lent -= slots;
        self.tiers[tier].lent -= slots;
        self.refresh(i);
        self.freed(i, slots);
        self.vacate(i);
    }

    /// More slots are leased to this process.
    pub(crate) fn lease(&mut self, i: u32, slots: u32) {
        let record = self.record_mut(i);
        record.leased = record.leased.saturating_add(slots).min(MAX_SLOTS);
        record.is_revoked = false;
        self.refresh(i);
    }

    /// Gives up to `most` free leased slots up, and returns how many.
    pub(crate) fn give_up(&mut self, i: u32, most: u32) -> u32 {
        let record = self.record_mut(i);
        let given = record.idle().min(most);
        record.leased -= given;
        record.least_idle = record.least_idle.min(record.idle());
        self.refresh(i);
        given
    }

    /// Gives the slots of an endpoint to another owner. Of a peer's slots, this process holds what is in use.
    pub(crate) fn set_owner(&mut self, i: u32, owner: Owner) {
        let record = self.record_mut(i);
        if record.owner == owner {
            return;
        }
        record.owner = owner;
        record.leased = if matches!(owner, Owner::Peer(_)) {
            record.busy()
        } else {
            0
        };
        record.least_idle = 0;
        record.is_revoked = false;
        record.has_lapsed = false;
        self.inherit_lapse(i);
        self.live_owners = None;
        self.refresh(i);
        self.note_idle(i);
    }

    /// Whether an index is of an endpoint still.
    pub(crate) fn is_there(&self, i: u32) -> bool {
        self.records[i as usize].is_some()
    }

    /// Other owners of endpoints that are ready, or may be soon: those are probed by their owners, too, while they are asked. None
    /// whose lease has ended: what it gave would be of no use before it is renewed.
    pub(crate) fn live_owners(&mut self) -> BTreeSet<PeerId> {
        if let Some(known) = &self.live_owners {
            return known.clone();
        }
        let live = self
            .iter()
            .filter(|(_, record)| record.is_live() && !record.has_lapsed);
        let owners: BTreeSet<_> = live
            .filter_map(|(_, record)| match record.owner {
                Owner::Peer(peer) => Some(peer),
                Owner::Me | Owner::Pending => None,
            })
            .collect();
        self.live_owners = Some(owners.clone());
        owners
    }

    /// Whether no other endpoint is ready whose slots are dealt to this process: each replica keeps one, as a process alone
    /// does.
    pub(crate) fn is_last_owned(&self, i: u32) -> bool {
        let others = || self.iter().filter(|(other, _)| *other != i);
        let ready =
            |record: &EndpointRecord| record.phase == EndpointPhase::Ready && record.owner == Owner::Me;
        matches!(self.ownership, Ownership::Shared { .. }) && !others().any(|(_, record)| ready(record))
    }

    /// Slots of endpoints that are gone, which their owners have to be told of.
    pub(crate) fn take_abandoned(&mut self) -> Vec<(PeerId, EndpointId, u32)> {
        std::mem::take(&mut self.abandoned)
    }

    /// Says whose the slots are from now on, and of endpoints that come.
    pub(crate) fn set_ownership(&mut self, ownership: Ownership) {
        self.ownership = ownership;
        for i in 0..self.records.len() {
            let Some(record) = &self.records[i] else { continue };
            let owner = self
                .ownership
                .owner(record.state.hash, self.tiers[usize::from(record.tier)].limit);
            self.set_owner(index(i), owner);
        }
    }

    /// Keeps the list of endpoints with free leased slots.
    pub(super) fn note_idle(&mut self, i: u32) {
        if self.record(i).idle() > 0 {
            self.idle.insert(i);
        } else {
            self.idle.remove(&i);
        }
    }

    /// Lets the lease of a peer's slots end, or takes it up again.
    pub(crate) fn lapse(&mut self, peer: PeerId, has_lapsed: bool) {
        let changes = match has_lapsed {
            true => self.lapsed.insert(peer),
            false => self.lapsed.remove(&peer),
        };
        if !changes {
            return;
        }
        self.live_owners = None;
        for i in 0..self.records.len() {
            if let Some(record) = &mut self.records[i]
                && record.owner == Owner::Peer(peer)
            {
                record.has_lapsed = has_lapsed;
                self.refresh(index(i));
            }
        }
    }

    /// An endpoint that comes, or gets another owner, is of no use while the lease of that one's slots has ended.
    pub(super) fn inherit_lapse(&mut self, i: u32) {
        if let Owner::Peer(peer) = self.record(i).owner {
            let has_lapsed = self.lapsed.contains(&peer);
            self.record_mut(i).has_lapsed = has_lapsed;
        }
    }

    /// An open endpoint whose slots this process may lend; of several, one of those that have less in use.
    pub(crate) fn pick_lendable(&mut self) -> Option<u32> {
        let (sublets, shares) = match self.ownership {
            Ownership::Alone => (false, false),
            Ownership::Newer => (true, false),
            Ownership::Shared { .. } => (false, true),
        };
        // Of endpoints without a limit replicas lease nothing: there would be no end to it.
        let lendable = |set: &Self, i: u32| {
            let record = set.record(i);
            sublets || (record.is_mine() && (!shares || record.limit().is_some()))
        };
        let n = self.open.len();
        if n == 0 {
            return None;
        }
        let random = self.next_random();
        let two = [below(random >> 32, n), below(random & 0xffff_ffff, n)].map(|at| self.open[at]);
        let two = two.into_iter().filter(|i| lendable(self, *i));
        let fewer = |i: &u32| self.record(*i).busy();
        let found = two.min_by_key(fewer);
        // Endpoints of other owners may be open, too.
        found.or_else(|| self.open.iter().copied().find(|i| lendable(self, *i)))
    }

    /// Endpoints that take no more requests, with slots lent; each once.
    pub(crate) fn take_revocations(&mut self) -> Vec<u32> {
        let mut all = std::mem::take(&mut self.revocations);
        all.retain(|i| {
            self.records[*i as usize]
                .as_ref()
                .is_some_and(|record| record.lent > 0)
        });
        all
    }

    /// A configured address is removed while slots of it are in use.
    pub(super) fn leave_ghost(&mut self, i: u32) {
        let record = self.record(i);
        if record.state.instance.is_none() && record.busy() > 0 {
            self.ghosts.insert(record.id(), i);
        }
    }

    /// An address comes back: what its ghosts hold counts.
    pub(super) fn inherit_ghost(&mut self, i: u32) {
        let record = self.record(i);
        if self.ghosts.is_empty() || record.state.instance.is_some() {
            return;
        }
        if let Some(&ghost) = self.ghosts.get(&record.id()) {
            let before = self.record_mut(ghost);
            before.heir = Some(i);
            let busy = before.busy() + before.ghosts_busy;
            self.record_mut(i).ghosts_busy = busy;
        }
    }

    /// Slots of an endpoint are free; its heirs have as many more.
    pub(super) fn freed(&mut self, i: u32, slots: u32) {
        let mut at = self.record(i).heir;
        while let Some(heir) = at {
            let record = self.record_mut(heir);
            record.ghosts_busy = record.ghosts_busy.saturating_sub(slots);
            at = record.heir;
            self.refresh(heir);
        }
    }

    /// A ghost has nothing in use any more.
    pub(super) fn lay_ghost(&mut self, i: u32, id: &EndpointId) {
        let Some(record) = &self.records[i as usize] else {
            return;
        };
        let (heir, has_elder) = (record.heir, record.ghosts_busy > 0);
        let elder = if has_elder {
            let mut all = self.records.iter();
            all.position(|other| other.as_ref().is_some_and(|other| other.heir == Some(i)))
        } else {
            None
        };
        if let Some(elder) = elder.and_then(|elder| self.records[elder].as_mut()) {
            elder.heir = heir;
        }
        if self.ghosts.get(id) == Some(&i) {
            match elder {
                Some(elder) => _ = self.ghosts.insert(id.clone(), index(elder)),
                None => _ = self.ghosts.remove(id),
            }
        }
    }
}

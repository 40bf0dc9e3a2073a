//! Leases of slots between processes that send requests to the same endpoints: messages, and the state of one throttler.
//!
//! The slots of an endpoint belong to one process, its *owner*; any other one is a *holder*: it sends requests on slots that
//! the owner leases to it, and asks for them while requests wait. A holder keeps a slot that is free again for its own waiters,
//! unless the owner's have waited longer, and returns the rest. So at every instant an endpoint has no more in flight, all
//! processes together, than its owner counts.
//!
//! Two arrangements use leases. In an upgrade the newer process owns every slot, and the older one holds what it has in flight
//! ([`Ownership::Newer`]). Replicas of a cluster deal the endpoints of a revision with a concurrency limit out by rendezvous
//! ([`Ownership::Shared`]). `lease_owner` and `lease_holder` are the two sides.
//!
//! **Invariant:** slots that a holder was given count as in use until the holder returns them, says what it holds after a new
//! connection, or is gone. A connection that breaks, and a lease that ends, free nothing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_model::{EndpointAddr, InstanceId, StickyKey, rendezvous};

use super::actions::Actions;
use super::arrival::Outcome;
use super::core::Core;
use super::endpoint::EndpointPhase;
use super::rejection::Rejection;

/// Identifies an endpoint in all processes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId {
    /// Its address.
    pub address: EndpointAddr,
    /// Its instance, if the control plane started it.
    pub instance: Option<InstanceId>,
    /// The index of its tier.
    pub tier: u8,
}

/// State of an endpoint at the hand-over of an upgrade.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointInUse {
    /// The endpoint.
    pub id: EndpointId,
    /// Its state in the endpoint's life cycle.
    pub phase: EndpointPhase,
    /// Slots in use by the older process, and by those before it.
    pub in_flight: u32,
}

/// Another process, by a number that whoever carries the messages gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u32);

impl PeerId {
    /// The newer process of an upgrade, which owns this one's slots.
    pub const NEWER: Self = Self(u32::MAX);
    /// The older process of an upgrade, a holder of this one's slots.
    pub const OLDER: Self = Self(u32::MAX - 1);
}

/// A message about one revision. Messages between two processes arrive in order, or the connection begins anew.
#[derive(Debug, Clone)]
pub enum LeaseMessage {
    /// From a holder: how many requests wait for slots of this owner.
    Ask(Ask),
    /// From a holder: slots are free.
    Return {
        /// The endpoint.
        endpoint: EndpointId,
        /// Their number.
        slots: u32,
        /// As in [`Ask`].
        received: u64,
    },
    /// From a holder: the outcome of an attempt, since the owner judges the endpoint.
    Report {
        /// The endpoint.
        endpoint: EndpointId,
        /// The outcome.
        outcome: Outcome,
    },
    /// From a holder: all it holds of this owner's slots. Replaces what the owner knew.
    Holding {
        /// As in [`Ask`].
        received: u64,
        /// Slots by endpoint.
        slots: Vec<(EndpointId, u32)>,
    },
    /// From the owner: slots to use.
    Lease {
        /// The endpoint.
        endpoint: EndpointId,
        /// How many.
        slots: u32,
        /// The number of this lease on this connection.
        number: u64,
    },
    /// The sender's throttler begins to take part on a connection that is there already: what was said of the revision before
    /// is void. What it holds follows.
    Join {
        /// Of the sender, for the answer.
        epoch: u64,
    },
    /// The answer: all that follows is said after the sender has heard of it. What it holds follows.
    Joined {
        /// As in [`Join`](Self::Join).
        epoch: u64,
    },
    /// From the owner: nothing more is to be sent to this endpoint; slots are to be returned as they become free.
    Revoke {
        /// The endpoint.
        endpoint: EndpointId,
    },
    /// From the owner: how long its oldest waiter has waited, where one waits. Slots go back unless an older request waits
    /// for them.
    Waiting {
        /// `None`: nobody waits.
        oldest: Option<Duration>,
    },
    /// From the owner: no slot is free for what was asked.
    Busy,
    /// From the newer process of an upgrade: whoever waits is rejected.
    Refuse(Rejection),
}

/// What a holder asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ask {
    /// Requests that wait.
    pub waiting: u32,
    /// How many of them are passive.
    pub passive: u32,
    /// How long the oldest has waited.
    pub oldest: Duration,
    /// How long the youngest has waited.
    pub youngest: Duration,
    /// The number of the last lease that has arrived on this connection: those on their way are not asked for again.
    pub received: u64,
}

/// Whose the slots of an endpoint are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Owner {
    /// This process's.
    #[default]
    Me,
    /// This process's, once every other one has said what it holds of them.
    Pending,
    /// Another one's.
    Peer(PeerId),
}

/// Whose the slots of a revision are.
#[derive(Debug, Clone, Default)]
pub(crate) enum Ownership {
    /// This process's, all of them.
    #[default]
    Alone,
    /// The newer process's of an upgrade, all of them.
    Newer,
    /// Dealt out among replicas. While it is not `settled`, nothing is this process's yet.
    Shared { deal: Arc<Deal>, settled: bool },
}

impl Ownership {
    /// The owner of an endpoint with this hash and limit.
    pub(super) fn owner(&self, endpoint: u64, limit: Option<u32>) -> Owner {
        match self {
            Self::Newer => Owner::Peer(PeerId::NEWER),
            Self::Shared { deal, settled } if limit.is_some() => match deal.owner(endpoint) {
                Some(Some(peer)) => Owner::Peer(peer),
                Some(None) if *settled => Owner::Me,
                Some(None) | None => Owner::Pending,
            },
            Self::Alone | Self::Shared { .. } => Owner::Me,
        }
    }
}

/// The replicas that own slots. Every replica that knows the same ones finds the same owner of an endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Deal {
    /// By the hash of the name; `None` is this process.
    owners: Vec<(u64, Option<PeerId>)>,
}

impl Deal {
    /// Of these replicas, by the hashes of their names; `None` is this process.
    pub fn new(owners: Vec<(u64, Option<PeerId>)>) -> Self {
        Self { owners }
    }

    /// The owner of an endpoint, by rendezvous; `None` where there is none.
    pub fn owner(&self, endpoint: u64) -> Option<Option<PeerId>> {
        let candidates = self.owners.iter().map(|(name, _)| (*name, 1));
        rendezvous(StickyKey::from_bits(endpoint), candidates).map(|at| self.owners[at].1)
    }
}

/// The most slots of one endpoint that another process is believed to mean: far beyond any limit, and few enough that no sum
/// of them overflows.
pub(super) const MAX_SLOTS: u32 = 1 << 16;

/// How long a free leased slot is kept for the next request, in a cluster. Without it every request of a holder that is not
/// busy would wait for a round trip.
const LINGER: Duration = Duration::from_millis(100);

/// The leases of one throttler.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    /// What this process holds, by owner.
    pub(super) owners: BTreeMap<PeerId, OwnerLink>,
    /// What other processes hold of this one's.
    pub(super) holders: BTreeMap<PeerId, HolderLink>,
    outbox: Vec<(PeerId, LeaseMessage)>,
    /// Until when slots of each replica that are leased to this process may be used for new requests.
    usable: BTreeMap<PeerId, Instant>,
    /// The first end of those.
    next_end: Option<Instant>,
    /// When free leased slots are looked at.
    pub(super) linger_due: Option<Instant>,
}

/// A holder's state of one owner.
#[derive(Debug, Default)]
pub(crate) struct OwnerLink {
    /// Requests that the owner was told of and has not leased a slot for.
    pub(super) asked: u32,
    pub(super) passive: u32,
    pub(super) received: u64,
    /// The owner has no slot free: others are asked, too.
    pub(super) is_busy: bool,
    /// Since when the owner's oldest waiter waits.
    pub(super) awaited_since: Option<Instant>,
}

/// An owner's state of one holder.
#[derive(Debug)]
pub(crate) struct HolderLink {
    /// Whether the holder has said on this connection what it holds. Before that nothing is leased to it.
    pub(super) is_known: bool,
    pub(super) wanted: u32,
    pub(super) passive: u32,
    /// Since when its oldest and its youngest waiter wait.
    pub(super) oldest: Instant,
    pub(super) youngest: Instant,
    /// Waiters that it asked for at once, to know how far it is from the oldest to the youngest.
    pub(super) asked: u32,
    pub(super) sent: u64,
    /// Leases that it may not have received: their number, the key of the endpoint, and slots.
    pub(super) unconfirmed: VecDeque<(u64, u64, u32)>,
    /// Slots that it holds, by index of the endpoint.
    pub(super) lent: BTreeMap<u32, u32>,
    pub(super) told_waiting: Option<Instant>,
    pub(super) told_busy: bool,
}

impl HolderLink {
    pub(super) fn new(is_known: bool, now: Instant) -> Self {
        Self {
            is_known,
            wanted: 0,
            passive: 0,
            oldest: now,
            youngest: now,
            asked: 0,
            sent: 0,
            unconfirmed: VecDeque::new(),
            lent: BTreeMap::new(),
            told_waiting: None,
            told_busy: false,
        }
    }

    /// Since when its next waiter waits, for all the owner knows: between the oldest and the youngest.
    pub(super) fn next_since(&self) -> Option<Instant> {
        if !self.is_known || self.wanted == 0 {
            return None;
        }
        let span = self.youngest.saturating_duration_since(self.oldest);
        let served = self.asked.saturating_sub(self.wanted);
        Some(self.oldest + span.mul_f64(f64::from(served) / f64::from(self.asked.max(1))))
    }

    pub(super) fn confirm(&mut self, received: u64) {
        while self
            .unconfirmed
            .front()
            .is_some_and(|(number, ..)| *number <= received)
        {
            self.unconfirmed.pop_front();
        }
    }
}

impl Leases {
    pub(super) fn post(&mut self, peer: PeerId, message: LeaseMessage) {
        match (self.outbox.last_mut(), &message) {
            // What is asked later stands for what was asked before.
            (Some((to, LeaseMessage::Ask(before))), LeaseMessage::Ask(ask)) if *to == peer => *before = *ask,
            _ => self.outbox.push((peer, message)),
        }
    }

    /// Messages to be sent, in order.
    pub(crate) fn take_outbox(&mut self) -> Vec<(PeerId, LeaseMessage)> {
        std::mem::take(&mut self.outbox)
    }

    /// Whether no other process waits for a slot here.
    pub(super) fn is_calm(&self) -> bool {
        self.holders.values().all(|holder| holder.wanted == 0)
    }

    /// Whether slots that are leased to this process must not be used any more.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.next_end.is_some_and(|end| end <= now)
    }

    /// Sets until when a replica's slots may be used; `None`: not at all.
    fn set_usable(&mut self, peer: PeerId, until: Option<Instant>) {
        match until {
            Some(until) => _ = self.usable.insert(peer, until),
            None => _ = self.usable.remove(&peer),
        }
        self.next_end = self.usable.values().min().copied();
    }

    /// The replicas whose leases are over.
    fn take_over(&mut self, now: Instant) -> Vec<PeerId> {
        let over = self.usable.iter().filter(|(_, until)| **until <= now);
        let over: Vec<PeerId> = over.map(|(peer, _)| *peer).collect();
        for peer in &over {
            self.set_usable(*peer, None);
        }
        over
    }

    pub(super) fn slots_of(&self, peer: PeerId) -> u32 {
        self.holders
            .get(&peer)
            .map_or(0, |holder| holder.lent.values().sum())
    }
}

impl<W> Core<W> {
    pub(super) fn leases(&mut self) -> &mut Leases {
        self.leases.get_or_insert_default()
    }

    /// Whether a newer process of an upgrade owns the slots.
    pub(crate) fn is_flipped(&self) -> bool {
        matches!(self.endpoints.ownership, Ownership::Newer)
    }

    /// How long free leased slots are kept.
    pub(super) fn linger(&self) -> Duration {
        if self.is_flipped() { Duration::ZERO } else { LINGER }
    }

    /// A connection to a replica begins, or a throttler of either side on a connection that is there: what was said before is
    /// void. `greeting` is said first, and then what is held. Leases of that replica are usable until then; `None`: not before
    /// they are renewed.
    pub(crate) fn meet(
        &mut self,
        peer: PeerId,
        greeting: Option<LeaseMessage>,
        usable: Option<Instant>,
        now: Instant,
    ) -> Actions<W> {
        let mut actions = self.begin(now);
        let held = greeting.as_ref().map(|_| self.held_of(peer));
        let leases = self.leases();
        leases.outbox.retain(|(to, _)| *to != peer);
        leases.outbox.extend(greeting.map(|greeting| (peer, greeting)));
        let holding = |slots| LeaseMessage::Holding { received: 0, slots };
        leases.outbox.extend(held.map(|slots| (peer, holding(slots))));
        leases.owners.insert(peer, OwnerLink::default());
        let lent = leases.holders.remove(&peer).map(|holder| holder.lent);
        let holder = HolderLink {
            lent: lent.unwrap_or_default(),
            ..HolderLink::new(false, now)
        };
        leases.holders.insert(peer, holder);
        self.set_usable(peer, usable);
        self.settle(now, &mut actions);
        actions
    }

    fn set_usable(&mut self, peer: PeerId, until: Option<Instant>) {
        self.leases().set_usable(peer, until);
        self.endpoints.lapse(peer, until.is_none());
    }

    /// Ends leases that are over. In flight goes on.
    pub(super) fn lapse_due(&mut self, now: Instant) {
        let over = self.leases.as_mut().map(|leases| leases.take_over(now));
        for peer in over.unwrap_or_default() {
            self.endpoints.lapse(peer, true);
        }
    }

    /// The connection to a replica has ended: it is asked for nothing, and nothing is leased to it. What either holds of the
    /// other stays.
    pub(crate) fn part(&mut self, peer: PeerId, now: Instant) -> Actions<W> {
        let mut actions = self.begin(now);
        let leases = self.leases();
        leases.owners.remove(&peer);
        if let Some(holder) = leases.holders.get_mut(&peer) {
            *holder = HolderLink {
                lent: std::mem::take(&mut holder.lent),
                ..HolderLink::new(false, now)
            };
        }
        self.settle(now, &mut actions);
        actions
    }

    /// The lease of a replica's slots is usable until then; `None`: it has ended, and what is in flight on them goes on.
    pub(crate) fn renew(&mut self, peer: PeerId, until: Option<Instant>, now: Instant) -> Actions<W> {
        let mut actions = self.begin(now);
        self.set_usable(peer, until);
        self.settle(now, &mut actions);
        actions
    }

    /// A process is gone with all it had in flight.
    pub(crate) fn gone(&mut self, peer: PeerId, now: Instant) -> Actions<W> {
        let mut actions = self.begin(now);
        let leases = self.leases();
        leases.owners.remove(&peer);
        leases.set_usable(peer, None);
        let lent = leases.holders.remove(&peer).map(|holder| holder.lent);
        for (slot, slots) in lent.unwrap_or_default() {
            self.free(slot, slots, &mut actions);
        }
        self.settle(now, &mut actions);
        actions
    }

    /// Deals the slots out anew. Endpoints that were this process's before and are now stay so; those that become its own
    /// wait for [`settle_deal`](Self::settle_deal).
    pub(crate) fn share(&mut self, deal: &Arc<Deal>, now: Instant) -> Actions<W> {
        let mut actions = self.begin(now);
        let was_shared = matches!(self.endpoints.ownership, Ownership::Shared { .. });
        let all = self.endpoints.iter();
        let changes = all.map(|(slot, record)| {
            let is_mine = record.limit().is_none() || deal.owner(record.state.hash) == Some(None);
            (slot, record.owner, is_mine)
        });
        let changes: Vec<_> = changes.collect();
        for (slot, _, is_mine) in &changes {
            if !is_mine {
                // Its holders tell the new owner themselves.
                self.forget_holders_of(*slot);
            }
        }
        let deal = Arc::clone(deal);
        self.endpoints
            .set_ownership(Ownership::Shared { deal, settled: false });
        for (slot, before, is_mine) in changes {
            if was_shared && before == Owner::Me && is_mine && self.endpoints.is_there(slot) {
                self.endpoints.set_owner(slot, Owner::Me);
            }
        }
        self.settle(now, &mut actions);
        actions
    }

    /// Every other replica has said what it holds: what is dealt to this process is its own.
    pub(crate) fn settle_deal(&mut self, now: Instant) -> Actions<W> {
        let mut actions = self.begin(now);
        if let Ownership::Shared { deal, .. } = &self.endpoints.ownership {
            let deal = Arc::clone(deal);
            self.endpoints
                .set_ownership(Ownership::Shared { deal, settled: true });
        }
        self.settle(now, &mut actions);
        actions
    }

    /// Handles a message.
    pub(crate) fn hear(&mut self, peer: PeerId, message: LeaseMessage, now: Instant) -> Actions<W> {
        let mut actions = self.begin(now);
        match message {
            LeaseMessage::Ask(ask) => self.asked(peer, ask, now, &mut actions),
            LeaseMessage::Return {
                endpoint,
                slots,
                received,
            } => self.returned(peer, &endpoint, slots, received, &mut actions),
            LeaseMessage::Report { endpoint, outcome } => {
                if let Some(slot) = self.endpoints.find_id(&endpoint) {
                    self.judge(slot, outcome, now, &mut actions);
                }
            }
            LeaseMessage::Holding { received, slots } => {
                self.held_by(peer, received, &slots, now, &mut actions)
            }
            LeaseMessage::Lease {
                endpoint,
                slots,
                number,
            } => self.leased(peer, &endpoint, slots, number),
            // Of the connection, which whoever carries messages knows of.
            LeaseMessage::Join { .. } | LeaseMessage::Joined { .. } => {}
            LeaseMessage::Revoke { endpoint } => self.revoked(peer, &endpoint),
            LeaseMessage::Waiting { oldest } => {
                self.awaited(peer, oldest.and_then(|age| now.checked_sub(age)))
            }
            LeaseMessage::Busy => {
                if let Some(owner) = self.leases().owners.get_mut(&peer) {
                    owner.is_busy = true;
                }
            }
            LeaseMessage::Refuse(rejection) => self.refused(peer, &rejection, now, &mut actions),
        }
        self.settle(now, &mut actions);
        actions
    }

    /// Sends what the leases need after a change. Gives no slot to a request of this process.
    pub(super) fn settle_leases(&mut self, now: Instant) {
        if self.leases.is_none() {
            return;
        }
        self.tell_holders(now);
        self.give_back_idle(now);
        self.ask_owners(now);
    }

    /// Since when the oldest waiter waits that any tier may serve.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        self.queue.oldest_since()
    }
}

//! Shared admission of two processes during an upgrade: the core's part on both sides.
//!
//! The older process flips its throttlers: from then on all of its slots belong to the newer process, which
//! counts them, and it gives out none by itself. Waiters of the older process stay in its own queue, in order
//! and within its bounds, but for slots that the newer process grants ([`News::Want`]); a slot given back is
//! the newer process's again ([`News::Done`]). So at every instant an endpoint has no more in flight, both
//! processes together, than the newer one has counted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_model::{EndpointAddr, InstanceId, StickyKey};

use super::actions::{Actions, CoreAdmission, Grant, Signal};
use super::arrival::{Arrival, FailedAttempt, Outcome, QueueTicket};
use super::core::Core;
use super::endpoint::{EndpointPhase, EndpointState};
use super::endpoint_set::EndpointRecord;
use super::rejection::{Closing, Rejection};

/// Identifies an endpoint in both processes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId {
    /// Its address.
    pub address: EndpointAddr,
    /// Its instance, if the control plane started it.
    pub instance: Option<InstanceId>,
    /// The index of its tier.
    pub tier: u8,
}

/// State of an endpoint at the hand-over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointInUse {
    /// The endpoint.
    pub id: EndpointId,
    /// Its state in the endpoint's life cycle.
    pub phase: EndpointPhase,
    /// Requests of the older process in flight on it.
    pub in_flight: u32,
}

/// A slot request of the older process.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// As in [`Arrival`].
    pub bytes: u64,
    /// As in [`Arrival`].
    pub deadline: Option<Instant>,
    /// As in [`Arrival`].
    pub sticky: Option<StickyKey>,
    /// As in [`Arrival`].
    pub passive: bool,
    /// How long the request has waited already.
    pub waited: Duration,
    /// Endpoints that failed the request, and whether they refused the connection.
    pub tried: Vec<(EndpointId, bool)>,
}

/// Messages of a flipped throttler to the newer process.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// A request waits for a slot; answered once, unless withdrawn.
    Want {
        /// Number of the slot request in this throttler.
        want: u64,
        /// The request.
        wanted: Wanted,
    },
    /// The slot request is withdrawn. A grant that crosses this message is used for another waiter or given
    /// back.
    Withdraw {
        /// The number, or the endpoint.
        want: u64,
    },
    /// A slot is free again.
    Done {
        /// The endpoint of the slot.
        endpoint: EndpointId,
    },
    /// Outcome of an attempt on an endpoint.
    Report {
        /// The number, or the endpoint.
        endpoint: EndpointId,
        /// The outcome.
        outcome: Outcome,
    },
}

/// Outstanding slot requests at the newer process: exactly one for each waiter.
#[derive(Debug, Default)]
pub(crate) struct Remote {
    /// Waiter (by order of arrival) of each slot request.
    wants: BTreeMap<u64, u64>,
    by_seq: BTreeMap<u64, u64>,
    next: u64,
    news: Vec<News>,
}

impl Remote {
    pub(crate) fn tell(&mut self, news: News) {
        self.news.push(news);
    }

    pub(crate) fn take_news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    fn stand_for(&mut self, want: u64, seq: u64) {
        self.wants.insert(want, seq);
        self.by_seq.insert(seq, want);
    }

    fn forget(&mut self, want: u64) -> Option<u64> {
        let seq = self.wants.remove(&want)?;
        self.by_seq.remove(&seq);
        Some(seq)
    }

    fn withdraw(&mut self, seq: u64) {
        if let Some(want) = self.by_seq.remove(&seq) {
            self.wants.remove(&want);
            self.tell(News::Withdraw { want });
        }
    }

    /// A grant for `want` goes to waiter `seq`. If `want` was another waiter's, that waiter takes over the slot
    /// request of `seq`, if there is one.
    fn satisfy(&mut self, want: u64, seq: u64) {
        let bound = self.forget(want);
        if bound == Some(seq) {
            return;
        }
        match (bound, self.by_seq.get(&seq).copied()) {
            (Some(waits), Some(own)) => {
                self.forget(own);
                self.stand_for(own, waits);
            }
            _ => self.withdraw(seq),
        }
    }

    #[cfg(test)]
    pub(crate) fn check(&self, mut waiting: impl Iterator<Item = u64>) {
        let stood_for: Vec<u64> = self.by_seq.keys().copied().collect();
        assert_eq!(self.wants.len(), stood_for.len());
        assert!(
            stood_for.iter().copied().eq(waiting.by_ref()),
            "one want for each waiter"
        );
    }
}

/// The older process's side.
impl<W> Core<W> {
    /// Hands the slots over to the newer process. Returns the endpoints with their in-flight counts.
    pub(crate) fn flip(&mut self, now: Instant) -> (Vec<EndpointInUse>, Actions<W>) {
        let actions = self.begin(now);
        self.remote = Some(Remote::default());
        self.endpoints.hold(true);
        for ticket in self.queue.tickets(now) {
            self.ask(&ticket);
        }
        let endpoints = self.endpoints.iter().map(|(_, slot)| EndpointInUse {
            id: slot.id(),
            phase: slot.phase,
            in_flight: slot.in_flight,
        });
        (endpoints.collect(), actions)
    }

    /// Takes the slots back, as if nothing had happened: the newer process failed before it granted any.
    pub(crate) fn flip_back(&mut self, now: Instant) -> Actions<W> {
        let mut actions = self.begin(now);
        if self.remote.take().is_some() {
            self.endpoints.hold(self.paused);
            actions.wake_probes = true;
        }
        self.settle(now, &mut actions);
        actions
    }

    /// Rejects waiters and arrivals for good: the newer process is gone after it took over. Requests in flight
    /// run to their end.
    pub(crate) fn abandon(&mut self, now: Instant) -> Actions<W> {
        if self.remote.take().is_none() {
            return self.begin(now);
        }
        self.close(Closing::Draining, now)
    }

    /// Handles a grant of the newer process. The slot goes to the oldest waiter without an endpoint preference
    /// (sticky, or failed by this endpoint), unless a sticky waiter's request is the one granted.
    pub(crate) fn granted(&mut self, want: u64, id: &EndpointId, now: Instant) -> Actions<W> {
        let mut actions = self.begin(now);
        let slot = self.find_id(id);
        let taker = self.taker(want, slot);
        let Some(remote) = &mut self.remote else {
            return actions;
        };
        let Some(entry) = taker.and_then(|seq| self.queue.remove(seq)) else {
            remote.forget(want);
            let endpoint = id.clone();
            remote.tell(News::Done { endpoint });
            return actions;
        };
        remote.satisfy(want, entry.ticket.seq);
        let slot = slot.unwrap_or_else(|| {
            let state = EndpointState::in_tier(self.tier_of(id), id.address.clone(), id.instance);
            self.endpoints.insert(Arc::new(state), EndpointPhase::Ready)
        });
        self.endpoints.occupy(slot);
        self.resolve(entry, now, &mut actions, |core, ticket| {
            Ok(core.grant_of(slot, ticket))
        });
        self.settle(now, &mut actions);
        actions
    }

    /// Handles a rejection by the newer process: the waiter of this slot request is rejected.
    pub(crate) fn refused(&mut self, want: u64, rejection: Rejection, now: Instant) -> Actions<W> {
        let mut actions = self.begin(now);
        let seq = self.remote.as_mut().and_then(|remote| remote.forget(want));
        if let Some(entry) = seq.and_then(|seq| self.queue.remove(seq)) {
            self.resolve(entry, now, &mut actions, |_, _| Err(rejection));
        }
        self.settle(now, &mut actions);
        actions
    }

    /// Sends a slot request for a request that is about to wait.
    pub(super) fn ask(&mut self, ticket: &QueueTicket) {
        let Some(remote) = &mut self.remote else {
            return;
        };
        let tried = ticket.tried.iter().filter_map(|tried| {
            let mut known = self.endpoints.iter();
            let (_, slot) = known.find(|(_, slot)| slot.readiness_epoch == tried.readiness_epoch)?;
            Some((slot.id(), tried.refused))
        });
        let wanted = Wanted {
            bytes: ticket.arrival.bytes,
            deadline: ticket.arrival.deadline,
            sticky: ticket.arrival.sticky,
            passive: ticket.arrival.passive,
            waited: ticket.queued,
            tried: tried.collect(),
        };
        let want = remote.next;
        remote.next += 1;
        remote.stand_for(want, ticket.seq);
        remote.tell(News::Want { want, wanted });
    }

    /// Withdraws the slot request of a waiter that waits no more.
    pub(super) fn unask(&mut self, seq: u64) {
        if let Some(remote) = &mut self.remote {
            remote.withdraw(seq);
        }
    }

    fn taker(&self, want: u64, slot: Option<u32>) -> Option<u64> {
        let asked = self.remote.as_ref()?.wants.get(&want).copied();
        let asked_for = asked.and_then(|seq| self.queue.ticket(seq));
        if asked_for.is_some_and(|ticket| ticket.arrival.sticky.is_some()) {
            return asked;
        }
        let readiness_epoch = slot.map(|slot| self.endpoints.record(slot).readiness_epoch);
        let takes = |ticket: &&QueueTicket| {
            let failed = readiness_epoch.is_some_and(|readiness_epoch| ticket.has_tried(readiness_epoch));
            Some(ticket.seq) == asked || (ticket.arrival.sticky.is_none() && !failed)
        };
        self.queue.waiting().find(takes).map(|ticket| ticket.seq)
    }

    /// The tier of another process's endpoint, which a process of another version may number differently.
    fn tier_of(&self, id: &EndpointId) -> u8 {
        if usize::from(id.tier) < self.tiers.len() {
            id.tier
        } else {
            0
        }
    }

    fn find_id(&self, id: &EndpointId) -> Option<u32> {
        let mut known = self.endpoints.iter();
        let found = known.find(|(_, slot)| slot.phase != EndpointPhase::Gone && slot.is(id));
        found.map(|(i, _)| i)
    }
}

/// The newer process's side.
impl<W> Core<W> {
    /// Takes over endpoints with the older process's requests in flight on them, above the limit if need be:
    /// those requests are in flight already. Unknown configured addresses are added only while names are still
    /// being looked up (`may_add`); their requests in flight are counted all the same.
    pub(crate) fn adopt(
        &mut self,
        endpoints: &[EndpointInUse],
        may_add: bool,
        now: Instant,
    ) -> (Vec<Grant>, Actions<W>) {
        let mut actions = self.begin(now);
        let mut grants = Vec::new();
        for left in endpoints {
            let phase = match left.phase {
                // Whether the endpoint fails for this process, too, is found out by this process's own
                // requests.
                EndpointPhase::Ejected { .. } => EndpointPhase::Ready,
                phase => phase,
            };
            let known = self.find_id(&left.id);
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
                    let state = EndpointState::in_tier(
                        self.tier_of(&left.id),
                        left.id.address.clone(),
                        left.id.instance,
                    );
                    let phase = if adds { phase } else { EndpointPhase::Draining };
                    self.endpoints.insert(Arc::new(state), phase)
                }
                None => continue,
            };
            for _ in 0..left.in_flight {
                let ticket = self.next_ticket(Arrival::default());
                self.endpoints.occupy(slot);
                grants.push(self.grant_of(slot, ticket));
            }
            if known.is_none() && !adds {
                self.endpoints.set_phase(slot, EndpointPhase::Gone);
            }
            // `Demand::Ready` may have been on its way when the older process stopped.
            match (phase, left.id.instance) {
                (EndpointPhase::Ready, Some(instance)) => {
                    let tier = self.tier_of(&left.id);
                    actions.signals.push(Signal::Ready { tier, instance });
                }
                (EndpointPhase::Draining, Some(instance)) if left.in_flight == 0 => {
                    let tier = self.tier_of(&left.id);
                    actions.signals.push(Signal::Drained { tier, instance });
                }
                _ => {}
            }
        }
        self.settle(now, &mut actions);
        (grants, actions)
    }

    /// Admission of a request of the older process.
    pub(crate) fn arrive_from(
        &mut self,
        wanted: Wanted,
        now: Instant,
        waiter: impl FnOnce() -> W,
    ) -> (CoreAdmission, Actions<W>) {
        let mut actions = self.begin(now);
        let arrival = Arrival {
            bytes: wanted.bytes,
            deadline: wanted.deadline,
            sticky: wanted.sticky,
            passive: wanted.passive,
        };
        self.arrived(&arrival);
        let mut ticket = self.next_ticket(arrival);
        ticket.queued = wanted.waited;
        let tried = wanted.tried.iter().filter_map(|(id, refused)| {
            let readiness_epoch = self.endpoints.record(self.find_id(id)?).readiness_epoch;
            let refused = *refused;
            Some(FailedAttempt {
                readiness_epoch,
                refused,
                tier: None,
            })
        });
        ticket.tried = tried.collect();
        let verdict = if !ticket.tried.is_empty() && self.is_hopeless(&ticket) {
            CoreAdmission::Rejected(Rejection::NoEndpoints)
        } else {
            self.admit(ticket, None, now, waiter, &mut actions)
        };
        self.settle(now, &mut actions);
        (verdict, actions)
    }
}

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

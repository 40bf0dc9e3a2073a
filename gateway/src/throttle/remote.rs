//! Two gateways share endpoints while one of them leaves: the core's part on both sides.
//!
//! The older gateway flips its throttlers: from then on every slot it has belongs to the newer one,
//! which counts it, and it gives out nothing by itself. Whoever waits in it still waits in its own
//! queue, in order and within its bounds, but for a slot that the newer one grants ([`News::Want`]);
//! a slot given back is the newer one's again ([`News::Done`]). So at every instant an endpoint has
//! no more in flight, both gateways together, than the newer one has counted.

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

/// Names an endpoint in both gateways.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId {
    /// Where it is.
    pub address: EndpointAddr,
    /// Which instance it is, if the control plane started it.
    pub instance: Option<InstanceId>,
}

/// An endpoint as the older gateway leaves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointInUse {
    /// Which one.
    pub id: EndpointId,
    /// Where it is in its life.
    pub phase: EndpointPhase,
    /// Requests of the older gateway that it holds.
    pub in_flight: u32,
}

/// A request of the older gateway that wants a slot.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// As in [`Arrival`].
    pub bytes: u64,
    /// As in [`Arrival`].
    pub deadline: Option<Instant>,
    /// As in [`Arrival`].
    pub sticky: Option<StickyKey>,
    /// How long it has waited already.
    pub waited: Duration,
    /// Endpoints that failed it, and whether they refused the connection.
    pub tried: Vec<(EndpointId, bool)>,
}

/// What a throttler that was flipped tells the newer gateway.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// Somebody waits for a slot; answered once, unless withdrawn.
    Want {
        /// Names it in this throttler.
        want: u64,
        /// What for.
        wanted: Wanted,
    },
    /// Nobody waits for that one any more. A grant that crosses it is used or given back.
    Withdraw {
        /// Which.
        want: u64,
    },
    /// A slot is free again.
    Done {
        /// Whose.
        endpoint: EndpointId,
    },
    /// What an attempt told of an endpoint.
    Report {
        /// Which.
        endpoint: EndpointId,
        /// What.
        outcome: Outcome,
    },
}

/// Who waits for what the newer gateway was asked for: exactly one want stands for each waiter.
#[derive(Debug, Default)]
pub(crate) struct Remote {
    /// By want, who waits (by order of arrival).
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

    /// What was granted for `want` goes to `seq`. Where that is somebody else, the want of theirs
    /// stands for the one who goes on waiting, or for nobody.
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

/// The older gateway's side.
impl<W> Core<W> {
    /// Leaves the slots to the newer gateway. Returns the endpoints with what is in flight on them.
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

    /// The newer gateway came to nothing before it granted anything: all is as it was.
    pub(crate) fn flip_back(&mut self, now: Instant) -> Actions<W> {
        let mut actions = self.begin(now);
        if self.remote.take().is_some() {
            self.endpoints.hold(false);
            actions.wake_probes = true;
        }
        self.settle(now, &mut actions);
        actions
    }

    /// The newer gateway is gone after it took over: what is in flight ends by itself, and nobody
    /// gets anything any more.
    pub(crate) fn abandon(&mut self, now: Instant) -> Actions<W> {
        if self.remote.take().is_none() {
            return self.begin(now);
        }
        self.close(Closing::Draining, now)
    }

    /// The newer gateway gives a slot out. It goes to the oldest waiter that is not particular about
    /// endpoints (sticky, or failed by this one), unless it was asked for by one that is sticky.
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
            let state = EndpointState::new(id.address.clone(), id.instance);
            self.endpoints.insert(Arc::new(state), EndpointPhase::Ready)
        });
        self.endpoints.occupy(slot);
        self.resolve(entry, now, &mut actions, |core, ticket| {
            Ok(core.grant_of(slot, ticket))
        });
        self.settle(now, &mut actions);
        actions
    }

    /// The newer gateway has no slot for whoever this stands for.
    pub(crate) fn refused(&mut self, want: u64, rejection: Rejection, now: Instant) -> Actions<W> {
        let mut actions = self.begin(now);
        let seq = self.remote.as_mut().and_then(|remote| remote.forget(want));
        if let Some(entry) = seq.and_then(|seq| self.queue.remove(seq)) {
            self.resolve(entry, now, &mut actions, |_, _| Err(rejection));
        }
        self.settle(now, &mut actions);
        actions
    }

    /// Asks for a slot for somebody who is about to wait.
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
            waited: ticket.queued,
            tried: tried.collect(),
        };
        let want = remote.next;
        remote.next += 1;
        remote.stand_for(want, ticket.seq);
        remote.tell(News::Want { want, wanted });
    }

    /// Somebody does not wait any more.
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

    fn find_id(&self, id: &EndpointId) -> Option<u32> {
        let mut known = self.endpoints.iter();
        let found = known.find(|(_, slot)| slot.phase != EndpointPhase::Gone && slot.is(id));
        found.map(|(i, _)| i)
    }
}

/// The newer gateway's side.
impl<W> Core<W> {
    /// Takes over endpoints with what the older gateway has in flight on them, above the limit if
    /// need be: that is a fact, not a wish. Configured addresses that this one does not know are used
    /// only where names are still being looked up (`may_add`); what is in flight on them counts.
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
                // Whether it fails this gateway too is for this gateway to find out.
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
                    let state = EndpointState::new(left.id.address.clone(), left.id.instance);
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
            // The news of it may have been on its way when the older one was stopped.
            match (phase, left.id.instance) {
                (EndpointPhase::Ready, Some(instance)) => actions.signals.push(Signal::Ready(instance)),
                (EndpointPhase::Draining, Some(instance)) if left.in_flight == 0 => {
                    actions.signals.push(Signal::Drained(instance));
                }
                _ => {}
            }
        }
        self.settle(now, &mut actions);
        (grants, actions)
    }

    /// A request of the older gateway wants a slot.
    pub(crate) fn arrive_from(
        &mut self,
        wanted: Wanted,
        now: Instant,
        waiter: impl FnOnce() -> W,
    ) -> (CoreAdmission, Actions<W>) {
        let mut actions = self.begin(now);
        self.load.arrived();
        let mut ticket = self.next_ticket(Arrival {
            bytes: wanted.bytes,
            deadline: wanted.deadline,
            sticky: wanted.sticky,
        });
        ticket.queued = wanted.waited;
        let tried = wanted.tried.iter().filter_map(|(id, refused)| {
            let readiness_epoch = self.endpoints.record(self.find_id(id)?).readiness_epoch;
            let refused = *refused;
            Some(FailedAttempt {
                readiness_epoch,
                refused,
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
        self.state.instance == id.instance && self.state.address == id.address
    }
}

impl EndpointState {
    /// Its name in other gateways.
    pub fn id(&self) -> EndpointId {
        EndpointId {
            address: self.address.clone(),
            instance: self.instance,
        }
    }
}

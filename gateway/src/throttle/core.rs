//! The sans-IO core of a throttler: a state machine that takes events and returns actions.
//!
//! Every event ends in `settle`, which restores the invariants: no waiter while a slot is free (unless paused), an ejected
//! endpoint only while another one is ready, demand sent when a request waits and no endpoint is ready or
//! starting. Events about endpoints and from the control plane are in `endpoint_events`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_model::{ActivationFailure, Load, QueueLimits};

use super::actions::{Actions, CoreAdmission, Grant, NeedsEviction, Resolved};
use super::arrival::{Arrival, FailedAttempt, Outcome, QueueTicket};
use super::budget::{Account, EnterResult, Reservation};
use super::endpoint::EndpointPhase;
use super::endpoint_set::EndpointSet;
use super::lease::{LeaseMessage, Leases, Owner};
use super::load::LoadMeter;
use super::queue::{Queue, QueuedRequest};
use super::rejection::{Closing, Rejection};
use super::tiers::{TierLimits, TierState};
use super::visits::Visits;

/// The least `Retry-After`.
pub(super) const MIN_RETRY: Duration = Duration::from_secs(1);

/// Where endpoints come from when a revision has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Supply {
    /// The control plane starts instances on demand.
    Activated,
    /// Names are being resolved for the first time: requests wait for the outcome.
    Resolving,
    /// Nowhere: without a configured address, requests are rejected.
    Fixed,
}

/// Limits of a throttler; all of them may change while it runs. Concurrency and supply are those of a revision without
/// tiers: each tier has its own ([`TierLimits`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThrottleLimits {
    /// Requests one endpoint may hold at once; `None` is no limit.
    pub concurrency: Option<u32>,
    /// Bounds of the queue.
    pub queue: QueueLimits,
    /// The longest an activation may take.
    pub start_timeout: Duration,
    /// Where endpoints come from.
    pub supply: Supply,
}

#[derive(Debug)]
pub(crate) enum Activation {
    Idle,
    /// Demand was sent and neither success nor failure came back.
    Outstanding {
        since: Instant,
        /// The endpoint that was to come is gone, and requests still wait: demand is sent again.
        lost: bool,
    },
    /// The activation failed; arrivals are rejected with the failure until then.
    Failed {
        failure: Arc<ActivationFailure>,
        until: Instant,
    },
}

/// Capacity, in-flight counts and queue of one revision. `W` is the shell's handle of a waiter.
#[derive(Debug)]
pub(crate) struct Core<W> {
    pub(super) limits: ThrottleLimits,
    pub(super) endpoints: EndpointSet,
    pub(super) queue: Queue<W>,
    /// At least one: that of a revision without tiers.
    pub(super) tiers: Vec<TierState>,
    /// A revision that needs this one runs: it is not scaled to zero.
    pub(super) needed: bool,
    /// The service is paused: every arrival waits, and no slot is given out.
    pub(super) paused: bool,
    /// Requests that waited for a resume go on waiting for the end of a back-off.
    pub(super) patient: bool,
    pub(super) closed: Option<Closing>,
    /// Set where slots are leased to other processes, or by them.
    pub(super) leases: Option<Box<Leases>>,
    /// Which of the owners is asked first.
    pub(super) first_owner: u32,
    pub(super) load: LoadMeter,
    /// Passive requests in flight.
    pub(super) passive_in_flight: u32,
    /// What waiting pages expect.
    pub(super) visits: Visits,
    next_seq: u64,
}

impl<W> Core<W> {
    /// A core without endpoints, of a revision without tiers.
    #[cfg(test)]
    pub(crate) fn new(limits: ThrottleLimits, account: Account, seed: u64, now: Instant) -> Self {
        Self::with_tiers(limits, &[TierLimits::of(&limits)], account, seed, now)
    }

    /// A core without endpoints, with limits for each tier, of which there is at least one.
    pub(crate) fn with_tiers(
        limits: ThrottleLimits,
        tiers: &[TierLimits],
        account: Account,
        seed: u64,
        now: Instant,
    ) -> Self {
        let concurrency: Vec<_> = tiers.iter().map(|tier| tier.concurrency).collect();
        Self {
            endpoints: EndpointSet::new(&concurrency, seed),
            limits,
            queue: Queue::new(account),
            tiers: tiers
                .iter()
                .map(|tier| TierState::new(tier.supply, now))
                .collect(),
            needed: false,
            paused: false,
            patient: false,
            closed: None,
            leases: None,
            #[allow(clippy::cast_possible_truncation)] // Any will do.
            first_owner: seed as u32,
            load: LoadMeter::new(now),
            passive_in_flight: 0,
            visits: Visits::default(),
            next_seq: 0,
        }
    }

    /// A request asks for a slot. `waiter` is called only if the request has to wait.
    pub(crate) fn arrive(
        &mut self,
        arrival: Arrival,
        now: Instant,
        waiter: impl FnOnce() -> W,
    ) -> (CoreAdmission, Actions<W>) {
        if let Some(grant) = self.arrive_warm(arrival, now) {
            return (CoreAdmission::Granted(grant), Actions::default());
        }
        let mut actions = self.begin(now);
        self.arrived(&arrival);
        let ticket = self.next_ticket(arrival);
        let verdict = self.admit(ticket, None, now, waiter, &mut actions);
        if !arrival.passive && !matches!(verdict, CoreAdmission::Rejected(_)) {
            self.start_later_tiers(now, &mut actions);
        }
        self.settle(now, &mut actions);
        (verdict, actions)
    }

    /// The warm path of [`arrive`](Self::arrive): a slot is free, nobody waits and no timer is due. `None`
    /// changes nothing: the request needs the whole `arrive`.
    ///
    /// Nearly every request of a busy gateway takes it and [`release_warm`](Self::release_warm), under its
    /// revision's lock. `arrive` and `release` try them first, so the simulations cover them, too.
    pub(crate) fn arrive_warm(&mut self, arrival: Arrival, now: Instant) -> Option<Grant> {
        let late = arrival.deadline.is_some_and(|d| d <= now);
        if late || !self.is_calm(now) || self.closed.is_some() || !self.endpoints.has_open() {
            return None;
        }
        self.load.advance(self.held(), now);
        self.arrived(&arrival);
        let ticket = self.next_ticket(arrival);
        let slot = self.endpoints.pick(&ticket).expect("one is open");
        let grant = self.grant(slot, ticket);
        #[cfg(test)]
        self.check();
        Some(grant)
    }

    /// The warm path of [`release`](Self::release): no request waits for the slot and the endpoint stays.
    /// `false` changes nothing: the whole `release` is needed.
    pub(crate) fn release_warm(&mut self, slot: u32, passive: bool, now: Instant) -> bool {
        let endpoint = self.endpoints.record(slot);
        if endpoint.phase != EndpointPhase::Ready || !endpoint.is_mine() || !self.is_calm(now) {
            return false;
        }
        self.load.advance(self.held(), now);
        self.passive_in_flight -= u32::from(passive);
        self.tiers[0].passive_in_flight -= u32::from(passive);
        self.endpoints.release(slot);
        #[cfg(test)]
        self.check();
        true
    }

    /// Whether no request waits, here or in another process, and no ejection or lease is over: no other work is due at this
    /// time. Never with tiers, of which one may have to be started.
    fn is_calm(&self, now: Instant) -> bool {
        let due = self.endpoints.eject_due().is_some_and(|due| due <= now);
        self.queue.is_empty()
            && !due
            && self.tiers.len() == 1
            && self
                .leases
                .as_ref()
                .is_none_or(|leases| leases.is_calm() && !leases.is_over(now))
    }

    /// Continues an admission that needed an eviction, with the space that was reserved meanwhile.
    pub(crate) fn resume(
        &mut self,
        ticket: QueueTicket,
        reservation: Reservation,
        now: Instant,
        waiter: impl FnOnce() -> W,
    ) -> (CoreAdmission, Actions<W>) {
        let mut actions = self.begin(now);
        // A first attempt waits even where there is nothing yet.
        let verdict = if !ticket.tried.is_empty() && self.is_hopeless(&ticket) {
            CoreAdmission::Rejected(Rejection::NoEndpoints)
        } else {
            self.admit(ticket, Some(reservation), now, waiter, &mut actions)
        };
        self.settle(now, &mut actions);
        (verdict, actions)
    }

    /// Evicts the youngest waiter in favour of an arrival at another revision, if the arrival still needs the
    /// space and the eviction is still fair.
    pub(crate) fn evict_for(&mut self, reservation: &mut Reservation, now: Instant) -> Actions<W> {
        let mut actions = self.begin(now);
        if let Some(entry) = self.queue.evict_youngest(reservation) {
            let retry_after = self.retry_after(now);
            self.resolve(entry, now, &mut actions, |_, _| {
                Err(Rejection::Overloaded { retry_after })
            });
        }
        self.settle(now, &mut actions);
        actions
    }

    /// Gives back the slot of a request that has ended; `passive` is its arrival's.
    pub(crate) fn release(&mut self, slot: u32, passive: bool, now: Instant) -> Actions<W> {
        if self.release_warm(slot, passive, now) {
            return Actions::default();
        }
        let mut actions = self.begin(now);
        self.give_back(slot, passive, &mut actions);
        self.settle(now, &mut actions);
        actions
    }

    /// Fails over: gives the slot back and asks for another one at the request's place in the order of arrival.
    /// `refused` means that no connection could be made.
    pub(crate) fn failover(
        &mut self,
        (slot, readiness_epoch, refused): (u32, u64, bool),
        mut ticket: QueueTicket,
        now: Instant,
        waiter: impl FnOnce() -> W,
    ) -> (CoreAdmission, Actions<W>) {
        let mut actions = self.begin(now);
        self.give_back(slot, ticket.arrival.passive, &mut actions);
        // A leased slot of this endpoint is not what this request needs: the owner may lease one of another.
        self.return_idle(slot, 1);
        ticket.tried.push(FailedAttempt {
            readiness_epoch,
            refused,
            tier: None,
        });
        // Older waiters go first even here; younger ones wait until this request has picked.
        if self.queue.oldest().is_some_and(|oldest| oldest.seq < ticket.seq) {
            self.settle(now, &mut actions);
        }
        let verdict = if self.closed == Some(Closing::Removed) {
            // The revision's replacement serves the request rather than the endpoints that are left of the
            // revision.
            CoreAdmission::Rejected(Rejection::Removed)
        } else if self.is_hopeless(&ticket) {
            CoreAdmission::Rejected(Rejection::NoEndpoints)
        } else {
            self.admit(ticket, None, now, waiter, &mut actions)
        };
        self.settle(now, &mut actions);
        (verdict, actions)
    }

    /// Removes a waiter whose client is gone. Returns the shell's handle, to be dropped outside the lock;
    /// `None` when the waiter was resolved before.
    pub(crate) fn cancel(&mut self, seq: u64, now: Instant) -> Option<W> {
        self.advance_load(now);
        let entry = self.queue.remove(seq)?;
        self.settle_leases(now);
        Some(entry.waiter)
    }

    /// Records the outcome of an attempt. `readiness_epoch` is the grant's: an outcome of an earlier readiness
    /// changes nothing.
    pub(crate) fn report(
        &mut self,
        slot: u32,
        readiness_epoch: u64,
        outcome: Outcome,
        now: Instant,
    ) -> Actions<W> {
        let mut actions = self.begin(now);
        if let Owner::Peer(owner) = self.endpoints.record(slot).owner {
            // Its owner judges the endpoint.
            let endpoint = self.endpoints.record(slot).id();
            self.leases()
                .post(owner, LeaseMessage::Report { endpoint, outcome });
            return actions;
        }
        // An earlier outcome may have ejected the endpoint already.
        if self.endpoints.record(slot).readiness_epoch == readiness_epoch {
            self.judge(slot, outcome, now, &mut actions);
        }
        self.settle(now, &mut actions);
        actions
    }

    /// Takes an outcome as a sign of a ready endpoint's health.
    pub(super) fn judge(&mut self, slot: u32, outcome: Outcome, now: Instant, actions: &mut Actions<W>) {
        let endpoint = self.endpoints.record_mut(slot);
        let broke = matches!(outcome, Outcome::ConnectFailed | Outcome::Broke);
        if endpoint.phase != EndpointPhase::Ready {
            return;
        }
        if broke && endpoint.state.is_unproven() {
            self.refute(slot);
        } else if endpoint.with_outlier(|detector| detector.record(outcome)) {
            let refused = outcome == Outcome::ConnectFailed;
            self.eject(slot, refused, false, now, actions);
        }
    }

    /// Timer event: rejects waiters whose time is over and ends ejections.
    pub(crate) fn expire(&mut self, now: Instant) -> Actions<W> {
        let mut actions = self.begin(now);
        self.settle(now, &mut actions);
        actions
    }

    /// When [`expire`](Self::expire) has to be called at the latest. `None` while no request waits and no leased slot is
    /// free: all other deadlines are handled by the next event.
    pub(crate) fn next_timer(&self) -> Option<Instant> {
        let expiry = self.queue.next_expiry();
        let eject = expiry.and_then(|_| self.endpoints.eject_due());
        let linger = self.leases.as_ref().and_then(|leases| leases.linger_due);
        [expiry, eject, self.retry_due(), linger]
            .into_iter()
            .flatten()
            .min()
    }

    pub(crate) fn has_waiters(&self) -> bool {
        !self.queue.is_empty()
    }

    /// The load since the last [`sample`](Self::sample).
    pub(crate) fn peek(&mut self, now: Instant) -> Load {
        self.load.advance(self.held(), now);
        let (average_concurrency, requests) = self.load.read(self.held());
        let counts = self.endpoints.counts();
        Load {
            average_concurrency,
            requests,
            in_flight: self.endpoints.in_flight() + self.all_older_in_flight(),
            queued: self.all_waiting(),
            passive: self.passive_in_flight
                + u32::try_from(self.queue.passive()).unwrap_or(u32::MAX)
                + self.older_passive(),
            expected: counts.ready == 0 && self.visits.is_expected(now),
            keep: self.visits.keep_left(now),
            typical_start: self.typical_start(),
            needed: self.needed,
            paused: self.paused,
            ready: counts.ready,
            starting: counts.starting + counts.ejected,
            draining: counts.draining,
        }
    }

    /// The load since the last call.
    pub(crate) fn sample(&mut self, now: Instant) -> Load {
        let load = self.peek(now);
        self.load.reset();
        load
    }

    /// Starts an event: integrates the load up to now and handles deadlines that are over.
    pub(super) fn begin(&mut self, now: Instant) -> Actions<W> {
        self.advance_load(now);
        let mut actions = Actions::default();
        if self.leases.as_ref().is_some_and(|leases| leases.is_over(now)) {
            self.lapse_due(now);
        }
        let ejection_over = self.endpoints.eject_due().is_some_and(|due| due <= now);
        let waiter_over = self.queue.next_expiry().is_some_and(|due| due <= now);
        if ejection_over || waiter_over {
            self.expire_waiters(now, &mut actions);
            self.settle(now, &mut actions);
        }
        actions
    }

    /// Restores the invariants after any change.
    pub(super) fn settle(&mut self, now: Instant, actions: &mut Actions<W>) {
        self.reinstate(now, actions);
        self.patient &= self.all_waiting() > 0;
        loop {
            if let Some((peer, since)) = self.next_holder()
                && self.waiting_since().is_none_or(|own| since < own)
                && self.lend(peer)
            {
                continue;
            }
            let Some(entry) = self.next_admissible() else {
                break;
            };
            // No waiter's deadline is over: `begin` handled those.
            self.resolve(entry, now, actions, |core, ticket| {
                let slot = core.endpoints.pick(&ticket).expect("one is open");
                Ok(core.grant(slot, ticket))
            });
        }
        // What no waiter here can use.
        while let Some((peer, _)) = self.next_holder()
            && self.lend(peer)
        {}
        if self.queue.passive() as u64 + u64::from(self.older_passive()) > 0 && self.is_cold() {
            let retry_after = self.retry_after(now);
            self.reject_passive(now, actions, &Rejection::Dormant { retry_after });
        }
        if self.all_waiting() > 0 && !self.is_flipped() {
            self.start_for_waiters(now, actions);
            if self.endpoints.counts().live() == 0 && self.has_supply(&[Supply::Fixed]) {
                self.reject_all(now, actions, &Rejection::NoEndpoints);
            }
            self.reject_hopeless(now, actions);
        }
        self.settle_leases(now);
        debug_assert!(self.queue.len() == self.queue.spilled().len() || !self.endpoints.has_open());
        debug_assert!(self.closed.is_none() || self.queue.is_empty());
        #[cfg(test)]
        self.check();
    }

    /// Whether nothing is ready, and a start is what helps. Never during an upgrade in the older process, which does
    /// not know.
    pub(super) fn is_cold(&self) -> bool {
        self.is_startable() && self.endpoints.counts().ready == 0 && !self.is_flipped()
    }

    pub(super) fn arrived(&mut self, arrival: &Arrival) {
        if !arrival.passive {
            self.load.arrived();
            if self.tiers.len() > 1 {
                self.arrived_at_tiers();
            }
        }
    }

    /// The queue ticket of an arrival: its place in the order of arrival.
    pub(super) fn next_ticket(&mut self, arrival: Arrival) -> QueueTicket {
        let seq = self.next_seq;
        self.next_seq += 1;
        QueueTicket {
            seq,
            arrival,
            queued: Duration::ZERO,
            tried: Vec::new(),
        }
    }

    /// Requests in flight and queued that count as activity.
    pub(super) fn held(&self) -> u64 {
        let in_flight = self.endpoints.in_flight() - self.passive_in_flight;
        let own = u64::from(in_flight) + (self.queue.len() - self.queue.passive()) as u64;
        // Nearly always: this is read for every request.
        if self.leases.is_none() {
            return own;
        }
        own + u64::from(self.all_older_in_flight()) + u64::from(self.older_active())
    }

    /// Requests that wait, in an older process of an upgrade too.
    pub(super) fn all_waiting(&self) -> u32 {
        let own = u32::try_from(self.queue.len()).unwrap_or(u32::MAX);
        own.saturating_add(self.older_waiting())
    }

    /// As [`all_waiting`](Self::all_waiting), without passive requests.
    pub(super) fn all_active(&self) -> u32 {
        let own = u32::try_from(self.queue.len() - self.queue.passive()).unwrap_or(u32::MAX);
        own.saturating_add(self.older_active())
    }

    pub(super) fn admit(
        &mut self,
        ticket: QueueTicket,
        reservation: Option<Reservation>,
        now: Instant,
        waiter: impl FnOnce() -> W,
        actions: &mut Actions<W>,
    ) -> CoreAdmission {
        if ticket.arrival.deadline.is_some_and(|d| d <= now) {
            return CoreAdmission::Rejected(Rejection::DeadlineExceeded);
        }
        if self.closed == Some(Closing::Draining) {
            return CoreAdmission::Rejected(Rejection::Draining);
        }
        // While an endpoint is open no request waits, so this overtakes nobody.
        if let Some(slot) = self.endpoints.pick(&ticket) {
            return CoreAdmission::Granted(self.grant(slot, ticket));
        }
        if ticket.arrival.passive && self.closed.is_none() && self.is_cold() {
            let retry_after = self.retry_after(now);
            return CoreAdmission::Rejected(Rejection::Dormant { retry_after });
        }
        match self.may_wait(ticket.arrival.bytes, reservation, now) {
            Err(rejection) => return CoreAdmission::Rejected(rejection),
            Ok(EnterResult::Full) => {
                let retry_after = self.retry_after(now);
                return CoreAdmission::Rejected(Rejection::Overloaded { retry_after });
            }
            Ok(EnterResult::NeedsEviction(reservation, victim)) => {
                return CoreAdmission::NeedsEviction(Box::new(NeedsEviction {
                    ticket,
                    reservation,
                    victim,
                }));
            }
            Ok(EnterResult::Taken) => {}
        }
        let seq = ticket.seq;
        let expires = self.expiry(ticket.queued, ticket.arrival.deadline, now);
        self.queue.push(waiter(), ticket, expires, now);
        actions.wake_probes |= self.queue.len() == 1 && self.endpoints.counts().starting > 0;
        CoreAdmission::Queued { seq }
    }

    pub(super) fn grant(&mut self, slot: u32, ticket: QueueTicket) -> Grant {
        self.endpoints.acquire(slot);
        self.grant_of(slot, ticket)
    }

    /// The grant of a slot that is taken already.
    pub(super) fn grant_of(&mut self, slot: u32, ticket: QueueTicket) -> Grant {
        self.passive_in_flight += u32::from(ticket.arrival.passive);
        let endpoint = self.endpoints.record(slot);
        if ticket.arrival.passive {
            self.tiers[usize::from(endpoint.tier)].passive_in_flight += 1;
        }
        Grant {
            endpoint: Arc::clone(&endpoint.state),
            slot,
            readiness_epoch: endpoint.readiness_epoch,
            ticket,
        }
    }

    pub(super) fn give_back(&mut self, slot: u32, passive: bool, actions: &mut Actions<W>) {
        self.passive_in_flight -= u32::from(passive);
        let endpoint = self.endpoints.record(slot);
        self.tiers[usize::from(endpoint.tier)].passive_in_flight -= u32::from(passive);
        if endpoint.phase == EndpointPhase::Draining && endpoint.busy() == 1 {
            actions.signals.extend(endpoint.drained());
        }
        let returns = !endpoint.is_mine() && self.goes_back(slot);
        self.endpoints.release(slot);
        if returns {
            self.return_idle(slot, 1);
        }
    }

    pub(super) fn resolve(
        &mut self,
        entry: QueuedRequest<W>,
        now: Instant,
        actions: &mut Actions<W>,
        decide: impl FnOnce(&mut Self, QueueTicket) -> Result<Grant, Rejection>,
    ) {
        let (waiter, ticket) = entry.into_parts(now);
        let waited = ticket.queued;
        let verdict = decide(self, ticket);
        actions.resolved.push(Resolved {
            waiter,
            waited,
            verdict,
        });
    }

    #[cfg(test)]
    pub(super) fn check(&self) {
        self.endpoints.check();
        self.queue.check();
        let counts = self.endpoints.counts();
        assert!(counts.ejected == 0 || counts.ready > 0, "ejected, and none ready");
        assert!(self.passive_in_flight <= self.endpoints.in_flight());
        let passive = self.tiers.iter().map(|tier| tier.passive_in_flight);
        assert_eq!(passive.sum::<u32>(), self.passive_in_flight);
        assert!(
            self.queue.passive() == 0 || !self.is_cold(),
            "a passive request waits for a start"
        );
    }
}

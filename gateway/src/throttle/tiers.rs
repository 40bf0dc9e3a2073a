//! Tiers of one revision: which of them is started, what each of them has to do with the load, and where a request
//! goes that one of them answered with 429.
//!
//! One queue and one lock serve all tiers. The last tier with a ready endpoint serves; the earlier ones *rest*: they
//! finish what they have. Every tier that can be started is demanded by the first request that no later tier can
//! serve, so a failed start leaves the request to the other tiers. A request that a tier answered with 429 *spills*:
//! it is for any other tier from then on, whether that one serves or rests.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_model::{ActivationFailure, Load};

use super::actions::{Actions, CoreAdmission};
use super::arrival::{FailedAttempt, QueueTicket};
use super::core::{Activation, Core, MIN_RETRY, Supply, ThrottleLimits};
use super::endpoint_set::bit;
use super::load::LoadMeter;
use super::queue::QueuedRequest;
use super::rejection::Rejection;
use super::start_timeline::CurrentStart;

/// Most waiters for another tier than one that answered 429: every event looks at each of them. One more 429 goes to
/// its client.
pub(super) const MAX_SPILLED: usize = 64;

/// Limits of one tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TierLimits {
    /// Requests one endpoint may hold at once; `None` is no limit.
    pub concurrency: Option<u32>,
    /// Where endpoints come from.
    pub supply: Supply,
}

impl TierLimits {
    /// The limits of a revision without tiers, as its only one.
    pub(super) fn of(limits: &ThrottleLimits) -> Self {
        Self {
            concurrency: limits.concurrency,
            supply: limits.supply,
        }
    }
}

/// The state of one tier, besides its endpoints.
#[derive(Debug)]
pub(crate) struct TierState {
    pub(super) supply: Supply,
    pub(super) activation: Activation,
    /// Duration of recent starts: a moving average, for `Retry-After`, waiting pages and schedules.
    pub(super) start_estimate: Option<Duration>,
    pub(super) current_start: CurrentStart,
    /// Passive requests in flight.
    pub(super) passive_in_flight: u32,
    /// The load that the tier is scaled by; unused where it is the revision's.
    load: LoadMeter,
}

impl TierState {
    pub(super) fn new(supply: Supply, now: Instant) -> Self {
        Self {
            supply,
            activation: Activation::Idle,
            start_estimate: None,
            current_start: CurrentStart::default(),
            passive_in_flight: 0,
            load: LoadMeter::new(now),
        }
    }

    /// Records the duration of a start.
    pub(super) fn start_took(&mut self, took: Duration) {
        let before = self.start_estimate.unwrap_or(took);
        self.start_estimate = Some((before * 7 + took * 3) / 10);
    }

    /// The average duration of an activation, less the time the present one has taken.
    pub(super) fn start_left(&self, now: Instant) -> Option<Duration> {
        let estimate = self.start_estimate?;
        Some(match self.activation {
            Activation::Outstanding { since, .. } => estimate.saturating_sub(now.duration_since(since)),
            _ => estimate,
        })
    }

    /// The failure of the last start, while its back-off lasts.
    fn failure(&self, now: Instant) -> Option<(&Arc<ActivationFailure>, Instant)> {
        match &self.activation {
            Activation::Failed { failure, until } if now < *until => Some((failure, *until)),
            _ => None,
        }
    }
}

impl<W> Core<W> {
    /// Whether something can be started.
    pub(super) fn is_startable(&self) -> bool {
        self.tiers.iter().any(|tier| tier.supply == Supply::Activated)
    }

    /// Whether every tier has one of these supplies.
    pub(super) fn has_supply(&self, supplies: &[Supply]) -> bool {
        self.tiers.iter().all(|tier| supplies.contains(&tier.supply))
    }

    /// The failure that arrivals are rejected with: every tier that can be started failed, and its back-off lasts;
    /// the failure with the shortest one.
    pub(super) fn failed_start(&self, now: Instant) -> Option<(&Arc<ActivationFailure>, Instant)> {
        let mut first: Option<(&Arc<ActivationFailure>, Instant)> = None;
        for (index, tier) in self.tiers.iter().enumerate() {
            if tier.supply == Supply::Activated {
                let failed = tier.failure(now)?;
                first = first.filter(|first| first.1 <= failed.1).or(Some(failed));
            } else if tier.supply == Supply::Resolving || self.endpoints.counts_of(index).live() > 0 {
                return None;
            }
        }
        first
    }

    /// What starts of the last tier that was started took lately.
    pub(super) fn typical_start(&self) -> Option<Duration> {
        self.tiers.iter().rev().find_map(|tier| tier.start_estimate)
    }

    /// The tier whose start requests wait for at zero.
    pub(super) fn starting_tier(&self, now: Instant) -> &TierState {
        let startable = || self.tiers.iter().filter(|tier| tier.supply == Supply::Activated);
        let starting = startable().find(|tier| tier.failure(now).is_none());
        starting.or_else(|| startable().next()).unwrap_or(&self.tiers[0])
    }

    /// Whether another tier than this one may still serve, whose start failed.
    pub(super) fn is_hope_elsewhere(&self, failed: u8, now: Instant) -> bool {
        self.is_hope_outside(bit(failed.into()), now)
    }

    /// Whether a tier outside of this set serves, or may yet.
    fn is_hope_outside(&self, refused: u8, now: Instant) -> bool {
        let mut tiers = self.tiers.iter().enumerate();
        tiers.any(|(index, tier)| {
            let counts = self.endpoints.counts_of(index);
            let may_come = match tier.supply {
                Supply::Activated => tier.failure(now).is_none(),
                Supply::Resolving => true,
                Supply::Fixed => counts.live() > 0,
            };
            refused & bit(index) == 0 && (counts.ready > 0 || may_come)
        })
    }

    /// Whether a tier outside of this set is ready.
    fn is_ready_outside(&self, refused: u8) -> bool {
        (0..self.tiers.len()).any(|tier| refused & bit(tier) == 0 && self.endpoints.counts_of(tier).ready > 0)
    }

    /// Starts every tier that no later one stands for.
    pub(super) fn start_wanted_tiers(&mut self, now: Instant, actions: &mut Actions<W>) {
        self.start_outside(0, now, actions);
    }

    /// The first request starts what is not there, although a tier before it may serve the request.
    pub(super) fn start_later_tiers(&mut self, now: Instant, actions: &mut Actions<W>) {
        if self.tiers.len() > 1 && !self.is_flipped() && self.closed.is_none() {
            let before = actions.signals.len();
            self.start_wanted_tiers(now, actions);
            // What is started elsewhere is probed only while somebody waits for it.
            actions.wake_probes |= actions.signals.len() > before;
        }
    }

    /// Whether a request waits for a slot, or for this tier although another one serves it.
    pub(crate) fn is_awaited(&self, tier: u8) -> bool {
        let activation = &self.tiers[usize::from(tier)].activation;
        let tiered = self.tiers.len() > 1;
        self.all_waiting() > 0
            || self.is_awaited_elsewhere()
            || (tiered && matches!(activation, Activation::Outstanding { .. }))
    }

    /// Endpoints that start.
    pub(crate) fn starting(&self) -> u32 {
        self.endpoints.counts().starting
    }

    /// Starts what the waiters wait for.
    pub(super) fn start_for_waiters(&mut self, now: Instant, actions: &mut Actions<W>) {
        if self.all_active() > 0 {
            self.start_wanted_tiers(now, actions);
        }
        let spilled: Vec<u64> = self.queue.spilled().iter().copied().collect();
        for seq in spilled {
            let Some(ticket) = self.queue.ticket(seq).filter(|ticket| !ticket.arrival.passive) else {
                continue;
            };
            self.start_outside(ticket.refused_tiers(), now, actions);
        }
    }

    /// Starts the tiers outside of this set that are not ready, and that no later one outside of it stands for.
    fn start_outside(&mut self, refused: u8, now: Instant, actions: &mut Actions<W>) {
        for tier in (0..self.tiers.len()).rev() {
            if refused & bit(tier) != 0 {
                continue;
            }
            if self.endpoints.counts_of(tier).ready > 0 {
                return;
            }
            if self.tiers[tier].supply == Supply::Activated {
                self.activate(u8::try_from(tier).expect("a handful of tiers"), now, actions);
            }
        }
    }

    /// Removes the oldest waiter that a free slot is for. Waiters for another tier do not hold back those that any
    /// tier may serve, nor the other way round.
    pub(super) fn next_admissible(&mut self) -> Option<QueuedRequest<W>> {
        if self.queue.spilled().is_empty() {
            return if self.endpoints.has_open() {
                self.queue.pop()
            } else {
                None
            };
        }
        let takes = |seq: &&u64| {
            let ticket = self.queue.ticket(**seq);
            ticket.is_some_and(|ticket| self.endpoints.pick_outside(ticket.refused_tiers()).is_some())
        };
        let spilled = self.queue.spilled().iter().find(takes).copied();
        let open = self.endpoints.has_open();
        let other = open.then(|| self.queue.oldest_unspilled()).flatten();
        let seq = [spilled, other].into_iter().flatten().min()?;
        self.queue.remove(seq)
    }

    /// Rejects waiters for another tier that none can serve any more.
    pub(super) fn reject_spilled(&mut self, now: Instant, actions: &mut Actions<W>, rejection: &Rejection) {
        let spilled = self.queue.spilled().iter().copied();
        let hopeless = spilled.filter(|seq| {
            let refused = self.queue.ticket(*seq).map_or(0, QueueTicket::refused_tiers);
            !self.is_hope_outside(refused, now)
        });
        for seq in hopeless.collect::<Vec<_>>() {
            if let Some(entry) = self.queue.remove(seq) {
                self.resolve(entry, now, actions, |_, _| Err(rejection.clone()));
            }
        }
    }

    /// Rejects all waiters where the tier that served them is gone, and every start failed: they came when there was
    /// hope.
    pub(super) fn reject_hopeless(&mut self, now: Instant, actions: &mut Actions<W>) {
        if self.tiers.len() == 1 || self.endpoints.counts().ready > 0 || self.paused || self.patient {
            return;
        }
        if let Some((failure, until)) = self.failed_start(now) {
            let rejection = Rejection::ActivationFailed {
                failure: Arc::clone(failure),
                retry_after: until.duration_since(now).max(MIN_RETRY),
            };
            self.reject_all(now, actions, &rejection);
        }
    }

    /// Whether a request that was answered with 429 at this slot may go to another tier, or wait for one.
    pub(crate) fn may_spill(&self, slot: u32, ticket: &QueueTicket, now: Instant) -> bool {
        let refused = ticket.refused_tiers() | bit(self.endpoints.record(slot).tier.into());
        self.tiers.len() > 1
            && !self.is_flipped()
            && self.closed.is_none()
            && self.queue.spilled().len() < MAX_SPILLED
            && if ticket.arrival.passive {
                // A passive request starts nothing, and waits for no start.
                self.is_ready_outside(refused)
            } else {
                self.is_hope_outside(refused, now)
            }
    }

    /// Gives the slot back of a request that its tier answered with 429, and asks for one of another tier, at the
    /// request's place in the order of arrival.
    pub(crate) fn spill(
        &mut self,
        (slot, readiness_epoch): (u32, u64),
        mut ticket: QueueTicket,
        now: Instant,
        waiter: impl FnOnce() -> W,
    ) -> (CoreAdmission, Actions<W>) {
        let mut actions = self.begin(now);
        let tier = Some(self.endpoints.record(slot).tier);
        self.give_back(slot, ticket.arrival.passive, &mut actions);
        ticket.tried.push(FailedAttempt {
            readiness_epoch,
            refused: false,
            tier,
        });
        // Older waiters go first even here.
        if self.queue.oldest().is_some_and(|oldest| oldest.seq < ticket.seq) {
            self.settle(now, &mut actions);
        }
        let verdict = self.admit(ticket, None, now, waiter, &mut actions);
        self.settle(now, &mut actions);
        (verdict, actions)
    }

    /// Whether a tier may be scaled to zero: nothing that counts is in flight on it, and unless it rests, nothing
    /// waits, no other revision needs this one, and the service is not paused.
    pub(super) fn is_tier_idle(&self, tier: usize) -> bool {
        let active = self.endpoints.in_flight_of(tier) - self.tiers[tier].passive_in_flight;
        let active = active + self.older_in_flight(tier);
        let waiting = self.all_active();
        active == 0 && (self.endpoints.rests(tier) || (waiting == 0 && !self.is_kept()))
    }

    /// Integrates the load up to now: the revision's, and that of each tier that is scaled by its own.
    pub(super) fn advance_load(&mut self, now: Instant) {
        self.load.advance(self.held(), now);
        if self.tiers.len() > 1 {
            for tier in 0..self.tiers.len() {
                let held = u64::from(self.tier_held(tier));
                self.tiers[tier].load.advance(held, now);
            }
        }
    }

    /// Counts an arrival at every tier that does not rest.
    pub(super) fn arrived_at_tiers(&mut self) {
        for tier in 0..self.tiers.len() {
            if !self.endpoints.rests(tier) {
                self.tiers[tier].load.arrived();
            }
        }
    }

    /// Requests that a tier is scaled by: its own in flight; unless it rests, those that wait; and while its start is
    /// under way, those that earlier tiers serve in its place.
    ///
    /// What is in flight on an earlier tier when this one is ready stays there, so that it is no load of this one: a
    /// WebSocket that the reserve finishes would keep the tier up for ever.
    fn tier_held(&self, tier: usize) -> u32 {
        let own = self.endpoints.in_flight_of(tier) - self.tiers[tier].passive_in_flight;
        let own = own + self.older_in_flight(tier);
        if self.endpoints.rests(tier) {
            return own;
        }
        let waiting = self.all_active();
        own.saturating_add(waiting)
            .saturating_add(self.in_its_place(tier))
    }

    /// Requests in flight on other tiers while this one's start is under way.
    fn in_its_place(&self, tier: usize) -> u32 {
        if !matches!(self.tiers[tier].activation, Activation::Outstanding { .. }) {
            return 0;
        }
        let all = self.endpoints.in_flight() - self.passive_in_flight + self.all_older_in_flight();
        let own = self.endpoints.in_flight_of(tier) - self.tiers[tier].passive_in_flight;
        all - own - self.older_in_flight(tier)
    }

    /// The load of a tier since the last call.
    pub(crate) fn sample_tier(&mut self, tier: u8, now: Instant) -> Load {
        if self.tiers.len() == 1 {
            return self.sample(now);
        }
        self.advance_load(now);
        let tier = usize::from(tier);
        let (held, rests, counts) = (
            u64::from(self.tier_held(tier)),
            self.endpoints.rests(tier),
            self.endpoints.counts_of(tier),
        );
        let (average_concurrency, requests) = self.tiers[tier].load.read(held);
        self.tiers[tier].load.reset();
        let number = |n: usize| {
            if rests {
                0
            } else {
                u32::try_from(n).unwrap_or(u32::MAX)
            }
        };
        Load {
            average_concurrency,
            requests,
            in_flight: self.endpoints.in_flight_of(tier)
                + self.older_in_flight(tier)
                + self.in_its_place(tier),
            queued: if rests { 0 } else { self.all_waiting() },
            passive: self.tiers[tier].passive_in_flight + number(self.queue.passive()),
            expected: self.endpoints.counts().ready == 0 && self.visits.is_expected(now),
            keep: if rests {
                Duration::ZERO
            } else {
                self.visits.keep_left(now)
            },
            typical_start: self.tiers[tier].start_estimate,
            needed: self.needed && !rests,
            paused: self.paused && !rests,
            ready: counts.ready,
            starting: counts.starting + counts.ejected,
            draining: counts.draining,
        }
    }

    /// A revision that needs this one runs, or is about to be started; or none does any more. A reserve that is always
    /// there is enough for it: then no other tier is held.
    pub(crate) fn hold(&mut self, needed: bool, now: Instant) -> Actions<W> {
        let actions = self.begin(now);
        self.needed = needed && self.has_supply(&[Supply::Activated]);
        actions
    }

    /// Backdates the load meters to the time since which nothing was held.
    pub(crate) fn idle_since(&mut self, since: Instant) {
        self.load.idle_since(since);
        for tier in &mut self.tiers {
            tier.load.idle_since(since);
        }
    }
}

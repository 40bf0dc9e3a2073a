//! Events of the core about endpoints: discovery, readiness, ejection, retirement, and activation by the
//! control plane.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_model::{ActivationFailure, EndpointAddr, InstanceId, LaunchStep, ServiceId};

use super::actions::{Actions, EjectCause, Signal};
use super::core::{Activation, Core, Supply, ThrottleLimits};
use super::endpoint::{EndpointPhase, EndpointState};
use super::endpoint_set::EndpointRecord;
use super::rejection::{Closing, Rejection};
use super::start_timeline::StartTimeline;
use super::tiers::TierLimits;

/// Difference between the configured addresses of a throttler and a new set of addresses.
#[derive(Debug)]
pub(crate) struct AddressChange {
    pub(crate) added: Vec<Arc<EndpointState>>,
    /// Keys of endpoints whose addresses are not in the new set.
    pub(crate) gone: Vec<u64>,
    tier: u8,
    version: u64,
}

impl AddressChange {
    /// The change from the present addresses to `addresses`, each taken at most once. Both are sorted, which takes linear
    /// time of lists in order, as those of a cluster are; hashing an address costs twenty comparisons.
    pub(crate) fn between(
        tier: u8,
        (before, version): &(Vec<Arc<EndpointState>>, u64),
        addresses: &[EndpointAddr],
    ) -> Self {
        let mut known: Vec<&EndpointAddr> = before.iter().map(|state| &state.address).collect();
        known.sort();
        let mut wanted: Vec<&EndpointAddr> = addresses.iter().collect();
        wanted.sort();
        wanted.dedup();
        let gone = before
            .iter()
            .filter(|state| wanted.binary_search(&&state.address).is_err());
        let fresh = wanted
            .iter()
            .filter(|address| known.binary_search(*address).is_err());
        let added = fresh.map(|address| Arc::new(EndpointState::in_tier(tier, (*address).clone(), None)));
        Self {
            added: added.collect(),
            gone: gone.map(|state| state.key).collect(),
            tier,
            version: *version,
        }
    }
}

impl<W> Core<W> {
    /// Applies other limits. A lowered concurrency stops no request in flight and admits none until an endpoint
    /// is below it; queue bounds apply to arrivals, and to waiters when their time is over.
    pub(crate) fn set_limits(&mut self, limits: ThrottleLimits, now: Instant) -> Actions<W> {
        self.set_tier_limits(limits, &[TierLimits::of(&limits)], now)
    }

    /// As [`set_limits`](Self::set_limits), with limits for each tier.
    pub(crate) fn set_tier_limits(
        &mut self,
        limits: ThrottleLimits,
        tiers: &[TierLimits],
        now: Instant,
    ) -> Actions<W> {
        let mut actions = self.begin(now);
        for (tier, (state, limits)) in self.tiers.iter_mut().zip(tiers).enumerate() {
            if limits.concurrency != self.endpoints.limit(tier) {
                self.endpoints.set_limit(tier, limits.concurrency);
            }
            state.supply = limits.supply;
        }
        self.limits = limits;
        self.settle(now, &mut actions);
        actions
    }

    /// Accounts this revision's waiters to `service` in the gateway-wide budget.
    pub(crate) fn set_service(&mut self, service: &ServiceId) {
        self.queue.set_service(service);
    }

    /// Adds an endpoint; `ready` when no probe has to prove that first.
    pub(crate) fn endpoint_added(
        &mut self,
        state: Arc<EndpointState>,
        ready: bool,
        now: Instant,
    ) -> Actions<W> {
        let mut actions = self.begin(now);
        let phase = if ready {
            EndpointPhase::Ready
        } else {
            EndpointPhase::Starting
        };
        if state.instance.is_some() {
            self.launch_step(state.tier, LaunchStep::Started, now);
        }
        self.endpoints.insert(state, phase);
        self.settle(now, &mut actions);
        actions
    }

    /// Records a step of a tier's start.
    pub(crate) fn launch_step(&mut self, tier: u8, step: LaunchStep, now: Instant) {
        self.tiers[usize::from(tier)].current_start.step(step, now);
    }

    /// The timeline of the start that requests wait for at zero; `None` while nothing is being activated.
    pub(crate) fn awaited_start(&self) -> Option<StartTimeline> {
        let mut tiers = self.tiers.iter().rev();
        let awaited = tiers.find(|tier| !matches!(tier.activation, Activation::Idle))?;
        Some(awaited.current_start.timeline())
    }

    /// Readiness probe succeeded: the endpoint takes requests.
    pub(crate) fn endpoint_ready(&mut self, key: u64, now: Instant) -> Actions<W> {
        let mut actions = self.begin(now);
        if let Some(i) = self.endpoints.find(key) {
            let endpoint = self.endpoints.record(i);
            match endpoint.phase {
                EndpointPhase::Starting => {
                    let tier = endpoint.tier;
                    let started = endpoint.state.instance.filter(|_| !endpoint.was_ready);
                    if let Some(instance) = started {
                        actions.signals.push(Signal::Ready { tier, instance });
                    }
                    let start = &mut self.tiers[usize::from(tier)].current_start;
                    let timeline = match endpoint.state.instance {
                        Some(_) => endpoint.state.start_timeline(),
                        None => start.timeline(),
                    };
                    let ready = Some(now);
                    endpoint
                        .state
                        .set_start_timeline(StartTimeline { ready, ..timeline });
                    start.end();
                    self.mark_ready(i);
                    self.visits.ready(now);
                    // A start that nobody waits for is measured too: schedules start ahead by what starts take.
                    let state = &mut self.tiers[usize::from(tier)];
                    if matches!(state.activation, Activation::Idle)
                        && let (Some(_), Some(ordered)) = (started, timeline.ordered)
                    {
                        state.start_took(now.saturating_duration_since(ordered));
                    }
                    self.activation_succeeded(tier, now, &mut actions);
                }
                EndpointPhase::Ejected { by_probe: true, .. } => {
                    self.reinstated(i, true, &mut actions);
                    self.mark_ready(i);
                }
                _ => {}
            }
        }
        self.settle(now, &mut actions);
        actions
    }

    /// Readiness probe of a ready endpoint failed as often as its failure threshold: the endpoint is ejected.
    pub(crate) fn endpoint_failing(&mut self, key: u64, now: Instant) -> Actions<W> {
        let mut actions = self.begin(now);
        if let Some(i) = self.endpoints.find(key) {
            self.eject(i, false, true, now, &mut actions);
        }
        self.settle(now, &mut actions);
        actions
    }

    /// Takes an endpoint as starting again, even the last ready one: a probe has to prove it. Requests in flight on the
    /// endpoint go on.
    pub(crate) fn endpoint_unproven(&mut self, key: u64, now: Instant) -> Actions<W> {
        let mut actions = self.begin(now);
        if let Some(i) = self.endpoints.find(key)
            && matches!(
                self.endpoints.record(i).phase,
                EndpointPhase::Ready | EndpointPhase::Ejected { .. }
            )
        {
            self.endpoints.set_phase(i, EndpointPhase::Starting);
            self.endpoint_lost();
        }
        self.settle(now, &mut actions);
        actions
    }

    /// Removes an endpoint. Requests in flight on the endpoint keep their slots until they end.
    pub(crate) fn endpoint_removed(&mut self, key: u64, now: Instant) -> Actions<W> {
        let mut actions = self.begin(now);
        if let Some(i) = self.endpoints.find(key) {
            self.endpoints.set_phase(i, EndpointPhase::Gone);
            self.endpoint_lost();
        }
        self.settle(now, &mut actions);
        actions
    }

    /// As [`EndpointSink::retire`](sluice_model::EndpointSink::retire), of one tier. Victims are the instances with the
    /// least in flight, unproven ones first among equals, then the oldest. Without `to_zero` one live instance
    /// always stays: zero has to be requested explicitly. A refused scale to zero still retires idle instances.
    ///
    /// A tier that rests has no part in what waits; nor is it what serves a revision that others need, or that is paused.
    pub(crate) fn retire(
        &mut self,
        tier: u8,
        count: u32,
        to_zero: bool,
        now: Instant,
    ) -> (Vec<InstanceId>, Actions<W>) {
        let mut actions = self.begin(now);
        // Passive requests are finished by the victims, and hold none of them back: a monitor that always has a request
        // in flight would.
        let nothing_waits = self.endpoints.rests(tier.into()) || self.all_waiting() == 0;
        let idle = self.is_tier_idle(tier.into());
        let mut candidates: Vec<_> = self
            .endpoints
            .iter()
            .filter(|(_, e)| e.is_live() && e.tier == tier)
            .filter_map(|(i, e)| {
                let proven = e.phase == EndpointPhase::Ready;
                Some((e.busy(), proven, e.state.instance?, i))
            })
            .collect();
        candidates.sort_unstable();
        let most = match (to_zero, idle) {
            (true, true) => candidates.len(),
            (true, false) if nothing_waits => {
                let free = candidates.iter().take_while(|(in_flight, ..)| *in_flight == 0);
                free.count().min(candidates.len().saturating_sub(1))
            }
            (true, false) => 0,
            (false, _) => candidates.len().saturating_sub(1),
        };
        candidates.truncate(most.min(count as usize));
        let victims = candidates.into_iter().map(|(_, _, instance, i)| {
            self.drain(i, &mut actions);
            instance
        });
        let victims: Vec<InstanceId> = victims.collect();
        let supply = self.tiers[usize::from(tier)].supply;
        let in_flight = self.endpoints.in_flight_of(tier.into()) + self.older_in_flight(tier.into());
        if to_zero && idle && in_flight == 0 && supply == Supply::Activated {
            self.unprove_configured(tier);
        }
        self.endpoint_lost();
        self.settle(now, &mut actions);
        (victims, actions)
    }

    /// As [`EndpointSink::to_zero`](sluice_model::EndpointSink::to_zero), of one tier.
    pub(crate) fn retire_all(&mut self, tier: u8, now: Instant) -> (Option<Vec<InstanceId>>, Actions<W>) {
        let rests = self.endpoints.rests(tier.into());
        let awaited = !rests && (self.all_waiting() > 0 || self.is_kept());
        let in_flight = self.endpoints.in_flight_of(tier.into()) + self.older_in_flight(tier.into());
        if awaited || in_flight > 0 {
            return (None, self.begin(now));
        }
        let (victims, actions) = self.retire(tier, u32::MAX, true, now);
        (Some(victims), actions)
    }

    /// Drains these instances: no new request is sent to them.
    pub(crate) fn retire_these(&mut self, instances: &[InstanceId], now: Instant) -> Actions<W> {
        let mut actions = self.begin(now);
        let named = |i: InstanceId| instances.contains(&i);
        let found = self.endpoints.iter();
        let found = found.filter(|(_, e)| e.is_live() && e.state.instance.is_some_and(named));
        let victims: Vec<u32> = found.map(|(i, _)| i).collect();
        for i in victims {
            self.drain(i, &mut actions);
        }
        self.endpoint_lost();
        self.settle(now, &mut actions);
        actions
    }

    /// Records a failed activation of a tier. While an endpoint of it is ready, the failed activation was for
    /// additional capacity: waiters go on waiting for a slot. They do while another tier may serve them, too, and while the
    /// service is paused: then the start is tried again when its back-off is over.
    pub(crate) fn fail(&mut self, tier: u8, failure: &Arc<ActivationFailure>, now: Instant) -> Actions<W> {
        let mut actions = self.begin(now);
        if self.endpoints.counts_of(tier.into()).ready == 0 {
            let state = &mut self.tiers[usize::from(tier)];
            if let Activation::Outstanding { since, .. } = state.activation {
                actions.signals.push(Signal::ActivationFailed {
                    took: now.saturating_duration_since(since),
                    failure: Arc::clone(failure),
                });
            }
            let retry_after = failure.retry_after.max(Duration::from_secs(1));
            let rejection = Rejection::ActivationFailed {
                failure: Arc::clone(failure),
                retry_after,
            };
            state.current_start.end();
            state.activation = Activation::Failed {
                failure: Arc::clone(failure),
                until: now + failure.retry_after.min(Duration::from_secs(24 * 3600)),
            };
            if self.paused {
                self.visits.forget();
            } else if self.is_hope_elsewhere(tier, now) {
                self.reject_spilled(now, &mut actions, &rejection);
            } else {
                self.reject_all(now, &mut actions, &rejection);
                self.visits.forget();
            }
        }
        self.settle(now, &mut actions);
        actions
    }

    /// Ends the back-off after a failed activation of a tier: its cause has changed.
    pub(crate) fn forgive(&mut self, tier: u8) {
        let activation = &mut self.tiers[usize::from(tier)].activation;
        if matches!(activation, Activation::Failed { .. }) {
            *activation = Activation::Idle;
        }
    }

    /// Rejects every waiter; no request waits from now on.
    pub(crate) fn close(&mut self, closing: Closing, now: Instant) -> Actions<W> {
        let mut actions = self.begin(now);
        self.closed = Some(closing);
        if closing == Closing::Removed {
            // Nothing that is configured can need it; who needs it when it comes back says so anew.
            self.needed = false;
        }
        self.visits.forget();
        self.reject_all(now, &mut actions, &closing.rejection());
        self.settle(now, &mut actions);
        // Nobody will want them here.
        for slot in self.endpoints.idle.iter().copied().collect::<Vec<_>>() {
            self.return_idle(slot, u32::MAX);
        }
        actions
    }

    /// Admits again after [`Closing::Removed`]: the revision is configured again. A drain of the gateway is
    /// final.
    pub(crate) fn reopen(&mut self) {
        self.closed = self.closed.filter(|closing| *closing != Closing::Removed);
    }

    /// Whether this state can be dropped: no waiter, nothing in flight, lent or leased, no instance.
    pub(crate) fn is_spent(&self) -> bool {
        self.queue.is_empty()
            && self.endpoints.in_flight() == 0
            && self.endpoints.lent() == 0
            && self.endpoints.idle.is_empty()
            && self.endpoints.iter().all(|(_, e)| e.state.instance.is_none())
    }

    /// The key of an instance that is not gone.
    pub(crate) fn instance_key(&self, instance: InstanceId) -> Option<u64> {
        let mut known = self.known();
        let slot = known.find(|slot| slot.state.instance == Some(instance))?;
        Some(slot.state.key)
    }

    /// Endpoints of a tier's configured and resolved addresses that are not gone, and a version number that changes
    /// with them.
    pub(crate) fn configured(&self, tier: u8) -> (Vec<Arc<EndpointState>>, u64) {
        let fixed = self
            .known()
            .filter(|slot| slot.state.instance.is_none() && slot.tier == tier);
        let fixed = fixed.map(|slot| Arc::clone(&slot.state)).collect();
        (fixed, self.endpoints.configured_version())
    }

    /// Applies a change that was computed from [`configured`](Self::configured), in one event. `false` changes
    /// nothing: the addresses changed meanwhile.
    pub(crate) fn change_configured(
        &mut self,
        change: &AddressChange,
        ready: bool,
        now: Instant,
    ) -> (bool, Actions<W>) {
        let mut actions = self.begin(now);
        debug_assert!(change.added.iter().all(|state| state.tier == change.tier));
        if self.endpoints.configured_version() != change.version {
            return (false, actions);
        }
        let phase = if ready {
            EndpointPhase::Ready
        } else {
            EndpointPhase::Starting
        };
        for state in &change.added {
            self.endpoints.insert(Arc::clone(state), phase);
        }
        for i in change
            .gone
            .iter()
            .filter_map(|key| self.endpoints.find(*key))
            .collect::<Vec<_>>()
        {
            self.endpoints.set_phase(i, EndpointPhase::Gone);
        }
        if !change.gone.is_empty() {
            self.endpoint_lost();
        }
        self.settle(now, &mut actions);
        (true, actions)
    }

    /// Every endpoint that is not gone.
    pub(crate) fn known(&self) -> impl Iterator<Item = &EndpointRecord> {
        let known = self.endpoints.iter().map(|(_, slot)| slot);
        known.filter(|slot| slot.phase != EndpointPhase::Gone)
    }

    /// One endpoint that is not gone, by its key.
    pub(crate) fn known_by(&self, key: u64) -> Option<&EndpointRecord> {
        let slot = self.endpoints.record(self.endpoints.find(key)?);
        (slot.phase != EndpointPhase::Gone).then_some(slot)
    }

    /// Ejects an endpoint, unless it is the last ready one. Of the last one only a refused connection counts:
    /// an activated endpoint has to be proven ready again while requests wait; otherwise the least recently
    /// ejected endpoint is reinstated in its place.
    pub(super) fn eject(
        &mut self,
        i: u32,
        refused: bool,
        by_probe: bool,
        now: Instant,
        actions: &mut Actions<W>,
    ) {
        let endpoint = self.endpoints.record_mut(i);
        if endpoint.phase != EndpointPhase::Ready {
            return;
        }
        let counts = self.endpoints.counts();
        let last = counts.ready == 1 || self.endpoints.is_last_owned(i);
        let endpoint = self.endpoints.record_mut(i);
        if !last || (refused && counts.ejected > 0) {
            let time = endpoint.with_outlier(super::outlier::OutlierDetector::eject);
            actions.signals.push(Signal::Ejected {
                endpoint: Arc::clone(&endpoint.state),
                cause: match (by_probe, refused) {
                    (true, _) => EjectCause::Probe,
                    (false, true) => EjectCause::Refused,
                    (false, false) => EjectCause::Failures,
                },
                time,
            });
            self.endpoints.eject(i, now + time, by_probe);
            if last {
                self.reinstate_least_recent(Some(i), actions);
            }
        } else if refused && self.tiers[usize::from(endpoint.tier)].supply == Supply::Activated {
            endpoint.with_outlier(super::outlier::OutlierDetector::forgive);
            self.endpoints.set_phase(i, EndpointPhase::Starting);
        } else {
            endpoint.with_outlier(super::outlier::OutlierDetector::forgive);
        }
    }

    /// Revokes a readiness that was believed too early: the endpoint is still starting, and its next probe has
    /// to prove more.
    pub(super) fn refute(&mut self, i: u32) {
        self.endpoints.record(i).state.refute();
        self.endpoints.set_phase(i, EndpointPhase::Starting);
    }

    /// Ends ejections whose time is over; ends the least recent ejection early when no other endpoint is ready.
    pub(super) fn reinstate(&mut self, now: Instant, actions: &mut Actions<W>) {
        while let Some(i) = self.endpoints.ejected_until(now) {
            self.reinstated(i, false, actions);
            self.mark_ready(i);
        }
        if self.endpoints.counts().ready == 0 {
            self.reinstate_least_recent(None, actions);
        }
    }

    /// Sends demand for a tier, once: not while an activation is outstanding or an instance is starting. Demand is
    /// sent again after `start_timeout`, so that a lost message cannot hold a revision at zero.
    pub(super) fn activate(&mut self, tier: u8, now: Instant, actions: &mut Actions<W>) {
        let state = &mut self.tiers[usize::from(tier)];
        let wait = match &state.activation {
            Activation::Idle => false,
            Activation::Outstanding { since, lost } => {
                !lost && now.saturating_duration_since(*since) <= self.limits.start_timeout
            }
            Activation::Failed { until, .. } => now < *until,
        };
        if !wait && !self.endpoints.is_one_coming(tier.into()) {
            let since = match state.activation {
                Activation::Outstanding { since, lost: true } => since,
                _ => now,
            };
            state.activation = Activation::Outstanding { since, lost: false };
            state.current_start.forget_if_over();
            self.patient = false;
            actions.signals.push(Signal::Activate { tier });
        }
    }

    fn reinstated(&self, i: u32, proven: bool, actions: &mut Actions<W>) {
        let endpoint = Arc::clone(&self.endpoints.record(i).state);
        actions.signals.push(Signal::Reinstated { endpoint, proven });
    }

    fn reinstate_least_recent(&mut self, except: Option<u32>, actions: &mut Actions<W>) {
        if let Some(i) = self.endpoints.least_recently_ejected(except) {
            self.reinstated(i, false, actions);
            // Keep the readiness epoch: reinstated without proof, so requests that it already refused must not
            // retry it.
            self.endpoints.set_phase(i, EndpointPhase::Ready);
        }
    }

    /// Makes an endpoint ready in a new readiness epoch: requests that failed on it may try it again.
    fn mark_ready(&mut self, i: u32) {
        self.endpoints.new_readiness_epoch(i);
        self.endpoints.set_phase(i, EndpointPhase::Ready);
    }

    fn drain(&mut self, i: u32, actions: &mut Actions<W>) {
        self.endpoints.set_phase(i, EndpointPhase::Draining);
        let endpoint = self.endpoints.record(i);
        if endpoint.busy() == 0 {
            actions.signals.extend(endpoint.drained());
        }
    }

    /// Moves a tier's configured addresses back to starting. At zero the gateway does not learn when a platform stops
    /// the process behind a configured address: it has to be proven ready before the next request.
    fn unprove_configured(&mut self, tier: u8) {
        let fixed = self.endpoints.iter();
        let fixed = fixed.filter(|(_, e)| e.state.instance.is_none() && e.is_live() && e.tier == tier);
        let fixed: Vec<u32> = fixed.map(|(i, _)| i).collect();
        for i in fixed {
            self.endpoints.record(i).state.doubt();
            self.endpoints.set_phase(i, EndpointPhase::Starting);
        }
    }

    /// Handles the loss of an endpoint during an activation: the one that was demanded may have come and gone
    /// before it was ready, so demand is sent again while requests wait.
    fn endpoint_lost(&mut self) {
        let no_one_waits = self.all_waiting() == 0;
        for (tier, state) in self.tiers.iter_mut().enumerate() {
            let counts = self.endpoints.counts_of(tier);
            if counts.ready + counts.ejected == 0
                && !self.endpoints.is_one_coming(tier)
                && let Activation::Outstanding { lost, .. } = &mut state.activation
            {
                if no_one_waits {
                    state.activation = Activation::Idle;
                } else {
                    *lost = true;
                }
            }
        }
    }

    fn activation_succeeded(&mut self, tier: u8, now: Instant, actions: &mut Actions<W>) {
        let state = &mut self.tiers[usize::from(tier)];
        if let Activation::Outstanding { since, .. } = state.activation {
            let took = now.saturating_duration_since(since);
            state.start_took(took);
            actions.signals.push(Signal::Activated { tier, took });
        }
        state.activation = Activation::Idle;
    }
}

//! The async shell of a throttler: a lock around the core, wake-ups, one timer task, demand for the control
//! plane.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use sluice_model::{
    ActivationFailure, Demand, DemandSink, EndpointAddr, InstanceId, LaunchStep, Load, ManagedEndpoint,
    RevisionId, ServiceId,
};
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, oneshot};

use super::actions::{Actions, CoreAdmission, NeedsEviction, Signal};
use super::arrival::{Admission, Arrival, Outcome, QueueTicket};
use super::budget::{Account, QueueBudget, Reservation};
use super::core::{Core, ThrottleLimits};
use super::endpoint::{EndpointPhase, EndpointState};
use super::endpoint_events::AddressChange;
use super::lease::{LeaseMessage, PeerId};
use super::log_limit::LogLimiter;
use super::observer::{ActivationOutcome, RevisionObserver};
use super::permit::Permit;
use super::rejection::{Closing, Rejection};
use super::start_timeline::StartTimeline;
use super::tiers::TierLimits;
use super::visits::ColdState;
use super::waiter::{Sender, Waiter};

/// The injected clock: tokio's, which tests pause, and which is the monotonic clock otherwise.
pub(crate) fn clock() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// How long the timer task outlives the last waiter: a queue that fills and empties all the time
/// keeps its task.
const TIMER_LINGER: Duration = Duration::from_secs(1);

/// Connections of a throttler to the rest of the gateway.
#[derive(Clone)]
pub struct ThrottleEnv {
    /// Takes demand.
    pub demand: Arc<dyn DemandSink>,
    /// Receives events for metrics.
    pub observer: Arc<dyn RevisionObserver>,
    /// The bound on all queues together.
    pub budget: Arc<QueueBudget>,
    /// Runs the timer.
    pub runtime: tokio::runtime::Handle,
}

impl fmt::Debug for ThrottleEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThrottleEnv").finish_non_exhaustive()
    }
}

/// One endpoint as admin and probes see it.
#[derive(Debug, Clone)]
pub struct EndpointView {
    /// The endpoint.
    pub endpoint: Arc<EndpointState>,
    /// Its state in the endpoint's life cycle.
    pub phase: EndpointPhase,
    /// Requests it holds.
    pub in_flight: u32,
    /// Slots of it that other processes hold.
    pub lent: u32,
    /// Whether a request waits for a slot of this revision, or for the endpoint's tier.
    pub waiting: bool,
    /// Whether a browser that was shown a waiting page is expected back.
    pub expected: bool,
    /// Endpoints of the revision that start.
    pub starting: u32,
}

/// Admission control for one revision: capacity, in-flight counts and queue behind one lock.
pub struct RevisionThrottler {
    id: RevisionId,
    /// The ids by which its tiers are scaled; without tiers, its own.
    scaled: Box<[RevisionId]>,
    pub(super) shared: Mutex<Shared>,
    env: ThrottleEnv,
    timer: Arc<Notify>,
    probes: Notify,
    log: LogLimiter,
}

pub(super) struct Shared {
    pub(super) core: Core<Sender>,
    /// When the timer task wakes; `None` while there is none.
    armed: Option<Instant>,
    /// Where messages to other processes go.
    pub(super) outlets: BTreeMap<PeerId, Outlet>,
}

/// Takes messages to another process, in order; never blocks. A process that is gone takes none, and that is no error here.
pub type Outlet = Box<dyn Fn(LeaseMessage) + Send>;

impl Shared {
    /// Sends the core's messages to other processes. Under the lock: messages of one throttler stay in order.
    fn post(&mut self) {
        if let Some(leases) = &mut self.core.leases {
            for (peer, message) in leases.take_outbox() {
                if let Some(outlet) = self.outlets.get(&peer) {
                    outlet(message);
                }
            }
        }
    }
}

impl RevisionThrottler {
    /// A throttler without endpoints. Its waiters count for `service` in the gateway-wide bound.
    pub fn new(id: RevisionId, service: ServiceId, limits: ThrottleLimits, env: ThrottleEnv) -> Arc<Self> {
        let tier = (id.clone(), TierLimits::of(&limits));
        Self::with_tiers(id, service, limits, vec![tier], env)
    }

    /// As [`new`](Self::new), with the ids that tiers are scaled by and their limits; at least one of them.
    pub fn with_tiers(
        id: RevisionId,
        service: ServiceId,
        limits: ThrottleLimits,
        tiers: Vec<(RevisionId, TierLimits)>,
        env: ThrottleEnv,
    ) -> Arc<Self> {
        let (scaled, tiers): (Vec<_>, Vec<_>) = tiers.into_iter().unzip();
        Arc::new_cyclic(|this: &Weak<Self>| {
            let account = Account::open(Arc::clone(&env.budget), service, Weak::clone(this));
            let now = clock();
            let core = Core::with_tiers(limits, &tiers, account, fastrand::u64(..), now);
            Self {
                id,
                scaled: scaled.into(),
                shared: Mutex::new(Shared {
                    core,
                    armed: None,
                    outlets: BTreeMap::new(),
                }),
                env,
                timer: Arc::new(Notify::new()),
                probes: Notify::new(),
                log: LogLimiter::new(now),
            }
        })
    }

    /// Backdates the load meter to the time since which the revision was idle: the first sample covers that
    /// time, too.
    pub(crate) fn idle_since(&self, since: Instant) {
        self.shared.lock().core.idle_since(since);
    }

    /// The tier that is scaled by this id, if it is of this revision.
    pub fn tier_of(&self, id: &RevisionId) -> Option<u8> {
        let tier = self.scaled.iter().position(|scaled| scaled == id)?;
        u8::try_from(tier).ok()
    }

    /// The revision.
    pub fn id(&self) -> &RevisionId {
        &self.id
    }

    /// Asks for a slot. Allocates nothing when a slot is free and no request waits.
    pub fn admit(self: &Arc<Self>, arrival: Arrival, now: Instant) -> Admission {
        let warm = self.shared.lock().core.arrive_warm(arrival, now);
        if let Some(grant) = warm {
            return Admission::Admitted(Permit::new(Arc::clone(self), grant));
        }
        self.decide(now, |core, waiter| core.arrive(arrival, now, waiter))
    }

    pub(crate) fn failover(
        self: &Arc<Self>,
        failed: (u32, u64, bool),
        ticket: QueueTicket,
        now: Instant,
    ) -> Admission {
        self.decide(now, |core, waiter| core.failover(failed, ticket, now, waiter))
    }

    /// Whether a request that was answered with 429 at this slot may go to another tier, or wait for one.
    pub(crate) fn may_spill(&self, slot: u32, ticket: &QueueTicket, now: Instant) -> bool {
        self.scaled.len() > 1 && self.shared.lock().core.may_spill(slot, ticket, now)
    }

    pub(crate) fn spill(
        self: &Arc<Self>,
        refused: (u32, u64),
        ticket: QueueTicket,
        now: Instant,
    ) -> Admission {
        self.decide(now, |core, waiter| core.spill(refused, ticket, now, waiter))
    }

    pub(crate) fn release(self: &Arc<Self>, slot: u32, passive: bool, now: Instant) {
        if self.shared.lock().core.release_warm(slot, passive, now) {
            return;
        }
        self.apply(|core| core.release(slot, passive, now));
    }

    pub(crate) fn report(self: &Arc<Self>, slot: u32, readiness_epoch: u64, outcome: Outcome, now: Instant) {
        self.apply(|core| core.report(slot, readiness_epoch, outcome, now));
    }

    pub(crate) fn cancel(&self, seq: u64, now: Instant) {
        let mut shared = self.shared.lock();
        let sender = shared.core.cancel(seq, now);
        shared.post();
        drop(shared);
        drop(sender);
    }

    /// Applies other limits from now on; nothing that runs is stopped.
    pub fn set_limits(self: &Arc<Self>, limits: ThrottleLimits, now: Instant) {
        self.apply(|core| core.set_limits(limits, now));
    }

    /// As [`set_limits`](Self::set_limits), with limits for each tier.
    pub fn set_tier_limits(self: &Arc<Self>, limits: ThrottleLimits, tiers: &[TierLimits], now: Instant) {
        self.apply(|core| core.set_tier_limits(limits, tiers, now));
    }

    /// As [`EndpointSink::hold`](sluice_model::EndpointSink::hold).
    pub fn hold(self: &Arc<Self>, needed: bool, now: Instant) {
        self.apply(|core| core.hold(needed, now));
    }

    /// Pauses the revision with its service, or resumes it. While paused every arrival waits, within the bounds of the queue,
    /// and the last instance stays.
    pub fn pause(self: &Arc<Self>, paused: bool, now: Instant) {
        self.apply(|core| core.pause(paused, now));
    }

    /// Accounts waiters to this service from now on.
    pub fn set_service(&self, service: &ServiceId) {
        self.shared.lock().core.set_service(service);
    }

    /// A browser asks for a page. `Some`: nothing is ready, so the browser gets a waiting page, and a start has been
    /// demanded unless one is under way or its back-off lasts; the instance is to be kept for `keep` once it is
    /// ready. `None` changes nothing: the request is admitted as any other.
    pub fn visit(self: &Arc<Self>, keep: Duration, now: Instant) -> Option<ColdState> {
        self.run(|core| core.visit(keep, now))
    }

    /// The progress of the start that requests wait for; `None` where none is: an endpoint is ready, or nothing
    /// can be started.
    pub fn cold_state(&self, now: Instant) -> Option<ColdState> {
        self.shared.lock().core.cold_state(now)
    }

    /// How many waiters are before the one with this number; no more than `most` are counted.
    pub(crate) fn ahead(&self, seq: u64, most: usize) -> usize {
        self.shared.lock().core.queue.ahead(seq, most)
    }

    /// Records a step of a tier's start.
    pub fn launch_step(&self, tier: u8, step: LaunchStep, now: Instant) {
        self.shared.lock().core.launch_step(tier, step, now);
    }

    /// The timeline of the start that requests wait for at zero; `None` while nothing is being activated.
    pub fn awaited_start(&self) -> Option<StartTimeline> {
        self.shared.lock().core.awaited_start()
    }

    /// Adds a started instance of a tier as an endpoint that a probe has to prove ready. `None` when the instance
    /// is known already.
    pub fn add_instance(
        self: &Arc<Self>,
        tier: u8,
        endpoint: &ManagedEndpoint,
        now: Instant,
    ) -> Option<Arc<EndpointState>> {
        self.run(|core| {
            if core.instance_key(endpoint.instance).is_some() {
                return (None, Actions::default());
            }
            let address = EndpointAddr::Tcp(endpoint.address);
            let state = Arc::new(EndpointState::in_tier(tier, address, Some(endpoint.instance)));
            state.set_start_timeline(StartTimeline {
                ordered: now.checked_sub(endpoint.took),
                started: Some(now),
                ready: None,
            });
            let actions = core.endpoint_added(Arc::clone(&state), false, now);
            (Some(state), actions)
        })
    }

    /// Removes an instance; `false` when it is not known.
    pub fn remove_instance(self: &Arc<Self>, instance: InstanceId, now: Instant) -> bool {
        self.run(|core| match core.instance_key(instance) {
            Some(key) => (true, core.endpoint_removed(key, now)),
            None => (false, Actions::default()),
        })
    }

    /// Replaces the configured (or resolved) addresses of a tier. Endpoints that stay keep health and in-flight counts;
    /// endpoints that go finish their requests. New ones are `ready` at once or have to be proven ready.
    /// Returns the new ones.
    pub fn set_addresses(
        self: &Arc<Self>,
        tier: u8,
        addresses: &[EndpointAddr],
        ready: bool,
        now: Instant,
    ) -> Vec<Arc<EndpointState>> {
        // The difference is computed without the lock, which every request of a large revision wants meanwhile.
        loop {
            let before = self.shared.lock().core.configured(tier);
            let change = AddressChange::between(tier, &before, addresses);
            if self.run(|core| core.change_configured(&change, ready, now)) {
                return change.added;
            }
        }
    }

    /// Reports a successful readiness probe.
    pub fn endpoint_ready(self: &Arc<Self>, key: u64, now: Instant) {
        self.apply(|core| core.endpoint_ready(key, now));
    }

    /// Reports that this endpoint is not known to be ready any more: it is probed again.
    pub fn endpoint_unproven(self: &Arc<Self>, key: u64, now: Instant) {
        self.apply(|core| core.endpoint_unproven(key, now));
    }

    /// Reports that probes of this ready endpoint failed as often as its failure threshold.
    pub fn endpoint_failing(self: &Arc<Self>, key: u64, now: Instant) {
        self.apply(|core| core.endpoint_failing(key, now));
    }

    /// As [`EndpointSink::retire`](sluice_model::EndpointSink::retire). `Demand::Drained` of an idle victim may
    /// be sent before this returns.
    pub fn retire(self: &Arc<Self>, tier: u8, count: u32, to_zero: bool, now: Instant) -> Vec<InstanceId> {
        self.run(|core| core.retire(tier, count, to_zero, now))
    }

    /// As [`EndpointSink::to_zero`](sluice_model::EndpointSink::to_zero), of this throttler alone.
    pub fn to_zero(self: &Arc<Self>, tier: u8, now: Instant) -> Option<Vec<InstanceId>> {
        self.run(|core| core.retire_all(tier, now))
    }

    /// As [`EndpointSink::retire_these`](sluice_model::EndpointSink::retire_these). Returns the instances that
    /// are known, retired before or now.
    pub fn retire_these(self: &Arc<Self>, instances: &[InstanceId], now: Instant) -> Vec<InstanceId> {
        self.run(|core| {
            let known = instances.iter().copied();
            let known = known.filter(|i| core.instance_key(*i).is_some()).collect();
            (known, core.retire_these(instances, now))
        })
    }

    /// As [`EndpointSink::end`](sluice_model::EndpointSink::end).
    pub fn end(&self, instances: &[InstanceId]) {
        let shared = self.shared.lock();
        let named = |state: &EndpointState| state.instance.is_some_and(|i| instances.contains(&i));
        for slot in shared.core.known().filter(|slot| named(&slot.state)) {
            slot.state.end();
        }
    }

    /// Rejects waiters and arrivals with this failed activation of a tier, unless an endpoint of it is ready, or
    /// another tier serves or may yet.
    pub fn fail(self: &Arc<Self>, tier: u8, failure: &Arc<ActivationFailure>, now: Instant) {
        self.apply(|core| core.fail(tier, failure, now));
    }

    /// Ends the back-off after a failed activation of a tier: the next arrival sends demand at once.
    pub fn forgive(&self, tier: u8) {
        self.shared.lock().core.forgive(tier);
    }

    /// Rejects every waiter; requests in flight run to their end.
    pub fn close(self: &Arc<Self>, closing: Closing, now: Instant) {
        self.apply(|core| core.close(closing, now));
    }

    /// Admits requests again after a [`Closing::Removed`].
    pub fn reopen(&self) {
        self.shared.lock().core.reopen();
    }

    /// Whether this throttler can be dropped: no waiter, nothing in flight, no instance.
    pub fn is_spent(&self) -> bool {
        self.shared.lock().core.is_spent()
    }

    /// The load that a tier is scaled by since the previous call; for the autoscaler alone.
    pub fn sample(&self, tier: u8, now: Instant) -> Load {
        self.shared.lock().core.sample_tier(tier, now)
    }

    /// The load since the previous [`sample`](Self::sample), for all other readers.
    pub fn peek(&self, now: Instant) -> Load {
        self.shared.lock().core.peek(now)
    }

    /// Every endpoint that is not gone, for admin.
    pub fn endpoints(&self) -> Vec<EndpointView> {
        let shared = self.shared.lock();
        let expected = shared.core.visits.is_expected(clock());
        let known = shared.core.known();
        known
            .map(|slot| EndpointView {
                endpoint: Arc::clone(&slot.state),
                phase: slot.phase,
                in_flight: slot.in_flight,
                lent: slot.lent,
                waiting: shared.core.is_awaited(slot.tier),
                expected,
                starting: shared.core.starting(),
            })
            .collect()
    }

    /// One endpoint by its key; `None` once it is gone.
    pub fn endpoint(&self, key: u64) -> Option<EndpointView> {
        let shared = self.shared.lock();
        let slot = shared.core.known_by(key)?;
        Some(EndpointView {
            endpoint: Arc::clone(&slot.state),
            phase: slot.phase,
            in_flight: slot.in_flight,
            lent: slot.lent,
            waiting: shared.core.is_awaited(slot.tier),
            starting: shared.core.starting(),
            expected: shared.core.visits.is_expected(clock()),
        })
    }

    /// Wake-up for the probe tasks of starting endpoints: resolves when a request begins to wait. Enable it before
    /// reading the state, so that no wake-up is missed. Tasks of other endpoints have nothing to do then: of a revision with
    /// a thousand Pods a thousand would look.
    pub fn probe_wakeups(&self) -> Notified<'_> {
        self.probes.notified()
    }

    /// Wakes all probe tasks of this revision.
    pub fn wake_probes(&self) {
        for slot in self.shared.lock().core.known() {
            slot.state.wake_probe();
        }
    }

    /// Evicts the youngest waiter into `reservation`, unless the arrival needs no space any more or this
    /// service is not above its share any more. Takes this throttler's lock: call it without another
    /// throttler's.
    fn evict_for(self: &Arc<Self>, reservation: &mut Reservation, now: Instant) {
        self.apply(|core| core.evict_for(reservation, now));
    }

    fn decide(
        self: &Arc<Self>,
        now: Instant,
        event: impl FnOnce(&mut Core<Sender>, &mut dyn FnMut() -> Sender) -> (CoreAdmission, Actions<Sender>),
    ) -> Admission {
        let mut receiver = None;
        let mut waiter = || {
            let (tx, rx) = oneshot::channel();
            receiver = Some(rx);
            tx
        };
        let mut verdict = self.run(|core| event(core, &mut waiter));
        // No lock is held between the steps. The loop ends: where the victim's throttler finds no eviction
        // necessary, another arrival or departure changed the accounts in between.
        while let CoreAdmission::NeedsEviction(crowded) = verdict {
            let NeedsEviction {
                ticket,
                mut reservation,
                victim,
            } = *crowded;
            if let Some(owner) = self.env.budget.owner(victim) {
                owner.evict_for(&mut reservation, now);
            }
            verdict = self.run(|core| core.resume(ticket, reservation, now, &mut waiter));
        }
        match (verdict, receiver) {
            (CoreAdmission::Granted(grant), _) => Admission::Admitted(Permit::new(Arc::clone(self), grant)),
            (CoreAdmission::Queued { seq }, Some(receiver)) => {
                Admission::Waiting(Waiter::new(Arc::clone(self), seq, receiver))
            }
            (CoreAdmission::Queued { .. } | CoreAdmission::NeedsEviction(_), _) => {
                Admission::Rejected(Rejection::Removed)
            }
            (CoreAdmission::Rejected(rejection), _) => Admission::Rejected(rejection),
        }
    }

    /// Runs an event under the lock and carries out what it decided after it.
    pub(super) fn apply(self: &Arc<Self>, event: impl FnOnce(&mut Core<Sender>) -> Actions<Sender>) {
        self.run(|core| ((), event(core)));
    }

    /// As [`apply`](Self::apply), for an event that returns a value, too.
    pub(super) fn run<R>(
        self: &Arc<Self>,
        event: impl FnOnce(&mut Core<Sender>) -> (R, Actions<Sender>),
    ) -> R {
        self.run_with(|shared| event(&mut shared.core))
    }

    /// As [`run`](Self::run), for an event that changes where messages go, too.
    pub(super) fn run_with<R>(
        self: &Arc<Self>,
        event: impl FnOnce(&mut Shared) -> (R, Actions<Sender>),
    ) -> R {
        let mut shared = self.shared.lock();
        let (value, actions) = event(&mut shared);
        shared.post();
        self.demand(&actions.signals);
        self.arm(shared);
        self.carry_out(actions);
        value
    }

    /// Carries out actions. Must not hold the lock: dropping an unwanted permit or sender takes it again.
    fn carry_out(self: &Arc<Self>, actions: Actions<Sender>) {
        for resolved in actions.resolved {
            let admitted = resolved.verdict.is_ok();
            let verdict = resolved.verdict.map(|grant| Permit::new(Arc::clone(self), grant));
            // The waiter is gone: the permit drops here, and the slot goes to the next waiter.
            if resolved.waiter.send(verdict).is_ok() {
                self.env.observer.queue_waited(resolved.waited, admitted);
            }
        }
        for signal in actions.signals {
            self.signal(signal);
        }
        if actions.wake_probes {
            self.probes.notify_waiters();
        }
    }

    /// Sends demand. Under the lock: another thread's success of an activation must not overtake its demand.
    /// The sink never blocks.
    fn demand(&self, signals: &[Signal]) {
        let revision = |tier: u8| self.scaled[usize::from(tier)].clone();
        for signal in signals {
            self.env.demand.demand(match *signal {
                Signal::Activate { tier } => Demand::Activate(revision(tier)),
                Signal::Activated { tier, .. } => Demand::Activated(revision(tier)),
                Signal::Ready { tier, instance } => Demand::Ready {
                    revision: revision(tier),
                    instance,
                },
                Signal::Drained { tier, instance } => Demand::Drained {
                    revision: revision(tier),
                    instance,
                },
                Signal::Ejected { .. } | Signal::Reinstated { .. } | Signal::ActivationFailed { .. } => {
                    continue;
                }
            });
        }
    }

    fn signal(&self, signal: Signal) {
        let revision = &self.id;
        let observer = &self.env.observer;
        match signal {
            Signal::Activate { .. } => observer.activation_started(),
            Signal::Ready { .. } | Signal::Drained { .. } => {}
            Signal::Activated { took, .. } => observer.activation_finished(ActivationOutcome::Ready, took),
            Signal::Ejected {
                endpoint,
                cause,
                time,
            } => self
                .log
                .ejected(revision, &endpoint.address, cause, time, clock()),
            Signal::Reinstated { endpoint, proven } => {
                self.log.reinstated(revision, &endpoint.address, proven, clock());
            }
            Signal::ActivationFailed { took, failure } => {
                observer.activation_finished(ActivationOutcome::Failed(failure.failure), took);
            }
        }
    }
}

/// The timer: one task while a request waits, and none otherwise.
impl RevisionThrottler {
    /// Arms the timer for the earliest deadline; the timer task exists only while a request waits.
    fn arm(self: &Arc<Self>, mut shared: MutexGuard<'_, Shared>) {
        let Some(next) = shared.core.next_timer() else {
            return;
        };
        match shared.armed {
            Some(armed) if armed <= next => {}
            Some(_) => {
                shared.armed = Some(next);
                drop(shared);
                self.timer.notify_one();
            }
            None => {
                shared.armed = Some(next);
                drop(shared);
                let timer = run_timer(Arc::downgrade(self), Arc::clone(&self.timer), next);
                drop(self.env.runtime.spawn(timer));
            }
        }
    }

    /// Handles a timer tick. Returns the next one; `None` when the task may end.
    fn tick(self: &Arc<Self>, lingered: bool) -> Option<Instant> {
        let now = clock();
        let mut shared = self.shared.lock();
        let actions = shared.core.expire(now);
        shared.post();
        self.demand(&actions.signals);
        let next = match shared.core.next_timer() {
            None if lingered => None,
            None => Some(now + TIMER_LINGER),
            next => next,
        };
        shared.armed = next;
        drop(shared);
        self.carry_out(actions);
        next
    }
}

/// The timer task. Ends when no request has waited for a while, or with the throttler.
async fn run_timer(throttler: Weak<RevisionThrottler>, news: Arc<Notify>, first: Instant) {
    let mut next = first;
    let mut idle = false;
    loop {
        let woken = tokio::select! {
            () = tokio::time::sleep_until(next.into()) => false,
            () = news.notified() => true,
        };
        let Some(throttler) = throttler.upgrade() else {
            return;
        };
        let waiting = throttler.shared.lock().core.has_waiters();
        let Some(at) = throttler.tick(idle && !waiting && !woken) else {
            return;
        };
        idle = !waiting;
        next = at;
    }
}

impl Drop for RevisionThrottler {
    fn drop(&mut self) {
        // Wakes the timer task, which ends because the throttler is gone.
        self.timer.notify_one();
    }
}

impl fmt::Debug for RevisionThrottler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RevisionThrottler")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

//! Simulation of one throttler: a storm over the sans-IO core, checked after every step against a model of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_model::{
    ActivationFailure, EndpointAddr, Failure, InstanceId, QueueLimits, QueueTotals, StickyKey,
};

use super::actions::{Actions, CoreAdmission, Grant, Signal};
use super::arrival::{Arrival, Outcome};
use super::budget::QueueBudget;
use super::core::{Core, Supply, ThrottleLimits};
use super::endpoint::{EndpointPhase, EndpointState};
use super::endpoint_set::EndpointRecord;
use super::rejection::{Closing, Rejection};
use super::test_kit::account;
use super::visits::ColdPhase;
use crate::sim::{self, Sim, World};

#[test]
fn a_storm_keeps_the_invariants() {
    sim::storm::<Storm>();
}

struct Waiting {
    id: u64,
    bytes: u64,
    passive: bool,
    deadline: Option<Instant>,
    /// When its wait would have begun had it not waited before.
    since: Instant,
    /// When it has to be resolved by the most generous limits it waited under.
    latest: Instant,
}

struct Storm {
    sim: Sim,
    core: Core<u64>,
    budget: Arc<QueueBudget>,
    limits: ThrottleLimits,
    most_endpoints: usize,
    /// The higher of the limits before and after the event under way.
    allowed: Option<u32>,
    next_id: u64,
    next_instance: u64,
    /// By order of arrival.
    waiting: BTreeMap<u64, Waiting>,
    grants: Vec<Grant>,
    unresolved: BTreeSet<u64>,
    in_flight: BTreeMap<u64, u32>,
    told_ready: BTreeSet<InstanceId>,
    told_drained: BTreeSet<InstanceId>,
    closed: Option<Closing>,
    paused: bool,
    /// The last start failed, and its back-off ends then: until then nothing may be on its way for who was held.
    failed: Option<Instant>,
    /// Demand was sent since an endpoint was last ready or starting.
    asked: bool,
    area: f64,
    sampled: Instant,
}

impl World for Storm {
    const SEEDS: u64 = 256;
    const STEPS: usize = 2_000;
    const REACHES: &'static str = "admitted ejected activated queue_full queue_timeout activation_failed \
                                   no_endpoints overloaded draining removed deadline dormant visited \
                                   paused paused_timeout paused_start_failed resumed kept";

    fn new(mut sim: Sim) -> Self {
        let (rng, now) = (&mut sim.rng, sim.now);
        let supply = match rng.u8(..4) {
            0 => Supply::Fixed,
            1 => Supply::Resolving,
            _ => Supply::Activated,
        };
        let limits = Self::random_limits(rng, supply);
        let budget = Arc::new(QueueBudget::new(QueueTotals {
            depth: 25,
            bytes: 3_000,
        }));
        Self {
            core: Core::new(limits, account(&budget, "shop"), rng.u64(..), now),
            budget,
            limits,
            most_endpoints: rng.usize(1..9),
            allowed: limits.concurrency,
            next_id: 0,
            next_instance: 0,
            waiting: BTreeMap::new(),
            grants: Vec::new(),
            unresolved: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            told_ready: BTreeSet::new(),
            told_drained: BTreeSet::new(),
            closed: None,
            paused: false,
            failed: None,
            asked: false,
            area: 0.0,
            sampled: now,
            sim,
        }
    }

    fn sim(&mut self) -> &mut Sim {
        &mut self.sim
    }

    fn step(&mut self) {
        self.pass_time();
        // Deadlines are handled in an event of their own: every other event then starts from a settled state,
        // which is what the checks of grants assume.
        let actions = self.core.expire(self.sim.now);
        self.apply(actions);
        self.check_ages();
        let event = if self.closed.is_some() { 0..108 } else { 0..103 };
        match self.sim.rng.u32(event) {
            0..34 => self.arrive(),
            34..60 => self.release(),
            60..64 => self.failover(),
            64..69 => self.cancel(),
            69..77 => self.report(),
            77..82 => self.add(),
            82..89 => self.ready(),
            89..90 => self.failing(),
            90..92 => self.remove(),
            92..94 => self.retire(),
            94..95 => self.retire_these(),
            95..97 => self.change_limits(),
            97..98 => self.fail(),
            98..99 => self.sample(),
            99..101 => self.visit(),
            101..102 => self.pause_or_resume(),
            _ => self.close_or_reopen(),
        }
    }

    fn check(&mut self) {
        for slot in self.core.known() {
            let counted = self.in_flight.get(&slot.state.key).copied().unwrap_or(0);
            assert_eq!(slot.in_flight, counted);
            let free = slot.phase == EndpointPhase::Ready
                && self.limits.concurrency.is_none_or(|limit| slot.in_flight < limit);
            let waits = !self.waiting.is_empty() && !self.paused;
            assert!(!free || !waits, "waits beside a free slot");
        }
        assert_eq!(self.core.endpoints.in_flight() as usize, self.grants.len());
        let queued: BTreeSet<u64> = self.waiting.values().map(|w| w.id).collect();
        assert_eq!(queued, self.unresolved, "a waiter was forgotten");
        assert_eq!(self.core.queue.len(), self.waiting.len());
        let used = self.budget.used();
        assert_eq!(used.depth, self.waiting.len());
        assert_eq!(used.bytes, self.waiting.values().map(|w| w.bytes).sum::<u64>());
        assert!(
            used.depth <= 25 && used.bytes <= 3_000,
            "over the gateway's bound"
        );
        let counts = self.core.endpoints.counts();
        let starting = |s: &EndpointRecord| s.phase == EndpointPhase::Starting && s.state.instance.is_some();
        let coming = self.core.known().any(starting);
        if counts.ready > 0 || coming {
            self.asked = false;
        }
        if counts.ejected > 0 {
            self.sim.saw("ejected");
        }
        if !self.waiting.is_empty() {
            assert!(self.core.next_timer().is_some(), "nobody would wake it");
            let backs_off = self.failed.is_some_and(|until| until > self.sim.now);
            let served = counts.ready > 0 || coming || self.asked || backs_off;
            if let (true, Some(until)) = (backs_off, self.failed)
                && self.limits.supply == Supply::Activated
                && self.waiting.values().any(|waiting| !waiting.passive)
                && !(counts.ready > 0 || coming || self.asked)
            {
                assert!(
                    self.core.next_timer().is_some_and(|at| at <= until),
                    "nobody would try again"
                );
            }
            let activated = self.limits.supply == Supply::Activated;
            assert!(served || !activated, "waits for something nobody asked for");
            assert!(
                counts.live() > 0 || self.limits.supply != Supply::Fixed,
                "waits for nothing"
            );
        }
    }

    /// Every permit is given back and the throttler closed.
    fn end(&mut self) {
        while let Some(grant) = self.any_grant() {
            *self.in_flight.get_mut(&grant.endpoint.key).expect("counted") -= 1;
            let actions = self
                .core
                .release(grant.slot, grant.ticket.arrival.passive, self.sim.now);
            self.apply(actions);
        }
        let actions = self.core.close(Closing::Draining, self.sim.now);
        self.apply(actions);
        assert!(self.unresolved.is_empty());
        assert_eq!(self.budget.used(), QueueTotals { depth: 0, bytes: 0 });
        let load = self.core.peek(self.sim.now);
        assert_eq!((load.in_flight, load.queued), (0, 0));
    }
}

impl Storm {
    fn random_limits(rng: &mut fastrand::Rng, supply: Supply) -> ThrottleLimits {
        ThrottleLimits {
            concurrency: rng.bool().then(|| rng.u32(1..5)),
            queue: QueueLimits {
                depth: rng.usize(0..40),
                bytes: rng.u64(500..4_000),
                timeout: Duration::from_millis(rng.u64(100..20_000)),
            },
            start_timeout: Duration::from_millis(rng.u64(100..10_000)),
            supply,
        }
    }

    fn pass_time(&mut self) {
        let ms = match self.sim.rng.u32(..400) {
            0..2 => self.sim.rng.u64(1_000..70_000),
            2..30 => self.sim.rng.u64(1..300),
            30..200 => 1,
            _ => 0,
        };
        let granted = self.grants.iter().filter(|grant| !grant.ticket.arrival.passive);
        let waiting = self.waiting.values().filter(|waiting| !waiting.passive);
        let held = granted.count() + waiting.count();
        self.area += held as f64 * ms as f64;
        self.sim.pass(Duration::from_millis(ms));
        // The core is called at every change; nothing changes in between.
    }

    fn arrive(&mut self) {
        let deadline = self.sim.rng.u32(..4) == 0;
        let arrival = Arrival {
            bytes: self.sim.rng.u64(..200),
            deadline: deadline.then(|| self.sim.now + Duration::from_millis(self.sim.rng.u64(..5_000))),
            sticky: (self.sim.rng.u32(..5) == 0).then(|| StickyKey::of(&[self.sim.rng.u8(..)])),
            passive: self.sim.rng.u32(..6) == 0,
        };
        let id = self.next_id;
        self.next_id += 1;
        self.unresolved.insert(id);
        let (verdict, actions) = self.core.arrive(arrival, self.sim.now, || id);
        self.apply(actions);
        if let CoreAdmission::Granted(_) = &verdict {
            assert!(self.waiting.is_empty(), "an arrival overtook a waiter");
        }
        self.take(id, arrival, Duration::ZERO, verdict);
    }

    fn failover(&mut self) {
        let Some(grant) = self.any_grant() else { return };
        if self.sim.rng.bool() {
            let outcome = self.outcome();
            let actions = self
                .core
                .report(grant.slot, grant.readiness_epoch, outcome, self.sim.now);
            self.apply(actions);
        }
        let refused = self.sim.rng.bool();
        *self.in_flight.get_mut(&grant.endpoint.key).expect("counted") -= 1;
        let (seq, arrival, queued) = (grant.ticket.seq, grant.ticket.arrival, grant.ticket.queued);
        let id = self.next_id;
        self.next_id += 1;
        self.unresolved.insert(id);
        let failed = (grant.slot, grant.readiness_epoch, refused);
        let (verdict, actions) = self.core.failover(failed, grant.ticket, self.sim.now, || id);
        self.apply(actions);
        if let CoreAdmission::Granted(_) = &verdict {
            let oldest = self.waiting.first_key_value().map(|(s, _)| *s);
            assert!(
                oldest.is_none_or(|o| o > seq),
                "a failed attempt overtook {oldest:?}"
            );
        }
        self.take(id, arrival, queued, verdict);
    }

    fn take(&mut self, id: u64, arrival: Arrival, queued: Duration, verdict: CoreAdmission) {
        match verdict {
            CoreAdmission::Granted(grant) => self.granted(id, grant),
            CoreAdmission::Rejected(rejection) => self.rejected(id, &rejection),
            CoreAdmission::NeedsEviction(_) => panic!("a service evicts itself"),
            CoreAdmission::Queued { seq } => {
                let since = self.sim.now - queued;
                let waiting = Waiting {
                    id,
                    bytes: arrival.bytes,
                    passive: arrival.passive,
                    deadline: arrival.deadline,
                    since,
                    latest: since + self.limits.queue.timeout,
                };
                assert!(self.waiting.insert(seq, waiting).is_none(), "waits twice");
                assert!(self.waiting.len() <= self.limits.queue.depth, "too deep");
                let bytes: u64 = self.waiting.values().map(|w| w.bytes).sum();
                assert!(bytes <= self.limits.queue.bytes, "too many bytes");
                assert!(self.closed.is_none(), "waits at a closed throttler");
            }
        }
    }

    fn release(&mut self) {
        if let Some(grant) = self.any_grant() {
            *self.in_flight.get_mut(&grant.endpoint.key).expect("counted") -= 1;
            let actions = self
                .core
                .release(grant.slot, grant.ticket.arrival.passive, self.sim.now);
            self.apply(actions);
        }
    }

    fn cancel(&mut self) {
        let n = self.sim.rng.usize(..self.waiting.len().max(1));
        if let Some((&seq, waiting)) = self.waiting.iter().nth(n) {
            assert_eq!(self.core.cancel(seq, self.sim.now), Some(waiting.id));
            assert_eq!(self.core.cancel(seq, self.sim.now), None, "cancelled twice");
            self.unresolved.remove(&waiting.id);
            self.waiting.remove(&seq);
        }
    }

    fn outcome(&mut self) -> Outcome {
        match self.sim.rng.u32(..8) {
            0 => Outcome::ConnectFailed,
            1 => Outcome::ResponseTimeout,
            2..6 => Outcome::Responded { status: 503 },
            _ => Outcome::Responded { status: 200 },
        }
    }

    fn report(&mut self) {
        for _ in 0..self.sim.rng.u32(1..6) {
            let n = self.sim.rng.usize(..self.grants.len().max(1));
            let outcome = self.outcome();
            if let Some(grant) = self.grants.get(n) {
                let actions = self
                    .core
                    .report(grant.slot, grant.readiness_epoch, outcome, self.sim.now);
                self.apply(actions);
            }
        }
    }

    fn add(&mut self) {
        if self.core.known().count() >= self.most_endpoints {
            return;
        }
        let instance = self.limits.supply == Supply::Activated && self.sim.rng.u32(..8) > 0;
        let id = InstanceId(self.next_instance);
        self.next_instance += 1;
        let port = 1_000 + u16::try_from(self.next_instance % 50_000).expect("fits");
        let address = EndpointAddr::Tcp(([127, 0, 0, 1], port).into());
        let state = Arc::new(EndpointState::new(address, instance.then_some(id)));
        let ready = self.limits.supply != Supply::Activated;
        let actions = self.core.endpoint_added(state, ready, self.sim.now);
        self.apply(actions);
    }

    fn ready(&mut self) {
        if let Some((key, _)) = self.any_endpoint() {
            let actions = self.core.endpoint_ready(key, self.sim.now);
            self.apply(actions);
        }
    }

    fn failing(&mut self) {
        if let Some((key, _)) = self.any_endpoint() {
            let actions = self.core.endpoint_failing(key, self.sim.now);
            self.apply(actions);
        }
    }

    fn remove(&mut self) {
        if let Some((key, _)) = self.any_endpoint() {
            let actions = self.core.endpoint_removed(key, self.sim.now);
            self.apply(actions);
        }
    }

    fn retire(&mut self) {
        let to_zero = self.sim.rng.bool();
        let count = self.sim.rng.u32(..4);
        let live = |core: &Core<u64>| {
            let live = core.known().filter(|s| s.is_live());
            live.filter_map(|s| Some((s.in_flight, s.state.instance?)))
                .collect::<Vec<_>>()
        };
        let before = live(&self.core);
        let passive = |grant: &Grant| grant.ticket.arrival.passive;
        let idle =
            !self.paused && self.waiting.values().all(|w| w.passive) && self.grants.iter().all(passive);
        let (victims, actions) = self.core.retire(0, count, to_zero, self.sim.now);
        self.apply(actions);
        let after = live(&self.core);
        if to_zero && !idle {
            let busy = |i: &InstanceId| before.iter().any(|(n, b)| b == i && *n > 0);
            assert!(!victims.iter().any(busy), "to zero with somebody there");
            assert!(
                before.is_empty() || !after.is_empty(),
                "to zero with somebody there"
            );
            if self.paused && !before.is_empty() {
                self.sim.saw("kept");
            }
        } else if !to_zero {
            assert!(
                before.is_empty() || !after.is_empty(),
                "zero without asking for it"
            );
        }
        let in_flight = |i: &InstanceId| before.iter().find(|(_, b)| b == i).map(|(n, _)| *n);
        let most = victims.iter().filter_map(in_flight).max();
        let least = after.iter().map(|(n, _)| *n).min();
        // Waiters may have been admitted since, never to a victim; the others only got more.
        if idle && let (Some(most), Some(least)) = (most, least) {
            assert!(most <= least, "a victim had more in flight than one that stays");
        }
    }

    fn retire_these(&mut self) {
        if let Some((_, Some(instance))) = self.any_endpoint() {
            let actions = self.core.retire_these(&[instance], self.sim.now);
            self.apply(actions);
        }
    }

    fn change_limits(&mut self) {
        let supply = match self.limits.supply {
            Supply::Resolving if self.sim.rng.bool() => Supply::Fixed,
            same => same,
        };
        let before = self.limits.concurrency;
        self.limits = Self::random_limits(&mut self.sim.rng, supply);
        self.allowed = match (before, self.limits.concurrency) {
            (Some(a), Some(b)) => Some(a.max(b)),
            _ => None,
        };
        let actions = self.core.set_limits(self.limits, self.sim.now);
        for waiting in self.waiting.values_mut() {
            waiting.latest = waiting.latest.max(waiting.since + self.limits.queue.timeout);
        }
        self.allowed = self.limits.concurrency;
        self.apply(actions);
    }

    fn fail(&mut self) {
        let failure = Arc::new(ActivationFailure {
            failure: Failure::Failed,
            detail: "exit status 1".into(),
            retry_after: Duration::from_millis(self.sim.rng.u64(..5_000)),
        });
        let waited = self.waiting.len();
        let actions = self.core.fail(0, &failure, self.sim.now);
        if self.core.endpoints.counts().ready == 0 {
            self.asked = false;
            self.failed = Some(self.sim.now + failure.retry_after);
        }
        self.apply(actions);
        if self.paused {
            assert!(
                self.waiting.len() == waited
                    || self.waiting.is_empty() && self.limits.supply == Supply::Fixed
            );
            if waited > 0 {
                self.sim.saw("paused_start_failed");
            }
        } else if self.core.endpoints.counts().ready == 0 {
            assert!(self.waiting.is_empty(), "a failure leaves nobody waiting");
        }
    }

    fn sample(&mut self) {
        let span = self.sim.now.duration_since(self.sampled).as_secs_f64() * 1_000.0;
        let load = self.core.sample(self.sim.now);
        if span > 0.0 {
            let want = self.area / span;
            let near = (load.average_concurrency - want).abs() < 1e-6 * want.max(1.0);
            assert!(near, "{} is not {want}", load.average_concurrency);
        }
        (self.area, self.sampled) = (0.0, self.sim.now);
    }

    /// A visit leaves nobody waiting, and demands a start only where none is under way.
    fn visit(&mut self) {
        let before = self.waiting.len();
        let asked = self.asked;
        let coming = self.core.endpoints.is_one_coming(0);
        // As in `check`: an instance that was ready before counts there, too.
        let is_starting =
            |s: &EndpointRecord| s.phase == EndpointPhase::Starting && s.state.instance.is_some();
        let starting = self.core.known().any(is_starting);
        let keep = Duration::from_millis(self.sim.rng.u64(..5_000));
        let (shown, actions) = self.core.visit(keep, self.sim.now);
        let demands = actions
            .signals
            .iter()
            .any(|s| matches!(s, Signal::Activate { .. }));
        assert!(!(demands && coming), "a second start");
        self.apply(actions);
        assert_eq!(self.waiting.len(), before);
        assert!(shown.is_none() || self.core.endpoints.counts().ready == 0);
        let load = self.core.peek(self.sim.now);
        match shown.map(|shown| shown.phase) {
            Some(ColdPhase::Failed { .. }) => {
                assert!(!demands && !load.expected, "a start within the back-off");
            }
            Some(_) => {
                assert!(
                    load.expected && (demands || asked || starting),
                    "expects what nobody asked for"
                );
                self.sim.saw("visited");
            }
            None => assert!(!demands && !load.expected),
        }
    }

    /// From a pause on nothing is granted; a resume admits in order of arrival, as `apply` asserts.
    fn pause_or_resume(&mut self) {
        let paused = !self.paused || self.sim.rng.bool();
        let waited = self.waiting.len();
        let changes = paused != self.paused;
        self.paused = paused;
        let actions = self.core.pause(paused, self.sim.now);
        self.apply(actions);
        for waiting in self.waiting.values_mut() {
            waiting.latest = waiting.latest.max(waiting.since + self.limits.queue.timeout);
        }
        match (changes, paused) {
            (true, true) => self.sim.saw("paused"),
            (true, false) if waited > self.waiting.len() => self.sim.saw("resumed"),
            _ => {}
        }
    }

    fn close_or_reopen(&mut self) {
        if self.closed.is_some() {
            // A drain is final; the storm goes on with a fresh start all the same.
            self.core.closed = None;
            self.closed = None;
        } else if self.sim.rng.u32(..4) == 0 {
            let closing = if self.sim.rng.bool() {
                Closing::Removed
            } else {
                Closing::Draining
            };
            self.closed = Some(closing);
            let actions = self.core.close(closing, self.sim.now);
            self.apply(actions);
            assert!(self.waiting.is_empty(), "closing leaves nobody waiting");
        }
    }

    fn any_grant(&mut self) -> Option<Grant> {
        let n = self.sim.rng.usize(..self.grants.len().max(1));
        (n < self.grants.len()).then(|| self.grants.swap_remove(n))
    }

    fn any_endpoint(&mut self) -> Option<(u64, Option<InstanceId>)> {
        let known: Vec<_> = self
            .core
            .known()
            .map(|s| (s.state.key, s.state.instance))
            .collect();
        let n = self.sim.rng.usize(..known.len().max(1));
        known.get(n).copied()
    }

    fn apply(&mut self, actions: Actions<u64>) {
        for resolved in actions.resolved {
            let found = self.waiting.iter().find(|(_, w)| w.id == resolved.waiter);
            let seq = *found.expect("resolved, but does not wait").0;
            let waiting = self.waiting.remove(&seq).expect("just found");
            match resolved.verdict {
                Ok(grant) => {
                    assert_eq!(grant.ticket.seq, seq);
                    let older = self.waiting.first_key_value().filter(|(s, _)| **s < seq);
                    assert!(older.is_none(), "a waiter was overtaken");
                    assert!(
                        waiting.deadline.is_none_or(|d| d > self.sim.now),
                        "sent on too late"
                    );
                    self.sim.saw("admitted");
                    self.granted(waiting.id, grant);
                }
                Err(rejection) => self.rejected(waiting.id, &rejection),
            }
        }
        for signal in actions.signals {
            match signal {
                Signal::Activate { .. } => {
                    assert_eq!(self.limits.supply, Supply::Activated);
                    (self.asked, self.failed) = (true, None);
                }
                Signal::Ready { instance: i, .. } => {
                    assert!(self.told_ready.insert(i), "ready for the first time twice")
                }
                Signal::Drained { instance: i, .. } => {
                    assert!(self.told_drained.insert(i), "drained twice");
                    let slot = self.core.known().find(|s| s.state.instance == Some(i));
                    assert!(slot.is_some_and(|s| s.in_flight == 0 && s.phase == EndpointPhase::Draining));
                }
                Signal::Activated { .. } => self.sim.saw("activated"),
                Signal::ActivationFailed { .. } | Signal::Ejected { .. } | Signal::Reinstated { .. } => {}
            }
        }
    }

    fn granted(&mut self, id: u64, grant: Grant) {
        assert!(self.unresolved.remove(&id), "resolved twice");
        let in_flight = self.in_flight.entry(grant.endpoint.key).or_default();
        *in_flight += 1;
        assert!(
            self.allowed.is_none_or(|limit| *in_flight <= limit),
            "above the limit"
        );
        assert_ne!(self.closed, Some(Closing::Draining));
        assert!(!self.paused, "sent on while paused");
        let drained = grant
            .endpoint
            .instance
            .is_some_and(|i| self.told_drained.contains(&i));
        assert!(!drained, "given to a retired instance");
        self.grants.push(grant);
    }

    fn rejected(&mut self, id: u64, rejection: &Rejection) {
        assert!(self.unresolved.remove(&id), "resolved twice");
        assert!(
            rejection
                .retry_after()
                .is_none_or(|r| r >= Duration::from_secs(1))
        );
        self.sim.saw(match rejection {
            Rejection::QueueFull { .. } => "queue_full",
            Rejection::QueueTimeout { .. } if self.paused => "paused_timeout",
            Rejection::QueueTimeout { .. } => "queue_timeout",
            Rejection::ActivationFailed { .. } => {
                assert!(!self.paused, "a start ends the wait for a resume");
                "activation_failed"
            }
            Rejection::NoEndpoints => {
                let nothing = self.core.endpoints.counts().live() == 0;
                assert!(!self.paused || nothing && self.limits.supply == Supply::Fixed);
                "no_endpoints"
            }
            Rejection::Overloaded { .. } => "overloaded",
            Rejection::Dormant { .. } => {
                assert!(
                    self.core.endpoints.counts().ready == 0,
                    "dormant, and one is ready"
                );
                "dormant"
            }
            Rejection::Draining => "draining",
            Rejection::Removed => "removed",
            Rejection::DeadlineExceeded => "deadline",
        });
    }

    fn check_ages(&self) {
        for waiting in self.waiting.values() {
            assert!(
                waiting.deadline.is_none_or(|d| d > self.sim.now),
                "waits past its deadline"
            );
            assert!(
                waiting.latest > self.sim.now,
                "waits longer than the queue's timeout"
            );
        }
    }
}

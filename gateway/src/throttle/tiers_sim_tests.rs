//! Simulation of one throttler with tiers: a storm over the sans-IO core, checked after every step against a model of it.
//!
//! `sim_tests` has what is the same without tiers: bounds of the queue, deadlines, sticky keys, draining.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_model::{ActivationFailure, EndpointAddr, Failure, InstanceId, QueueLimits, QueueTotals};

use super::actions::{Actions, CoreAdmission, Grant, Signal};
use super::arrival::{Arrival, Outcome};
use super::budget::QueueBudget;
use super::core::{Activation, Core, Supply, ThrottleLimits};
use super::endpoint::{EndpointPhase, EndpointState};
use super::endpoint_set::{EndpointRecord, bit};
use super::rejection::{Closing, Rejection};
use super::test_kit::account;
use super::tiers::TierLimits;
use crate::sim::{self, Sim, World};

#[test]
fn a_storm_over_tiers_keeps_the_invariants() {
    sim::storm::<TierStorm>();
}

#[derive(Clone, Copy)]
struct Waiting {
    id: u64,
    passive: bool,
    /// The tiers that said 429.
    refused: u8,
}

struct TierStorm {
    sim: Sim,
    core: Core<u64>,
    tiers: Vec<TierLimits>,
    next_id: u64,
    next_instance: u64,
    /// By order of arrival.
    waiting: BTreeMap<u64, Waiting>,
    grants: Vec<Grant>,
    paused: bool,
    /// Requests × milliseconds that each tier is scaled by.
    areas: Vec<f64>,
    sampled: Vec<Instant>,
}

impl World for TierStorm {
    const SEEDS: u64 = 256;
    const STEPS: usize = 1_500;
    const REACHES: &'static str = "admitted activated earlier_serves moved spilled spilled_to_resting spilled_waits \
                                   failed_elsewhere activation_failed no_endpoints tier_to_zero queue_timeout \
                                   queue_full dormant draining paused_start_failed resumed kept";

    fn new(mut sim: Sim) -> Self {
        let (rng, now) = (&mut sim.rng, sim.now);
        let tiers: Vec<_> = (0..rng.usize(2..5)).map(|_| Self::random_tier(rng)).collect();
        let limits = ThrottleLimits {
            concurrency: None,
            queue: QueueLimits {
                depth: rng.usize(5..40),
                bytes: 1 << 20,
                timeout: Duration::from_millis(rng.u64(500..20_000)),
            },
            start_timeout: Duration::from_millis(rng.u64(100..10_000)),
            supply: Supply::Fixed,
        };
        let budget = Arc::new(QueueBudget::new(QueueTotals {
            depth: 1_000,
            bytes: 1 << 30,
        }));
        Self {
            core: Core::with_tiers(limits, &tiers, account(&budget, "shop"), rng.u64(..), now),
            next_id: 0,
            next_instance: 0,
            waiting: BTreeMap::new(),
            grants: Vec::new(),
            paused: false,
            areas: vec![0.0; tiers.len()],
            sampled: vec![now; tiers.len()],
            tiers,
            sim,
        }
    }

    fn sim(&mut self) -> &mut Sim {
        &mut self.sim
    }

    fn step(&mut self) {
        self.pass_time();
        let actions = self.core.expire(self.sim.now);
        self.apply(actions);
        match self.sim.rng.u32(0..102) {
            0..36 => self.arrive(),
            36..58 => self.release(),
            58..62 => self.failover(),
            62..70 => self.spill(),
            70..72 => self.cancel(),
            72..76 => self.report(),
            76..83 => self.add(),
            83..90 => self.ready(),
            90..92 => self.remove(),
            92..95 => self.retire(),
            95..97 => self.change_limits(),
            97..99 => self.fail(),
            99..100 => self.sample(),
            100..101 => self.pause_or_resume(),
            _ => self.close_and_reopen(),
        }
    }

    fn check(&mut self) {
        let mut in_flight: BTreeMap<u64, u32> = BTreeMap::new();
        for grant in &self.grants {
            *in_flight.entry(grant.endpoint.key).or_default() += 1;
        }
        for slot in self.core.known() {
            let counted = in_flight.get(&slot.state.key).copied().unwrap_or(0);
            assert_eq!(slot.in_flight, counted);
        }
        assert_eq!(self.core.queue.len(), self.waiting.len());
        for waiting in self.waiting.values() {
            if let Some(tier) = self.serves(waiting.refused) {
                let free = self.core.known().any(|slot| self.has_room(slot, tier));
                assert!(!free || self.paused, "waits beside a free slot of tier {tier}");
            }
        }
        if !self.waiting.is_empty() {
            assert!(self.core.next_timer().is_some(), "nobody would wake it");
        }
        let hope = (0..self.tiers.len()).any(|tier| {
            let counts = self.core.endpoints.counts_of(tier);
            match self.tiers[tier].supply {
                Supply::Activated => {
                    let asked = !matches!(self.core.tiers[tier].activation, Activation::Idle);
                    counts.ready > 0 || counts.starting > 0 || asked || self.core.endpoints.rests(tier)
                }
                Supply::Resolving => true,
                Supply::Fixed => counts.live() > 0,
            }
        });
        let active = self.waiting.values().any(|waiting| !waiting.passive);
        assert!(hope || !active, "waits for something nobody asked for");
    }

    fn end(&mut self) {
        while !self.grants.is_empty() {
            self.release();
        }
        let actions = self.core.close(Closing::Draining, self.sim.now);
        self.apply(actions);
        assert!(self.waiting.is_empty(), "a waiter was forgotten");
        for tier in 0..self.tiers.len() {
            let load = self.core.sample_tier(number(tier), self.sim.now);
            assert_eq!((load.in_flight, load.queued, load.passive), (0, 0, 0));
        }
    }
}

fn number(tier: usize) -> u8 {
    u8::try_from(tier).expect("a handful")
}

impl TierStorm {
    fn random_tier(rng: &mut fastrand::Rng) -> TierLimits {
        TierLimits {
            concurrency: rng.bool().then(|| rng.u32(1..4)),
            supply: match rng.u8(..6) {
                0 | 1 => Supply::Fixed,
                2 => Supply::Resolving,
                _ => Supply::Activated,
            },
        }
    }

    fn has_room(&self, slot: &EndpointRecord, tier: usize) -> bool {
        let limit = self.tiers[tier].concurrency;
        slot.phase == EndpointPhase::Ready
            && usize::from(slot.tier) == tier
            && limit.is_none_or(|limit| slot.in_flight < limit)
    }

    /// The last tier with a ready endpoint outside of this set.
    fn serves(&self, refused: u8) -> Option<usize> {
        let ready = |tier: &usize| {
            let mut known = self.core.known();
            known.any(|slot| usize::from(slot.tier) == *tier && slot.phase == EndpointPhase::Ready)
        };
        let tiers = (0..self.tiers.len()).rev();
        tiers.filter(|tier| refused & bit(*tier) == 0).find(ready)
    }

    /// What a tier is scaled by, from the model alone but for whether its start is under way.
    fn held(&self, tier: usize) -> usize {
        let of = |grant: &&Grant| usize::from(grant.endpoint.tier) == tier;
        let active = || self.grants.iter().filter(|grant| !grant.ticket.arrival.passive);
        let own = active().filter(of).count();
        if self.serves(0).is_some_and(|serving| serving > tier) {
            return own;
        }
        let outstanding = matches!(self.core.tiers[tier].activation, Activation::Outstanding { .. });
        let others = if outstanding { active().count() - own } else { 0 };
        own + others + self.waiting.values().filter(|waiting| !waiting.passive).count()
    }

    fn pass_time(&mut self) {
        let ms = match self.sim.rng.u32(..400) {
            0..2 => self.sim.rng.u64(1_000..70_000),
            2..30 => self.sim.rng.u64(1..300),
            30..200 => 1,
            _ => 0,
        };
        for tier in 0..self.tiers.len() {
            self.areas[tier] += self.held(tier) as f64 * ms as f64;
        }
        self.sim.pass(Duration::from_millis(ms));
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn arrive(&mut self) {
        let arrival = Arrival {
            passive: self.sim.rng.u32(..8) == 0,
            ..Arrival::default()
        };
        let id = self.new_id();
        let (verdict, actions) = self.core.arrive(arrival, self.sim.now, || id);
        self.apply(actions);
        self.take(id, arrival.passive, 0, verdict);
    }

    fn release(&mut self) {
        if let Some(grant) = self.any_grant() {
            let passive = grant.ticket.arrival.passive;
            let actions = self.core.release(grant.slot, passive, self.sim.now);
            self.apply(actions);
        }
    }

    fn failover(&mut self) {
        let Some(grant) = self.any_grant() else { return };
        let (passive, refused) = (grant.ticket.arrival.passive, grant.ticket.refused_tiers());
        let id = self.new_id();
        let failed = (grant.slot, grant.readiness_epoch, self.sim.rng.bool());
        let (verdict, actions) = self.core.failover(failed, grant.ticket, self.sim.now, || id);
        self.apply(actions);
        self.take(id, passive, refused, verdict);
    }

    fn spill(&mut self) {
        let Some(grant) = self.any_grant() else { return };
        if !self.core.may_spill(grant.slot, &grant.ticket, self.sim.now) {
            return self.grants.push(grant);
        }
        let refused = grant.ticket.refused_tiers() | bit(grant.endpoint.tier.into());
        let passive = grant.ticket.arrival.passive;
        let id = self.new_id();
        let at = (grant.slot, grant.readiness_epoch);
        let (verdict, actions) = self.core.spill(at, grant.ticket, self.sim.now, || id);
        self.apply(actions);
        self.sim.saw("spilled");
        if matches!(verdict, CoreAdmission::Queued { .. }) {
            self.sim.saw("spilled_waits");
        }
        self.take(id, passive, refused, verdict);
    }

    fn take(&mut self, id: u64, passive: bool, refused: u8, verdict: CoreAdmission) {
        match verdict {
            CoreAdmission::Granted(grant) => self.granted(grant, refused),
            CoreAdmission::Rejected(rejection) => self.rejected(&rejection),
            CoreAdmission::NeedsEviction(_) => panic!("there is room"),
            CoreAdmission::Queued { seq } => {
                let waiting = Waiting { id, passive, refused };
                assert!(self.waiting.insert(seq, waiting).is_none(), "waits twice");
            }
        }
    }

    fn cancel(&mut self) {
        let n = self.sim.rng.usize(..self.waiting.len().max(1));
        if let Some((&seq, waiting)) = self.waiting.iter().nth(n) {
            assert_eq!(self.core.cancel(seq, self.sim.now), Some(waiting.id));
            self.waiting.remove(&seq);
        }
    }

    fn report(&mut self) {
        for _ in 0..self.sim.rng.u32(1..6) {
            let n = self.sim.rng.usize(..self.grants.len().max(1));
            let outcome = match self.sim.rng.u32(..6) {
                0 => Outcome::ConnectFailed,
                1..5 => Outcome::Responded { status: 503 },
                _ => Outcome::Responded { status: 200 },
            };
            if let Some(grant) = self.grants.get(n) {
                let (slot, epoch) = (grant.slot, grant.readiness_epoch);
                let actions = self.core.report(slot, epoch, outcome, self.sim.now);
                self.apply(actions);
            }
        }
    }

    fn add(&mut self) {
        if self.core.known().count() >= 8 {
            return;
        }
        let tier = self.sim.rng.usize(..self.tiers.len());
        let started = self.tiers[tier].supply == Supply::Activated;
        self.next_instance += 1;
        let instance = (started && self.sim.rng.u32(..8) > 0).then_some(InstanceId(self.next_instance));
        let port = 1_000 + u16::try_from(self.next_instance % 50_000).expect("fits");
        let address = EndpointAddr::Tcp(([127, 0, 0, 1], port).into());
        let state = Arc::new(EndpointState::in_tier(number(tier), address, instance));
        let actions = self.core.endpoint_added(state, !started, self.sim.now);
        self.apply(actions);
    }

    fn ready(&mut self) {
        if let Some((key, _)) = self.any_endpoint() {
            let before = self.serves(0);
            let actions = self.core.endpoint_ready(key, self.sim.now);
            self.apply(actions);
            if before.is_some() && self.serves(0) > before {
                self.sim.saw("moved");
            }
        }
    }

    fn remove(&mut self) {
        if let Some((key, _)) = self.any_endpoint() {
            let actions = self.core.endpoint_removed(key, self.sim.now);
            self.apply(actions);
        }
    }

    fn retire(&mut self) {
        let tier = self.sim.rng.usize(..self.tiers.len());
        let live = |core: &Core<u64>| {
            let instances = core
                .known()
                .filter(|slot| slot.is_live() && slot.state.instance.is_some());
            instances.filter(|slot| usize::from(slot.tier) == tier).count()
        };
        let before = live(&self.core);
        let own = |grant: &Grant| usize::from(grant.endpoint.tier) == tier && !grant.ticket.arrival.passive;
        let rests = self.serves(0).is_some_and(|serving| serving > tier);
        let awaited = !rests && self.waiting.values().any(|waiting| !waiting.passive);
        let kept = self.paused && !rests;
        let busy = kept || awaited || self.grants.iter().any(own);
        let (victims, actions) = self.core.retire(number(tier), u32::MAX, true, self.sim.now);
        self.apply(actions);
        assert!(
            before == 0 || !busy || live(&self.core) > 0,
            "to zero with somebody there"
        );
        if kept && before > 0 {
            self.sim.saw("kept");
        }
        if !victims.is_empty() && live(&self.core) == 0 {
            self.sim.saw("tier_to_zero");
        }
    }

    fn change_limits(&mut self) {
        for tier in &mut self.tiers {
            tier.concurrency = Self::random_tier(&mut self.sim.rng).concurrency;
            if tier.supply == Supply::Resolving && self.sim.rng.bool() {
                tier.supply = Supply::Fixed;
            }
        }
        let actions = self
            .core
            .set_tier_limits(self.core.limits, &self.tiers, self.sim.now);
        self.apply(actions);
    }

    fn fail(&mut self) {
        let tier = self.sim.rng.usize(..self.tiers.len());
        if self.tiers[tier].supply != Supply::Activated {
            return;
        }
        let failure = Arc::new(ActivationFailure {
            failure: Failure::Failed,
            detail: "exit status 1".into(),
            retry_after: Duration::from_millis(self.sim.rng.u64(..5_000)),
        });
        let waited = self.waiting.len();
        let actions = self.core.fail(number(tier), &failure, self.sim.now);
        self.apply(actions);
        if self.paused {
            let has_hope = self.core.endpoints.counts().live() > 0 || !self.core.has_supply(&[Supply::Fixed]);
            assert!(
                self.waiting.len() == waited || !has_hope,
                "a start ends the wait for a resume"
            );
            if waited > 0 {
                self.sim.saw("paused_start_failed");
            }
        } else if !self.waiting.is_empty() {
            self.sim.saw("failed_elsewhere");
        }
    }

    fn sample(&mut self) {
        for tier in 0..self.tiers.len() {
            let span = self.sim.now.duration_since(self.sampled[tier]).as_secs_f64() * 1_000.0;
            let load = self.core.sample_tier(number(tier), self.sim.now);
            if span > 0.0 {
                let want = self.areas[tier] / span;
                let near = (load.average_concurrency - want).abs() < 1e-6 * want.max(1.0);
                assert!(near, "tier {tier}: {} is not {want}", load.average_concurrency);
            }
            (self.areas[tier], self.sampled[tier]) = (0.0, self.sim.now);
        }
    }

    fn pause_or_resume(&mut self) {
        let waited = self.waiting.len();
        self.paused = !self.paused;
        let actions = self.core.pause(self.paused, self.sim.now);
        self.apply(actions);
        if !self.paused && self.waiting.len() < waited {
            self.sim.saw("resumed");
        }
    }

    fn close_and_reopen(&mut self) {
        if self.sim.rng.u32(..8) == 0 {
            let actions = self.core.close(Closing::Draining, self.sim.now);
            self.apply(actions);
            assert!(self.waiting.is_empty(), "closing leaves nobody waiting");
            // A drain is final; the storm goes on with a fresh start all the same.
            self.core.closed = None;
        }
    }

    fn any_grant(&mut self) -> Option<Grant> {
        let n = self.sim.rng.usize(..self.grants.len().max(1));
        (n < self.grants.len()).then(|| self.grants.swap_remove(n))
    }

    fn any_endpoint(&mut self) -> Option<(u64, Option<InstanceId>)> {
        let known = self
            .core
            .known()
            .map(|slot| (slot.state.key, slot.state.instance));
        let known: Vec<_> = known.collect();
        let n = self.sim.rng.usize(..known.len().max(1));
        known.get(n).copied()
    }

    fn apply(&mut self, actions: Actions<u64>) {
        for resolved in actions.resolved {
            let found = self
                .waiting
                .iter()
                .find(|(_, waiting)| waiting.id == resolved.waiter);
            let seq = *found.expect("resolved, but does not wait").0;
            let waiting = self.waiting.remove(&seq).expect("just found");
            match resolved.verdict {
                Ok(grant) => {
                    let alike = |other: &Waiting| other.refused == waiting.refused;
                    let mut older = self.waiting.range(..seq);
                    assert!(older.all(|(_, other)| !alike(other)), "a waiter was overtaken");
                    self.sim.saw("admitted");
                    self.granted(grant, waiting.refused);
                }
                Err(rejection) => self.rejected(&rejection),
            }
        }
        for signal in actions.signals {
            match signal {
                Signal::Activate { tier } => {
                    let tier = usize::from(tier);
                    assert_eq!(self.tiers[tier].supply, Supply::Activated);
                }
                Signal::Activated { .. } => self.sim.saw("activated"),
                _ => {}
            }
        }
    }

    fn granted(&mut self, grant: Grant, refused: u8) {
        let tier = usize::from(grant.endpoint.tier);
        assert!(!self.paused, "sent on while paused");
        assert_eq!(refused & bit(tier), 0, "back to a tier that said 429");
        let on_it = self
            .grants
            .iter()
            .filter(|other| other.endpoint.key == grant.endpoint.key);
        let in_flight = on_it.count() + 1;
        let limit = self.tiers[tier].concurrency;
        assert!(
            limit.is_none_or(|limit| in_flight <= limit as usize),
            "above the limit"
        );
        let serving = self.serves(0);
        if refused == 0 {
            assert_eq!(serving, Some(tier), "sent to a tier that rests");
            if tier + 1 < self.tiers.len() {
                self.sim.saw("earlier_serves");
            }
        } else if serving > Some(tier) {
            self.sim.saw("spilled_to_resting");
        }
        self.grants.push(grant);
    }

    fn rejected(&mut self, rejection: &Rejection) {
        self.sim.saw(match rejection {
            Rejection::QueueFull { .. } => "queue_full",
            Rejection::QueueTimeout { .. } => "queue_timeout",
            Rejection::ActivationFailed { .. } => "activation_failed",
            Rejection::NoEndpoints => "no_endpoints",
            Rejection::Dormant { .. } => "dormant",
            Rejection::Draining => "draining",
            other => panic!("{other:?}"),
        });
    }
}

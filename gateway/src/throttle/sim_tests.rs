//! A seeded storm over the sans-IO core; the invariants are checked after every step against a
//! model of it. A failing seed is printed; `SLUICE_SIM_SEED=n` replays it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_model::{
    ActivationFailure, EndpointAddr, Failure, InstanceId, QueueLimits, QueueTotals, StickyKey,
};

use super::arrival::{Arrival, Outcome};
use super::budget::QueueBudget;
use super::core::{Core, Supply, ThrottleLimits};
use super::effects::{Effects, Grant, Signal, Verdict};
use super::endpoint::{EndpointPhase, EndpointState};
use super::endpoint_set::Slot;
use super::rejection::{Closing, Rejection};
use super::test_kit::account;

const SEEDS: u64 = 256;
const STEPS: usize = 2_000;

#[test]
fn a_storm_keeps_the_invariants() {
    if let Ok(seed) = std::env::var("SLUICE_SIM_SEED") {
        run(seed.parse().expect("SLUICE_SIM_SEED is a number"));
        return;
    }
    let seen: BTreeSet<&str> = (0..SEEDS).flat_map(run).collect();
    // A storm that never gets anywhere proves nothing.
    let all = "admitted ejected activated queue_full queue_timeout activation_failed no_endpoints \
               overloaded draining removed deadline";
    let all: BTreeSet<&str> = all.split_whitespace().collect();
    assert_eq!(seen, all);
}

fn run(seed: u64) -> BTreeSet<&'static str> {
    struct Tell(u64);
    impl Drop for Tell {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("replay with SLUICE_SIM_SEED={}", self.0);
            }
        }
    }
    let _tell = Tell(seed);
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step();
    }
    world.end()
}

#[path = "sim_checks.rs"]
mod checks;

struct Waiting {
    id: u64,
    bytes: u64,
    deadline: Option<Instant>,
    /// When it would have come to wait had it not waited before.
    since: Instant,
    /// When it has to be gone by the most generous limits it waited under.
    latest: Instant,
}

struct World {
    rng: fastrand::Rng,
    now: Instant,
    core: Core<u64>,
    budget: Arc<QueueBudget>,
    limits: ThrottleLimits,
    most_endpoints: usize,
    /// The higher of the limits before and after the event that runs.
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
    /// Demand was sent since something was last ready or on its way.
    asked: bool,
    area: f64,
    sampled: Instant,
    seen: BTreeSet<&'static str>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let now = Instant::now();
        let supply = match rng.u8(..4) {
            0 => Supply::Fixed,
            1 => Supply::Resolving,
            _ => Supply::Activated,
        };
        let limits = Self::random_limits(&mut rng, supply);
        let budget = Arc::new(QueueBudget::new(QueueTotals {
            depth: 25,
            bytes: 3_000,
        }));
        Self {
            core: Core::new(limits, account(&budget, "shop"), rng.u64(..), now),
            now,
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
            asked: false,
            area: 0.0,
            sampled: now,
            seen: BTreeSet::new(),
            rng,
        }
    }

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

    fn step(&mut self) {
        self.pass_time();
        // What is due happens in an event of its own: every other event then starts from a settled
        // state, which is what the checks of grants assume.
        let fx = self.core.expire(self.now);
        self.apply(fx);
        self.check_ages();
        let event = if self.closed.is_some() { 0..105 } else { 0..100 };
        match self.rng.u32(event) {
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
            _ => self.close_or_reopen(),
        }
        self.check();
    }

    fn pass_time(&mut self) {
        let ms = match self.rng.u32(..400) {
            0..2 => self.rng.u64(1_000..70_000),
            2..30 => self.rng.u64(1..300),
            30..200 => 1,
            _ => 0,
        };
        let held = self.grants.len() + self.waiting.len();
        self.area += held as f64 * ms as f64;
        self.now += Duration::from_millis(ms);
        // The core learns of every change when it happens; nothing changes in between.
    }

    fn arrive(&mut self) {
        let deadline = self.rng.u32(..4) == 0;
        let arrival = Arrival {
            bytes: self.rng.u64(..200),
            deadline: deadline.then(|| self.now + Duration::from_millis(self.rng.u64(..5_000))),
            sticky: (self.rng.u32(..5) == 0).then(|| StickyKey::of(&[self.rng.u8(..)])),
        };
        let id = self.next_id;
        self.next_id += 1;
        self.unresolved.insert(id);
        let (verdict, fx) = self.core.arrive(arrival, self.now, || id);
        self.apply(fx);
        if let Verdict::Granted(_) = &verdict {
            assert!(self.waiting.is_empty(), "an arrival overtook a waiter");
        }
        self.take(id, arrival, Duration::ZERO, verdict);
    }

    fn failover(&mut self) {
        let Some(grant) = self.any_grant() else { return };
        if self.rng.bool() {
            let outcome = self.outcome();
            let fx = self.core.report(grant.slot, grant.turn, outcome, self.now);
            self.apply(fx);
        }
        let refused = self.rng.bool();
        *self.in_flight.get_mut(&grant.endpoint.key).expect("counted") -= 1;
        let (seq, arrival, queued) = (grant.place.seq, grant.place.arrival, grant.place.queued);
        let id = self.next_id;
        self.next_id += 1;
        self.unresolved.insert(id);
        let failed = (grant.slot, grant.turn, refused);
        let (verdict, fx) = self.core.failover(failed, grant.place, self.now, || id);
        self.apply(fx);
        if let Verdict::Granted(_) = &verdict {
            let oldest = self.waiting.first_key_value().map(|(s, _)| *s);
            assert!(
                oldest.is_none_or(|o| o > seq),
                "a failed attempt overtook {oldest:?}"
            );
        }
        self.take(id, arrival, queued, verdict);
    }

    fn take(&mut self, id: u64, arrival: Arrival, queued: Duration, verdict: Verdict) {
        match verdict {
            Verdict::Granted(grant) => self.granted(id, grant),
            Verdict::Rejected(rejection) => self.rejected(id, &rejection),
            Verdict::Crowded(_) => panic!("a service displaces itself"),
            Verdict::Queued { seq } => {
                let since = self.now - queued;
                let waiting = Waiting {
                    id,
                    bytes: arrival.bytes,
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
            let fx = self.core.release(grant.slot, self.now);
            self.apply(fx);
        }
    }

    fn cancel(&mut self) {
        let n = self.rng.usize(..self.waiting.len().max(1));
        if let Some((&seq, waiting)) = self.waiting.iter().nth(n) {
            assert_eq!(self.core.cancel(seq, self.now), Some(waiting.id));
            assert_eq!(self.core.cancel(seq, self.now), None, "cancelled twice");
            self.unresolved.remove(&waiting.id);
            self.waiting.remove(&seq);
        }
    }

    fn outcome(&mut self) -> Outcome {
        match self.rng.u32(..8) {
            0 => Outcome::ConnectFailed,
            1 => Outcome::ResponseTimeout,
            2..6 => Outcome::Responded { status: 503 },
            _ => Outcome::Responded { status: 200 },
        }
    }

    fn report(&mut self) {
        for _ in 0..self.rng.u32(1..6) {
            let n = self.rng.usize(..self.grants.len().max(1));
            let outcome = self.outcome();
            if let Some(grant) = self.grants.get(n) {
                let fx = self.core.report(grant.slot, grant.turn, outcome, self.now);
                self.apply(fx);
            }
        }
    }

    fn add(&mut self) {
        if self.core.known().count() >= self.most_endpoints {
            return;
        }
        let instance = self.limits.supply == Supply::Activated && self.rng.u32(..8) > 0;
        let id = InstanceId(self.next_instance);
        self.next_instance += 1;
        let port = 1_000 + u16::try_from(self.next_instance % 50_000).expect("fits");
        let address = EndpointAddr::Tcp(([127, 0, 0, 1], port).into());
        let state = Arc::new(EndpointState::new(address, instance.then_some(id)));
        let ready = self.limits.supply != Supply::Activated;
        let fx = self.core.endpoint_added(state, ready, self.now);
        self.apply(fx);
    }

    fn ready(&mut self) {
        if let Some((key, _)) = self.any_endpoint() {
            let fx = self.core.endpoint_ready(key, self.now);
            self.apply(fx);
        }
    }

    fn failing(&mut self) {
        if let Some((key, _)) = self.any_endpoint() {
            let fx = self.core.endpoint_failing(key, self.now);
            self.apply(fx);
        }
    }

    fn remove(&mut self) {
        if let Some((key, _)) = self.any_endpoint() {
            let fx = self.core.endpoint_removed(key, self.now);
            self.apply(fx);
        }
    }

    fn retire(&mut self) {
        let to_zero = self.rng.bool();
        let count = self.rng.u32(..4);
        let live = |core: &Core<u64>| {
            let live = core.known().filter(|s| s.is_live());
            live.filter_map(|s| Some((s.in_flight, s.state.instance?)))
                .collect::<Vec<_>>()
        };
        let before = live(&self.core);
        let idle = self.waiting.is_empty() && self.grants.is_empty();
        let (victims, fx) = self.core.retire(count, to_zero, self.now);
        self.apply(fx);
        let after = live(&self.core);
        if to_zero && !idle {
            let busy = |i: &InstanceId| before.iter().any(|(n, b)| b == i && *n > 0);
            assert!(!victims.iter().any(busy), "to zero with somebody there");
            assert!(
                before.is_empty() || !after.is_empty(),
                "to zero with somebody there"
            );
        } else if !to_zero {
            assert!(
                before.is_empty() || !after.is_empty(),
                "zero without asking for it"
            );
        }
        let in_flight = |i: &InstanceId| before.iter().find(|(_, b)| b == i).map(|(n, _)| *n);
        let most = victims.iter().filter_map(in_flight).max();
        let least = after.iter().map(|(n, _)| *n).min();
        // Waiters may have been let in since, never onto a victim; those who stay only got more.
        if idle && let (Some(most), Some(least)) = (most, least) {
            assert!(most <= least, "a victim had more in flight than one that stays");
        }
    }

    fn retire_these(&mut self) {
        if let Some((_, Some(instance))) = self.any_endpoint() {
            let fx = self.core.retire_these(&[instance], self.now);
            self.apply(fx);
        }
    }

    fn change_limits(&mut self) {
        let supply = match self.limits.supply {
            Supply::Resolving if self.rng.bool() => Supply::Fixed,
            same => same,
        };
        let before = self.limits.concurrency;
        self.limits = Self::random_limits(&mut self.rng, supply);
        self.allowed = match (before, self.limits.concurrency) {
            (Some(a), Some(b)) => Some(a.max(b)),
            _ => None,
        };
        let fx = self.core.set_limits(self.limits, self.now);
        for waiting in self.waiting.values_mut() {
            waiting.latest = waiting.latest.max(waiting.since + self.limits.queue.timeout);
        }
        self.allowed = self.limits.concurrency;
        self.apply(fx);
    }

    fn fail(&mut self) {
        let failure = Arc::new(ActivationFailure {
            failure: Failure::Failed,
            detail: "exit status 1".into(),
            retry_after: Duration::from_millis(self.rng.u64(..5_000)),
        });
        let ready = self.core.endpoints.counts().ready;
        let fx = self.core.fail(&failure, self.now);
        self.apply(fx);
        if ready == 0 {
            assert!(self.waiting.is_empty(), "a failure leaves nobody waiting");
            self.asked = false;
        }
    }

    fn sample(&mut self) {
        let span = self.now.duration_since(self.sampled).as_secs_f64() * 1_000.0;
        let load = self.core.sample(self.now);
        if span > 0.0 {
            let want = self.area / span;
            let near = (load.average_concurrency - want).abs() < 1e-6 * want.max(1.0);
            assert!(near, "{} is not {want}", load.average_concurrency);
        }
        (self.area, self.sampled) = (0.0, self.now);
    }

    fn close_or_reopen(&mut self) {
        if self.closed.is_some() {
            // A drain is final; the storm goes on with a fresh start all the same.
            self.core.closed = None;
            self.closed = None;
        } else if self.rng.u32(..4) == 0 {
            let closing = if self.rng.bool() {
                Closing::Removed
            } else {
                Closing::Draining
            };
            self.closed = Some(closing);
            let fx = self.core.close(closing, self.now);
            self.apply(fx);
            assert!(self.waiting.is_empty(), "closing leaves nobody waiting");
        }
    }

    fn any_grant(&mut self) -> Option<Grant> {
        let n = self.rng.usize(..self.grants.len().max(1));
        (n < self.grants.len()).then(|| self.grants.swap_remove(n))
    }

    fn any_endpoint(&mut self) -> Option<(u64, Option<InstanceId>)> {
        let known: Vec<_> = self
            .core
            .known()
            .map(|s| (s.state.key, s.state.instance))
            .collect();
        let n = self.rng.usize(..known.len().max(1));
        known.get(n).copied()
    }

    /// Every permit given back and the throttler closed, nothing is left of anybody.
    fn end(mut self) -> BTreeSet<&'static str> {
        while let Some(grant) = self.any_grant() {
            *self.in_flight.get_mut(&grant.endpoint.key).expect("counted") -= 1;
            let fx = self.core.release(grant.slot, self.now);
            self.apply(fx);
        }
        let fx = self.core.close(Closing::Draining, self.now);
        self.apply(fx);
        assert!(self.unresolved.is_empty());
        assert_eq!(self.budget.used(), QueueTotals { depth: 0, bytes: 0 });
        let load = self.core.peek(self.now);
        assert_eq!((load.in_flight, load.queued), (0, 0));
        self.seen
    }
}

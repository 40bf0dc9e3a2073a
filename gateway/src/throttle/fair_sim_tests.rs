//! A seeded storm over several cores and one budget. What the budget decides is checked against a
//! plain sum over all who wait, and between the steps of a displacement anything may happen.
//! `SLUICE_SIM_SEED=n` replays a failing seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_model::{ActivationFailure, EndpointAddr, Failure, QueueLimits, QueueTotals};

use super::arrival::Arrival;
use super::budget::QueueBudget;
use super::core::{Core, Supply, ThrottleLimits};
use super::effects::{Crowded, Effects, Grant, Verdict};
use super::endpoint::EndpointState;
use super::ledger::{Held, QueueKey};
use super::rejection::{Closing, Rejection};
use super::test_kit::{account, service};

const SEEDS: u64 = 256;
const STEPS: usize = 1_500;

#[test]
fn a_storm_over_a_full_gateway_is_fair() {
    if let Ok(seed) = std::env::var("SLUICE_SIM_SEED") {
        run(seed.parse().expect("SLUICE_SIM_SEED is a number"));
        return;
    }
    let seen: BTreeSet<&str> = (0..SEEDS).flat_map(run).collect();
    let all = "admitted displaced displaced_for_bytes needless overloaded above_lowered_totals \
               crowded_again slot_instead";
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

#[path = "fair_sim_checks.rs"]
mod checks;

use checks::{Standing, of, queue};

/// A revision.
struct Side {
    core: Core<u64>,
    key: QueueKey,
    service: usize,
    /// Who waits and with how many bytes, by order of arrival.
    waiting: BTreeMap<u64, (u64, u64)>,
    grants: Vec<Grant>,
    closed: bool,
}

/// An arrival.
#[derive(Debug, Clone, Copy)]
struct Came {
    id: u64,
    side: usize,
    /// That of its side when it came.
    service: usize,
    bytes: u64,
}

/// An arrival between the steps of a displacement.
struct Limbo {
    came: Came,
    crowded: Box<Crowded>,
    /// The victim was asked.
    asked: bool,
}

struct World {
    rng: fastrand::Rng,
    now: Instant,
    budget: Arc<QueueBudget>,
    totals: QueueTotals,
    services: usize,
    sides: Vec<Side>,
    limbo: Vec<Limbo>,
    next_id: u64,
    unresolved: BTreeSet<u64>,
    used_before: Held,
    seen: BTreeSet<&'static str>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let now = Instant::now();
        let totals = Self::random_totals(&mut rng);
        let budget = Arc::new(QueueBudget::new(totals));
        let services = rng.usize(2..6);
        let sides = (0..rng.usize(services..9)).map(|n| {
            let service = n % services;
            let account = account(&budget, &name(service));
            let key = account.key();
            let limits = Self::random_limits(&mut rng);
            let mut core = Core::new(limits, account, rng.u64(..), now);
            for port in 0..rng.u16(1..3) {
                let address = EndpointAddr::Tcp(([127, 0, 0, 1], 1_000 + port).into());
                let state = Arc::new(EndpointState::new(address, None));
                assert!(core.endpoint_added(state, n > 1, now).resolved.is_empty());
            }
            Side {
                core,
                key,
                service,
                waiting: BTreeMap::new(),
                grants: Vec::new(),
                closed: false,
            }
        });
        Self {
            sides: sides.collect(),
            now,
            budget,
            totals,
            services,
            limbo: Vec::new(),
            next_id: 0,
            unresolved: BTreeSet::new(),
            used_before: Held::default(),
            seen: BTreeSet::new(),
            rng,
        }
    }

    fn random_totals(rng: &mut fastrand::Rng) -> QueueTotals {
        QueueTotals {
            depth: rng.usize(0..30),
            bytes: rng.u64(0..4_000),
        }
    }

    fn random_limits(rng: &mut fastrand::Rng) -> ThrottleLimits {
        ThrottleLimits {
            concurrency: Some(rng.u32(1..4)),
            queue: QueueLimits {
                depth: rng.usize(10..100),
                bytes: rng.u64(1_000..9_000),
                timeout: Duration::from_millis(rng.u64(1_000..20_000)),
            },
            start_timeout: Duration::from_secs(5),
            supply: Supply::Activated,
        }
    }

    fn step(&mut self) {
        self.used_before = self.used();
        if self.rng.u8(..20) == 0 {
            self.now += Duration::from_millis(self.rng.u64(..800));
        }
        // What is due happens in events of its own: every other event starts from a settled state.
        for n in 0..self.sides.len() {
            let fx = self.sides[n].core.expire(self.now);
            self.apply(n, fx);
        }
        let n = self.any_side();
        match self.rng.u32(..200) {
            0..90 => self.arrive(n),
            90..150 => self.advance(),
            150..170 => self.release(n),
            170..174 => self.failover(n),
            174..180 => self.cancel(n),
            180..183 => self.toggle_ready(n),
            183 => self.fail(n),
            184 => self.close_or_reopen(n),
            185..187 => self.change_limits(n),
            187..190 => {
                self.totals = Self::random_totals(&mut self.rng);
                self.budget.set_totals(self.totals);
            }
            190 => {
                let to = self.rng.usize(..self.services);
                self.sides[n].core.set_service(&service(&name(to)));
                self.sides[n].service = to;
            }
            _ => {}
        }
        // Most displacements are over before anything else happens.
        while self.limbo.len() > 4 || (!self.limbo.is_empty() && self.rng.u8(..3) == 0) {
            self.check();
            self.used_before = self.used();
            self.advance();
        }
        self.check();
    }

    /// Half of the load is on the first two, which hardly ever run.
    fn any_side(&mut self) -> usize {
        if self.rng.bool() {
            self.rng.usize(..2)
        } else {
            self.rng.usize(..self.sides.len())
        }
    }

    fn arrive(&mut self, n: usize) {
        let arrival = Arrival {
            bytes: self.rng.u64(..300),
            deadline: (self.rng.u8(..8) == 0)
                .then(|| self.now + Duration::from_millis(self.rng.u64(..2_000))),
            sticky: None,
        };
        let came = self.comes(n, arrival.bytes);
        let (verdict, fx) = self.sides[n].core.arrive(arrival, self.now, || came.id);
        self.take(came, Held::default(), verdict, fx);
    }

    fn failover(&mut self, n: usize) {
        let Some(grant) = self.any_grant(n) else { return };
        let came = self.comes(n, grant.place.arrival.bytes);
        let failed = (grant.slot, grant.turn, self.rng.bool());
        let core = &mut self.sides[n].core;
        let (verdict, fx) = core.failover(failed, grant.place, self.now, || came.id);
        self.take(came, Held::default(), verdict, fx);
    }

    /// The next step of some displacement.
    fn advance(&mut self) {
        let n = self.rng.usize(..self.limbo.len().max(1));
        let Some(limbo) = self.limbo.get(n) else { return };
        let (came, before) = (limbo.came, limbo.crowded.room.held());
        if limbo.asked {
            let Crowded { place, room, .. } = *self.limbo.swap_remove(n).crowded;
            let core = &mut self.sides[came.side].core;
            let (verdict, fx) = core.resume(place, room, self.now, || came.id);
            self.take(came, before, verdict, fx);
            return;
        }
        let victim = self.sides.iter().position(|s| s.key == limbo.crowded.victim);
        let victim = victim.expect("sides stay");
        let standing = self.standing(came.service, came.bytes, before, None);
        let mut give = None;
        if let Standing::Below { bytes, share } = standing
            && of(self.held(self.sides[victim].service), bytes) > share
        {
            give = self.sides[victim].waiting.last_key_value().map(|(_, w)| *w);
        }
        let limbo = &mut self.limbo[n];
        limbo.asked = true;
        let core = &mut self.sides[victim].core;
        let fx = core.displace(&mut limbo.crowded.room, self.now);
        let resolved: Vec<_> = fx.resolved.iter().map(|r| r.waiter).collect();
        assert_eq!(resolved, give.map(|(id, _)| id).into_iter().collect::<Vec<_>>());
        let after = limbo.crowded.room.held();
        if let Some((_, bytes)) = give {
            let more = (after.depth - before.depth, after.bytes - before.bytes);
            assert_eq!(more, (1, bytes));
            assert!(matches!(
                fx.resolved[0].verdict,
                Err(Rejection::Overloaded { .. })
            ));
            self.seen.insert(match standing {
                Standing::Below { bytes: true, .. } => "displaced_for_bytes",
                _ => "displaced",
            });
            if self.budget.used().depth > self.totals.depth {
                self.seen.insert("above_lowered_totals");
            }
        } else {
            assert_eq!(before, after);
            self.seen.insert("needless");
        }
        self.apply(victim, fx);
    }

    /// Checks an arrival's verdict; `room` is what it came with.
    fn take(&mut self, came: Came, room: Held, verdict: Verdict, fx: Effects<u64>) {
        let Came { id, side: n, .. } = came;
        // A failed attempt's slot goes to older waiters before it is decided.
        self.apply(n, fx);
        let loose = Some((came.service, room));
        let standing = self.standing(self.sides[n].service, came.bytes, room, loose);
        match verdict {
            Verdict::Granted(grant) => {
                let oldest = self.sides[n].waiting.first_key_value();
                assert!(
                    oldest.is_none_or(|(s, _)| *s > grant.place.seq),
                    "overtook a waiter"
                );
                assert!(self.unresolved.remove(&id), "resolved twice");
                self.sides[n].grants.push(grant);
                if room.depth > 0 {
                    self.seen.insert("slot_instead");
                }
            }
            Verdict::Queued { seq } => {
                assert_eq!(standing, Standing::Fits);
                let before = self.sides[n].waiting.insert(seq, (id, came.bytes));
                assert!(before.is_none(), "waits twice");
            }
            Verdict::Rejected(Rejection::Overloaded { retry_after }) => {
                assert!(retry_after >= Duration::from_secs(1));
                assert!(self.unresolved.remove(&id), "resolved twice");
                let gone = match standing {
                    Standing::Fits => panic!("refused what fits"),
                    Standing::Above => true,
                    Standing::Below { bytes, share } => self.most(bytes, share).is_none(),
                };
                assert!(gone, "refused below its share: {standing:?}");
                self.seen.insert("overloaded");
            }
            Verdict::Rejected(_) => assert!(self.unresolved.remove(&id), "resolved twice"),
            Verdict::Crowded(crowded) => {
                assert_eq!(crowded.room.held(), room);
                let victim = self.sides.iter().position(|s| s.key == crowded.victim);
                self.limbo.push(Limbo {
                    came,
                    crowded,
                    asked: false,
                });
                let Standing::Below { bytes, share } = standing else {
                    panic!("displaces while {standing:?}");
                };
                let victim = &self.sides[victim.expect("sides stay")];
                let held = of(self.held(victim.service), bytes);
                assert_eq!(Some(held), self.most(bytes, share), "not who holds most");
                let longest = self.longest_queue(victim.service, bytes);
                assert_eq!(Some(of(queue(victim), bytes)), longest, "not the longest queue");
                if room.depth > 0 {
                    self.seen.insert("crowded_again");
                }
            }
        }
    }

    fn apply(&mut self, n: usize, fx: Effects<u64>) {
        for resolved in fx.resolved {
            let waiting = &mut self.sides[n].waiting;
            let found = waiting.iter().find(|(_, (id, _))| *id == resolved.waiter);
            let seq = *found.expect("resolved, but does not wait").0;
            waiting.remove(&seq);
            assert!(self.unresolved.remove(&resolved.waiter), "resolved twice");
            if let Ok(grant) = resolved.verdict {
                let older = waiting.first_key_value().filter(|(s, _)| **s < seq);
                assert!(older.is_none(), "a waiter was overtaken");
                self.sides[n].grants.push(grant);
                self.seen.insert("admitted");
            }
        }
    }

    fn release(&mut self, n: usize) {
        if let Some(grant) = self.any_grant(n) {
            let fx = self.sides[n].core.release(grant.slot, self.now);
            self.apply(n, fx);
        }
    }

    fn cancel(&mut self, n: usize) {
        let nth = self.rng.usize(..self.sides[n].waiting.len().max(1));
        let side = &mut self.sides[n];
        if let Some((&seq, &(id, _))) = side.waiting.iter().nth(nth) {
            assert_eq!(side.core.cancel(seq, self.now), Some(id));
            side.waiting.remove(&seq);
            self.unresolved.remove(&id);
        }
    }

    /// Endpoints come up and go down.
    fn toggle_ready(&mut self, n: usize) {
        let core = &mut self.sides[n].core;
        let keys: Vec<u64> = core.known().map(|s| s.state.key).collect();
        let key = keys[self.rng.usize(..keys.len())];
        let fx = if self.rng.bool() {
            core.endpoint_ready(key, self.now)
        } else {
            core.endpoint_failing(key, self.now)
        };
        self.apply(n, fx);
    }

    fn fail(&mut self, n: usize) {
        let failure = Arc::new(ActivationFailure {
            failure: Failure::Failed,
            detail: "exit status 1".into(),
            retry_after: Duration::from_millis(300),
        });
        let fx = self.sides[n].core.fail(&failure, self.now);
        self.apply(n, fx);
    }

    fn close_or_reopen(&mut self, n: usize) {
        let side = &mut self.sides[n];
        side.closed = !side.closed;
        if side.closed {
            let fx = side.core.close(Closing::Removed, self.now);
            self.apply(n, fx);
            assert!(self.sides[n].waiting.is_empty(), "closing leaves nobody waiting");
        } else {
            side.core.reopen();
        }
    }

    fn change_limits(&mut self, n: usize) {
        let limits = Self::random_limits(&mut self.rng);
        let fx = self.sides[n].core.set_limits(limits, self.now);
        self.apply(n, fx);
    }

    fn comes(&mut self, side: usize, bytes: u64) -> Came {
        self.next_id += 1;
        self.unresolved.insert(self.next_id);
        Came {
            id: self.next_id,
            side,
            service: self.sides[side].service,
            bytes,
        }
    }

    fn any_grant(&mut self, n: usize) -> Option<Grant> {
        let grants = &mut self.sides[n].grants;
        let nth = self.rng.usize(..grants.len().max(1));
        (nth < grants.len()).then(|| grants.swap_remove(nth))
    }

    fn end(mut self) -> BTreeSet<&'static str> {
        while !self.limbo.is_empty() {
            self.used_before = self.used();
            self.advance();
            self.check();
        }
        for n in 0..self.sides.len() {
            let fx = self.sides[n].core.close(Closing::Draining, self.now);
            self.apply(n, fx);
        }
        assert!(self.unresolved.is_empty());
        assert_eq!(self.budget.used(), QueueTotals { depth: 0, bytes: 0 });
        assert_eq!(self.budget.services(), 0);
        self.seen
    }
}

fn name(service: usize) -> String {
    format!("s{service}")
}

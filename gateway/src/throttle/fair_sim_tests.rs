//! Simulation of several throttlers with one budget. Decisions of the budget are checked against a plain sum over all who
//! wait, and between the steps of a eviction anything may happen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use sluice_model::{ActivationFailure, EndpointAddr, Failure, QueueLimits, QueueTotals};

use super::accounting::{QueueKey, QueueUsage};
use super::actions::{Actions, CoreAdmission, Grant, NeedsEviction};
use super::arrival::Arrival;
use super::budget::QueueBudget;
use super::core::{Core, Supply, ThrottleLimits};
use super::endpoint::EndpointState;
use super::rejection::{Closing, Rejection};
use super::test_kit::{account, service};
use crate::sim::{self, Sim, World};

#[test]
fn a_storm_over_a_full_gateway_is_fair() {
    sim::storm::<Storm>();
}

/// A space request compared with the bounds, by plain sums.
#[derive(Debug, PartialEq)]
enum ShareCheck {
    Fits,
    Below { bytes: bool, share: u64 },
    Above,
}

/// A revision.
struct Side {
    core: Core<u64>,
    key: QueueKey,
    service: usize,
    /// Waiters with their bytes, by order of arrival.
    waiting: BTreeMap<u64, (u64, u64)>,
    grants: Vec<Grant>,
    closed: bool,
}

/// An arrival.
#[derive(Debug, Clone, Copy)]
struct Came {
    id: u64,
    side: usize,
    /// Service of its side at its arrival.
    service: usize,
    bytes: u64,
}

/// An arrival between the steps of an eviction.
struct Limbo {
    came: Came,
    crowded: Box<NeedsEviction>,
    /// The victim's owner was called.
    asked: bool,
}

struct Storm {
    sim: Sim,
    budget: Arc<QueueBudget>,
    totals: QueueTotals,
    services: usize,
    sides: Vec<Side>,
    limbo: Vec<Limbo>,
    next_id: u64,
    unresolved: BTreeSet<u64>,
    used_before: QueueUsage,
}

impl World for Storm {
    const SEEDS: u64 = 256;
    const STEPS: usize = 1_500;
    const REACHES: &'static str = "admitted evicted evicted_for_bytes needless overloaded \
                                   above_lowered_totals crowded_again slot_instead";

    fn new(mut sim: Sim) -> Self {
        let (rng, now) = (&mut sim.rng, sim.now);
        let totals = Self::random_totals(rng);
        let budget = Arc::new(QueueBudget::new(totals));
        let services = rng.usize(2..6);
        let sides = (0..rng.usize(services..9)).map(|n| {
            let service = n % services;
            let account = account(&budget, &name(service));
            let key = account.key();
            let limits = Self::random_limits(rng);
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
            budget,
            totals,
            services,
            limbo: Vec::new(),
            next_id: 0,
            unresolved: BTreeSet::new(),
            used_before: QueueUsage::default(),
            sim,
        }
    }

    fn sim(&mut self) -> &mut Sim {
        &mut self.sim
    }

    fn step(&mut self) {
        self.used_before = self.used();
        if self.sim.rng.u8(..20) == 0 {
            let time = Duration::from_millis(self.sim.rng.u64(..800));
            self.sim.pass(time);
        }
        // Deadlines are handled in events of their own: every other event starts from a settled state.
        for n in 0..self.sides.len() {
            let actions = self.sides[n].core.expire(self.sim.now);
            self.apply(n, actions);
        }
        let n = self.any_side();
        match self.sim.rng.u32(..200) {
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
                self.totals = Self::random_totals(&mut self.sim.rng);
                self.budget.set_totals(self.totals);
            }
            190 => {
                let to = self.sim.rng.usize(..self.services);
                self.sides[n].core.set_service(&service(&name(to)));
                self.sides[n].service = to;
            }
            _ => {}
        }
        // Most evictions are over before the next event.
        while self.limbo.len() > 4 || (!self.limbo.is_empty() && self.sim.rng.u8(..3) == 0) {
            self.check();
            self.used_before = self.used();
            self.advance();
        }
    }

    fn check(&mut self) {
        let used = self.used();
        let booked = self.budget.used();
        assert_eq!((booked.depth, booked.bytes), (used.depth, used.bytes));
        let most = self.totals.depth.max(self.used_before.depth);
        assert!(used.depth <= most, "too many wait: {} of {most}", used.depth);
        let most = self.totals.bytes.max(self.used_before.bytes);
        assert!(used.bytes <= most, "too many bytes: {} of {most}", used.bytes);
        let waiting = (0..self.services).filter(|s| self.held(*s).depth > 0);
        assert_eq!(self.budget.services(), waiting.count());
        let mut here: BTreeSet<u64> = self.limbo.iter().map(|l| l.came.id).collect();
        for side in &self.sides {
            assert_eq!(side.core.queue.len(), side.waiting.len());
            here.extend(side.waiting.values().map(|(id, _)| *id));
        }
        assert_eq!(here, self.unresolved, "somebody was forgotten");
    }

    fn end(&mut self) {
        while !self.limbo.is_empty() {
            self.used_before = self.used();
            self.advance();
            self.check();
        }
        for n in 0..self.sides.len() {
            let actions = self.sides[n].core.close(Closing::Draining, self.sim.now);
            self.apply(n, actions);
        }
        assert!(self.unresolved.is_empty());
        assert_eq!(self.budget.used(), QueueTotals { depth: 0, bytes: 0 });
        assert_eq!(self.budget.services(), 0);
    }
}

impl Storm {
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

    /// Half of the load is on the first two sides, which hardly ever have a ready endpoint.
    fn any_side(&mut self) -> usize {
        if self.sim.rng.bool() {
            self.sim.rng.usize(..2)
        } else {
            self.sim.rng.usize(..self.sides.len())
        }
    }

    fn arrive(&mut self, n: usize) {
        let arrival = Arrival {
            bytes: self.sim.rng.u64(..300),
            deadline: (self.sim.rng.u8(..8) == 0)
                .then(|| self.sim.now + Duration::from_millis(self.sim.rng.u64(..2_000))),
            sticky: None,
            passive: false,
        };
        let came = self.comes(n, arrival.bytes);
        let (verdict, actions) = self.sides[n].core.arrive(arrival, self.sim.now, || came.id);
        self.take(came, QueueUsage::default(), verdict, actions);
    }

    fn failover(&mut self, n: usize) {
        let Some(grant) = self.any_grant(n) else { return };
        let came = self.comes(n, grant.ticket.arrival.bytes);
        let failed = (grant.slot, grant.readiness_epoch, self.sim.rng.bool());
        let core = &mut self.sides[n].core;
        let (verdict, actions) = core.failover(failed, grant.ticket, self.sim.now, || came.id);
        self.take(came, QueueUsage::default(), verdict, actions);
    }

    /// The next step of some eviction.
    fn advance(&mut self) {
        let n = self.sim.rng.usize(..self.limbo.len().max(1));
        let Some(limbo) = self.limbo.get(n) else { return };
        let (came, before) = (limbo.came, limbo.crowded.reservation.held());
        if limbo.asked {
            let NeedsEviction {
                ticket, reservation, ..
            } = *self.limbo.swap_remove(n).crowded;
            let core = &mut self.sides[came.side].core;
            let (verdict, actions) = core.resume(ticket, reservation, self.sim.now, || came.id);
            self.take(came, before, verdict, actions);
            return;
        }
        let victim = self.sides.iter().position(|s| s.key == limbo.crowded.victim);
        let victim = victim.expect("sides stay");
        let standing = self.standing(came.service, came.bytes, before, None);
        let mut give = None;
        if let ShareCheck::Below { bytes, share } = standing
            && of(self.held(self.sides[victim].service), bytes) > share
        {
            give = self.sides[victim].waiting.last_key_value().map(|(_, w)| *w);
        }
        let limbo = &mut self.limbo[n];
        limbo.asked = true;
        let core = &mut self.sides[victim].core;
        let actions = core.evict_for(&mut limbo.crowded.reservation, self.sim.now);
        let resolved: Vec<_> = actions.resolved.iter().map(|r| r.waiter).collect();
        assert_eq!(resolved, give.map(|(id, _)| id).into_iter().collect::<Vec<_>>());
        let after = limbo.crowded.reservation.held();
        if let Some((_, bytes)) = give {
            let more = (after.depth - before.depth, after.bytes - before.bytes);
            assert_eq!(more, (1, bytes));
            assert!(matches!(
                actions.resolved[0].verdict,
                Err(Rejection::Overloaded { .. })
            ));
            self.sim.saw(match standing {
                ShareCheck::Below { bytes: true, .. } => "evicted_for_bytes",
                _ => "evicted",
            });
            if self.budget.used().depth > self.totals.depth {
                self.sim.saw("above_lowered_totals");
            }
        } else {
            assert_eq!(before, after);
            self.sim.saw("needless");
        }
        self.apply(victim, actions);
    }

    /// Checks the decision on an arrival; `reservation` is what it came with.
    fn take(&mut self, came: Came, reservation: QueueUsage, verdict: CoreAdmission, actions: Actions<u64>) {
        let Came { id, side: n, .. } = came;
        // A failed attempt's slot goes to older waiters before its request is decided on.
        self.apply(n, actions);
        let loose = Some((came.service, reservation));
        let standing = self.standing(self.sides[n].service, came.bytes, reservation, loose);
        match verdict {
            CoreAdmission::Granted(grant) => {
                let oldest = self.sides[n].waiting.first_key_value();
                assert!(
                    oldest.is_none_or(|(s, _)| *s > grant.ticket.seq),
                    "overtook a waiter"
                );
                assert!(self.unresolved.remove(&id), "resolved twice");
                self.sides[n].grants.push(grant);
                if reservation.depth > 0 {
                    self.sim.saw("slot_instead");
                }
            }
            CoreAdmission::Queued { seq } => {
                assert_eq!(standing, ShareCheck::Fits);
                let before = self.sides[n].waiting.insert(seq, (id, came.bytes));
                assert!(before.is_none(), "waits twice");
            }
            CoreAdmission::Rejected(Rejection::Overloaded { retry_after }) => {
                assert!(retry_after >= Duration::from_secs(1));
                assert!(self.unresolved.remove(&id), "resolved twice");
                let gone = match standing {
                    ShareCheck::Fits => panic!("refused what fits"),
                    ShareCheck::Above => true,
                    ShareCheck::Below { bytes, share } => self.most(bytes, share).is_none(),
                };
                assert!(gone, "refused below its share: {standing:?}");
                self.sim.saw("overloaded");
            }
            CoreAdmission::Rejected(_) => assert!(self.unresolved.remove(&id), "resolved twice"),
            CoreAdmission::NeedsEviction(crowded) => {
                assert_eq!(crowded.reservation.held(), reservation);
                let victim = self.sides.iter().position(|s| s.key == crowded.victim);
                self.limbo.push(Limbo {
                    came,
                    crowded,
                    asked: false,
                });
                let ShareCheck::Below { bytes, share } = standing else {
                    panic!("evicts while {standing:?}");
                };
                let victim = &self.sides[victim.expect("sides stay")];
                let held = of(self.held(victim.service), bytes);
                assert_eq!(Some(held), self.most(bytes, share), "not who holds most");
                let longest = self.longest_queue(victim.service, bytes);
                assert_eq!(Some(of(queue(victim), bytes)), longest, "not the longest queue");
                if reservation.depth > 0 {
                    self.sim.saw("crowded_again");
                }
            }
        }
    }

    fn apply(&mut self, n: usize, actions: Actions<u64>) {
        for resolved in actions.resolved {
            let waiting = &mut self.sides[n].waiting;
            let found = waiting.iter().find(|(_, (id, _))| *id == resolved.waiter);
            let seq = *found.expect("resolved, but does not wait").0;
            waiting.remove(&seq);
            assert!(self.unresolved.remove(&resolved.waiter), "resolved twice");
            if let Ok(grant) = resolved.verdict {
                let older = waiting.first_key_value().filter(|(s, _)| **s < seq);
                assert!(older.is_none(), "a waiter was overtaken");
                self.sides[n].grants.push(grant);
                self.sim.saw("admitted");
            }
        }
    }

    fn release(&mut self, n: usize) {
        if let Some(grant) = self.any_grant(n) {
            let actions = self.sides[n]
                .core
                .release(grant.slot, grant.ticket.arrival.passive, self.sim.now);
            self.apply(n, actions);
        }
    }

    fn cancel(&mut self, n: usize) {
        let nth = self.sim.rng.usize(..self.sides[n].waiting.len().max(1));
        let side = &mut self.sides[n];
        if let Some((&seq, &(id, _))) = side.waiting.iter().nth(nth) {
            assert_eq!(side.core.cancel(seq, self.sim.now), Some(id));
            side.waiting.remove(&seq);
            self.unresolved.remove(&id);
        }
    }

    /// Endpoints become ready and fail.
    fn toggle_ready(&mut self, n: usize) {
        let core = &mut self.sides[n].core;
        let keys: Vec<u64> = core.known().map(|s| s.state.key).collect();
        let key = keys[self.sim.rng.usize(..keys.len())];
        let actions = if self.sim.rng.bool() {
            core.endpoint_ready(key, self.sim.now)
        } else {
            core.endpoint_failing(key, self.sim.now)
        };
        self.apply(n, actions);
    }

    fn fail(&mut self, n: usize) {
        let failure = Arc::new(ActivationFailure {
            failure: Failure::Failed,
            detail: "exit status 1".into(),
            retry_after: Duration::from_millis(300),
        });
        let actions = self.sides[n].core.fail(0, &failure, self.sim.now);
        self.apply(n, actions);
    }

    fn close_or_reopen(&mut self, n: usize) {
        let side = &mut self.sides[n];
        side.closed = !side.closed;
        if side.closed {
            let actions = side.core.close(Closing::Removed, self.sim.now);
            self.apply(n, actions);
            assert!(self.sides[n].waiting.is_empty(), "closing leaves nobody waiting");
        } else {
            side.core.reopen();
        }
    }

    fn change_limits(&mut self, n: usize) {
        let limits = Self::random_limits(&mut self.sim.rng);
        let actions = self.sides[n].core.set_limits(limits, self.sim.now);
        self.apply(n, actions);
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
        let nth = self.sim.rng.usize(..grants.len().max(1));
        (nth < grants.len()).then(|| grants.swap_remove(nth))
    }

    /// Usage of a service: its waiters, and reservations for its arrivals.
    fn held(&self, service: usize) -> QueueUsage {
        let sides = self.sides.iter().filter(|s| s.service == service).map(queue);
        let rooms = self.limbo.iter().filter(|l| l.came.service == service);
        sum(sides.chain(rooms.map(|l| l.crowded.reservation.held())))
    }

    fn used(&self) -> QueueUsage {
        sum((0..self.services).map(|s| self.held(s)))
    }

    /// `loose` is a reservation that is not in `limbo` at the moment of the call.
    fn standing(
        &self,
        service: usize,
        bytes: u64,
        reservation: QueueUsage,
        loose: Option<(usize, QueueUsage)>,
    ) -> ShareCheck {
        let held = |s: usize| {
            let loose = loose.filter(|(of, _)| *of == s).map(|(_, held)| held);
            sum([self.held(s), loose.unwrap_or_default()].into_iter())
        };
        let used = sum((0..self.services).map(held));
        let waits = |s: &usize| *s == service || held(*s).depth > 0;
        let sharing = (0..self.services).filter(waits).count() as u64;
        let mut standing = ShareCheck::Fits;
        for (is_bytes, need, total) in [
            (false, 1, self.totals.depth as u64),
            (true, bytes, self.totals.bytes),
        ] {
            let reservation = of(reservation, is_bytes);
            if reservation >= need || of(used, is_bytes) - reservation + need <= total {
                continue;
            }
            let share = total / sharing;
            if of(held(service), is_bytes).saturating_sub(reservation) + need > share {
                return ShareCheck::Above;
            }
            if standing == ShareCheck::Fits {
                standing = ShareCheck::Below {
                    bytes: is_bytes,
                    share,
                };
            }
        }
        standing
    }

    /// The highest usage of a service above its share, of those that have a queue.
    fn most(&self, bytes: bool, share: u64) -> Option<u64> {
        let queues = self.sides.iter().filter(|s| of(queue(s), bytes) > 0);
        let held = queues.map(|s| of(self.held(s.service), bytes));
        held.filter(|held| *held > share).max()
    }

    fn longest_queue(&self, service: usize, bytes: bool) -> Option<u64> {
        let sides = self.sides.iter().filter(|s| s.service == service);
        sides.map(|s| of(queue(s), bytes)).max()
    }
}

fn queue(side: &Side) -> QueueUsage {
    sum(side.waiting.values().map(|(_, bytes)| QueueUsage::one(*bytes)))
}

fn sum(held: impl Iterator<Item = QueueUsage>) -> QueueUsage {
    held.fold(QueueUsage::default(), |a, b| QueueUsage {
        depth: a.depth + b.depth,
        bytes: a.bytes + b.bytes,
    })
}

fn of(held: QueueUsage, bytes: bool) -> u64 {
    if bytes { held.bytes } else { held.depth as u64 }
}

fn name(service: usize) -> String {
    format!("s{service}")
}

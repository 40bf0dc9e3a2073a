//! Simulation of an upgrade: the older process flips, flips back, hands over, and either process dies, while messages are
//! delayed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use sluice_model::{
    ActivationFailure, EndpointSink, Failure, InstanceId, ManagedEndpoint, RevisionSpec, StickyKey,
};

use super::{Desk, DeskMessage, Guest, Host};
use crate::lease::Said;
use crate::registry::Registry;
use crate::registry::test_kit::{self, Demands, fixed, id, snapshot, spec};
use crate::sim::{self, Sim, World};
use crate::throttle::{
    Admission, Arrival, EndpointId, EndpointPhase, Outcome, Permit, Rejection, Waiter, clock,
};

#[test]
fn two_processes_keep_the_invariants() {
    sim::storm::<Storm>();
}

/// A message after serialisation and back.
fn sent<T: serde::Serialize + serde::de::DeserializeOwned>(message: &T) -> T {
    let bytes = serde_json::to_vec(message).expect("encodes");
    serde_json::from_slice(&bytes).expect("decodes")
}

/// A process with its requests, by order of arrival.
struct Process {
    registry: Arc<Registry>,
    demands: Arc<Demands>,
    waiting: BTreeMap<u64, (bool, Waiter)>,
    running: Vec<Permit>,
}

impl Process {
    fn in_flight(&self, on: &mut BTreeMap<EndpointId, u32>) {
        for permit in &self.running {
            *on.entry(permit.endpoint().id()).or_default() += 1;
        }
    }
}

enum Phase {
    /// One process only.
    Alone,
    /// The older process flipped, the newer one is being built.
    Flipped(Guest, Vec<Desk>),
    /// Both processes serve; messages are in transit.
    Both(Guest, Box<Host>, VecDeque<DeskMessage>, VecDeque<DeskMessage>),
    /// The newer process is gone: the older one drains.
    Widowed,
}

struct Storm {
    sim: Sim,
    spec: RevisionSpec,
    limit: Option<u32>,
    managed: bool,
    old: Process,
    new: Option<Process>,
    phase: Phase,
    next: u64,
    next_instance: u64,
}

impl World for Storm {
    const SEEDS: u64 = 256;
    const STEPS: usize = 600;
    const REACHES: &'static str = "flipped flipped_back handed_over granted handed_back failover old_died \
                                   new_died over withdrawn refused revoked awaited quiet zero zero_refused";

    fn new(mut sim: Sim) -> Self {
        let rng = &mut sim.rng;
        let managed = rng.bool();
        let backend = if managed {
            sluice_model::Backend::Managed
        } else {
            fixed(&[1, 2, 3][..rng.usize(1..4)])
        };
        let limit = (rng.u8(..6) > 0).then(|| rng.u32(1..4));
        let mut spec = spec("r", backend);
        spec.container_concurrency = limit;
        spec.queue.depth = rng.usize(1..30);
        spec.queue.timeout = Duration::from_millis(rng.u64(100..20_000));
        let old = Self::process(&spec);
        Self {
            sim,
            spec,
            limit,
            managed,
            old,
            new: None,
            phase: Phase::Alone,
            next: 0,
            next_instance: 1,
        }
    }

    fn sim(&mut self) -> &mut Sim {
        &mut self.sim
    }

    fn step(&mut self) {
        if self.sim.rng.u8(..8) == 0 {
            let ms = if self.sim.rng.u8(..30) == 0 { 5_000 } else { 50 };
            let time = Duration::from_millis(self.sim.rng.u64(..ms));
            self.sim.pass(time);
        }
        match self.sim.rng.u32(..100) {
            0..30 => self.arrive(),
            30..52 => self.release(),
            52..56 => self.cancel(),
            56..60 => self.failover(),
            60..62 => self.report(),
            62..67 => self.add(),
            67..73 => self.ready(),
            73..74 => self.remove(),
            74..76 => self.zero(),
            76..95 => self.carry(),
            95 => self.quiesce(),
            _ => self.turn(),
        }
        self.look();
    }

    fn check(&mut self) {
        let mut in_flight = BTreeMap::new();
        self.old.in_flight(&mut in_flight);
        if let Some(new) = &self.new {
            new.in_flight(&mut in_flight);
        }
        for (id, count) in in_flight {
            assert!(self.limit.is_none_or(|limit| count <= limit), "{count} on {id:?}");
        }
        if let (Phase::Both(_, host, ..), Some(new)) = (&self.phase, &self.new) {
            let counted = host.held() + new.running.len();
            let live = new.registry.live(&id("r")).expect("is served");
            let load = live.throttler().peek(clock());
            // A grant that was not polled yet is in flight, too.
            assert!(load.in_flight as usize >= counted, "{load:?}, {counted} known");
            assert!(
                host.held() >= self.old.running.len(),
                "the older one has what nobody counts"
            );
        }
    }

    fn end(&mut self) {
        self.phase = match std::mem::replace(&mut self.phase, Phase::Widowed) {
            Phase::Flipped(guest, _) => {
                guest.take_back();
                Phase::Alone
            }
            other => other,
        };
        self.look();
        for process in [Some(&mut self.old), self.new.as_mut()].into_iter().flatten() {
            process.waiting.clear();
            process.running.clear();
        }
        for _ in 0..6 {
            self.carry_some(usize::MAX, usize::MAX);
        }
        if let Phase::Both(_, host, ..) = &self.phase {
            assert_eq!(host.held(), 0, "slots leaked");
            self.sim.saw("over");
        }
        for process in [Some(&self.old), self.new.as_ref()].into_iter().flatten() {
            let load = process
                .registry
                .live(&id("r"))
                .expect("is served")
                .throttler()
                .peek(clock());
            assert_eq!((load.in_flight, load.queued), (0, 0));
            let used = process.registry.budget().used();
            assert_eq!((used.depth, used.bytes), (0, 0));
        }
    }
}

impl Storm {
    fn process(spec: &RevisionSpec) -> Process {
        let demands = Arc::new(Demands::default());
        let registry = test_kit::registry(
            &snapshot(vec![spec.clone()]),
            Arc::clone(&demands) as _,
            tokio::runtime::Handle::current(),
        );
        Process {
            registry: Arc::new(registry),
            demands,
            waiting: BTreeMap::new(),
            running: Vec::new(),
        }
    }

    /// The process whose requests the event is about.
    fn process_mut(&mut self) -> &mut Process {
        let second = self.sim.rng.bool();
        match &mut self.new {
            Some(new) if second => new,
            _ => &mut self.old,
        }
    }

    /// The process that scales: none between a flip and the hand-over.
    fn master(&self) -> Option<&Process> {
        match self.phase {
            Phase::Alone => Some(&self.old),
            Phase::Both(..) => self.new.as_ref(),
            Phase::Flipped(..) | Phase::Widowed => None,
        }
    }

    fn arrive(&mut self) {
        let sticky = self.sim.rng.u8(..6) == 0;
        let arrival = Arrival {
            bytes: 1,
            deadline: (self.sim.rng.u8(..4) == 0)
                .then(|| clock() + Duration::from_millis(self.sim.rng.u64(..5_000))),
            sticky: sticky.then(|| StickyKey::of(&[self.sim.rng.u8(..)])),
            passive: false,
        };
        let number = self.next;
        self.next += 1;
        let both = matches!(self.phase, Phase::Both(..) | Phase::Alone);
        let widowed = matches!(self.phase, Phase::Widowed);
        let into_new = both && self.new.is_some() && self.sim.rng.bool();
        let process = if into_new {
            self.new.as_mut().expect("is there")
        } else {
            &mut self.old
        };
        let live = process.registry.live(&id("r")).expect("is served");
        let admission = live.throttler().admit(arrival, clock());
        if !into_new && !matches!(self.phase, Phase::Alone) {
            assert!(
                !matches!(admission, Admission::Admitted(_)),
                "given out by itself"
            );
        }
        if widowed {
            assert!(matches!(
                admission,
                Admission::Rejected(Rejection::Draining | Rejection::DeadlineExceeded)
            ));
        }
        Self::take(process, number, sticky, admission);
    }

    fn take(process: &mut Process, number: u64, particular: bool, admission: Admission) {
        match admission {
            Admission::Admitted(permit) => process.running.push(permit),
            Admission::Waiting(waiter) => _ = process.waiting.insert(number, (particular, waiter)),
            Admission::Rejected(_) => {}
        }
    }

    fn release(&mut self) {
        let at = self.sim.rng.usize(..);
        let running = &mut self.process_mut().running;
        if !running.is_empty() {
            drop(running.swap_remove(at % running.len()));
        }
    }

    fn cancel(&mut self) {
        let at = self.sim.rng.usize(..);
        let waiting = &mut self.process_mut().waiting;
        if !waiting.is_empty() {
            let number = *waiting.keys().nth(at % waiting.len()).expect("is there");
            waiting.remove(&number);
        }
    }

    fn failover(&mut self) {
        let (at, report) = (self.sim.rng.usize(..), self.sim.rng.bool());
        let number = self.next;
        self.next += 1;
        let process = self.process_mut();
        if process.running.is_empty() {
            return;
        }
        let permit = process.running.swap_remove(at % process.running.len());
        if report {
            permit.report(Outcome::ConnectFailed, clock());
        }
        let admission = permit.failover(clock());
        // A failed-over request keeps its place in the order: it is exempt from the check of the order here.
        Self::take(process, number, true, admission);
        self.sim.saw("failover");
    }

    fn report(&mut self) {
        let at = self.sim.rng.usize(..);
        let running = &self.process_mut().running;
        if !running.is_empty() {
            running[at % running.len()].report(Outcome::Broke, clock());
        }
    }

    fn add(&mut self) {
        let instance = InstanceId(self.next_instance);
        let port = u16::try_from(self.next_instance).expect("few");
        if let Some(master) = self.master().filter(|_| self.managed) {
            let live = master.registry.live(&id("r")).expect("is served");
            if live.throttler().endpoints().len() < 4 {
                let address = ([127, 0, 0, 1], port).into();
                master.registry.add(
                    &id("r"),
                    ManagedEndpoint {
                        instance,
                        address,
                        took: Duration::ZERO,
                    },
                );
                self.next_instance += 1;
            }
        }
    }

    fn ready(&mut self) {
        let at = self.sim.rng.usize(..);
        if let Some(master) = self.master() {
            let live = master.registry.live(&id("r")).expect("is served");
            let views = live.throttler().endpoints();
            if !views.is_empty() {
                let key = views[at % views.len()].endpoint.key;
                live.throttler().endpoint_ready(key, clock());
            }
        }
    }

    fn remove(&mut self) {
        let (at, retire) = (self.sim.rng.usize(..), self.sim.rng.bool());
        if let Some(master) = self.master().filter(|_| self.managed) {
            let live = master.registry.live(&id("r")).expect("is served");
            let views = live.throttler().endpoints();
            if !views.is_empty()
                && let Some(instance) = views[at % views.len()].endpoint.instance
            {
                if retire {
                    master.registry.retire_these(&id("r"), &[instance]);
                } else {
                    master.registry.remove(&id("r"), instance);
                }
            }
        }
    }

    fn zero(&mut self) {
        let fails = self.sim.rng.u8(..4) == 0;
        let Some(master) = self.master() else { return };
        let mut in_flight = master.running.len();
        if matches!(self.phase, Phase::Both(..)) {
            in_flight += self.old.running.len();
        }
        let waits = !master.waiting.is_empty();
        if fails {
            let failure = ActivationFailure {
                failure: Failure::Failed,
                detail: "exit status 1".to_owned(),
                retry_after: Duration::from_millis(200),
            };
            master.registry.fail(&id("r"), Arc::new(failure));
            return;
        }
        let answer = master.registry.to_zero(&id("r"));
        if answer.is_some() {
            assert_eq!((in_flight, waits), (0, false), "zero with somebody there");
            self.sim.saw("zero");
        } else {
            self.sim.saw("zero_refused");
        }
    }

    /// Delivers some messages.
    fn carry(&mut self) {
        let (a, b) = (self.sim.rng.usize(..4), self.sim.rng.usize(..4));
        self.carry_some(a, b);
    }

    fn carry_some(&mut self, to_host: usize, to_guest: usize) {
        let Phase::Both(guest, host, forth, back) = &mut self.phase else {
            return;
        };
        while let Some(said) = guest.next().now_or_never() {
            forth.extend(said.iter().map(sent));
        }
        for _ in 0..to_host {
            let Some(message) = forth.pop_front() else { break };
            match &message.said {
                Said::Ask { waiting: 0, .. } => self.sim.saw("withdrawn"),
                Said::Return { .. } => self.sim.saw("handed_back"),
                _ => {}
            }
            host.hear(message);
        }
        while let Some(said) = host.next().now_or_never() {
            back.extend(said.iter().map(sent));
        }
        for _ in 0..to_guest {
            let Some(message) = back.pop_front() else { break };
            let before = self.old.running.len();
            let most = match &message.said {
                Said::Lease { slots, .. } => *slots,
                _ => 0,
            };
            match &message.said {
                Said::Lease { .. } => self.sim.saw("granted"),
                Said::Refuse(_) => self.sim.saw("refused"),
                Said::Revoke(_) => self.sim.saw("revoked"),
                Said::Waiting(_) => self.sim.saw("awaited"),
                _ => {}
            }
            guest.hear(message);
            Self::look_at(&mut self.old);
            let came = self.old.running.len() - before;
            assert!(came <= most as usize, "one slot, one request");
        }
    }

    /// Delivers every message; then nobody waits beside a free slot, in either process.
    fn quiesce(&mut self) {
        for _ in 0..50 {
            self.carry_some(usize::MAX, usize::MAX);
            self.look();
        }
        let Some(new) = self
            .new
            .as_ref()
            .filter(|_| matches!(self.phase, Phase::Both(..)))
        else {
            return;
        };
        let live = new.registry.live(&id("r")).expect("is served");
        let views = live.throttler().endpoints();
        let free = views.iter().any(|view| {
            view.phase == EndpointPhase::Ready
                && self.limit.is_none_or(|limit| view.in_flight + view.lent < limit)
        });
        let waits = !new.waiting.is_empty() || !self.old.waiting.is_empty();
        assert!(!(free && waits), "waits beside a free slot: {views:?}");
        let lent: u32 = views.iter().map(|view| view.lent).sum();
        assert!(lent as usize <= self.old.running.len(), "slots that nobody uses");
        self.sim.saw("quiet");
    }

    /// The next step of the upgrade, or its end.
    fn turn(&mut self) {
        let draw = self.sim.rng.u32(..100);
        match std::mem::replace(&mut self.phase, Phase::Widowed) {
            Phase::Alone => {
                let (guest, desks) = Guest::flip(&self.old.registry);
                self.phase = Phase::Flipped(guest, sent(&desks));
                self.sim.saw("flipped");
            }
            Phase::Flipped(guest, _) if draw < 40 => {
                guest.take_back();
                self.phase = Phase::Alone;
                self.sim.saw("flipped_back");
                Self::look_at(&mut self.old);
                let live = self.old.registry.live(&id("r")).expect("is served");
                let free = live.throttler().endpoints().into_iter().any(|view| {
                    view.phase == EndpointPhase::Ready && self.limit.is_none_or(|l| view.in_flight < l)
                });
                assert!(!free || self.old.waiting.is_empty(), "waits beside a free slot");
            }
            Phase::Flipped(guest, desks) => {
                let new = Self::process(&self.spec);
                let host = Host::inherit(&new.registry, &desks);
                self.new = Some(new);
                self.phase = Phase::Both(guest, Box::new(host), VecDeque::new(), VecDeque::new());
                self.sim.saw("handed_over");
            }
            both @ Phase::Both(..) if draw < 80 => self.phase = both,
            Phase::Both(guest, ..) if draw < 87 => {
                // The newer process dies, and its state with it.
                self.new = None;
                guest.abandon();
                Self::look_at(&mut self.old);
                assert!(self.old.waiting.is_empty(), "waits for a process that is gone");
                self.sim.saw("new_died");
            }
            Phase::Both(guest, host, ..) => self.old_dies(guest, host),
            Phase::Widowed => {}
        }
    }

    /// The older process dies, and its requests with it.
    fn old_dies(&mut self, guest: Guest, host: Box<Host>) {
        self.old.waiting.clear();
        self.old.running.clear();
        drop((guest, host));
        let new = self.new.take().expect("took over");
        self.old = new;
        self.phase = Phase::Alone;
        self.sim.saw("old_died");
    }

    fn look(&mut self) {
        Self::look_at(&mut self.old);
        if let Some(new) = &mut self.new {
            Self::look_at(new);
        }
    }

    /// Collects resolved waiters: admitted ones come in order of arrival.
    fn look_at(process: &mut Process) {
        let mut done = Vec::new();
        let mut left_behind = None;
        for (&number, (particular, waiter)) in &mut process.waiting {
            match waiter.now_or_never() {
                None if !*particular => left_behind = left_behind.or(Some(number)),
                None => {}
                Some(Ok(permit)) => {
                    assert!(
                        *particular || left_behind.is_none(),
                        "{number} overtook {left_behind:?}"
                    );
                    process.running.push(permit);
                    done.push(number);
                }
                Some(Err(_)) => done.push(number),
            }
        }
        for number in done {
            process.waiting.remove(&number);
        }
        process.demands.take();
    }
}

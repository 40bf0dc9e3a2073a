//! Simulation of replicas: arrivals, deaths, pauses, partitions, clocks that drift, and Pods that come and go, while every
//! replica learns of the cluster at another moment.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use sluice_model::{EndpointAddr, Replica, ReplicaSink};

use super::Replicas;
use crate::registry::test_kit::{address, id};
use crate::sim::{self, Sim, World};
use crate::throttle::{
    Admission, Arrival, Closing, Outcome, Permit, RevisionThrottler, Supply, Waiter, clock, test_kit,
};

#[test]
fn replicas_keep_the_limit_together() {
    sim::storm::<Storm>();
}

type Queue = Arc<Mutex<VecDeque<Vec<u8>>>>;

/// The revision in one process: in its table or not, awake or not, as a registry has it.
struct Life {
    limit: u32,
    is_listed: bool,
    /// Awake: in the table, or removed from it with something in use.
    throttler: Option<Arc<RevisionThrottler>>,
    addresses: Vec<EndpointAddr>,
}

impl Life {
    /// The throttler of the revision, which wakes if it sleeps. `None`: it is not in the table.
    fn wake(life: &Mutex<Self>, replicas: &Replicas) -> Option<Arc<RevisionThrottler>> {
        let mut life = life.lock();
        if !life.is_listed {
            return None;
        }
        let known = life.throttler.clone();
        Some(known.unwrap_or_else(|| {
            let (throttler, _) = test_kit::throttler(Supply::Activated, Some(life.limit));
            replicas.join(&throttler);
            throttler.set_addresses(0, &life.addresses, true, clock());
            life.throttler = Some(Arc::clone(&throttler));
            throttler
        }))
    }
}

/// A process of a replica, with its requests by order of arrival.
struct Process {
    replicas: Arc<Replicas>,
    life: Arc<Mutex<Life>>,
    waiting: BTreeMap<u64, Waiter>,
    running: Vec<Permit>,
    incarnation: u64,
    /// How much of the cluster's history it has seen.
    seen: usize,
    /// Of which it saw at least so much: what is listed first is no older than the process.
    born: usize,
    /// It does nothing while it is stopped.
    is_stopped: bool,
}

impl Process {
    /// The throttler, if it is awake.
    fn awake(&self) -> Option<Arc<RevisionThrottler>> {
        self.life.lock().throttler.clone()
    }

    fn tick(&self) {
        self.replicas.tick();
        if let Some(throttler) = self.awake() {
            throttler.tick_now(clock());
        }
    }

    /// Puts the revision into the table again.
    fn list(&self) {
        let mut life = self.life.lock();
        if !std::mem::replace(&mut life.is_listed, true)
            && let Some(throttler) = &life.throttler
        {
            throttler.set_addresses(0, &life.addresses, true, clock());
            throttler.reopen();
        }
    }

    /// Removes the revision from the table.
    fn unlist(&self) {
        let life = self.life.lock();
        let throttler = life.throttler.clone();
        drop(life);
        if let Some(throttler) = throttler {
            throttler.close(Closing::Removed, clock());
        }
        self.life.lock().is_listed = false;
        self.sweep();
    }

    /// Drops the throttler of a revision that is not in the table, once nothing of it is in use. Returns whether it did.
    fn sweep(&self) -> bool {
        let mut life = self.life.lock();
        let is_spent = life
            .throttler
            .as_ref()
            .is_some_and(|throttler| throttler.is_spent());
        if is_spent && !life.is_listed {
            life.throttler = None;
            return true;
        }
        false
    }
}

/// A Pod, whose process may be dead.
struct Pod {
    name: String,
    process: Option<Process>,
    serves: bool,
}

/// What a cluster looks like at some time: replicas, and the addresses of the revision.
#[derive(Clone)]
struct Cluster {
    replicas: Vec<Replica>,
    addresses: Vec<u16>,
}

struct Storm {
    sim: Sim,
    limit: u32,
    pods: Vec<Pod>,
    addresses: Vec<u16>,
    history: Vec<Cluster>,
    /// Messages under way, by sender and receiver.
    links: BTreeMap<(String, String), Queue>,
    next: u64,
    next_pod: u64,
    next_address: u16,
}

impl World for Storm {
    const SEEDS: u64 = 256;
    const STEPS: usize = 800;
    const REACHES: &'static str = "admitted waited failed_over died restarted gone cut stopped address_gone address_back moved \
                                   left quiet lost unlisted spent woken";

    fn new(mut sim: Sim) -> Self {
        // Of the throttlers' choices among endpoints.
        fastrand::seed(sim.rng.u64(..));
        let limit = sim.rng.u32(1..4);
        let addresses: Vec<u16> = (1..=sim.rng.u16(1..6)).collect();
        let mut storm = Self {
            sim,
            limit,
            pods: Vec::new(),
            next_address: u16::try_from(addresses.len()).expect("few") + 1,
            addresses,
            history: Vec::new(),
            links: BTreeMap::new(),
            next: 0,
            next_pod: 0,
        };
        for _ in 0..storm.sim.rng.usize(1..4) {
            storm.new_pod();
        }
        for pod in &mut storm.pods {
            pod.serves = true;
        }
        storm.record();
        storm
    }

    fn sim(&mut self) -> &mut Sim {
        &mut self.sim
    }

    fn step(&mut self) {
        if self.sim.rng.u8(..6) == 0 {
            let ms = if self.sim.rng.u8(..20) == 0 { 6_000 } else { 300 };
            let time = Duration::from_millis(self.sim.rng.u64(..ms));
            self.sim.pass(time);
            self.each(|process| process.tick());
            self.sweep();
        }
        match self.sim.rng.u32(..1000) {
            0..260 => self.arrive(),
            260..460 => self.release(),
            460..490 => self.cancel(),
            490..520 => self.fail_over(),
            520..840 => self.carry(),
            840..900 => self.learn(),
            900..925 => self.connect(),
            925..938 => self.cut(),
            938..950 => self.stop(),
            950..965 => self.flip_serves(),
            965..980 => self.change_addresses(),
            980..983 => self.kill(),
            983..985 => self.list_or_not(),
            985..990 => self.restart_or_remove(),
            990..993 => self.come(),
            993..995 => self.leave(),
            _ => self.quiesce(),
        }
        self.pump();
        self.look();
    }

    fn check(&mut self) {
        let mut in_flight: BTreeMap<EndpointAddr, u32> = BTreeMap::new();
        for process in self.pods.iter().filter_map(|pod| pod.process.as_ref()) {
            for permit in &process.running {
                *in_flight.entry(permit.endpoint().address.clone()).or_default() += 1;
            }
        }
        for (address, count) in in_flight {
            assert!(
                count <= self.limit,
                "{count} in flight on {address}, with a limit of {}",
                self.limit
            );
        }
    }

    fn end(&mut self) {
        self.quiesce();
        for _ in 0..1_000 {
            let mut some = false;
            for process in self.pods.iter_mut().filter_map(|pod| pod.process.as_mut()) {
                some |= !process.running.is_empty() || !process.waiting.is_empty();
                process.running.clear();
            }
            if !some {
                break;
            }
            self.sim.pass(Duration::from_millis(250));
            self.probe();
            self.settle();
        }
        for process in self.pods.iter().filter_map(|pod| pod.process.as_ref()) {
            assert!(process.waiting.is_empty(), "a waiter is lost");
            let load = process.awake().map(|throttler| throttler.peek(clock()));
            assert!(load.is_none_or(|load| (load.in_flight, load.queued) == (0, 0)));
        }
        // Free leased slots go back in the end; a due time may be by a clock that was ahead.
        for _ in 0..40 {
            self.sim.pass(Duration::from_millis(200));
            self.each(|process| process.tick());
            self.settle();
        }
        for process in self.pods.iter().filter_map(|pod| pod.process.as_ref()) {
            for status in process.replicas.status() {
                assert_eq!(status.holds, 0, "{} leaks slots", status.name);
            }
        }
    }
}

impl Storm {
    fn new_pod(&mut self) {
        let name = format!("sluice-{}", self.next_pod);
        self.next_pod += 1;
        let process = Some(self.process(&name));
        self.pods.push(Pod {
            name,
            process,
            serves: false,
        });
    }

    fn process(&mut self, _name: &str) -> Process {
        let life = Arc::new(Mutex::new(Life {
            limit: self.limit,
            is_listed: true,
            throttler: None,
            addresses: Vec::new(),
        }));
        // A clock that runs by one per cent faster or slower than others.
        let (began, rate) = (clock(), 0.99 + 0.02 * self.sim.rng.f64());
        let drifting = move || began + clock().saturating_duration_since(began).mul_f64(rate);
        let replicas = Replicas::with_clock(Box::new(drifting));
        if self.sim.rng.bool() {
            Life::wake(&life, &replicas);
        }
        let (found, of) = (Arc::clone(&life), Arc::downgrade(&replicas));
        replicas.find_by(Box::new(move |revision| {
            let replicas = of.upgrade().filter(|_| *revision == id("r"))?;
            Life::wake(&found, &replicas)
        }));
        Process {
            replicas,
            life,
            waiting: BTreeMap::new(),
            running: Vec::new(),
            incarnation: self.sim.rng.u64(..),
            seen: 0,
            born: self.history.len(),
            is_stopped: false,
        }
    }

    /// The cluster has changed.
    fn record(&mut self) {
        let replicas = self.pods.iter().map(|pod| Replica {
            name: pod.name.as_str().into(),
            serves: pod.serves,
        });
        self.history.push(Cluster {
            replicas: replicas.collect(),
            addresses: self.addresses.clone(),
        });
    }

    fn each(&mut self, mut act: impl FnMut(&mut Process)) {
        for process in self.pods.iter_mut().filter_map(|pod| pod.process.as_mut()) {
            if !process.is_stopped {
                act(process);
            }
        }
    }

    /// Some process that runs, and its name.
    fn some(&mut self) -> Option<(String, &mut Process)> {
        let at = self.sim.rng.usize(..self.pods.len().max(1));
        let pod = self.pods.get_mut(at)?;
        let name = pod.name.clone();
        let process = pod.process.as_mut().filter(|process| !process.is_stopped)?;
        Some((name, process))
    }

    fn named(&mut self, name: &str) -> Option<&mut Process> {
        let pod = self.pods.iter_mut().find(|pod| pod.name == name)?;
        pod.process.as_mut()
    }

    fn arrive(&mut self) {
        let number = self.next;
        self.next += 1;
        let mut saw = None;
        if let Some((_, process)) = self.some()
            && let sleeps = process.awake().is_none()
            && let Some(throttler) = Life::wake(&process.life, &process.replicas)
        {
            if sleeps {
                saw = Some("woken");
            }
            match throttler.admit(Arrival::default(), clock()) {
                Admission::Admitted(permit) => {
                    process.running.push(permit);
                    saw = Some("admitted");
                }
                Admission::Waiting(waiter) => _ = process.waiting.insert(number, waiter),
                Admission::Rejected(_) => {}
            }
        }
        if let Some(saw) = saw {
            self.sim.saw(saw);
        }
    }

    fn release(&mut self) {
        let at = self.sim.rng.usize(..);
        if let Some((_, process)) = self.some()
            && !process.running.is_empty()
        {
            drop(process.running.swap_remove(at % process.running.len()));
        }
    }

    fn cancel(&mut self) {
        let at = self.sim.rng.usize(..);
        if let Some((_, process)) = self.some()
            && !process.waiting.is_empty()
        {
            let number = *process
                .waiting
                .keys()
                .nth(at % process.waiting.len())
                .expect("is there");
            process.waiting.remove(&number);
        }
    }

    fn fail_over(&mut self) {
        let (at, number) = (self.sim.rng.usize(..), self.next);
        self.next += 1;
        let Some((_, process)) = self.some() else { return };
        if process.running.is_empty() {
            return;
        }
        let permit = process.running.swap_remove(at % process.running.len());
        permit.report(Outcome::ConnectFailed, clock());
        match permit.failover(clock()) {
            Admission::Admitted(permit) => process.running.push(permit),
            Admission::Waiting(waiter) => _ = process.waiting.insert(number, waiter),
            Admission::Rejected(_) => {}
        }
        self.sim.saw("failed_over");
    }

    /// Delivers some messages of one connection.
    fn carry(&mut self) {
        if self.links.is_empty() {
            return;
        }
        let at = self.sim.rng.usize(..self.links.len());
        let count = self.sim.rng.usize(1..6);
        let key = self.links.keys().nth(at).expect("is there").clone();
        for _ in 0..count {
            self.deliver(&key);
        }
    }

    fn deliver(&mut self, key: &(String, String)) -> bool {
        let Some(queue) = self.links.get(key).cloned() else {
            return false;
        };
        let is_stopped = self.named(&key.1).is_none_or(|process| process.is_stopped);
        if is_stopped {
            return false;
        }
        let Some(message) = queue.lock().pop_front() else {
            return false;
        };
        let receiver = self.named(&key.1).expect("runs");
        let replicas = Arc::clone(&receiver.replicas);
        replicas.received(&key.0, &message).expect("it is understood");
        self.pump();
        true
    }

    fn pump(&mut self) {
        self.each(|process| process.replicas.pump());
    }

    /// A process learns more of the cluster.
    fn learn(&mut self) {
        let latest = self.history.len();
        let by = self.sim.rng.usize(1..4);
        let history = std::mem::take(&mut self.history);
        if let Some((name, process)) = self.some() {
            let to = (process.seen + by).max(process.born).min(latest);
            Self::show(&name, process, &history[..to]);
        }
        self.history = history;
    }

    fn show(name: &str, process: &mut Process, history: &[Cluster]) {
        if process.seen == history.len() {
            return;
        }
        process.seen = history.len();
        let now = history.last().expect("is there");
        process.replicas.replicas(name, &now.replicas);
        let mut life = process.life.lock();
        life.addresses = now.addresses.iter().map(|port| address(*port)).collect();
        // A revision that is removed from the table keeps the addresses that it had.
        let throttler = life.throttler.clone().filter(|_| life.is_listed);
        let addresses = life.addresses.clone();
        drop(life);
        if let Some(throttler) = throttler {
            throttler.set_addresses(0, &addresses, true, clock());
        }
    }

    /// Connects two replicas.
    fn connect(&mut self) {
        let (a, b) = (
            self.sim.rng.usize(..self.pods.len()),
            self.sim.rng.usize(..self.pods.len()),
        );
        if a != b {
            let (a, b) = (self.pods[a].name.clone(), self.pods[b].name.clone());
            self.connect_these(&a, &b);
        }
    }

    fn connect_these(&mut self, a: &str, b: &str) {
        let runs =
            |storm: &mut Self, name: &str| storm.named(name).is_some_and(|process| !process.is_stopped);
        if !runs(self, a) || !runs(self, b) || self.links.contains_key(&(a.to_owned(), b.to_owned())) {
            return;
        }
        for (from, to) in [(a, b), (b, a)] {
            let queue = Queue::default();
            self.links
                .insert((from.to_owned(), to.to_owned()), Arc::clone(&queue));
            let incarnation = self.named(to).expect("runs").incarnation;
            let process = self.named(from).expect("runs");
            let sender = Box::new(move |message| queue.lock().push_back(message));
            process.replicas.connected(to, incarnation, sender);
        }
        self.pump();
    }

    /// Cuts a connection: what is under way is lost.
    fn cut(&mut self) {
        if self.links.is_empty() {
            return;
        }
        let at = self.sim.rng.usize(..self.links.len());
        let (a, b) = self.links.keys().nth(at).expect("is there").clone();
        self.cut_these(&a, &b);
        self.sim.saw("cut");
    }

    fn cut_these(&mut self, a: &str, b: &str) {
        for (from, to) in [(a, b), (b, a)] {
            if self.links.remove(&(from.to_owned(), to.to_owned())).is_some()
                && let Some(process) = self.named(from)
            {
                process.replicas.disconnected(to);
            }
        }
    }

    fn cut_all(&mut self, name: &str) {
        let others: Vec<String> = self.pods.iter().map(|pod| pod.name.clone()).collect();
        for other in others {
            self.cut_these(name, &other);
        }
    }

    /// Stops a process, or lets it go on.
    fn stop(&mut self) {
        let at = self.sim.rng.usize(..self.pods.len());
        if let Some(process) = &mut self.pods[at].process {
            process.is_stopped = !process.is_stopped;
            self.sim.saw("stopped");
        }
    }

    /// A process removes the revision from its table, or has it again.
    fn list_or_not(&mut self) {
        let mut saw = None;
        if let Some((_, process)) = self.some() {
            let is_listed = process.life.lock().is_listed;
            if is_listed {
                process.unlist();
                saw = Some("unlisted");
            } else {
                process.list();
            }
        }
        if let Some(saw) = saw {
            self.sim.saw(saw);
        }
        self.sweep();
    }

    fn sweep(&mut self) {
        let mut some = false;
        self.each(|process| some |= process.sweep());
        if some {
            self.sim.saw("spent");
        }
    }

    fn flip_serves(&mut self) {
        let at = self.sim.rng.usize(..self.pods.len());
        self.pods[at].serves = !self.pods[at].serves;
        self.record();
        self.sim.saw("moved");
    }

    fn change_addresses(&mut self) {
        if self.addresses.len() > 1 && self.sim.rng.bool() {
            let at = self.sim.rng.usize(..self.addresses.len());
            self.addresses.remove(at);
            self.sim.saw("address_gone");
        } else if self.addresses.len() < 6 {
            // Often one that was there before.
            let back = self.sim.rng.u16(1..self.next_address);
            if self.sim.rng.bool() && !self.addresses.contains(&back) {
                self.addresses.push(back);
                self.sim.saw("address_back");
            } else {
                self.addresses.push(self.next_address);
                self.next_address += 1;
            }
        }
        self.record();
    }

    /// A process dies, and its requests with it.
    fn kill(&mut self) {
        let at = self.sim.rng.usize(..self.pods.len());
        if let Some(process) = self.pods[at].process.take() {
            self.bury(process);
            let name = self.pods[at].name.clone();
            self.cut_all(&name);
            self.sim.saw("died");
        }
    }

    /// Its requests end at once: nothing of it is heard any more.
    fn bury(&mut self, process: Process) {
        drop(process);
    }

    /// A dead process's Pod starts another one, or is gone.
    fn restart_or_remove(&mut self) {
        let Some(at) = self.pods.iter().position(|pod| pod.process.is_none()) else {
            return;
        };
        if self.sim.rng.bool() {
            let name = self.pods[at].name.clone();
            self.pods[at].process = Some(self.process(&name));
            self.sim.saw("restarted");
        } else if self.pods.len() > 1 {
            self.pods.remove(at);
            self.record();
            self.sim.saw("gone");
        }
    }

    fn come(&mut self) {
        if self.pods.len() < 4 {
            self.new_pod();
            self.record();
        }
    }

    /// A process ends by itself, and says so.
    fn leave(&mut self) {
        let at = self.sim.rng.usize(..self.pods.len());
        let Some(process) = self.pods[at]
            .process
            .as_mut()
            .filter(|process| !process.is_stopped)
        else {
            return;
        };
        process.waiting.clear();
        process.running.clear();
        process.replicas.leave();
        let process = self.pods[at].process.take().expect("runs");
        self.bury(process);
        let name = self.pods[at].name.clone();
        // What it has said arrives first.
        let links: Vec<_> = self
            .links
            .keys()
            .filter(|(from, _)| *from == name)
            .cloned()
            .collect();
        for link in links {
            while self.deliver(&link) {}
        }
        self.cut_all(&name);
        self.sim.saw("left");
    }

    fn look(&mut self) {
        let mut waited = false;
        for process in self.pods.iter_mut().filter_map(|pod| pod.process.as_mut()) {
            if process.is_stopped {
                continue;
            }
            let mut done = Vec::new();
            for (&number, waiter) in &mut process.waiting {
                match waiter.now_or_never() {
                    None => {}
                    Some(Ok(permit)) => {
                        process.running.push(permit);
                        done.push(number);
                        waited = true;
                    }
                    Some(Err(_)) => done.push(number),
                }
            }
            for number in done {
                process.waiting.remove(&number);
            }
        }
        if waited {
            self.sim.saw("waited");
        }
    }

    /// Probes find every server ready.
    fn probe(&mut self) {
        self.each(|process| {
            if let Some(throttler) = process.awake() {
                for view in throttler.endpoints() {
                    throttler.endpoint_ready(view.endpoint.key, clock());
                }
            }
        });
    }

    /// Delivers every message, and lets some time pass.
    fn settle(&mut self) {
        for _ in 0..200 {
            self.pump();
            let keys: Vec<_> = self.links.keys().cloned().collect();
            let mut some = false;
            for key in keys {
                while self.deliver(&key) {
                    some = true;
                    self.look();
                }
            }
            self.look();
            if !some {
                break;
            }
        }
        self.check();
    }

    /// Everything runs, is connected and knows the cluster; then nobody waits beside a free slot for longer than a lease.
    fn quiesce(&mut self) {
        let lost = self
            .pods
            .iter()
            .filter_map(|pod| pod.process.as_ref())
            .any(|process| {
                process
                    .replicas
                    .status()
                    .iter()
                    .any(|status| !status.is_connected && status.holds > 0)
            });
        if lost {
            self.sim.saw("lost");
        }
        for at in 0..self.pods.len() {
            if self.pods[at].process.is_none() {
                let name = self.pods[at].name.clone();
                self.pods[at].process = Some(self.process(&name));
            }
            self.pods[at].serves = true;
            let process = self.pods[at].process.as_mut().expect("runs");
            process.is_stopped = false;
            process.list();
        }
        self.record();
        let history = std::mem::take(&mut self.history);
        for pod in &mut self.pods {
            Self::show(&pod.name, pod.process.as_mut().expect("runs"), &history);
        }
        self.history = history;
        let names: Vec<String> = self.pods.iter().map(|pod| pod.name.clone()).collect();
        for (i, a) in names.iter().enumerate() {
            for b in &names[i + 1..] {
                self.connect_these(a, b);
            }
        }
        self.probe();
        self.settle();
        // A lease, and what the clocks differ.
        for _ in 0..24 {
            self.sim.pass(Duration::from_millis(250));
            self.each(|process| process.tick());
            self.settle();
        }
        let mut free = self.addresses.clone();
        let mut waits = 0;
        let mut in_flight: BTreeMap<EndpointAddr, u32> = BTreeMap::new();
        for process in self.pods.iter().filter_map(|pod| pod.process.as_ref()) {
            waits += process.waiting.len();
            for permit in &process.running {
                *in_flight.entry(permit.endpoint().address.clone()).or_default() += 1;
            }
        }
        // What its owner has ejected is free for nobody.
        let ejected: Vec<EndpointAddr> = self
            .pods
            .iter()
            .filter_map(|pod| pod.process.as_ref())
            .filter_map(|process| process.awake())
            .flat_map(|throttler| throttler.owned_but_not_ready())
            .collect();
        free.retain(|port| !ejected.contains(&address(*port)));
        free.retain(|port| {
            in_flight
                .get(&address(*port))
                .is_none_or(|count| *count < self.limit)
        });
        let all = || {
            self.pods.iter().map(|pod| {
                (
                    &pod.name,
                    pod.process
                        .as_ref()
                        .and_then(|process| Some(process.awake()?.dump())),
                )
            })
        };
        assert!(
            waits == 0 || free.is_empty(),
            "{waits} wait beside {free:?}: {in_flight:?} {:#?}",
            all().collect::<Vec<_>>()
        );
        self.sim.saw("quiet");
    }
}

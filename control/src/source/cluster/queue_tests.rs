//! Simulation of replicas that join, leave, lag, reconnect and lead in turn, over the queues of all of them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;

use super::*;
use crate::ingress::{IngressObject, IngressProblem, ProblemKind};
use crate::object_name::ObjectName;
use crate::source::cluster::ClusterOptions;
use crate::source::cluster::acks::{LATE, RECIPE};

const SEEDS: u64 = 300;
const STEPS: usize = 600;
const REPLICAS: usize = 4;
const OBJECTS: usize = 3;

#[test]
fn ready_is_written_when_all_ready_replicas_serve_the_same_and_never_before() {
    let seeds = match std::env::var("SLUICE_SIM_SEED") {
        Ok(seed) => seed.parse().map(|seed| seed..seed + 1).expect("a number"),
        Err(_) => 0..SEEDS,
    };
    let mut reached = Reached::default();
    for seed in seeds.clone() {
        eprintln!("SLUICE_SIM_SEED={seed}");
        let mut sim = Sim::new(seed);
        for _ in 0..STEPS {
            sim.step();
        }
        sim.settle();
        reached.add(&sim.reached);
    }
    if seeds.end - seeds.start > 1 {
        let Reached {
            ready,
            late,
            problems,
            leaders,
            adopted,
        } = reached;
        let all = [ready, late, problems, leaders, adopted];
        assert!(all.iter().all(|n| *n > 20), "{reached:?}");
    }
}

/// A status that somebody else writes over is written again, once a second at most.
#[test]
fn a_status_that_was_overwritten_is_looked_at_again_after_a_second() {
    let Sim {
        now,
        addresses,
        mut statuses,
        ..
    } = Sim::new(1);
    let mut queue = StatusQueue::default();
    queue.begin(now);
    let version = Version {
        uid: 0,
        generation: 1,
        index: 0,
        is_broken: true,
    };
    queue.publish(outcome(0, version), served(version), now);
    let first = queue.take(&statuses, &addresses, now, "t").expect("a status");
    statuses.insert(object(0), first.status.clone());
    queue.written(object(0), true);
    // By this replica itself: nothing differs.
    queue.changed([object(0), object(9)].into(), now);
    let later = now + Duration::from_secs(1);
    assert_eq!(queue.timer(), Some(later));
    assert!(queue.take(&statuses, &addresses, later, "t").is_none());
    assert_eq!(queue.timer(), None);
    // By somebody else.
    statuses.insert(object(0), IngressStatus::default());
    queue.changed([object(0)].into(), later);
    assert!(queue.take(&statuses, &addresses, later, "t").is_none());
    let again = queue.take(&statuses, &addresses, later + Duration::from_secs(1), "t");
    assert_eq!(again.expect("the same again").status, first.status);
}

#[test]
fn a_refused_status_is_tried_again_by_itself_after_growing_pauses() {
    let Sim {
        now,
        addresses,
        statuses,
        ..
    } = Sim::new(1);
    let mut queue = StatusQueue::default();
    queue.begin(now);
    for nth in 0..2 {
        let version = Version {
            uid: nth as u64,
            generation: 1,
            index: 0,
            is_broken: true,
        };
        queue.publish(outcome(nth, version), served(version), now);
    }
    let take = |queue: &mut StatusQueue, after: u64| {
        let now = now + Duration::from_secs(after);
        let taken = queue.take(&statuses, &addresses, now, "t");
        taken.map(|write| write.name)
    };
    let at = |after: u64| now + Duration::from_secs(after);
    assert_eq!(take(&mut queue, 0), Some(object(0)));
    assert!(queue.refused(object(0), at(0)), "told once");
    assert_eq!(
        take(&mut queue, 0),
        Some(object(1)),
        "others are written meanwhile"
    );
    queue.written(object(1), true);
    assert_eq!((take(&mut queue, 0), queue.timer()), (None, Some(at(1))));
    assert_eq!(take(&mut queue, 1), Some(object(0)));
    assert!(!queue.refused(object(0), at(1)));
    assert_eq!((take(&mut queue, 2), queue.timer()), (None, Some(at(3))));
    for _ in 0..40 {
        assert_eq!(take(&mut queue, 10_000), Some(object(0)));
        queue.refused(object(0), at(0));
    }
    assert_eq!(queue.timer(), Some(at(60)));
    assert_eq!(take(&mut queue, 60), Some(object(0)));
    queue.written(object(0), true);
    assert_eq!(queue.timer(), None);
    assert!(queue.refused(object(0), at(60)), "anew");
}

/// What storms have come to.
#[derive(Debug, Default, Clone, Copy)]
struct Reached {
    ready: u64,
    late: u64,
    problems: u64,
    leaders: u64,
    adopted: u64,
}

impl Reached {
    fn add(&mut self, other: &Self) {
        self.ready += other.ready;
        self.late += other.late;
        self.problems += other.problems;
        self.leaders += other.leaders;
        self.adopted += other.adopted;
    }
}

/// A version of an object. Its hash is its index in the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    uid: u64,
    generation: i64,
    index: usize,
    is_broken: bool,
}

enum Event {
    Joined(u64),
    Acks(u64, Vec<Served>),
    Left(u64),
}

#[derive(Default)]
struct Replica {
    queue: StatusQueue,
    is_alive: bool,
    /// Does not see changes.
    is_stalled: bool,
    /// The index of the version of each object that is served.
    serves: [usize; OBJECTS],
    connection: Option<u64>,
    /// On the way to the leader, of former connections too.
    events: VecDeque<Event>,
}

struct Sim {
    rng: Rng,
    now: Instant,
    replicas: Vec<Replica>,
    leader: usize,
    /// The replicas that the leader takes to be ready.
    view: BTreeSet<String>,
    history: [Vec<Version>; OBJECTS],
    statuses: HashMap<ObjectName, IngressStatus>,
    writing: Vec<Write>,
    next_id: u64,
    addresses: Addresses,
    reached: Reached,
}

fn object(nth: usize) -> ObjectName {
    ObjectName::new("d", &format!("i{nth}"))
}

fn replica(nth: usize) -> String {
    format!("r{nth}")
}

fn served(version: Version) -> Served {
    Served {
        uid: format!("u{}", version.uid).into(),
        generation: version.generation,
        hash: version.index as u64,
    }
}

fn outcome(nth: usize, version: Version) -> IngressOutcome {
    let problem = version
        .is_broken
        .then(|| IngressProblem::new(ProblemKind::Missing, "why"));
    IngressOutcome {
        object: Arc::new(IngressObject {
            name: object(nth),
            uid: format!("u{}", version.uid).into(),
            generation: version.generation,
            service: None,
            problem: problem.clone(),
        }),
        problem,
    }
}

impl Sim {
    fn new(seed: u64) -> Self {
        let first = |nth: usize| Version {
            uid: nth as u64,
            generation: 1,
            index: 0,
            is_broken: false,
        };
        let mut sim = Self {
            rng: Rng::with_seed(seed),
            now: Instant::now(),
            replicas: (0..REPLICAS).map(|_| Replica::default()).collect(),
            leader: 0,
            view: BTreeSet::new(),
            history: std::array::from_fn(|nth| vec![first(nth)]),
            statuses: (0..OBJECTS)
                .map(|nth| (object(nth), IngressStatus::default()))
                .collect(),
            writing: Vec::new(),
            next_id: 100,
            addresses: Addresses::of(&ClusterOptions {
                namespace: "sluice-system".into(),
                identity: "r".into(),
                cluster_domain: "cluster.local".into(),
                peers: None,
                knative_namespace: "knative-serving".into(),
                is_activator: false,
            }),
            reached: Reached::default(),
        };
        for nth in 0..REPLICAS {
            sim.start(nth);
        }
        sim.lead(0);
        sim
    }

    fn step(&mut self) {
        let nth = self.rng.usize(..REPLICAS);
        match self.rng.u8(..100) {
            0..15 => self.change(),
            15..45 => self.see(nth),
            45..65 => self.deliver(nth),
            65..68 => self.disconnect(nth),
            68..76 => self.connect(nth),
            76..82 => self.look_around(),
            82..84 => self.replicas[nth].is_stalled = self.rng.bool(),
            84..86 if nth != self.leader => self.die(nth),
            86..90 if !self.replicas[nth].is_alive => self.start(nth),
            90 => self.lead(nth),
            91..94 => self.now += Duration::from_millis(self.rng.u64(..4_000)),
            94..97 => self.write_some(),
            _ => self.now += Duration::from_millis(self.rng.u64(..50)),
        }
        self.take();
    }

    fn newest(&self, nth: usize) -> Version {
        *self.history[nth].last().expect("a version")
    }

    /// The API server accepts a change: of the specification, or of what an object names.
    fn change(&mut self) {
        let nth = self.rng.usize(..OBJECTS);
        let mut version = self.newest(nth);
        match self.rng.u8(..10) {
            0 => {
                version.uid = self.next_id;
                version.generation = 1;
                self.next_id += 1;
                self.statuses.insert(object(nth), IngressStatus::default());
            }
            1..4 => {}
            _ => version.generation += 1,
        }
        version.is_broken = self.rng.u8(..8) == 0;
        version.index += 1;
        self.history[nth].push(version);
    }

    /// A replica sees the next version of an object.
    fn see(&mut self, nth: usize) {
        let of = self.rng.usize(..OBJECTS);
        let replica = &mut self.replicas[nth];
        let next = replica.serves[of] + 1;
        if replica.is_alive && !replica.is_stalled && next < self.history[of].len() {
            self.serve(nth, of, next);
        }
    }

    fn serve(&mut self, nth: usize, of: usize, index: usize) {
        let version = self.history[of][index];
        let replica = &mut self.replicas[nth];
        replica.serves[of] = index;
        replica
            .queue
            .publish(outcome(of, version), served(version), self.now);
        if let Some(connection) = replica.connection {
            replica
                .events
                .push_back(Event::Acks(connection, vec![served(version)]));
        }
    }

    fn connect(&mut self, nth: usize) {
        if nth == self.leader || !self.replicas[nth].is_alive || self.replicas[nth].connection.is_some() {
            return;
        }
        let id = self.next_id;
        self.next_id += 1;
        let all = (0..OBJECTS).map(|of| served(self.history[of][self.replicas[nth].serves[of]]));
        let all = all.collect();
        let replica = &mut self.replicas[nth];
        replica.connection = Some(id);
        replica.events.extend([Event::Joined(id), Event::Acks(id, all)]);
    }

    /// What is on the way is lost; the leader notices later.
    fn disconnect(&mut self, nth: usize) {
        let replica = &mut self.replicas[nth];
        if let Some(id) = replica.connection.take() {
            if self.rng.bool() {
                replica
                    .events
                    .retain(|event| !matches!(event, Event::Acks(of, _) if *of == id));
            }
            replica.events.push_back(Event::Left(id));
        }
    }

    fn deliver(&mut self, nth: usize) {
        let Some(event) = self.replicas[nth].events.pop_front() else {
            return;
        };
        let queue = &mut self.replicas[self.leader].queue;
        match event {
            Event::Joined(id) => queue.joined(id, &replica(nth), RECIPE),
            Event::Acks(id, acks) => queue.acknowledged(id, &replica(nth), acks, &[]),
            Event::Left(id) => queue.left(id, &replica(nth)),
        }
    }

    /// The leader learns who is ready.
    fn look_around(&mut self) {
        let ready = (0..REPLICAS).filter(|nth| *nth != self.leader && self.replicas[*nth].is_alive);
        self.view = ready.map(replica).collect();
        self.replicas[self.leader].queue.ready(&self.view, self.now);
    }

    fn die(&mut self, nth: usize) {
        self.disconnect(nth);
        self.replicas[nth].is_alive = false;
    }

    /// A process that starts is ready when it serves everything.
    fn start(&mut self, nth: usize) {
        let replica = &mut self.replicas[nth];
        replica.is_alive = true;
        replica.is_stalled = false;
        replica.queue = StatusQueue::default();
        for of in 0..OBJECTS {
            self.serve(nth, of, self.history[of].len() - 1);
        }
    }

    fn lead(&mut self, nth: usize) {
        if !self.replicas[nth].is_alive {
            return;
        }
        for other in 0..REPLICAS {
            self.disconnect(other);
            while !self.replicas[other].events.is_empty() {
                self.deliver(other);
            }
        }
        self.replicas[self.leader].queue.end();
        for write in self.writing.drain(..) {
            self.replicas[self.leader].queue.written(write.name, false);
        }
        self.leader = nth;
        self.look_around();
        self.replicas[nth].queue.begin(self.now);
        self.reached.leaders += 1;
        let ready = |of: usize| {
            let served = self.history[of][self.replicas[nth].serves[of]];
            is_ready(&self.statuses[&object(of)], served.generation)
        };
        self.reached.adopted += (0..OBJECTS).filter(|of| ready(*of)).count() as u64;
    }

    fn take(&mut self) {
        while let Some(write) =
            self.replicas[self.leader]
                .queue
                .take(&self.statuses, &self.addresses, self.now, "t")
        {
            self.check(&write);
            assert!(
                self.writing.iter().all(|other| other.name != write.name),
                "twice at once"
            );
            self.writing.push(write);
        }
    }

    /// The invariant: Ready is written only while every ready replica serves the same, or what came after it.
    fn check(&mut self, write: &Write) {
        let of = (0..OBJECTS)
            .find(|of| object(*of) == write.name)
            .expect("an object");
        let leads = self.history[of][self.replicas[self.leader].serves[of]];
        assert_eq!(write.uid, format!("u{}", leads.uid).into());
        let ready = write
            .status
            .conditions
            .iter()
            .find(|c| c.kind == "Ready")
            .expect("Ready");
        let others = (0..REPLICAS).filter(|nth| self.view.contains(&replica(*nth)));
        let others: Vec<usize> = others.collect();
        if ready.status == "True" {
            assert!(!leads.is_broken);
            for other in others.into_iter().filter(|nth| self.replicas[*nth].is_alive) {
                let serves = self.replicas[other].serves[of];
                assert!(
                    serves >= leads.index,
                    "{} is behind: {serves}, {leads:?}",
                    replica(other)
                );
            }
            self.reached.ready += 1;
        } else if leads.is_broken {
            self.reached.problems += 1;
        } else {
            assert!(
                others.iter().any(|nth| ready.message.contains(&replica(*nth))),
                "{}",
                ready.message
            );
            self.reached.late += 1;
        }
    }

    fn write_some(&mut self) {
        for Write { name, uid, status } in std::mem::take(&mut self.writing) {
            let of = (0..OBJECTS).find(|of| object(*of) == name).expect("an object");
            let is_done = self.rng.u8(..10) > 0;
            // By its uid.
            if is_done && *uid == *format!("u{}", self.newest(of).uid) {
                self.statuses.insert(name.clone(), status);
            }
            self.replicas[self.leader].queue.written(name, is_done);
        }
        self.take();
    }

    fn run_until_quiet(&mut self) {
        self.look_around();
        for _ in 0..50 {
            for nth in 0..REPLICAS {
                self.connect(nth);
                for _ in 0..200 {
                    self.see(nth);
                }
                while !self.replicas[nth].events.is_empty() {
                    self.deliver(nth);
                }
            }
            self.take();
            self.write_some();
        }
    }

    fn conditions(&self) -> Vec<(bool, String)> {
        let all = (0..OBJECTS).map(|of| {
            let status = &self.statuses[&object(of)];
            let ready = status.conditions.iter().find(|c| c.kind == "Ready");
            let message = ready.map(|ready| ready.message.clone()).unwrap_or_default();
            (is_ready(status, self.newest(of).generation), message)
        });
        all.collect()
    }

    /// After the storm: one replica does not see a change, and is named after its time; Ready is written when it goes on,
    /// or is gone.
    fn settle(&mut self) {
        for nth in 0..REPLICAS {
            if !self.replicas[nth].is_alive {
                self.start(nth);
            }
            self.replicas[nth].is_stalled = false;
        }
        self.run_until_quiet();
        let stuck = (self.leader + 1) % REPLICAS;
        self.replicas[stuck].is_stalled = true;
        for of in 0..OBJECTS {
            let mut version = self.newest(of);
            version.generation += 1;
            version.index += 1;
            version.is_broken = false;
            self.history[of].push(version);
        }
        self.run_until_quiet();
        assert!(
            self.conditions().iter().all(|(ready, _)| !ready),
            "{:?}",
            self.conditions()
        );
        assert!(self.replicas[self.leader].queue.timer().is_some());
        self.now += LATE;
        self.run_until_quiet();
        for (ready, message) in self.conditions() {
            let generation = message
                .split("generation ")
                .nth(1)
                .and_then(|rest| rest.split(' ').next());
            let expected = format!(
                "replica {} has not acknowledged generation {} for 5 s",
                replica(stuck),
                generation.unwrap_or_default()
            );
            assert_eq!((ready, message), (false, expected));
        }
        if self.rng.bool() {
            self.replicas[stuck].is_stalled = false;
        } else {
            self.die(stuck);
        }
        self.run_until_quiet();
        assert!(
            self.conditions().iter().all(|(ready, _)| *ready),
            "{:?}",
            self.conditions()
        );
    }
}

//! Seeded simulation: any events in any order. No instance is stopped that the data plane still knows, every waiter has an
//! instance under way or an answer, and the revision comes to its end.

use std::collections::BTreeSet;

use super::*;
use crate::scale::testing::{FakeEndpoints, assert_deadline_ahead, for_seeds};

#[test]
fn a_seeded_storm_keeps_the_invariants() {
    for_seeds(storm);
}

fn storm(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut bench = Bench::new(|_| {});
    let mut world = World::default();
    for _ in 0..300 {
        bench.now += Duration::from_millis(rng.u64(0..3_000));
        let id = InstanceId(rng.choice(&world.running).copied().unwrap_or(0));
        let kind = rng.u8(0..12);
        let actions = match kind {
            0 | 1 => bench.step(RevisionEvent::Activate),
            2 => bench.desired(rng.u32(0..5)),
            3 => bench.step(RevisionEvent::Drained(id)),
            4 | 5 => bench.step(RevisionEvent::Ready(id)),
            6 => bench.step(ProcessEvent::Started(id, address())),
            7 => bench.plan(|plan| command(plan, ["a", "b"][rng.usize(0..2)])),
            8 if rng.u8(0..10) == 0 => bench.step(RevisionEvent::Removed),
            9 => {
                world.running.remove(&id.0);
                bench.exited(id.0, "exit status 1")
            }
            _ => bench.step(RevisionEvent::Tick),
        };
        let answered = !failures(&actions).is_empty() || bench.state.any(Instance::is_live);
        assert!(
            kind > 1 || answered || bench.state.removed,
            "a waiter is forgotten"
        );
        world.carry_out(actions, &mut bench, &mut rng);
        if let Some(due) = bench.state.next_deadline() {
            bench.now = bench.now.max(due);
            let actions = bench.step(RevisionEvent::Tick);
            world.carry_out(actions, &mut bench, &mut rng);
            assert_deadline_ahead(&bench.state, bench.now);
        }
        let live = bench.state.ids(Instance::is_live).len();
        assert!(live <= 20, "{live} live");
    }
    let actions = bench.step(RevisionEvent::Shutdown);
    world.carry_out(actions, &mut bench, &mut rng);
    assert!(world.endpoints.known.is_empty());
    for id in world.running {
        bench.exited(id, "signal 15 (SIGTERM)");
    }
    assert!(bench.state.is_over());
}

/// The data plane and the supervisor.
#[derive(Default)]
struct World {
    endpoints: FakeEndpoints,
    running: BTreeSet<u64>,
}

impl World {
    fn carry_out(&mut self, actions: Vec<ProcessAction>, bench: &mut Bench, rng: &mut fastrand::Rng) {
        for action in actions {
            match action {
                ProcessAction::Order(InstanceOrder::Start(id, _)) => assert!(self.running.insert(id.0)),
                ProcessAction::Order(InstanceOrder::Stop(id, _)) => {
                    assert!(!self.endpoints.known.contains(&id), "{id} is still known");
                }
                ProcessAction::Endpoint(action) => {
                    let live = bench.state.ids(Instance::is_live);
                    if let Some(event) = self.endpoints.carry_out(action, live, rng) {
                        assert_eq!(bench.step(event), []);
                    }
                }
            }
        }
    }
}

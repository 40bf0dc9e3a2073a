use std::collections::BTreeSet;

use super::*;

/// Whatever happens in whatever order: nothing is asked to end that the data plane still knows,
/// nobody who waits is left without an instance under way or an answer, and the end comes.
#[test]
fn a_seeded_storm_keeps_the_invariants() {
    for seed in 0..256 {
        storm(seed);
    }
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
            0 | 1 => bench.step(Event::Activate),
            2 => bench.desired(rng.u32(0..5)),
            3 => bench.step(Event::Drained(id)),
            4 | 5 => bench.step(Event::Ready(id)),
            6 => bench.step(Event::Started(id, address())),
            7 => bench.plan(|plan| command(plan, ["a", "b"][rng.usize(0..2)])),
            8 if rng.u8(0..10) == 0 => bench.step(Event::Removed),
            9 => {
                world.running.remove(&id.0);
                bench.exited(id.0, "exit status 1")
            }
            _ => bench.step(Event::Tick),
        };
        let answered = !failures(&actions).is_empty() || bench.state.any(Instance::is_live);
        assert!(
            kind > 1 || answered || bench.state.removed,
            "seed {seed}: a waiter is forgotten"
        );
        world.carry_out(actions, &mut bench, &mut rng);
        if let Some(due) = bench.state.next_deadline() {
            bench.now = bench.now.max(due);
            let actions = bench.step(Event::Tick);
            world.carry_out(actions, &mut bench, &mut rng);
            let next = bench.state.next_deadline();
            assert!(
                next.is_none_or(|next| next > bench.now),
                "seed {seed}: a deadline that stays"
            );
        }
        let live = bench.state.ids(Instance::is_live).len();
        assert!(live <= 20, "seed {seed}: {live} live");
    }
    let actions = bench.step(Event::Shutdown);
    world.carry_out(actions, &mut bench, &mut rng);
    assert!(world.known.is_empty(), "seed {seed}");
    for id in world.running {
        bench.exited(id, "signal 15 (SIGTERM)");
    }
    assert!(bench.state.is_over(), "seed {seed}");
}

/// What data plane and supervisor would know.
#[derive(Default)]
struct World {
    known: BTreeSet<u64>,
    running: BTreeSet<u64>,
}

impl World {
    fn carry_out(&mut self, actions: Vec<Action>, bench: &mut Bench, rng: &mut fastrand::Rng) {
        for action in actions {
            match action {
                Action::Start(id, _) => assert!(self.running.insert(id.0)),
                Action::Add(id, ..) => drop(self.known.insert(id.0)),
                Action::Remove(id) => drop(self.known.remove(&id.0)),
                Action::Stop(id, _) => assert!(!self.known.contains(&id.0), "{id} is still known"),
                Action::Retire { count, .. } => {
                    let mut live = bench.state.ids(Instance::is_live);
                    live.retain(|id| self.known.contains(&id.0));
                    let take = if rng.bool() { count as usize } else { 0 };
                    let chosen = live.into_iter().take(take).collect();
                    bench.step(Event::Victims { asked: count, chosen });
                }
                Action::End(ids) => {
                    let known = ids.iter().all(|id| self.known.contains(&id.0));
                    assert!(known, "ended after it was forgotten");
                }
                Action::RetireThese(_) | Action::Fail(_) | Action::Forgive | Action::Warn(_) => {}
                Action::ToZero | Action::Ask(_) => unreachable!("it starts instances itself"),
            }
        }
    }
}

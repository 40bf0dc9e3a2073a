//! Whatever comes in whatever order: one call at a time, and zero only when nobody is there.

use super::*;

/// A platform and a data plane that do as they please.
#[derive(Default)]
struct World {
    calling: bool,
    /// The data plane agreed to zero, and nobody came since.
    at_zero: bool,
    known: Vec<InstanceId>,
}

impl World {
    fn carry_out(&mut self, actions: Vec<Action>, bench: &mut Bench, rng: &mut fastrand::Rng) {
        for action in actions {
            match action {
                Action::Ask(ask) => {
                    assert!(!std::mem::replace(&mut self.calling, true), "two calls at once");
                    if ask.replicas == 0 {
                        let left_behind = bench.state.is_removed();
                        assert!(self.at_zero || left_behind, "zero, and somebody may be there");
                        assert!(self.known.is_empty(), "zero, and {:?} in use", self.known);
                    }
                }
                Action::Add(id, ..) => self.known.push(id),
                Action::Remove(id) => self.known.retain(|known| *known != id),
                Action::ToZero => {
                    self.at_zero = rng.bool();
                    let known = self.known.clone();
                    let answer = Event::AtZero(self.at_zero.then_some(known));
                    let next = bench.step(answer);
                    self.carry_out(next, bench, rng);
                }
                Action::Retire { count, .. } => {
                    let take = rng.usize(..=count as usize);
                    let chosen = bench.state.live().into_iter().take(take).collect();
                    let next = bench.step(Event::Victims { asked: count, chosen });
                    self.carry_out(next, bench, rng);
                }
                Action::End(ids) => {
                    assert!(
                        ids.iter().all(|id| self.known.contains(id)),
                        "ended after it was forgotten"
                    );
                }
                Action::RetireThese(_) | Action::Fail(_) | Action::Forgive | Action::Warn(_) => {}
                Action::Start(..) | Action::Stop(..) => unreachable!("a platform starts them"),
            }
        }
    }

    fn event(&mut self, bench: &mut Bench, rng: &mut fastrand::Rng) -> Event {
        match rng.u8(..10) {
            0 => {
                self.at_zero = false;
                Event::Activate
            }
            1 => {
                self.at_zero = false;
                Event::Activated
            }
            2 | 3 => Event::Desired {
                count: rng.u32(..4),
                decision: "decided".to_owned(),
            },
            4 => match rng.choice(&self.known) {
                Some(&id) => Event::Drained(id),
                None => Event::Tick,
            },
            5 | 6 if self.calling => {
                self.calling = false;
                Event::Answered(match rng.u8(..5) {
                    0 => Answer::Refused("no".to_owned()),
                    1 => Answer::Retry {
                        detail: "later".to_owned(),
                        after: None,
                    },
                    _ => Answer::Agreed {
                        endpoints: (0..rng.u16(..4)).map(|_| at(rng.u16(1..6))).collect(),
                    },
                })
            }
            7 if rng.u8(..10) == 0 => Event::Plan(Arc::clone(&bench.state.plan)),
            8 if rng.u8(..20) == 0 => Event::Removed,
            _ => {
                let until = bench.state.next_deadline();
                let next = until.map_or(Duration::ZERO, |at| at.saturating_duration_since(bench.now));
                bench.now += next;
                Event::Tick
            }
        }
    }
}

#[test]
fn one_call_at_a_time_and_zero_only_when_nobody_is_there() {
    let seeds = match std::env::var("SLUICE_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..256).collect(),
    };
    for seed in seeds {
        let result = std::panic::catch_unwind(|| storm(seed));
        assert!(result.is_ok(), "replay with SLUICE_SEED={seed}");
    }
}

fn storm(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut bench = Bench::new(|plan| plan.policy.min_scale = u32::from(seed.is_multiple_of(4)));
    let mut world = World::default();
    for _ in 0..500 {
        let event = world.event(&mut bench, &mut rng);
        let ticked = matches!(event, Event::Tick);
        let actions = bench.step(event);
        world.carry_out(actions, &mut bench, &mut rng);
        if ticked {
            let due = bench.state.next_deadline();
            assert!(
                due.is_none_or(|at| at > bench.now),
                "a deadline that does not pass"
            );
        }
    }
}

//! Seeded simulation: any events in any order. One call at a time, and zero only when nobody is there.

use super::*;
use crate::scale::testing::{FakeEndpoints, assert_deadline_ahead, for_seeds};

#[test]
fn one_call_at_a_time_and_zero_only_when_nobody_is_there() {
    for_seeds(storm);
}

fn storm(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut bench = Bench::new(|plan| plan.policy.min_scale = u32::from(seed.is_multiple_of(4)));
    let mut world = World::default();
    for _ in 0..500 {
        let event = world.event(&mut bench, &mut rng);
        let ticked = matches!(event, WebhookEvent::Revision(RevisionEvent::Tick));
        let actions = bench.step(event);
        world.carry_out(actions, &mut bench, &mut rng);
        if ticked {
            assert_deadline_ahead(&bench.state, bench.now);
        }
    }
}

/// A platform and a data plane that answer at random.
#[derive(Default)]
struct World {
    calling: bool,
    /// The data plane agreed to zero, and no request came since.
    at_zero: bool,
    endpoints: FakeEndpoints,
}

impl World {
    fn carry_out(&mut self, actions: Vec<WebhookAction>, bench: &mut Bench, rng: &mut fastrand::Rng) {
        for action in actions {
            match action {
                WebhookAction::Ask(ask) => {
                    assert!(!std::mem::replace(&mut self.calling, true), "two calls at once");
                    if ask.replicas == 0 {
                        let left_behind = bench.state.is_removed();
                        assert!(self.at_zero || left_behind, "zero, and somebody may be there");
                        let known = &self.endpoints.known;
                        assert!(known.is_empty(), "zero, and {known:?} in use");
                    }
                }
                WebhookAction::ToZero => {
                    self.at_zero = rng.bool();
                    let known = self.endpoints.known.iter().copied().collect();
                    let next = bench.step(WebhookEvent::AtZero(self.at_zero.then_some(known)));
                    self.carry_out(next, bench, rng);
                }
                WebhookAction::Endpoint(action) => {
                    let live = bench.state.live();
                    if let Some(event) = self.endpoints.carry_out(action, live, rng) {
                        let next = bench.step(event);
                        self.carry_out(next, bench, rng);
                    }
                }
            }
        }
    }

    fn event(&mut self, bench: &mut Bench, rng: &mut fastrand::Rng) -> WebhookEvent {
        let known: Vec<InstanceId> = self.endpoints.known.iter().copied().collect();
        let event = match rng.u8(..10) {
            0 => {
                self.at_zero = false;
                RevisionEvent::Activate
            }
            1 => {
                self.at_zero = false;
                RevisionEvent::Activated
            }
            2 | 3 => RevisionEvent::Desired {
                count: rng.u32(..4),
                decision: "decided".to_owned(),
            },
            4 => match rng.choice(&known) {
                Some(&id) => RevisionEvent::Drained(id),
                None => RevisionEvent::Tick,
            },
            5 | 6 if self.calling => {
                self.calling = false;
                return WebhookEvent::Answered(match rng.u8(..5) {
                    0 => Answer::Refused("no".to_owned()),
                    1 => Answer::Retry {
                        detail: "later".to_owned(),
                        after: None,
                    },
                    _ => Answer::Agreed {
                        endpoints: (0..rng.u16(..4)).map(|_| at(rng.u16(1..6))).collect(),
                    },
                });
            }
            7 if rng.u8(..10) == 0 => RevisionEvent::Plan(Arc::clone(&bench.state.plan)),
            8 if rng.u8(..20) == 0 => RevisionEvent::Removed,
            _ => {
                let until = bench.state.next_deadline();
                let next = until.map_or(Duration::ZERO, |at| at.saturating_duration_since(bench.now));
                bench.now += next;
                RevisionEvent::Tick
            }
        };
        event.into()
    }
}

mod storm;

use std::net::SocketAddr;

use super::*;
use crate::plan::{ScalerSpec, WebhookSpec};
use crate::scale::state::ENDING;
use crate::scale::testing;
use crate::scale::webhook::Ask;

const DRAIN: Duration = Duration::from_secs(300);
const START: Duration = Duration::from_secs(60);
const S: Duration = Duration::from_secs(1);

/// A revision with a clock that moves only when told to.
struct Bench {
    state: ReplicaState,
    fresh: Fresh,
    now: Instant,
}

impl Bench {
    fn new(change: impl FnOnce(&mut RevisionPlan)) -> Self {
        let mut plan = RevisionPlan {
            scaler: ScalerSpec::Webhook(WebhookSpec {
                url: "http://platform/scale".to_owned(),
                headers: BTreeMap::new(),
            }),
            ..testing::plan(&[])
        };
        change(&mut plan);
        let plan = Arc::new(plan);
        Self {
            state: ReplicaState::new(Arc::clone(&plan), DRAIN),
            fresh: Fresh::new(7),
            now: Instant::now(),
        }
    }

    fn step(&mut self, event: Event) -> Vec<Action> {
        self.state.step(event, self.now, &mut self.fresh)
    }

    fn after(&mut self, time: Duration, event: Event) -> Vec<Action> {
        self.now += time;
        self.step(event)
    }

    fn desired(&mut self, count: u32) -> Vec<Action> {
        let decision = format!("to {count}");
        self.step(Event::Desired { count, decision })
    }

    fn agreed(&mut self, endpoints: &[u16]) -> Vec<Action> {
        let endpoints = endpoints.iter().map(|&port| at(port)).collect();
        self.step(Event::Answered(Answer::Agreed { endpoints }))
    }

    fn retry(&mut self, detail: &str) -> Vec<Action> {
        let detail = detail.to_owned();
        self.step(Event::Answered(Answer::Retry { detail, after: None }))
    }

    fn refused(&mut self, detail: &str) -> Vec<Action> {
        self.step(Event::Answered(Answer::Refused(detail.to_owned())))
    }

    /// Somebody came, and the platform named these endpoints, which are ready.
    fn with_endpoints(mut self, ports: &[u16]) -> Self {
        let count = u32::try_from(ports.len()).unwrap();
        assert_eq!(asked(&self.desired(count)), [count]);
        assert_eq!(self.agreed(ports).len(), ports.len());
        for &id in &self.state.live() {
            self.step(Event::Ready(id));
        }
        self
    }
}

fn at(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn asks(actions: &[Action]) -> Vec<&Ask> {
    let asks = actions.iter().filter_map(|action| match action {
        Action::Ask(ask) => Some(ask),
        _ => None,
    });
    asks.collect()
}

fn asked(actions: &[Action]) -> Vec<u32> {
    asks(actions).into_iter().map(|ask| ask.replicas).collect()
}

fn failures(actions: &[Action]) -> Vec<(Failure, &str)> {
    let failures = actions.iter().filter_map(|action| match action {
        Action::Fail(f) => Some((f.failure, f.detail.as_str())),
        _ => None,
    });
    failures.collect()
}

fn nobody() -> Event {
    Event::AtZero(Some(vec![]))
}

#[test]
fn nothing_is_asked_before_it_is_needed() {
    let mut bench = Bench::new(|_| {});
    let plan = Arc::clone(&bench.state.plan);
    assert_eq!(bench.step(Event::Plan(plan)), []);
    assert_eq!(bench.desired(0), []);
    assert_eq!(bench.state.next_deadline(), None);
    let mut kept = Bench::new(|plan| plan.policy.min_scale = 2);
    assert_eq!(asked(&kept.step(Event::Tick)), [2], "a minimum is needed at once");
}

#[test]
fn from_zero_to_one_and_back_with_configured_addresses() {
    let mut bench = Bench::new(|plan| plan.policy.activation_scale = 2);
    let actions = bench.step(Event::Activate);
    let [ask] = asks(&actions)[..] else {
        panic!("{actions:?}");
    };
    assert_eq!((ask.replicas, ask.reason.as_str()), (2, "0 → 2: somebody waits"));
    assert_eq!(ask.limit, Duration::from_secs(10));
    assert_eq!(bench.step(Event::Activate), [], "asked once");
    assert_eq!(bench.agreed(&[]), []);
    bench.step(Event::Activated);
    assert_eq!(bench.state.next_deadline(), None);
    let status = bench.state.status();
    assert_eq!((status.desired, status.starts, status.last_failure), (2, 2, None));

    assert_eq!(bench.desired(0), [Action::ToZero]);
    assert_eq!(bench.step(Event::AtZero(None)), [], "somebody is there");
    assert_eq!(bench.after(S, Event::Tick), [Action::ToZero]);
    assert_eq!(asked(&bench.step(nobody())), [0]);
    assert_eq!(bench.agreed(&[]), []);
    assert_eq!(bench.state.next_deadline(), None);
    assert_eq!(asked(&bench.step(Event::Activate)), [2]);
}

#[test]
fn whoever_comes_while_it_goes_to_zero_is_next() {
    let mut bench = Bench::new(|_| {}).with_endpoints(&[1]);
    let id = bench.state.live()[0];
    assert_eq!(bench.desired(0), [Action::ToZero]);
    assert_eq!(
        bench.step(Event::AtZero(Some(vec![id]))),
        [],
        "not before it is drained"
    );
    let actions = bench.step(Event::Drained(id));
    assert_eq!(actions[0], Action::Remove(id));
    assert_eq!(asked(&actions), [0]);
    assert_eq!(bench.step(Event::Activate), [], "one call at a time");
    assert_eq!(asked(&bench.agreed(&[])), [1]);
    assert_eq!(
        bench.agreed(&[1]).len(),
        1,
        "a new endpoint, whatever its address"
    );
}

#[test]
fn the_latest_decision_wins_and_never_two_calls_at_once() {
    let mut bench = Bench::new(|_| {});
    assert_eq!(asked(&bench.desired(1)), [1]);
    for count in 2..=5 {
        assert_eq!(bench.desired(count), []);
    }
    assert_eq!(asked(&bench.agreed(&[])), [5]);
    assert_eq!(bench.desired(5), [], "the same again is no news");
    assert_eq!(bench.agreed(&[]), []);
    assert_eq!(bench.desired(5), []);
}

#[test]
fn a_call_that_failed_is_repeated_under_its_name_ever_more_slowly() {
    let mut bench = Bench::new(|_| {});
    let first = bench.step(Event::Activate);
    let key = &asks(&first)[0].key;
    let mut pauses = Vec::new();
    for _ in 0..4 {
        assert!(asks(&bench.retry("the platform answered 500")).is_empty());
        let due = bench.state.next_deadline().unwrap();
        pauses.push(due - bench.now);
        let again = bench.after(due - bench.now, Event::Tick);
        assert_eq!(asks(&again)[0].key, *key);
    }
    for (pause, least) in pauses.iter().zip([100, 200, 400, 800]) {
        let least = Duration::from_millis(least);
        assert!((least..=least * 5 / 4).contains(pause), "{pauses:?}");
    }
    let failure = bench.state.status().last_failure;
    assert_eq!(failure.as_deref(), Some("the platform answered 500"));
    bench.retry("the platform answered 500");
    bench.desired(3);
    let due = bench.state.next_deadline().unwrap();
    let other = bench.after(due - bench.now, Event::Tick);
    assert_eq!(asked(&other), [3]);
    assert_ne!(asks(&other)[0].key, *key, "another decision");
    bench.agreed(&[]);
    assert_eq!(bench.state.status().last_failure, None);
}

#[test]
fn a_platform_says_when_it_wants_to_be_asked_again() {
    let mut bench = Bench::new(|_| {});
    bench.step(Event::Activate);
    let after = Some(Duration::from_secs(7));
    let detail = "the platform answered 429".to_owned();
    bench.step(Event::Answered(Answer::Retry { detail, after }));
    assert!(asks(&bench.after(S * 6, Event::Tick)).is_empty());
    assert_eq!(asked(&bench.after(S, Event::Tick)), [1]);
}

#[test]
fn a_refusal_answers_at_once_and_the_next_try_is_for_the_next_waiter() {
    let mut bench = Bench::new(|_| {});
    let first = bench.step(Event::Activate);
    let detail = "the platform answered 404 Not Found";
    let actions = bench.refused(detail);
    assert_eq!(failures(&actions), [(Failure::Failed, detail)]);
    assert!(asks(&actions).is_empty());
    assert_eq!(bench.state.status().last_failure.as_deref(), Some(detail));
    assert_eq!(bench.state.next_deadline(), None, "nobody waits any more");
    let early = bench.after(S / 2, Event::Activate);
    assert_eq!(failures(&early), [(Failure::Failed, detail)]);
    assert!(asks(&early).is_empty());
    let next = bench.after(S, Event::Activate);
    assert_eq!(asked(&next), [1]);
    assert_ne!(asks(&next)[0].key, asks(&first)[0].key);
    bench.agreed(&[]);
    bench.step(Event::Activated);
    assert_eq!(bench.state.status().last_failure, None);
}

#[test]
fn a_refusal_that_comes_before_the_waiter_it_is_for_is_the_answer_all_the_same() {
    let mut bench = Bench::new(|_| {});
    bench.desired(1);
    let detail = "the platform answered 404 Not Found";
    assert_eq!(failures(&bench.refused(detail)), [(Failure::Failed, detail)]);
    let actions = bench.step(Event::Activate);
    assert_eq!(failures(&actions), [(Failure::Failed, detail)]);
    assert!(asks(&actions).is_empty());
}

#[test]
fn more_that_is_refused_hurts_nobody_and_is_asked_for_again_later() {
    let mut bench = Bench::new(|_| {}).with_endpoints(&[1]);
    assert_eq!(asked(&bench.desired(2)), [2]);
    let actions = bench.refused("the platform answered 403 Forbidden");
    assert!(failures(&actions).is_empty());
    assert_eq!(bench.state.status().desired, 2);
    assert_eq!(asked(&bench.after(S * 38, Event::Tick)), [2]);
}

#[test]
fn a_platform_that_lies_is_a_timeout_and_what_it_may_have_started_is_ended() {
    let mut bench = Bench::new(|_| {});
    bench.step(Event::Activate);
    assert_eq!(bench.agreed(&[1]).len(), 1);
    let id = bench.state.live()[0];
    assert_eq!(bench.state.next_deadline(), Some(bench.now + START));
    assert_eq!(bench.after(START, Event::Tick), [Action::ToZero]);
    let actions = bench.step(Event::AtZero(None));
    let detail = "not ready within 60s: the platform agreed, but no endpoint it named answers";
    assert_eq!(failures(&actions), [(Failure::TimedOut, detail)]);
    assert_eq!(actions.last(), Some(&Action::ToZero), "they are answered now");
    bench.step(Event::AtZero(Some(vec![id])));
    assert_eq!(asked(&bench.step(Event::Drained(id))), [0]);
    bench.agreed(&[]);
    assert_eq!(bench.state.status().last_failure.as_deref(), Some(detail));
}

#[test]
fn a_platform_in_trouble_until_the_deadline_is_a_timeout_with_its_cause() {
    let mut bench = Bench::new(|_| {});
    bench.step(Event::Activate);
    bench.retry("the platform answered 500");
    bench.now += START;
    let late = bench.step(Event::Tick);
    assert!(late.contains(&Action::ToZero));
    let actions = bench.step(Event::AtZero(None));
    let detail = "not started within 60s: the platform answered 500";
    assert_eq!(failures(&actions), [(Failure::TimedOut, detail)]);
}

#[test]
fn clients_that_left_are_no_failure() {
    let mut bench = Bench::new(|_| {});
    bench.step(Event::Activate);
    bench.agreed(&[]);
    assert_eq!(bench.after(START, Event::Tick), [Action::ToZero]);
    let actions = bench.step(nobody());
    assert!(failures(&actions).is_empty());
    assert_eq!(asked(&actions), [0]);
    assert_eq!(bench.state.status().last_failure, None);
}

#[test]
fn an_endpoint_that_is_gone_is_asked_for_anew() {
    let mut bench = Bench::new(|_| {}).with_endpoints(&[1]);
    let old = bench.state.live();
    let actions = bench.step(Event::Activate);
    assert_eq!(asked(&actions), [1]);
    // Counted from the first call about it.
    bench.retry("busy");
    assert_eq!(asked(&bench.after(5 * S, Event::Tick)), [1]);
    bench.now += S;
    let actions = bench.agreed(&[2]);
    let took = 6 * S;
    assert!(matches!(actions[0], Action::Add(_, address, t) if address == at(2) && t == took));
    assert_eq!(actions[1], Action::RetireThese(old));
}

#[test]
fn a_decision_that_comes_before_the_waiter_it_is_for_is_asked_once() {
    let mut bench = Bench::new(|_| {});
    assert_eq!(asked(&bench.desired(1)), [1]);
    bench.agreed(&[]);
    assert_eq!(bench.step(Event::Activate), []);
    assert_eq!(bench.state.next_deadline(), Some(bench.now + START));
    bench.step(Event::Activated);
    assert_eq!(asked(&bench.step(Event::Activate)), [1], "now it is gone");
}

#[test]
fn fewer_are_asked_for_when_nobody_is_left_on_them() {
    let mut bench = Bench::new(|_| {}).with_endpoints(&[1, 2, 3]);
    let ids = bench.state.live();
    let retire = Action::Retire {
        count: 2,
        to_zero: false,
    };
    assert_eq!(bench.desired(1), [retire]);
    let chosen = vec![ids[0], ids[2]];
    assert_eq!(bench.step(Event::Victims { asked: 2, chosen }), []);
    let actions = bench.step(Event::Drained(ids[0]));
    assert_eq!(actions[0], Action::Remove(ids[0]));
    assert_eq!(asks(&actions)[0].replicas, 2);
    assert_eq!(asks(&actions)[0].endpoints, [at(2)], "the others may go");
    assert_eq!(bench.agreed(&[2, 3]), [], "what is being let go stays so");
    let actions = bench.after(DRAIN, Event::Tick);
    assert_eq!(actions, [Action::End(vec![ids[2]])]);
    let actions = bench.after(ENDING, Event::Tick);
    assert!(actions.contains(&Action::Remove(ids[2])), "{actions:?}");
    assert_eq!(asked(&actions), [1]);
    assert_eq!(bench.agreed(&[2]), []);
}

#[test]
fn what_was_let_go_for_nothing_is_named_again() {
    let mut bench = Bench::new(|_| {}).with_endpoints(&[1, 2]);
    let ids = bench.state.live();
    bench.desired(1);
    let chosen = vec![ids[0]];
    bench.step(Event::Victims { asked: 1, chosen });
    assert_eq!(bench.desired(2), [], "it still has both");
    let actions = bench.step(Event::Drained(ids[0]));
    assert_eq!(asked(&actions), [2]);
    let actions = bench.agreed(&[1, 2]);
    assert!(matches!(actions[..], [Action::Add(_, address, _)] if address == at(1)));
}

#[test]
fn a_removed_revision_is_ended_and_forgotten() {
    let mut bench = Bench::new(|_| {}).with_endpoints(&[1]);
    let id = bench.state.live()[0];
    let actions = bench.step(Event::Removed);
    assert_eq!(actions, [Action::RetireThese(vec![id]), Action::ToZero]);
    bench.step(Event::AtZero(None));
    bench.step(Event::Drained(id));
    bench.after(S, Event::Tick);
    assert_eq!(asked(&bench.step(nobody())), [0]);
    assert!(!bench.state.is_over());
    bench.agreed(&[]);
    assert!(bench.state.is_over());

    let mut never = Bench::new(|_| {});
    assert_eq!(never.step(Event::Removed), []);
    assert!(never.state.is_over(), "nothing was ever asked");
}

#[test]
fn a_platform_that_is_gone_too_is_not_told_for_ever() {
    let mut bench = Bench::new(|_| {});
    bench.desired(1);
    bench.agreed(&[]);
    bench.step(Event::Removed);
    assert_eq!(asked(&bench.step(nobody())), [0]);
    while !bench.state.is_over() {
        bench.retry("cannot connect");
        if let Some(due) = bench.state.next_deadline() {
            bench.after(due - bench.now, Event::Tick);
        }
    }
}

#[test]
fn another_platform_is_told_what_the_last_one_knew() {
    let mut bench = Bench::new(|_| {});
    bench.step(Event::Activate);
    bench.refused("the platform answered 404");
    let mut plan = RevisionPlan::clone(&bench.state.plan);
    plan.scaler = ScalerSpec::Webhook(WebhookSpec {
        url: "http://other/".to_owned(),
        headers: BTreeMap::new(),
    });
    assert_eq!(bench.step(Event::Plan(Arc::new(plan.clone()))), [Action::Forgive]);
    assert_eq!(asked(&bench.step(Event::Activate)), [1], "without a back-off");
    bench.agreed(&[]);
    bench.step(Event::Activated);
    let ScalerSpec::Webhook(webhook) = &mut plan.scaler else {
        unreachable!();
    };
    webhook.headers.insert("a".to_owned(), "b".to_owned());
    assert_eq!(asked(&bench.step(Event::Plan(Arc::new(plan)))), [1]);
}

#[test]
fn no_instance_is_allowed() {
    let mut bench = Bench::new(|plan| plan.policy.max_scale = Some(0));
    let actions = bench.step(Event::Activate);
    assert_eq!(failures(&actions), [(Failure::NotAllowed, "maxScale is 0")]);
    assert!(asks(&actions).is_empty());
}

#[test]
fn the_gateways_end_changes_nothing_elsewhere() {
    let mut bench = Bench::new(|_| {}).with_endpoints(&[1]);
    assert_eq!(bench.step(Event::Shutdown), []);
    assert!(bench.state.is_over());
}

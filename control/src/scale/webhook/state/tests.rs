mod storm;

use std::net::SocketAddr;

use super::*;
use crate::plan::{ScalerSpec, WebhookSpec};
use crate::scale::events::END_GRACE;
use crate::scale::testing;
use crate::scale::webhook::Ask;

const DRAIN: Duration = Duration::from_secs(300);
const START: Duration = Duration::from_secs(60);
const S: Duration = Duration::from_secs(1);

/// A revision with a manual clock.
struct Bench {
    state: WebhookState,
    ids: IdSource,
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
            state: WebhookState::new(Arc::clone(&plan), DRAIN),
            ids: IdSource::new(7),
            now: Instant::now(),
        }
    }

    fn step(&mut self, event: impl Into<WebhookEvent>) -> Vec<WebhookAction> {
        self.state.step(event.into(), self.now, &mut self.ids)
    }

    fn after(&mut self, time: Duration, event: impl Into<WebhookEvent>) -> Vec<WebhookAction> {
        self.now += time;
        self.step(event)
    }

    fn desired(&mut self, count: u32) -> Vec<WebhookAction> {
        let decision = format!("to {count}");
        self.step(RevisionEvent::Desired { count, decision })
    }

    fn agreed(&mut self, endpoints: &[u16]) -> Vec<WebhookAction> {
        let endpoints = endpoints.iter().map(|&port| at(port)).collect();
        self.step(WebhookEvent::Answered(Answer::Agreed { endpoints }))
    }

    fn retry(&mut self, detail: &str) -> Vec<WebhookAction> {
        let detail = detail.to_owned();
        self.step(WebhookEvent::Answered(Answer::Retry { detail, after: None }))
    }

    fn refused(&mut self, detail: &str) -> Vec<WebhookAction> {
        self.step(WebhookEvent::Answered(Answer::Refused(detail.to_owned())))
    }

    /// Somebody came, and the platform named these endpoints, which are ready.
    fn with_endpoints(mut self, ports: &[u16]) -> Self {
        let count = u32::try_from(ports.len()).unwrap();
        assert_eq!(asked(&self.desired(count)), [count]);
        assert_eq!(self.agreed(ports).len(), ports.len());
        for &id in &self.state.live() {
            self.step(RevisionEvent::Ready(id));
        }
        self
    }
}

fn at(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn asks(actions: &[WebhookAction]) -> Vec<&Ask> {
    let asks = actions.iter().filter_map(|action| match action {
        WebhookAction::Ask(ask) => Some(ask),
        _ => None,
    });
    asks.collect()
}

fn asked(actions: &[WebhookAction]) -> Vec<u32> {
    asks(actions).into_iter().map(|ask| ask.replicas).collect()
}

fn failures(actions: &[WebhookAction]) -> Vec<(Failure, &str)> {
    let failures = actions.iter().filter_map(|action| match action {
        WebhookAction::Endpoint(EndpointAction::Fail(f)) => Some((f.failure, f.detail.as_str())),
        _ => None,
    });
    failures.collect()
}

fn nobody() -> WebhookEvent {
    WebhookEvent::AtZero(Some(vec![]))
}

#[test]
fn nothing_is_asked_before_it_is_needed() {
    let mut bench = Bench::new(|_| {});
    let plan = Arc::clone(&bench.state.plan);
    assert_eq!(bench.step(RevisionEvent::Plan(plan)), []);
    assert_eq!(bench.desired(0), []);
    assert_eq!(bench.state.next_deadline(), None);
    let mut kept = Bench::new(|plan| plan.policy.min_scale = 2);
    assert_eq!(
        asked(&kept.step(RevisionEvent::Tick)),
        [2],
        "a minimum is needed at once"
    );
}

#[test]
fn from_zero_to_one_and_back_with_configured_addresses() {
    let mut bench = Bench::new(|plan| plan.policy.activation_scale = 2);
    let actions = bench.step(RevisionEvent::Activate);
    let [ask] = asks(&actions)[..] else {
        panic!("{actions:?}");
    };
    assert_eq!((ask.replicas, ask.reason.as_str()), (2, "0 → 2: somebody waits"));
    assert_eq!(ask.limit, Duration::from_secs(10));
    assert_eq!(bench.step(RevisionEvent::Activate), [], "asked once");
    assert_eq!(bench.agreed(&[]), []);
    bench.step(RevisionEvent::Activated);
    assert_eq!(bench.state.next_deadline(), None);
    let status = bench.state.status();
    assert_eq!((status.desired, status.starts, status.last_failure), (2, 2, None));

    assert_eq!(bench.desired(0), [WebhookAction::ToZero]);
    assert_eq!(bench.step(WebhookEvent::AtZero(None)), [], "somebody is there");
    assert_eq!(bench.after(S, RevisionEvent::Tick), [WebhookAction::ToZero]);
    assert_eq!(asked(&bench.step(nobody())), [0]);
    assert_eq!(bench.agreed(&[]), []);
    assert_eq!(bench.state.next_deadline(), None);
    assert_eq!(asked(&bench.step(RevisionEvent::Activate)), [2]);
}

#[test]
fn whoever_comes_while_it_goes_to_zero_is_next() {
    let mut bench = Bench::new(|_| {}).with_endpoints(&[1]);
    let id = bench.state.live()[0];
    assert_eq!(bench.desired(0), [WebhookAction::ToZero]);
    assert_eq!(
        bench.step(WebhookEvent::AtZero(Some(vec![id]))),
        [],
        "not before it is drained"
    );
    let actions = bench.step(RevisionEvent::Drained(id));
    assert_eq!(actions[0], WebhookAction::Endpoint(EndpointAction::Remove(id)));
    assert_eq!(asked(&actions), [0]);
    assert_eq!(bench.step(RevisionEvent::Activate), [], "one call at a time");
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
    let first = bench.step(RevisionEvent::Activate);
    let key = &asks(&first)[0].key;
    let mut pauses = Vec::new();
    for _ in 0..4 {
        assert!(asks(&bench.retry("the platform answered 500")).is_empty());
        let due = bench.state.next_deadline().unwrap();
        pauses.push(due - bench.now);
        let again = bench.after(due - bench.now, RevisionEvent::Tick);
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
    let other = bench.after(due - bench.now, RevisionEvent::Tick);
    assert_eq!(asked(&other), [3]);
    assert_ne!(asks(&other)[0].key, *key, "another decision");
    bench.agreed(&[]);
    assert_eq!(bench.state.status().last_failure, None);
}

#[test]
fn a_platform_says_when_it_wants_to_be_asked_again() {
    let mut bench = Bench::new(|_| {});
    bench.step(RevisionEvent::Activate);
    let after = Some(Duration::from_secs(7));
    let detail = "the platform answered 429".to_owned();
    bench.step(WebhookEvent::Answered(Answer::Retry { detail, after }));
    assert!(asks(&bench.after(S * 6, RevisionEvent::Tick)).is_empty());
    assert_eq!(asked(&bench.after(S, RevisionEvent::Tick)), [1]);
}

#[test]
fn a_refusal_answers_at_once_and_the_next_try_is_for_the_next_waiter() {
    let mut bench = Bench::new(|_| {});
    let first = bench.step(RevisionEvent::Activate);
    let detail = "the platform answered 404 Not Found";
    let actions = bench.refused(detail);
    assert_eq!(failures(&actions), [(Failure::Failed, detail)]);
    assert!(asks(&actions).is_empty());
    assert_eq!(bench.state.status().last_failure.as_deref(), Some(detail));
    assert_eq!(bench.state.next_deadline(), None, "nobody waits any more");
    let early = bench.after(S / 2, RevisionEvent::Activate);
    assert_eq!(failures(&early), [(Failure::Failed, detail)]);
    assert!(asks(&early).is_empty());
    let next = bench.after(S, RevisionEvent::Activate);
    assert_eq!(asked(&next), [1]);
    assert_ne!(asks(&next)[0].key, asks(&first)[0].key);
    bench.agreed(&[]);
    bench.step(RevisionEvent::Activated);
    assert_eq!(bench.state.status().last_failure, None);
}

#[test]
fn a_refusal_that_comes_before_the_waiter_it_is_for_is_the_answer_all_the_same() {
    let mut bench = Bench::new(|_| {});
    bench.desired(1);
    let detail = "the platform answered 404 Not Found";
    assert_eq!(failures(&bench.refused(detail)), [(Failure::Failed, detail)]);
    let actions = bench.step(RevisionEvent::Activate);
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
    assert_eq!(asked(&bench.after(S * 38, RevisionEvent::Tick)), [2]);
}

#[test]
fn a_platform_that_lies_is_a_timeout_and_what_it_may_have_started_is_ended() {
    let mut bench = Bench::new(|_| {});
    bench.step(RevisionEvent::Activate);
    assert_eq!(bench.agreed(&[1]).len(), 1);
    let id = bench.state.live()[0];
    assert_eq!(bench.state.next_deadline(), Some(bench.now + START));
    assert_eq!(bench.after(START, RevisionEvent::Tick), [WebhookAction::ToZero]);
    let actions = bench.step(WebhookEvent::AtZero(None));
    let detail = "not ready within 60s: the platform agreed, but no endpoint it named answers";
    assert_eq!(failures(&actions), [(Failure::TimedOut, detail)]);
    assert_eq!(
        actions.last(),
        Some(&WebhookAction::ToZero),
        "they are answered now"
    );
    bench.step(WebhookEvent::AtZero(Some(vec![id])));
    assert_eq!(asked(&bench.step(RevisionEvent::Drained(id))), [0]);
    bench.agreed(&[]);
    assert_eq!(bench.state.status().last_failure.as_deref(), Some(detail));
}

#[test]
fn a_platform_in_trouble_until_the_deadline_is_a_timeout_with_its_cause() {
    let mut bench = Bench::new(|_| {});
    bench.step(RevisionEvent::Activate);
    bench.retry("the platform answered 500");
    bench.now += START;
    let late = bench.step(RevisionEvent::Tick);
    assert!(late.contains(&WebhookAction::ToZero));
    let actions = bench.step(WebhookEvent::AtZero(None));
    let detail = "not started within 60s: the platform answered 500";
    assert_eq!(failures(&actions), [(Failure::TimedOut, detail)]);
}

#[test]
fn clients_that_left_are_no_failure() {
    let mut bench = Bench::new(|_| {});
    bench.step(RevisionEvent::Activate);
    bench.agreed(&[]);
    assert_eq!(bench.after(START, RevisionEvent::Tick), [WebhookAction::ToZero]);
    let actions = bench.step(nobody());
    assert!(failures(&actions).is_empty());
    assert_eq!(asked(&actions), [0]);
    assert_eq!(bench.state.status().last_failure, None);
}

#[test]
fn an_endpoint_that_is_gone_is_asked_for_anew() {
    let mut bench = Bench::new(|_| {}).with_endpoints(&[1]);
    let old = bench.state.live();
    let actions = bench.step(RevisionEvent::Activate);
    assert_eq!(asked(&actions), [1]);
    // Counted from the first call about it.
    bench.retry("busy");
    assert_eq!(asked(&bench.after(5 * S, RevisionEvent::Tick)), [1]);
    bench.now += S;
    let actions = bench.agreed(&[2]);
    let took = 6 * S;
    assert!(
        matches!(actions[0], WebhookAction::Endpoint(EndpointAction::Add(_, address, t)) if address == at(2) && t == took)
    );
    assert_eq!(
        actions[1],
        WebhookAction::Endpoint(EndpointAction::RetireThese(old))
    );
}

#[test]
fn a_decision_that_comes_before_the_waiter_it_is_for_is_asked_once() {
    let mut bench = Bench::new(|_| {});
    assert_eq!(asked(&bench.desired(1)), [1]);
    bench.agreed(&[]);
    assert_eq!(bench.step(RevisionEvent::Activate), []);
    assert_eq!(bench.state.next_deadline(), Some(bench.now + START));
    bench.step(RevisionEvent::Activated);
    assert_eq!(asked(&bench.step(RevisionEvent::Activate)), [1], "now it is gone");
}

#[test]
fn fewer_are_asked_for_when_nobody_is_left_on_them() {
    let mut bench = Bench::new(|_| {}).with_endpoints(&[1, 2, 3]);
    let ids = bench.state.live();
    let retire = WebhookAction::Endpoint(EndpointAction::Retire {
        count: 2,
        to_zero: false,
    });
    assert_eq!(bench.desired(1), [retire]);
    let chosen = vec![ids[0], ids[2]];
    assert_eq!(bench.step(RevisionEvent::Victims { asked: 2, chosen }), []);
    let actions = bench.step(RevisionEvent::Drained(ids[0]));
    assert_eq!(
        actions[0],
        WebhookAction::Endpoint(EndpointAction::Remove(ids[0]))
    );
    assert_eq!(asks(&actions)[0].replicas, 2);
    assert_eq!(asks(&actions)[0].endpoints, [at(2)], "the others may go");
    assert_eq!(bench.agreed(&[2, 3]), [], "what is being let go stays so");
    let actions = bench.after(DRAIN, RevisionEvent::Tick);
    assert_eq!(
        actions,
        [WebhookAction::Endpoint(EndpointAction::End(vec![ids[2]]))]
    );
    let actions = bench.after(END_GRACE, RevisionEvent::Tick);
    assert!(
        actions.contains(&WebhookAction::Endpoint(EndpointAction::Remove(ids[2]))),
        "{actions:?}"
    );
    assert_eq!(asked(&actions), [1]);
    assert_eq!(bench.agreed(&[2]), []);
}

#[test]
fn what_was_let_go_for_nothing_is_named_again() {
    let mut bench = Bench::new(|_| {}).with_endpoints(&[1, 2]);
    let ids = bench.state.live();
    bench.desired(1);
    let chosen = vec![ids[0]];
    bench.step(RevisionEvent::Victims { asked: 1, chosen });
    assert_eq!(bench.desired(2), [], "it still has both");
    let actions = bench.step(RevisionEvent::Drained(ids[0]));
    assert_eq!(asked(&actions), [2]);
    let actions = bench.agreed(&[1, 2]);
    assert!(
        matches!(actions[..], [WebhookAction::Endpoint(EndpointAction::Add(_, address, _))] if address == at(1))
    );
}

#[test]
fn a_removed_revision_is_ended_and_forgotten() {
    let mut bench = Bench::new(|_| {}).with_endpoints(&[1]);
    let id = bench.state.live()[0];
    let actions = bench.step(RevisionEvent::Removed);
    assert_eq!(
        actions,
        [
            WebhookAction::Endpoint(EndpointAction::RetireThese(vec![id])),
            WebhookAction::ToZero
        ]
    );
    bench.step(WebhookEvent::AtZero(None));
    bench.step(RevisionEvent::Drained(id));
    bench.after(S, RevisionEvent::Tick);
    assert_eq!(asked(&bench.step(nobody())), [0]);
    assert!(!bench.state.is_over());
    bench.agreed(&[]);
    assert!(bench.state.is_over());

    let mut never = Bench::new(|_| {});
    assert_eq!(never.step(RevisionEvent::Removed), []);
    assert!(never.state.is_over(), "nothing was ever asked");
}

#[test]
fn a_platform_that_is_gone_too_is_not_told_for_ever() {
    let mut bench = Bench::new(|_| {});
    bench.desired(1);
    bench.agreed(&[]);
    bench.step(RevisionEvent::Removed);
    assert_eq!(asked(&bench.step(nobody())), [0]);
    while !bench.state.is_over() {
        bench.retry("cannot connect");
        if let Some(due) = bench.state.next_deadline() {
            bench.after(due - bench.now, RevisionEvent::Tick);
        }
    }
}

#[test]
fn another_platform_is_told_what_the_last_one_knew() {
    let mut bench = Bench::new(|_| {});
    bench.step(RevisionEvent::Activate);
    bench.refused("the platform answered 404");
    let mut plan = RevisionPlan::clone(&bench.state.plan);
    plan.scaler = ScalerSpec::Webhook(WebhookSpec {
        url: "http://other/".to_owned(),
        headers: BTreeMap::new(),
    });
    assert_eq!(
        bench.step(RevisionEvent::Plan(Arc::new(plan.clone()))),
        [WebhookAction::Endpoint(EndpointAction::Forgive)]
    );
    assert_eq!(
        asked(&bench.step(RevisionEvent::Activate)),
        [1],
        "without a back-off"
    );
    bench.agreed(&[]);
    bench.step(RevisionEvent::Activated);
    let ScalerSpec::Webhook(webhook) = &mut plan.scaler else {
        unreachable!();
    };
    webhook.headers.insert("a".to_owned(), "b".to_owned());
    assert_eq!(asked(&bench.step(RevisionEvent::Plan(Arc::new(plan)))), [1]);
}

#[test]
fn no_instance_is_allowed() {
    let mut bench = Bench::new(|plan| plan.policy.max_scale = Some(0));
    let actions = bench.step(RevisionEvent::Activate);
    assert_eq!(failures(&actions), [(Failure::NotAllowed, "maxScale is 0")]);
    assert!(asks(&actions).is_empty());
}

#[test]
fn the_gateways_end_changes_nothing_elsewhere() {
    let mut bench = Bench::new(|_| {}).with_endpoints(&[1]);
    assert_eq!(bench.step(RevisionEvent::Shutdown), []);
    assert!(bench.state.is_over());
}

#[test]
fn in_observe_mode_nobody_is_asked() {
    let mut bench = Bench::new(|plan| {
        plan.policy.mode = ScalingMode::Observe;
        plan.policy.min_scale = 2;
    });
    assert_eq!(bench.step(RevisionEvent::Activate), []);
    assert_eq!(bench.after(START * 2, RevisionEvent::Tick), []);
    assert_eq!(bench.state.next_deadline(), None);
    // Once it is active, the platform gets the number that is due.
    let mut plan = RevisionPlan::clone(&bench.state.plan);
    plan.policy.mode = ScalingMode::Active;
    assert_eq!(asked(&bench.step(RevisionEvent::Plan(Arc::new(plan)))), [2]);
}

use std::time::Duration;

use super::super::test_kit::{activate, add, admit, failed, reject, throttler};
use super::super::{Admission, Arrival, RevisionThrottler, Supply, shell::clock};
use super::*;
use crate::throttle::Rejection;

const KEEP: Duration = Duration::from_secs(6);

fn visit(throttler: &Arc<RevisionThrottler>) -> ColdPhase {
    throttler.visit(KEEP, clock()).expect("is cold").phase
}

#[tokio::test(start_paused = true)]
async fn a_visit_waits_for_nothing_and_demands_one_start() {
    let (throttler, demands) = throttler(Supply::Activated, None);
    for _ in 0..3 {
        assert!(matches!(visit(&throttler), ColdPhase::Queued));
    }
    assert_eq!(demands.take(), [activate()], "one start for all visits");
    let load = throttler.peek(clock());
    assert_eq!((load.queued, load.in_flight, load.requests), (0, 0, 0));
    assert!(load.expected && load.keep.is_zero());
    throttler.launch_step(0, sluice_model::LaunchStep::Ordered, clock());
    assert!(matches!(visit(&throttler), ColdPhase::Starting));
    let key = add(&throttler, 1);
    tokio::time::advance(Duration::from_secs(3)).await;
    let state = throttler.visit(KEEP, clock()).expect("is cold");
    assert!(matches!(state.phase, ColdPhase::Booting));
    assert_eq!((state.elapsed, state.expected), (Duration::from_secs(3), None));
    throttler.endpoint_ready(key, clock());
    assert!(
        throttler.visit(KEEP, clock()).is_none(),
        "it is ready: a request as any other"
    );
    let load = throttler.peek(clock());
    assert_eq!((load.expected, load.keep), (false, KEEP));
    tokio::time::advance(Duration::from_secs(4)).await;
    assert_eq!(throttler.peek(clock()).keep, Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn a_visit_starts_nothing_within_the_back_off() {
    let (throttler, demands) = throttler(Supply::Activated, None);
    visit(&throttler);
    throttler.fail(0, &failed(30), clock());
    demands.take();
    tokio::time::advance(Duration::from_secs(29)).await;
    assert!(matches!(visit(&throttler), ColdPhase::Failed { .. }));
    assert!(!throttler.peek(clock()).expected);
    assert_eq!(demands.take(), []);
    tokio::time::advance(Duration::from_secs(2)).await;
    assert!(matches!(visit(&throttler), ColdPhase::Queued));
    assert_eq!(demands.take(), [activate()]);
}

#[tokio::test(start_paused = true)]
async fn a_browser_that_stays_away_is_expected_no_longer_than_a_start_may_take() {
    let (throttler, _) = throttler(Supply::Activated, None);
    visit(&throttler);
    tokio::time::advance(Duration::from_secs(12)).await;
    assert!(!throttler.peek(clock()).expected);
}

#[tokio::test(start_paused = true)]
async fn a_passive_request_starts_nothing_and_is_no_activity() {
    let (throttler, demands) = throttler(Supply::Activated, Some(1));
    let passive = Arrival {
        passive: true,
        ..Arrival::default()
    };
    let ask = || throttler.admit(passive, clock());
    assert!(matches!(ask(), Admission::Rejected(Rejection::Dormant { .. })));
    assert_eq!(demands.take(), []);
    let key = add(&throttler, 1);
    assert!(
        matches!(ask(), Admission::Rejected(Rejection::Dormant { .. })),
        "still starting"
    );
    throttler.endpoint_ready(key, clock());
    throttler.sample(0, clock());
    let Admission::Admitted(permit) = ask() else {
        panic!("it is ready");
    };
    let Admission::Waiting(waiter) = ask() else {
        panic!("the slot is taken");
    };
    tokio::time::advance(Duration::from_secs(1)).await;
    let load = throttler.sample(0, clock());
    assert_eq!((load.in_flight, load.queued, load.passive), (1, 1, 2));
    assert_eq!((load.requests, load.average_concurrency), (0, 0.0));
    assert!(
        throttler.to_zero(0, clock()).is_none(),
        "a request in flight keeps its instance all the same"
    );
    // Retired, the instance finishes the request in flight; the waiter must not start another.
    demands.take();
    let victims = throttler.retire(0, 1, true, clock());
    assert_eq!(victims, [sluice_model::InstanceId(1)]);
    assert_eq!(demands.take(), [], "not drained yet");
    assert!(matches!(waiter.await, Err(Rejection::Dormant { .. })));
    drop(permit);
    let drained = demands.take();
    assert!(
        matches!(drained[..], [sluice_model::Demand::Drained { .. }]),
        "{drained:?}"
    );
    let load = throttler.peek(clock());
    assert_eq!((load.in_flight, load.queued, load.passive), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_visit_to_what_cannot_be_started_is_an_ordinary_request() {
    let (throttler, _) = throttler(Supply::Fixed, None);
    assert!(throttler.visit(KEEP, clock()).is_none());
    assert!(matches!(reject(&throttler), Rejection::NoEndpoints));
    let (throttler, _) = super::super::test_kit::throttler(Supply::Activated, None);
    throttler.endpoint_ready(add(&throttler, 1), clock());
    assert!(throttler.visit(KEEP, clock()).is_none());
    drop(admit(&throttler));
}

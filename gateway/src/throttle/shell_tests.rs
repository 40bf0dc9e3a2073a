//! The shell: wake-ups, the timer, RAII, and policies as a request sees them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::{FutureExt, poll};
use sluice_model::{ActivationFailure, Demand, Failure, InstanceId, ManagedEndpoint, QueueTotals, StickyKey};

use super::shell::clock;
use super::*;
use crate::registry::test_kit::{Demands, address, id, queue};

const DOWN: Outcome = Outcome::ConnectFailed;

fn throttler(supply: Supply, concurrency: Option<u32>) -> (Arc<RevisionThrottler>, Arc<Demands>) {
    let demands = Arc::new(Demands::default());
    let env = ThrottleEnv {
        demand: Arc::clone(&demands) as _,
        observer: Arc::new(NoObserver),
        budget: Arc::new(QueueBudget::new(QueueTotals {
            depth: 1_000,
            bytes: 1 << 30,
        })),
        runtime: tokio::runtime::Handle::current(),
    };
    let limits = ThrottleLimits {
        concurrency,
        queue: queue(),
        start_timeout: Duration::from_secs(10),
        supply,
    };
    (RevisionThrottler::new(id("r"), limits, env), demands)
}

fn fixed(ports: &[u16], concurrency: Option<u32>) -> Arc<RevisionThrottler> {
    let (throttler, _) = throttler(Supply::Fixed, concurrency);
    let addresses: Vec<_> = ports.iter().map(|p| address(*p)).collect();
    throttler.set_addresses(&addresses, true, clock());
    throttler
}

/// Adds an instance and returns its key.
fn add(throttler: &Arc<RevisionThrottler>, instance: u64) -> u64 {
    let endpoint = ManagedEndpoint {
        instance: InstanceId(instance),
        address: ([127, 0, 0, 1], 9_000).into(),
    };
    let state = throttler.add_instance(&endpoint, clock());
    state.expect("is new").key
}

fn admit(throttler: &Arc<RevisionThrottler>) -> Permit {
    match throttler.admit(Arrival::default(), clock()) {
        Admission::Admitted(permit) => permit,
        other => panic!("not admitted: {other:?}"),
    }
}

fn wait(throttler: &Arc<RevisionThrottler>) -> Waiter {
    match throttler.admit(Arrival::default(), clock()) {
        Admission::Waiting(waiter) => waiter,
        other => panic!("does not wait: {other:?}"),
    }
}

fn reject(throttler: &Arc<RevisionThrottler>) -> Rejection {
    match throttler.admit(Arrival::default(), clock()) {
        Admission::Rejected(rejection) => rejection,
        other => panic!("not rejected: {other:?}"),
    }
}

fn failed(retry_after: u64) -> Arc<ActivationFailure> {
    Arc::new(ActivationFailure {
        failure: Failure::Failed,
        detail: "exit status 1".into(),
        retry_after: Duration::from_secs(retry_after),
    })
}

fn activate() -> Demand {
    Demand::Activate(id("r"))
}

#[tokio::test]
async fn a_freed_slot_goes_to_the_oldest_waiter() {
    let throttler = fixed(&[1], Some(1));
    let permit = admit(&throttler);
    let (mut first, mut second) = (wait(&throttler), wait(&throttler));
    assert!(poll!(&mut first).is_pending());
    drop(permit);
    assert!(poll!(&mut second).is_pending());
    let permit = first.await.expect("admitted");
    drop(permit);
    drop(second.await.expect("admitted"));
}

#[tokio::test]
async fn a_waiter_may_be_dropped_at_every_point() {
    let throttler = fixed(&[1], Some(1));
    let permit = admit(&throttler);
    // Never polled; polled; granted and not polled since; granted and never polled.
    let unpolled = wait(&throttler);
    let mut polled = wait(&throttler);
    let mut granted = wait(&throttler);
    let granted_unpolled = wait(&throttler);
    let mut last = wait(&throttler);
    assert!(poll!(&mut polled).is_pending() && poll!(&mut granted).is_pending());
    drop(unpolled);
    drop(polled);
    assert_eq!(throttler.peek(clock()).queued, 3);
    drop(permit);
    assert!(poll!(&mut last).is_pending());
    drop(granted);
    assert!(poll!(&mut last).is_pending());
    drop(granted_unpolled);
    let permit = last.await.expect("the slot came through");
    let load = throttler.peek(clock());
    assert_eq!((load.in_flight, load.queued), (1, 0));
    drop(permit);
    assert_eq!(throttler.peek(clock()).in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn waiting_ends_in_time_with_the_reason() {
    let throttler = fixed(&[1], Some(1));
    let _permit = admit(&throttler);
    let start = clock();
    let arrival = Arrival {
        deadline: Some(start + Duration::from_secs(5)),
        ..Arrival::default()
    };
    let hasty = throttler.admit(arrival, start);
    let patient = wait(&throttler);
    let rejection = hasty.wait().await.expect_err("too late");
    assert!(matches!(rejection, Rejection::DeadlineExceeded));
    assert_eq!(clock().duration_since(start).as_secs(), 5);
    let rejection = patient.await.expect_err("too late");
    assert!(matches!(rejection, Rejection::QueueTimeout { .. }));
    assert_eq!(clock().duration_since(start).as_secs(), 60);

    let (throttler, _) = self::throttler(Supply::Activated, None);
    let start = clock();
    let rejection = wait(&throttler).await.expect_err("nothing starts");
    let Rejection::ActivationFailed { failure, .. } = rejection else {
        panic!("{rejection:?}");
    };
    assert_eq!(failure.failure, Failure::TimedOut);
    assert_eq!(clock().duration_since(start).as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn who_came_at_zero_waits_on_for_a_slot_once_it_runs() {
    let (throttler, _) = throttler(Supply::Activated, Some(1));
    let start = clock();
    let (first, second) = (wait(&throttler), wait(&throttler));
    let key = add(&throttler, 1);
    throttler.endpoint_ready(key, clock());
    let _permit = first.await.expect("admitted");
    let rejection = second.await.expect_err("never freed");
    assert!(matches!(rejection, Rejection::QueueTimeout { .. }));
    assert_eq!(clock().duration_since(start).as_secs(), 60);
}

#[tokio::test(start_paused = true)]
async fn one_demand_for_all_and_a_failure_for_all() {
    let (throttler, demands) = throttler(Supply::Activated, None);
    let waiters: Vec<_> = (0..50).map(|_| wait(&throttler)).collect();
    assert_eq!(demands.take(), [activate()]);
    throttler.fail(&failed(3), clock());
    for waiter in waiters {
        let rejection = waiter.await.expect_err("failed");
        assert!(matches!(rejection, Rejection::ActivationFailed { .. }));
    }
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(reject(&throttler).retry_after(), Some(Duration::from_secs(2)));
    assert!(demands.take().is_empty());
    tokio::time::advance(Duration::from_secs(2)).await;
    let waiter = wait(&throttler);
    assert_eq!(demands.take(), [activate()]);
    let key = add(&throttler, 7);
    throttler.endpoint_ready(key, clock());
    let permit = waiter.await.expect("admitted");
    assert_eq!(permit.endpoint().instance, Some(InstanceId(7)));
    let ready = Demand::Ready {
        revision: id("r"),
        instance: InstanceId(7),
    };
    assert_eq!(demands.take(), [ready]);
}

#[tokio::test]
async fn a_failure_to_start_more_fails_nobody() {
    let (throttler, _) = throttler(Supply::Activated, Some(1));
    let key = add(&throttler, 1);
    throttler.endpoint_ready(key, clock());
    let permit = admit(&throttler);
    let mut waiter = wait(&throttler);
    throttler.fail(&failed(1), clock());
    assert!(poll!(&mut waiter).is_pending());
    drop(permit);
    drop(waiter.await.expect("admitted"));
}

#[tokio::test]
async fn when_the_last_one_vanishes_it_is_asked_for_again() {
    let (throttler, demands) = throttler(Supply::Activated, Some(1));
    let key = add(&throttler, 1);
    throttler.endpoint_ready(key, clock());
    let _permit = admit(&throttler);
    let _waiter = wait(&throttler);
    demands.take();
    throttler.remove_instance(InstanceId(1), clock());
    assert_eq!(demands.take(), [activate()]);
    // What was started for it is gone before it was ready.
    add(&throttler, 2);
    throttler.remove_instance(InstanceId(2), clock());
    assert_eq!(demands.take(), [activate()]);
}

#[tokio::test(start_paused = true)]
async fn a_refusing_endpoint_is_set_aside_for_a_growing_time() {
    let throttler = fixed(&[1, 2], None);
    for times in [1, 2, 4] {
        let bad = loop {
            let permit = admit(&throttler);
            if permit.endpoint().address == address(1) {
                break permit;
            }
        };
        bad.report(DOWN, clock());
        let Admission::Admitted(other) = bad.failover(clock()) else {
            panic!("the other one is free");
        };
        assert_eq!(other.endpoint().address, address(2));
        assert_eq!(other.failed_attempts(), 1);
        let avoided = |n: usize| (0..n).all(|_| admit(&throttler).endpoint().address == address(2));
        assert!(avoided(20));
        tokio::time::advance(Duration::from_millis(times * 1_000 - 1)).await;
        assert!(avoided(20));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!avoided(200));
    }
}

#[tokio::test]
async fn the_last_one_is_never_set_aside() {
    let throttler = fixed(&[1], None);
    for _ in 0..20 {
        admit(&throttler).report(Outcome::Responded { status: 503 }, clock());
    }
    // A broken connection is worth another attempt at the only endpoint, a refused one is not.
    let permit = admit(&throttler);
    permit.report(Outcome::Broke, clock());
    let Admission::Admitted(permit) = permit.failover(clock()) else {
        panic!("it is there");
    };
    permit.report(DOWN, clock());
    let admission = permit.failover(clock());
    assert!(matches!(admission, Admission::Rejected(Rejection::NoEndpoints)));
    drop(admit(&throttler));
    assert!(matches!(reject(&fixed(&[], None)), Rejection::NoEndpoints));
}

#[tokio::test]
async fn when_all_refuse_each_is_tried_once() {
    let throttler = fixed(&[1, 2, 3], None);
    let mut permit = admit(&throttler);
    let mut tried = vec![];
    let rejection = loop {
        tried.push(permit.endpoint().address.clone());
        permit.report(DOWN, clock());
        match permit.failover(clock()) {
            Admission::Admitted(next) => permit = next,
            Admission::Rejected(rejection) => break rejection,
            Admission::Waiting(_) => panic!("nothing to wait for"),
        }
    };
    assert!(matches!(rejection, Rejection::NoEndpoints));
    tried.sort();
    assert_eq!(tried, [address(1), address(2), address(3)]);
}

#[tokio::test]
async fn the_last_instance_that_refuses_has_to_prove_itself_while_the_request_waits() {
    let (throttler, demands) = throttler(Supply::Activated, None);
    let key = add(&throttler, 1);
    throttler.endpoint_ready(key, clock());
    let permit = admit(&throttler);
    permit.report(DOWN, clock());
    let Admission::Waiting(mut waiter) = permit.failover(clock()) else {
        panic!("an activation may help");
    };
    assert!(poll!(&mut waiter).is_pending());
    demands.take();
    throttler.endpoint_ready(key, clock());
    drop(waiter.await.expect("the same instance, ready again"));
    assert!(demands.take().is_empty(), "ready for the first time only once");
}

#[tokio::test]
async fn a_failed_attempt_waits_at_its_place_in_time() {
    let throttler = fixed(&[1, 2], Some(1));
    let (a, b) = (admit(&throttler), admit(&throttler));
    let younger = wait(&throttler);
    a.report(Outcome::Broke, clock());
    // Its own slot is free again, and it is older than the waiter: it gets that one.
    let Admission::Admitted(a) = a.failover(clock()) else {
        panic!("older than the waiter");
    };
    a.report(DOWN, clock());
    let Admission::Waiting(older) = a.failover(clock()) else {
        panic!("one endpoint is set aside, the other is full");
    };
    drop(b);
    let permit = older.await.expect("first");
    let mut younger = younger;
    assert!(poll!(&mut younger).is_pending());
    drop(permit);
    drop(younger.await.expect("second"));
}

#[tokio::test]
async fn a_sticky_key_leads_to_one_endpoint_and_past_it_when_it_is_full() {
    let throttler = fixed(&[1, 2, 3, 4], Some(2));
    let ask = |key: u8| {
        let arrival = Arrival {
            sticky: Some(StickyKey::of(&[key])),
            ..Arrival::default()
        };
        let admission = throttler.admit(arrival, clock()).wait();
        admission.now_or_never().expect("is free").expect("admitted")
    };
    let home = |key| ask(key).endpoint().address.clone();
    let mut counts = HashMap::<_, u32>::new();
    for key in 0..=255 {
        assert_eq!(home(key), home(key));
        *counts.entry(home(key)).or_default() += 1;
    }
    assert!(
        counts.len() == 4 && counts.values().all(|n| *n > 30),
        "{counts:?}"
    );
    let held = [ask(7), ask(7), ask(7)];
    assert_eq!(held[0].endpoint().key, held[1].endpoint().key);
    assert_ne!(held[1].endpoint().key, held[2].endpoint().key);
}

#[tokio::test]
async fn a_lowered_limit_admits_nothing_until_below_it_and_a_raised_one_at_once() {
    let throttler = fixed(&[1], Some(3));
    let mut permits: Vec<_> = (0..3).map(|_| admit(&throttler)).collect();
    let limits = |concurrency| ThrottleLimits {
        concurrency,
        queue: queue(),
        start_timeout: Duration::from_secs(10),
        supply: Supply::Fixed,
    };
    throttler.set_limits(limits(Some(2)), clock());
    let mut waiter = wait(&throttler);
    permits.pop();
    assert!(poll!(&mut waiter).is_pending());
    permits.pop();
    permits.push(waiter.await.expect("below the limit"));
    let waiters: Vec<_> = (0..5).map(|_| wait(&throttler)).collect();
    throttler.set_limits(limits(None), clock());
    for waiter in waiters {
        drop(waiter.await.expect("no limit"));
    }
}

#[tokio::test]
async fn a_retired_instance_finishes_what_it_has() {
    let (throttler, demands) = throttler(Supply::Activated, None);
    let keys = [add(&throttler, 1), add(&throttler, 2)];
    throttler.endpoint_ready(keys[0], clock());
    let permit = admit(&throttler);
    throttler.endpoint_ready(keys[1], clock());
    demands.take();
    assert!(throttler.retire(1, true, clock()).is_empty(), "not idle");
    assert_eq!(throttler.retire(2, false, clock()), [InstanceId(2)]);
    let drained = |instance| Demand::Drained {
        revision: id("r"),
        instance: InstanceId(instance),
    };
    assert_eq!(demands.take(), [drained(2)]);
    let known = throttler.retire_these(&[InstanceId(1), InstanceId(9)], clock());
    assert_eq!(known, [InstanceId(1)]);
    assert!(demands.take().is_empty());
    drop(permit);
    assert_eq!(demands.take(), [drained(1)]);
    drop(wait(&throttler));
    assert_eq!(demands.take(), [activate()]);
}

#[tokio::test]
async fn closing_resolves_all_and_a_removed_revision_still_gives_what_is_free() {
    let throttler = fixed(&[1], Some(1));
    let permit = admit(&throttler);
    let waiter = wait(&throttler);
    throttler.close(Closing::Removed, clock());
    assert!(matches!(waiter.await, Err(Rejection::Removed)));
    assert!(matches!(reject(&throttler), Rejection::Removed));
    drop(permit);
    drop(admit(&throttler));
    throttler.reopen();
    let permit = admit(&throttler);
    let waiter = wait(&throttler);
    throttler.close(Closing::Draining, clock());
    assert!(matches!(waiter.await, Err(Rejection::Draining)));
    drop(permit);
    throttler.reopen();
    assert!(matches!(reject(&throttler), Rejection::Draining));
}

#[tokio::test(start_paused = true)]
async fn nothing_of_a_dropped_throttler_stays() {
    let throttler = fixed(&[1], Some(1));
    let permit = admit(&throttler);
    drop(wait(&throttler));
    drop(permit);
    let weak = Arc::downgrade(&throttler);
    drop(throttler);
    assert!(weak.upgrade().is_none());
    let metrics = tokio::runtime::Handle::current().metrics();
    let ended = async {
        while metrics.num_alive_tasks() > 0 {
            tokio::task::yield_now().await;
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(5), ended).await;
    assert!(ended.is_ok(), "the timer outlives its throttler");
}

/// Real threads, real races: the limit holds at every instant, and at the end all is given back.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_limit_holds_under_threads_that_come_go_and_give_up() {
    const LIMIT: u32 = 3;
    let throttler = fixed(&[1, 2], Some(LIMIT));
    let counts: Arc<HashMap<_, AtomicU32>> = Arc::new(
        throttler
            .endpoints()
            .iter()
            .map(|view| (view.endpoint.key, AtomicU32::new(0)))
            .collect(),
    );
    let tasks = (0..32u64).map(|seed| {
        let (throttler, counts) = (Arc::clone(&throttler), Arc::clone(&counts));
        tokio::spawn(async move {
            let mut rng = fastrand::Rng::with_seed(seed);
            for _ in 0..300 {
                let mut admission = std::pin::pin!(throttler.admit(Arrival::default(), clock()).wait());
                if rng.u8(..4) == 0 {
                    // Gives up after a look or two.
                    if rng.bool() {
                        let _ = poll!(&mut admission);
                        tokio::task::yield_now().await;
                    }
                    continue;
                }
                let permit = admission.await.expect("admitted in time");
                let count = &counts[&permit.endpoint().key];
                assert!(count.fetch_add(1, Ordering::SeqCst) < LIMIT);
                tokio::task::yield_now().await;
                count.fetch_sub(1, Ordering::SeqCst);
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("no limit was broken");
    }
    let load = throttler.peek(clock());
    assert_eq!((load.in_flight, load.queued), (0, 0));
}

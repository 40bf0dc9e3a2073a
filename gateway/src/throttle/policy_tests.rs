//! Load balancing, ejection, failover, limits and retirement.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::{FutureExt, poll};
use sluice_model::{Demand, InstanceId, StickyKey};

use super::shell::clock;
use super::test_kit::{activate, add, admit, fixed, reject, throttler, wait};
use super::*;
use crate::registry::test_kit::{address, id, queue};

const DOWN: Outcome = Outcome::ConnectFailed;

#[tokio::test]
async fn without_a_limit_load_spreads() {
    let throttler = fixed(&[1, 2, 3, 4, 5, 6, 7, 8], None);
    let _permits: Vec<_> = (0..800).map(|_| admit(&throttler)).collect();
    let loads = throttler.endpoints().into_iter().map(|view| view.in_flight);
    let loads: Vec<u32> = loads.collect();
    // Random choice of one would be off by thirty.
    assert!(loads.iter().all(|n| (90..=110).contains(n)), "{loads:?}");
}

#[tokio::test(start_paused = true)]
async fn twice_the_offered_capacity_keeps_every_slot_busy() {
    let throttler = fixed(&[1, 2], Some(2));
    let done = Arc::new(AtomicU32::new(0));
    // Four slots, 50 ms each: 80 requests a second fit, 160 come.
    for n in 0..1_600u64 {
        let (throttler, done) = (Arc::clone(&throttler), Arc::clone(&done));
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_micros(n * 6_250)).await;
            let arrived = throttler.admit(Arrival::default(), clock());
            // The rest is rejected: the queue is full.
            let Ok(permit) = arrived.wait().await else {
                return;
            };
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(permit);
            done.fetch_add(1, Ordering::Relaxed);
        });
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    let done = done.load(Ordering::Relaxed);
    assert!((760..=800).contains(&done), "{done} of 800");
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
    let told = demands.take();
    assert_eq!(told.last(), Some(&activate()), "it may be gone without a word");
    throttler.endpoint_ready(key, clock());
    drop(waiter.await.expect("the same instance, ready again"));
    let activated = Demand::Activated(id("r"));
    assert_eq!(demands.take(), [activated], "ready for the first time only once");
}

#[tokio::test]
async fn a_failed_attempt_waits_at_its_place_in_time() {
    let throttler = fixed(&[1, 2], Some(1));
    let (a, b) = (admit(&throttler), admit(&throttler));
    let younger = wait(&throttler);
    a.report(Outcome::Broke, clock());
    // Its own slot is free again, and the request is older than the waiter: it gets that slot.
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
async fn zero_that_cannot_be_had_takes_whoever_is_idle() {
    let (throttler, _demands) = throttler(Supply::Activated, Some(1));
    let keys = [add(&throttler, 1), add(&throttler, 2), add(&throttler, 3)];
    throttler.endpoint_ready(keys[0], clock());
    let stream = admit(&throttler);
    throttler.endpoint_ready(keys[1], clock());
    throttler.endpoint_ready(keys[2], clock());
    assert_eq!(
        throttler.retire(0, 3, true, clock()),
        [InstanceId(2), InstanceId(3)]
    );
    assert!(
        throttler.retire(0, 1, true, clock()).is_empty(),
        "the stream's stays"
    );

    // The last instance stays even when the stream is on one that was retired before.
    let key = add(&throttler, 4);
    throttler.endpoint_ready(key, clock());
    throttler.retire_these(&[InstanceId(1)], clock());
    assert!(throttler.retire(0, 1, true, clock()).is_empty());
    drop(stream);
    assert_eq!(throttler.retire(0, 1, true, clock()), [InstanceId(4)]);

    let key = add(&throttler, 5);
    add(&throttler, 6);
    throttler.endpoint_ready(key, clock());
    let running = admit(&throttler);
    let waiter = wait(&throttler);
    assert!(throttler.retire(0, 2, true, clock()).is_empty(), "somebody waits");
    drop((running, waiter));
}

#[tokio::test]
async fn a_retired_instance_finishes_what_it_has() {
    let (throttler, demands) = throttler(Supply::Activated, None);
    let keys = [add(&throttler, 1), add(&throttler, 2)];
    throttler.endpoint_ready(keys[0], clock());
    let permit = admit(&throttler);
    throttler.endpoint_ready(keys[1], clock());
    demands.take();
    assert_eq!(throttler.retire(0, 2, false, clock()), [InstanceId(2)]);
    assert!(throttler.retire(0, 1, true, clock()).is_empty(), "not idle");
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

/// A readiness that only probes claimed is refuted by a broken connection, five times; then, or once the
/// endpoint answered, a broken connection is an ordinary failure.
#[tokio::test(start_paused = true)]
async fn what_breaks_before_its_first_answer_was_not_ready() {
    let (throttler, demands) = throttler(Supply::Activated, None);
    let waiter = wait(&throttler);
    let key = add(&throttler, 1);
    let phase = || throttler.endpoint(key).expect("is known").phase;
    throttler.endpoint_ready(key, clock());
    let mut permit = waiter.await.expect("admitted");
    let late = admit(&throttler);
    for outcome in [DOWN, Outcome::Broke, Outcome::Broke, DOWN, Outcome::Broke] {
        permit.report(outcome, clock());
        assert_eq!(phase(), EndpointPhase::Starting);
        let Admission::Waiting(waiter) = permit.failover(clock()) else {
            panic!("nothing is ready");
        };
        throttler.endpoint_ready(key, clock());
        permit = waiter.await.expect("admitted again");
        // Outcomes of requests from before the new readiness epoch are ignored.
        late.report(Outcome::Broke, clock());
        assert_eq!(phase(), EndpointPhase::Ready);
    }
    permit.report(Outcome::Broke, clock());
    assert_eq!(phase(), EndpointPhase::Ready, "often enough");
    let ready = demands
        .take()
        .into_iter()
        .filter(|d| matches!(d, Demand::Ready { .. }));
    assert_eq!(ready.count(), 1, "the control plane stops no clock twice");

    let key = add(&throttler, 2);
    throttler.endpoint_ready(key, clock());
    let second = throttler.retire_these(&[InstanceId(1)], clock());
    assert_eq!(second, [InstanceId(1)]);
    let permit = admit(&throttler);
    assert_eq!(permit.endpoint().key, key);
    permit.report(Outcome::Responded { status: 503 }, clock());
    permit.report(Outcome::Broke, clock());
    assert_eq!(
        throttler.endpoint(key).expect("is known").phase,
        EndpointPhase::Ready
    );
}

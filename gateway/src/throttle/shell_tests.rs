//! The shell: wake-ups, the timer, RAII, demand.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::poll;
use sluice_model::{Demand, Failure, InstanceId};

use super::actions::Signal;
use super::core::Core;
use super::shell::clock;
use super::test_kit::{account, activate, add, admit, failed, fixed, reject, throttler, throttler_for, wait};
use super::*;
use crate::registry::test_kit::{address, id, queue};

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
    throttler.fail(0, &failed(3), clock());
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
    assert_eq!(demands.take(), [ready, Demand::Activated(id("r"))]);
}

#[tokio::test]
async fn a_failure_to_start_more_fails_nobody() {
    let (throttler, _) = throttler(Supply::Activated, Some(1));
    let key = add(&throttler, 1);
    throttler.endpoint_ready(key, clock());
    let permit = admit(&throttler);
    let mut waiter = wait(&throttler);
    throttler.fail(0, &failed(1), clock());
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
    // The instance that was started for the waiter is gone before it was ready.
    add(&throttler, 2);
    throttler.remove_instance(InstanceId(2), clock());
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

/// Races of real threads: the limit holds at every instant, and at the end all slots are given back.
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
                    // Gives up after one or two polls.
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

/// A slow demand sink, while the demanded instance becomes ready on another thread.
#[derive(Default)]
struct SlowToHear {
    heard: parking_lot::Mutex<Vec<Demand>>,
    ready: parking_lot::Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl sluice_model::DemandSink for SlowToHear {
    fn demand(&self, demand: Demand) {
        if matches!(demand, Demand::Activate(_))
            && let Some(ready) = self.ready.lock().take()
        {
            let (done, is_done) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                ready();
                done.send(())
            });
            let _ = is_done.recv_timeout(Duration::from_millis(200));
        }
        self.heard.lock().push(demand);
    }
}

#[tokio::test]
async fn an_activation_is_asked_for_before_it_has_succeeded() {
    let sink = Arc::new(SlowToHear::default());
    let throttler = throttler_for(Arc::clone(&sink) as _, Supply::Activated, None);
    let [endpoint] = &throttler.set_addresses(0, &[address(1)], false, clock())[..] else {
        panic!("one is new");
    };
    let (late, key) = (Arc::clone(&throttler), endpoint.key);
    *sink.ready.lock() = Some(Box::new(move || late.endpoint_ready(key, clock())));
    drop(wait(&throttler).await.expect("admitted"));
    assert_eq!(*sink.heard.lock(), [activate(), Demand::Activated(id("r"))]);
}

#[test]
fn a_failed_activation_took_as_long_as_it_was_waited_for() {
    let limits = ThrottleLimits {
        concurrency: None,
        queue: queue(),
        start_timeout: Duration::from_secs(10),
        supply: Supply::Activated,
    };
    let totals = sluice_model::QueueTotals {
        depth: 10,
        bytes: 1 << 20,
    };
    let budget = Arc::new(QueueBudget::new(totals));
    let start = std::time::Instant::now();
    let mut core = Core::new(limits, account(&budget, "shop"), 1, start);
    let _ = core.arrive(Arrival::default(), start, || 0);
    let state = Arc::new(EndpointState::new(address(1), Some(InstanceId(1))));
    let _ = core.endpoint_added(Arc::clone(&state), false, start);
    // The instance is gone a moment before the control plane reports the failure.
    let end = start + Duration::from_secs(2);
    let _ = core.endpoint_removed(state.key, end);
    let signals = core.fail(0, &failed(1), end).signals;
    let took = signals.iter().find_map(|signal| match signal {
        Signal::ActivationFailed { took, .. } => Some(*took),
        _ => None,
    });
    assert_eq!(took, Some(Duration::from_secs(2)));
}

//! Fairness of the gateway-wide queue budget between services.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::poll;
use sluice_model::{QueueTotals, RevisionId};

use super::shell::clock;
use super::test_kit::service;
use super::*;
use crate::registry::test_kit::{Demands, address, queue};

fn budget(depth: usize, bytes: u64) -> Arc<QueueBudget> {
    Arc::new(QueueBudget::new(QueueTotals { depth, bytes }))
}

/// A revision at zero that no scaler starts: every request waits.
fn cold(budget: &Arc<QueueBudget>, of: &str, revision: &str) -> Arc<RevisionThrottler> {
    let env = ThrottleEnv {
        demand: Arc::new(Demands::default()),
        observer: Arc::new(NoObserver),
        budget: Arc::clone(budget),
        runtime: tokio::runtime::Handle::current(),
    };
    let limits = ThrottleLimits {
        concurrency: Some(1),
        queue: queue(),
        start_timeout: Duration::from_secs(10),
        supply: Supply::Activated,
    };
    let id = RevisionId::parse("default", revision).expect("a name");
    RevisionThrottler::new(id, service(of), limits, env)
}

fn ask(throttler: &Arc<RevisionThrottler>, bytes: u64) -> Admission {
    let arrival = Arrival {
        bytes,
        ..Arrival::default()
    };
    throttler.admit(arrival, clock())
}

fn wait(throttler: &Arc<RevisionThrottler>, bytes: u64) -> Waiter {
    match ask(throttler, bytes) {
        Admission::Waiting(waiter) => waiter,
        other => panic!("does not wait: {other:?}"),
    }
}

fn refused(throttler: &Arc<RevisionThrottler>, bytes: u64) -> bool {
    let admission = ask(throttler, bytes);
    matches!(admission, Admission::Rejected(Rejection::Overloaded { .. }))
}

#[tokio::test]
async fn a_quiet_service_gets_in_and_the_floods_youngest_goes() {
    let budget = budget(4, 1 << 20);
    let (flood, quiet) = (cold(&budget, "flood", "f"), cold(&budget, "quiet", "q"));
    let mut flooding: Vec<_> = (0..4).map(|_| wait(&flood, 1)).collect();
    assert!(refused(&flood, 1), "alone it has everything, and no more");
    for _ in 0..2 {
        let youngest = flooding.pop().expect("some are left");
        let mut waiter = wait(&quiet, 1);
        let rejection = youngest.await.expect_err("evicted");
        assert!(matches!(rejection, Rejection::Overloaded { .. }));
        assert!(rejection.retry_after() >= Some(Duration::from_secs(1)));
        assert!(poll!(&mut waiter).is_pending());
        assert_eq!(budget.used().depth, 4);
        flooding.insert(0, waiter);
    }
    assert!(refused(&quiet, 1) && refused(&flood, 1), "both have their half");
    for waiter in &mut flooding {
        assert!(poll!(waiter).is_pending());
    }
    drop(flooding);
    assert_eq!(budget.used(), QueueTotals { depth: 0, bytes: 0 });
    assert_eq!(budget.services(), 0);
}

#[tokio::test]
async fn bytes_are_shared_as_places_are() {
    let budget = budget(100, 1_000);
    let (flood, quiet) = (cold(&budget, "flood", "f"), cold(&budget, "quiet", "q"));
    let old = [wait(&flood, 400), wait(&flood, 350)];
    let young = [wait(&flood, 100), wait(&flood, 100)];
    assert!(refused(&quiet, 501), "more than its half");
    // As many waiters are evicted as are needed, and no more.
    let waiter = wait(&quiet, 250);
    for evicted in young {
        let rejection = evicted.await.expect_err("evicted");
        assert!(matches!(rejection, Rejection::Overloaded { .. }));
    }
    assert_eq!(
        budget.used(),
        QueueTotals {
            depth: 3,
            bytes: 1_000
        }
    );
    for mut kept in old.into_iter().chain([waiter]) {
        assert!(poll!(&mut kept).is_pending());
    }
}

#[tokio::test]
async fn revisions_of_one_service_have_one_share() {
    let budget = budget(6, 1 << 20);
    let (a, b) = (cold(&budget, "flood", "a"), cold(&budget, "flood", "b"));
    let (c, quiet) = (cold(&budget, "third", "c"), cold(&budget, "quiet", "q"));
    let mut of_a = [wait(&a, 1)];
    let of_b = [wait(&b, 1), wait(&b, 1)];
    let mut of_c = [wait(&c, 1), wait(&c, 1), wait(&c, 1)];
    // Together as long as the flood's two queues; a tie goes to the name that sorts last.
    let mut first = wait(&quiet, 1);
    assert!(poll!(&mut of_c[2]).is_ready());
    let mut second = wait(&quiet, 1);
    let [_old, young] = of_b;
    assert!(matches!(young.await, Err(Rejection::Overloaded { .. })));
    assert!(refused(&quiet, 1) && refused(&a, 1) && refused(&b, 1) && refused(&c, 1));
    let kept = of_c[..2].iter_mut().chain(&mut of_a);
    for kept in kept.chain([&mut first, &mut second]) {
        assert!(poll!(kept).is_pending());
    }
    // A revision that moves to another service takes its waiters along.
    b.set_service(&service("quiet"));
    assert_eq!(budget.services(), 3);
    let evicted = wait(&a, 1);
    assert!(poll!(&mut second).is_ready());
    drop(evicted);
}

#[tokio::test]
async fn lowered_totals_evict_nobody_but_one_for_one() {
    let budget = budget(8, 1 << 20);
    let (flood, quiet) = (cold(&budget, "flood", "f"), cold(&budget, "quiet", "q"));
    let mut flooding: Vec<_> = (0..8).map(|_| wait(&flood, 1)).collect();
    budget.set_totals(QueueTotals {
        depth: 2,
        bytes: 1 << 20,
    });
    assert!(refused(&flood, 1));
    let _waiter = wait(&quiet, 1);
    assert!(poll!(&mut flooding[7]).is_ready());
    assert!(poll!(&mut flooding[6]).is_pending());
    assert!(refused(&quiet, 1), "its half of two");
    assert_eq!(budget.used().depth, 8);
}

#[tokio::test]
async fn a_failed_attempt_of_a_quiet_service_gets_its_place_too() {
    let budget = budget(2, 1 << 20);
    let (flood, quiet) = (cold(&budget, "flood", "f"), cold(&budget, "quiet", "q"));
    let [state] = &quiet.set_addresses(0, &[address(1)], true, clock())[..] else {
        panic!("one");
    };
    let Admission::Admitted(permit) = ask(&quiet, 1) else {
        panic!("is free");
    };
    let (mut old, mut young) = (wait(&flood, 1), wait(&flood, 1));
    permit.report(Outcome::ConnectFailed, clock());
    let Admission::Waiting(waiter) = permit.failover(clock()) else {
        panic!("has to prove itself anew");
    };
    assert!(poll!(&mut young).is_ready());
    assert!(poll!(&mut old).is_pending());
    quiet.endpoint_ready(state.key, clock());
    drop(waiter.await.expect("admitted"));
}

/// Races of real threads: no deadlock, the totals hold whenever they are read, every request gets exactly one
/// answer, and in the end no usage is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_totals_hold_under_threads_that_evict_each_other() {
    const DEPTH: usize = 12;
    let budget = budget(DEPTH, 600);
    let throttlers: Vec<_> = (0..8)
        .map(|n| {
            let throttler = cold(&budget, &format!("s{}", n % 4), &format!("r{n}"));
            throttler.set_addresses(0, &[address(1)], true, clock());
            throttler
        })
        .collect();
    let [admitted, overloaded, left] = [0; 3].map(|_| Arc::new(AtomicU32::new(0)));
    let tasks = (0..64u64).map(|seed| {
        let throttlers = throttlers.clone();
        let budget = Arc::clone(&budget);
        let (admitted, overloaded) = (Arc::clone(&admitted), Arc::clone(&overloaded));
        let left = Arc::clone(&left);
        tokio::spawn(async move {
            let mut rng = fastrand::Rng::with_seed(seed);
            for _ in 0..300 {
                let n = rng.usize(..8) * rng.usize(..8) / 7;
                let mut admission = std::pin::pin!(ask(&throttlers[n], rng.u64(..150)).wait());
                let used = budget.used();
                assert!(used.depth <= DEPTH && used.bytes <= 600, "{used:?}");
                if rng.u8(..8) == 0 {
                    if poll!(&mut admission).is_pending() {
                        tokio::task::yield_now().await;
                    }
                    left.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                match admission.await {
                    Ok(permit) => {
                        tokio::task::yield_now().await;
                        drop(permit);
                        admitted.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(Rejection::Overloaded { .. }) => {
                        overloaded.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(other) => panic!("{other:?}"),
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("every bound held");
    }
    let [admitted, overloaded, left] = [admitted, overloaded, left].map(|n| n.load(Ordering::Relaxed));
    assert_eq!(admitted + overloaded + left, 64 * 300);
    assert!(admitted > 0 && overloaded > 0);
    assert_eq!(budget.used(), QueueTotals { depth: 0, bytes: 0 });
    assert_eq!(budget.services(), 0);
}

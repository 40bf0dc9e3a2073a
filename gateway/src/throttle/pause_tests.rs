use std::time::Duration;

use futures_util::{FutureExt, poll};
use sluice_model::InstanceId;

use super::super::test_kit::{activate, add, admit, failed, fixed, reject, throttler, wait};
use super::super::{Admission, Arrival, Rejection, Supply, shell::clock};

#[tokio::test(start_paused = true)]
async fn while_paused_an_arrival_waits_beside_a_free_slot_until_the_resume() {
    let throttler = fixed(&[1, 2], None);
    let before = admit(&throttler);
    throttler.pause(true, clock());
    let mut first = wait(&throttler);
    let mut second = wait(&throttler);
    drop(before);
    assert!(
        poll!(&mut first).is_pending(),
        "the slot that is given back stays free"
    );
    tokio::time::advance(Duration::from_secs(5)).await;
    assert!(poll!(&mut second).is_pending());
    let load = throttler.peek(clock());
    assert_eq!(
        (load.in_flight, load.queued, load.ready, load.paused),
        (0, 2, 2, true)
    );
    throttler.pause(false, clock());
    let permits = (
        first.await.expect("is admitted"),
        second.await.expect("is admitted"),
    );
    assert_eq!(throttler.peek(clock()).in_flight, 2);
    drop(permits);
    drop(admit(&throttler));
    assert!(!throttler.peek(clock()).paused);
}

#[tokio::test(start_paused = true)]
async fn a_resume_admits_in_order_of_arrival_and_within_the_limit() {
    let throttler = fixed(&[1], Some(1));
    throttler.pause(true, clock());
    let mut waiters = [wait(&throttler), wait(&throttler), wait(&throttler)];
    throttler.pause(false, clock());
    for nth in 0..3 {
        for later in &mut waiters[nth + 1..] {
            assert!(poll!(later).is_pending());
        }
        let permit = (&mut waiters[nth]).now_or_never().expect("is next");
        drop(permit.expect("is admitted"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_while_paused_leaves_its_place() {
    let throttler = fixed(&[1], Some(1));
    throttler.pause(true, clock());
    let gone = wait(&throttler);
    let stays = wait(&throttler);
    drop(gone);
    assert_eq!(throttler.peek(clock()).queued, 1);
    throttler.pause(false, clock());
    drop(stays.await.expect("is admitted"));
}

#[tokio::test(start_paused = true)]
async fn the_timeout_of_the_queue_ends_the_wait() {
    let throttler = fixed(&[1], None);
    throttler.pause(true, clock());
    let waiter = wait(&throttler);
    let began = clock();
    let rejection = waiter.await.expect_err("nothing resumes");
    assert!(
        matches!(rejection, Rejection::QueueTimeout { .. }),
        "{rejection:?}"
    );
    assert_eq!(clock() - began, crate::registry::test_kit::queue().timeout);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_of_a_request_ends_its_wait() {
    let throttler = fixed(&[1], None);
    throttler.pause(true, clock());
    let arrival = Arrival {
        deadline: Some(clock() + Duration::from_secs(1)),
        ..Arrival::default()
    };
    let outcome = throttler.admit(arrival, clock()).wait().await;
    assert!(matches!(outcome, Err(Rejection::DeadlineExceeded)));
}

#[tokio::test(start_paused = true)]
async fn the_bound_of_the_queue_holds() {
    let throttler = fixed(&[1], None);
    throttler.pause(true, clock());
    let depth = crate::registry::test_kit::queue().depth;
    let waiters: Vec<_> = (0..depth).map(|_| wait(&throttler)).collect();
    assert!(matches!(reject(&throttler), Rejection::QueueFull { .. }));
    throttler.pause(false, clock());
    let admitted = waiters
        .into_iter()
        .filter_map(|waiter| waiter.now_or_never()?.ok());
    assert_eq!(admitted.count(), depth, "nothing is lost");
}

#[tokio::test(start_paused = true)]
async fn at_zero_a_start_is_demanded_and_its_failure_ends_no_wait() {
    let (throttler, demands) = throttler(Supply::Activated, None);
    throttler.pause(true, clock());
    let mut early = wait(&throttler);
    assert_eq!(demands.take(), [activate()]);
    throttler.fail(0, &failed(12), clock());
    let mut late = wait(&throttler);
    // Longer than a start may take.
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert!(poll!(&mut early).is_pending() && poll!(&mut late).is_pending());
    assert_eq!(demands.take(), [], "the back-off lasts");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(demands.take(), [activate()], "it is over");
    throttler.fail(0, &failed(12), clock());
    // Requests that were held wait for the rest of it, others do not.
    throttler.pause(false, clock());
    assert!(poll!(&mut early).is_pending() && poll!(&mut late).is_pending());
    assert!(matches!(reject(&throttler), Rejection::ActivationFailed { .. }));
    tokio::time::sleep(Duration::from_secs(13)).await;
    assert_eq!(demands.take(), [activate()], "another try");
    let key = add(&throttler, 1);
    throttler.endpoint_ready(key, clock());
    drop(early.await.expect("is admitted"));
    drop(late.await.expect("is admitted"));
}

#[tokio::test(start_paused = true)]
async fn what_becomes_ready_while_paused_is_used_at_the_resume() {
    let (throttler, _) = throttler(Supply::Activated, None);
    let mut waiter = wait(&throttler);
    throttler.pause(true, clock());
    let key = add(&throttler, 1);
    throttler.endpoint_ready(key, clock());
    assert!(poll!(&mut waiter).is_pending());
    throttler.pause(false, clock());
    drop(waiter.await.expect("is admitted"));
}

#[tokio::test(start_paused = true)]
async fn a_paused_revision_is_not_scaled_to_zero() {
    let (throttler, _) = throttler(Supply::Activated, None);
    for instance in 1..4 {
        let key = add(&throttler, instance);
        throttler.endpoint_ready(key, clock());
    }
    throttler.pause(true, clock());
    assert_eq!(throttler.to_zero(0, clock()), None);
    assert_eq!(
        throttler.retire(0, 3, true, clock()),
        [InstanceId(1), InstanceId(2)]
    );
    assert_eq!(throttler.peek(clock()).ready, 1);
    throttler.pause(false, clock());
    assert_eq!(throttler.to_zero(0, clock()), Some(vec![InstanceId(3)]));
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_only_endpoint_refused_it_waits_for_the_resume() {
    let throttler = fixed(&[1], None);
    let permit = admit(&throttler);
    throttler.pause(true, clock());
    permit.report(super::super::Outcome::ConnectFailed, clock());
    let Admission::Waiting(mut waiter) = permit.failover(clock()) else {
        panic!("does not wait");
    };
    assert!(poll!(&mut waiter).is_pending());
    throttler.pause(false, clock());
    drop(waiter.await.expect("is tried again"));
}

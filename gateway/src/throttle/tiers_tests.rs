//! Tiers, on the shell: which one serves, which ones are started, and what a failure of one means for the others.

use std::sync::Arc;
use std::time::Duration;

use sluice_model::{Demand, InstanceId, ManagedEndpoint, QueueTotals, RevisionId, Tag};

use super::shell::clock;
use super::test_kit::{admit, failed, reject, service, wait};
use super::*;
use crate::registry::test_kit::{Demands, address, id, queue};

const RESERVE: u8 = 0;
const STANDARD: u8 = 1;

fn scaled(tier: &str) -> RevisionId {
    id("r").of_tier(&Tag::parse(tier).expect("a label"))
}

fn tiers(supplies: &[(&str, Supply, Option<u32>)]) -> (Arc<RevisionThrottler>, Arc<Demands>) {
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
        concurrency: None,
        queue: queue(),
        start_timeout: Duration::from_secs(10),
        supply: Supply::Fixed,
    };
    let of_tier = |(name, supply, concurrency): &(&str, Supply, Option<u32>)| {
        let limits = TierLimits {
            concurrency: *concurrency,
            supply: *supply,
        };
        (scaled(name), limits)
    };
    let tiers = supplies.iter().map(of_tier).collect();
    let throttler = RevisionThrottler::with_tiers(id("r"), service("shop"), limits, tiers, env);
    (throttler, demands)
}

/// An always-on reserve with room for `room` requests, and a tier that is started.
fn reserve(room: u32) -> (Arc<RevisionThrottler>, Arc<Demands>) {
    let (throttler, demands) = tiers(&[
        ("reserve", Supply::Fixed, Some(room)),
        ("standard", Supply::Activated, Some(2)),
    ]);
    throttler.set_addresses(RESERVE, &[address(1)], true, clock());
    (throttler, demands)
}

fn start(throttler: &Arc<RevisionThrottler>, tier: u8, instance: u64) -> u64 {
    let endpoint = ManagedEndpoint {
        instance: InstanceId(instance),
        address: ([127, 0, 0, 1], 9_000).into(),
        took: Duration::ZERO,
    };
    throttler
        .add_instance(tier, &endpoint, clock())
        .expect("is new")
        .key
}

fn tier(permit: &Permit) -> u8 {
    permit.endpoint().tier
}

#[tokio::test(start_paused = true)]
async fn the_reserve_serves_until_the_standard_tier_is_ready_and_again_when_it_is_gone() {
    let (throttler, demands) = reserve(1);
    let first = admit(&throttler);
    assert_eq!(tier(&first), RESERVE);
    assert_eq!(demands.take(), [Demand::Activate(scaled("standard"))]);
    // The reserve has its own limit; who waits is served by whichever tier can first.
    let mut second = polled(wait(&throttler));
    assert!(demands.take().is_empty(), "one start for all of them");
    let key = start(&throttler, STANDARD, 1);
    throttler.endpoint_ready(key, clock());
    let second = second.now().expect("admitted");
    assert_eq!(tier(&second), STANDARD);
    let third = admit(&throttler);
    assert_eq!(tier(&third), STANDARD);
    // The reserve rests, though it has a free slot now.
    drop(first);
    let mut fourth = polled(wait(&throttler));
    assert!(fourth.now().is_none(), "the reserve rests");
    drop(second);
    assert_eq!(tier(&fourth.now().expect("admitted")), STANDARD);
    drop((third, fourth));
    assert_eq!(throttler.retire(STANDARD, 1, true, clock()), [InstanceId(1)]);
    demands.take();
    assert_eq!(tier(&admit(&throttler)), RESERVE);
    assert_eq!(demands.take(), [Demand::Activate(scaled("standard"))]);
}

#[tokio::test(start_paused = true)]
async fn what_the_reserve_serves_is_load_of_the_other_tier_only_while_that_is_being_started() {
    let (throttler, _) = reserve(5);
    let held = [admit(&throttler), admit(&throttler)];
    tokio::time::advance(Duration::from_secs(1)).await;
    let load = throttler.sample(STANDARD, clock());
    assert_eq!((load.in_flight, load.requests, load.ready), (2, 2, 0));
    assert!((load.average_concurrency - 2.0).abs() < 1e-9, "{load:?}");
    let key = start(&throttler, STANDARD, 1);
    throttler.endpoint_ready(key, clock());
    tokio::time::advance(Duration::from_secs(1)).await;
    let load = throttler.sample(STANDARD, clock());
    assert_eq!((load.in_flight, load.requests, load.ready), (0, 0, 1));
    assert!(load.average_concurrency.abs() < 1e-9, "{load:?}");
    // A WebSocket on the reserve keeps nobody else up, and the revision is not at zero.
    assert_eq!(throttler.retire(STANDARD, 1, true, clock()), [InstanceId(1)]);
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_failed_start_leaves_the_requests_to_the_other_tiers() {
    let (throttler, demands) = tiers(&[
        ("spot", Supply::Activated, None),
        ("standard", Supply::Activated, None),
    ]);
    let mut first = polled(wait(&throttler));
    let mut both = demands.take();
    both.sort_by_key(|demand| format!("{demand:?}"));
    let asked = ["spot", "standard"].map(|tier| Demand::Activate(scaled(tier)));
    assert_eq!(both, asked, "the first request starts all of them");
    throttler.fail(1, &failed(30), clock());
    assert!(first.now().is_none(), "spot may still come");
    let key = start(&throttler, 0, 1);
    throttler.endpoint_ready(key, clock());
    assert_eq!(tier(&first.now().expect("admitted")), 0);
    // While its back-off lasts, the failed tier is left alone.
    demands.take();
    drop(admit(&throttler));
    assert!(demands.take().is_empty());
    tokio::time::advance(Duration::from_secs(31)).await;
    drop(admit(&throttler));
    assert_eq!(demands.take(), [Demand::Activate(scaled("standard"))]);
}

#[tokio::test(start_paused = true)]
async fn only_the_last_failed_start_fails_the_waiters() {
    let (throttler, _) = tiers(&[
        ("spot", Supply::Activated, None),
        ("standard", Supply::Activated, None),
    ]);
    let mut first = polled(wait(&throttler));
    throttler.fail(0, &failed(30), clock());
    assert!(first.now().is_none());
    throttler.fail(1, &failed(20), clock());
    assert!(matches!(
        first.rejected(),
        Some(Rejection::ActivationFailed { .. })
    ));
    match reject(&throttler) {
        Rejection::ActivationFailed { retry_after, .. } => assert_eq!(retry_after, Duration::from_secs(20)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_429_sends_the_request_to_another_tier_which_may_rest_or_not_be_there_yet() {
    let (throttler, _) = reserve(1);
    let first = admit(&throttler);
    assert!(first.may_spill(clock()));
    let Admission::Waiting(waiter) = first.spill(clock()) else {
        panic!("the other tier is not there yet")
    };
    let mut spilled = polled(waiter);
    // The reserve has a free slot, which the spilled request leaves alone and another one takes.
    let second = admit(&throttler);
    assert_eq!(tier(&second), RESERVE);
    assert!(spilled.now().is_none());
    let key = start(&throttler, STANDARD, 1);
    throttler.endpoint_ready(key, clock());
    let spilled = spilled.now().expect("admitted");
    assert_eq!(tier(&spilled), STANDARD);
    assert!(!spilled.may_spill(clock()), "both said 429");
    // From the tier that serves to the one that rests.
    let third = admit(&throttler);
    assert_eq!(tier(&third), STANDARD);
    let Admission::Waiting(waiter) = third.spill(clock()) else {
        panic!("the reserve is full")
    };
    let mut third = polled(waiter);
    drop(second);
    assert_eq!(tier(&third.now().expect("admitted")), RESERVE);
    drop(spilled);
}

#[tokio::test(start_paused = true)]
async fn a_429_without_hope_elsewhere_is_the_clients() {
    let (throttler, _) = reserve(1);
    let first = admit(&throttler);
    throttler.fail(STANDARD, &failed(30), clock());
    assert!(!first.may_spill(clock()));
    drop(first);
    let (fixed, _) = test_kit::throttler(Supply::Fixed, None);
    fixed.set_addresses(0, &[address(1)], true, clock());
    assert!(!admit(&fixed).may_spill(clock()), "no tiers");
}

#[tokio::test]
async fn a_passive_request_that_got_a_429_starts_no_tier() {
    let (throttler, _) = reserve(1);
    let arrival = Arrival {
        passive: true,
        ..Arrival::default()
    };
    let Admission::Admitted(passive) = throttler.admit(arrival, clock()) else {
        panic!("the reserve is ready")
    };
    assert!(
        !passive.may_spill(clock()),
        "nothing is ready elsewhere, and nothing may be started"
    );
    let key = start(&throttler, STANDARD, 1);
    throttler.endpoint_ready(key, clock());
    assert!(passive.may_spill(clock()));
    drop(passive);
}

/// A waiter that is polled by hand.
struct Polled {
    waiter: Option<Waiter>,
    refused: Option<Rejection>,
}

fn polled(waiter: Waiter) -> Polled {
    Polled {
        waiter: Some(waiter),
        refused: None,
    }
}

impl Polled {
    /// The permit, if it was granted by now.
    fn now(&mut self) -> Option<Permit> {
        let waiter = self.waiter.as_mut()?;
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::Pin::new(waiter).poll(&mut cx) {
            std::task::Poll::Pending => None,
            std::task::Poll::Ready(outcome) => {
                self.waiter = None;
                outcome.map_err(|rejection| self.refused = Some(rejection)).ok()
            }
        }
    }

    fn rejected(&mut self) -> Option<Rejection> {
        assert!(self.now().is_none(), "admitted");
        self.refused.take()
    }
}

//! Cases that the storm does not have: revisions that only one of the two processes has.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use sluice_model::{Backend, Demand, EndpointSink, InstanceId, ManagedEndpoint, RevisionSpec};

use super::*;
use crate::registry::Registry;
use crate::registry::test_kit::{self, Demands, fixed, id, snapshot, spec};
use crate::throttle::{Admission, Arrival, Permit, Rejection, Waiter, clock};

fn registry(revisions: Vec<RevisionSpec>) -> (Arc<Registry>, Arc<Demands>) {
    let demands = Arc::new(Demands::default());
    let registry = test_kit::registry(
        &snapshot(revisions),
        Arc::clone(&demands) as _,
        tokio::runtime::Handle::current(),
    );
    (Arc::new(registry), demands)
}

fn limited(backend: Backend) -> RevisionSpec {
    let mut spec = spec("r", backend);
    spec.container_concurrency = Some(1);
    spec
}

fn admit(registry: &Registry) -> Admission {
    let live = registry.live(&id("r")).expect("is served");
    live.throttler().admit(Arrival::default(), clock())
}

fn admitted(registry: &Registry) -> Permit {
    match admit(registry) {
        Admission::Admitted(permit) => permit,
        other => panic!("{other:?}"),
    }
}

fn waits(registry: &Registry) -> Waiter {
    match admit(registry) {
        Admission::Waiting(waiter) => waiter,
        other => panic!("{other:?}"),
    }
}

/// With one instance that is ready, on a port where nothing listens.
async fn managed() -> (Arc<Registry>, Arc<Demands>) {
    let (registry, demands) = registry(vec![limited(Backend::Managed)]);
    let instance = InstanceId(7);
    let address = ([127, 0, 0, 1], 1).into();
    registry.add(
        &id("r"),
        ManagedEndpoint {
            instance,
            address,
            took: Duration::ZERO,
        },
    );
    let live = registry.live(&id("r")).expect("is served");
    let key = live.throttler().endpoints()[0].endpoint.key;
    live.throttler().endpoint_ready(key, clock());
    (registry, demands)
}

fn across(guest: &mut Guest, host: &mut Host) {
    for _ in 0..8 {
        while let Some(said) = guest.next().now_or_never() {
            said.into_iter().for_each(|message| host.hear(message));
        }
        while let Some(said) = host.next().now_or_never() {
            said.into_iter().for_each(|message| guest.hear(message));
        }
    }
}

#[tokio::test]
async fn what_is_configured_no_more_finishes_before_its_instance_is_stopped() {
    let (old, _) = managed().await;
    let running = admitted(&old);
    let late = waits(&old);
    let (mut guest, desks) = Guest::flip(&old);
    let (new, demands) = registry(Vec::new());
    let mut host = Host::inherit(&new, &desks);
    // The controller of the new process has been told by its plan that the revision is gone.
    new.retire_these(&id("r"), &[InstanceId(7)]);
    across(&mut guest, &mut host);
    assert!(matches!(late.await, Err(Rejection::Removed)));
    let drained = Demand::Drained {
        revision: id("r"),
        instance: InstanceId(7),
    };
    assert!(!demands.take().contains(&drained), "it has a request");
    assert!(new.to_zero(&id("r")).is_none());
    drop(running);
    across(&mut guest, &mut host);
    assert!(demands.take().contains(&drained));
    assert_eq!(host.held(), 0);
}

#[tokio::test]
async fn what_is_sent_in_another_way_now_is_not_mixed_up() {
    let (old, _) = managed().await;
    let running = admitted(&old);
    let late = waits(&old);
    let (mut guest, desks) = Guest::flip(&old);
    let mut other = limited(Backend::Managed);
    other.protocol = sluice_model::Protocol::H2c;
    let (new, _) = registry(vec![other]);
    let mut host = Host::inherit(&new, &desks);
    across(&mut guest, &mut host);
    assert!(matches!(late.await, Err(Rejection::Removed)));
    assert_eq!(host.held(), 1);
    drop(running);
    across(&mut guest, &mut host);
    assert_eq!(host.held(), 0);
}

#[tokio::test]
async fn a_ready_instance_is_used_at_once_and_told_as_ready() {
    let (old, _) = managed().await;
    let late = admitted(&old);
    let (mut guest, desks) = Guest::flip(&old);
    let (new, demands) = registry(vec![limited(Backend::Managed)]);
    let mut host = Host::inherit(&new, &desks);
    let ready = Demand::Ready {
        revision: id("r"),
        instance: InstanceId(7),
    };
    assert!(demands.take().contains(&ready));
    let waiting = waits(&new);
    drop(late);
    across(&mut guest, &mut host);
    let permit = waiting.await.expect("the slot is free");
    assert_eq!(permit.endpoint().instance, Some(InstanceId(7)));
}

#[tokio::test]
async fn a_third_process_is_asked_through_the_second() {
    let spec = || vec![limited(fixed(&[1]))];
    let (first, _) = registry(spec());
    let running = admitted(&first);
    let (mut first_guest, desks) = Guest::flip(&first);
    let (second, _) = registry(spec());
    let mut second_host = Host::inherit(&second, &desks);
    let (mut second_guest, desks) = Guest::flip(&second);
    let (third, _) = registry(spec());
    let mut third_host = Host::inherit(&third, &desks);
    let (mut in_first, mut in_third) = (waits(&first), waits(&third));
    let mut turn = || {
        for _ in 0..3 {
            across(&mut first_guest, &mut second_host);
            across(&mut second_guest, &mut third_host);
        }
    };
    turn();
    assert!((&mut in_first).now_or_never().is_none());
    // Whoever has waited longest gets the slot, in whichever process.
    drop(running);
    turn();
    let permit = in_first.await.expect("it came first");
    turn();
    assert!((&mut in_third).now_or_never().is_none());
    drop(permit);
    turn();
    let permit = in_third.await.expect("it is its turn");
    assert!(matches!(admit(&third), Admission::Waiting(_)));
    drop(permit);
    turn();
    assert_eq!((second_host.held(), third_host.held()), (0, 0));
}

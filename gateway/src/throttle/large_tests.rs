//! Cost of events in revisions with many endpoints, in endpoints visited.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_model::{EndpointAddr, InstanceId, QueueTotals};

use super::actions::{CoreAdmission, Grant};
use super::arrival::{Arrival, Outcome};
use super::budget::QueueBudget;
use super::core::{Core, Supply, ThrottleLimits};
use super::endpoint::{EndpointPhase, EndpointState};
use super::endpoint_events::AddressChange;
use super::shell::clock;
use super::test_kit::{account, admit, fixed};
use crate::registry::test_kit::queue;

fn addresses(count: u16, net: u8) -> Vec<EndpointAddr> {
    let address = |n: u16| EndpointAddr::Tcp(([10, net, (n >> 8) as u8, n as u8], 80).into());
    (0..count).map(address).collect()
}

fn core(addresses: &[EndpointAddr], now: Instant) -> Core<u64> {
    let budget = Arc::new(QueueBudget::new(QueueTotals {
        depth: 100,
        bytes: 1 << 20,
    }));
    let limits = ThrottleLimits {
        concurrency: None,
        queue: queue(),
        start_timeout: Duration::from_secs(10),
        supply: Supply::Fixed,
    };
    let mut core = Core::new(limits, account(&budget, "shop"), 7, now);
    assert_eq!(change(&mut core, addresses, now), (addresses.len(), 0));
    core
}

fn change(core: &mut Core<u64>, addresses: &[EndpointAddr], now: Instant) -> (usize, usize) {
    let change = AddressChange::between(0, &core.configured(0), addresses);
    let (done, actions) = core.change_configured(&change, true, now);
    assert!(done && actions.resolved.is_empty());
    (change.added.len(), change.gone.len())
}

fn arrive(core: &mut Core<u64>, now: Instant) -> Grant {
    match core.arrive(Arrival::default(), now, || unreachable!("one is free")) {
        (CoreAdmission::Granted(grant), _) => grant,
        (verdict, _) => panic!("{verdict:?}"),
    }
}

/// Number of endpoints that `event` visited.
fn looks<R>(core: &mut Core<u64>, event: impl FnOnce(&mut Core<u64>) -> R) -> (R, u64) {
    let before = core.endpoints.looks.get();
    let result = event(core);
    (result, core.endpoints.looks.get() - before)
}

#[test]
fn one_ejected_of_a_thousand_costs_a_request_nothing() {
    let t0 = Instant::now();
    let mut core = core(&addresses(1_000, 0), t0);
    let grant = arrive(&mut core, t0);
    let bad = Arc::clone(&grant.endpoint);
    _ = core.report(grant.slot, grant.readiness_epoch, Outcome::ConnectFailed, t0);
    _ = core.release(grant.slot, grant.ticket.arrival.passive, t0);
    assert_eq!(core.endpoints.counts().ejected, 1);

    let soon = t0 + Duration::from_millis(999);
    let warm = core
        .arrive_warm(Arrival::default(), soon)
        .expect("not due yet is calm");
    assert!(core.release_warm(warm.slot, warm.ticket.arrival.passive, soon));
    for _ in 0..100 {
        let (grant, arrival) = looks(&mut core, |core| arrive(core, soon));
        assert_ne!(grant.endpoint.key, bad.key);
        let (_, failed) = looks(&mut core, |core| {
            core.report(
                grant.slot,
                grant.readiness_epoch,
                Outcome::Responded { status: 503 },
                soon,
            )
        });
        _ = core.report(
            grant.slot,
            grant.readiness_epoch,
            Outcome::Responded { status: 200 },
            soon,
        );
        let (_, release) = looks(&mut core, |core| {
            core.release(grant.slot, grant.ticket.arrival.passive, soon)
        });
        assert!(
            arrival <= 8 && failed <= 8 && release <= 8,
            "{arrival} {failed} {release}"
        );
    }
    // The first event at the end of the ejection reinstates the endpoint, and only that one.
    let due = t0 + Duration::from_secs(1);
    assert!(
        core.arrive_warm(Arrival::default(), due).is_none(),
        "something is due"
    );
    let (_, back) = looks(&mut core, |core| arrive(core, due));
    assert!(back <= 20, "{back}");
    assert_eq!(core.endpoints.counts().ejected, 0);
    assert_eq!(core.endpoints.eject_due(), None);
}

#[test]
fn ejections_end_in_the_order_of_their_ends_and_begin_again_in_that_of_their_age() {
    let t0 = Instant::now();
    let mut core = core(&addresses(3, 0), t0);
    let keys: Vec<u64> = core.known().map(|slot| slot.state.key).collect();
    let at = |ms| t0 + Duration::from_millis(ms);
    _ = core.endpoint_failing(keys[1], at(0));
    _ = core.endpoint_failing(keys[0], at(400));
    assert_eq!(core.endpoints.eject_due(), Some(at(1_000)));
    _ = core.expire(at(1_000));
    assert_eq!(core.endpoints.eject_due(), Some(at(1_400)));
    // With the last ready ones gone, the ejected endpoint is reinstated early.
    _ = core.endpoint_removed(keys[1], at(1_100));
    _ = core.endpoint_removed(keys[2], at(1_100));
    assert_eq!(core.endpoints.eject_due(), None);
    let phases: Vec<_> = core.known().map(|slot| (slot.state.key, slot.phase)).collect();
    assert_eq!(phases, [(keys[0], EndpointPhase::Ready)]);
}

#[test]
fn five_thousand_addresses_are_replaced_in_linear_time() {
    let t0 = Instant::now();
    let (old, new) = (addresses(5_000, 0), addresses(5_000, 1));
    let mut core = core(&old, t0);
    let held = arrive(&mut core, t0);
    let (changed, steps) = looks(&mut core, |core| change(core, &new, t0));
    assert_eq!(changed, (5_000, 5_000));
    // 10,000 endpoints, each visited a few times.
    assert!(steps <= 10 * 10_000, "{steps}");
    let counts = core.endpoints.counts();
    assert_eq!(
        (counts.ready, counts.gone),
        (5_000, 1),
        "what is in flight ends by itself"
    );
    let (_, one) = looks(&mut core, |core| {
        core.release(held.slot, held.ticket.arrival.passive, t0)
    });
    assert!(one <= 8, "{one}");
    assert_eq!(core.endpoints.counts().gone, 0);

    // A probe finds its endpoint by its key.
    let key = core.known().last().expect("there are some").state.key;
    let (_, probe) = looks(&mut core, |core| core.endpoint_failing(key, t0));
    assert!(probe <= 10, "{probe}");
    let (known, look) = looks(&mut core, |core| core.known_by(key).map(|slot| slot.state.key));
    assert_eq!((known, look), (Some(key), 1));
}

#[test]
fn a_change_of_addresses_that_others_overtook_changes_nothing() {
    let t0 = Instant::now();
    let all = addresses(4, 0);
    let mut core = core(&all[..2], t0);
    let stale = AddressChange::between(0, &core.configured(0), &all);
    let state = Arc::new(EndpointState::new(all[2].clone(), None));
    _ = core.endpoint_added(state, true, t0);
    assert!(!core.change_configured(&stale, true, t0).0);
    let instance = EndpointState::new(all[3].clone(), Some(InstanceId(1)));
    let fresh = AddressChange::between(0, &core.configured(0), &all);
    _ = core.endpoint_added(Arc::new(instance), true, t0);
    assert!(
        core.change_configured(&fresh, true, t0).0,
        "instances are none of its business"
    );
    assert_eq!(fresh.added.len(), 1);
    assert_eq!(core.configured(0).0.len(), 4);
}

#[tokio::test]
async fn addresses_that_stay_keep_what_they_have() {
    let throttler = fixed(&[1, 2], None);
    let permits: Vec<_> = (0..4).map(|_| admit(&throttler)).collect();
    let stays = Arc::clone(permits[0].endpoint());
    let addresses = [
        stays.address.clone(),
        addresses(1, 9).remove(0),
        stays.address.clone(),
    ];
    let added = throttler.set_addresses(0, &addresses, true, clock());
    assert_eq!(added.len(), 1);
    let view = throttler.endpoint(stays.key).expect("it is there still");
    assert!(view.in_flight > 0);
    assert_eq!(throttler.endpoints().len(), 2);
}

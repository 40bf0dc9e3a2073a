//! Swaps of the table keep live state; endpoints and names come and go.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::poll;
use sluice_model::{
    Backend, Demand, EndpointSink, EndpointTarget, InstanceId, ManagedEndpoint, Percent, Pods, Probe,
    ProbeKind, Route, RouteMatch, Rule, Service, ServiceId, Snapshot, SnapshotBuilder,
};

use super::test_kit::{self, Demands, address, apply, fixed, id, snapshot, spec, until};
use super::*;
use crate::throttle::{Admission, Arrival, Permit, Rejection, Waiter};

fn registry(first: &Snapshot) -> (Registry, Arc<Demands>) {
    let demands = Arc::new(Demands::default());
    let registry = test_kit::registry(first, Arc::clone(&demands) as _, Handle::current());
    (registry, demands)
}

fn admit(live: &LiveRevision) -> Permit {
    match live.throttler().admit(Arrival::default(), clock()) {
        Admission::Admitted(permit) => permit,
        other => panic!("not admitted: {other:?}"),
    }
}

fn wait(live: &LiveRevision) -> Waiter {
    match live.throttler().admit(Arrival::default(), clock()) {
        Admission::Waiting(waiter) => waiter,
        other => panic!("does not wait: {other:?}"),
    }
}

fn instance(n: u64) -> ManagedEndpoint {
    ManagedEndpoint {
        instance: InstanceId(n),
        address: ([127, 0, 0, 1], 1).into(),
        took: Duration::ZERO,
    }
}

fn drained(n: u64) -> Demand {
    Demand::Drained {
        revision: id("a"),
        instance: InstanceId(n),
    }
}

fn names(host: &str, port: u16) -> Backend {
    Backend::Static {
        targets: vec![EndpointTarget::Dns {
            host: host.into(),
            port,
        }],
        activated: false,
    }
}

#[tokio::test]
async fn a_swap_keeps_what_is_in_flight_and_applies_limits_in_place() {
    let mut a = spec("a", fixed(&[1, 2]));
    let (registry, _) = registry(&snapshot(vec![a.clone(), spec("b", fixed(&[3]))]));
    let before = registry.live(&id("a")).expect("is in it");
    let _permits = [admit(&before), admit(&before)];
    let key = |port| {
        let views = before.throttler().endpoints();
        let view = views.iter().find(|v| v.endpoint.address == address(port));
        view.map(|v| v.endpoint.key)
    };
    let kept = key(2);
    a.backend = fixed(&[2, 4]);
    a.container_concurrency = Some(1);
    let serving = apply(&registry, &snapshot(vec![a]));
    let after = registry.live(&id("a")).expect("is in it");
    assert!(Arc::ptr_eq(&before, &after) && holds(&serving, &after));
    assert_eq!(serving.revision_count(), 1);
    assert!(registry.live(&id("b")).is_none());
    assert_eq!(after.throttler().peek(clock()).in_flight, 2);
    assert_eq!((key(1), key(2)), (None, kept));
    assert!(key(4).is_some());
    // The two requests went to one endpoint each, and the endpoint that stays is full now.
    let more = admit(&after);
    assert_eq!(more.endpoint().address, address(4));
    let _waiter = wait(&after);
}

#[tokio::test]
async fn a_revision_that_moves_to_another_service_takes_its_waiters_along() {
    let of = |name: &str, service: &str| {
        let mut spec = spec(name, fixed(&[1]));
        spec.container_concurrency = Some(1);
        spec.service = ServiceId::parse("default", service).expect("a name");
        spec
    };
    let (registry, _) = registry(&snapshot(vec![of("a", "shop"), of("b", "shop")]));
    let before = registry.live(&id("b")).expect("is in it");
    let a = registry.live(&id("a")).expect("is in it");
    let _permits = [admit(&a), admit(&before)];
    let mut waiters = [wait(&a), wait(&before)];
    assert_eq!(registry.budget().services(), 1);
    apply(&registry, &snapshot(vec![of("a", "shop"), of("b", "other")]));
    let after = registry.live(&id("b")).expect("is in it");
    assert!(Arc::ptr_eq(&before, &after));
    assert_eq!(registry.budget().services(), 2);
    assert!(poll!(&mut waiters[1]).is_pending());
}

/// The Ingresses of a Knative Service and of its DomainMapping: one revision, whose limit holds for both together.
#[tokio::test]
async fn a_revision_of_two_services_has_one_limit_until_the_last_one_is_gone() {
    let of = |service: &str, limit| {
        let mut spec = spec("a", fixed(&[1]));
        spec.container_concurrency = Some(limit);
        spec.service = ServiceId::parse("default", service).expect("a name");
        Arc::new(spec)
    };
    let a = of("shop", 1);
    let (registry, _) = registry(&test_kit::sharing(&[("mapped", &[&a]), ("shop", &[&a])]));
    let through = |service: &str| {
        let table = registry.reader().load();
        let id = ServiceId::parse("default", service).expect("a name");
        table
            .service(&id)
            .map(|entry| Arc::clone(&entry.live.revisions()[0]))
    };
    let live = registry.live(&id("a")).expect("is in it");
    for service in ["shop", "mapped"] {
        assert!(
            through(service).is_some_and(|known| Arc::ptr_eq(&known, &live)),
            "{service}"
        );
    }
    assert_eq!(registry.all_live().len(), 1);
    let permit = admit(&live);
    let mut waiter = wait(&through("mapped").expect("is in it"));
    // Another limit, in both at once.
    let a = of("shop", 2);
    apply(
        &registry,
        &test_kit::sharing(&[("mapped", &[&a]), ("shop", &[&a])]),
    );
    let second = (&mut waiter).await.expect("admitted");
    let mut waiter = wait(&live);
    // The service that it belonged to is gone, the other one keeps it.
    let a = of("mapped", 2);
    apply(&registry, &test_kit::sharing(&[("mapped", &[&a])]));
    assert!(through("shop").is_none() && through("mapped").is_some_and(|known| Arc::ptr_eq(&known, &live)));
    assert!(poll!(&mut waiter).is_pending());
    drop((permit, second));
    let third = (&mut waiter).await.expect("admitted");
    apply(&registry, &test_kit::sharing(&[]));
    assert!(registry.live(&id("a")).is_none());
    assert_eq!(registry.leaving().len(), 1);
    drop(third);
    assert!(registry.leaving().is_empty());
}

#[tokio::test]
async fn a_removed_revision_resolves_its_waiters_and_fails_no_request_of_the_old_table() {
    let mut a = spec("a", fixed(&[1]));
    a.container_concurrency = Some(1);
    let b = spec("b", fixed(&[2]));
    let (registry, _) = registry(&snapshot(vec![a.clone(), b.clone()]));
    let reader = registry.reader();
    let old = reader.load();
    let (entry, slot) = old.revision(&id("a")).expect("is in it");
    let live = Arc::clone(&entry.live.revisions()[slot]);
    let permit = admit(&live);
    let waiter = wait(&live);
    apply(&registry, &snapshot(vec![b.clone()]));
    assert!(matches!(waiter.await, Err(Rejection::Removed)));
    drop(permit);
    let late = admit(&live);
    // The revision comes back while a request is still in flight on it: the same state takes over again.
    apply(&registry, &snapshot(vec![a, b]));
    let again = registry.live(&id("a")).expect("is in it");
    assert!(Arc::ptr_eq(&again, &live));
    let mut waiter = wait(&again);
    assert!(poll!(&mut waiter).is_pending());
    drop(late);
    drop(waiter.await.expect("admitted"));
}

#[tokio::test]
async fn old_tables_go() {
    let snapshots = [snapshot(vec![spec("a", fixed(&[1]))]), snapshot(vec![])];
    let (registry, _) = registry(&snapshots[0]);
    let reader = registry.reader();
    for n in 0..10 {
        let held = reader.load();
        drop(apply(&registry, &snapshots[n % 2]));
        assert_eq!(registry.tables_alive(), 2);
        drop(held);
        assert_eq!(registry.tables_alive(), 1);
    }
}

#[tokio::test]
async fn another_kind_of_backend_is_another_live_state() {
    let (registry, demands) = registry(&snapshot(vec![spec("a", Backend::Managed)]));
    let old = registry.live(&id("a")).expect("is in it");
    registry.add(&id("a"), instance(1));
    let key = old.throttler().endpoints()[0].endpoint.key;
    old.throttler().endpoint_ready(key, clock());
    let permit = admit(&old);
    demands.take();
    apply(&registry, &snapshot(vec![spec("a", fixed(&[1]))]));
    let new = registry.live(&id("a")).expect("is in it");
    assert!(!Arc::ptr_eq(&old, &new));
    drop(admit(&new));
    // The instances of the old state are still found by name, and none is stopped under a request.
    registry.retire_these(&id("a"), &[InstanceId(1)]);
    assert!(demands.take().is_empty());
    drop(permit);
    assert_eq!(demands.take(), [drained(1)]);
    registry.remove(&id("a"), InstanceId(1));
    assert!(registry.leaving.lock().is_empty());
}

#[tokio::test]
async fn the_sink_speaks_to_the_revision_and_survives_unknown_ones() {
    let (registry, demands) = registry(&snapshot(vec![spec("a", Backend::Managed)]));
    let live = registry.live(&id("a")).expect("is in it");
    let waiter = wait(&live);
    assert_eq!(demands.take(), [Demand::Activate(id("a"))]);
    registry.add(&id("a"), instance(1));
    registry.add(&id("a"), instance(1));
    let load = registry.sample(&id("a")).expect("is known");
    assert_eq!((load.starting, load.queued, load.requests), (1, 1, 1));
    assert!(registry.retire(&id("a"), 1, true).is_empty(), "somebody waits");
    drop(waiter);
    assert_eq!(registry.retire(&id("a"), 1, true), [InstanceId(1)]);
    assert_eq!(demands.take(), [drained(1)]);
    registry.retire_these(&id("a"), &[InstanceId(5)]);
    assert_eq!(demands.take(), [drained(5)]);
    registry.remove(&id("a"), InstanceId(1));
    registry.add(&id("nope"), instance(2));
    registry.remove(&id("nope"), InstanceId(2));
    assert!(registry.retire(&id("nope"), 1, true).is_empty());
    assert!(registry.sample(&id("nope")).is_none());
}

#[tokio::test]
async fn a_drain_of_the_gateway_resolves_everybody_for_good() {
    let first = snapshot(vec![spec("a", Backend::Managed)]);
    let (registry, _) = registry(&first);
    let live = registry.live(&id("a")).expect("is in it");
    let waiter = wait(&live);
    registry.close_all();
    assert!(matches!(waiter.await, Err(Rejection::Draining)));
    apply(&registry, &first);
    let admission = live.throttler().admit(Arrival::default(), clock());
    assert!(matches!(admission, Admission::Rejected(Rejection::Draining)));
}

/// A service with two rules of a route each, all of whose splits share two revisions half and half.
fn two_rules() -> Service {
    let base = snapshot(vec![spec("a", fixed(&[1])), spec("b", fixed(&[2]))]);
    let base = base.services()[0];
    let half = base.main.split.clone();
    let route = Route {
        matches: RouteMatch::default(),
        rewrite_host: None,
        rewrite_path: None,
        append_headers: Default::default(),
        cold: None,
        split: half.clone(),
    };
    let rule = Rule {
        routes: vec![route],
        split: half,
        ..base.main.clone()
    };
    Service {
        main: rule.clone(),
        further: Box::new([rule]),
        ..Service::clone(base)
    }
}

#[tokio::test]
async fn every_split_of_every_rule_draws_for_itself_and_keeps_its_place_in_an_edit() {
    let publish = |service: Service| {
        let mut builder = SnapshotBuilder::new(test_kit::settings());
        builder.service(service).expect("one service");
        builder.build()
    };
    let (registry, _) = registry(&publish(two_rules()));
    let splits = [(0, None), (0, Some(0)), (1, None), (1, Some(0))];
    let mut taken: BTreeMap<(usize, Option<usize>), Vec<usize>> = BTreeMap::new();
    let mut take = |registry: &Registry, each: usize| {
        let serving = registry.reader().load();
        let entry = serving.entries().next().expect("one service");
        // In turns, so that a sequence that two splits share would be shifted for both.
        for _ in 0..each {
            for (rule, route) in splits {
                let rules = entry.service.rule(rule);
                let split = route.map_or(&rules.split, |route: usize| &rules.routes[route].split);
                let slot = split.pick(entry.live.next_draw(rule, route)).slot;
                taken.entry((rule, route)).or_default().push(slot);
            }
        }
    };
    // An edit in the middle of a block of eight draws.
    take(&registry, 3);
    let mut edited = two_rules();
    edited.further[0].routes[0].rewrite_host = Some("other.example".to_owned());
    apply(&registry, &publish(edited));
    take(&registry, 5);
    for (split, slots) in &taken {
        assert_eq!(slots.len(), 8, "{split:?}");
        assert_eq!(
            slots.iter().filter(|slot| **slot == 0).count(),
            4,
            "{split:?}: {slots:?}"
        );
    }
}

#[tokio::test]
async fn every_split_draws_for_itself_and_exactly() {
    let (registry, _) = registry(&snapshot(vec![spec("a", fixed(&[1])), spec("b", fixed(&[2]))]));
    let serving = registry.reader().load();
    let entry = serving.entries().next().expect("one service");
    let split = &entry.service.main.split;
    let picks = (0..800).map(|_| split.pick(entry.live.next_draw(0, None)).slot);
    let first = picks.filter(|slot| *slot == 0).count();
    assert_eq!(first, 400);
    assert!(entry.live.next_draw(0, None) < Percent::WHOLE);
}

#[tokio::test]
async fn a_name_is_waited_for_and_refused_once_it_resolves_to_nothing() {
    let (registry, _) = registry(&snapshot(vec![
        spec("a", names("localhost", 80)),
        spec("b", names("nowhere.invalid", 80)),
    ]));
    let good = registry.live(&id("a")).expect("is in it");
    let bad = registry.live(&id("b")).expect("is in it");
    let (found, refused) = (wait(&good), wait(&bad));
    drop(found.await.expect("localhost is known everywhere"));
    assert!(matches!(refused.await, Err(Rejection::NoEndpoints)));
    let admission = bad.throttler().admit(Arrival::default(), clock());
    assert!(matches!(admission, Admission::Rejected(Rejection::NoEndpoints)));
}

#[tokio::test]
async fn other_names_are_looked_up_at_once_and_addresses_never_run_out_in_between() {
    let a = spec("a", fixed(&[1]));
    let (registry, _) = registry(&snapshot(vec![a.clone()]));
    let live = registry.live(&id("a")).expect("is in it");
    let metrics = Handle::current().metrics();
    assert_eq!(metrics.num_alive_tasks(), 0, "nothing to look up");
    let mut b = a.clone();
    b.backend = names("localhost", 81);
    apply(&registry, &snapshot(vec![b]));
    let admission = live.throttler().admit(Arrival::default(), clock());
    let permit = admission.wait().await.expect("waits for the lookup");
    assert!(permit.endpoint().address.to_string().ends_with(":81"));
    apply(&registry, &snapshot(vec![a]));
    assert_eq!(admit(&live).endpoint().address, address(1));
    drop((permit, live, registry));
    until("the resolver ended", || metrics.num_alive_tasks() == 0).await;
}

#[tokio::test]
async fn a_big_table_is_dropped_off_the_request_path() {
    let many = (0..1_100).map(|n| {
        let mut spec = spec(&format!("r{n}"), fixed(&[1]));
        spec.service = ServiceId::parse("default", &format!("s{n}")).expect("a name");
        spec
    });
    let (registry, _) = registry(&snapshot(many.collect()));
    let held = registry.reader().load();
    apply(&registry, &snapshot(vec![]));
    drop(held);
    until("it is dropped", || registry.tables_alive() == 1).await;
}

#[tokio::test]
async fn zero_is_agreed_to_only_when_nobody_is_there() {
    let Backend::Static { targets, .. } = fixed(&[1]) else {
        unreachable!("it is static");
    };
    let activated = Backend::Static {
        targets,
        activated: true,
    };
    let (registry, demands) = registry(&snapshot(vec![spec("a", activated)]));
    let live = registry.live(&id("a")).expect("is in it");
    let waiter = wait(&live);
    assert_eq!(registry.to_zero(&id("a")), None, "somebody waits");
    let key = live.throttler().endpoints()[0].endpoint.key;
    live.throttler().endpoint_ready(key, clock());
    let permit = waiter.await.expect("admitted");
    assert_eq!(
        demands.take(),
        [Demand::Activate(id("a")), Demand::Activated(id("a"))]
    );
    assert_eq!(registry.to_zero(&id("a")), None, "something is in flight");
    assert_eq!(live.throttler().peek(clock()).ready, 1);
    drop(permit);
    assert_eq!(registry.to_zero(&id("a")), Some(vec![]));
    assert_eq!(live.throttler().peek(clock()).ready, 0, "it has to prove itself");
    drop(wait(&live));
    assert_eq!(demands.take(), [Demand::Activate(id("a"))]);
    assert_eq!(registry.to_zero(&id("nope")), Some(vec![]));
}

fn pods(ready: &[u16], starting: &[u16]) -> Backend {
    let at = |ports: &[u16]| ports.iter().map(|port| ([127, 0, 0, 1], *port).into()).collect();
    Backend::Pods(Box::new(Pods {
        ready: at(ready),
        starting: at(starting),
        failure: None,
        owner: Arc::default(),
    }))
}

/// A revision whose starting Pods prove their readiness to queue-proxy's probe.
fn of_pods(name: &str, backend: Backend) -> RevisionSpec {
    let mut spec = spec(name, backend);
    spec.readiness = Some(Probe {
        kind: ProbeKind::QueueProxy,
        period: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        failure_threshold: 1,
    });
    spec
}

#[tokio::test]
async fn a_request_waits_for_the_first_pod_of_a_revision_at_zero() {
    let (registry, demands) = registry(&snapshot(vec![of_pods("a", pods(&[], &[]))]));
    let live = registry.live(&id("a")).expect("is in it");
    let waiter = wait(&live);
    assert_eq!(demands.take(), [Demand::Activate(id("a"))]);
    // The cluster says that a Pod is ready: it needs no probe.
    apply(&registry, &snapshot(vec![of_pods("a", pods(&[1], &[]))]));
    let permit = waiter.await.expect("admitted");
    assert_eq!(permit.endpoint().address, address(1));
    assert_eq!(demands.take(), [Demand::Activated(id("a"))]);
    drop(permit);
    // A revision at zero again, and one that is gone from the cluster's view under a request.
    let permit = admit(&live);
    apply(&registry, &snapshot(vec![of_pods("a", pods(&[], &[]))]));
    let waiter = wait(&live);
    drop(permit);
    apply(&registry, &snapshot(vec![of_pods("a", pods(&[2], &[]))]));
    assert_eq!(waiter.await.expect("admitted").endpoint().address, address(2));
}

#[tokio::test]
async fn waiters_fail_when_waiting_does_not_help_and_wait_again_when_it_may() {
    let failing = |why: Option<&str>| {
        let backend = Backend::Pods(Box::new(Pods {
            failure: why.map(Into::into),
            ..Pods::default()
        }));
        snapshot(vec![of_pods("a", backend)])
    };
    let (registry, _) = registry(&failing(None));
    let live = registry.live(&id("a")).expect("is in it");
    let waiter = wait(&live);
    apply(&registry, &failing(Some("InvalidImageName")));
    let Err(Rejection::ActivationFailed { failure, .. }) = waiter.await else {
        panic!("it was admitted, or rejected for another reason");
    };
    assert_eq!(failure.detail, "InvalidImageName");
    let again = live.throttler().admit(Arrival::default(), clock());
    assert!(matches!(
        again,
        Admission::Rejected(Rejection::ActivationFailed { .. })
    ));
    apply(&registry, &failing(None));
    drop(wait(&live));
}

/// A queue-proxy that is ready when it is told so. Returns its port, and the switch.
async fn queue_proxy() -> (u16, Arc<std::sync::atomic::AtomicBool>) {
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("bound").port();
    let is_ready = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&is_ready);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut head = vec![0; 4096];
            let read = client.read(&mut head).await.unwrap_or_default();
            let head = String::from_utf8_lossy(&head[..read]).to_ascii_lowercase();
            let is_probe = head.starts_with("get /healthz http/1.1\r\n")
                && head.contains("\r\nk-network-probe: queue\r\n")
                && head.contains("\r\nuser-agent: knative-activator-probe\r\n");
            let status = match (is_probe, is_ready.load(Ordering::SeqCst)) {
                (false, _) => "400 Bad Request",
                (true, false) => "503 Service Unavailable",
                (true, true) => "200 OK",
            };
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\nqueue");
            let _ = client.write_all(answer.as_bytes()).await;
        }
    });
    (port, switch)
}

#[tokio::test]
async fn a_starting_pod_is_used_when_its_queue_proxy_says_so_and_a_failing_one_is_not() {
    use std::sync::atomic::Ordering;

    let (port, is_ready) = queue_proxy().await;
    let (registry, _) = registry(&snapshot(vec![of_pods("a", pods(&[], &[port]))]));
    let live = registry.live(&id("a")).expect("is in it");
    let mut waiter = wait(&live);
    assert!(poll!(&mut waiter).is_pending());
    is_ready.store(true, Ordering::SeqCst);
    assert_eq!(waiter.await.expect("admitted").endpoint().address, address(port));
    // Ready by the cluster's view as well; then not any more: it has to prove itself.
    apply(&registry, &snapshot(vec![of_pods("a", pods(&[port], &[]))]));
    drop(admit(&live));
    is_ready.store(false, Ordering::SeqCst);
    apply(&registry, &snapshot(vec![of_pods("a", pods(&[1], &[port]))]));
    for _ in 0..4 {
        assert_eq!(admit(&live).endpoint().address, address(1));
    }
}

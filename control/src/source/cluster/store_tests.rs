//! The store and the resolution: what an Ingress becomes, whatever the order in which objects are seen.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};
use sluice_model::{Backend, HttpOption, PathMatch, Pods, Protocol, Route, Visibility};

use super::objects::{EndpointSlice, Ingress, Secret, Service};
use super::store::{AnyUpdate, Store, Update};
use super::{Policy, Statuses, settings};
use crate::ingress::{IngressObject, ProblemKind};
use crate::source::{Content, Event};

const CLASS: &str = "ours";

fn store() -> Store {
    store_of(false)
}

fn store_of(activator: bool) -> Store {
    let policy = Policy {
        cluster_domain: "cluster.local".into(),
        own_service: "sluice-internal.sluice-system.svc.cluster.local".into(),
        settings: Arc::new(settings()),
    };
    Store::new(CLASS.into(), policy, Statuses::default(), activator)
}

fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object")
}

fn meta(name: &str) -> Value {
    json!({"namespace": "d", "name": name, "uid": name, "creationTimestamp": "2026-11-30T00:00:00Z"})
}

fn ingress(name: &str, generation: i64, spec: Value) -> AnyUpdate {
    let mut meta = meta(name);
    meta["generation"] = generation.into();
    meta["annotations"] = json!({"networking.knative.dev/ingress.class": CLASS});
    AnyUpdate::Ingress(Update::Apply(of::<Ingress>(
        json!({"metadata": meta, "spec": spec}),
    )))
}

/// A rule of one host, all of whose requests go to one Service.
fn to(host: &str, service: &str, port: Value) -> Value {
    json!({"rules": [{"hosts": [host], "visibility": "ExternalIP", "http": {"paths": [
        {"splits": [{"serviceNamespace": "d", "serviceName": service, "servicePort": port, "percent": 100}]}]}}]})
}

fn service(name: &str, port_name: &str) -> AnyUpdate {
    let spec = json!({"type": "ClusterIP", "ipFamilies": ["IPv4"],
        "ports": [{"name": port_name, "port": 80}, {"name": "admin", "port": 9000}]});
    AnyUpdate::Service(Update::Apply(of::<Service>(
        json!({"metadata": meta(name), "spec": spec}),
    )))
}

fn slice(of_service: &str, name: &str, port_name: &str, addresses: &[(&str, bool)]) -> AnyUpdate {
    let mut meta = meta(name);
    meta["labels"] = json!({"kubernetes.io/service-name": of_service});
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|(ip, ready)| json!({"addresses": [ip], "conditions": {"ready": ready}}))
        .collect();
    let slice = json!({"metadata": meta, "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": port_name, "port": 8080}]});
    AnyUpdate::Slice(Update::Apply(of::<EndpointSlice>(slice)))
}

fn secret(name: &str) -> AnyUpdate {
    let data = json!({"tls.crt": "Y2VydA==", "tls.key": "a2V5"});
    AnyUpdate::Secret(Update::Apply(of::<Secret>(
        json!({"metadata": meta(name), "data": data}),
    )))
}

fn listed(store: &mut Store) {
    store.update(AnyUpdate::Ingress(Update::List(Vec::new())));
    store.update(AnyUpdate::Service(Update::List(Vec::new())));
    store.update(AnyUpdate::Slice(Update::List(Vec::new())));
    store.update(AnyUpdate::Secret(Update::List(Vec::new())));
    store.update(AnyUpdate::Revision(Update::List(Vec::new())));
    store.update(AnyUpdate::Pod(Update::List(Vec::new())));
    store.update(AnyUpdate::Shared(Update::List(Vec::new())));
    store.update(AnyUpdate::Network(Update::List(Vec::new())));
}

/// Applies events to what was seen before.
fn see(store: &mut Store, seen: &mut BTreeMap<String, Arc<IngressObject>>) {
    for event in store.events() {
        match event {
            Event::Apply(key, Content::Ingress(object)) => {
                seen.insert(key.path().display().to_string(), object);
            }
            Event::Delete(key) => _ = seen.remove(&key.path().display().to_string()),
            _ => {}
        }
    }
}

/// The value of the one header of this name that a route sets.
fn header<'r>(route: &'r Route, name: &str) -> &'r str {
    let mut values = route.append_headers.iter().filter(|(known, _)| known == name);
    let (_, value) = values.next().expect("the header");
    assert_eq!(values.next(), None);
    value
}

fn one(store: &mut Store) -> Arc<IngressObject> {
    let mut seen = BTreeMap::new();
    see(store, &mut seen);
    let (_, object) = seen.pop_first().expect("an Ingress");
    object
}

fn addresses(object: &IngressObject) -> Vec<String> {
    let service = object.service.as_ref().expect("a service");
    let Backend::Static { targets, .. } = &service.revisions[0].backend else {
        panic!("{service:?}");
    };
    targets.iter().map(ToString::to_string).collect()
}

#[test]
fn nothing_is_seen_before_every_kind_was_listed() {
    let mut store = store();
    store.update(AnyUpdate::Ingress(Update::List(Vec::new())));
    store.update(ingress("hello", 1, to("hello.example.com", "hello", 80.into())));
    assert!(!store.is_listed() && store.events().is_empty());
    listed(&mut store);
    assert!(store.is_listed());
    store.update(ingress("hello", 1, to("hello.example.com", "hello", 80.into())));
    let events = store.events();
    assert!(matches!(events.first(), Some(Event::Init)) && matches!(events.last(), Some(Event::InitDone)));
    assert_eq!(events.len(), 3);
    assert!(store.events().is_empty(), "each change is seen once");
}

#[test]
fn an_ingress_becomes_a_service_with_its_rules() {
    let mut store = store();
    listed(&mut store);
    store.update(service("a", "http"));
    store.update(slice(
        "a",
        "a-1",
        "http",
        &[("10.0.0.2", true), ("10.0.0.1", true), ("10.0.0.3", false)],
    ));
    store.update(service("b", "http2"));
    store.update(slice("b", "b-1", "http2", &[("10.0.0.9", true)]));
    store.update(secret("cert"));
    let split = |service: &str, percent: i64, header: &str| {
        json!({"serviceNamespace": "d", "serviceName": service, "servicePort": 80, "percent": percent,
            "appendHeaders": {"Which": header}})
    };
    store.update(ingress(
        "hello",
        7,
        json!({
            "httpOption": "Redirected",
            "tls": [{"hosts": ["hello.example.com"], "secretName": "cert", "secretNamespace": "d"}],
            "rules": [
                {"hosts": ["hello.example.com"], "visibility": "ExternalIP", "http": {"paths": [
                    {"path": "/v2", "headers": {"X-Beta": {"exact": "1"}}, "rewriteHost": "b.d.svc.cluster.local",
                     "appendHeaders": {"P": "1"}, "splits": [split("b", 100, "b")]},
                    {"splits": [split("a", 90, "a"), split("b", 10, "b")]}]}},
                {"hosts": ["hello.d.svc.cluster.local"], "visibility": "ClusterLocal",
                 "http": {"paths": [{"splits": [split("a", 100, "a")]}]}}]
        }),
    ));
    let object = one(&mut store);
    assert_eq!((object.generation, &object.problem), (7, &None));
    let service = object.service.as_ref().expect("a service");
    let hosts: Vec<(String, u16)> = service
        .hosts
        .iter()
        .map(|claim| (claim.pattern.to_string(), claim.rule))
        .collect();
    assert_eq!(
        hosts,
        [
            ("hello.example.com".to_owned(), 0),
            ("hello.d.svc.cluster.local".to_owned(), 1),
            ("hello.d.svc".to_owned(), 1),
            ("hello.d".to_owned(), 1),
        ]
    );
    assert_eq!(service.main.http_option, HttpOption::Redirected);
    let route = &service.main.routes[0];
    assert_eq!(route.matches.path, Some(PathMatch::RawPrefix("/v2".into())));
    assert_eq!(route.matches.headers[0].name, "x-beta");
    assert_eq!(route.rewrite_host.as_deref(), Some("b.d.svc.cluster.local"));
    // The last path is the rule's own traffic.
    assert_eq!(service.main.routes.len(), 1);
    let shares: Vec<u32> = service
        .main
        .split
        .targets()
        .iter()
        .map(|t| t.percent.hundredths())
        .collect();
    assert_eq!(shares, [9_000, 1_000]);
    assert_eq!(
        *service.main.split.targets()[1].append_headers,
        [("Which".to_owned(), "b".to_owned())]
    );
    assert_eq!(service.further[0].visibility, Visibility::Internal);
    assert_eq!(service.further[0].http_option, HttpOption::Enabled);
    let names: Vec<&str> = service.revisions.iter().map(|spec| spec.id.name()).collect();
    assert_eq!(names, ["b:80", "a:80"]);
    assert_eq!(service.revisions[0].protocol, Protocol::H2c);
    assert_eq!(service.revisions[1].protocol, Protocol::Http1);
    let extras = service.ingress.as_ref().expect("an Ingress");
    assert_eq!(extras.certificates.len(), 1);
    assert_eq!(extras.certificates[0].visibility, Visibility::External);
    assert_eq!(&*extras.certificates[0].pem.chain, b"cert");
    assert_eq!(extras.network_hash.len(), 64);
}

#[test]
fn endpoints_follow_their_slices_and_only_ready_ones_count() {
    let mut store = store();
    listed(&mut store);
    store.update(service("a", "http"));
    store.update(slice(
        "a",
        "a-1",
        "http",
        &[("10.0.0.2", true), ("10.0.0.3", false)],
    ));
    store.update(slice("a", "a-2", "http", &[("10.0.0.1", true)]));
    store.update(ingress("hello", 1, to("hello.example.com", "a", "http".into())));
    assert_eq!(addresses(&one(&mut store)), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    store.update(slice("a", "a-2", "http", &[]));
    assert_eq!(addresses(&one(&mut store)), ["10.0.0.2:8080"]);
    // An established Service without endpoints stays what it is: ready, and with nobody to send to.
    store.update(slice("a", "a-1", "http", &[]));
    let object = one(&mut store);
    assert!(addresses(&object).is_empty() && object.problem.is_none());
    // Objects that nobody names change nothing.
    store.update(service("other", "http"));
    store.update(slice("other", "other-1", "http", &[("10.0.0.8", true)]));
    assert!(store.events().is_empty());
}

#[test]
fn a_new_service_is_waited_for_and_the_last_good_version_stays_up_to_date() {
    let mut store = store();
    listed(&mut store);
    store.update(service("a", "http"));
    store.update(slice("a", "a-1", "http", &[("10.0.0.1", true)]));
    store.update(ingress("hello", 1, to("hello.example.com", "a", 80.into())));
    assert!(one(&mut store).problem.is_none());
    // The Ingress is seen before its new Service, and that one before its endpoints.
    store.update(ingress("hello", 2, to("hello.example.com", "b", 80.into())));
    let object = one(&mut store);
    assert_eq!(
        object.problem.as_ref().map(|p| p.kind),
        Some(ProblemKind::Missing)
    );
    assert_eq!(
        (object.generation, addresses(&object)),
        (2, vec!["10.0.0.1:8080".to_owned()])
    );
    store.update(service("b", "http"));
    assert_eq!(
        one(&mut store).problem.as_ref().map(|p| p.kind),
        Some(ProblemKind::NotReady)
    );
    store.update(slice("a", "a-1", "http", &[("10.0.0.2", true)]));
    assert_eq!(addresses(&one(&mut store)), ["10.0.0.2:8080"]);
    store.update(slice("b", "b-1", "http", &[("10.0.0.5", true)]));
    let object = one(&mut store);
    assert_eq!(
        (object.problem.clone(), addresses(&object)),
        (None, vec!["10.0.0.5:8080".to_owned()])
    );
    // Nobody names the old Service any more.
    store.update(slice("a", "a-1", "http", &[("10.0.0.3", true)]));
    assert!(store.events().is_empty());
}

fn private_service(revision: &str, name: &str, port_name: &str) -> AnyUpdate {
    let mut meta = meta(name);
    meta["labels"] = json!({"networking.internal.knative.dev/serviceType": "Private",
        "serving.knative.dev/revision": revision});
    let spec = json!({"type": "ClusterIP", "ports": [{"name": port_name, "port": 80}, {"name": "https", "port": 443}]});
    AnyUpdate::Service(Update::Apply(of::<Service>(
        json!({"metadata": meta, "spec": spec}),
    )))
}

fn revision(name: &str, spec: Value) -> AnyUpdate {
    AnyUpdate::Revision(Update::Apply(of(json!({"metadata": meta(name), "spec": spec}))))
}

#[test]
fn a_revision_of_knative_leads_to_its_pods_whoever_its_public_service_names() {
    let mut store = store();
    listed(&mut store);
    // The public Service has the activator's endpoints.
    store.update(service("r", "http"));
    store.update(slice("r", "r-1", "http", &[("10.9.9.9", true)]));
    let mut spec = to("hello.example.com", "r", 80.into());
    spec["rules"][0]["http"]["paths"][0]["splits"][0]["appendHeaders"] =
        json!({"Knative-Serving-Namespace": "d", "Knative-Serving-Revision": "r"});
    store.update(ingress("hello", 1, spec.clone()));
    // As for any other Service, until the revision is known.
    assert_eq!(addresses(&one(&mut store)), ["10.9.9.9:8080"]);
    store.update(revision(
        "r",
        json!({"containerConcurrency": 5, "timeoutSeconds": 30, "idleTimeoutSeconds": 0, "containers": [{"readinessProbe": {"successThreshold": 1}}]}),
    ));
    store.update(private_service("r", "r-private", "http2"));
    let object = one(&mut store);
    let service = object.service.as_ref().expect("a service");
    let spec_of = &service.revisions[0];
    assert_eq!(spec_of.backend, Backend::Pods(Box::default()));
    assert!(
        object.problem.is_none(),
        "a revision at zero is started by its first request"
    );
    assert_eq!(spec_of.id.name(), "r");
    assert_eq!(spec_of.container_concurrency, Some(5));
    // queue-proxy's own 30 s are over before.
    assert_eq!(spec_of.timeouts.total, Some(Duration::from_secs(31)));
    assert_eq!(
        (spec_of.timeouts.idle, spec_of.timeouts.response_start),
        (None, None)
    );
    store.update(slice(
        "r-private",
        "r-private-1",
        "http2",
        &[("10.0.0.1", true), ("10.0.0.2", false)],
    ));
    let pods = |store: &mut Store| match &one(store).service.as_ref().expect("a service").revisions[0].backend
    {
        Backend::Pods(pods) => Pods::clone(pods),
        other => panic!("{other:?}"),
    };
    let at = |ip: &str| vec![format!("{ip}:8080").parse().expect("an address")];
    assert_eq!(
        pods(&mut store),
        Pods {
            ready: at("10.0.0.1"),
            starting: at("10.0.0.2"),
            failure: None,
            owner: Arc::default(),
        }
    );
    // The public Service flips between activator and Pods: nothing changes.
    store.update(slice("r", "r-1", "http", &[("10.0.0.1", true)]));
    assert!(store.events().is_empty());
    // What only the kubelet can probe is ready when the kubelet says so.
    store.update(revision(
        "r",
        json!({"containers": [{"readinessProbe": {"exec": {"command": ["true"]}}}]}),
    ));
    assert!(pods(&mut store).starting.is_empty());
}

/// As Serving makes them of a DomainMapping: the mapped Ingress has the Pods of the one behind our own Service.
#[test]
fn a_path_that_leads_back_to_us_is_resolved_without_a_second_hop() {
    let mut store = store();
    listed(&mut store);
    store.update(service("r", "http"));
    store.update(slice("r", "r-1", "http", &[("10.0.0.1", true)]));
    let external = json!({"type": "ExternalName", "ports": [{"name": "http2", "port": 80}],
        "externalName": "sluice-internal.sluice-system.svc.cluster.local"});
    let external: Service = of(json!({"metadata": meta("hello"), "spec": external}));
    store.update(AnyUpdate::Service(Update::Apply(external)));
    let mut mapped = to("www.example.com", "hello", 80.into());
    let path = &mut mapped["rules"][0]["http"]["paths"][0];
    path["rewriteHost"] = "hello.d.svc.cluster.local".into();
    path["appendHeaders"] = json!({"K-Original-Host": "www.example.com", "A": "outer"});
    store.update(ingress("www.example.com", 1, mapped));
    // Nobody has the host yet: the request would go to our own Service.
    let mut seen = BTreeMap::new();
    see(&mut store, &mut seen);
    assert_eq!(
        addresses(&seen["Ingress d/www.example.com"]),
        ["sluice-internal.sluice-system.svc.cluster.local:80"]
    );
    let inner = |header: &str| {
        json!({"rules": [{"hosts": ["hello.d.svc.cluster.local"], "visibility": "ClusterLocal", "http": {"paths": [
            {"path": "/x", "appendHeaders": {"A": header}, "splits": [
                {"serviceNamespace": "d", "serviceName": "r", "servicePort": 80, "percent": 100}]}]}}]})
    };
    store.update(ingress("hello", 1, inner("inner")));
    see(&mut store, &mut seen);
    let route = |seen: &BTreeMap<String, Arc<IngressObject>>| {
        let service = seen["Ingress d/www.example.com"]
            .service
            .clone()
            .expect("a service");
        service.main.routes[0].clone()
    };
    assert_eq!(addresses(&seen["Ingress d/www.example.com"]), ["10.0.0.1:8080"]);
    let first = route(&seen);
    assert_eq!(first.matches.path, Some(PathMatch::RawPrefix("/x".into())));
    assert_eq!(first.rewrite_host.as_deref(), Some("hello.d.svc.cluster.local"));
    assert_eq!(header(&first, "K-Original-Host"), "www.example.com");
    assert_eq!(header(&first, "A"), "inner");
    store.update(slice("r", "r-1", "http", &[("10.0.0.2", true)]));
    see(&mut store, &mut seen);
    assert_eq!(addresses(&seen["Ingress d/www.example.com"]), ["10.0.0.2:8080"]);
    // It follows the other Ingress, and goes back to the Service when that one is gone.
    store.update(ingress("hello", 2, inner("again")));
    see(&mut store, &mut seen);
    assert_eq!(header(&route(&seen), "A"), "again");
    store.update(AnyUpdate::Ingress(Update::Delete(of(
        json!({"metadata": meta("hello")}),
    ))));
    see(&mut store, &mut seen);
    assert_eq!(
        addresses(&seen["Ingress d/www.example.com"]),
        ["sluice-internal.sluice-system.svc.cluster.local:80"]
    );
}

#[test]
fn an_activator_serves_the_revisions_that_no_ingress_names() {
    let mut store = store_of(true);
    let mut seen = BTreeMap::new();
    listed(&mut store);
    store.update(revision("r", json!({"containerConcurrency": 5})));
    see(&mut store, &mut seen);
    assert!(seen.is_empty(), "its Pods are not known");
    store.update(service("r", "http"));
    store.update(private_service("r", "r-private", "http2"));
    store.update(slice("r-private", "r-private-1", "http2", &[("10.0.0.1", true)]));
    see(&mut store, &mut seen);
    let alone = |seen: &BTreeMap<String, Arc<IngressObject>>| {
        let object = seen.get("Revision d/r")?;
        assert!(super::activator::is_revision(object));
        Some(Arc::clone(object.service.as_ref().expect("a service")))
    };
    let shown = alone(&seen).expect("is served");
    assert!(shown.hosts.is_empty(), "no route leads to it");
    let spec_of = &shown.revisions[0];
    assert_eq!(
        (spec_of.id.to_string().as_str(), spec_of.protocol),
        ("d/r", Protocol::H2c)
    );
    assert_eq!(spec_of.container_concurrency, Some(5));
    let ready = vec!["10.0.0.1:8080".parse().expect("an address")];
    assert!(matches!(&spec_of.backend, Backend::Pods(pods) if pods.ready == ready));

    // An Ingress that names it takes it over in the same step, and gives it back.
    let mut spec = to("hello.example.com", "r", 80.into());
    spec["rules"][0]["http"]["paths"][0]["splits"][0]["appendHeaders"] =
        json!({"Knative-Serving-Namespace": "d", "Knative-Serving-Revision": "r"});
    store.update(ingress("hello", 1, spec.clone()));
    let steps = store.events();
    assert_eq!(steps.len(), 2, "{steps:?}");
    assert!(
        steps
            .iter()
            .any(|event| matches!(event, Event::Delete(key) if key.path().ends_with("r")))
    );
    seen.clear();
    store.update(slice("r-private", "r-private-1", "http2", &[]));
    see(&mut store, &mut seen);
    assert_eq!(alone(&seen), None, "with its Ingress alone");
    store.update(ingress("hello", 2, to("hello.example.com", "other", 80.into())));
    store.update(service("other", "http"));
    store.update(slice("other", "other-1", "http", &[("10.9.9.9", true)]));
    see(&mut store, &mut seen);
    let back = alone(&seen).expect("is served again");
    assert_eq!(back.revisions[0].backend, Backend::Pods(Box::default()));
    store.update(ingress("hello", 3, spec));
    see(&mut store, &mut seen);
    assert_eq!(alone(&seen), None);
    store.update(AnyUpdate::Ingress(Update::List(Vec::new())));
    see(&mut store, &mut seen);
    assert!(alone(&seen).is_some());

    // Its Pods, and its end.
    store.update(slice("r-private", "r-private-1", "http2", &[("10.0.0.1", true)]));
    see(&mut store, &mut seen);
    let pods = alone(&seen).expect("is served");
    assert!(matches!(&pods.revisions[0].backend, Backend::Pods(pods) if pods.ready == ready));
    store.update(AnyUpdate::Revision(Update::List(Vec::new())));
    see(&mut store, &mut seen);
    assert!(seen.is_empty(), "{seen:?}");
}

#[test]
fn headers_of_another_namespace_name_no_revision() {
    let mut store = store();
    listed(&mut store);
    store.update(service("r", "http"));
    store.update(slice("r", "r-1", "http", &[("10.9.9.9", true)]));
    store.update(revision("r", json!({})));
    store.update(private_service("r", "r-private", "http"));
    let mut spec = to("hello.example.com", "r", 80.into());
    spec["rules"][0]["http"]["paths"][0]["splits"][0]["appendHeaders"] =
        json!({"Knative-Serving-Namespace": "other", "Knative-Serving-Revision": "r"});
    store.update(ingress("hello", 1, spec));
    assert_eq!(addresses(&one(&mut store)), ["10.9.9.9:8080"]);
}

#[test]
fn an_object_of_another_class_is_none() {
    let mut store = store();
    listed(&mut store);
    let mut foreign = meta("foreign");
    foreign["annotations"] = json!({"networking.knative.dev/ingress.class": "theirs"});
    let spec = to("x.example.com", "a", 80.into());
    let foreign: Ingress = of(json!({"metadata": foreign, "spec": spec}));
    store.update(AnyUpdate::Ingress(Update::Apply(foreign)));
    let bare: Ingress = of(json!({"metadata": meta("bare"), "spec": spec}));
    store.update(AnyUpdate::Ingress(Update::Apply(bare)));
    let events = store.events();
    assert!(
        events
            .iter()
            .all(|event| matches!(event, Event::Init | Event::InitDone)),
        "{events:?}"
    );
}

#[test]
fn mistakes_are_told_with_their_place() {
    for (spec, kind, message) in [
        (json!({}), ProblemKind::Invalid, "spec.rules is empty"),
        (
            json!({"rules": [{"hosts": ["a.b"]}]}),
            ProblemKind::Invalid,
            "spec.rules[0].http.paths is empty",
        ),
        (
            json!({"rules": [{"hosts": ["a.b"], "http": {"paths": [{}]}}]}),
            ProblemKind::Invalid,
            "traffic split percentage must total to 100, but was 0",
        ),
        (
            json!({"rules": [{"hosts": ["a.b"], "http": {"paths": [{"splits": [
                {"serviceNamespace": "d", "serviceName": "a", "servicePort": 80, "percent": 50}]}]}}]}),
            ProblemKind::Invalid,
            "traffic split percentage must total to 100, but was 50",
        ),
        (
            json!({"rules": [{"hosts": ["a.b"], "http": {"paths": [{"splits": [
                {"serviceNamespace": "d", "serviceName": "a", "servicePort": 80, "percent": 101}]}]}}]}),
            ProblemKind::Invalid,
            "spec.rules[0].http.paths[0].splits[0].percent 101 is not in 0 to 100",
        ),
        (
            json!({"rules": [{"hosts": ["a.b"], "http": {"paths": [{"splits": [
                {"serviceNamespace": "other", "serviceName": "a", "servicePort": 80}]}]}}]}),
            ProblemKind::Invalid,
            "service namespace must match ingress namespace",
        ),
        (
            to("a.b", "nobody", 80.into()),
            ProblemKind::Missing,
            "Service d/nobody is not there",
        ),
        (
            to("a.b", "a", 81.into()),
            ProblemKind::Missing,
            "Service d/a has no port 81",
        ),
        (
            to("a b", "a", 80.into()),
            ProblemKind::Invalid,
            "spec.rules[0].hosts[0] 'a b'",
        ),
        (
            json!({"httpOption": "Never", "rules": [{}]}),
            ProblemKind::Invalid,
            "spec.httpOption 'Never' is neither Enabled nor Redirected",
        ),
    ] {
        let mut store = store();
        listed(&mut store);
        store.update(service("a", "http"));
        store.update(slice("a", "a-1", "http", &[("10.0.0.1", true)]));
        store.update(ingress("hello", 1, spec));
        let object = one(&mut store);
        let problem = object.problem.as_ref().expect("a problem");
        assert_eq!(problem.kind, kind, "{problem}");
        assert!(problem.message.contains(message), "{problem} is not {message}");
        assert!(object.service.is_none());
    }
}

#[test]
fn an_ingress_that_is_made_again_is_a_younger_one() {
    let mut store = store();
    listed(&mut store);
    store.update(service("a", "http"));
    store.update(slice("a", "a-1", "http", &[("10.0.0.1", true)]));
    let spec = to("hello.example.com", "a", 80.into());
    store.update(ingress("hello", 1, spec.clone()));
    let first = store.events();
    let mut again = meta("hello");
    again["uid"] = "another".into();
    again["creationTimestamp"] = "2026-11-30T00:00:09Z".into();
    again["annotations"] = json!({"networking.knative.dev/ingress.class": CLASS});
    let again: Ingress = of(json!({"metadata": again, "spec": spec}));
    store.update(AnyUpdate::Ingress(Update::Apply(again)));
    let events = store.events();
    let (Event::Apply(old, _), [Event::Delete(gone), Event::Apply(new, _)]) = (&first[1], &*events) else {
        panic!("{events:?}");
    };
    assert!(old == gone && new > old);
}

proptest! {
    /// Whatever the order of updates, the same objects end in the same Ingresses.
    #[test]
    fn order_does_not_matter(
        steps in prop::collection::vec((0..3usize, 0..4usize, any::<bool>()), 1..40),
        seeds in prop::collection::vec(any::<prop::sample::Index>(), 12),
    ) {
        let names = ["a", "b", "c"];
        // The last state of each object, as steps leave it.
        let mut services = [false; 3];
        let mut slices = [0usize; 3];
        let mut ingresses = [Some(0), Some(1), None];
        let all = ["10.0.0.1", "10.0.0.2", "10.0.0.3"];
        let service_update = |n: usize, there: bool| match there {
            true => service(names[n], "http"),
            false => AnyUpdate::Service(Update::Delete(of(json!({"metadata": meta(names[n])})))),
        };
        let slice_update = |n: usize, count: usize| {
            let some: Vec<(&str, bool)> = all[..count].iter().map(|ip| (*ip, true)).collect();
            slice(names[n], &format!("{}-1", names[n]), "http", &some)
        };
        let ingress_update = |n: usize, to_service: Option<usize>| match to_service {
            Some(target) => ingress(names[n], target as i64, to(&format!("{}.example.com", names[n]), names[target], 80.into())),
            None => AnyUpdate::Ingress(Update::Delete(of(json!({"metadata": meta(names[n])})))),
        };
        let mut stepwise = store();
        listed(&mut stepwise);
        let mut seen = BTreeMap::new();
        for (n, what, there) in steps {
            match what {
                0 => { services[n] = there; stepwise.update(service_update(n, there)); }
                1 => { slices[n] = usize::from(there) * 2; stepwise.update(slice_update(n, slices[n])); }
                _ => {
                    ingresses[n] = there.then_some((n + what) % 3);
                    stepwise.update(ingress_update(n, ingresses[n]));
                }
            }
            see(&mut stepwise, &mut seen);
        }
        for (n, target) in ingresses.iter().enumerate() {
            stepwise.update(ingress_update(n, *target));
        }
        see(&mut stepwise, &mut seen);
        // The same objects, at once and in another order.
        let mut updates: Vec<AnyUpdate> = Vec::new();
        for (n, target) in ingresses.iter().enumerate() {
            updates.push(service_update(n, services[n]));
            updates.push(slice_update(n, slices[n]));
            updates.push(ingress_update(n, *target));
        }
        let mut shuffled = store();
        listed(&mut shuffled);
        for seed in seeds {
            if !updates.is_empty() {
                let at = seed.index(updates.len());
                shuffled.update(updates.swap_remove(at));
            }
        }
        for update in updates {
            shuffled.update(update);
        }
        let mut fresh = BTreeMap::new();
        see(&mut shuffled, &mut fresh);
        prop_assert_eq!(seen.keys().collect::<Vec<_>>(), fresh.keys().collect::<Vec<_>>());
        for (name, object) in &seen {
            // A version that was good once may be served on.
            if fresh[name].problem.is_none() {
                prop_assert_eq!(&object.service, &fresh[name].service);
                prop_assert!(object.problem.is_none());
            }
        }
    }
}

//! Fixtures: tables, revisions and requests to measure with.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sluice_gateway::registry::{NoObserver, Registry};
use sluice_model::{
    AccessLogFormat, AdminSettings, Backend, Delta, Demand, DemandSink, DrainSettings, EndpointAddr,
    EndpointTarget, HostClaim, HostPattern, HttpOption, Limits, ListenerSettings, Percent, Protocol,
    QueueLimits, QueueTotals, RequestView, RevisionId, RevisionSpec, RevisionTimeouts, Rule, Service,
    ServiceId, Settings, Snapshot, SnapshotBuilder, TrafficSplit, TrafficTarget, Visibility,
};

/// A demand sink that does nothing: no revision here is ever at zero.
#[derive(Debug)]
pub(crate) struct NoDemand;

impl DemandSink for NoDemand {
    fn demand(&self, _: Demand) {}
}

/// A GET without header fields that routing reads.
#[derive(Debug)]
pub(crate) struct Get;

impl RequestView for Get {
    fn method(&self) -> &str {
        "GET"
    }

    fn path(&self) -> &str {
        "/api/orders"
    }

    fn header(&self, _: &str) -> Option<&[u8]> {
        None
    }
}

/// The host of the `nth` service.
pub(crate) fn host(nth: usize) -> String {
    format!("greeter-{nth:06}.team-{}.apps.example.com", nth % 97)
}

/// A table with one service for each host, each with its own revision; every tenth service claims a wildcard as well.
pub(crate) fn snapshot(services: usize) -> Snapshot {
    assemble(revisions(services))
}

/// The revisions that [`assemble`] takes, to be made outside of the measured loop.
pub(crate) fn revisions(services: usize) -> Vec<RevisionSpec> {
    (0..services)
        .map(|nth| revision(&format!("greeter-{nth}")))
        .collect()
}

/// Builds the Snapshot of [`snapshot`] from its revisions.
pub(crate) fn assemble(revisions: Vec<RevisionSpec>) -> Snapshot {
    let mut builder = SnapshotBuilder::new(settings());
    for (nth, spec) in revisions.into_iter().enumerate() {
        let name = format!("greeter-{nth}");
        let target = target(spec.id.clone(), 0, Percent::WHOLE);
        let mut hosts = vec![claim(&host(nth))];
        if nth % 10 == 0 {
            hosts.push(claim(&format!("*.{}", host(nth))));
        }
        let service = service(&name, hosts, vec![spec], vec![target]);
        builder.service(service).expect("distinct hosts");
    }
    builder.build()
}

/// The table of [`snapshot`], with another limit in every revision.
pub(crate) fn revised(services: usize) -> Snapshot {
    let revisions = revisions(services).into_iter().map(|mut spec| {
        spec.container_concurrency = Some(100);
        spec
    });
    assemble(revisions.collect())
}

/// A delta with another limit in the revision of the `nth` service.
pub(crate) fn changed<L: Clone>(table: &Snapshot<L>, nth: usize) -> Delta {
    let known = table
        .service(&service_id(&format!("greeter-{nth}")))
        .expect("is in it");
    let mut service = Service::clone(&known.service);
    let spec = Arc::make_mut(&mut service.revisions[0]);
    spec.container_concurrency = spec.container_concurrency.xor(Some(100));
    Delta {
        settings: Arc::clone(table.settings()),
        services: vec![Arc::new(service)],
        removed: Vec::new(),
    }
}

/// One service, `split.example.com`, with equal shares of this number of revisions.
pub(crate) fn split_snapshot(revisions: u32) -> Snapshot {
    let names: Vec<String> = (0..revisions).map(|nth| format!("greeter-{nth}")).collect();
    let specs = names.iter().map(|name| revision(name)).collect();
    let mut builder = SnapshotBuilder::new(settings());
    let targets = names.iter().enumerate();
    let targets = targets.map(|(slot, name)| target(id(name), slot, Percent::WHOLE / revisions));
    let hosts = vec![claim("split.example.com")];
    let service = service("split", hosts, specs, targets.collect());
    builder.service(service).expect("one host");
    builder.build()
}

/// Addresses where instances would listen.
pub(crate) fn addresses(count: u16) -> Vec<EndpointAddr> {
    (0..count)
        .map(|nth| EndpointAddr::Tcp(([127, 0, 0, 1], 9_000 + nth).into()))
        .collect()
}

/// Queue limits for a queue that is never used.
pub(crate) fn queue() -> QueueLimits {
    QueueLimits {
        depth: 1_000,
        bytes: 64 << 20,
        timeout: Duration::from_secs(60),
    }
}

pub(crate) fn totals() -> QueueTotals {
    QueueTotals {
        depth: 20_000,
        bytes: 1 << 30,
    }
}

pub(crate) fn service_id(name: &str) -> ServiceId {
    ServiceId::parse("default", name).expect("a name")
}

pub(crate) fn id(name: &str) -> RevisionId {
    RevisionId::parse("default", name).expect("a name")
}

fn claim(host: &str) -> HostClaim {
    HostClaim {
        pattern: HostPattern::parse(host).expect("a host"),
        rule: 0,
        tag: None,
    }
}

fn target(revision: RevisionId, slot: usize, hundredths: u32) -> TrafficTarget {
    TrafficTarget {
        revision,
        slot,
        percent: Percent::from_hundredths(hundredths).expect("a share"),
        tag: None,
        append_headers: Arc::default(),
    }
}

fn service(
    name: &str,
    hosts: Vec<HostClaim>,
    revisions: Vec<RevisionSpec>,
    targets: Vec<TrafficTarget>,
) -> Service {
    Service {
        id: service_id(name),
        sticky: None,
        cold: None,
        no_wake: None,
        paused: false,
        hosts,
        revisions: revisions.into_iter().map(Arc::new).collect(),
        main: Rule {
            visibility: Visibility::External,
            http_option: HttpOption::Enabled,
            routes: Vec::new(),
            split: TrafficSplit::new(targets).expect("adds up"),
        },
        further: Box::default(),
        ingress: None,
    }
}

fn revision(name: &str) -> RevisionSpec {
    RevisionSpec {
        id: id(name),
        service: service_id("greeter"),
        backend: Backend::Static {
            targets: addresses(2).into_iter().map(EndpointTarget::Address).collect(),
            activated: false,
        },
        settings: Arc::new(sluice_model::RevisionSettings {
            protocol: Protocol::Http1,
            max_streams_per_connection: sluice_model::DEFAULT_STREAMS_PER_CONNECTION,
            tls: sluice_model::BackendTls::default(),
            upgrades: None,
            readiness: None,
            start_timeout: Duration::from_secs(60),
            container_concurrency: None,
            timeouts: RevisionTimeouts {
                total: Some(Duration::from_secs(300)),
                response_start: None,
                idle: None,
                max_stream_age: None,
            },
            queue: queue(),
            request_headers: BTreeMap::new(),
            needs: Vec::new(),
        }),
    }
}

/// The settings of an empty configuration.
pub(crate) fn settings() -> Settings {
    Settings {
        domain: "localhost".into(),
        listeners: vec![ListenerSettings {
            address: ([127, 0, 0, 1], 0).into(),
            visibility: Visibility::External,
            tls: None,
            proxy_protocol: None,
            http2: sluice_model::Http2Settings::default(),
            activator: None,
        }],
        trusted_proxies: Vec::new(),
        tag_header: false,
        access_log: AccessLogFormat::Off,
        error_detail: false,
        limits: Limits {
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            max_header_bytes: 64 << 10,
            max_headers: 128,
            max_uri_bytes: 16 << 10,
            max_body_bytes: None,
            body_read_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
            max_connections: None,
            max_connections_per_client: None,
            max_connection_age: None,
            min_body_rate: None,
            max_concurrent_streams: 100,
            max_stream_resets: None,
            max_control_frames: None,
            upstream_idle_timeout: Duration::from_secs(4),
            connect_timeout: Duration::from_secs(2),
            max_hops: 10,
        },
        queue: totals(),
        drain: DrainSettings {
            delay: Duration::ZERO,
            timeout: Duration::from_secs(300),
        },
        health: None,
        admin: AdminSettings::at(std::net::SocketAddr::from(([127, 0, 0, 1], 0))),
        dns_refresh: Duration::from_secs(30),
        state_directory: None,
        retention: sluice_model::Retention::default(),
    }
}

/// A registry with this table.
pub(crate) fn registry(table: &Snapshot, runtime: &tokio::runtime::Runtime) -> Registry {
    let observe = Box::new(|_: &_| Arc::new(NoObserver) as _);
    let handle = runtime.handle().clone();
    let registry = Registry::new(table.settings(), Arc::new(NoDemand), observe, handle);
    let delta = Delta::between(&registry.reader().load(), table);
    registry.apply(&delta).expect("fits");
    registry
}

/// The runtime of live state; the runtime lives as long as the operation that was set up with it.
pub(crate) fn runtime() -> Arc<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    Arc::new(runtime.expect("a runtime"))
}

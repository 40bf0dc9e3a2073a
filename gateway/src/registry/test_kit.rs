//! What tests of throttler, registry and upkeep share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sluice_model::{
    AccessLogFormat, Backend, Delta, Demand, DemandSink, DrainSettings, EndpointAddr, EndpointTarget,
    HttpOption, Limits, ListenerSettings, Percent, Protocol, QueueLimits, QueueTotals, RevisionId,
    RevisionSpec, RevisionTimeouts, Service, ServiceId, Settings, Snapshot, SnapshotBuilder, TrafficSplit,
    TrafficTarget, Visibility,
};
use tokio::runtime::Handle;

use super::{NoObserver, Registry};

/// Keeps demand in order of arrival.
#[derive(Debug, Default)]
pub(crate) struct Demands(Mutex<Vec<Demand>>);

impl Demands {
    pub(crate) fn take(&self) -> Vec<Demand> {
        std::mem::take(&mut self.0.lock())
    }
}

impl DemandSink for Demands {
    fn demand(&self, demand: Demand) {
        self.0.lock().push(demand);
    }
}

/// Polls until it holds; fails after ten seconds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let polled = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(10), polled).await;
    assert!(in_time.is_ok(), "not in time: {what}");
}

pub(crate) fn id(name: &str) -> RevisionId {
    RevisionId::parse("default", name).expect("a name")
}

pub(crate) fn queue() -> QueueLimits {
    QueueLimits {
        depth: 100,
        bytes: 1 << 20,
        timeout: Duration::from_secs(60),
    }
}

pub(crate) fn address(port: u16) -> EndpointAddr {
    EndpointAddr::Tcp(([127, 0, 0, 1], port).into())
}

pub(crate) fn fixed(ports: &[u16]) -> Backend {
    let targets = ports.iter().map(|port| EndpointTarget::Address(address(*port)));
    Backend::Static {
        targets: targets.collect(),
        activated: false,
    }
}

pub(crate) fn spec(name: &str, backend: Backend) -> RevisionSpec {
    RevisionSpec {
        id: id(name),
        service: ServiceId::parse("default", "shop").expect("a name"),
        backend,
        settings: Arc::new(sluice_model::RevisionSettings {
            protocol: Protocol::Http1,
            max_streams_per_connection: sluice_model::DEFAULT_STREAMS_PER_CONNECTION,
            tls: sluice_model::BackendTls::default(),
            upgrades: None,
            readiness: None,
            start_timeout: Duration::from_secs(10),
            container_concurrency: None,
            timeouts: RevisionTimeouts {
                total: None,
                response_start: None,
                idle: None,
                max_stream_age: None,
            },
            queue: queue(),
            request_headers: BTreeMap::new(),
        }),
    }
}

pub(crate) fn settings() -> Settings {
    Settings {
        domain: "localhost".into(),
        listeners: vec![ListenerSettings {
            address: ([127, 0, 0, 1], 0).into(),
            visibility: Visibility::External,
            tls: None,
            proxy_protocol: None,
            http2: sluice_model::Http2Settings::default(),
        }],
        trusted_proxies: vec![],
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
        queue: QueueTotals {
            depth: 1_000,
            bytes: 1 << 30,
        },
        drain: DrainSettings {
            delay: Duration::ZERO,
            timeout: Duration::from_secs(300),
        },
        health: None,
        admin: ([127, 0, 0, 1], 0).into(),
        dns_refresh: Duration::from_secs(30),
    }
}

/// A registry with this table.
pub(crate) fn registry(first: &Snapshot, demand: Arc<dyn DemandSink>, runtime: Handle) -> Registry {
    let observe = Box::new(|_: &RevisionSpec| Arc::new(NoObserver) as _);
    let registry = Registry::new(first.settings(), demand, observe, runtime);
    apply(&registry, first);
    registry
}

/// Makes the table this one.
pub(crate) fn apply(registry: &Registry, next: &Snapshot) -> Arc<super::Snapshot> {
    let change = Delta::between(&registry.reader().load(), next);
    registry.apply(&change).expect("fits")
}

/// Services as the revisions name them, each of which gives its revisions equal shares (the first
/// one what is left over).
pub(crate) fn snapshot(revisions: Vec<RevisionSpec>) -> Arc<Snapshot> {
    let mut builder = SnapshotBuilder::new(settings());
    for service in services(revisions) {
        builder.service(service).expect("distinct names");
    }
    Arc::new(builder.build())
}

fn services(revisions: Vec<RevisionSpec>) -> Vec<Service> {
    let mut groups: BTreeMap<ServiceId, Vec<Arc<RevisionSpec>>> = BTreeMap::new();
    for revision in revisions {
        let group = groups.entry(revision.service.clone()).or_default();
        group.push(Arc::new(revision));
    }
    let groups = groups.into_iter();
    groups.map(|(id, revisions)| service(id, revisions)).collect()
}

fn service(id: ServiceId, revisions: Vec<Arc<RevisionSpec>>) -> Service {
    let count = u32::try_from(revisions.len()).expect("few");
    let share = Percent::WHOLE / count;
    let targets = revisions.iter().enumerate().map(|(slot, spec)| TrafficTarget {
        revision: spec.id.clone(),
        slot,
        percent: Percent::from_hundredths(match slot {
            0 => Percent::WHOLE - share * (count - 1),
            _ => share,
        })
        .expect("a share"),
        tag: None,
    });
    Service {
        id,
        visibility: Visibility::External,
        http_option: HttpOption::Enabled,
        sticky: None,
        hosts: vec![],
        split: TrafficSplit::new(targets.collect()).expect("adds up"),
        revisions,
        routes: vec![],
    }
}

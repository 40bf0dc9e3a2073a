//! What tests of throttler, registry and upkeep share.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sluice_model::{
    AccessLogFormat, Backend, Demand, DemandSink, DrainSettings, EndpointAddr, EndpointTarget, HttpOption,
    Limits, ListenerSettings, Percent, Protocol, QueueLimits, QueueTotals, RevisionId, RevisionSpec,
    RevisionTimeouts, Service, ServiceId, Settings, Snapshot, SnapshotBuilder, TrafficSplit, TrafficTarget,
    Visibility,
};

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
        request_headers: std::collections::BTreeMap::new(),
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

/// One service that gives each of these revisions an equal share.
pub(crate) fn snapshot(revisions: Vec<RevisionSpec>) -> Arc<Snapshot> {
    let names: Vec<RevisionId> = revisions.iter().map(|r| r.id.clone()).collect();
    let mut builder = SnapshotBuilder::new(settings(), revisions).expect("distinct names");
    let share = Percent::WHOLE / u32::try_from(names.len().max(1)).expect("few");
    let targets = names.iter().map(|name| TrafficTarget {
        revision: name.clone(),
        slot: builder.slot(name).expect("is in it"),
        percent: Percent::from_hundredths(share).expect("a share"),
        tag: None,
    });
    if let Ok(split) = TrafficSplit::new(targets.collect()) {
        let service = Service {
            id: ServiceId::parse("default", "shop").expect("a name"),
            visibility: Visibility::External,
            http_option: HttpOption::Enabled,
            sticky: None,
            routes: vec![],
            split,
        };
        builder.service(service, []).expect("fits");
    }
    Arc::new(builder.build())
}

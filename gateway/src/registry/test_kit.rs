//! Fixtures for tests of throttler, registry, probes and DNS.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sluice_model::{
    Backend, Delta, Demand, DemandSink, EndpointAddr, EndpointTarget, HttpOption, Limits, Percent,
    QueueLimits, QueueTotals, RevisionId, RevisionSettings, RevisionSpec, Rule, Service, ServiceId, Settings,
    Snapshot, SnapshotBuilder, TrafficSplit, TrafficTarget, Visibility, test_util,
};
use tokio::runtime::Handle;

use super::{NoObserver, Registry};

/// A demand sink that records demand in order of arrival.
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

/// Polls until the condition holds; fails after ten seconds.
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
        settings: Arc::new(RevisionSettings {
            start_timeout: Duration::from_secs(10),
            queue: queue(),
            ..test_util::revision_settings()
        }),
    }
}

/// The documented settings, but that a lookup of a name fails sooner.
pub(crate) fn settings() -> Settings {
    Settings {
        limits: Limits {
            connect_timeout: Duration::from_secs(2),
            ..test_util::limits()
        },
        queue: QueueTotals {
            depth: 1_000,
            bytes: 1 << 30,
        },
        ..test_util::settings()
    }
}

/// A registry with this table.
pub(crate) fn registry(first: &Snapshot, demand: Arc<dyn DemandSink>, runtime: Handle) -> Registry {
    let observe = Box::new(|_: &RevisionSpec| Arc::new(NoObserver) as _);
    let registry = Registry::new(first.settings(), demand, observe, runtime);
    apply(&registry, first);
    registry
}

/// Replaces the table by this one.
pub(crate) fn apply(registry: &Registry, next: &Snapshot) -> Arc<super::Snapshot> {
    let change = Delta::between(&registry.reader().load(), next);
    registry.apply(&change).expect("fits")
}

/// A table with these services, which may list the same revisions.
pub(crate) fn sharing(services: &[(&str, &[&Arc<RevisionSpec>])]) -> Arc<Snapshot> {
    let mut builder = SnapshotBuilder::new(settings());
    for (name, revisions) in services {
        let id = ServiceId::parse("default", name).expect("a name");
        let revisions = revisions.iter().map(|spec| Arc::clone(spec)).collect();
        builder.service(service(id, revisions)).expect("fits");
    }
    Arc::new(builder.build())
}

/// A table with the services that the revisions name. Each gives its revisions equal shares, the first one the
/// remainder.
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
        append_headers: Arc::default(),
    });
    let split = TrafficSplit::new(targets.collect()).expect("adds up");
    Service {
        id,
        sticky: None,
        cold: None,
        no_wake: None,
        paused: false,
        hosts: vec![],
        revisions,
        main: Rule {
            visibility: Visibility::External,
            http_option: HttpOption::Enabled,
            routes: vec![],
            split,
        },
        further: Box::default(),
        ingress: None,
    }
}

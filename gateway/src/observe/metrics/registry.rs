//! The registry of all metrics.
//!
//! Series of the process and of its listeners are registered once and stay; their label sets are fixed.
//! Series of services and revisions live exactly as long as somebody holds their handle: the registry
//! keeps them weakly, so a removed revision vanishes with its last request, without a timer and without a
//! call that could be forgotten. `metrics-exporter-prometheus` was rejected for that reason: the exporter can
//! only expire idle series, and would also drop the counters of a revision that rests at zero.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use metrics::{Counter, Gauge};
use parking_lot::Mutex;
use sluice_model::{RevisionId, ServiceId};

use super::exposition::{self, Exposition};
use super::families::{Family, Kind};
use super::revision::{RevisionMetrics, ServiceMetrics};
use super::{LiveGauges, certificates, knative, replicas, rollouts, scaling};

/// Every series, and the handles to them.
pub(super) struct Registry {
    registered: Mutex<BTreeMap<&'static str, Registered>>,
    /// Requests without a service: all name labels are empty.
    pub(super) unrouted: ServiceMetrics,
    pub(super) weak: Mutex<WeakSeries>,
}

/// A family with series that stay.
struct Registered {
    family: &'static Family,
    /// By labels in text form. A gauge's number is the bits of an `f64`, as the `metrics` facade stores gauges.
    series: BTreeMap<String, Arc<AtomicU64>>,
}

/// Handles of revisions, with their names.
type NamedRevisions = Vec<(RevisionId, Arc<RevisionMetrics>)>;

impl Registry {
    pub(super) fn new() -> Self {
        Self {
            registered: Mutex::default(),
            unrouted: ServiceMetrics::new("", ""),
            weak: Mutex::default(),
        }
    }

    /// The handle of a counter that is exposed from now on. `labels` in text form, without the braces.
    pub(super) fn counter(&self, family: &'static Family, labels: String) -> Counter {
        debug_assert_eq!(family.kind, Kind::Counter);
        Counter::from_arc(self.series(family, labels))
    }

    /// The handle of a gauge that is exposed from now on.
    pub(super) fn gauge(&self, family: &'static Family, labels: String) -> Gauge {
        debug_assert_eq!(family.kind, Kind::Gauge);
        Gauge::from_arc(self.series(family, labels))
    }

    fn series(&self, family: &'static Family, labels: String) -> Arc<AtomicU64> {
        let mut registered = self.registered.lock();
        let known = registered.entry(family.name).or_insert_with(|| Registered {
            family,
            series: BTreeMap::new(),
        });
        Arc::clone(known.series.entry(labels).or_default())
    }

    /// The counters of a service; the same ones as long as anybody holds them.
    pub(super) fn service(&self, service: &ServiceId) -> Arc<ServiceMetrics> {
        self.weak.lock().service(service)
    }

    /// The handles of a revision; the same ones as long as anybody holds them.
    pub(super) fn revision(&self, service: &ServiceId, revision: &RevisionId) -> Arc<RevisionMetrics> {
        self.weak.lock().revision(service, revision)
    }

    /// The handles of a revision that somebody holds.
    pub(super) fn known(&self, service: &ServiceId, revision: &RevisionId) -> Option<Arc<RevisionMetrics>> {
        let key = (service.clone(), revision.clone());
        self.weak.lock().revisions.get(&key).and_then(Weak::upgrade)
    }

    /// Everything that services and revisions have counted.
    pub(super) fn alive(&self) -> (Vec<Arc<ServiceMetrics>>, NamedRevisions) {
        let mut weak = self.weak.lock();
        let (services, _) = weak.alive();
        let revisions = weak.revisions.iter();
        let revisions = revisions.filter_map(|((_, id), metrics)| Some((id.clone(), metrics.upgrade()?)));
        (services, revisions.collect())
    }

    /// All series in Prometheus's text format, with the gauges of this moment.
    pub(super) fn expose(&self, gauges: &LiveGauges) -> String {
        let (services, revisions) = self.weak.lock().alive();
        let mut out = Exposition::default();
        let services = std::iter::once(&self.unrouted).chain(services.iter().map(AsRef::as_ref));
        exposition::counted(&mut out, services, &revisions);
        exposition::gauges(&mut out, gauges);
        knative::expose(&mut out, gauges);
        scaling::expose(&mut out, gauges);
        rollouts::expose(&mut out, &gauges.rollouts);
        replicas::expose(&mut out, &gauges.replicas);
        certificates::expose(&mut out, &gauges.certificates);
        for registered in self.registered.lock().values() {
            let mut samples = out.family(registered.family);
            for (labels, value) in &registered.series {
                let value = value.load(Ordering::Relaxed);
                match registered.family.kind {
                    Kind::Gauge => samples.sample(format_args!("{labels}"), f64::from_bits(value)),
                    Kind::Counter | Kind::Histogram => samples.sample(format_args!("{labels}"), value),
                }
            }
        }
        out.into_text()
    }
}

/// Series by service and revision, known as long as somebody holds them.
#[derive(Default)]
pub(super) struct WeakSeries {
    pub(super) services: BTreeMap<ServiceId, Weak<ServiceMetrics>>,
    pub(super) revisions: BTreeMap<(ServiceId, RevisionId), Weak<RevisionMetrics>>,
    /// How many entries call for a sweep; keeps dead ones from piling up where nobody scrapes.
    sweep_at: usize,
}

impl WeakSeries {
    fn sweep(&mut self) {
        self.services.retain(|_, s| s.strong_count() > 0);
        self.revisions.retain(|_, r| r.strong_count() > 0);
        self.sweep_at = 2 * (self.services.len() + self.revisions.len()) + 64;
    }

    fn sweep_if_due(&mut self) {
        if self.services.len() + self.revisions.len() >= self.sweep_at {
            self.sweep();
        }
    }

    fn service(&mut self, service: &ServiceId) -> Arc<ServiceMetrics> {
        if let Some(known) = self.services.get(service).and_then(Weak::upgrade) {
            return known;
        }
        self.sweep_if_due();
        let new = Arc::new(ServiceMetrics::new(service.namespace(), service.name()));
        self.services.insert(service.clone(), Arc::downgrade(&new));
        new
    }

    fn revision(&mut self, service: &ServiceId, revision: &RevisionId) -> Arc<RevisionMetrics> {
        let key = (service.clone(), revision.clone());
        if let Some(known) = self.revisions.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        self.sweep_if_due();
        let new = Arc::new(RevisionMetrics::new(self.service(service), revision));
        self.revisions.insert(key, Arc::downgrade(&new));
        new
    }

    /// All series that somebody holds; the rest is forgotten.
    fn alive(&mut self) -> (Vec<Arc<ServiceMetrics>>, Vec<Arc<RevisionMetrics>>) {
        self.sweep();
        let services = self.services.values().filter_map(Weak::upgrade).collect();
        let revisions = self.revisions.values().filter_map(Weak::upgrade).collect();
        (services, revisions)
    }
}

//! The numbers of the user contract.
//!
//! Series of services and revisions live exactly as long as somebody holds their handle: the
//! registry here knows them weakly, so a removed revision vanishes with its last request, without
//! a timer and without a call that could be forgotten. `metrics-exporter-prometheus` can only
//! expire series that were idle, which would also drop the counters of a revision that rests at
//! zero; it keeps the process-wide ones, whose label sets are fixed.
//!
//! Nothing is global: a [`Metrics`] is a value, and tests have one each.

mod certificates;
mod codes;
mod connections;
mod latency;
mod revision;
mod stripes;
mod text;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use metrics::{Counter, Gauge, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use parking_lot::Mutex;
use sluice_model::{EndpointAddr, Generation, RevisionId, ServiceId, StatusSource};

use crate::h2::StreamRefusal;

pub use revision::{ActivationResult, RevisionMetrics, ServiceMetrics};

use text::Gauges;

const GENERATION: &str = "sluice_config_generation";
const RELOADS: &str = "sluice_config_reloads_total";
const CONNECTIONS: &str = "sluice_connections";
const CLOSED: &str = "sluice_connections_closed_total";
const PAUSES: &str = "sluice_accept_pauses_total";
const REFUSED: &str = "sluice_streams_refused_total";
const DROPPED: &str = "sluice_log_lines_dropped_total";

/// How one load of the configuration ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReloadResult {
    /// A new generation was published.
    Applied,
    /// The content was the same.
    Unchanged,
    /// It had mistakes; the last good generation serves on.
    Rejected,
}

impl ReloadResult {
    const ALL: [Self; 3] = [Self::Applied, Self::Unchanged, Self::Rejected];

    fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Unchanged => "unchanged",
            Self::Rejected => "rejected",
        }
    }
}

/// What a revision carries right now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevisionLoad {
    /// The service it belongs to.
    pub service: ServiceId,
    /// The revision.
    pub revision: RevisionId,
    /// Requests and streams that hold a Permit.
    pub in_flight: u32,
    /// Waiters.
    pub queued: u32,
    /// Endpoints that may be used.
    pub ready: u32,
    /// It is no longer configured and only finishes what it has.
    pub leaving: bool,
}

/// What an endpoint is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointCondition {
    /// Known, not ready yet.
    Starting,
    /// May be used.
    Ready,
    /// Out for a while after failures.
    Ejected,
    /// Finishes what it has.
    Draining,
}

impl EndpointCondition {
    /// Its name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Ejected => "ejected",
            Self::Draining => "draining",
        }
    }
}

/// One endpoint of a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointLoad {
    /// Where it is.
    pub address: EndpointAddr,
    /// What it is good for.
    pub condition: EndpointCondition,
    /// Requests and streams on it.
    pub in_flight: u32,
}

/// Live numbers, asked for at a scrape or an API call, so that keeping them costs nothing in
/// between. Implemented by the registry.
pub trait LoadView: Send + Sync {
    /// One entry per revision that serves or still drains.
    fn loads(&self) -> Vec<RevisionLoad>;

    /// The endpoints of one revision; empty when it is not known.
    fn endpoints(&self, revision: &RevisionId) -> Vec<EndpointLoad>;

    /// Tables not yet dropped: the one that is served, and those that requests still hold.
    fn tables(&self) -> usize;

    /// One entry per listener that terminates TLS.
    fn certificates(&self) -> Vec<ListenerCertificates>;
}

/// When a listener's certificates end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerCertificates {
    /// The listener, as bound.
    pub listener: SocketAddr,
    /// Each certificate's file and the end of its validity.
    pub ends: Vec<(PathBuf, SystemTime)>,
}

/// All metrics of one gateway; cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

struct Inner {
    recorder: PrometheusRecorder,
    generation: Gauge,
    reloads: [Counter; 3],
    dropped: Counter,
    refused: [Counter; 2],
    unrouted: ServiceMetrics,
    live: Mutex<Live>,
}

#[derive(Default)]
struct Live {
    services: BTreeMap<ServiceId, Weak<ServiceMetrics>>,
    revisions: BTreeMap<(ServiceId, RevisionId), Weak<RevisionMetrics>>,
    /// How many entries call for a sweep; keeps dead ones from piling up where nobody scrapes.
    sweep_at: usize,
}

impl Live {
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
}

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// An empty set.
    pub fn new() -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        let gauge = |name: &'static str, help: &'static str| {
            recorder.describe_gauge(name.into(), None, help.into());
        };
        let counter = |name: &'static str, help: &'static str| {
            recorder.describe_counter(name.into(), None, help.into());
        };
        gauge(GENERATION, "The generation of the Snapshot that is served.");
        counter(RELOADS, "Loads of the configuration by how they ended.");
        gauge(CONNECTIONS, "Open client connections.");
        counter(CLOSED, "Client connections that were closed, by why.");
        counter(
            PAUSES,
            "Times that accepting paused because descriptors or memory ran out.",
        );
        counter(
            REFUSED,
            "HTTP/2 streams refused before they were a request, by why.",
        );
        counter(
            DROPPED,
            "Lines of access log and log that were lost because nobody took them.",
        );
        let reloads = ReloadResult::ALL.map(|result| {
            let labels = vec![Label::from_static_parts("result", result.as_str())];
            recorder.register_counter(&Key::from_parts(RELOADS, labels), &METADATA)
        });
        let refused = ["stream_limit", "protocol_error"].map(|reason| {
            let labels = vec![Label::from_static_parts("reason", reason)];
            recorder.register_counter(&Key::from_parts(REFUSED, labels), &METADATA)
        });
        Self {
            inner: Arc::new(Inner {
                generation: recorder.register_gauge(&Key::from_static_name(GENERATION), &METADATA),
                reloads,
                refused,
                dropped: recorder.register_counter(&Key::from_static_name(DROPPED), &METADATA),
                recorder,
                unrouted: ServiceMetrics::new("", ""),
                live: Mutex::default(),
            }),
        }
    }

    /// The counters of requests that no service was found for: all name labels are empty.
    pub fn unrouted(&self) -> &ServiceMetrics {
        &self.inner.unrouted
    }

    /// The counters of a service; the same ones as long as anybody holds them.
    pub fn service(&self, service: &ServiceId) -> Arc<ServiceMetrics> {
        self.inner.live.lock().service(service)
    }

    /// The handles of a revision, to be kept beside its live state; the same ones as long as
    /// anybody holds them, so that a revision which comes back while its past self drains goes on
    /// counting. The series vanish when the last holder lets go.
    pub fn revision(&self, service: &ServiceId, revision: &RevisionId) -> Arc<RevisionMetrics> {
        let mut live = self.inner.live.lock();
        let key = (service.clone(), revision.clone());
        if let Some(known) = live.revisions.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        live.sweep_if_due();
        let new = Arc::new(RevisionMetrics::new(live.service(service), revision));
        live.revisions.insert(key, Arc::downgrade(&new));
        new
    }

    /// A Snapshot is served.
    pub fn set_generation(&self, generation: Generation) {
        // Exact up to 2^53 reloads.
        self.inner.generation.set(generation.0 as f64);
    }

    /// A load of the configuration ended.
    pub fn reloaded(&self, result: ReloadResult) {
        self.inner.reloads[result as usize].increment(1);
    }

    /// Counts a stream that the HTTP/2 layer refused by itself.
    pub fn stream_refused(&self, refusal: StreamRefusal) {
        let [limit, protocol] = &self.inner.refused;
        let counter = match refusal {
            StreamRefusal::StreamLimit => limit,
            StreamRefusal::Protocol => protocol,
        };
        counter.increment(1);
    }

    /// The counter for [`LineWriter`](super::LineWriter).
    pub fn log_lines_dropped(&self) -> Counter {
        self.inner.dropped.clone()
    }

    /// Everything in Prometheus's text format. Gauges are asked for now; `desired` comes from
    /// `status`. Takes time in proportion to the number of revisions: not for a request's thread.
    pub fn render(&self, loads: &dyn LoadView, status: &dyn StatusSource) -> String {
        let (services, revisions) = {
            let mut live = self.inner.live.lock();
            live.sweep();
            let services: Vec<_> = live.services.values().filter_map(Weak::upgrade).collect();
            let revisions: Vec<_> = live.revisions.values().filter_map(Weak::upgrade).collect();
            (services, revisions)
        };
        let gauges: Vec<Gauges> = loads
            .loads()
            .into_iter()
            .map(|load| Gauges {
                desired: status.revision_status(&load.revision).map(|s| s.desired),
                load,
            })
            .collect();
        let mut out = String::new();
        let services = std::iter::once(&self.inner.unrouted).chain(services.iter().map(AsRef::as_ref));
        text::render(&mut out, services, &revisions, &gauges);
        text::tables(&mut out, loads.tables());
        certificates::render(&mut out, loads.certificates());
        out.push_str(&self.inner.recorder.handle().render());
        out
    }
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;

//! The metrics of the user contract.
//!
//! One registry (`registry`) has every series, and one writer (`exposition`) shows them; `families` lists
//! names, types and help texts. Handles of the process and of listeners are the `metrics` facade's; those
//! that each request moves are striped by thread (`stripes`), since the warm path must write no cache line
//! that another thread writes, and a facade's counter is one line for all threads.
//!
//! Nothing is global: a [`Metrics`] is a value, and tests have one each.

mod certificates;
mod connections;
mod exposition;
mod families;
mod finished;
mod knative;
mod latency;
mod registry;
mod replicas;
mod revision;
mod rollouts;
mod scaling;
mod status_codes;
mod stripes;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use metrics::{Counter, Gauge};
use sluice_model::{EndpointAddr, Generation, Outcomes, RevisionId, RevisionOwner, ScalingStatus, ServiceId};

use super::history::{History, RequestCounts};
use crate::h2::StreamRefusal;
use crate::replicas::ReplicaStatus;

pub(super) use latency::LATENCY_BOUNDS;
pub use revision::{ActivationResult, RevisionMetrics, ServiceMetrics};

use registry::Registry;

/// How one load of the configuration ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReloadResult {
    /// A new generation was published.
    Applied,
    /// The content was the same.
    Unchanged,
    /// The new content had mistakes; the last good generation serves on.
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

/// The load of a revision at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevisionLoad {
    /// The service that the revision belongs to.
    pub service: ServiceId,
    /// The revision.
    pub revision: RevisionId,
    /// Requests and streams that hold a Permit.
    pub in_flight: u32,
    /// Waiters.
    pub queued: u32,
    /// Endpoints that may be used.
    pub ready: u32,
    /// The revision is no longer configured, and drains.
    pub leaving: bool,
    /// Whose it is, of a revision of Knative's.
    pub owner: Option<Arc<RevisionOwner>>,
}

/// The requests of a revision at one moment, also of one that drains.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PresentRequests {
    /// Requests and streams that hold a Permit.
    pub in_flight: u32,
    /// Waiters.
    pub queued: u32,
}

/// The state of an endpoint, as operators see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointCondition {
    /// Known, not ready yet.
    Starting,
    /// May be used.
    Ready,
    /// Taken out of use for a while after failures (outlier ejection).
    Ejected,
    /// Finishes open requests and gets no new ones.
    Draining,
}

impl EndpointCondition {
    /// The state's name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Ejected => "ejected",
            Self::Draining => "draining",
        }
    }
}

/// The load of one endpoint of a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointLoad {
    /// The endpoint's address.
    pub address: EndpointAddr,
    /// The index of its tier; 0 in a revision without tiers.
    pub tier: u8,
    /// The endpoint's state.
    pub condition: EndpointCondition,
    /// Requests and streams on the endpoint.
    pub in_flight: u32,
}

/// Gauges that are read from the live state at a scrape, so that they cost nothing in between.
#[derive(Debug, Default)]
pub struct LiveGauges {
    /// One entry per revision that serves or still drains.
    pub loads: Vec<RevisionLoad>,
    /// Replicas wanted, by revision; nothing for a revision that nothing scales.
    pub desired: BTreeMap<RevisionId, u32>,
    /// The autoscaler's view, by revision; nothing for a revision that nothing scales.
    pub scaling: BTreeMap<RevisionId, ScalingStatus>,
    /// Routing tables not yet dropped: the one that is served, and those that requests still hold.
    pub tables: usize,
    /// One entry per listener that terminates TLS.
    pub certificates: Vec<ListenerCertificates>,
    /// Rollouts.
    pub rollouts: RolloutGauges,
    /// The connection for statistics to a cluster's autoscaler; `None` where none was tried.
    pub stats: Option<StatsConnection>,
    /// The other replicas that this one shares slots with.
    pub replicas: Vec<ReplicaStatus>,
}

/// Rollouts at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RolloutGauges {
    /// By service, the newer revision's part of the share in percent.
    pub steps: Vec<(ServiceId, f64)>,
    /// How many ended so far, by result.
    pub ended: Vec<(&'static str, u64)>,
}

/// The connection by which a cluster's autoscaler gets this gateway's statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatsConnection {
    /// Whether the last attempt to connect succeeded and has not ended since.
    pub reachable: bool,
    /// Attempts that failed, and connections that broke.
    pub errors: u64,
}

/// When a listener's certificates expire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerCertificates {
    /// The listener, as bound.
    pub listener: SocketAddr,
    /// Each certificate's name (its file, or namespace and name of a Secret) and the end of its validity.
    pub ends: Vec<(String, SystemTime)>,
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
    registry: Registry,
    generation: Gauge,
    reloads: [Counter; 3],
    dropped: Counter,
    traces_dropped: Counter,
    refused: [Counter; 2],
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// An empty set.
    pub fn new() -> Self {
        let registry = Registry::new();
        let reloads = ReloadResult::ALL
            .map(|result| registry.counter(&families::RELOADS, format!("result=\"{}\"", result.as_str())));
        let refused = ["stream_limit", "protocol_error"]
            .map(|reason| registry.counter(&families::REFUSED, format!("reason=\"{reason}\"")));
        Self {
            inner: Arc::new(Inner {
                generation: registry.gauge(&families::GENERATION, String::new()),
                reloads,
                refused,
                dropped: registry.counter(&families::DROPPED, String::new()),
                traces_dropped: registry.counter(&families::TRACES_DROPPED, String::new()),
                registry,
            }),
        }
    }

    /// The counters of requests that no service was found for: all name labels are empty.
    pub fn unrouted(&self) -> &ServiceMetrics {
        &self.inner.registry.unrouted
    }

    /// The counters of a service; the same ones as long as anybody holds them.
    pub fn service(&self, service: &ServiceId) -> Arc<ServiceMetrics> {
        self.inner.registry.service(service)
    }

    /// The handles of a revision, to be kept beside its live state; the same ones as long as
    /// anybody holds them, so that a revision which comes back while its past self drains goes on
    /// counting. The series vanish when the last holder lets go.
    pub fn revision(&self, service: &ServiceId, revision: &RevisionId) -> Arc<RevisionMetrics> {
        self.inner.registry.revision(service, revision)
    }

    /// Sets the generation that is served.
    pub fn set_generation(&self, generation: Generation) {
        // Exact up to 2^53 reloads.
        self.inner.generation.set(generation.0 as f64);
    }

    /// Counts a load of the configuration.
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

    /// The counter of dropped log lines, for [`LogWriter`](super::LogWriter).
    pub fn log_lines_dropped(&self) -> Counter {
        self.inner.dropped.clone()
    }

    /// The counter of traces that were not delivered, for [`Tracer`](crate::traces::Tracer).
    pub fn traces_dropped(&self) -> Counter {
        self.inner.traces_dropped.clone()
    }

    /// Records one step of the history: what the revisions in use have counted since the last call, with their requests now.
    /// Takes time in proportion to the number of revisions in use, whatever the size of the routing table: not for a
    /// thread that serves requests.
    pub fn record(
        &self,
        history: &mut History,
        step: u64,
        present: impl FnOnce(&[RevisionId]) -> Vec<PresentRequests>,
    ) {
        let (services, revisions) = self.inner.registry.alive();
        let mut unrouted = RequestCounts::default();
        for service in std::iter::once(self.unrouted()).chain(services.iter().map(AsRef::as_ref)) {
            let since = service.sample();
            unrouted.requests += since.requests;
            unrouted.errors += since.errors;
        }
        let (ids, metrics): (Vec<_>, Vec<_>) = revisions.into_iter().unzip();
        let present = present(&ids);
        let revisions = ids.into_iter().zip(metrics).enumerate();
        let revisions = revisions.map(|(nth, (id, metrics))| {
            let PresentRequests { in_flight, queued } = present.get(nth).copied().unwrap_or_default();
            let counts = RequestCounts {
                in_flight,
                queued,
                ..metrics.sample()
            };
            (id, counts, move || metrics.durations())
        });
        history.record(step, unrouted, revisions);
    }

    /// Finished requests so far by revision, and how many of them ended with a 5xx or without an answer; `None` are
    /// those that found no revision. Takes time as [`record`](Self::record) does.
    pub fn finished(&self) -> Vec<(Option<RevisionId>, u64, u64)> {
        let (services, revisions) = self.inner.registry.alive();
        let unrouted = std::iter::once(self.unrouted()).chain(services.iter().map(AsRef::as_ref));
        let unrouted = unrouted.map(|service| (None, service.requests()));
        let revisions = revisions
            .iter()
            .map(|(id, metrics)| (Some(id.clone()), metrics.requests()));
        let all = unrouted.chain(revisions);
        all.map(|(id, (requests, errors))| (id, requests, errors))
            .collect()
    }

    /// What the requests of a revision came to so far, without its endpoints; `None` for one that nobody holds.
    pub fn outcomes(&self, service: &ServiceId, revision: &RevisionId) -> Option<Outcomes> {
        let known = self.inner.registry.known(service, revision)?;
        Some(known.outcomes())
    }

    /// Everything in Prometheus's text format. Takes time in proportion to the number of revisions: not for
    /// a thread that serves requests.
    pub fn expose(&self, gauges: &LiveGauges) -> String {
        self.inner.registry.expose(gauges)
    }
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;

//! Metric handles of services and revisions, which requests move.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sluice_model::{Failure, RevisionId};

use super::super::phases::NAMES;
use super::super::reason::Reason;
use super::super::record::RequestRecord;
use super::latency::Latency;
use super::status_codes::StatusCodes;

/// How an activation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivationResult {
    /// An endpoint became ready.
    Ready,
    /// No instance can start.
    Failed,
    /// No instance started in time.
    TimedOut,
    /// Nothing may be started.
    NotAllowed,
}

impl ActivationResult {
    pub(super) const ALL: [Self; 4] = [Self::Ready, Self::Failed, Self::TimedOut, Self::NotAllowed];

    /// The value of the `result` label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::TimedOut => "timeout",
            Self::NotAllowed => "not_allowed",
        }
    }
}

impl From<Failure> for ActivationResult {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Failed => Self::Failed,
            Failure::TimedOut => Self::TimedOut,
            Failure::NotAllowed => Self::NotAllowed,
        }
    }
}

/// Counters of one service: its rejections, and its requests that found no revision.
#[derive(Debug)]
pub struct ServiceMetrics {
    /// `namespace="…",service="…"`
    pub(super) labels: String,
    /// Requests without a revision.
    pub(super) codes: StatusCodes,
    pub(super) rejections: [AtomicU64; Reason::ALL.len()],
}

impl ServiceMetrics {
    /// Names are DNS labels or empty, so nothing in them needs escaping.
    pub(super) fn new(namespace: &str, service: &str) -> Self {
        Self {
            labels: format!("namespace=\"{namespace}\",service=\"{service}\""),
            codes: StatusCodes::default(),
            rejections: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Counts a finished request that found no revision.
    pub fn finish(&self, record: &RequestRecord<'_>) {
        self.codes.add(record.code());
        self.reject(record);
    }

    fn reject(&self, record: &RequestRecord<'_>) {
        if let Some(reason) = record.reason {
            self.rejections[reason as usize].fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Metric handles of one revision.
#[derive(Debug)]
pub struct RevisionMetrics {
    service: Arc<ServiceMetrics>,
    /// `namespace="…",service="…",revision="…"`
    pub(super) labels: String,
    pub(super) codes: StatusCodes,
    pub(super) duration: Latency,
    pub(super) queue_wait: Latency,
    pub(super) activations: [AtomicU64; ActivationResult::ALL.len()],
    pub(super) activation: Latency,
    /// By phase; lazy, since most revisions of a large routing table never start anything.
    cold_start: OnceLock<Box<[Latency; NAMES.len()]>>,
}

impl RevisionMetrics {
    pub(super) fn new(service: Arc<ServiceMetrics>, revision: &RevisionId) -> Self {
        Self {
            labels: format!("{},revision=\"{}\"", service.labels, revision.name()),
            service,
            codes: StatusCodes::default(),
            duration: Latency::default(),
            queue_wait: Latency::default(),
            activations: std::array::from_fn(|_| AtomicU64::new(0)),
            activation: Latency::default(),
            cold_start: OnceLock::new(),
        }
    }

    /// Counts a finished request.
    pub fn finish(&self, record: &RequestRecord<'_>) {
        self.codes.add(record.code());
        self.duration.record(record.duration);
        if let Some(queue) = record.queue {
            self.queue_wait.record(queue);
        }
        if let Some(cold) = record.phases.filter(|phases| phases.is_cold()) {
            let latencies = self.cold_start.get_or_init(Box::default);
            for (latency, took) in latencies.iter().zip(cold.durations()) {
                latency.record(*took);
            }
        }
        self.service.reject(record);
    }

    /// Name and histogram of each phase of a cold start; empty before the first cold start.
    pub(super) fn cold_start(&self) -> impl Iterator<Item = (&'static str, &Latency)> {
        let latencies = self.cold_start.get().into_iter().flat_map(|all| all.iter());
        NAMES.into_iter().zip(latencies)
    }

    /// Counts an activation, from its Demand to a ready endpoint or its failure.
    pub fn activated(&self, result: ActivationResult, took: Duration) {
        self.activations[result as usize].fetch_add(1, Ordering::Relaxed);
        self.activation.record(took);
    }
}

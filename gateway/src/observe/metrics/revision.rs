//! Metric handles of services and revisions, which requests move.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sluice_model::{Failure, Outcomes, RevisionId};

use super::super::history::{DurationCounts, RequestCounts};
use super::super::phases::NAMES;
use super::super::reason::Reason;
use super::super::record::RequestRecord;
use super::finished::Finished;
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
    sampled: Sampled,
    pub(super) rejections: [AtomicU64; Reason::ALL.len()],
}

impl ServiceMetrics {
    /// Names are DNS labels or empty, so nothing in them needs escaping.
    pub(super) fn new(namespace: &str, service: &str) -> Self {
        Self {
            labels: format!("namespace=\"{namespace}\",service=\"{service}\""),
            codes: StatusCodes::default(),
            sampled: Sampled::default(),
            rejections: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Counts a finished request that found no revision.
    pub fn finish(&self, record: &RequestRecord<'_>) {
        self.codes.add(record.code());
        self.reject(record);
    }

    /// Finished requests without a revision so far, and how many of them ended with a 5xx or without an answer.
    pub(super) fn requests(&self) -> (u64, u64) {
        requests(|each| self.codes.for_each(each))
    }

    /// The requests since the last call, for the history.
    pub(super) fn sample(&self) -> RequestCounts {
        self.sampled.since(self.requests())
    }

    fn reject(&self, record: &RequestRecord<'_>) {
        if let Some(reason) = record.reason {
            self.rejections[reason as usize].fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The counts at the last step of the history. In the metrics, so that they live as long as these.
#[derive(Debug, Default)]
struct Sampled {
    requests: AtomicU64,
    errors: AtomicU64,
}

impl Sampled {
    fn since(&self, (requests, errors): (u64, u64)) -> RequestCounts {
        let before = self.requests.swap(requests, Ordering::Relaxed);
        let errors_before = self.errors.swap(errors, Ordering::Relaxed);
        RequestCounts {
            requests: requests.saturating_sub(before),
            errors: errors.saturating_sub(errors_before),
            has_earlier: before > 0,
            ..RequestCounts::default()
        }
    }
}

/// All requests, and those that ended with a 5xx or without an answer; `codes` calls its argument with every code and its count.
fn requests(codes: impl FnOnce(&mut dyn FnMut(u16, u64))) -> (u64, u64) {
    let (mut all, mut errors) = (0, 0);
    codes(&mut |code, count| {
        all += count;
        if code == 0 || code >= 500 {
            errors += count;
        }
    });
    (all, errors)
}

/// Metric handles of one revision.
#[derive(Debug)]
pub struct RevisionMetrics {
    service: Arc<ServiceMetrics>,
    /// `namespace="…",service="…",revision="…"`
    pub(super) labels: String,
    pub(super) finished: Finished,
    sampled: Sampled,
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
            finished: Finished::default(),
            sampled: Sampled::default(),
            queue_wait: Latency::default(),
            activations: std::array::from_fn(|_| AtomicU64::new(0)),
            activation: Latency::default(),
            cold_start: OnceLock::new(),
        }
    }

    /// Counts a finished request.
    pub fn finish(&self, record: &RequestRecord<'_>) {
        self.finished.add(record);
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

    /// Finished requests so far, and how many of them ended with a 5xx or without an answer.
    pub(super) fn requests(&self) -> (u64, u64) {
        requests(|each| self.finished.for_each_code(each))
    }

    /// The requests since the last call, for the history.
    pub(super) fn sample(&self) -> RequestCounts {
        self.sampled.since(self.requests())
    }

    /// What requests came to so far, for the judgement of rollouts; without endpoints and requests in flight.
    pub(super) fn outcomes(&self) -> Outcomes {
        self.finished.outcomes()
    }

    /// Durations and phases so far.
    pub(super) fn durations(&self) -> DurationCounts {
        let mut counts = DurationCounts::default();
        if let Some(known) = self.finished.durations() {
            let mut below = 0;
            for (bucket, up_to) in counts
                .buckets
                .iter_mut()
                .zip(known.cumulative.into_iter().chain([known.count]))
            {
                *bucket = up_to.saturating_sub(below);
                below = up_to;
            }
        }
        for ((_, latency), sum) in self.cold_start().zip(&mut counts.phases) {
            let (count, total) = latency.total();
            counts.cold = counts.cold.max(count);
            *sum = u64::try_from(total.as_micros()).unwrap_or(u64::MAX);
        }
        counts
    }

    /// Counts an activation, from its Demand to a ready endpoint or its failure.
    pub fn activated(&self, result: ActivationResult, took: Duration) {
        self.activations[result as usize].fetch_add(1, Ordering::Relaxed);
        self.activation.record(took);
    }
}

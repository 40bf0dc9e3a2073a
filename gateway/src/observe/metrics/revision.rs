//! Metric handles of services and revisions, which requests move.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sluice_model::{Failure, Outcomes, RevisionId};

use super::super::history::{DurationCounts, RequestCounts};
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
        requests(&self.codes)
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

/// Requests that count against a revision, and those that say nothing of it. Not striped: answers that simply came are in
/// neither counter.
#[derive(Debug, Default)]
struct Judged {
    failures: AtomicU64,
    excused: AtomicU64,
}

impl Judged {
    fn add(&self, record: &RequestRecord<'_>) {
        let status = record.final_status.or(record.status);
        let counter = match (record.reason, status) {
            (None, Some(status)) if status < 500 => return,
            (None, Some(_)) => &self.failures,
            (Some(reason), _) if is_of_revision(reason) => &self.failures,
            _ => &self.excused,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn counts(&self) -> (u64, u64) {
        (
            self.failures.load(Ordering::Relaxed),
            self.excused.load(Ordering::Relaxed),
        )
    }
}

/// Whether it is the revision that a request failed by: not the client, and not the gateway's own bounds.
fn is_of_revision(reason: Reason) -> bool {
    match reason {
        Reason::ConnectFailed
        | Reason::UpstreamError
        | Reason::UpstreamReset
        | Reason::ActivationFailed
        | Reason::ActivationTimeout
        | Reason::NoEndpoints
        | Reason::Timeout => true,
        Reason::BadRequest
        | Reason::NoRoute
        | Reason::RequestTimeout
        | Reason::Misdirected
        | Reason::HeadersTooLarge
        | Reason::UriTooLong
        | Reason::BodyTooLarge
        | Reason::QueueFull
        | Reason::QueueTimeout
        | Reason::Starting
        | Reason::Dormant
        | Reason::Overloaded
        | Reason::Draining
        | Reason::Loop
        | Reason::ClientGone => false,
    }
}

fn requests(codes: &StatusCodes) -> (u64, u64) {
    let (mut all, mut errors) = (0, 0);
    codes.for_each(|code, count| {
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
    pub(super) codes: StatusCodes,
    sampled: Sampled,
    judged: Judged,
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
            sampled: Sampled::default(),
            judged: Judged::default(),
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
        self.judged.add(record);
        self.service.reject(record);
    }

    /// Name and histogram of each phase of a cold start; empty before the first cold start.
    pub(super) fn cold_start(&self) -> impl Iterator<Item = (&'static str, &Latency)> {
        let latencies = self.cold_start.get().into_iter().flat_map(|all| all.iter());
        NAMES.into_iter().zip(latencies)
    }

    /// Finished requests so far, and how many of them ended with a 5xx or without an answer.
    pub(super) fn requests(&self) -> (u64, u64) {
        requests(&self.codes)
    }

    /// The requests since the last call, for the history.
    pub(super) fn sample(&self) -> RequestCounts {
        self.sampled.since(self.requests())
    }

    /// What requests came to so far, for the judgement of rollouts; without endpoints.
    pub(super) fn outcomes(&self) -> Outcomes {
        // In this order: a request that ends meanwhile is a request at most.
        let (failures, excused) = self.judged.counts();
        let (finished, _) = self.requests();
        Outcomes {
            requests: finished.saturating_sub(excused),
            failures,
            latency: self.duration.fine(),
            ..Outcomes::default()
        }
    }

    /// Durations and phases so far.
    pub(super) fn durations(&self) -> DurationCounts {
        let mut counts = DurationCounts::default();
        if let Some(known) = self.duration.buckets() {
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

#[cfg(test)]
mod tests {
    use sluice_model::latency_bucket;

    use super::super::super::record::tests::plain;
    use super::*;

    #[test]
    fn a_revision_answers_for_what_it_did_and_for_nothing_else() {
        let service = Arc::new(ServiceMetrics::new("default", "greeter"));
        let revision = RevisionId::parse("default", "greeter-00001").unwrap();
        let metrics = RevisionMetrics::new(service, &revision);
        let finish = |status, reason| {
            metrics.finish(&RequestRecord {
                status,
                reason,
                ..plain()
            });
        };
        for status in [200, 302, 404, 499] {
            finish(Some(status), None);
        }
        finish(Some(500), None);
        finish(Some(502), Some(Reason::ConnectFailed));
        finish(Some(200), Some(Reason::UpstreamReset));
        finish(Some(503), Some(Reason::ActivationFailed));
        finish(Some(503), Some(Reason::QueueFull));
        finish(None, Some(Reason::ClientGone));
        finish(None, None);
        metrics.finish(&RequestRecord {
            final_status: Some(500),
            ..plain()
        });
        let outcomes = metrics.outcomes();
        assert_eq!((outcomes.requests, outcomes.failures), (9, 5));
        assert_eq!(outcomes.latency, [(latency_bucket(1_234), 12)]);
    }

    #[test]
    fn every_reason_has_its_side() {
        let of_revision: Vec<&str> = Reason::ALL
            .into_iter()
            .filter(|reason| is_of_revision(*reason))
            .map(Reason::as_str)
            .collect();
        let handbook = include_str!("../../../../docs/rollouts.md");
        for reason in &of_revision {
            assert!(handbook.contains(&format!("`{reason}`")), "{reason}");
        }
        assert_eq!(of_revision.len(), 7);
    }
}

//! Observability: reasons, access log, metrics and the process's own log.
//!
//! One [`RequestRecord`] per finished request feeds both the access log and the metrics, so the two
//! never disagree. Nothing here makes a request wait: lines go into a bounded buffer that one thread
//! empties ([`LogWriter`]), and lines that do not fit are dropped and counted; metric handles are resolved
//! when a routing table is built, not per request.
//!
//! **Invariant:** labels never hold a path, a raw host or anything else a client chose.

mod access_log;
mod decisions;
mod escape;
mod history;
mod log_writer;
mod logging;
mod metrics;
mod phases;
mod reason;
mod record;

use sluice_model::AccessLogFormat;

pub use access_log::AccessLog;
pub use decisions::{Decision, RecentDecisions};
pub use history::{DurationCounts, History, MAX_SERIES, PHASES, Point, RequestCounts, STEP, STEPS};
pub use log_writer::{LogSink, LogWriter};
pub use logging::{LogFormat, LoggingError, init_logging};
pub use metrics::{
    ActivationResult, EndpointCondition, EndpointLoad, ListenerCertificates, LiveGauges, Metrics,
    PresentRequests, ReloadResult, RevisionLoad, RevisionMetrics, RolloutGauges, ServiceMetrics,
    StatsConnection,
};
pub use phases::{Milestones, Phases};
pub use reason::{GrpcStatus, Reason};
#[cfg(test)]
pub(crate) use record::tests::plain as plain_record;
pub use record::{RequestProtocol, RequestRecord, Timer};

/// Wall-clock time, for log lines, `Date` fields and the end of certificates; never for durations.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads the wall clock"
)]
pub fn wall_clock() -> std::time::SystemTime {
    std::time::SystemTime::now()
}

/// The counters that a finished request moves, by how far its routing got.
#[derive(Debug, Clone, Copy)]
pub enum MetricsScope<'a> {
    /// A probe that the gateway answered: no counter moves.
    Uncounted,
    /// No service was found.
    Unrouted,
    /// A service, but no revision of it.
    Service(&'a ServiceMetrics),
    /// A revision.
    Revision(&'a RevisionMetrics),
}

/// Access log and metrics together, for the end of each request.
#[derive(Debug, Clone)]
pub struct Observer {
    /// The access log.
    pub access_log: AccessLog,
    /// The metrics.
    pub metrics: Metrics,
}

impl Observer {
    /// Logs and counts one finished request. Never blocks; allocates nothing in the steady state.
    pub fn finish(&self, format: AccessLogFormat, record: &RequestRecord<'_>, counted: MetricsScope<'_>) {
        match counted {
            MetricsScope::Uncounted => {}
            MetricsScope::Unrouted => self.metrics.unrouted().finish(record),
            MetricsScope::Service(service) => service.finish(record),
            MetricsScope::Revision(revision) => revision.finish(record),
        }
        self.access_log.log(format, record);
    }
}

//! The admin API: health checks, metrics, read-only views of the gateway's state, and actions: an upgrade, and commands for
//! services.
//!
//! | path | response |
//! |---|---|
//! | `/` | this list, as an HTML page |
//! | `/dashboard` | a page for people that shows all of it, live: `dashboard` |
//! | `/healthz` | 200 `ok` while the process serves this very socket |
//! | `/readyz` | 200 while a Snapshot is served and the process is not draining, else 503 with the reason |
//! | `/metrics` | Prometheus's text format |
//! | `/api/routes` | hosts, routes and splits: [`api::routes`] |
//! | `/api/revisions?service=…` | revisions of one service, or of all, with load, endpoints, rollout and override: [`api::revisions`] |
//! | `/api/config` | settings in force, bound addresses, how revisions are scaled: [`api::config`] |
//! | `/api/history?revision=…` | the last hour of a revision, or of all: [`History`](crate::observe::History) |
//! | `/api/events` | server-sent events: a `snapshot`, then each `change` |
//! | `POST /api/upgrade?timeout=30s` | the binary now on disk takes over; the response comes when it has, or says why not |
//! | `POST /api/rollback?service=…&revision=…` | another revision gets the traffic of `latestRevision`: `commands` |
//! | `POST /api/pause?service=…`, `/api/resume` | requests to a service are held, or go on |
//! | `POST /api/rollout/pause?service=…`, `resume`, `promote`, `abort`, `retry` | for a rollout |
//! | `/api/explain?url=…&method=…&header=K:%20V` | which revision would serve this, and why |
//!
//! Requests are answered by the rules of `access`: no foreign `Host`, no foreign `Origin`, and changes with the token
//! alone where there is one.
//!
//! No response contains a secret: the token, values of request headers, webhook headers and environment variables are
//! shown as `***`. [`Purpose::Health`] are `/healthz` and `/readyz` alone, for an address that balancers
//! may see; with `/metrics` in a cluster ([`Purpose::HealthAndMetrics`]).

mod access;
mod answers;
pub mod api;
mod commands;
mod dashboard;
mod feed;
#[cfg(test)]
pub(crate) mod fixture;
mod graceful_shutdown;
mod query;
mod server;
mod tiers;
mod unix_socket;
mod upgrade;
mod view;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde_json::Value;
use sluice_model::{AdminAddress, Generation, RevisionId, ScalingStatus, ServiceId, StatusSource};

use crate::observe::{
    Decision, EndpointLoad, ListenerCertificates, Metrics, PresentRequests, RevisionLoad, RolloutGauges,
    StatsConnection,
};
use crate::registry::Snapshot;
use crate::replicas::ReplicaStatus;

pub use api::redacted;
pub use commands::{CommandError, RolloutCommand, ServiceCommand, parse_service};
pub use graceful_shutdown::{GracefulShutdown, ShutdownSignal, graceful_shutdown};
pub use query::{ExplainQuery, QueryError};
pub use server::{AdminServer, BindError, Purpose};
pub use unix_socket::SocketFile;
pub use upgrade::{
    DEFAULT_LIMIT as DEFAULT_UPGRADE_LIMIT, PATH as UPGRADE_PATH, UpgradeError, Upgraded,
    parse_limit as parse_upgrade_limit,
};

/// The addresses actually bound; they differ from the configured ones where those have port 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundAddresses {
    /// In the order of the settings.
    pub listeners: Vec<SocketAddr>,
    /// The admin listener.
    pub admin: AdminAddress,
    /// The health listener, if there is one.
    pub health: Option<SocketAddr>,
}

/// A service besides what files say, as JSON; `null` for what there is not.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ReleaseView {
    /// `{state, percent, step, reason, since, started, candidate, base, judgement: {candidate: {requests, errors}, base:
    /// {requests, errors}, in_step, unjudged_steps, suspicion}}`. `percent` is the candidate's part of the share of `latestRevision`,
    /// `suspicion` how far the evidence is on the way to "worse", from 0 to 1.
    pub rollout: Value,
    /// `{pinned, paused, since, files: {latestRevision, percent}, permanent}`: what an operator said by command, what the files
    /// say in its place, and what to write there.
    pub overridden: Value,
    /// By name, `{created, last_active}`, of revisions that were made from templates.
    pub revisions: BTreeMap<String, Value>,
}

/// The state that the admin server shows; the composition root brings it together. A trait, because parts of
/// the state are the control plane's, which this crate does not know.
#[async_trait]
pub trait AdminState: Send + Sync + 'static {
    /// The generation that is served, for `/readyz`.
    ///
    /// # Errors
    /// Why requests should not be sent here, in a word or two: `starting`, `draining`.
    fn ready(&self) -> Result<Generation, &'static str>;

    /// When this process started.
    fn started(&self) -> SystemTime;

    /// Upgrade in place: the binary now on disk replaces this process. Resolves when the new process serves, or
    /// when the upgrade has failed. The new process may take `limit` to get ready; the hand-over takes some
    /// seconds more. Dropping the future gives up the result, not the upgrade.
    ///
    /// # Errors
    /// Why this process goes on.
    async fn upgrade(&self, limit: Duration) -> Result<Upgraded, UpgradeError>;

    /// Carries a command out, and says what it did. Resolves after the publication. Dropping the future does not take the
    /// command back.
    ///
    /// # Errors
    /// Why nothing changed.
    async fn command(&self, service: &ServiceId, command: ServiceCommand) -> Result<String, CommandError>;

    /// What a service is besides what files say; `None` for a service that is just that.
    fn release(&self, service: &ServiceId) -> Option<ReleaseView>;

    /// What the template of each revision has otherwise than that of the one before, by name; empty for a service without
    /// templates. Takes time in proportion to the templates.
    fn differences(&self, service: &ServiceId) -> BTreeMap<String, Vec<String>>;

    /// The routing table that is served.
    fn table(&self) -> Arc<Snapshot>;

    /// Routing tables not yet dropped: the one that is served, and those that requests still hold.
    fn tables(&self) -> usize;

    /// The addresses actually bound.
    fn bound(&self) -> BoundAddresses;

    /// One entry per revision that serves or still drains.
    fn loads(&self) -> Vec<RevisionLoad>;

    /// The requests of these revisions now, in their order; none of one that is not known.
    fn present(&self, revisions: &[RevisionId]) -> Vec<PresentRequests>;

    /// The endpoints of one revision; empty when the revision is not known.
    fn endpoints(&self, revision: &RevisionId) -> Vec<EndpointLoad>;

    /// One entry per listener that terminates TLS.
    fn certificates(&self) -> Vec<ListenerCertificates>;

    /// The connection for statistics to a cluster's autoscaler; `None` where none was tried.
    fn stats_connection(&self) -> Option<StatsConnection> {
        None
    }

    /// The other replicas that this one shares slots with.
    fn replicas(&self) -> Vec<ReplicaStatus> {
        Vec::new()
    }

    /// Rollouts, for metrics.
    fn rollouts(&self) -> RolloutGauges {
        RolloutGauges::default()
    }

    /// The control plane's status by revision.
    fn status(&self) -> &dyn StatusSource;

    /// The autoscaler's view of a revision; `None` for a revision that nothing scales.
    fn scaling_status(&self, revision: &RevisionId) -> Option<ScalingStatus>;

    /// The process's metrics.
    fn metrics(&self) -> &Metrics;

    /// The last scale decisions after this number, the oldest first; 0 for all that are kept.
    fn decisions(&self, after: u64) -> Vec<Decision>;

    /// What is wrong with the configuration on disk: `{at, rejected, errors, warnings, items: [{severity, file, line,
    /// column, path, message, hint}]}`. `rejected`: the last good one serves on.
    fn diagnostics(&self) -> Value;

    /// How revisions are scaled, as JSON for `/api/config`. Implementors pass maps with secrets through
    /// [`redacted`].
    fn scaling(&self) -> Value;
}

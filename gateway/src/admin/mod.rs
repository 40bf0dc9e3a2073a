//! The admin address: health, metrics and what the gateway knows; and one thing to do, an upgrade.
//!
//! | path | answer |
//! |---|---|
//! | `/` | this list, as a page |
//! | `/healthz` | 200 `ok` while the process serves this very socket |
//! | `/readyz` | 200 while a Snapshot is served and the process is not draining, else 503 and why |
//! | `/metrics` | Prometheus's text format |
//! | `/api/routes` | hosts and where they lead: [`api::routes`] |
//! | `/api/revisions` | what runs, what `sluice status` shows: [`api::revisions`] |
//! | `/api/config` | settings in force, bound addresses, how revisions are scaled: [`api::config`] |
//! | `POST /api/upgrade?timeout=30s` | the binary now on disk takes over; answers when it has, or why it has not |
//! | `/api/explain?url=…&method=…&header=K:%20V` | which revision would serve this, and why |
//!
//! No secret leaves here: values of request headers, webhook headers and environment variables are
//! shown as `***`. [`HealthServer`] is the same server with the first two endpoints only, for an
//! address that balancers may see.

pub mod api;
#[cfg(test)]
pub(crate) mod fixture;
mod leave;
mod query;
mod server;
mod upgrade;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde_json::Value;
use sluice_model::{Generation, StatusSource};

use crate::observe::{LoadView, Metrics};
use crate::registry::Snapshot;

pub use api::redacted;
pub use leave::{Leave, Leaver, leave};
pub use query::{ExplainQuery, QueryError};
pub use server::{AdminServer, BindError, HealthServer};
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
    pub admin: SocketAddr,
    /// The health listener, if there is one.
    pub health: Option<SocketAddr>,
}

/// What health checks need.
pub trait Health: Send + Sync + 'static {
    /// The generation that is served, or why requests should not be sent here (`starting`,
    /// `draining`).
    ///
    /// # Errors
    /// The reason in a word or two, shown by `/readyz`.
    fn ready(&self) -> Result<Generation, &'static str>;
}

/// What the admin server shows; the composition root brings it together.
#[async_trait]
pub trait AdminState: Health {
    /// When this process started.
    fn started(&self) -> SystemTime;

    /// Puts the binary now on disk in this process's place. Resolves when the new process serves, or when
    /// it is certain that it will not; it may take `limit` to get ready, and some seconds more. Dropping the
    /// future gives up the answer, not the upgrade.
    ///
    /// # Errors
    /// Why this process goes on.
    async fn upgrade(&self, limit: Duration) -> Result<Upgraded, UpgradeError>;

    /// What is served now.
    fn table(&self) -> Arc<Snapshot>;

    /// The addresses actually bound.
    fn bound(&self) -> BoundAddresses;

    /// Live numbers by revision.
    fn loads(&self) -> &dyn LoadView;

    /// What the control plane knows by revision.
    fn status(&self) -> &dyn StatusSource;

    /// The process's metrics.
    fn metrics(&self) -> &Metrics;

    /// How revisions are scaled, for `/api/config`: only the control plane knows. Whoever renders
    /// it passes maps with secrets through [`redacted`].
    fn scaling(&self) -> Value;

    /// The engine behind `/api/explain`.
    fn explain(&self) -> &dyn Explain;
}

/// Says which listener, route, split and revision would serve a request, and why, by the data
/// plane's own find and pick.
pub trait Explain: Send + Sync {
    /// The answer is an object. `found` (bool) says whether something would serve the request.
    /// Text is made of the keys `listener`, `host`, `path`, `service`, `route`, `tag`, `split`,
    /// `revision`, `backend`, `rewrite`, `reason` and `why` (a list of sentences), all optional;
    /// further keys are shown as they are.
    fn explain(&self, query: &ExplainQuery) -> Value;
}

//! Whom a new Snapshot concerns, in which order.

use std::sync::Arc;

use parking_lot::Mutex;
use sluice_control::autoscale::{AutoscaleHandle, Desired};
use sluice_control::compile::ListenerReference;
use sluice_control::plan::Plan;
use sluice_control::reconcile::{Parties, ReloadOutcome};
use sluice_control::scale::ScaleHandle;
use sluice_gateway::edge::Edge;
use sluice_gateway::observe::{Metrics, ReloadResult};
use sluice_gateway::registry::Registry;
use sluice_model::{RevisionId, Snapshot};
use tokio::runtime::Handle;

use super::observed::Plans;
use super::upgrade::{Notifier, Table};

/// Where the config that was loaded last has its listeners.
pub(super) type Listeners = Arc<Mutex<Vec<ListenerReference>>>;

/// The data plane, the scaler and the metrics, as the reconciler knows them.
pub(super) struct Everybody {
    pub(super) registry: Arc<Registry>,
    pub(super) table: Arc<Table>,
    pub(super) edge: Arc<Edge>,
    pub(super) scale: ScaleHandle,
    pub(super) autoscale: AutoscaleHandle,
    pub(super) metrics: Metrics,
    pub(super) plans: Arc<Plans>,
    /// Where listeners accept.
    pub(super) runtime: Handle,
    pub(super) notify: Arc<Notifier>,
    pub(super) listeners: Listeners,
    /// The first Snapshot's listeners are bound by `run`, which exits if one cannot be.
    pub(super) started: bool,
}

impl Parties for Everybody {
    fn prepare(&mut self, next: &Snapshot) -> Result<(), Vec<String>> {
        if !self.started {
            return Ok(());
        }
        let refused = self.runtime.block_on(self.edge.reserve(next.settings()));
        if refused.is_empty() {
            return Ok(());
        }
        let places = self.listeners.lock();
        let mistakes = refused.into_iter().map(|(index, error)| {
            let place = places.get(index).and_then(|place| place.error(error.to_string()));
            place.map_or_else(|| error.to_string(), |mistake| mistake.to_string())
        });
        Err(mistakes.collect())
    }

    fn published(&mut self, snapshot: &Arc<Snapshot>) {
        self.table.apply(snapshot);
        if self.started {
            // What cannot be had leaves the old listener or certificate in place, and is said.
            for error in self.runtime.block_on(self.edge.apply(snapshot.settings())) {
                tracing::error!("{error}");
            }
        }
        self.started = true;
        self.metrics.set_generation(snapshot.generation);
    }

    fn apply(&mut self, plan: &Arc<Plan>) {
        self.plans.set(plan);
        self.scale.apply(Arc::clone(plan));
        self.autoscale.apply(Arc::clone(plan));
    }

    fn reload_asked(&mut self) {
        let reader = self.registry.reader().load();
        for error in self
            .runtime
            .block_on(self.edge.apply(reader.snapshot().settings()))
        {
            tracing::error!("{error}");
        }
    }

    fn outcome(&mut self, outcome: ReloadOutcome) {
        self.metrics.reloaded(match outcome {
            ReloadOutcome::Applied(_) => ReloadResult::Applied,
            ReloadOutcome::Unchanged => ReloadResult::Unchanged,
            ReloadOutcome::Rejected(_) => ReloadResult::Rejected,
        });
        self.notify.reloaded();
    }
}

/// The scaler as the autoscaler knows it.
pub(super) struct Orders(pub(super) ScaleHandle);

impl Desired for Orders {
    fn set_desired(&self, revision: &RevisionId, desired: u32, reason: String) {
        self.0.set_desired(revision, desired, reason);
    }
}

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
use sluice_model::{Delta, Generation, RevisionId, Settings};
use tokio::runtime::Handle;

use super::observed::Plans;
use super::upgrade::{Notifier, Table};

/// Where the config that was loaded last has its listeners.
pub(super) type Listeners = Arc<Mutex<Vec<ListenerReference>>>;

/// The data plane, the scaler and the metrics, as the reconciler knows them.
pub(super) struct Everybody {
    pub(super) table: Arc<Table>,
    pub(super) edge: Arc<Edge>,
    pub(super) scale: ScaleHandle,
    pub(super) autoscale: AutoscaleHandle,
    pub(super) metrics: Metrics,
    /// Published last.
    pub(super) settings: Arc<Settings>,
    pub(super) plans: Arc<Plans>,
    /// Where listeners accept.
    pub(super) runtime: Handle,
    pub(super) notify: Arc<Notifier>,
    pub(super) listeners: Listeners,
}

impl Parties for Everybody {
    fn prepare(&mut self, next: &Settings) -> Result<(), Vec<String>> {
        let refused = self.runtime.block_on(self.edge.reserve(next));
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

    fn publish(&mut self, delta: &Delta) -> Result<Generation, String> {
        let generation = self.table.apply(delta).map_err(|e| e.to_string())?;
        // What cannot be had leaves the old listener or certificate in place, and is said.
        for error in self.runtime.block_on(self.edge.apply(&delta.settings)) {
            tracing::error!("{error}");
        }
        self.settings = Arc::clone(&delta.settings);
        self.metrics.set_generation(generation);
        Ok(generation)
    }

    fn apply(&mut self, plan: &Arc<Plan>) {
        self.plans.set(plan);
        self.scale.apply(Arc::clone(plan));
        self.autoscale.apply(Arc::clone(plan));
    }

    fn reload_asked(&mut self) {
        for error in self.runtime.block_on(self.edge.apply(&self.settings)) {
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

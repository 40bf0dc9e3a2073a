//! Applies a change of the configuration to the running gateway: the order in which its parts learn of the change.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use serde_json::Value;
use sluice_control::autoscale::AutoscaleHandle;
use sluice_control::compile::{FileReference, ListenerReference};
use sluice_control::config::Diagnostic;
use sluice_control::plan::PlanDelta;
use sluice_control::reconcile::{ChangeSink, ReloadOutcome};
use sluice_control::scale::ScaleHandle;
use sluice_gateway::edge::Edge;
use sluice_gateway::observe::{Metrics, ReloadResult, wall_clock};
use sluice_model::{Delta, Generation, Settings};
use tokio::runtime::Handle;

use super::admin_state::{Plans, diagnostics};
use super::check::bad_pages;
use super::upgrade::{Notifier, Table};

/// The data plane, the scaler and the metrics, as the reconciler knows them.
pub(super) struct Applier {
    pub(super) table: Arc<Table>,
    pub(super) edge: Arc<Edge>,
    pub(super) scale: ScaleHandle,
    pub(super) autoscale: AutoscaleHandle,
    pub(super) metrics: Metrics,
    /// Published last.
    pub(super) settings: Arc<Settings>,
    /// Not every listener or certificate of the settings could be applied: the next change tries again.
    pub(super) edge_is_wrong: bool,
    pub(super) plans: Arc<Plans>,
    /// What is wrong with the configuration on disk, for the admin API.
    pub(super) diagnostics: Arc<Mutex<Value>>,
    /// Where listeners accept.
    pub(super) runtime: Handle,
    pub(super) notify: Arc<Notifier>,
    /// See [`GatewayState::synced`](super::admin_state::GatewayState::synced).
    pub(super) synced: Arc<AtomicBool>,
}

impl Applier {
    /// Applies listeners and certificates. One that fails leaves the old one in place and is logged.
    fn apply_edge(&mut self) {
        let errors = self.runtime.block_on(self.edge.apply(&self.settings));
        self.edge_is_wrong = !errors.is_empty();
        for error in errors {
            tracing::error!("{error}");
        }
    }
}

impl ChangeSink for Applier {
    fn prepare(&mut self, next: &Settings, places: &[ListenerReference]) -> Result<(), Vec<String>> {
        let refused = self.runtime.block_on(self.edge.prebind(next));
        if refused.is_empty() {
            return Ok(());
        }
        let mistakes = refused.into_iter().map(|(index, error)| {
            let place = places.get(index).and_then(|place| place.error(error.to_string()));
            place.map_or_else(|| error.to_string(), |mistake| mistake.to_string())
        });
        Err(mistakes.collect())
    }

    fn check_files(&mut self, delta: &Delta, files: &dyn Fn() -> Vec<FileReference>) -> Vec<String> {
        let bad = bad_pages(delta.services.iter().map(AsRef::as_ref), files);
        bad.items().iter().map(ToString::to_string).collect()
    }

    fn publish(&mut self, delta: &Delta) -> Result<Generation, String> {
        // Certificates of a new host are served before its routes are, and those of a removed one as long as these.
        let offered = self.edge.offer_certificates(delta);
        let generation = self.table.apply(delta).map_err(|e| e.to_string())?;
        offered.complete();
        // Listeners and their own certificates do not depend on services.
        if self.edge_is_wrong || !Arc::ptr_eq(&self.settings, &delta.settings) {
            self.settings = Arc::clone(&delta.settings);
            self.apply_edge();
        }
        self.metrics.set_generation(generation);
        Ok(generation)
    }

    fn scale(&mut self, plan: &PlanDelta) {
        self.plans.edit(plan);
        self.scale.apply(plan.clone());
        self.autoscale.apply(plan);
    }

    fn reread(&mut self) {
        self.apply_edge();
        for error in self.table.reread_pages() {
            tracing::error!("{error}");
        }
    }

    fn touched(&mut self) {
        self.edge.recheck_files();
    }

    fn synced(&mut self) {
        self.synced.store(true, Ordering::Relaxed);
    }

    fn outcome(&mut self, outcome: ReloadOutcome, found: &[Diagnostic]) {
        *self.diagnostics.lock() = diagnostics(wall_clock(), found);
        self.metrics.reloaded(match outcome {
            ReloadOutcome::Applied(_) => ReloadResult::Applied,
            ReloadOutcome::Unchanged => ReloadResult::Unchanged,
            ReloadOutcome::Rejected(_) => ReloadResult::Rejected,
        });
        self.notify.reloaded();
    }
}

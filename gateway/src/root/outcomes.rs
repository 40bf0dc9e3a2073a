//! What requests of a revision came to, from the counters and the live state that exist.

use std::sync::Arc;
use std::time::Instant;

use sluice_gateway::observe::Metrics;
use sluice_gateway::registry::Registry;
use sluice_model::{OutcomeSource, Outcomes, RevisionId, ServiceId};

/// Implements [`OutcomeSource`].
pub(super) struct CountedOutcomes {
    pub(super) registry: Arc<Registry>,
    pub(super) metrics: Metrics,
}

impl OutcomeSource for CountedOutcomes {
    fn outcomes(&self, service: &ServiceId, revision: &RevisionId) -> Option<Outcomes> {
        let load = self.registry.live(revision)?.peek(Instant::now());
        // A revision that never had a request has no counters.
        let counted = self.metrics.outcomes(service, revision).unwrap_or_default();
        Some(Outcomes {
            in_flight: load.in_flight.saturating_add(load.queued),
            ready: load.ready,
            endpoints: load.ready.saturating_add(load.starting),
            ..counted
        })
    }
}

//! Live state passes from one process to the next.

use std::sync::Arc;

use sluice_model::{Backend, RevisionId, RevisionSpec, ServiceId};

use super::{LiveRevision, Registry, holds};
use crate::throttle::{Closing, EndpointInUse, Permit, clock};

/// What an older process has of one revision.
#[derive(Debug, Clone)]
pub(crate) struct Inherited {
    pub(crate) revision: RevisionId,
    pub(crate) service: ServiceId,
    /// See [`backend_kind`].
    pub(crate) kind: String,
    /// Requests that one endpoint may hold.
    pub(crate) concurrency: Option<u32>,
    pub(crate) endpoints: Vec<EndpointInUse>,
}

/// How requests of a revision are sent: one process may use what another one grants only where both
/// would send them in the same way.
pub(crate) fn backend_kind(spec: &RevisionSpec) -> String {
    let protocol = spec.protocol;
    match &spec.backend {
        Backend::Managed => format!("managed {protocol:?}"),
        Backend::Static { activated, .. } => format!("static {protocol:?} {activated}"),
        Backend::Url(url) => format!("url {protocol:?} {url:?}"),
    }
}

impl Registry {
    /// Every live state, those of removed revisions that still have something in flight too.
    pub(crate) fn all_live(&self) -> Vec<Arc<LiveRevision>> {
        let leaving = self.leaving.lock();
        let current = self.reader.peek();
        let left = leaving.values().flatten().filter(|live| !holds(&current, live));
        let all = current.entries().flat_map(|entry| entry.live.revisions());
        all.chain(left).cloned().collect()
    }

    /// Takes over what an older process has of a revision. Returns the live state that its requests
    /// ask, if the revision is served here, and a Permit for each of them.
    ///
    /// Instances that no revision of the table takes get a live state that is leaving: they finish
    /// what they have, as those of a revision that a reload removed.
    pub(crate) fn inherit(&self, left: &Inherited) -> (Option<Arc<LiveRevision>>, Vec<Permit>) {
        let now = clock();
        let current = self.live(&left.revision);
        let current = current.filter(|live| backend_kind(&live.spec()) == left.kind);
        let (instances, fixed): (Vec<_>, Vec<_>) = left
            .endpoints
            .iter()
            .cloned()
            .partition(|endpoint| endpoint.id.instance.is_some());
        let mut permits = Vec::new();
        // One that is asleep wakes for what is in flight only: its addresses are configured, and ready.
        let in_use = |live: &LiveRevision| {
            live.awake().is_some() || fixed.iter().any(|endpoint| endpoint.in_flight > 0)
        };
        if let Some(live) = current.as_ref().filter(|live| in_use(live)) {
            let may_add = live.is_resolving();
            permits.extend(live.throttler().adopt(&fixed, may_add, now));
        }
        if instances.is_empty() {
            return (current, permits);
        }
        let live = current.unwrap_or_else(|| self.kept_on(left));
        permits.extend(live.throttler().adopt(&instances, true, now));
        live.start_probes();
        (Some(live), permits)
    }

    /// A live state for a revision that the table does not have.
    fn kept_on(&self, left: &Inherited) -> Arc<LiveRevision> {
        let mut leaving = self.leaving.lock();
        let named = leaving.entry(left.revision.clone()).or_default();
        if let Some(known) = named.first() {
            return Arc::clone(known);
        }
        let spec = Arc::new(RevisionSpec::leaving(
            left.revision.clone(),
            left.service.clone(),
            left.concurrency,
        ));
        let live = self.start(&spec);
        live.close(Closing::Removed, clock());
        named.push(Arc::clone(&live));
        live
    }
}

//! Hand-over of live state to the next process of an upgrade.

use std::sync::Arc;

use sluice_model::{Backend, Protocol, RevisionId, RevisionSpec, ServiceId};

use super::{LiveRevision, Registry, holds};
use crate::throttle::{Closing, EndpointInUse, Outlet, clock};

/// State of one revision in an older process.
#[derive(Debug, Clone)]
pub(crate) struct Inherited {
    pub(crate) revision: RevisionId,
    pub(crate) service: ServiceId,
    /// See [`backend_kind`].
    pub(crate) kind: String,
    /// Concurrency limit of one endpoint.
    pub(crate) concurrency: Option<u32>,
    pub(crate) endpoints: Vec<EndpointInUse>,
}

/// How requests of a revision are sent, as text to compare: a process may use another process's grants only
/// where both would send the requests in the same way.
pub(crate) fn backend_kind(spec: &RevisionSpec) -> String {
    kind(&spec.backend, spec.protocol)
}

fn kind(backend: &Backend, protocol: Protocol) -> String {
    match backend {
        Backend::Managed => format!("managed {protocol:?}"),
        Backend::Static { activated, .. } => format!("static {protocol:?} {activated}"),
        Backend::Pods(_) => format!("pods {protocol:?}"),
        Backend::Url(url) => format!("url {protocol:?} {url:?}"),
        Backend::Tiers(tiers) => {
            let kinds = tiers
                .iter()
                .map(|tier| format!("{}: {}", tier.name, kind(&tier.backend, protocol)));
            format!("tiers [{}]", kinds.collect::<Vec<_>>().join(", "))
        }
    }
}

impl Registry {
    /// Every live state, removed revisions with requests in flight included.
    pub(crate) fn all_live(&self) -> Vec<Arc<LiveRevision>> {
        let leaving = self.leaving.lock();
        let current = self.reader.peek();
        let left = leaving.values().flatten().filter(|live| !holds(&current, live));
        let all = current
            .slots()
            .filter_map(|(entry, slot)| entry.live.revisions().get(slot));
        all.chain(left).cloned().collect()
    }

    /// Takes over an older process's state of a revision, and sends messages about it to `older`. Returns the live state
    /// that the older process's requests get slots of, `None` where the revision is not served here, and whether it is awake
    /// and sends messages: one that is dormant adopts nothing before it is asked for.
    ///
    /// Instances that fit no revision of the table get a live state in `leaving`: they drain, as those of a
    /// revision that a reload removed.
    pub(crate) fn inherit(
        &self,
        left: &Inherited,
        older: &dyn Fn() -> Outlet,
    ) -> (Option<Arc<LiveRevision>>, bool) {
        let now = clock();
        let current = self.live(&left.revision);
        let current = current.filter(|live| backend_kind(&live.spec()) == left.kind);
        let (instances, fixed): (Vec<_>, Vec<_>) = left
            .endpoints
            .iter()
            .cloned()
            .partition(|endpoint| endpoint.id.instance.is_some());
        // A dormant revision wakes only for requests in flight: its addresses are configured, and ready.
        let in_use = |live: &LiveRevision| {
            live.awake().is_some() || fixed.iter().any(|endpoint| endpoint.in_flight > 0)
        };
        let mut adopts = false;
        if let Some(live) = current.as_ref().filter(|live| in_use(live)) {
            adopts = true;
            live.throttler().adopt(&fixed, live.is_resolving(), older(), now);
        }
        if instances.is_empty() {
            return (current, adopts);
        }
        let live = current.unwrap_or_else(|| self.kept_on(left));
        live.throttler().adopt(&instances, true, older(), now);
        live.start_probes();
        (Some(live), true)
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

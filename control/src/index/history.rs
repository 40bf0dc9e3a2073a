//! Histories in the index: what compiled services become by them, and changes of them alone.

use std::collections::HashSet;
use std::sync::Arc;

use sluice_model::ServiceId;

use super::publish::Change;
use super::{Index, Step, UnitId};
use crate::compile::CompiledService;
use crate::release::{Declared, Release, ServiceHistory};

/// A service whose release changed.
#[derive(Debug, Clone, PartialEq)]
pub struct ReleaseChange {
    /// The service.
    pub service: ServiceId,
    /// Its release; `None`: it is gone, or its history does not matter any more.
    pub release: Option<Release>,
    /// The history is another one than before.
    pub is_other_history: bool,
}

impl Index {
    /// A compiled service as its history has it published. A history that this publication changes is added to `changed`.
    pub(super) fn with_history(
        &self,
        compiled: &CompiledService,
        changed: &mut Vec<(ServiceId, ServiceHistory)>,
    ) -> CompiledService {
        let id = &compiled.service.id;
        let known = self.histories.get(id);
        if compiled.declared.is_none() && known.is_none() {
            return compiled.clone();
        }
        let declared = declared(compiled);
        let revisions = compiled.service.revisions.iter();
        let names: Vec<&str> = revisions.map(|spec| spec.id.name()).collect();
        let before = self
            .find_published(id)
            .and_then(|(_, published)| published.service.revisions.last());
        let before = before.map(|latest| latest.id.name());
        let history = declared.advance(
            compiled.digest,
            &names,
            known.map_or(&EMPTY, |known| known),
            before,
        );
        let applied = declared.apply(compiled, &history);
        if known.map_or(&EMPTY, |known| known) != &history {
            changed.push((id.clone(), history));
        }
        applied.unwrap_or_else(|| compiled.clone())
    }

    /// The release of a published service.
    pub fn release(&self, service: &ServiceId) -> Option<Release> {
        let (_, compiled) = self.find_published(service)?;
        let history = self.histories.get(service).cloned().unwrap_or_default();
        Some(declared(compiled).release(compiled, history))
    }

    /// The change that publishes a service by another history, whatever its object has by now; `None` for a service that is
    /// not published.
    pub fn edit(&self, service: &ServiceId, history: ServiceHistory) -> Option<Step> {
        let base = self.base.as_ref()?;
        let (id, compiled) = self.find_published(service)?;
        let mut applied = declared(compiled).apply(compiled, &history)?;
        if applied.service == compiled.service {
            applied.service = Arc::clone(&compiled.service);
        }
        let change = Change::between([compiled], [&applied]);
        let services = self
            .unit(id)?
            .published
            .iter()
            .map(|one| match one.service.id == *service {
                true => applied.clone(),
                false => one.clone(),
            });
        let services = services.collect();
        let mut step = Step::new(base.clone(), Some(base), change, vec![(id, services)]);
        step.is_edit = true;
        step.histories.push((service.clone(), history));
        Some(step)
    }

    /// Records the histories of a step at this time, in seconds since 1970, and those of removed services.
    pub(super) fn commit_histories(&mut self, step: &mut Step, now: u64) -> Vec<ReleaseChange> {
        let changed = std::mem::take(&mut step.histories);
        let removed = step.delta.removed.iter();
        let removed: Vec<ServiceId> = removed
            .filter(|id| self.histories.contains_key(id))
            .cloned()
            .collect();
        if changed.is_empty()
            && removed.is_empty()
            && step.units.iter().all(|(_, all)| all.iter().all(is_plain))
        {
            return Vec::new();
        }
        let mut released = Vec::new();
        let histories = Arc::make_mut(&mut self.histories);
        for id in removed {
            histories.remove(&id);
            released.push(ReleaseChange {
                service: id,
                release: None,
                is_other_history: true,
            });
        }
        let mut others = HashSet::with_capacity(changed.len());
        for (id, mut history) in changed {
            for kept in history.revisions.iter_mut().filter(|kept| kept.created == 0) {
                (kept.created, kept.last_active) = (now, now);
            }
            match history.is_trivial() {
                true => _ = histories.remove(&id),
                false => _ = histories.insert(id.clone(), Arc::new(history)),
            }
            others.insert(id);
        }
        for compiled in step.units.iter().flat_map(|(_, services)| services) {
            let id = &compiled.service.id;
            let is_other_history = others.contains(id);
            if is_plain(compiled) && !is_other_history {
                continue;
            }
            let history = self.histories.get(id).cloned();
            let matters = !is_plain(compiled) || history.is_some();
            released.push(ReleaseChange {
                service: id.clone(),
                release: matters.then(|| declared(compiled).release(compiled, history.unwrap_or_default())),
                is_other_history,
            });
        }
        released
    }

    fn find_published(&self, service: &ServiceId) -> Option<(UnitId, &CompiledService)> {
        let find = |id: UnitId| {
            let mut published = self.unit(id)?.published.iter();
            Some((id, published.find(|compiled| compiled.service.id == *service)?))
        };
        let by_claim = self.claimants(service).find_map(find);
        // Its object may have another name for it by now, and a mistake.
        by_claim.or_else(|| self.pending.keys().copied().find_map(find))
    }
}

static EMPTY: ServiceHistory = ServiceHistory {
    revisions: Vec::new(),
    settled: None,
    rollout: None,
    over: None,
};

fn is_plain(compiled: &CompiledService) -> bool {
    compiled.declared.is_none()
}

fn declared(compiled: &CompiledService) -> Arc<Declared> {
    let own = compiled.declared.clone();
    own.unwrap_or_else(|| Arc::new(Declared::of_published(&compiled.service)))
}

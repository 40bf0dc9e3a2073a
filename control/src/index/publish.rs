//! The publish step: the difference between compiled and published services, by policy.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use sluice_model::{Delta, HostPattern, RevisionId, Service, ServiceId, Settings};

use super::history::ReleaseChange;
use super::{Index, Policy, UnitId};
use crate::compile::CompiledService;
use crate::plan::{PlanDelta, ProcessLimits, RevisionPlan};
use crate::release::ServiceHistory;

/// A proposed change. Nothing counts as published until [`Index::commit`] gets the step back.
#[derive(Debug)]
pub struct Step {
    /// The change for the data plane.
    pub delta: Delta,
    /// The change for the scalers.
    pub plan: PlanDelta,
    /// Nothing differs from what was published last.
    pub is_empty: bool,
    /// The step removes a service or a host.
    pub takes_away: bool,
    /// The compiled services of each object, which [`Index::commit`] records as published.
    pub(super) units: Vec<(UnitId, Vec<CompiledService>)>,
    /// Histories that this step changes.
    pub(super) histories: Vec<(ServiceId, ServiceHistory)>,
    /// The step changes a history alone: what objects have that is not published yet stays so.
    pub(super) is_edit: bool,
}

impl Step {
    pub(super) fn new(
        base: Base,
        before: Option<&Base>,
        change: Change,
        units: Vec<(UnitId, Vec<CompiledService>)>,
    ) -> Self {
        let nothing = change.services.is_empty() && change.removed.is_empty() && change.revisions.is_empty();
        Self {
            is_empty: nothing && before.is_some_and(|before| before.is_same_as(&base)),
            takes_away: change.takes_away,
            delta: Delta {
                settings: base.settings,
                services: change.services,
                removed: change.removed,
            },
            plan: PlanDelta {
                revisions: change.revisions,
                processes: base.processes,
                drain: base.drain,
            },
            units,
            histories: Vec::new(),
            is_edit: false,
        }
    }
}

/// The global settings that were published last.
#[derive(Debug, Clone)]
pub(super) struct Base {
    pub(super) settings: Arc<Settings>,
    processes: ProcessLimits,
    drain: Duration,
}

impl Base {
    fn is_same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.settings, &other.settings)
            && self.processes == other.processes
            && self.drain == other.drain
    }
}

type Plans<'p> = BTreeMap<&'p RevisionId, &'p Arc<RevisionPlan>>;

/// The difference between the published services of some objects and their compiled services.
#[derive(Debug, Default)]
pub(super) struct Change {
    services: Vec<Arc<Service>>,
    removed: Vec<ServiceId>,
    revisions: BTreeMap<RevisionId, Option<Arc<RevisionPlan>>>,
    takes_away: bool,
}

impl Change {
    pub(super) fn between<'p>(
        before: impl IntoIterator<Item = &'p CompiledService>,
        after: impl IntoIterator<Item = &'p CompiledService>,
    ) -> Self {
        let before = before
            .into_iter()
            .map(|compiled| (&compiled.service.id, compiled));
        let mut before: HashMap<&ServiceId, &CompiledService> = before.collect();
        let (mut was, mut is) = (Plans::new(), Plans::new());
        for compiled in before.values() {
            was.extend(compiled.plans.iter().map(|(id, plan)| (id, plan)));
        }
        let mut change = Self::default();
        for compiled in after {
            is.extend(compiled.plans.iter().map(|(id, plan)| (id, plan)));
            let known = before.remove(&compiled.service.id);
            if known.is_none_or(|known| known.service != compiled.service) {
                change.takes_away |= known.is_some_and(|known| !keeps_hosts(known, compiled));
                change.services.push(Arc::clone(&compiled.service));
            }
        }
        change.takes_away |= !before.is_empty();
        change.removed = before.into_keys().cloned().collect();
        let scaled = is.iter().filter(|(id, plan)| was.get(*id) != Some(*plan));
        let scaled = scaled.map(|(id, plan)| ((*id).clone(), Some(Arc::clone(plan))));
        let unscaled = was.keys().filter(|id| !is.contains_key(*id));
        let unscaled = unscaled.map(|id| ((*id).clone(), None));
        change.revisions = scaled.chain(unscaled).collect();
        change
    }
}

impl Index {
    /// The proposed change; `None` if the policy forbids a change because of errors.
    pub fn propose(&self) -> Option<Step> {
        let units = match self.policy {
            Policy::AllOrNothing if self.errors() > 0 => return None,
            Policy::AllOrNothing => self.pending.keys().copied().collect(),
            Policy::PerObject => self.publishable(),
        };
        let ids: Vec<UnitId> = units
            .into_iter()
            .filter(|id| self.compiled(*id).is_some())
            .collect();
        let known: HashMap<&ServiceId, &Arc<Service>> = self
            .published(&ids)
            .map(|compiled| (&compiled.service.id, &compiled.service))
            .collect();
        let mut histories = Vec::new();
        let units: Vec<(UnitId, Vec<CompiledService>)> = ids
            .iter()
            .map(|id| {
                let services = self.compiled(*id).unwrap_or_default().iter();
                let services = services.map(|compiled| {
                    let mut compiled = self.with_history(compiled, &mut histories);
                    // Unchanged services keep their `Arc`, so that pointers stay equal.
                    if let Some(known) = known.get(&compiled.service.id)
                        && **known == compiled.service
                    {
                        compiled.service = Arc::clone(known);
                    }
                    compiled
                });
                (*id, services.collect())
            })
            .collect();
        let after = units.iter().flat_map(|(_, services)| services);
        let change = Change::between(self.published(&ids), after);
        let mut step = Step::new(self.next_base(), self.base.as_ref(), change, units);
        step.histories = histories;
        Some(step)
    }

    /// The published services of these objects and of deleted ones.
    pub(super) fn published(&self, ids: &[UnitId]) -> impl Iterator<Item = &CompiledService> {
        let units = ids.iter().filter_map(|id| self.unit(*id));
        units.flat_map(|unit| &*unit.published).chain(&self.orphans)
    }

    /// Records a proposed step as published at this time, in seconds since 1970. Returns the releases that changed with it.
    pub fn commit(&mut self, mut step: Step, now: u64) -> Vec<ReleaseChange> {
        let released = self.commit_histories(&mut step, now);
        if step.is_edit {
            for (id, services) in step.units {
                if let Some(unit) = self.units.get_mut(id as usize).and_then(Option::as_mut) {
                    unit.published = services.into();
                }
            }
            return released;
        }
        let gone = std::mem::take(&mut self.orphans);
        self.count(&gone, usize::wrapping_sub);
        for (id, services) in step.units {
            self.count(&services, usize::wrapping_add);
            let before = self.unit(id).map(|unit| unit.published.to_vec());
            self.count(&before.unwrap_or_default(), usize::wrapping_sub);
            if let Some(unit) = self.units.get_mut(id as usize).and_then(Option::as_mut) {
                unit.published = services.into();
            }
            self.pending.remove(&id);
        }
        self.base = Some(Base {
            settings: step.delta.settings,
            processes: step.plan.processes,
            drain: step.plan.drain,
        });
        released
    }

    /// The compiled services of a changed object that is not published yet.
    fn compiled(&self, id: UnitId) -> Option<&[CompiledService]> {
        self.pending.get(&id)?.as_deref()
    }

    fn count(&mut self, services: &[CompiledService], add: fn(usize, usize) -> usize) {
        let revisions = services.iter().map(|compiled| compiled.service.revisions.len());
        self.services = add(self.services, services.len());
        self.revisions = add(self.revisions, revisions.sum());
    }

    /// The global settings of the next step; those that were published last if the new ones have errors and objects
    /// are published one by one.
    pub(super) fn next_base(&self) -> Base {
        let draft = self.top_level.draft();
        if let (Some(base), true) = (&self.base, self.top_level.diagnostics().errors() > 0) {
            return base.clone();
        }
        let known = self.base.as_ref().map(|base| &base.settings);
        let known = known.filter(|settings| ***settings == draft.settings);
        Base {
            settings: known.map_or_else(|| Arc::new(draft.settings.clone()), Arc::clone),
            processes: draft.processes.clone(),
            drain: draft.settings.drain.timeout,
        }
    }

    /// Changed objects without errors that have no claim in common with an object that stays at its last version.
    fn publishable(&self) -> Vec<UnitId> {
        let is_wrong = |id: &UnitId| {
            let errors = |key| self.diagnostics.get(key).is_some_and(|told| told.errors() > 0);
            self.compiled(*id).is_none() || self.key(*id).is_none_or(errors)
        };
        let pending = self.pending.keys().copied();
        let (wrong, mut right): (Vec<UnitId>, Vec<UnitId>) = pending.partition(is_wrong);
        let mut kept = Names::default();
        let mut keep = wrong;
        while !keep.is_empty() {
            for unit in keep.iter().filter_map(|id| self.unit(*id)) {
                kept.add(&unit.published);
            }
            // An object that has to wait stays at its last version as well.
            let clashes = |id: &UnitId| kept.has_any(self.compiled(*id).unwrap_or_default());
            (keep, right) = right.into_iter().partition(clashes);
        }
        right
    }
}

/// Whether a service keeps all hosts that it had.
fn keeps_hosts(before: &CompiledService, after: &CompiledService) -> bool {
    let after: HashSet<&HostPattern> = after.service.hosts.iter().map(|claim| &claim.pattern).collect();
    before
        .service
        .hosts
        .iter()
        .all(|claim| after.contains(&claim.pattern))
}

/// A set of names and hosts that are taken.
#[derive(Default)]
struct Names<'p> {
    services: HashSet<&'p ServiceId>,
    revisions: HashSet<&'p RevisionId>,
    hosts: HashSet<&'p HostPattern>,
}

impl<'p> Names<'p> {
    fn add(&mut self, services: &'p [CompiledService]) {
        for compiled in services {
            self.services.insert(&compiled.service.id);
            self.revisions
                .extend(compiled.service.revisions.iter().map(|spec| &spec.id));
            self.hosts
                .extend(compiled.service.hosts.iter().map(|claim| &claim.pattern));
        }
    }

    fn has_any(&self, services: &[CompiledService]) -> bool {
        services.iter().any(|compiled| {
            self.services.contains(&compiled.service.id)
                || compiled
                    .service
                    .revisions
                    .iter()
                    .any(|spec| self.revisions.contains(&spec.id))
                || compiled
                    .service
                    .hosts
                    .iter()
                    .any(|claim| self.hosts.contains(&claim.pattern))
        })
    }
}

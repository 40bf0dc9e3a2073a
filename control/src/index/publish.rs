//! From what objects were compiled to to what is served: the difference, by policy.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use sluice_model::{Delta, HostPattern, RevisionId, ServiceId, Settings};

use super::{Index, Policy, UnitId};
use crate::compile::Piece;
use crate::plan::{PlanDelta, ProcessLimits, RevisionPlan};

/// What there is to publish. Nothing is published until [`Index::commit`] takes it back.
#[derive(Debug)]
pub struct Step {
    /// For whoever serves.
    pub delta: Delta,
    /// For whoever scales.
    pub plan: PlanDelta,
    /// Nothing is other than what was published last.
    pub is_empty: bool,
    /// A service or a host is served no more.
    pub takes_away: bool,
    units: Vec<(UnitId, Vec<Piece>)>,
}

/// What was published last of what holds for all.
#[derive(Debug)]
pub(super) struct Base {
    settings: Arc<Settings>,
    processes: ProcessLimits,
    drain: Duration,
}

type Plans<'p> = BTreeMap<&'p RevisionId, &'p Arc<RevisionPlan>>;

impl Index {
    /// What there is to publish; `None`: by the policy nothing may be, something is wrong.
    pub fn propose(&self) -> Option<Step> {
        let units = match self.policy {
            Policy::AllOrNothing if self.errors() > 0 => return None,
            Policy::AllOrNothing => self.pending.clone().into_iter().collect(),
            Policy::PerObject => self.publishable(),
        };
        let units: Vec<(UnitId, &[Piece])> = units
            .into_iter()
            .filter_map(|id| Some((id, self.unit(id)?.compiled.as_deref()?)))
            .collect();
        let before = units.iter().filter_map(|(id, _)| self.unit(*id));
        let before = before.flat_map(|unit| &*unit.published).chain(&self.orphans);
        let mut before: HashMap<&ServiceId, &Piece> = before.map(|p| (&p.service.id, p)).collect();
        let (mut was, mut is) = (Plans::new(), Plans::new());
        for piece in before.values() {
            was.extend(piece.plans.iter().map(|(id, plan)| (id, plan)));
        }
        let mut services = Vec::new();
        let mut takes_away = false;
        let mut assigned = Vec::with_capacity(units.len());
        for (id, pieces) in &units {
            let mut own = Vec::with_capacity(pieces.len());
            for piece in *pieces {
                is.extend(piece.plans.iter().map(|(id, plan)| (id, plan)));
                let mut piece = piece.clone();
                match before.remove(&piece.service.id) {
                    // Unchanged services stay the same ones, pointer for pointer.
                    Some(known) if known.service == piece.service => {
                        piece.service = Arc::clone(&known.service);
                    }
                    Some(known) => {
                        takes_away |= !keeps_hosts(known, &piece);
                        services.push(Arc::clone(&piece.service));
                    }
                    None => services.push(Arc::clone(&piece.service)),
                }
                own.push(piece);
            }
            assigned.push((*id, own));
        }
        let removed: Vec<ServiceId> = before.into_keys().cloned().collect();
        takes_away |= !removed.is_empty();
        let scaled = is.iter().filter(|(id, plan)| was.get(*id) != Some(*plan));
        let scaled = scaled.map(|(id, plan)| ((*id).clone(), Some(Arc::clone(plan))));
        let unscaled = was.keys().filter(|id| !is.contains_key(*id));
        let unscaled = unscaled.map(|id| ((*id).clone(), None));
        let revisions: BTreeMap<_, _> = scaled.chain(unscaled).collect();
        let base = self.next_base();
        let same_base = self.base.as_ref().is_some_and(|known| {
            Arc::ptr_eq(&known.settings, &base.settings)
                && known.processes == base.processes
                && known.drain == base.drain
        });
        let is_empty = same_base && services.is_empty() && removed.is_empty() && revisions.is_empty();
        Some(Step {
            delta: Delta {
                settings: base.settings,
                services,
                removed,
            },
            plan: PlanDelta {
                revisions,
                processes: base.processes,
                drain: base.drain,
            },
            is_empty,
            takes_away,
            units: assigned,
        })
    }

    /// What was proposed is published.
    pub fn commit(&mut self, step: Step) {
        let gone = std::mem::take(&mut self.orphans);
        self.count(&gone, usize::wrapping_sub);
        for (id, pieces) in step.units {
            self.count(&pieces, usize::wrapping_add);
            let before = self.unit(id).map(|unit| unit.published.to_vec());
            self.count(&before.unwrap_or_default(), usize::wrapping_sub);
            if let Some(unit) = self.units.get_mut(id as usize).and_then(Option::as_mut) {
                unit.published = pieces.into();
                unit.compiled = None;
            }
            self.pending.remove(&id);
        }
        self.base = Some(Base {
            settings: step.delta.settings,
            processes: step.plan.processes,
            drain: step.plan.drain,
        });
    }

    fn count(&mut self, pieces: &[Piece], add: fn(usize, usize) -> usize) {
        let revisions = pieces.iter().map(|piece| piece.service.revisions.len());
        self.services = add(self.services, pieces.len());
        self.revisions = add(self.revisions, revisions.sum());
    }

    /// What holds for all from now on; where it is wrong and objects are published one by one, what held
    /// before.
    fn next_base(&self) -> Base {
        let draft = self.ground.draft();
        if let (Some(base), true) = (&self.base, self.ground.diagnostics().errors() > 0) {
            return Base {
                settings: Arc::clone(&base.settings),
                processes: base.processes.clone(),
                drain: base.drain,
            };
        }
        let known = self.base.as_ref().map(|base| &base.settings);
        let known = known.filter(|settings| ***settings == draft.settings);
        Base {
            settings: known.map_or_else(|| Arc::new(draft.settings.clone()), Arc::clone),
            processes: draft.processes.clone(),
            drain: draft.settings.drain.timeout,
        }
    }

    /// Objects that are right and want nothing that one which is wrong goes on serving.
    fn publishable(&self) -> Vec<UnitId> {
        let is_wrong = |id: &UnitId| {
            let unit = self.unit(*id);
            unit.is_none_or(|unit| {
                unit.compiled.is_none() || self.told.get(&unit.key).is_some_and(|told| told.errors() > 0)
            })
        };
        let (wrong, mut right): (Vec<UnitId>, Vec<UnitId>) = self.pending.iter().partition(|id| is_wrong(id));
        let mut kept = Names::default();
        let mut keep = wrong;
        while !keep.is_empty() {
            for unit in keep.iter().filter_map(|id| self.unit(*id)) {
                kept.add(&unit.published);
            }
            // One that has to wait goes on with its last version too.
            (keep, right) = right.into_iter().partition(|id| {
                let unit = self.unit(*id);
                let pieces = unit.and_then(|unit| unit.compiled.as_deref());
                kept.has_any(pieces.unwrap_or_default())
            });
        }
        right
    }
}

/// Whether a service has all the hosts that it had.
fn keeps_hosts(before: &Piece, after: &Piece) -> bool {
    let after: HashSet<&HostPattern> = after.service.hosts.iter().map(|(host, _)| host).collect();
    before.service.hosts.iter().all(|(host, _)| after.contains(host))
}

/// Names and hosts that are taken.
#[derive(Default)]
struct Names<'p> {
    services: HashSet<&'p ServiceId>,
    revisions: HashSet<&'p RevisionId>,
    hosts: HashSet<&'p HostPattern>,
}

impl<'p> Names<'p> {
    fn add(&mut self, pieces: &'p [Piece]) {
        for piece in pieces {
            self.services.insert(&piece.service.id);
            self.revisions
                .extend(piece.service.revisions.iter().map(|spec| &spec.id));
            self.hosts
                .extend(piece.service.hosts.iter().map(|(host, _)| host));
        }
    }

    fn has_any(&self, pieces: &[Piece]) -> bool {
        pieces.iter().any(|piece| {
            self.services.contains(&piece.service.id)
                || piece
                    .service
                    .revisions
                    .iter()
                    .any(|spec| self.revisions.contains(&spec.id))
                || piece
                    .service
                    .hosts
                    .iter()
                    .any(|(host, _)| self.hosts.contains(host))
        })
    }
}

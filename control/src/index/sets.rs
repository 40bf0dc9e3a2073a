//! Two sets of objects, each published by its own policy, whose union is served.
//!
//! Files are one operator's and all or nothing; objects of a cluster belong to different people and are
//! published one by one. What both claim is the files': a service, a revision or a host that files publish is
//! taken from the cluster's objects for as long as files have it, and whoever lost it is told.
//!
//! **Invariant:** what is served of files is what files alone would give, whatever the cluster says; and what is
//! served of the cluster is what the cluster alone would give, less what files have (property tests). So neither
//! can freeze or break the other: each is proposed, published and refused for itself. What holds for all
//! (domain, defaults, listeners) is said by files; the cluster follows what they published last.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use sluice_model::ServiceId;

use super::publish::Change;
use super::{Index, Policy, Step, UnitId, name_claims};
use crate::compile::{CompiledService, NameClaim};
use crate::config::{Diagnostic, Diagnostics, Env};
use crate::source::{Event, ObjectKey};

/// Which set an object belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetId {
    /// Files: all or nothing, and first in everything that both claim.
    Files,
    /// Objects of a cluster: one by one.
    Cluster,
}

/// All objects of both sets.
#[derive(Debug)]
pub struct Sets {
    files: Index,
    cluster: Index,
}

impl Default for Sets {
    fn default() -> Self {
        Self {
            files: Index::new(Policy::AllOrNothing),
            cluster: Index::new(Policy::PerObject),
        }
    }
}

impl Sets {
    /// As [`Index::apply`], to one of the sets.
    pub fn apply(&mut self, set: SetId, events: impl IntoIterator<Item = Event>, env: Env<'_>) -> bool {
        self.index_mut(set).apply(events, env)
    }

    /// What there is to publish of one set, as a change of the union; `None`: by its policy nothing may be, or
    /// nothing of the files was published yet.
    pub fn propose(&self, set: SetId) -> Option<Step> {
        match set {
            SetId::Files => self.propose_files(),
            SetId::Cluster => self.propose_cluster(),
        }
    }

    /// What was proposed of this set is published. What holds for all may be something else now: propose the
    /// cluster again.
    pub fn commit(&mut self, set: SetId, step: Step, env: Env<'_>) {
        self.index_mut(set).commit(step);
        if set == SetId::Files {
            self.cluster.follow(self.files.top_level.draft(), env);
        }
    }

    /// Everything that is wrong with one set, and all warnings, in the order of its objects.
    pub fn diagnostics(&self, set: SetId) -> Diagnostics {
        let mut all = self.index(set).diagnostics();
        if set == SetId::Cluster {
            let claims = PublishedClaims::of(&self.files);
            let mut keys: Vec<&ObjectKey> = self.cluster.by_key.keys().collect();
            keys.sort();
            for key in keys {
                all.append(self.lost(key, &claims));
            }
        }
        all
    }

    /// What is wrong with one object, for its status: what it lost to the files, too.
    pub fn diagnostics_of(&self, set: SetId, key: &ObjectKey) -> Diagnostics {
        let mut all = self.index(set).diagnostics_of(key);
        if set == SetId::Cluster {
            all.append(self.lost(key, &PublishedClaims::of(&self.files)));
        }
        all
    }

    /// How many errors there are in one set.
    pub fn errors(&self, set: SetId) -> usize {
        self.index(set).errors()
    }

    fn index(&self, set: SetId) -> &Index {
        match set {
            SetId::Files => &self.files,
            SetId::Cluster => &self.cluster,
        }
    }

    fn index_mut(&mut self, set: SetId) -> &mut Index {
        match set {
            SetId::Files => &mut self.files,
            SetId::Cluster => &mut self.cluster,
        }
    }

    fn propose_files(&self) -> Option<Step> {
        let own = self.files.propose()?;
        if self.cluster.is_empty() && self.cluster.orphans.is_empty() {
            return Some(own);
        }
        let ids: Vec<UnitId> = own.units.iter().map(|(id, _)| *id).collect();
        let before: Vec<&CompiledService> = self.files.published(&ids).collect();
        let after: Vec<&CompiledService> = own.units.iter().flat_map(|(_, services)| services).collect();
        let now = PublishedClaims::of(&self.files);
        let next = now.with(&before, &after);
        // Those of the cluster who get or lose something by it.
        let guests = PublishedClaims::of(&self.cluster);
        let mut touched: HashMap<&ServiceId, &CompiledService> = HashMap::new();
        for compiled in before.iter().chain(&after) {
            name_claims::each_of(compiled, |claim| {
                let guests = guests.who(&claim).map(|guest| (&guest.service.id, guest));
                touched.extend(guests);
            });
        }
        let left = |claims: &PublishedClaims<'_>| -> Vec<CompiledService> {
            let guests = touched.values();
            guests.filter_map(|guest| rest_of(guest, claims)).collect()
        };
        let (was, is) = (left(&now), left(&next));
        let change = Change::between(before.into_iter().chain(&was), after.into_iter().chain(&is));
        // What the cluster loses is not taken away by half of a change.
        let takes_away = own.takes_away;
        let base = self.files.next_base();
        let mut step = Step::new(base, self.files.base.as_ref(), change, own.units);
        step.takes_away = takes_away;
        Some(step)
    }

    fn propose_cluster(&self) -> Option<Step> {
        let base = self.files.base.as_ref()?;
        let own = self.cluster.propose()?;
        let claims = PublishedClaims::of(&self.files);
        let ids: Vec<UnitId> = own.units.iter().map(|(id, _)| *id).collect();
        let before = self.cluster.published(&ids);
        let was: Vec<CompiledService> = before.filter_map(|compiled| rest_of(compiled, &claims)).collect();
        let after = own.units.iter().flat_map(|(_, services)| services);
        let is: Vec<CompiledService> = after.filter_map(|compiled| rest_of(compiled, &claims)).collect();
        let change = Change::between(&was, &is);
        Some(Step::new(base.clone(), Some(base), change, own.units))
    }

    /// What an object of the cluster lost to the files.
    fn lost(&self, key: &ObjectKey, claims: &PublishedClaims<'_>) -> Diagnostics {
        let mut lost = Diagnostics::default();
        let unit = self.cluster.by_key.get(key);
        let unit = unit.and_then(|id| self.cluster.unit(*id));
        for compiled in unit.iter().flat_map(|unit| &*unit.published) {
            name_claims::each_of(compiled, |claim| {
                let Some(owner) = claims.who(&claim).next() else {
                    return;
                };
                let (what, whom) = (describe(&claim), &owner.service.id);
                let message = format!("{what} is claimed by service {whom} of the configuration files");
                let hint = "what files claim is theirs: take it from one of them";
                lost.push(Diagnostic::about_file(key.path(), message).hint(hint).warning());
            });
        }
        lost
    }
}

fn describe(claim: &NameClaim<'_>) -> String {
    match claim {
        NameClaim::Service(namespace, name) => format!("the service name '{namespace}/{name}'"),
        NameClaim::Revision(namespace, name) => format!("the revision name '{namespace}/{name}'"),
        NameClaim::Host(host) => format!("the host '{host}'"),
    }
}

/// What is left of a service of the cluster: nothing when its name or one of its revisions' is taken, else it without
/// the hosts that are.
fn rest_of(compiled: &CompiledService, claims: &PublishedClaims<'_>) -> Option<CompiledService> {
    let service = &compiled.service;
    let taken = |claim: NameClaim<'_>| claims.who(&claim).next().is_some();
    let mut ids = service.revisions.iter().map(|spec| &spec.id);
    if taken(NameClaim::Service(service.id.namespace(), service.id.name()))
        || ids.any(|id| taken(NameClaim::Revision(id.namespace(), id.name())))
    {
        return None;
    }
    let lost = |host: &str| taken(NameClaim::Host(host));
    let mut rest = compiled.clone();
    if service.hosts.iter().any(|(host, _)| lost(&host.to_string())) {
        let service = Arc::make_mut(&mut rest.service);
        service.hosts.retain(|(host, _)| !lost(&host.to_string()));
    }
    Some(rest)
}

/// Who has published what, in one index; or will have, after a change.
///
/// Names and hosts have their owners in the index already, by what objects say. Where that is not what was
/// published, which is of few objects, they are gathered here; so nothing is kept twice.
#[derive(Debug)]
struct PublishedClaims<'i> {
    index: &'i Index,
    /// Of objects that are published otherwise than they are, by hash.
    unsettled: HashMap<u64, Vec<&'i CompiledService>>,
    /// Services that are not as they were published.
    outdated: HashSet<&'i ServiceId>,
    /// What they, and new ones, will be, by hash.
    fresh: HashMap<u64, Vec<&'i CompiledService>>,
}

impl<'i> PublishedClaims<'i> {
    fn of(index: &'i Index) -> Self {
        let pending: Vec<UnitId> = index.pending.keys().copied().collect();
        Self {
            index,
            unsettled: by_hash(index.published(&pending)),
            outdated: HashSet::new(),
            fresh: HashMap::new(),
        }
    }

    /// As it will be once the ones before are the ones after.
    fn with(&self, before: &[&'i CompiledService], after: &[&'i CompiledService]) -> Self {
        Self {
            index: self.index,
            unsettled: self.unsettled.clone(),
            outdated: before.iter().map(|compiled| &compiled.service.id).collect(),
            fresh: by_hash(after.iter().copied()),
        }
    }

    /// The services that have it: one at most, in a table.
    fn who(&self, claim: &NameClaim<'_>) -> impl Iterator<Item = &'i CompiledService> {
        let hash = name_claims::hash(claim);
        let settled = self.index.claims.who(hash);
        let settled = settled.filter(|id| !self.index.pending.contains_key(id));
        let settled = settled.filter_map(|id| self.index.unit(id));
        let settled = settled.flat_map(|unit| &*unit.published);
        let unsettled = self.unsettled.get(&hash).into_iter().flatten().copied();
        let old = settled.chain(unsettled);
        let old = old.filter(|compiled| !self.outdated.contains(&compiled.service.id));
        let fresh = self.fresh.get(&hash).into_iter().flatten().copied();
        let all: Vec<&CompiledService> = fresh.chain(old).filter(|compiled| name_claims::has(compiled, claim)).collect();
        all.into_iter()
    }
}

fn by_hash<'p>(services: impl Iterator<Item = &'p CompiledService>) -> HashMap<u64, Vec<&'p CompiledService>> {
    let mut by_hash: HashMap<u64, Vec<&CompiledService>> = HashMap::new();
    for compiled in services {
        name_claims::each_of(compiled, |claim| {
            by_hash.entry(name_claims::hash(&claim)).or_default().push(compiled)
        });
    }
    by_hash
}

#[cfg(test)]
#[path = "sets_tests.rs"]
mod tests;

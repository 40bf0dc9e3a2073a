//! The union of two sets of objects: files and cluster objects, each published by its own policy.
//!
//! Files belong to one operator and are published all or nothing; objects of a cluster belong to different people and
//! are published one by one. Files take precedence: a service, a revision or a host that files publish is removed
//! from the cluster's objects for as long as files have it, and the object that lost it gets a warning.
//!
//! **Invariant:** the published services of files are those that files alone would give, whatever the cluster has;
//! and the published services of the cluster are those that the cluster alone would give, without the claims of files
//! (property tests). So neither set can freeze or break the other: each set is proposed, published and refused on its
//! own. Files have the top-level settings (domain, defaults, listeners); the cluster is compiled by the settings that
//! files published last.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use sluice_model::{ServiceId, Settings};

use super::publish::Change;
use super::{Index, Policy, ReleaseChange, Step, UnitId, name_claims};
use crate::compile::{CompiledService, FileReference, ListenerReference, NameClaim};
use crate::config::{Defaults, Diagnostic, Diagnostics, Env, SharedSettings, SourceFile};
use crate::ingress::{IngressOutcome, IngressProblem, ProblemKind};
use crate::release::{Histories, Release, ServiceHistory};
use crate::source::{Event, ObjectKey};

/// The set of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetId {
    /// Files: published all or nothing, with precedence over the cluster.
    Files,
    /// Objects of a cluster: published one by one.
    Cluster,
}

/// The indexes of both sets.
#[derive(Debug)]
pub struct Sets {
    files: Index,
    cluster: Index,
    /// What is wrong with the settings of the cluster, whose last good ones hold.
    shared_mistakes: Diagnostics,
}

impl Default for Sets {
    fn default() -> Self {
        Self::new(Defaults::default())
    }
}

impl Sets {
    /// Sets without objects, with these defaults of the settings.
    pub fn new(defaults: Defaults) -> Self {
        Self {
            files: Index::with_defaults(Policy::AllOrNothing, defaults),
            cluster: Index::new(Policy::PerObject),
            shared_mistakes: Diagnostics::default(),
        }
    }

    /// Applies events to one of the sets, as [`Index::apply`] does.
    pub fn apply(&mut self, set: SetId, events: impl IntoIterator<Item = Event>, env: Env<'_>) -> bool {
        self.index_mut(set).apply(events, env)
    }

    /// Applies the first events of files on all cores, as [`Index::apply_first`] does.
    pub fn apply_first(
        &mut self,
        events: impl IntoIterator<Item = Event>,
        env: Env<'_>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> bool {
        self.files.apply_first(events, env, progress)
    }

    /// Replaces the settings that the cluster gives all gateways; `None`: there are none. They hold where no file has the
    /// key. Returns whether files are to be proposed again.
    ///
    /// # Errors
    /// What is wrong with them: the last good ones go on, and [`diagnostics`](Self::diagnostics) of files say so.
    pub fn set_shared(&mut self, text: Option<&SourceFile>, env: Env<'_>) -> Result<bool, Diagnostics> {
        self.shared_mistakes = Diagnostics::default();
        match text.map(SharedSettings::decode).transpose() {
            Ok(settings) => Ok(self.files.set_shared(settings, env)),
            Err(mistakes) => {
                self.shared_mistakes = mistakes.clone();
                Err(mistakes)
            }
        }
    }

    /// What becomes of the changed Ingresses when this step of the cluster is published.
    pub fn outcomes(&self, step: &Step) -> Vec<IngressOutcome> {
        let mut outcomes = self.cluster.outcomes(step);
        let claims = PublishedClaims::of(&self.files);
        for outcome in outcomes.iter_mut().filter(|outcome| outcome.problem.is_none()) {
            let Some(service) = &outcome.object.service else {
                continue;
            };
            let compiled = CompiledService {
                service: Arc::clone(service),
                plans: Box::default(),
                digest: 0,
                declared: None,
            };
            let lost = lost_claims(&compiled, &claims);
            if !lost.is_empty() {
                let why = IngressProblem::new(ProblemKind::HostConflict, lost.join(", "));
                outcome.problem = Some(why);
            }
        }
        outcomes
    }

    /// Files that the configuration names, for a check by the data plane.
    pub fn files(&self) -> Vec<FileReference> {
        self.files.files()
    }

    /// The files that the settings name, without the files of services.
    pub fn settings_files(&self) -> Vec<FileReference> {
        self.files.settings_files()
    }

    /// The positions of the listeners, in the order of the settings.
    pub fn listeners(&self) -> Vec<ListenerReference> {
        self.files.listeners()
    }

    /// The number of published services.
    pub fn services(&self) -> usize {
        self.files.services() + self.cluster.services()
    }

    /// The number of published revisions.
    pub fn revisions(&self) -> usize {
        self.files.revisions() + self.cluster.revisions()
    }

    /// Whether a set has no object.
    pub fn is_empty(&self, set: SetId) -> bool {
        self.index(set).is_empty()
    }

    /// The proposed change of one set, as a change of the union; `None` if the policy of the set forbids a change, or
    /// if no files were published yet.
    pub fn propose(&self, set: SetId) -> Option<Step> {
        match set {
            SetId::Files => self.propose_files(),
            SetId::Cluster => self.propose_cluster(),
        }
    }

    /// Records a proposed step of this set as published. After a step of files the top-level settings may be other
    /// ones: propose the cluster again.
    ///
    /// The step is recorded as published at this time, in seconds since 1970. Returns the releases that changed with it.
    pub fn commit(&mut self, set: SetId, step: Step, now: u64, env: Env<'_>) -> Vec<ReleaseChange> {
        let is_edit = step.is_edit;
        let released = self.index_mut(set).commit(step, now);
        if set == SetId::Files && !is_edit {
            self.cluster.follow(self.files.top_level.draft(), env);
        }
        released
    }

    /// Replaces the histories of the services of files, as the index does.
    pub fn set_histories(&mut self, histories: Histories, env: Env<'_>) -> bool {
        self.files.set_histories(histories, env)
    }

    /// The histories of the services of files, as published.
    pub fn histories(&self) -> Histories {
        (*self.files.histories).clone()
    }

    /// The settings of files, whether published or not.
    pub(crate) fn settings(&self) -> &Settings {
        self.files.settings()
    }

    /// Compiles a service of files again, after a change of its history that says what its revisions are. Propose the files
    /// then.
    pub fn read_again(&mut self, service: &ServiceId, env: Env<'_>) {
        self.files.read_again(service, env);
    }

    /// The release of a published service of files.
    pub fn release(&self, service: &ServiceId) -> Option<Release> {
        self.files.release(service)
    }

    /// The change that publishes a service of files by another history, as [`Index::edit`] makes it.
    pub fn edit(&self, service: &ServiceId, history: ServiceHistory) -> Option<Step> {
        self.files.edit(service, history)
    }

    /// All errors and warnings of one set, in the order of its objects.
    pub fn diagnostics(&self, set: SetId) -> Diagnostics {
        let mut all = self.index(set).diagnostics();
        if set == SetId::Files {
            all.append(self.shared_mistakes.clone());
        } else {
            let claims = PublishedClaims::of(&self.files);
            let mut keys: Vec<&ObjectKey> = self.cluster.by_key.keys().collect();
            keys.sort();
            for key in keys {
                all.append(self.lost(key, &claims));
            }
        }
        all
    }

    /// The diagnostics of one object, for its status, with warnings about claims that the object lost to files.
    pub fn diagnostics_of(&self, set: SetId, key: &ObjectKey) -> Diagnostics {
        let mut all = self.index(set).diagnostics_of(key);
        if set == SetId::Cluster {
            all.append(self.lost(key, &PublishedClaims::of(&self.files)));
        }
        all
    }

    /// The number of errors in one set.
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
        // The cluster's services that lose a claim to this step, or get one back.
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
        // Only what files themselves remove counts: claims that the cluster loses are not removals of a half-applied
        // change.
        let takes_away = own.takes_away;
        let base = self.files.next_base();
        let mut step = Step::new(base, self.files.base.as_ref(), change, own.units);
        step.takes_away = takes_away;
        step.histories = own.histories;
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

    /// Warnings about the claims that an object of the cluster lost to files.
    fn lost(&self, key: &ObjectKey, claims: &PublishedClaims<'_>) -> Diagnostics {
        let mut lost = Diagnostics::default();
        let unit = self.cluster.by_key.get(key);
        let unit = unit.and_then(|id| self.cluster.unit(*id));
        for compiled in unit.iter().flat_map(|unit| &*unit.published) {
            for message in lost_claims(compiled, claims) {
                let hint = "what files claim is theirs: take it from one of them";
                lost.push(Diagnostic::about_file(key.path(), message).hint(hint).warning());
            }
        }
        lost
    }
}

/// The claims of a service of the cluster that files have.
fn lost_claims(compiled: &CompiledService, claims: &PublishedClaims<'_>) -> Vec<String> {
    let mut lost = Vec::new();
    name_claims::each_of(compiled, |claim| {
        if let Some(owner) = claims.who(&claim).next() {
            let (what, whom) = (describe(&claim), &owner.service.id);
            lost.push(format!(
                "{what} is claimed by service {whom} of the configuration files"
            ));
        }
    });
    lost
}

fn describe(claim: &NameClaim<'_>) -> String {
    match claim {
        NameClaim::Service(namespace, name) => format!("the service name '{namespace}/{name}'"),
        NameClaim::Revision(namespace, name) => format!("the revision name '{namespace}/{name}'"),
        NameClaim::Configuration(namespace, name) => format!("Configuration '{name}' of {namespace}"),
        NameClaim::Host(host) => format!("the host '{host}'"),
    }
}

/// A service of the cluster without the hosts that files claim; `None` if files claim its name or the name of one of
/// its revisions.
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
    if service.hosts.iter().any(|claim| lost(&claim.pattern.to_string())) {
        let service = Arc::make_mut(&mut rest.service);
        service.hosts.retain(|claim| !lost(&claim.pattern.to_string()));
    }
    Some(rest)
}

/// The published claims of one index, or those after a step.
///
/// The index has the claims of each object's content already. Only for objects whose published version differs, which
/// are few, this struct collects the published claims; so no claim is stored twice.
#[derive(Debug)]
struct PublishedClaims<'i> {
    index: &'i Index,
    /// Published services of objects with unpublished changes, by hash.
    unsettled: HashMap<u64, Vec<&'i CompiledService>>,
    /// Services that the step replaces or removes.
    outdated: HashSet<&'i ServiceId>,
    /// The services of the step, by hash.
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

    /// The claims after a step that replaces the services in `before` by those in `after`.
    fn with(&self, before: &[&'i CompiledService], after: &[&'i CompiledService]) -> Self {
        Self {
            index: self.index,
            unsettled: self.unsettled.clone(),
            outdated: before.iter().map(|compiled| &compiled.service.id).collect(),
            fresh: by_hash(after.iter().copied()),
        }
    }

    /// The services that have this claim: one at most, in a table.
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
        let all: Vec<&CompiledService> = fresh
            .chain(old)
            .filter(|compiled| name_claims::has(compiled, claim))
            .collect();
        all.into_iter()
    }
}

fn by_hash<'p>(
    services: impl Iterator<Item = &'p CompiledService>,
) -> HashMap<u64, Vec<&'p CompiledService>> {
    let mut by_hash: HashMap<u64, Vec<&CompiledService>> = HashMap::new();
    for compiled in services {
        name_claims::each_of(compiled, |claim| {
            by_hash
                .entry(name_claims::hash(&claim))
                .or_default()
                .push(compiled)
        });
    }
    by_hash
}

#[cfg(test)]
#[path = "sets_tests.rs"]
mod tests;

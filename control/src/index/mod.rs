//! The incremental index of configuration objects: a change of one object costs the compilation of that object alone.
//!
//! ```text
//! Event ── decode ──> drafts ── claims ──> group of objects with common claims ── compile ──> CompiledService
//! ```
//!
//! An object (a file, later a Kubernetes object) is decoded alone. The index records the claims of each object, which
//! are the names and hosts that only one object may have, so that only objects with a common claim are compiled
//! together: in a valid configuration every object is alone. Such a group is compiled by the same code that compiles
//! everything (`compile`). Diagnostics are stored by object; the diagnostics of all objects are their union, in the
//! order of objects and lines.
//!
//! **Invariant:** any sequence of events gives the services, plans and diagnostics that applying the last state of
//! all objects to an empty index gives (a property test). Pure: no clock, no I/O.

mod changes;
mod history;
mod ingresses;
mod name_claims;
mod publish;
mod read;
mod sets;
mod top_level;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use sluice_model::{RevisionSettings, ServiceId, Settings};

use crate::compile::{CompiledService, FileReference, ListenerReference, NameClaim, Shared};
use crate::config::{Defaults, Diagnostics, Draft, Env, SharedSettings, SourceFile};
use crate::ingress::{IngressOutcome, IngressProblem, ProblemKind};
use crate::parallel::{map_in_order, workers};
use crate::release::Histories;
use crate::source::{Content, Event, ObjectKey};

use changes::Listed;
pub use history::ReleaseChange;
use name_claims::Claimants;
use publish::Base;
pub use publish::Step;
use read::{CompiledObject, DecodedObject, Form, Known, NewContent, compile_together, decode, read};
pub use sets::{SetId, Sets};
use top_level::TopLevel;

/// What is published while some object has an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// All or nothing: the last state without errors stays published. For files.
    AllOrNothing,
    /// Object by object: every object without errors is published, and an object with errors keeps its last published
    /// version. For a cluster, whose objects belong to different people.
    PerObject,
}

/// The slot of an object in the index; a slot is reused after its object is deleted.
pub(crate) type UnitId = u32;

/// One object.
#[derive(Debug)]
struct Unit {
    key: ObjectKey,
    /// The text, for decoding the object again when something changes that the object depends on: decoded drafts with
    /// their positions take twenty times as much memory. Shared with the source.
    content: Content,
    has_services: bool,
    has_others: bool,
    /// Hashes of the claims of the object.
    claims: Box<[u64]>,
    /// The services of the object that were published last.
    published: Box<[CompiledService]>,
}

/// The index of all objects.
#[derive(Debug)]
pub struct Index {
    policy: Policy,
    units: Vec<Option<Unit>>,
    free: Vec<UnitId>,
    by_key: HashMap<ObjectKey, UnitId>,
    claims: Claimants,
    top_level: TopLevel,
    /// The number of objects with the key `services`.
    with_services: usize,
    /// Objects with top-level keys other than `services`.
    with_others: BTreeSet<ObjectKey>,
    /// Files that services name, by object; most objects name none.
    files: BTreeMap<ObjectKey, Box<[FileReference]>>,
    /// Diagnostics by object; most objects have none.
    diagnostics: BTreeMap<ObjectKey, Diagnostics>,
    errors: usize,
    /// Ingresses that lost hosts to other objects, with the messages; few.
    conflicts: BTreeMap<ObjectKey, String>,
    /// Changed objects that are not published yet, with their compiled services; `None` after an error.
    pending: BTreeMap<UnitId, Option<Vec<CompiledService>>>,
    /// Published services of objects that were deleted since.
    orphans: Vec<CompiledService>,
    /// The objects of a list that is being read again (a relist): objects that are missing from the list are deleted
    /// at its end.
    listed: Option<Listed>,
    /// The global settings that were published last.
    base: Option<Base>,
    /// Counts of published services and revisions.
    services: usize,
    revisions: usize,
    /// The interned settings: most revisions have the same ones.
    settings: Shared<RevisionSettings>,
    /// The histories of services that have one, as published.
    histories: Arc<Histories>,
}

impl Index {
    /// An index without objects.
    pub fn new(policy: Policy) -> Self {
        Self::with_defaults(policy, Defaults::default())
    }

    /// An index without objects, with these defaults of its settings.
    pub fn with_defaults(policy: Policy, defaults: Defaults) -> Self {
        Self {
            policy,
            units: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            claims: Claimants::default(),
            top_level: TopLevel::new(defaults),
            with_services: 0,
            with_others: BTreeSet::new(),
            files: BTreeMap::new(),
            diagnostics: BTreeMap::new(),
            errors: 0,
            conflicts: BTreeMap::new(),
            pending: BTreeMap::new(),
            orphans: Vec::new(),
            listed: None,
            base: None,
            services: 0,
            revisions: 0,
            settings: Shared::default(),
            histories: Arc::default(),
        }
    }

    /// Applies events of a source and compiles the objects that the events affect. `env` returns the value of a
    /// variable. Returns whether any object has changed.
    pub fn apply(&mut self, events: impl IntoIterator<Item = Event>, env: Env<'_>) -> bool {
        // On one thread: the other threads serve requests.
        self.apply_on(1, events, env, &mut |_, _| {})
    }

    /// Replaces the settings of the cluster, which hold where no object has the key. Returns whether they are other ones.
    pub(super) fn set_shared(&mut self, shared: Option<SharedSettings>, env: Env<'_>) -> bool {
        let is_other = self.top_level.set_shared(shared);
        if is_other {
            self.apply_some(Vec::new(), self.top_level.version(), env);
        }
        is_other
    }

    /// Replaces all histories, as read from the state directory or handed over by an older process. Compiles again what differs
    /// by them: services that are published already, and those whose revisions are in the history. Returns whether any
    /// history is another one.
    pub(crate) fn set_histories(&mut self, histories: Histories, env: Env<'_>) -> bool {
        let before = std::mem::replace(&mut self.histories, Arc::new(histories));
        let now = Arc::clone(&self.histories);
        let others = before
            .keys()
            .chain(now.keys())
            .filter(|id| before.get(*id) != now.get(*id));
        let has_revisions = |id: &ServiceId| {
            let mut both = before.get(id).into_iter().chain(now.get(id));
            both.any(|history| !history.revisions.is_empty())
        };
        let (mut is_other, mut units) = (false, BTreeSet::new());
        for id in others {
            is_other = true;
            // What was not published yet gets its history when it is.
            let again = self
                .claimants(id)
                .filter(|unit| has_revisions(id) || !self.pending.contains_key(unit));
            units.extend(again);
        }
        self.read_units(&units, env);
        is_other
    }

    /// Compiles a service again, after a change of its history that says what its revisions are.
    pub(super) fn read_again(&mut self, service: &ServiceId, env: Env<'_>) {
        let units: BTreeSet<UnitId> = self.claimants(service).collect();
        self.read_units(&units, env);
    }

    fn read_units(&mut self, units: &BTreeSet<UnitId>, env: Env<'_>) {
        let changes = units.iter().filter_map(|id| self.unit(*id));
        let changes = changes.map(|unit| (unit.key.clone(), Some(unit.content.clone())));
        let changes: Vec<(ObjectKey, NewContent)> = changes.collect();
        let changes = changes.into_iter().map(|(key, content)| {
            let known = Known::of(self.top_level.draft(), &self.histories, env);
            let said = content.as_ref();
            let read = said.map(|said| read(&key, said, false, &known, &mut self.settings));
            (key, content, read)
        });
        let changes = changes.collect();
        self.apply_some(changes, self.top_level.version(), env);
    }

    /// The settings of all objects, whether published or not.
    pub(crate) fn settings(&self) -> &Settings {
        &self.top_level.draft().settings
    }

    /// The objects that claim a service's name.
    fn claimants(&self, service: &ServiceId) -> impl Iterator<Item = UnitId> {
        let claim = NameClaim::Service(service.namespace(), service.name());
        self.claims.who(name_claims::hash(&claim))
    }

    /// [`apply`](Self::apply) on all cores, for the first load, before anything is served. `progress` is called with
    /// the number of objects that are done and the number of all.
    pub fn apply_first(
        &mut self,
        events: impl IntoIterator<Item = Event>,
        env: Env<'_>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> bool {
        self.apply_on(workers(), events, env, progress)
    }

    fn apply_on(
        &mut self,
        workers: usize,
        events: impl IntoIterator<Item = Event>,
        env: Env<'_>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> bool {
        let changes = self.changes(events);
        if changes.is_empty() {
            return false;
        }
        // Objects that may have top-level keys go first, so that the settings are known that other objects are
        // compiled by.
        let (first, rest): (Vec<_>, Vec<_>) = changes.into_iter().partition(|(_, content)| {
            content
                .as_ref()
                .and_then(Content::text)
                .is_some_and(top_level::may_have_others)
        });
        let (mut done, all) = (0, first.len() + rest.len());
        for (changes, alone, at_once) in [(first, false, DRAFTS), (rest, true, COMPILED)] {
            // Threads compile by the settings at their start. If these settings change, the objects are read again.
            let (top_level, version) = (self.top_level.draft().clone(), self.top_level.version());
            let settings = self.settings.clone();
            let histories = Arc::clone(&self.histories);
            let known = Known::of(&top_level, &histories, env);
            let mut some = Vec::new();
            let mut left = changes.len();
            map_in_order(
                changes,
                workers,
                || settings.clone(),
                |settings, (key, content): (ObjectKey, NewContent)| {
                    let said = content.as_ref();
                    let read = said.map(|said| read(&key, said, alone, &known, settings));
                    (key, content, read)
                },
                |change| {
                    some.push(change);
                    left -= 1;
                    if some.len() == at_once || left == 0 {
                        done += some.len();
                        self.apply_some(std::mem::take(&mut some), version, env);
                        progress(done, all);
                    }
                },
            );
        }
        true
    }

    /// Applies objects that were decoded and compiled by version `version` of the top-level settings.
    fn apply_some(
        &mut self,
        changes: Vec<(ObjectKey, NewContent, Option<DecodedObject>)>,
        version: u64,
        env: Env<'_>,
    ) {
        let mut forms: HashMap<UnitId, Form> = HashMap::new();
        let mut touched: BTreeSet<UnitId> = BTreeSet::new();
        for (key, content, said) in changes {
            self.forget(&key, &mut touched, content.is_none());
            let (Some(content), Some(mut said)) = (content, said) else {
                continue;
            };
            if version != self.top_level.version() {
                let known = Known::of(self.top_level.draft(), &self.histories, env);
                match &said.form {
                    Form::Draft(draft) => said.claims = name_claims::of(self.top_level.domain(), draft),
                    Form::Compiled(_) => said = read(&key, &content, true, &known, &mut self.settings),
                }
            }
            let id = self.remember(
                key,
                content,
                said.claims,
                said.has_services,
                said.has_others,
                &mut touched,
            );
            if !said.files.is_empty()
                && let Some(unit) = self.unit(id)
            {
                self.files.insert(unit.key.clone(), said.files);
            }
            forms.insert(id, said.form);
        }
        let (units, by_key) = (&self.units, &self.by_key);
        let is_other = self.top_level.refresh(
            self.with_services > 0,
            self.with_others.iter(),
            |key| source_file(units, by_key, key),
            env,
        );
        if is_other {
            forms.retain(|_, form| matches!(form, Form::Draft(_)));
            self.compile_all(forms, env);
        } else {
            self.compile_touched(touched, forms, env);
        }
    }

    /// Removes the claims of an object, and adds the objects with a common claim to `touched`.
    fn forget(&mut self, key: &ObjectKey, touched: &mut BTreeSet<UnitId>, deleted: bool) {
        let Some(&id) = self.by_key.get(key) else { return };
        let Some(unit) = self.units[id as usize].as_mut() else {
            return;
        };
        for claim in std::mem::take(&mut unit.claims) {
            self.claims.remove(claim, id, touched);
        }
        self.files.remove(key);
        self.with_services -= usize::from(unit.has_services);
        if unit.has_others {
            self.top_level.is_stale = true;
            self.with_others.remove(key);
        }
        if deleted {
            touched.remove(&id);
            self.by_key.remove(key);
            self.pending.remove(&id);
            self.set_diagnostics(key, Diagnostics::default());
            self.conflicts.remove(key);
            self.free.push(id);
            if let Some(unit) = self.units[id as usize].take() {
                self.orphans.extend(unit.published);
            }
        }
    }

    /// Records the claims of an object, and adds the objects with a common claim to `touched`.
    fn remember(
        &mut self,
        key: ObjectKey,
        content: Content,
        claims: Vec<u64>,
        has_services: bool,
        has_others: bool,
        touched: &mut BTreeSet<UnitId>,
    ) -> UnitId {
        let id = match self.by_key.entry(key.clone()) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => *new.insert(self.free.pop().unwrap_or_else(|| {
                self.units.push(None);
                u32::try_from(self.units.len() - 1).unwrap_or(u32::MAX)
            })),
        };
        for claim in &claims {
            self.claims.add(*claim, id, touched);
        }
        touched.insert(id);
        self.with_services += usize::from(has_services);
        if has_others {
            self.top_level.is_stale = true;
            self.with_others.insert(key.clone());
        }
        let slot = &mut self.units[id as usize];
        let published = slot.take().map(|unit| unit.published).unwrap_or_default();
        *slot = Some(Unit {
            key,
            content,
            has_services,
            has_others,
            claims: claims.into(),
            published,
        });
        id
    }

    /// Compiles the touched objects with all objects that share a claim with one of them, transitively.
    fn compile_touched(&mut self, touched: BTreeSet<UnitId>, forms: HashMap<UnitId, Form>, env: Env<'_>) {
        let mut group = BTreeSet::new();
        let mut next: Vec<UnitId> = touched.into_iter().collect();
        while let Some(id) = next.pop() {
            let Some(unit) = self.unit(id) else { continue };
            if group.insert(id) {
                let others = unit.claims.iter().flat_map(|claim| self.claims.who(*claim));
                next.extend(others.filter(|other| !group.contains(other)));
            }
        }
        self.compile_group(group, forms, env);
    }

    /// Compiles all objects again, after a change of the settings that services are compiled by.
    fn compile_all(&mut self, forms: HashMap<UnitId, Form>, env: Env<'_>) {
        let ids: BTreeSet<UnitId> = self.by_key.values().copied().collect();
        if self.top_level.take_other_domain() {
            self.claims = Claimants::default();
            let mut unheard = BTreeSet::new();
            for &id in &ids {
                let Some(unit) = self.unit(id) else { continue };
                let decoded;
                let draft = match forms.get(&id) {
                    Some(Form::Draft(draft)) => draft,
                    _ => {
                        decoded = decode(&unit.key, &unit.content, env, &self.histories);
                        &decoded
                    }
                };
                let claims = name_claims::of(self.top_level.domain(), draft);
                for claim in &claims {
                    self.claims.add(*claim, id, &mut unheard);
                }
                if let Some(unit) = self.units[id as usize].as_mut() {
                    unit.claims = claims.into();
                }
            }
        }
        self.compile_group(ids, forms, env);
    }

    /// Compiles all objects by the top-level settings of another index, from now on.
    fn follow(&mut self, top_level: &Draft, env: Env<'_>) {
        if self.top_level.follow(top_level) {
            self.compile_all(HashMap::new(), env);
        }
    }

    /// Compiles a group of objects that share no claim with an object outside of the group.
    fn compile_group(&mut self, group: BTreeSet<UnitId>, mut forms: HashMap<UnitId, Form>, env: Env<'_>) {
        // An object without a shared claim is compiled alone, so that its draft is freed at once.
        let (alone, together): (Vec<UnitId>, Vec<UnitId>) = group.into_iter().partition(|id| {
            let claims = self.unit(*id).map(|unit| &*unit.claims).unwrap_or_default();
            claims.iter().all(|claim| !self.claims.is_shared(*claim))
        });
        for id in alone {
            match forms.remove(&id) {
                Some(Form::Compiled(compiled)) => self.take(id, compiled),
                Some(draft) => self.compile_units(&[id], &mut HashMap::from([(id, draft)]), env),
                None => self.compile_units(&[id], &mut HashMap::new(), env),
            }
        }
        if !together.is_empty() {
            let mut together = together;
            together.sort_by(|a, b| self.key(*a).cmp(&self.key(*b)));
            self.compile_units(&together, &mut forms, env);
        }
    }

    fn compile_units(&mut self, ids: &[UnitId], forms: &mut HashMap<UnitId, Form>, env: Env<'_>) {
        let units = &self.units;
        let units = ids.iter().filter_map(|id| {
            let unit = units.get(*id as usize)?.as_ref()?;
            let draft = match forms.remove(id) {
                Some(Form::Draft(draft)) => draft,
                _ => decode(&unit.key, &unit.content, env, &self.histories),
            };
            Some((*id, (&unit.key, draft)))
        });
        let (ids, objects): (Vec<UnitId>, Vec<_>) = units.unzip();
        let compiled = compile_together(objects, self.top_level.draft(), &mut self.settings);
        for (id, compiled) in ids.into_iter().zip(compiled) {
            self.take(id, compiled);
        }
    }

    fn take(&mut self, id: UnitId, compiled: CompiledObject) {
        let known = self.key(id);
        if !(compiled.diagnostics.is_empty() && self.diagnostics.is_empty())
            && let Some(key) = known.cloned()
        {
            self.set_diagnostics(&key, compiled.diagnostics);
        }
        if !(compiled.conflict.is_none() && self.conflicts.is_empty())
            && let Some(key) = self.key(id).cloned()
        {
            match compiled.conflict {
                Some(conflict) => _ = self.conflicts.insert(key, conflict),
                None => _ = self.conflicts.remove(&key),
            }
        }
        self.pending.insert(id, compiled.services);
    }

    /// What becomes of the changed Ingresses when this step is published.
    fn outcomes(&self, step: &Step) -> Vec<IngressOutcome> {
        let units = step.units.iter().filter_map(|(id, _)| self.unit(*id));
        let outcomes = units.filter_map(|unit| {
            let Content::Ingress(object) = &unit.content else {
                return None;
            };
            let conflict = self.conflicts.get(&unit.key);
            let conflict = conflict.map(|why| IngressProblem::new(ProblemKind::HostConflict, why));
            Some(IngressOutcome {
                object: Arc::clone(object),
                problem: object.problem.clone().or(conflict),
            })
        });
        outcomes.collect()
    }

    fn set_diagnostics(&mut self, key: &ObjectKey, diagnostics: Diagnostics) {
        self.errors += diagnostics.errors();
        let before = if diagnostics.is_empty() {
            self.diagnostics.remove(key)
        } else {
            self.diagnostics.insert(key.clone(), diagnostics)
        };
        self.errors -= before.map_or(0, |before| before.errors());
    }

    /// All errors and warnings, in the order of objects and lines.
    pub fn diagnostics(&self) -> Diagnostics {
        let top_level = self.top_level.diagnostics();
        if self.diagnostics.is_empty() && top_level.is_empty() {
            return Diagnostics::default();
        }
        let keys = self.diagnostics.keys().chain(&self.with_others);
        let mut keys: Vec<&ObjectKey> = keys.collect();
        keys.sort();
        let mut ranks = HashMap::new();
        for (rank, key) in keys.into_iter().enumerate() {
            ranks.entry(key.path().to_owned()).or_insert(rank);
        }
        let mut all = Diagnostics::default();
        for diagnostics in self.diagnostics.values().chain([top_level]) {
            all.append(diagnostics.clone());
        }
        all.sort_and_dedup(|file| ranks.get(file).copied().unwrap_or(usize::MAX));
        all
    }

    /// The number of errors.
    pub fn errors(&self) -> usize {
        self.errors + self.top_level.diagnostics().errors()
    }

    /// The diagnostics of one object, for its status.
    pub fn diagnostics_of(&self, key: &ObjectKey) -> Diagnostics {
        self.diagnostics.get(key).cloned().unwrap_or_default()
    }

    /// Files that the configuration names, for a check by a caller that can read files.
    pub fn files(&self) -> Vec<FileReference> {
        let mut files = self.settings_files();
        files.extend(self.files.values().flatten().cloned());
        files
    }

    /// The files that the settings name, without the files of services.
    pub fn settings_files(&self) -> Vec<FileReference> {
        self.top_level
            .draft()
            .files
            .iter()
            .map(FileReference::new)
            .collect()
    }

    /// The positions of the listeners, in the order of the settings, for errors when binding.
    pub fn listeners(&self) -> Vec<ListenerReference> {
        let spots = self.top_level.draft().listeners.iter();
        spots.cloned().map(ListenerReference::new).collect()
    }

    /// The number of published services.
    pub fn services(&self) -> usize {
        self.services
    }

    /// The number of published revisions.
    pub fn revisions(&self) -> usize {
        self.revisions
    }

    /// The number of objects.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether the index has no object.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    fn unit(&self, id: UnitId) -> Option<&Unit> {
        self.units.get(id as usize)?.as_ref()
    }

    fn key(&self, id: UnitId) -> Option<&ObjectKey> {
        self.unit(id).map(|unit| &unit.key)
    }
}

/// The batch size of objects that are applied as drafts: drafts of a whole batch are in memory at once.
const DRAFTS: usize = 1_024;

/// The batch size of objects that are compiled already.
const COMPILED: usize = 128;

fn source_file(
    units: &[Option<Unit>],
    by_key: &HashMap<ObjectKey, UnitId>,
    key: &ObjectKey,
) -> Option<SourceFile> {
    let unit = units.get(*by_key.get(key)? as usize)?.as_ref()?;
    Some(SourceFile {
        path: key.path().to_owned(),
        text: unit.content.text()?.to_owned(),
    })
}

#[cfg(test)]
mod manifest_tests;
#[cfg(test)]
mod tests;

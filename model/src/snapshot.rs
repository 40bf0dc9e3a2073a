//! The one table that requests read, and the pair that passes it on.

use std::fmt;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use crate::ids::{ById, Slotted};
use crate::name::{RevisionId, ServiceId};
use crate::revision::RevisionSpec;
use crate::route::Service;
use crate::settings::Settings;
use crate::table::{Entry, RouteTable, TableError};

/// The number of a published Snapshot; 0 is the empty one before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What one Snapshot says other than the one before it.
#[derive(Debug, Clone)]
pub struct Delta {
    /// The settings from now on; the very same `Arc` where they did not change.
    pub settings: Arc<Settings>,
    /// Services that are new or other than before.
    pub services: Vec<Arc<Service>>,
    /// Services that are no more.
    pub removed: Vec<ServiceId>,
}

impl Delta {
    /// What makes `next` of `now`. Settings and services that are equal count as unchanged.
    pub fn between<A: Clone, B: Clone>(now: &Snapshot<A>, next: &Snapshot<B>) -> Self {
        let same = now.settings == next.settings;
        let settings = Arc::clone(if same { &now.settings } else { &next.settings });
        let services = next.services.iter().map(|entry| &entry.service);
        let services = services.filter(|service| {
            let known = now.service(&service.id);
            known.is_none_or(|known| known.service != **service)
        });
        let removed = now.services.iter().map(|entry| &entry.service.id);
        let removed = removed.filter(|id| next.service(id).is_none());
        Self {
            settings,
            services: services.cloned().collect(),
            removed: removed.cloned().collect(),
        }
    }

    /// Whether nothing is other than in `now`.
    pub fn is_empty<L>(&self, now: &Snapshot<L>) -> bool {
        self.services.is_empty() && self.removed.is_empty() && Arc::ptr_eq(&self.settings, &now.settings)
    }
}

/// Everything that requests are routed by, at one point in time: settings, hosts, services, and what
/// lives with each service. A request reads one, once.
///
/// Immutable and persistent: [`edit`](Self::edit) makes the next one, which shares all services and
/// all leaves of its maps but those that the change touches.
#[derive(Debug, Clone)]
pub struct Snapshot<L = ()> {
    /// Stamped by [`SnapshotPublisher::publish`].
    pub generation: Generation,
    table: RouteTable<L>,
    services: ById<Entry<L>>,
    revisions: ById<Slotted<L>>,
    settings: Arc<Settings>,
}

impl<L: Clone> Snapshot<L> {
    /// One without services.
    pub fn empty(settings: Arc<Settings>) -> Self {
        Self {
            generation: Generation::default(),
            table: RouteTable::default(),
            services: ById::default(),
            revisions: ById::default(),
            settings,
        }
    }

    /// This one with a change. `live` makes what lives with each service that is new or other; the
    /// services that the change does not name are the same ones, pointer for pointer.
    ///
    /// # Errors
    /// The first [`SnapshotError`] met; compiling reports these before it gets here.
    pub fn edit(
        &self,
        delta: &Delta,
        mut live: impl FnMut(&Arc<Service>) -> L,
    ) -> Result<Self, SnapshotError> {
        let mut next = self.clone();
        next.settings = Arc::clone(&delta.settings);
        let touched = delta.services.iter().map(|service| &service.id);
        for id in touched.chain(&delta.removed) {
            if let Some(old) = next.services.remove(id) {
                next.forget(&old.service);
            }
        }
        for service in &delta.services {
            next.add(service, live(service))?;
        }
        Ok(next)
    }

    fn forget(&mut self, service: &Service) {
        for (pattern, _) in &service.hosts {
            self.table.remove(pattern);
        }
        for spec in &service.revisions {
            self.revisions.remove(&spec.id);
        }
    }

    fn add(&mut self, service: &Arc<Service>, live: L) -> Result<(), SnapshotError> {
        for target in service.splits().flat_map(|split| split.targets()) {
            let there = service.revisions.get(target.slot);
            if there.is_none_or(|spec| spec.id != target.revision) {
                return Err(SnapshotError::Slot(target.revision.clone()));
            }
        }
        let entry = Entry {
            service: Arc::clone(service),
            live,
        };
        for (pattern, tag) in &service.hosts {
            self.table
                .insert(pattern, &entry, tag.as_ref())
                .map_err(SnapshotError::Table)?;
        }
        for (slot, spec) in service.revisions.iter().enumerate() {
            let entry = entry.clone();
            if self.revisions.insert(Slotted { entry, slot }).is_some() {
                return Err(SnapshotError::RepeatedRevision(spec.id.clone()));
            }
        }
        if self.services.insert(entry).is_some() {
            return Err(SnapshotError::RepeatedService(service.id.clone()));
        }
        Ok(())
    }

    /// Host → service.
    pub fn table(&self) -> &RouteTable<L> {
        &self.table
    }

    /// Every service with what lives with it, in no particular order.
    pub fn entries(&self) -> impl Iterator<Item = &Entry<L>> {
        self.services.iter()
    }

    /// All services, by id. Sorts them: for people and tests, not for requests.
    pub fn services(&self) -> Vec<&Arc<Service>> {
        let mut all: Vec<_> = self.services.iter().map(|entry| &entry.service).collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    /// All revisions, by id. Sorts them: for people and tests, not for requests.
    pub fn revisions(&self) -> Vec<&Arc<RevisionSpec>> {
        let services = self.services.iter().map(|entry| &entry.service);
        let mut all: Vec<_> = services.flat_map(|service| &service.revisions).collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    /// How many services there are.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// How many revisions there are.
    pub fn revision_count(&self) -> usize {
        self.revisions.len()
    }

    /// A service by name.
    pub fn service(&self, id: &ServiceId) -> Option<&Entry<L>> {
        self.services.get(id)
    }

    /// A revision by name: its service, and its slot there.
    pub fn revision(&self, id: &RevisionId) -> Option<(&Entry<L>, usize)> {
        let found = self.revisions.get(id)?;
        Some((&found.entry, found.slot))
    }

    /// Whether it says the same as another, whatever their generations.
    pub fn same_content<O: Clone>(&self, other: &Snapshot<O>) -> bool {
        self.settings == other.settings && self.services() == other.services()
    }
}

impl<L> Snapshot<L> {
    /// Gateway-wide settings.
    pub fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }
}

/// Why parts make no Snapshot. Compile reports these as diagnostics before it gets here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotError {
    /// A target's slot does not hold the revision it names.
    Slot(RevisionId),
    /// A host cannot be added.
    Table(TableError),
    /// A revision is listed twice.
    RepeatedRevision(RevisionId),
    /// A service is listed twice.
    RepeatedService(ServiceId),
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slot(id) => write!(f, "no revision {id}"),
            Self::Table(e) => write!(f, "{e}"),
            Self::RepeatedRevision(id) => write!(f, "revision {id} is listed twice"),
            Self::RepeatedService(id) => write!(f, "service {id} is listed twice"),
        }
    }
}

impl std::error::Error for SnapshotError {}

/// Makes a [`Snapshot`] in which nothing lives: settings, then services.
#[derive(Debug)]
pub struct SnapshotBuilder {
    snapshot: Snapshot,
}

impl SnapshotBuilder {
    /// Starts with settings.
    pub fn new(settings: Settings) -> Self {
        Self {
            snapshot: Snapshot::empty(Arc::new(settings)),
        }
    }

    /// Adds a service.
    ///
    /// # Errors
    /// The first [`SnapshotError`] met; what is built must not be used then.
    pub fn service(&mut self, service: Service) -> Result<(), SnapshotError> {
        self.snapshot.add(&Arc::new(service), ())
    }

    /// The Snapshot, not yet published.
    pub fn build(self) -> Snapshot {
        self.snapshot
    }
}

/// The writing end; not `Clone`: there is one writer.
#[derive(Debug)]
pub struct SnapshotPublisher<L = ()> {
    current: Arc<ArcSwap<Snapshot<L>>>,
}

/// The reading end.
#[derive(Debug)]
pub struct SnapshotReader<L = ()> {
    current: Arc<ArcSwap<Snapshot<L>>>,
}

// By hand: a derived one would ask the same of what lives.
impl<L> Clone for SnapshotReader<L> {
    fn clone(&self) -> Self {
        Self {
            current: Arc::clone(&self.current),
        }
    }
}

impl<L> SnapshotPublisher<L> {
    /// A pair that starts with this one, with the generation that it has.
    pub fn new(first: Snapshot<L>) -> (Self, SnapshotReader<L>) {
        let current = Arc::new(ArcSwap::from_pointee(first));
        let reader = SnapshotReader {
            current: Arc::clone(&current),
        };
        (Self { current }, reader)
    }

    /// Stamps the next generation and stores it; readers see it from their next load on. Returns it
    /// with the one before it.
    pub fn publish(&mut self, mut next: Snapshot<L>) -> (Arc<Snapshot<L>>, Arc<Snapshot<L>>) {
        next.generation = Generation(self.current.load_full().generation.0 + 1);
        let next = Arc::new(next);
        let before = self.current.swap(Arc::clone(&next));
        (next, before)
    }
}

impl<L> SnapshotReader<L> {
    /// The current Snapshot, for whoever keeps it.
    pub fn load(&self) -> Arc<Snapshot<L>> {
        self.current.load_full()
    }

    /// The current Snapshot, for a look: counts no reference, so that threads that look share no
    /// cache line that one of them writes.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the reader that others go through"
    )]
    pub fn peek(&self) -> Guard<Arc<Snapshot<L>>> {
        self.current.load()
    }
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;

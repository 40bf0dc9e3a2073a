//! The Snapshot, the immutable routing table that requests read, and the publisher and readers that share it.

use std::fmt;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use crate::ids::{ById, Further, Slotted};
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

/// The difference between one Snapshot and the next.
#[derive(Debug, Clone)]
pub struct Delta {
    /// The settings from now on; the same `Arc` if the settings did not change.
    pub settings: Arc<Settings>,
    /// New and changed services.
    pub services: Vec<Arc<Service>>,
    /// Removed services.
    pub removed: Vec<ServiceId>,
}

impl Delta {
    /// The difference from `now` to `next`. Equal settings and equal services count as unchanged.
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

    /// Whether this delta changes nothing in `now`.
    pub fn is_empty<L>(&self, now: &Snapshot<L>) -> bool {
        self.services.is_empty() && self.removed.is_empty() && Arc::ptr_eq(&self.settings, &now.settings)
    }
}

/// The immutable routing table at one point in time: settings, hosts, services, and the live state of each service. A
/// request reads one Snapshot, once.
///
/// Several services may list one revision, by equal [`RevisionSpec`]s: it is the same revision then, with one live state.
///
/// Persistent: [`edit`](Self::edit) makes the next Snapshot, which shares all services and all leaves of its maps but
/// those that the change touches.
#[derive(Debug, Clone)]
pub struct Snapshot<L = ()> {
    /// Stamped by [`SnapshotPublisher::publish`].
    pub generation: Generation,
    table: RouteTable<L>,
    services: ById<Entry<L>>,
    revisions: ById<Slotted<L>>,
    /// What several services list; nearly always nothing.
    further: ById<Further<L>>,
    settings: Arc<Settings>,
}

/// The services of a change that memory is reserved for at once: fewer touch few leaves twice.
const MANY: usize = 1_024;

impl<L: Clone> Snapshot<L> {
    /// A Snapshot without services.
    pub fn empty(settings: Arc<Settings>) -> Self {
        Self {
            generation: Generation::default(),
            table: RouteTable::default(),
            services: ById::default(),
            revisions: ById::default(),
            further: ById::default(),
            settings,
        }
    }

    /// The next Snapshot, with a change applied. `live` makes the live state of each new or changed service; the
    /// services that the change does not name keep their `Arc`, so that pointers stay equal.
    ///
    /// # Errors
    /// The first [`SnapshotError`]; the compiler reports such errors as diagnostics before.
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
        if delta.services.len() >= MANY {
            next.reserve(&delta.services);
        }
        for service in &delta.services {
            next.add(service, live(service))?;
        }
        Ok(next)
    }

    fn reserve(&mut self, services: &[Arc<Service>]) {
        let hosts = services.iter().flat_map(|service| &service.hosts);
        self.table.reserve(hosts.map(|claim| &claim.pattern));
        self.services.reserve(services.iter().map(|service| &service.id));
        let revisions = services.iter().flat_map(|service| &service.revisions);
        self.revisions.reserve(revisions.map(|spec| &spec.id));
    }

    fn forget(&mut self, service: &Service) {
        for claim in &service.hosts {
            self.table.remove(&claim.pattern);
        }
        for spec in &service.revisions {
            self.forget_revision(&spec.id, &service.id);
        }
    }

    /// Forgets one place of a revision.
    fn forget_revision(&mut self, revision: &RevisionId, of: &ServiceId) {
        let Some(Further(mut places)) = self.further.remove(revision) else {
            self.revisions.remove(revision);
            return;
        };
        let is_first = self
            .revisions
            .get(revision)
            .is_some_and(|first| first.entry.service.id == *of);
        if is_first {
            if let Some(next) = places.pop() {
                self.revisions.insert(next);
            }
        } else {
            places.retain(|place| place.entry.service.id != *of);
        }
        if !places.is_empty() {
            self.further.insert(Further(places));
        }
    }

    /// Adds one place of a revision.
    fn add_revision(&mut self, place: Slotted<L>) -> Result<(), SnapshotError> {
        let spec = Arc::clone(&place.entry.service.revisions[place.slot]);
        let Some(first) = self.revisions.get(&spec.id) else {
            self.revisions.insert(place);
            return Ok(());
        };
        let Further(mut places) = self.further.remove(&spec.id).unwrap_or(Further(Vec::new()));
        let mut all = std::iter::once(first).chain(&places);
        let is_repeated = all.any(|known| {
            known.entry.service.id == place.entry.service.id
                || known.entry.service.revisions[known.slot] != spec
        });
        if is_repeated {
            return Err(SnapshotError::RepeatedRevision(spec.id.clone()));
        }
        places.push(place);
        self.further.insert(Further(places));
        Ok(())
    }

    fn add(&mut self, service: &Arc<Service>, live: L) -> Result<(), SnapshotError> {
        if service
            .rules()
            .any(|rule| rule.routes.is_empty() && rule.split.is_none())
        {
            return Err(SnapshotError::NoTraffic(service.id.clone()));
        }
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
        for claim in &service.hosts {
            self.table.insert(claim, &entry).map_err(SnapshotError::Table)?;
        }
        for slot in 0..service.revisions.len() {
            let entry = entry.clone();
            self.add_revision(Slotted { entry, slot })?;
        }
        if self.services.insert(entry).is_some() {
            return Err(SnapshotError::RepeatedService(service.id.clone()));
        }
        Ok(())
    }

    /// The routing table, from host to service.
    pub fn table(&self) -> &RouteTable<L> {
        &self.table
    }

    /// Every service with its live state, in no particular order.
    pub fn entries(&self) -> impl Iterator<Item = &Entry<L>> {
        self.services.iter()
    }

    /// All services, by id. Sorts them: for people and tests, not for requests.
    pub fn services(&self) -> Vec<&Arc<Service>> {
        let mut all: Vec<_> = self.services.iter().map(|entry| &entry.service).collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    /// Every revision once, as the slot of a service, in no particular order.
    pub fn slots(&self) -> impl Iterator<Item = (&Entry<L>, usize)> {
        self.revisions.iter().map(|place| (&place.entry, place.slot))
    }

    /// All revisions, by id. Sorts them: for people and tests, not for requests.
    pub fn revisions(&self) -> Vec<&Arc<RevisionSpec>> {
        let specs = self.slots().map(|(entry, slot)| &entry.service.revisions[slot]);
        let mut all: Vec<_> = specs.collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    /// The number of services.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// The number of revisions.
    pub fn revision_count(&self) -> usize {
        self.revisions.len()
    }

    /// A service by name.
    pub fn service(&self, id: &ServiceId) -> Option<&Entry<L>> {
        self.services.get(id)
    }

    /// A revision by name: a service that lists it, and its slot in that service.
    pub fn revision(&self, id: &RevisionId) -> Option<(&Entry<L>, usize)> {
        let found = self.revisions.get(id)?;
        Some((&found.entry, found.slot))
    }

    /// Whether the content equals that of another Snapshot; generations are not compared.
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

/// The reason why parts make no valid Snapshot. The compiler reports such errors as diagnostics before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotError {
    /// A rule of the service has no traffic at all.
    NoTraffic(ServiceId),
    /// A target's slot does not hold the revision it names.
    Slot(RevisionId),
    /// A host cannot be added.
    Table(TableError),
    /// A revision is listed twice by a service, or by two services not alike.
    RepeatedRevision(RevisionId),
    /// A service is listed twice.
    RepeatedService(ServiceId),
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTraffic(id) => write!(f, "a rule of service {id} has no traffic"),
            Self::Slot(id) => write!(f, "no revision {id}"),
            Self::Table(e) => write!(f, "{e}"),
            Self::RepeatedRevision(id) => write!(f, "revision {id} is listed twice"),
            Self::RepeatedService(id) => write!(f, "service {id} is listed twice"),
        }
    }
}

impl std::error::Error for SnapshotError {}

/// A builder of a [`Snapshot`] without live state: settings, then services.
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
    /// The first [`SnapshotError`]; the builder must not be used afterwards.
    pub fn service(&mut self, service: Service) -> Result<(), SnapshotError> {
        self.snapshot.add(&Arc::new(service), ())
    }

    /// The Snapshot, not yet published.
    pub fn build(self) -> Snapshot {
        self.snapshot
    }
}

/// The publisher; not `Clone`: there is one writer.
#[derive(Debug)]
pub struct SnapshotPublisher<L = ()> {
    current: Arc<ArcSwap<Snapshot<L>>>,
}

/// A reader of the current Snapshot.
#[derive(Debug)]
pub struct SnapshotReader<L = ()> {
    current: Arc<ArcSwap<Snapshot<L>>>,
}

// Implemented by hand: a derived `Clone` would require `L: Clone`.
impl<L> Clone for SnapshotReader<L> {
    fn clone(&self) -> Self {
        Self {
            current: Arc::clone(&self.current),
        }
    }
}

impl<L> SnapshotPublisher<L> {
    /// A pair that starts with the Snapshot `first`, with its own generation.
    pub fn new(first: Snapshot<L>) -> (Self, SnapshotReader<L>) {
        let current = Arc::new(ArcSwap::from_pointee(first));
        let reader = SnapshotReader {
            current: Arc::clone(&current),
        };
        (Self { current }, reader)
    }

    /// Stamps the next generation and stores the Snapshot; readers see it from their next load on. Returns the new
    /// Snapshot and the previous one.
    pub fn publish(&mut self, mut next: Snapshot<L>) -> (Arc<Snapshot<L>>, Arc<Snapshot<L>>) {
        next.generation = Generation(self.current.load_full().generation.0 + 1);
        let next = Arc::new(next);
        let before = self.current.swap(Arc::clone(&next));
        (next, before)
    }
}

impl<L> SnapshotReader<L> {
    /// The current Snapshot, for a reader that keeps it.
    pub fn load(&self) -> Arc<Snapshot<L>> {
        self.current.load_full()
    }

    /// The current Snapshot, for a short read: counts no reference, so that reading threads share no cache line that
    /// one of them writes.
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

//! The immutable routing truth and the pair that passes it on.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::name::{RevisionId, Tag};
use crate::revision::RevisionSpec;
use crate::route::Service;
use crate::settings::Settings;
use crate::table::{HostPattern, RouteTable, TableError};

/// The number of a published Snapshot; 0 is the empty one before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Everything configured, at one point in time. A request reads one, once.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Stamped by [`SnapshotPublisher::publish`].
    pub generation: Generation,
    table: RouteTable,
    services: Vec<Arc<Service>>,
    revisions: Vec<Arc<RevisionSpec>>,
    settings: Arc<Settings>,
}

impl Snapshot {
    /// Host → service.
    pub fn table(&self) -> &RouteTable {
        &self.table
    }

    /// All services, by id.
    pub fn services(&self) -> &[Arc<Service>] {
        &self.services
    }

    /// All revisions, by id.
    pub fn revisions(&self) -> &[Arc<RevisionSpec>] {
        &self.revisions
    }

    /// Where a revision stands in [`revisions`](Self::revisions).
    pub fn position(&self, id: &RevisionId) -> Option<usize> {
        self.revisions.binary_search_by(|r| r.id.cmp(id)).ok()
    }

    /// Whether it says the same as another, whatever their generations.
    pub fn same_content(&self, other: &Self) -> bool {
        self.settings == other.settings
            && self.revisions == other.revisions
            && self.services == other.services
            && self.table == other.table
    }

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
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slot(id) => write!(f, "no revision {id}"),
            Self::Table(e) => write!(f, "{e}"),
            Self::RepeatedRevision(id) => write!(f, "revision {id} is listed twice"),
        }
    }
}

impl std::error::Error for SnapshotError {}

/// The only way to make a [`Snapshot`]: settings, then services with their hosts.
#[derive(Debug)]
pub struct SnapshotBuilder {
    snapshot: Snapshot,
}

impl SnapshotBuilder {
    /// Starts with settings.
    pub fn new(settings: Settings) -> Self {
        let snapshot = Snapshot {
            generation: Generation::default(),
            table: RouteTable::default(),
            services: Vec::new(),
            revisions: Vec::new(),
            settings: Arc::new(settings),
        };
        Self { snapshot }
    }

    /// Adds a service with the hosts it claims, each for its own traffic or for a tag.
    ///
    /// # Errors
    /// The first [`SnapshotError`] met.
    pub fn service(
        &mut self,
        service: Service,
        hosts: impl IntoIterator<Item = (HostPattern, Option<Tag>)>,
    ) -> Result<(), SnapshotError> {
        for target in service.splits().flat_map(|s| s.targets()) {
            let there = service.revisions.get(target.slot);
            if there.is_none_or(|spec| spec.id != target.revision) {
                return Err(SnapshotError::Slot(target.revision.clone()));
            }
        }
        let service = Arc::new(service);
        for (pattern, tag) in hosts {
            self.snapshot
                .table
                .insert(pattern, &service, tag.as_ref())
                .map_err(SnapshotError::Table)?;
        }
        self.snapshot.revisions.extend(service.revisions.iter().cloned());
        self.snapshot.services.push(service);
        Ok(())
    }

    /// The Snapshot, not yet published.
    ///
    /// # Errors
    /// [`SnapshotError::RepeatedRevision`].
    pub fn build(mut self) -> Result<Snapshot, SnapshotError> {
        self.snapshot.services.sort_by(|a, b| a.id.cmp(&b.id));
        let revisions = &mut self.snapshot.revisions;
        revisions.sort_by(|a, b| a.id.cmp(&b.id));
        if let Some(pair) = revisions.windows(2).find(|w| w[0].id == w[1].id) {
            return Err(SnapshotError::RepeatedRevision(pair[0].id.clone()));
        }
        Ok(self.snapshot)
    }
}

/// The writing end; not `Clone`: there is one writer.
#[derive(Debug)]
pub struct SnapshotPublisher {
    current: Arc<ArcSwap<Snapshot>>,
    next: u64,
}

/// The reading end.
#[derive(Debug, Clone)]
pub struct SnapshotReader {
    current: Arc<ArcSwap<Snapshot>>,
}

impl SnapshotPublisher {
    /// A pair that starts with `first` as generation 1.
    pub fn new(mut first: Snapshot) -> (Self, SnapshotReader) {
        first.generation = Generation(1);
        let current = Arc::new(ArcSwap::from_pointee(first));
        (
            Self {
                current: Arc::clone(&current),
                next: 2,
            },
            SnapshotReader { current },
        )
    }

    /// Stamps the next generation and stores it; readers see it from their next load on.
    pub fn publish(&mut self, mut snapshot: Snapshot) -> Arc<Snapshot> {
        snapshot.generation = Generation(self.next);
        self.next += 1;
        let snapshot = Arc::new(snapshot);
        self.current.store(Arc::clone(&snapshot));
        snapshot
    }
}

impl SnapshotReader {
    /// The current Snapshot. A request calls this once and keeps the `Arc`.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }
}

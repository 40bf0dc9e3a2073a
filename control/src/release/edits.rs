//! Changes of histories: made by rollouts and by commands, carried out by the reconciler, the only writer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sluice_model::{RevisionId, ServiceId};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::timeout;

use super::history::{Histories, ServiceHistory};
use crate::rollout::RolloutPolicy;

/// A service whose traffic moves by a history, as it is published now.
#[derive(Debug, Clone, PartialEq)]
pub struct Release {
    /// The history, as it was published.
    pub history: Arc<ServiceHistory>,
    /// The digest of the service as the files have it, for an [`Override`](super::Override).
    pub digest: u64,
    /// All revisions, the latest one last.
    pub revisions: Arc<[RevisionId]>,
    /// The rules of rollouts; `None`: at once, for a manifest when the latest revision was ready.
    pub policy: Option<Arc<RolloutPolicy>>,
    /// The service is a manifest.
    pub is_manifest: bool,
    /// The percentage of all `latestRevision` targets of the service's own traffic, or of a route where that is greater, in
    /// hundredths of a percent; 0: there is nothing to roll out or back.
    pub follows_latest: u32,
    /// Revisions that a share or a tag leads to.
    pub reached: Arc<[RevisionId]>,
    /// What is scaled: revisions, and tiers of revisions under ids of their own, in order.
    pub scaled: Arc<[RevisionId]>,
}

impl Release {
    /// The id under which a revision is scaled. Of one with tiers the last tier's: the one that serves once it is ready.
    pub(crate) fn scaled_as(&self, revision: &RevisionId) -> RevisionId {
        let is_of = |id: &&RevisionId| {
            let name = id.name().split('@').next().unwrap_or_default();
            id.namespace() == revision.namespace() && name == revision.name()
        };
        let scaled = self.scaled.iter().rfind(is_of);
        scaled.unwrap_or(revision).clone()
    }
}

/// Why a change of a history was refused, in words for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EditError(pub String);

/// A change of one history, by the release as it is at that moment.
pub(crate) type HistoryEdit = Box<dyn FnOnce(&Release) -> Result<ServiceHistory, EditError> + Send>;

/// A change of one history, to be published.
pub struct Edit {
    pub(crate) service: ServiceId,
    pub(crate) change: HistoryEdit,
    pub(crate) done: oneshot::Sender<Result<(), EditError>>,
}

impl std::fmt::Debug for Edit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Edit")
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}

/// What the reconciler is asked for.
#[derive(Debug)]
pub(crate) enum Request {
    Edit(Edit),
    /// Nothing is changed from now on; for the histories as they are.
    Freeze(oneshot::Sender<Histories>),
}

/// Requests for the reconciler, in their order.
#[derive(Debug)]
pub struct Edits {
    pub(super) queue: mpsc::Receiver<Request>,
    pub(super) shared: Arc<Shared>,
}

/// Reads releases and changes histories. Cheap to clone.
#[derive(Debug, Clone)]
pub struct HistoryHandle {
    queue: mpsc::Sender<Request>,
    shared: Arc<Shared>,
}

/// What the reconciler published last.
#[derive(Debug, Default)]
pub(super) struct Shared {
    releases: Mutex<BTreeMap<ServiceId, Arc<Release>>>,
    /// The services whose releases changed since the last look.
    changes: Mutex<BTreeSet<ServiceId>>,
    changed: Notify,
    /// Another process is about to take over, or has: requests wait.
    pub(super) frozen: watch::Sender<bool>,
}

/// Requests that may wait for the reconciler.
const QUEUE: usize = 64;

impl HistoryHandle {
    /// A handle, and what the reconciler takes edits from.
    pub fn new() -> (Self, Edits) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared::default());
        let handle = Self {
            queue: sender,
            shared: Arc::clone(&shared),
        };
        (handle, Edits { queue, shared })
    }

    /// The release of a service; `None` for a service that has no history and makes none.
    pub fn release(&self, service: &ServiceId) -> Option<Arc<Release>> {
        self.shared.releases.lock().get(service).cloned()
    }

    /// All releases.
    pub fn releases(&self) -> BTreeMap<ServiceId, Arc<Release>> {
        self.shared.releases.lock().clone()
    }

    /// Waits until a release was published or removed since the last call, and returns the services. For one caller; cancel-safe.
    pub async fn changed(&self) -> BTreeSet<ServiceId> {
        loop {
            let changes = std::mem::take(&mut *self.shared.changes.lock());
            if !changes.is_empty() {
                return changes;
            }
            self.shared.changed.notified().await;
        }
    }

    /// Changes the history of a service and publishes it. `change` gets the release as it is published at that moment.
    /// Resolves after the publication. A change whose future is dropped before its turn is not carried out.
    ///
    /// # Errors
    /// What `change` returns, an unknown service, and a gateway that is about to end.
    pub async fn edit(
        &self,
        service: &ServiceId,
        change: impl FnOnce(&Release) -> Result<ServiceHistory, EditError> + Send + 'static,
    ) -> Result<(), EditError> {
        let (done, outcome) = oneshot::channel();
        let edit = Edit {
            service: service.clone(),
            change: Box::new(change),
            done,
        };
        let ending = || EditError("the gateway is about to end".to_owned());
        self.queue.send(Request::Edit(edit)).await.map_err(|_| ending())?;
        outcome.await.map_err(|_| ending())?
    }

    /// Stops all changes and returns the histories, for another process that takes over. Changes that come later wait for
    /// [`thaw`](Self::thaw), or for the end of this process. A dropped future may leave them stopped.
    ///
    /// A reload that is under way is waited for, but not for longer than `limit`: it may wait for what the hand-over holds.
    pub async fn freeze(&self, limit: Duration) -> Histories {
        let (sender, histories) = oneshot::channel();
        let frozen = async {
            self.queue.send(Request::Freeze(sender)).await.ok()?;
            histories.await.ok()
        };
        if let Ok(Some(histories)) = timeout(limit, frozen).await {
            return histories;
        }
        self.shared.frozen.send_replace(true);
        let releases = self.releases().into_iter();
        releases
            .map(|(id, release)| (id, Arc::clone(&release.history)))
            .collect()
    }

    /// Lets changes go on: no other process took over.
    pub fn thaw(&self) {
        self.shared.frozen.send_replace(false);
    }
}

impl Shared {
    /// Replaces releases; `None` removes one.
    pub(super) fn set(&self, changed: impl IntoIterator<Item = (ServiceId, Option<Release>)>) {
        let mut is_other = false;
        let (mut releases, mut changes) = (self.releases.lock(), self.changes.lock());
        for (service, release) in changed {
            is_other = true;
            changes.insert(service.clone());
            match release {
                Some(release) => _ = releases.insert(service, Arc::new(release)),
                None => _ = releases.remove(&service),
            }
        }
        drop((releases, changes));
        if is_other {
            self.changed.notify_one();
        }
    }
}

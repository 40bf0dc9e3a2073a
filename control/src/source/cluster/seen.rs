//! The statuses of Ingresses as the API server has them, and which of them somebody changed.

use std::collections::{BTreeSet, HashMap};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::objects::IngressStatus;
use crate::object_name::ObjectName;

/// Written by the watch of Ingresses and by this replica's own writes.
#[derive(Debug, Default)]
pub(super) struct SeenStatuses {
    all: Mutex<HashMap<ObjectName, IngressStatus>>,
    /// Those that the watch found changed since the last look.
    changed: Mutex<BTreeSet<ObjectName>>,
    notify: Notify,
}

impl SeenStatuses {
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<ObjectName, IngressStatus>> {
        self.all.lock()
    }

    /// Records what the watch has seen. A status that is another one than before was written by somebody: by this replica,
    /// whose own record may come after the watch's, or by somebody else, and then it may be wrong.
    pub(super) fn observe(&self, name: &ObjectName, status: IngressStatus) {
        let before = self.all.lock().insert(name.clone(), status.clone());
        if before.is_some_and(|before| before != status) {
            self.changed.lock().insert(name.clone());
            self.notify.notify_one();
        }
    }

    /// Waits for changed statuses, and takes them. For one caller; cancel-safe.
    pub(super) async fn changed(&self) -> BTreeSet<ObjectName> {
        loop {
            let changed = std::mem::take(&mut *self.changed.lock());
            if !changed.is_empty() {
                return changed;
            }
            self.notify.notified().await;
        }
    }
}

//! The table of what this replica serves, with the changes that the leader has not been told.

use std::collections::{BTreeMap, HashMap};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::ingress::IngressOutcome;
use crate::object_name::ObjectName;
use crate::source::cluster::acks::Served;

/// What this replica serves.
#[derive(Debug, Default)]
pub(in crate::source::cluster) struct ServedTable {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    all: HashMap<ObjectName, Served>,
    /// What has changed, by uid; `None` is gone. Collected while somebody is told.
    changes: Option<BTreeMap<String, Option<Served>>>,
}

impl Inner {
    fn note(&mut self, uid: &str, served: Option<Served>) {
        if let Some(changes) = &mut self.changes {
            changes.insert(uid.to_owned(), served);
        }
    }
}

impl ServedTable {
    /// Records what is served since an outcome was published.
    pub(in crate::source::cluster) fn serve(&self, outcome: &IngressOutcome, served: Served) {
        let name = outcome.object.name.clone();
        let mut inner = self.inner.lock();
        let before = inner.all.insert(name, served.clone());
        if before.as_ref() == Some(&served) {
            return;
        }
        if let Some(before) = before.filter(|before| before.uid != served.uid) {
            inner.note(&before.uid, None);
        }
        let uid = served.uid.to_string();
        inner.note(&uid, Some(served));
        drop(inner);
        self.changed.notify_one();
    }

    /// Forgets Ingresses that are gone.
    pub(in crate::source::cluster) fn retain(&self, is_there: impl Fn(&ObjectName) -> bool) {
        let mut inner = self.inner.lock();
        let gone: Vec<ObjectName> = inner.all.keys().filter(|name| !is_there(name)).cloned().collect();
        for name in gone {
            if let Some(served) = inner.all.remove(&name) {
                inner.note(&served.uid, None);
            }
        }
        drop(inner);
        self.changed.notify_one();
    }

    /// Begins to tell: everything is a change.
    pub(super) fn begin(&self) -> Telling<'_> {
        let mut inner = self.inner.lock();
        let all = inner.all.values();
        let all = all.map(|served| (served.uid.to_string(), Some(served.clone())));
        inner.changes = Some(all.collect());
        drop(inner);
        self.changed.notify_one();
        Telling { table: self }
    }
}

/// A guard: changes are collected until it is dropped.
#[derive(Debug)]
pub(super) struct Telling<'t> {
    table: &'t ServedTable,
}

impl Telling<'_> {
    /// The next changes, as many as this at most; waits for one. Nothing is lost when the future is dropped.
    pub(super) async fn next(&self, most: usize) -> (Vec<Served>, Vec<String>) {
        loop {
            let found = self.take(most);
            if !(found.0.is_empty() && found.1.is_empty()) {
                return found;
            }
            self.table.changed.notified().await;
        }
    }

    fn take(&self, most: usize) -> (Vec<Served>, Vec<String>) {
        let (mut served, mut gone) = (Vec::new(), Vec::new());
        let mut inner = self.table.inner.lock();
        let Some(changes) = &mut inner.changes else {
            return (served, gone);
        };
        for _ in 0..most {
            match changes.pop_first() {
                Some((_, Some(now))) => served.push(now),
                Some((uid, None)) => gone.push(uid),
                None => break,
            }
        }
        (served, gone)
    }
}

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        self.table.inner.lock().changes = None;
    }
}

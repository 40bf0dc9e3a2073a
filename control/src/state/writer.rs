//! Write-behind: documents are queued, and written by one task on a blocking thread.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::store::{Documents, StateError, Store};

/// Between two tries to lock a directory that the older process of an upgrade still has.
const RETRY: Duration = Duration::from_millis(200);

/// Reads documents, and queues writes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct StateHandle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// `None` before the lock is had, and after [`StateHandle::close`].
    store: Mutex<Option<Arc<Store>>>,
    queue: Mutex<Queue>,
    queued: Notify,
    /// The lock is had.
    opened: watch::Sender<bool>,
    /// The number of writes that were carried out.
    written: watch::Sender<u64>,
}

/// Writes not carried out yet, the newest of each document, `None` for a removal: bounded by the number of documents.
#[derive(Debug, Default)]
struct Queue {
    documents: BTreeMap<String, Option<Vec<u8>>>,
    /// The number of writes so far.
    count: u64,
}

/// The task that writes; ends with [`StateHandle::close`].
#[derive(Debug)]
pub struct StateWriter {
    shared: Arc<Shared>,
    /// The directory, while its lock is another process's.
    awaited: Option<PathBuf>,
}

impl StateHandle {
    /// A handle on an open directory, and its task.
    pub fn new(store: Store) -> (Self, StateWriter) {
        Self::with(Some(store), None)
    }

    /// A handle on a directory that another process, which is about to go, has locked: nothing is read and nothing is
    /// written before the task has the lock.
    pub fn awaiting(directory: &Path) -> (Self, StateWriter) {
        Self::with(None, Some(directory.to_owned()))
    }

    fn with(store: Option<Store>, awaited: Option<PathBuf>) -> (Self, StateWriter) {
        let shared = Arc::new(Shared {
            opened: watch::Sender::new(store.is_some()),
            store: Mutex::new(store.map(Arc::new)),
            queue: Mutex::default(),
            queued: Notify::new(),
            written: watch::Sender::new(0),
        });
        let writer = StateWriter {
            shared: Arc::clone(&shared),
            awaited,
        };
        (Self(shared), writer)
    }

    /// Whether the directory is this process's.
    pub fn is_open(&self) -> bool {
        self.0.store.lock().is_some()
    }

    /// A document; `None` where there is none, before the lock is had, and where it cannot be read, which is logged. Reads
    /// a file: for small documents, off the request path.
    pub fn read(&self, name: &str) -> Option<Vec<u8>> {
        let store = self.0.store.lock().clone()?;
        store.documents().read(name).unwrap_or_else(|error| {
            tracing::warn!("state: {error}");
            None
        })
    }

    /// Queues a document; it replaces one of the same name that was not written yet.
    pub fn write(&self, name: &str, bytes: Vec<u8>) {
        self.queue(name, Some(bytes));
    }

    /// Queues the removal of a document.
    pub fn remove(&self, name: &str) {
        self.queue(name, None);
    }

    /// Waits until the directory is this process's. Never resolves where it cannot be had, nor after
    /// [`close`](Self::close).
    pub async fn opened(&self) {
        let mut opened = self.0.opened.subscribe();
        if opened.wait_for(|opened| *opened).await.is_err() {
            std::future::pending().await
        }
    }

    /// The documents, for reading; `None` before the lock is had.
    pub fn documents(&self) -> Option<Documents> {
        self.0
            .store
            .lock()
            .as_ref()
            .map(|store| store.documents().clone())
    }

    fn queue(&self, name: &str, bytes: Option<Vec<u8>>) {
        let mut queue = self.0.queue.lock();
        queue.documents.insert(name.to_owned(), bytes);
        queue.count += 1;
        drop(queue);
        self.0.queued.notify_one();
    }

    /// Waits until everything queued so far is on disk, and gives the directory back. Further writes are dropped. Without the
    /// lock there is nothing to wait for. A dropped future leaves the directory locked.
    pub async fn close(&self) {
        if !self.is_open() {
            return;
        }
        let queued = self.0.queue.lock().count;
        let mut written = self.0.written.subscribe();
        // An error means that the task is gone, and nobody writes any more.
        let _ = written.wait_for(|written| *written >= queued).await;
        self.0.store.lock().take();
        self.0.queued.notify_one();
    }
}

impl StateWriter {
    /// Writes what is queued, until the handle is closed. Cancellation at any await leaves documents whole, and what is queued
    /// unwritten.
    pub async fn run(self) {
        if let Some(directory) = &self.awaited {
            let store = self.locked(directory).await;
            let Some(store) = store else { return };
            *self.shared.store.lock() = Some(Arc::new(store));
            self.shared.opened.send_replace(true);
        }
        loop {
            let Some(store) = self.shared.store.lock().clone() else {
                return;
            };
            let (documents, count) = {
                let mut queue = self.shared.queue.lock();
                (std::mem::take(&mut queue.documents), queue.count)
            };
            let write = move || {
                for (name, bytes) in documents {
                    let done = match bytes {
                        Some(bytes) => store.write(&name, &bytes),
                        None => store.remove(&name),
                    };
                    if let Err(error) = done {
                        tracing::warn!("state: {error}");
                    }
                }
            };
            // A panic in there is a bug that costs one write.
            let _ = tokio::task::spawn_blocking(write).await;
            self.shared.written.send_replace(count);
            self.shared.queued.notified().await;
        }
    }

    /// Waits for the lock. `None` after an error that time does not mend.
    async fn locked(&self, directory: &Path) -> Option<Store> {
        loop {
            match Store::open(directory) {
                Ok(store) => return Some(store),
                Err(StateError::InUse { .. }) => tokio::time::sleep(RETRY).await,
                Err(error) => {
                    tracing::error!("state: {error}; nothing is kept");
                    return None;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newest_of_each_document_is_on_disk_when_closed() {
        let home = tempfile::tempdir().unwrap();
        let (handle, writer) = StateHandle::new(Store::open(home.path()).unwrap());
        let task = tokio::spawn(writer.run());
        for n in 0..100 {
            handle.write("a", n.to_string().into_bytes());
        }
        handle.write("b", b"B".to_vec());
        handle.close().await;
        task.await.unwrap();
        assert!(handle.read("a").is_none(), "given back");
        let store = Store::open(home.path()).unwrap();
        assert_eq!(store.documents().read("a").unwrap().unwrap(), b"99");
        assert_eq!(store.documents().read("b").unwrap().unwrap(), b"B");
    }

    #[tokio::test]
    async fn the_newer_process_waits_for_the_older_ones_last_documents() {
        let home = tempfile::tempdir().unwrap();
        let (older, writer) = StateHandle::new(Store::open(home.path()).unwrap());
        tokio::spawn(writer.run());
        let (newer, writer) = StateHandle::awaiting(home.path());
        let task = tokio::spawn(writer.run());
        newer.write("b", b"newer".to_vec());
        assert!(!newer.is_open() && newer.read("a").is_none());
        newer.close().await;
        older.write("a", b"older".to_vec());
        older.close().await;
        while !newer.is_open() {
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(newer.read("a").unwrap(), b"older");
        newer.close().await;
        task.await.unwrap();
        assert_eq!(
            Store::open(home.path())
                .unwrap()
                .documents()
                .read("b")
                .unwrap()
                .unwrap(),
            b"newer"
        );
    }
}

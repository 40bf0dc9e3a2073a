//! Write-behind: documents are queued, and written by one task on a blocking thread.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::store::{StateError, Store};

/// Between two tries to lock a directory that the older process of an upgrade still has.
const RETRY: Duration = Duration::from_millis(200);

/// An older process that has the directory for longer is told about.
const LONG: Duration = Duration::from_secs(10);

/// Between two tries to write what could not be written.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Reads documents, and queues writes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct StateHandle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// `None` before the lock is had, and after [`StateHandle::close`].
    store: Mutex<Option<Arc<Store>>>,
    queue: Mutex<Queue>,
    queued: Notify,
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
        }
        let mut is_failing = false;
        loop {
            let Some(store) = self.shared.store.lock().clone() else {
                return;
            };
            let (documents, count) = {
                let mut queue = self.shared.queue.lock();
                (std::mem::take(&mut queue.documents), queue.count)
            };
            // A panic in there is a bug that costs these writes.
            let left = tokio::task::spawn_blocking(move || write(&store, documents)).await;
            let Failures { left, error } = left.unwrap_or_default();
            if let Some(error) = error {
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::error!("state: {error}; it is tried again until it can be written");
                }
                self.queue_again(left);
                // Whoever gives the directory back does not wait for a disk that is full.
                let _ = tokio::time::timeout(TRY_AGAIN, self.closed()).await;
                continue;
            }
            if std::mem::take(&mut is_failing) {
                tracing::info!("state: documents are written again");
            }
            self.shared.written.send_replace(count);
            self.shared.queued.notified().await;
        }
    }

    fn queue_again(&self, left: Vec<(String, Option<Vec<u8>>)>) {
        let mut queue = self.shared.queue.lock();
        for (name, bytes) in left {
            // A newer one may be queued by now.
            queue.documents.entry(name).or_insert(bytes);
        }
    }

    /// Waits until the directory is given back.
    async fn closed(&self) {
        while self.shared.store.lock().is_some() {
            self.shared.queued.notified().await;
        }
    }

    /// Waits for the lock. `None` after an error that time does not mend.
    async fn locked(&self, directory: &Path) -> Option<Store> {
        let began = tokio::time::Instant::now();
        let mut is_told = false;
        loop {
            match Store::open(directory) {
                Ok(store) => return Some(store),
                Err(error @ StateError::InUse { .. }) => {
                    if began.elapsed() >= LONG && !std::mem::replace(&mut is_told, true) {
                        tracing::warn!("state: {error}; until then nothing is kept");
                    }
                    tokio::time::sleep(RETRY).await;
                }
                Err(error) => {
                    tracing::error!("state: {error}; nothing is kept");
                    return None;
                }
            }
        }
    }
}

/// Writes that failed, with the first error.
#[derive(Debug, Default)]
struct Failures {
    left: Vec<(String, Option<Vec<u8>>)>,
    error: Option<StateError>,
}

fn write(store: &Store, documents: BTreeMap<String, Option<Vec<u8>>>) -> Failures {
    let mut failures = Failures::default();
    for (name, bytes) in documents {
        let done = match &bytes {
            Some(bytes) => store.write(&name, bytes),
            None => store.remove(&name),
        };
        match done {
            Ok(()) => {}
            // Another try would be refused as well.
            Err(error @ StateError::Bound { .. }) => tracing::error!("state: {error}; it is not kept"),
            Err(error) => {
                failures.left.push((name, bytes));
                failures.error.get_or_insert(error);
            }
        }
    }
    failures
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
    async fn what_cannot_be_written_is_tried_again_unless_a_newer_one_came() {
        let home = tempfile::tempdir().unwrap();
        let (handle, writer) = StateHandle::new(Store::open(home.path()).unwrap());
        // Where a document is to be replaced there is a directory that is not empty.
        let obstacles = ["a", "b"].map(|name| home.path().join(format!("{name}.json")));
        for obstacle in &obstacles {
            std::fs::create_dir_all(obstacle.join("x")).unwrap();
        }
        let task = tokio::spawn(writer.run());
        handle.write("a", b"1".to_vec());
        handle.write("b", b"1".to_vec());
        // A round was tried: it left its temporary file.
        while !home.path().join(".b.json.tmp").exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        handle.write("a", b"2".to_vec());
        for obstacle in &obstacles {
            std::fs::remove_dir_all(obstacle).unwrap();
        }
        handle.close().await;
        task.await.unwrap();
        let read = |name: &str| std::fs::read_to_string(home.path().join(format!("{name}.json"))).unwrap();
        assert_eq!((read("a"), read("b")), ("2".to_owned(), "1".to_owned()));
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

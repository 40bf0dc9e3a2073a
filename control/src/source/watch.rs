//! inotify watches, and the queue that reduces their events to a dirty set: the files to read again.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::fileset::Trust;
use super::watch_set::{Affected, WatchSet};

/// Limit of single files in a dirty set and of files open for writing. A dirty set above the limit becomes a full scan.
const MAX_FILES: usize = 1_024;

/// The dirty set: which files to read again.
#[derive(Debug, Default)]
pub(super) struct DirtySet {
    /// Config files with an event of their own, by their paths as given.
    pub(super) files: BTreeSet<PathBuf>,
    /// Referenced files (those that config files name) may have changed.
    pub(super) referenced: bool,
    /// A full scan is needed.
    pub(super) everything: bool,
    /// An operator requested a reload: read all files, whatever their stamps.
    pub(super) reload: bool,
}

impl DirtySet {
    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty() && !self.referenced && !self.everything && !self.reload
    }

    /// Whether the dirty set accounts for a new stamp of this path: the path is, or directly holds, a dirty file.
    pub(super) fn covers(&self, path: &Path) -> bool {
        let covers = |file: &PathBuf| file == path || file.parent() == Some(path);
        self.everything || self.files.iter().any(covers)
    }

    /// Whether a scan for this dirty set may skip files whose stamps are unchanged.
    pub(super) fn trust(&self) -> Trust {
        match self.reload {
            true => Trust::Nothing,
            false => Trust::Stamps,
        }
    }
}

/// The coalescing event queue between the watcher's thread, which pushes events, and the source, which takes the dirty
/// set.
#[derive(Debug, Default)]
pub(super) struct EventQueue {
    state: Mutex<QueueState>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct QueueState {
    watch_set: WatchSet,
    dirty: DirtySet,
    /// Files that were truncated or written to, and not closed yet.
    being_written: HashSet<PathBuf>,
    /// Watched paths that were removed or renamed: their watches are dead even if the inode comes back.
    gone: HashSet<PathBuf>,
    /// The last relevant event completed a file.
    completed: bool,
    /// A file was removed or renamed away since the last take: more than the completion of a file.
    removed: bool,
}

impl EventQueue {
    /// Waits for the next relevant event; returns at once if one came since the last wait. Cancel-safe.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.state.lock().dirty.is_empty()
    }

    /// Whether the completion of one file (closed after writing, or renamed into place) is all that happened since
    /// the last take.
    pub(super) fn is_complete(&self) -> bool {
        let state = self.state.lock();
        let dirty = &state.dirty;
        let one = dirty.files.len() == 1 && !dirty.referenced && !dirty.everything && !dirty.reload;
        one && state.completed && !state.removed && state.being_written.is_empty()
    }

    /// Whether a file is open for writing.
    pub(super) fn being_written(&self) -> bool {
        !self.state.lock().being_written.is_empty()
    }

    pub(super) fn reload_requested(&self) -> bool {
        self.state.lock().dirty.reload
    }

    pub(super) fn request_reload(&self) {
        self.state.lock().dirty.reload = true;
        self.changed.notify_one();
    }

    /// Takes the dirty set, and forgets which files are open for writing.
    pub(super) fn take(&self) -> DirtySet {
        let mut state = self.state.lock();
        state.being_written.clear();
        (state.completed, state.removed) = (false, false);
        std::mem::take(&mut state.dirty)
    }

    #[cfg(test)]
    pub(super) fn wake(&self) {
        self.changed.notify_one();
    }

    /// Adds an event of the watcher's thread, and wakes the source if the event is relevant.
    fn push(&self, event: notify::Result<Event>) {
        let relevant = match event {
            Ok(event) => self.state.lock().record(&event),
            // After an error events may have been lost.
            Err(_) => {
                self.state.lock().dirty.everything = true;
                true
            }
        };
        if relevant {
            self.changed.notify_one();
        }
    }
}

impl QueueState {
    /// Adds an event to the dirty set. Returns whether the event is relevant.
    fn record(&mut self, event: &Event) -> bool {
        if event.need_rescan() {
            self.dirty.everything = true;
            return true;
        }
        let closed = matches!(
            event.kind,
            EventKind::Access(AccessKind::Close(AccessMode::Write))
        );
        // Reads raise access events too, those of this process included.
        if event.kind.is_access() && !closed {
            return false;
        }
        let written = matches!(event.kind, EventKind::Modify(ModifyKind::Data(_)));
        let gone = matches!(
            event.kind,
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_))
        );
        let mut relevant = false;
        for path in &event.paths {
            let Some(affected) = self.watch_set.affected(path) else {
                continue;
            };
            relevant = true;
            if gone && self.watch_set.watched().contains(path) {
                self.gone.insert(path.clone());
            }
            if written && self.being_written.len() < MAX_FILES {
                self.being_written.insert(path.clone());
            } else if closed || gone {
                self.being_written.remove(path);
            }
            match affected {
                Affected::File(file) if self.dirty.files.len() < MAX_FILES => {
                    self.dirty.files.insert(file);
                }
                Affected::Referenced => self.dirty.referenced = true,
                Affected::File(_) | Affected::Everything => self.dirty.everything = true,
            }
        }
        if relevant {
            let moved_in = matches!(
                event.kind,
                EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both))
            );
            let metadata = matches!(event.kind, EventKind::Modify(ModifyKind::Metadata(_)));
            self.completed = closed || moved_in || metadata && self.completed;
            self.removed |= gone && !moved_in;
        }
        relevant
    }
}

/// The inotify watches that feed an event queue.
#[derive(Debug)]
pub(super) struct Watch {
    watcher: RecommendedWatcher,
    queue: Arc<EventQueue>,
    /// The watched paths with device and inode: a path with a new inode is another file or directory, and needs a new
    /// watch.
    watched: HashMap<PathBuf, (u64, u64)>,
    /// Directories without read permission, which inotify needs for a watch.
    denied: HashSet<PathBuf>,
    /// Whether a watched path is on a remote file system, where changes by other machines raise no event.
    remote: bool,
}

impl Watch {
    pub(super) fn new(queue: &Arc<EventQueue>) -> notify::Result<Self> {
        let sink = Arc::clone(queue);
        Ok(Self {
            watcher: notify::recommended_watcher(move |event| sink.push(event))?,
            queue: Arc::clone(queue),
            watched: HashMap::new(),
            denied: HashSet::new(),
            remote: false,
        })
    }

    /// Whether config files must be polled, because a directory cannot be watched or is on a remote file system.
    pub(super) fn needs_polling(&self) -> bool {
        self.remote || !self.denied.is_empty()
    }

    /// Drains inotify: waits until the watcher's thread has pushed all events from before this call. Without this
    /// barrier a watcher's thread that was not scheduled for a while would split one change in two. The thread
    /// answers requests between two reads of the inotify descriptor, so that two answers enclose one whole read.
    /// Blocks for two round trips.
    pub(super) fn catch_up(&mut self) {
        let Some(path) = self.watched.keys().next().cloned() else {
            return;
        };
        for _ in 0..2 {
            // The result does not matter: the path is watched already, or was removed meanwhile.
            let _ = self.watcher.watch(&path, RecursiveMode::NonRecursive);
        }
    }

    /// Sets and removes inotify watches to match the watch set. Returns whether a watch is new: changes from before a
    /// new watch raised no event, so the caller must scan again.
    ///
    /// # Errors
    /// A watch cannot be set for another reason than a missing path or permission, such as the system's limit of
    /// watches.
    pub(super) fn arm(&mut self, watch_set: WatchSet) -> notify::Result<bool> {
        let wanted = watch_set.watched().clone();
        if let (false, Some((path, kind))) = (self.remote, watch_set.remote()) {
            let path = path.display();
            tracing::info!("{path} is on {kind}, where changes made elsewhere are not told: polling it");
        }
        self.remote = watch_set.remote().is_some();
        let gone = {
            let mut state = self.queue.state.lock();
            state.watch_set = watch_set;
            std::mem::take(&mut state.gone)
        };
        // Not under the lock, or a deadlock: the thread that answers `unwatch` also pushes events, which takes the
        // lock.
        let stale: Vec<PathBuf> = self
            .watched
            .iter()
            .filter(|(dir, inode)| {
                !wanted.contains(*dir) || gone.contains(*dir) || inode_of(dir) != Some(**inode)
            })
            .map(|(dir, _)| dir.clone())
            .collect();
        for dir in stale {
            // An error means that the kernel removed the watch already, with its directory.
            let _ = self.watcher.unwatch(&dir);
            self.watched.remove(&dir);
        }
        let mut new = false;
        let mut denied = HashSet::new();
        for dir in wanted {
            if self.watched.contains_key(&dir) {
                continue;
            }
            let Some(inode) = inode_of(&dir) else { continue };
            match self.watcher.watch(&dir, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.watched.insert(dir, inode);
                    new = true;
                }
                Err(error) if is_missing(&error) => {}
                Err(error) if is_denied(&error) => {
                    if !self.denied.contains(&dir) {
                        tracing::warn!("cannot watch {}: polling it instead", dir.display());
                    }
                    denied.insert(dir);
                }
                Err(error) => return Err(error),
            }
        }
        self.denied = denied;
        Ok(new)
    }
}

fn inode_of(dir: &Path) -> Option<(u64, u64)> {
    fs::metadata(dir).ok().map(|meta| (meta.dev(), meta.ino()))
}

fn is_missing(error: &notify::Error) -> bool {
    match &error.kind {
        notify::ErrorKind::PathNotFound => true,
        notify::ErrorKind::Io(io) => io.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

fn is_denied(error: &notify::Error) -> bool {
    matches!(&error.kind, notify::ErrorKind::Io(io) if io.kind() == std::io::ErrorKind::PermissionDenied)
}

//! Word from the operating system, boiled down to which files to look at.

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

/// Single files remembered before it is simpler to look at everything.
const MAX_FILES: usize = 1_024;

/// What to look at.
#[derive(Debug, Default)]
pub(super) struct DirtySet {
    pub(super) files: BTreeSet<PathBuf>,
    /// Of files that config files name some may be others.
    pub(super) referenced: bool,
    pub(super) everything: bool,
    /// An operator asked: believe nothing.
    pub(super) reload: bool,
}

impl DirtySet {
    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty() && !self.referenced && !self.everything && !self.reload
    }

    /// Whether an event told why this path is not as it was: it is, or holds, a file to look at.
    pub(super) fn covers(&self, path: &Path) -> bool {
        let covers = |file: &PathBuf| file == path || file.parent() == Some(path);
        self.everything || self.files.iter().any(covers)
    }

    pub(super) fn trust(&self) -> Trust {
        match self.reload {
            true => Trust::Nothing,
            false => Trust::Stamps,
        }
    }
}

/// What the watcher's thread and ours share.
#[derive(Debug, Default)]
pub(super) struct EventQueue {
    state: Mutex<QueueState>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct QueueState {
    watch_set: WatchSet,
    dirty: DirtySet,
    /// Cut off or written to, and not closed yet.
    being_written: HashSet<PathBuf>,
    /// Watched directories that went away: their watches are dead even if the inode comes back.
    gone: HashSet<PathBuf>,
    /// The last that was heard is that a file was completed.
    completed: bool,
    /// Something was heard that completes no file: it went away, for one.
    removed: bool,
}

impl EventQueue {
    /// Waits for anything new; returns at once if something came since the last wait.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.state.lock().dirty.is_empty()
    }

    /// Whether all that was heard is that one file was completed: closed after writing, or renamed into
    /// place.
    pub(super) fn is_complete(&self) -> bool {
        let state = self.state.lock();
        let dirty = &state.dirty;
        let one = dirty.files.len() == 1 && !dirty.referenced && !dirty.everything && !dirty.reload;
        one && state.completed && !state.removed && state.being_written.is_empty()
    }

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

    fn push(&self, event: notify::Result<Event>) {
        let relevant = match event {
            Ok(event) => self.state.lock().record(&event),
            // Events may have been lost.
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
    fn record(&mut self, event: &Event) -> bool {
        if event.need_rescan() {
            self.dirty.everything = true;
            return true;
        }
        let closed = matches!(
            event.kind,
            EventKind::Access(AccessKind::Close(AccessMode::Write))
        );
        // Reading makes events too, ours included.
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

/// Watches directories and files for an inbox.
#[derive(Debug)]
pub(super) struct Watch {
    watcher: RecommendedWatcher,
    queue: Arc<EventQueue>,
    /// What is watched, with its inode: another one under the same name is another directory, or file.
    watched: HashMap<PathBuf, (u64, u64)>,
    /// Directories that may be passed through but not read, and so not watched.
    denied: HashSet<PathBuf>,
    /// Whether some of it is on a file system that others change unseen.
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

    /// Whether some directory cannot be watched, or not to any purpose: what happens there must be looked for.
    pub(super) fn needs_polling(&self) -> bool {
        self.remote || !self.denied.is_empty()
    }

    /// Waits until the watcher's thread has passed on what the system told it before this call. Without it a
    /// thread that was not scheduled for a while would make two changes of one. It answers requests between two looks
    /// at its queue, so that after two answers one whole look lies behind. Blocks for two round trips.
    pub(super) fn catch_up(&mut self) {
        let Some(path) = self.watched.keys().next().cloned() else {
            return;
        };
        for _ in 0..2 {
            // Watched already, or gone by itself.
            let _ = self.watcher.watch(&path, RecursiveMode::NonRecursive);
        }
    }

    /// Watches exactly what these interests need. Returns whether a watch is new: then something
    /// may have happened before it was set.
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
        // Not under the lock: the watcher answers on the thread that hears events.
        let stale: Vec<PathBuf> = self
            .watched
            .iter()
            .filter(|(dir, inode)| {
                !wanted.contains(*dir) || gone.contains(*dir) || inode_of(dir) != Some(**inode)
            })
            .map(|(dir, _)| dir.clone())
            .collect();
        for dir in stale {
            // It may be gone by itself.
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

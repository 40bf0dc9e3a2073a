//! The file source: config files and directories, watched with inotify and polled as a fallback.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::time::Instant;

use super::debounce::Debounce;
use super::fileset::{FileSet, Trust};
use super::stamp_poller::{POLL, StampKind, StampPoller, thread_cpu_time};
use super::watch::{DirtySet, EventQueue, Watch};
use super::watch_set::WatchSet;
use super::{Change, Event, Source, SourceError};

/// Limit of scans in a row while each scan leads to new watches. Links that are swapped faster than that are polled.
const MAX_ROUNDS: usize = 8;

/// A [`Source`] of config files and directories.
///
/// inotify watches detect every kind of change: a write in place, a save by rename, a swap behind a symbolic link, a
/// file added to or removed from a directory, a replaced directory. Changes that raise no event (a mount over a path,
/// a lost watch) are found by polling the roots every two seconds. Where the system has no more watches, or other
/// machines change the files (NFS), all config files are polled at that interval instead.
#[derive(Debug)]
pub struct FileSource {
    files: FileSet,
    queue: Arc<EventQueue>,
    /// `None`: all config files are polled.
    watch: Option<Watch>,
    poller: StampPoller,
    /// Whether the first read succeeded, whose events are a full list.
    is_read: bool,
    /// The debounce that a [`Change::Complete`] cut short.
    debounce: Option<Debounce>,
    /// The debounce that is under way.
    burst: Option<Debounce>,
    /// When the paths are looked at although there was no event.
    poll_at: Option<Instant>,
    /// The referenced files: those that config files name.
    referenced: Vec<PathBuf>,
}

/// A handle that requests a reload of a running source, which reads all files again; used by SIGHUP.
#[derive(Debug, Clone)]
pub struct ReloadHandle {
    queue: Arc<EventQueue>,
}

impl ReloadHandle {
    /// Requests a reload. Never blocks; requests before the next read count once.
    pub fn reload(&self) {
        self.queue.request_reload();
    }
}

impl FileSource {
    /// A source of these files, and of all `*.yaml`, `*.yml` and `*.json` directly in these directories. Reads no
    /// file yet: the first [`refresh`](Source::refresh) does. Without inotify the source polls, and logs a warning.
    pub fn new(paths: &[PathBuf]) -> Self {
        let mut source = Self::polling(paths);
        match Watch::new(&source.queue) {
            Ok(watch) => source.watch = Some(watch),
            Err(error) => warn_polling(&error),
        }
        source
    }

    fn polling(paths: &[PathBuf]) -> Self {
        Self {
            files: FileSet::new(paths),
            queue: Arc::new(EventQueue::default()),
            watch: None,
            poller: StampPoller::default(),
            is_read: false,
            debounce: None,
            burst: None,
            poll_at: None,
            referenced: Vec::new(),
        }
    }

    /// A handle to request reloads from other tasks and threads.
    pub fn reload_handle(&self) -> ReloadHandle {
        ReloadHandle {
            queue: Arc::clone(&self.queue),
        }
    }

    /// Whether config files must be polled, because some changes raise no event.
    fn needs_polling(&self) -> bool {
        self.watch.as_ref().is_none_or(Watch::needs_polling)
    }

    /// Debounces: waits for the end of a burst that has begun, or, with `stop_at_complete`, only for the completion
    /// of the one file that changed so far.
    ///
    /// The burst is kept in `self`: whoever drops this future and calls again, because something else came first, neither
    /// lengthens the quiet time nor begins the maximum anew.
    async fn settle(&mut self, stop_at_complete: bool) -> Change {
        let mut debounce = *self.burst.get_or_insert_with(|| Debounce::new(Instant::now()));
        while !self.queue.reload_requested() {
            let complete = stop_at_complete && self.queue.is_complete();
            let deadline = match complete {
                true => debounce.complete_deadline(),
                false => debounce.deadline(self.queue.being_written()),
            };
            tokio::select! {
                biased;
                () = self.queue.changed() => {
                    debounce.extend(Instant::now());
                    self.burst = Some(debounce);
                }
                () = tokio::time::sleep_until(deadline), if complete => {
                    self.debounce = self.burst.take();
                    return Change::Complete;
                }
                () = tokio::time::sleep_until(deadline) => {
                    self.burst = None;
                    return Change::Event;
                }
            }
        }
        self.burst = None;
        Change::Reload
    }

    /// Scans all files and sets watches, until no watch is new: a change from before a new watch is found by the next
    /// scan.
    fn look_at_everything(&mut self, trust: Trust) -> Result<(), Vec<SourceError>> {
        // Before the first look, so that it is not repeated for the roots' own sake.
        self.arm();
        let mut trust = trust;
        for _ in 0..MAX_ROUNDS {
            let scanned = self.files.scan(trust);
            // Also after a failure: what is missing must be seen coming back.
            if !self.arm() {
                return scanned.map(|_| ());
            }
            trust = Trust::Stamps;
        }
        tracing::warn!("config files keep moving: they are looked at every {POLL:?} from now on");
        self.watch = None;
        let scanned = self.files.scan(trust);
        scanned.map(|_| ())
    }

    /// Reads the files of the dirty set again, or all files where the set does not suffice. Returns whether
    /// referenced files may have changed too.
    fn reread(&mut self, dirty: &DirtySet) -> Result<bool, Vec<SourceError>> {
        if dirty.referenced {
            // A symbolic link on the path of a referenced file may have a new target.
            self.arm();
        }
        let changed = self.poller.poll();
        let undetected = changed.iter().any(|path| !dirty.covers(path));
        let retry = dirty.is_empty() && self.files.is_incomplete();
        let touched = dirty.referenced || dirty.everything || undetected;
        if dirty.everything || dirty.reload || undetected || retry || self.needs_polling() {
            return self.look_at_everything(dirty.trust()).map(|()| touched);
        }
        let Some(refreshed) = self.files.refresh(&dirty.files) else {
            return self.look_at_everything(Trust::Stamps).map(|()| touched);
        };
        refreshed?;
        // A root file that was saved by rename has a new inode, which is not watched yet.
        let root_changed = dirty.files.iter().any(|file| self.files.roots().contains(file));
        if root_changed && self.arm() {
            self.look_at_everything(Trust::Stamps)?;
        }
        Ok(touched)
    }

    /// The events since the last successful refresh. After the first one they are a full list.
    fn events(&mut self, touched: bool) -> Vec<Event> {
        let mut events = self.files.take_events();
        if !std::mem::replace(&mut self.is_read, true) {
            events.insert(0, Event::Init);
            events.push(Event::InitDone);
        } else if touched {
            events.push(Event::Touched);
        }
        events
    }

    /// Resolves the watch set and sets the watches and polled paths to match. Returns whether a watch is new, or
    /// watching failed: then the caller must scan again.
    fn arm(&mut self) -> bool {
        let Some(watch) = &mut self.watch else {
            return false;
        };
        let watch_set = WatchSet::of(self.files.roots(), self.files.links(), &self.referenced);
        let roots = self.files.roots().iter().chain(watch_set.files());
        let full = roots.map(|path| (path.clone(), StampKind::Full));
        let inodes = watch_set
            .watched()
            .iter()
            .map(|path| (path.clone(), StampKind::Inode));
        self.poller.set_paths(full.chain(inodes));
        match watch.arm(watch_set) {
            Ok(new) => new,
            Err(error) => {
                warn_polling(&error);
                self.watch = None;
                true
            }
        }
    }
}

impl Source for FileSource {
    async fn changed(&mut self) -> Change {
        let event = async {
            while self.queue.is_empty() {
                self.queue.changed().await;
            }
        };
        let interval = if self.needs_polling() {
            POLL
        } else {
            self.poller.interval()
        };
        let poll_at = *self.poll_at.get_or_insert_with(|| Instant::now() + interval);
        let polls = tokio::time::timeout_at(poll_at, event).await.is_err();
        if polls {
            self.poll_at = None;
            return Change::Poll;
        }
        let change = self.settle(true).await;
        self.poll_at = None;
        change
    }

    async fn settled(&mut self) -> Change {
        if self.burst.is_none() {
            self.burst = self.debounce.take();
        }
        self.settle(false).await
    }

    fn also_watch(&mut self, files: &[PathBuf]) {
        if self.referenced != files {
            self.referenced = files.to_vec();
            self.arm();
        }
    }

    fn refresh(&mut self) -> Result<Vec<Event>, Vec<SourceError>> {
        let start = thread_cpu_time();
        if let Some(watch) = self.watch.as_mut().filter(|_| !self.queue.is_empty()) {
            watch.catch_up();
        }
        let dirty = self.queue.take();
        let result = self.reread(&dirty);
        // After a failure the differences stay in the file set, for the next successful refresh.
        let events = match &result {
            Ok(touched) => self.events(*touched),
            Err(_) => Vec::new(),
        };
        let cost = thread_cpu_time().saturating_sub(start);
        self.poller
            .record_cost(cost, dirty.is_empty() && events.is_empty());
        result.map(|_| events)
    }
}

fn warn_polling(error: &notify::Error) {
    tracing::warn!(
        "cannot watch config files ({error}): looking at them every {POLL:?} instead; \
         raising fs.inotify.max_user_watches or max_user_instances may help"
    );
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;

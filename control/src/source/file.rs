//! Files and directories as a source.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::time::Instant;

use super::debounce::Debounce;
use super::fileset::{FileSet, Trust};
use super::stamp_poller::{POLL, StampKind, StampPoller, thread_cpu_time};
use super::watch::{DirtySet, EventQueue, Watch};
use super::watch_set::WatchSet;
use super::{Change, Event, Source, SourceError};

/// Looks in a row while watches keep being set; whoever swaps links faster than that is polled.
const MAX_ROUNDS: usize = 8;

/// Config files and directories, watched.
///
/// A change is noticed whichever way it is made: written in place, saved by rename, swapped behind
/// a symbolic link, added to or removed from a directory, or the directory replaced. What no watch tells of
/// (a mount over it, a watch that was lost) is found by a look at the roots every two seconds. Where the system has
/// no more watches to give, or others change files unseen (NFS), everything is looked at that often instead.
#[derive(Debug)]
pub struct FileSource {
    files: FileSet,
    queue: Arc<EventQueue>,
    /// `None`: polling.
    watch: Option<Watch>,
    poller: StampPoller,
    /// It was read once.
    is_read: bool,
    /// What may be only half of a change.
    debounce: Option<Debounce>,
    /// Files that config files name.
    referenced: Vec<PathBuf>,
}

/// Asks a running source to read everything anew; what SIGHUP does.
#[derive(Debug, Clone)]
pub struct ReloadHandle {
    queue: Arc<EventQueue>,
}

impl ReloadHandle {
    /// Asks; never blocks.
    pub fn reload(&self) {
        self.queue.request_reload();
    }
}

impl FileSource {
    /// A source of these files, and of all `*.yaml`, `*.yml` and `*.json` directly in these
    /// directories. Reads nothing yet: the first [`refresh`](Source::refresh) does.
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
            referenced: Vec::new(),
        }
    }

    /// Asks for a reload from elsewhere.
    pub fn reload_handle(&self) -> ReloadHandle {
        ReloadHandle {
            queue: Arc::clone(&self.queue),
        }
    }

    /// Whether there are changes that nobody tells of.
    fn needs_polling(&self) -> bool {
        self.watch.as_ref().is_none_or(Watch::needs_polling)
    }

    /// Waits for the end of a burst that has begun, or until a file is complete that is all there is of it
    /// so far.
    async fn settle(&mut self, mut debounce: Debounce, stop_at_complete: bool) -> Change {
        while !self.queue.reload_requested() {
            let complete = stop_at_complete && self.queue.is_complete();
            let deadline = match complete {
                true => debounce.complete_deadline(),
                false => debounce.deadline(self.queue.being_written()),
            };
            tokio::select! {
                biased;
                () = self.queue.changed() => debounce.extend(Instant::now()),
                () = tokio::time::sleep_until(deadline), if complete => {
                    self.debounce = Some(debounce);
                    return Change::Complete;
                }
                () = tokio::time::sleep_until(deadline) => return Change::Event,
            }
        }
        Change::Reload
    }

    /// Looks at everything until no watch is new: what happened before one was set is seen.
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

    /// Looks at what may differ. Returns whether files that config files name may do so too.
    fn reread(&mut self, dirty: &DirtySet) -> Result<bool, Vec<SourceError>> {
        if dirty.referenced {
            // A link on the way to it may lead elsewhere now.
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
        // A file saved by rename is another one, not watched yet.
        let root_changed = dirty.files.iter().any(|file| self.files.roots().contains(file));
        if root_changed && self.arm() {
            self.look_at_everything(Trust::Stamps)?;
        }
        Ok(touched)
    }

    /// What a look that went well has to tell.
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
        if tokio::time::timeout(interval, event).await.is_err() {
            return Change::Poll;
        }
        self.settle(Debounce::new(Instant::now()), true).await
    }

    async fn settled(&mut self) -> Change {
        let debounce = self
            .debounce
            .take()
            .unwrap_or_else(|| Debounce::new(Instant::now()));
        self.settle(debounce, false).await
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
        // After a failure what differs is left to be told by the look that goes well.
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

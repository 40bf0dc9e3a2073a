//! Files and directories as a source.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::fileset::{FileSet, Trust};
use super::links::Interests;
use super::quiet::Burst;
use super::watch::{Inbox, Watch};
use super::{Change, Event, Source, SourceError};

/// Between looks where nobody tells of changes.
const POLL: Duration = Duration::from_secs(2);

/// Looks in a row while watches keep being set; whoever swaps links faster than that is polled.
const MAX_ROUNDS: usize = 8;

/// Config files and directories, watched.
///
/// A change is noticed whichever way it is made: written in place, saved by rename, swapped behind
/// a symbolic link, added to or removed from a directory, or the directory replaced. Where the
/// system has no more watches to give, everything is looked at every two seconds instead.
#[derive(Debug)]
pub struct FileSource {
    files: FileSet,
    inbox: Arc<Inbox>,
    /// `None`: polling.
    watch: Option<Watch>,
    /// It was read once.
    is_read: bool,
    /// What may be only half of a change.
    burst: Option<Burst>,
    /// Files that config files name.
    named: Vec<PathBuf>,
}

/// Asks a running source to read everything anew; what SIGHUP does.
#[derive(Debug, Clone)]
pub struct ReloadHandle {
    inbox: Arc<Inbox>,
}

impl ReloadHandle {
    /// Asks; never blocks.
    pub fn reload(&self) {
        self.inbox.ask_reload();
    }
}

impl FileSource {
    /// A source of these files, and of all `*.yaml`, `*.yml` and `*.json` directly in these
    /// directories. Reads nothing yet: the first [`refresh`](Source::refresh) does.
    pub fn new(paths: &[PathBuf]) -> Self {
        let mut source = Self::polling(paths);
        match Watch::new(&source.inbox) {
            Ok(watch) => source.watch = Some(watch),
            Err(error) => warn_polling(&error),
        }
        source
    }

    fn polling(paths: &[PathBuf]) -> Self {
        Self {
            files: FileSet::new(paths),
            inbox: Arc::new(Inbox::default()),
            watch: None,
            is_read: false,
            burst: None,
            named: Vec::new(),
        }
    }

    /// Asks for a reload from elsewhere.
    pub fn reload_handle(&self) -> ReloadHandle {
        ReloadHandle {
            inbox: Arc::clone(&self.inbox),
        }
    }

    /// Whether there are changes that nobody tells of.
    fn polls(&self) -> bool {
        self.watch.as_ref().is_none_or(Watch::is_blind)
    }

    /// Waits for the end of a burst that has begun, or until a file is complete that is all there is of it
    /// so far.
    async fn settle(&mut self, mut burst: Burst, may_be_half: bool) -> Change {
        while !self.inbox.reload_asked() {
            let complete = may_be_half && self.inbox.is_complete();
            let over_at = match complete {
                true => burst.complete_at(),
                false => burst.over_at(self.inbox.being_written()),
            };
            tokio::select! {
                biased;
                () = self.inbox.changed() => burst.extend(Instant::now()),
                () = tokio::time::sleep_until(over_at), if complete => {
                    self.burst = Some(burst);
                    return Change::Complete;
                }
                () = tokio::time::sleep_until(over_at) => return Change::Event,
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

    fn arm(&mut self) -> bool {
        let Some(watch) = &mut self.watch else {
            return false;
        };
        let interests = Interests::of(self.files.roots(), self.files.links(), &self.named);
        match watch.arm(interests) {
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
        let heard = async {
            while self.inbox.is_empty() {
                self.inbox.changed().await;
            }
        };
        if !self.polls() {
            heard.await;
        } else if tokio::time::timeout(POLL, heard).await.is_err() {
            return Change::Poll;
        }
        self.settle(Burst::new(Instant::now()), true).await
    }

    async fn settled(&mut self) -> Change {
        let burst = self.burst.take().unwrap_or_else(|| Burst::new(Instant::now()));
        self.settle(burst, false).await
    }

    fn also_watch(&mut self, files: &[PathBuf]) {
        if self.named != files {
            self.named = files.to_vec();
            self.arm();
        }
    }

    fn refresh(&mut self) -> Result<Vec<Event>, Vec<SourceError>> {
        let dirty = self.inbox.take();
        if dirty.touched {
            // A link on the way to it may lead elsewhere now.
            self.arm();
        }
        let everything = dirty.everything || dirty.reload || self.polls();
        let looked = match everything {
            false => self.files.refresh(&dirty.files),
            true => None,
        };
        match looked {
            Some(looked) => _ = looked?,
            None if dirty.reload => self.look_at_everything(Trust::Nothing)?,
            None => self.look_at_everything(Trust::Stamps)?,
        }
        let mut events = self.files.take_events();
        if !std::mem::replace(&mut self.is_read, true) {
            events.insert(0, Event::Init);
            events.push(Event::InitDone);
        } else if dirty.touched || dirty.everything {
            events.push(Event::Touched);
        }
        Ok(events)
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

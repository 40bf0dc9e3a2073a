//! Files and directories as a source.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::fileset::{FileSet, Trust};
use super::links::Interests;
use super::quiet::Burst;
use super::watch::{Inbox, Watch};
use super::{Change, Source, SourceError, SourceFile};

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
    /// Something differs that no refresh has reported yet.
    unreported: bool,
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
            unreported: false,
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

    /// Waits for the end of a burst that has begun.
    async fn settle(&self) {
        let mut burst = Burst::new(Instant::now());
        while !self.inbox.reload_asked() {
            let over_at = burst.over_at(self.inbox.being_written());
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(over_at) => return,
                () = self.inbox.changed() => burst.extend(Instant::now()),
            }
        }
    }

    /// Looks at everything until no watch is new: what happened before one was set is seen.
    fn look_at_everything(&mut self, trust: Trust) -> Result<(), Vec<SourceError>> {
        // Before the first look, so that it is not repeated for the roots' own sake.
        self.arm();
        let mut trust = trust;
        for _ in 0..MAX_ROUNDS {
            let scanned = self.files.scan(trust);
            self.unreported |= *scanned.as_ref().unwrap_or(&false);
            // Also after a failure: what is missing must be seen coming back.
            if !self.arm() {
                return scanned.map(|_| ());
            }
            trust = Trust::Stamps;
        }
        tracing::warn!("config files keep moving: they are looked at every {POLL:?} from now on");
        self.watch = None;
        let scanned = self.files.scan(trust);
        self.unreported |= *scanned.as_ref().unwrap_or(&false);
        scanned.map(|_| ())
    }

    fn arm(&mut self) -> bool {
        let Some(watch) = &mut self.watch else {
            return false;
        };
        let interests = Interests::of(self.files.roots(), self.files.links());
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
        self.settle().await;
        if self.inbox.reload_asked() {
            Change::Reload
        } else {
            Change::Event
        }
    }

    fn refresh(&mut self) -> Result<bool, Vec<SourceError>> {
        let dirty = self.inbox.take();
        let everything = dirty.everything || dirty.reload || self.polls();
        let looked = match everything {
            false => self.files.refresh(&dirty.files),
            true => None,
        };
        match looked {
            Some(looked) => self.unreported |= looked?,
            None if dirty.reload => self.look_at_everything(Trust::Nothing)?,
            None => self.look_at_everything(Trust::Stamps)?,
        }
        Ok(std::mem::take(&mut self.unreported))
    }

    fn files(&self) -> &[SourceFile] {
        self.files.files()
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

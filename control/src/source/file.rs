//! Files and directories as a source.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::time::Instant;

use super::fileset::{FileSet, Trust};
use super::links::Interests;
use super::net::{Net, POLL, Part, processor_time};
use super::quiet::Burst;
use super::watch::{Dirty, Inbox, Watch};
use super::{Change, Source, SourceError, SourceFile};

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
    inbox: Arc<Inbox>,
    /// `None`: polling.
    watch: Option<Watch>,
    net: Net,
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
            net: Net::default(),
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

    fn look_at(&mut self, dirty: &Dirty) -> Result<(), Vec<SourceError>> {
        let moved = self.net.look();
        let unseen = moved.iter().any(|path| !dirty.explains(path));
        let unwell = dirty.is_empty() && self.files.is_incomplete();
        if dirty.everything || dirty.reload || unseen || unwell || self.polls() {
            return self.look_at_everything(dirty.trust());
        }
        let Some(looked) = self.files.refresh(&dirty.files) else {
            return self.look_at_everything(Trust::Stamps);
        };
        self.unreported |= looked?;
        // A file saved by rename is another one, not watched yet.
        let named = dirty.files.iter().any(|file| self.files.roots().contains(file));
        if named && self.arm() {
            return self.look_at_everything(Trust::Stamps);
        }
        Ok(())
    }

    fn arm(&mut self) -> bool {
        let Some(watch) = &mut self.watch else {
            return false;
        };
        let interests = Interests::of(self.files.roots(), self.files.links());
        let roots = self.files.roots().iter().chain(interests.files());
        let whole = roots.map(|path| (path.clone(), Part::Whole));
        let places = interests.watched().iter().map(|path| (path.clone(), Part::Place));
        self.net.cast(whole.chain(places));
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
        let pause = if self.polls() { POLL } else { self.net.pause() };
        if tokio::time::timeout(pause, heard).await.is_err() {
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
        let start = processor_time();
        let dirty = self.inbox.take();
        let looked = self.look_at(&dirty);
        let differs = std::mem::take(&mut self.unreported);
        let cost = processor_time().saturating_sub(start);
        self.net.spent(cost, dirty.is_empty() && !differs);
        // A failure leaves what differs to be reported by the look that goes well.
        self.unreported = differs && looked.is_err();
        looked.map(|()| differs)
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

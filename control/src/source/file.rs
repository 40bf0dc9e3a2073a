//! Files and directories as a source.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::time::Instant;

use super::fileset::{FileSet, Trust};
use super::links::Interests;
use super::net::{Net, POLL, Part, processor_time};
use super::quiet::Burst;
use super::watch::{Dirty, Inbox, Watch};
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
    inbox: Arc<Inbox>,
    /// `None`: polling.
    watch: Option<Watch>,
    net: Net,
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
            net: Net::default(),
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

    /// Looks at what may differ. Returns whether files that config files name may do so too.
    fn look_at(&mut self, dirty: &Dirty) -> Result<bool, Vec<SourceError>> {
        if dirty.touched {
            // A link on the way to it may lead elsewhere now.
            self.arm();
        }
        let moved = self.net.look();
        let unseen = moved.iter().any(|path| !dirty.explains(path));
        let unwell = dirty.is_empty() && self.files.is_incomplete();
        let touched = dirty.touched || dirty.everything || unseen;
        if dirty.everything || dirty.reload || unseen || unwell || self.polls() {
            return self.look_at_everything(dirty.trust()).map(|()| touched);
        }
        let Some(looked) = self.files.refresh(&dirty.files) else {
            return self.look_at_everything(Trust::Stamps).map(|()| touched);
        };
        looked?;
        // A file saved by rename is another one, not watched yet.
        let named = dirty.files.iter().any(|file| self.files.roots().contains(file));
        if named && self.arm() {
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
        let interests = Interests::of(self.files.roots(), self.files.links(), &self.named);
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
        let start = processor_time();
        if let Some(watch) = self.watch.as_mut().filter(|_| !self.inbox.is_empty()) {
            watch.catch_up();
        }
        let dirty = self.inbox.take();
        let looked = self.look_at(&dirty);
        // After a failure what differs is left to be told by the look that goes well.
        let events = match &looked {
            Ok(touched) => self.events(*touched),
            Err(_) => Vec::new(),
        };
        let cost = processor_time().saturating_sub(start);
        self.net.spent(cost, dirty.is_empty() && events.is_empty());
        looked.map(|_| events)
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

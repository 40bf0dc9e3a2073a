//! Configuration sources: the texts of config objects, and notification when they may have changed.

mod debounce;
mod error;
mod file;
mod fileset;
mod mounts;
mod scan;
mod stamp_poller;
mod watch;
mod watch_set;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use error::SourceError;
pub use file::{FileSource, ReloadHandle};

/// One config file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// The path as given, or the given directory joined with the file's name; shown in diagnostics.
    /// Relative paths in the file's text are relative to the file's directory.
    pub path: PathBuf,
    /// YAML or JSON. Several documents in one text count as several files.
    pub text: String,
}

/// The unique name of a config object: an [`Event::Apply`] replaces the object of the same key, and no other.
///
/// The order of keys decides which of two conflicting objects was first: the order of the roots as they were given,
/// then that of paths.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    root: usize,
    path: Arc<Path>,
}

impl ObjectKey {
    /// The key of the file at `path`, found under the root with this index.
    pub fn new(root: usize, path: &Path) -> Self {
        Self {
            root,
            path: path.into(),
        }
    }

    /// The path, as diagnostics show the object.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// One step of a source's stream of object changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A full list of objects starts, and ends with [`InitDone`](Self::InitDone), which deletes the objects that the
    /// list left out.
    Init,
    /// The object exists with this content, YAML or JSON: new, or replaced.
    Apply(ObjectKey, Arc<str>),
    /// The object was deleted.
    Delete(ObjectKey),
    /// The full list is complete.
    InitDone,
    /// A referenced file, one that objects name (a certificate, a key), may have changed; see [`Source::also_watch`].
    Touched,
}

/// Why [`Source::changed`] returned: the reason to call [`Source::refresh`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Files changed, and the debounce ended: the change is taken to be whole.
    Event,
    /// One file was completed (renamed into place, or closed after writing) and no other event came, so the debounce
    /// was cut short. Part of the change may be missing; [`Source::settled`] waits for the missing part.
    Complete,
    /// An operator requested a reload.
    Reload,
    /// The poll interval is over; most likely nothing changed.
    Poll,
}

/// A watchable supply of config objects.
pub trait Source: Send + 'static {
    /// Waits for the next debounced change or the next poll. Cancel-safe: dropping the future and calling again loses
    /// no change.
    fn changed(&mut self) -> impl Future<Output = Change> + Send;

    /// After [`Change::Complete`]: waits for the rest of the debounce, in which missing parts of the change may come.
    fn settled(&mut self) -> impl Future<Output = Change> + Send {
        self.changed()
    }

    /// Sets the referenced files, those that objects name: a change of one of these files is reported as
    /// [`Event::Touched`]. Replaces the files set before.
    fn also_watch(&mut self, _files: &[PathBuf]) {}

    /// Reads what may have changed and returns the differences since the last successful call; the first time all
    /// objects. Blocks on I/O.
    ///
    /// # Errors
    /// Every path that cannot be used; the objects stay as they were.
    fn refresh(&mut self) -> Result<Vec<Event>, Vec<SourceError>>;
}

/// Reads files, and all `*.yaml`, `*.yml` and `*.json` directly in directories, once. Blocks on I/O.
///
/// # Errors
/// Every path that cannot be used.
pub fn read(paths: &[PathBuf]) -> Result<Vec<SourceFile>, Vec<SourceError>> {
    let mut files = fileset::FileSet::new(paths);
    files.scan(fileset::Trust::Nothing)?;
    Ok(files.files())
}

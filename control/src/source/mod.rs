//! Where configuration comes from: texts, and word that they may have changed.

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
    /// As it was named, or found in a directory that was: shown in diagnostics. Relative paths in
    /// the file are relative to its directory.
    pub path: PathBuf,
    /// YAML or JSON; several documents count as several files.
    pub text: String,
}

/// The name of an object: what is applied under it replaces what was, and nothing else.
///
/// Objects have an order, which decides who of two that want the same was first: that of the roots
/// as they were named, then that of paths.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    root: usize,
    path: Arc<Path>,
}

impl ObjectKey {
    /// An object of a root.
    pub fn new(root: usize, path: &Path) -> Self {
        Self {
            root,
            path: path.into(),
        }
    }

    /// As diagnostics show it.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What a source says of its objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// All objects follow, up to [`InitDone`](Self::InitDone): whatever does not is deleted then.
    Init,
    /// The object is there, with this content: YAML or JSON.
    Apply(ObjectKey, Arc<str>),
    /// The object is no more.
    Delete(ObjectKey),
    /// Those were all.
    InitDone,
    /// Something happened to a file that objects name; see [`Source::also_watch`].
    Touched,
}

/// Why somebody should look again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Something happened to a file, and then nothing for a while: it is all there is to a change.
    Event,
    /// A file was completed (renamed into place, or closed after writing), and nothing else happened around
    /// then. Part of a change may be missing; [`Source::settled`] waits for it.
    Complete,
    /// An operator asked for it.
    Reload,
    /// It is time to; most likely nothing happened.
    Poll,
}

/// Something that yields config files and says when to look again.
pub trait Source: Send + 'static {
    /// Waits until it is worth looking again; bursts count once. May be dropped and called again
    /// without losing a change.
    fn changed(&mut self) -> impl Future<Output = Change> + Send;

    /// After [`Change::Complete`]: waits for what may be missing of the change.
    fn settled(&mut self) -> impl Future<Output = Change> + Send {
        self.changed()
    }

    /// Files that objects name: whatever happens to them is told as [`Event::Touched`].
    fn also_watch(&mut self, _files: &[PathBuf]) {}

    /// Looks again, and says what differs from before; the first time everything does. Blocks on
    /// I/O.
    ///
    /// # Errors
    /// Everything that is wrong; the objects stay what they were.
    fn refresh(&mut self) -> Result<Vec<Event>, Vec<SourceError>>;
}

/// Reads files, and all `*.yaml`, `*.yml` and `*.json` directly in directories, once. Blocks on I/O.
///
/// # Errors
/// Everything that is wrong with any of them.
pub fn read(paths: &[PathBuf]) -> Result<Vec<SourceFile>, Vec<SourceError>> {
    let mut files = fileset::FileSet::new(paths);
    files.scan(fileset::Trust::Nothing)?;
    Ok(files.files())
}

//! Configuration sources: the texts of config objects, and notification when they may have changed.

#[cfg(feature = "cluster")]
pub mod cluster;
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

use crate::ingress::{IngressObject, IngressOutcome};

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
/// The order of keys decides which of two conflicting objects was first. Files: the order of the roots as they were
/// given, then that of paths. Ingresses: the older one, then the order of namespaces and names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// The index of the root, or the time of creation.
    rank: i64,
    path: Arc<Path>,
}

impl ObjectKey {
    /// The key of the file at `path`, found under the root with this index.
    pub fn new(root: usize, path: &Path) -> Self {
        Self {
            rank: i64::try_from(root).unwrap_or(i64::MAX),
            path: path.into(),
        }
    }

    /// The key of an Ingress that was created at this time, in seconds since 1970: another one after it was deleted and
    /// created again.
    pub fn of_ingress(created: i64, namespace: &str, name: &str) -> Self {
        // As a path namespaces and names are compared one after the other.
        let path = format!("Ingress {namespace}/{name}");
        Self {
            rank: created,
            path: Path::new(&path).into(),
        }
    }

    /// The key of a revision of a cluster that no Ingress names: after all Ingresses.
    pub fn of_revision(namespace: &str, name: &str) -> Self {
        let path = format!("Revision {namespace}/{name}");
        Self {
            rank: i64::MAX,
            path: Path::new(&path).into(),
        }
    }

    /// The index of the root of a file.
    fn root(&self) -> usize {
        usize::try_from(self.rank).unwrap_or(usize::MAX)
    }

    /// The path, as diagnostics show the object.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The content of an object.
#[derive(Debug, Clone)]
pub enum Content {
    /// YAML or JSON.
    Text(Arc<str>),
    /// An Ingress of a cluster, resolved by its source.
    Ingress(Arc<IngressObject>),
}

impl Content {
    /// The text of a file.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Ingress(_) => None,
        }
    }
}

impl PartialEq for Content {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Text(a), Self::Text(b)) => a == b,
            (Self::Ingress(a), Self::Ingress(b)) => Arc::ptr_eq(a, b) || a == b,
            _ => false,
        }
    }
}

impl Eq for Content {}

impl From<&str> for Content {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Content {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<Arc<str>> for Content {
    fn from(text: Arc<str>) -> Self {
        Self::Text(text)
    }
}

/// One step of a source's stream of object changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A full list of objects starts, and ends with [`InitDone`](Self::InitDone), which deletes the objects that the
    /// list left out.
    Init,
    /// The object exists with this content: new, or replaced.
    Apply(ObjectKey, Content),
    /// The object was deleted.
    Delete(ObjectKey),
    /// The full list is complete.
    InitDone,
    /// The settings that a cluster gives all its gateways are these now; `None`: there are none.
    Settings(Option<SourceFile>),
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

    /// Reports what became of Ingresses that have changed, for their status.
    fn published(&mut self, _outcomes: Vec<IngressOutcome>) {}
}

/// The source without objects: the cluster of a gateway that follows files alone.
#[derive(Debug, Clone, Copy)]
pub struct NoSource;

impl Source for NoSource {
    async fn changed(&mut self) -> Change {
        std::future::pending().await
    }

    fn refresh(&mut self) -> Result<Vec<Event>, Vec<SourceError>> {
        Ok(Vec::new())
    }
}

/// A source that may be absent.
impl<S: Source> Source for Option<S> {
    async fn changed(&mut self) -> Change {
        match self {
            Some(source) => source.changed().await,
            None => std::future::pending().await,
        }
    }

    fn refresh(&mut self) -> Result<Vec<Event>, Vec<SourceError>> {
        self.as_mut().map_or_else(|| Ok(Vec::new()), Source::refresh)
    }

    fn published(&mut self, outcomes: Vec<IngressOutcome>) {
        if let Some(source) = self {
            source.published(outcomes);
        }
    }
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

//! Where configuration comes from: texts, and word that they may have changed.

mod error;
mod file;
mod fileset;
mod links;
mod mounts;
mod net;
mod quiet;
mod watch;

use std::future::Future;
use std::path::PathBuf;

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

/// Why somebody should look again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Something happened to a file.
    Event,
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

    /// Looks again, and says whether any text, or which files there are, differs from before.
    /// Blocks on I/O.
    ///
    /// # Errors
    /// Everything that is wrong; the files stay what they were.
    fn refresh(&mut self) -> Result<bool, Vec<SourceError>>;

    /// All files as of the last refresh that went well, in the order of their names.
    fn files(&self) -> &[SourceFile];
}

/// Reads files, and all `*.yaml`, `*.yml` and `*.json` directly in directories, once. Blocks on I/O.
///
/// # Errors
/// Everything that is wrong with any of them.
pub fn read(paths: &[PathBuf]) -> Result<Vec<SourceFile>, Vec<SourceError>> {
    let mut files = fileset::FileSet::new(paths);
    files.scan(fileset::Trust::Nothing)?;
    Ok(files.into_files())
}

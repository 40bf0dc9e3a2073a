//! Errors of reading config files, before any text is parsed.

use std::io;
use std::path::{Path, PathBuf};

use super::fileset::{MAX_BYTES, MAX_FILES};

/// Why a path yields no config text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The path does not exist.
    #[error("{}: no such file or directory (name a config; without one it is ./sluice.yaml)", .0.display())]
    Missing(PathBuf),
    /// A directory entry is a symbolic link to a path that does not exist.
    #[error("{}: a symbolic link to something that does not exist", .0.display())]
    BrokenLink(PathBuf),
    /// The path is neither a regular file nor a directory.
    #[error("{}: neither a file nor a directory", .0.display())]
    NotAFile(PathBuf),
    /// The directory has no config file.
    #[error("{}: the directory has no *.yaml, *.yml or *.json file", .0.display())]
    NoFiles(PathBuf),
    /// A file that had text is empty: most likely truncated by a writer that has not written the new text yet.
    #[error(
        "{}: is empty now: what it said before goes on (to serve nothing, write `services: []`, or remove it)",
        .0.display()
    )]
    Emptied(PathBuf),
    /// The operating system returned an error.
    #[error("{}: cannot be read: {reason}", .path.display())]
    Unreadable {
        /// The path that was read.
        path: PathBuf,
        /// The operating system's error message.
        reason: String,
    },
    /// The file is not UTF-8 text.
    #[error("{}: not UTF-8 text (byte {offset})", .path.display())]
    NotUtf8 {
        /// The file that was read.
        path: PathBuf,
        /// Offset in bytes of the first invalid byte.
        offset: usize,
    },
    /// All files together exceed the size limit; the path is that of the file that exceeds the limit.
    #[error("{}: more than {} MiB of config, all files together", .0.display(), MAX_BYTES >> 20)]
    TooLarge(PathBuf),
    /// All directories together exceed the limit of files; the path is that of the directory that exceeds the limit.
    #[error("{}: more than {MAX_FILES} config files, all directories together", .0.display())]
    TooMany(PathBuf),
}

impl SourceError {
    /// The path that the error is about.
    pub fn path(&self) -> &Path {
        match self {
            Self::Missing(path)
            | Self::BrokenLink(path)
            | Self::NotAFile(path)
            | Self::NoFiles(path)
            | Self::Emptied(path)
            | Self::TooLarge(path)
            | Self::TooMany(path)
            | Self::Unreadable { path, .. }
            | Self::NotUtf8 { path, .. } => path,
        }
    }

    pub(super) fn io(path: &Path, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::Missing(path.to_owned()),
            _ => Self::Unreadable {
                path: path.to_owned(),
                reason: error.to_string(),
            },
        }
    }
}

//! What can be wrong with a file before anybody looks at what it says.

use std::io;
use std::path::{Path, PathBuf};

use super::fileset::{MAX_BYTES, MAX_FILES};

/// Why a path yields no config text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// Nothing is there.
    #[error("{}: no such file or directory (name a config; without one it is ./sluice.yaml)", .0.display())]
    Missing(PathBuf),
    /// A symbolic link in a directory that leads nowhere.
    #[error("{}: a symbolic link to something that does not exist", .0.display())]
    BrokenLink(PathBuf),
    /// Neither a file nor a directory.
    #[error("{}: neither a file nor a directory", .0.display())]
    NotAFile(PathBuf),
    /// A directory without any config file.
    #[error("{}: the directory has no *.yaml, *.yml or *.json file", .0.display())]
    NoFiles(PathBuf),
    /// A file that said something is empty: cut off by whoever is writing it, most likely.
    #[error(
        "{}: is empty now: what it said before goes on (to serve nothing, write `services: []`, or remove it)",
        .0.display()
    )]
    Emptied(PathBuf),
    /// The operating system refuses.
    #[error("{}: cannot be read: {reason}", .path.display())]
    Unreadable {
        /// What was read.
        path: PathBuf,
        /// What the operating system says.
        reason: String,
    },
    /// Not text.
    #[error("{}: not UTF-8 text (byte {offset})", .path.display())]
    NotUtf8 {
        /// What was read.
        path: PathBuf,
        /// The first byte that is wrong.
        offset: usize,
    },
    /// All files together are too large; the path is the one that is too much.
    #[error("{}: more than {} MiB of config, all files together", .0.display(), MAX_BYTES >> 20)]
    TooLarge(PathBuf),
    /// Too many files; the path is the directory that has one too many.
    #[error("{}: more than {MAX_FILES} config files, all directories together", .0.display())]
    TooMany(PathBuf),
}

impl SourceError {
    /// What it is about.
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

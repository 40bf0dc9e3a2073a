//! Lists the roots' candidate files, checks their stamps and reads those that changed.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;

use super::fileset::{CachedFile, MAX_FILES, Stamp};
use super::{ObjectKey, SourceError};

/// A path that may be a config file: a root, or a directory entry with a config file's name.
#[derive(Debug)]
pub(super) struct Candidate {
    /// Index of the root.
    pub(super) root: usize,
    /// Name of the entry in a root that is a directory; `None`: the root itself.
    name: Option<Box<OsStr>>,
    /// The directory entry has the type of a regular file, which saves a stat(2).
    is_regular: bool,
}

/// A listing of the roots; no file is read.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// By root, then by path.
    pub(super) candidates: Vec<Candidate>,
    /// Roots that are directories and were listed.
    pub(super) directories: Vec<usize>,
    /// Directory entries that are symbolic links.
    pub(super) links: BTreeSet<PathBuf>,
    /// Errors, each with the index of its root.
    pub(super) errors: Vec<(usize, SourceError)>,
}

/// The outcome of checking and reading one candidate.
#[derive(Debug)]
pub(super) enum Looked {
    /// The candidate is no config file, or was removed after the listing.
    NotConfig,
    /// The candidate is a symbolic link to a path that does not exist.
    BrokenLink(PathBuf),
    /// The stamp is unchanged, so the file was not read; the length of its text in bytes.
    Unchanged(u64),
    /// The file was written to with the same text; its new stamp and its length in bytes.
    SameText(ObjectKey, Stamp, u64),
    /// The file is new or has a new text.
    Read(ObjectKey, CachedFile),
    /// The file was not read, because all files together may exceed the size limit.
    Unread,
    /// The file cannot be used.
    Failed(SourceError),
}

impl Found {
    /// Lists the roots. Blocks on I/O.
    pub(super) fn list(roots: &[PathBuf]) -> Self {
        let mut found = Self::default();
        for (at, root) in roots.iter().enumerate() {
            match fs::metadata(root) {
                Ok(meta) if meta.is_dir() => match found.list_directory(at, root, roots) {
                    Ok(()) => found.directories.push(at),
                    Err(error) => found.errors.push((at, error)),
                },
                Ok(meta) if meta.is_file() => found.candidates.push(Candidate {
                    root: at,
                    name: None,
                    is_regular: false,
                }),
                Ok(_) => found.errors.push((at, SourceError::NotAFile(root.clone()))),
                Err(error) => found.errors.push((at, SourceError::io(root, &error))),
            }
        }
        found
    }

    fn list_directory(&mut self, at: usize, root: &Path, roots: &[PathBuf]) -> Result<(), SourceError> {
        let unreadable = |error| SourceError::io(root, &error);
        let before = self.candidates.len();
        for entry in fs::read_dir(root).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let name = entry.file_name();
            // A file that is also a root of its own is listed once, as that root.
            if !is_config_file(Path::new(&name)) || roots.len() > 1 && roots.contains(&entry.path()) {
                continue;
            }
            if self.candidates.len() >= MAX_FILES {
                self.candidates.truncate(before);
                return Err(SourceError::TooMany(root.to_owned()));
            }
            let kind = entry.file_type();
            if kind.as_ref().is_ok_and(fs::FileType::is_symlink) {
                self.links.insert(entry.path());
            }
            self.candidates.push(Candidate {
                root: at,
                name: Some(name.into()),
                is_regular: kind.is_ok_and(|kind| kind.is_file()),
            });
        }
        self.candidates[before..].sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(())
    }
}

impl Candidate {
    pub(super) fn path(&self, roots: &[PathBuf]) -> PathBuf {
        let root = &roots[self.root];
        match &self.name {
            Some(name) => root.join(&**name),
            None => root.clone(),
        }
    }

    /// Checks the candidate, and reads the file unless `believed` allows to skip a file with the stamp of `known`. A
    /// file of more than `budget` bytes is an error; without a budget no file is read. Blocks on I/O.
    pub(super) fn look(
        &self,
        key: ObjectKey,
        known: Option<&CachedFile>,
        believed: bool,
        budget: Option<u64>,
    ) -> Looked {
        let path = key.path();
        let believed = known.filter(|_| believed);
        // A regular file that will be read needs no stat(2): opening the file yields existence and stamp.
        let mut is_file = self.is_regular;
        if !is_file || believed.is_some() {
            match fs::metadata(path) {
                Ok(meta) if meta.is_file() => {
                    is_file = true;
                    if let Some(known) = believed.filter(|known| known.stamp == Stamp::of(&meta)) {
                        return Looked::Unchanged(known.text.len() as u64);
                    }
                }
                // A directory or socket with a config file's name is no config file.
                Ok(_) if self.name.is_some() => return Looked::NotConfig,
                Ok(_) => return Looked::Failed(SourceError::NotAFile(path.to_owned())),
                Err(_) if self.name.is_some() => {
                    return match fs::symlink_metadata(path) {
                        Ok(_) => Looked::BrokenLink(path.to_owned()),
                        // The file was removed after the listing.
                        Err(_) => Looked::NotConfig,
                    };
                }
                Err(error) => return Looked::Failed(SourceError::io(path, &error)),
            }
        }
        let Some(budget) = budget else {
            return Looked::Unread;
        };
        match read_regular(path, budget, is_file) {
            Ok((text, stamp)) => match known {
                Some(known) if *known.text == text => Looked::SameText(key, stamp, text.len() as u64),
                _ => {
                    let text: Arc<str> = text.into();
                    Looked::Read(key, CachedFile { text, stamp })
                }
            },
            Err(SourceError::Missing(_)) if self.name.is_some() => Looked::NotConfig,
            Err(error) => Looked::Failed(error),
        }
    }
}

/// Whether a directory entry has a config file's name: `*.yaml`, `*.yml` or `*.json`. Names with a leading dot are
/// excluded, as editors and ConfigMap mounts use them for their own files.
pub(super) fn is_config_file(path: &Path) -> bool {
    let hidden = path
        .file_name()
        .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(|e| e.to_str());
    !hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// Reads a regular file of at most `budget` bytes. Blocks on I/O.
///
/// # Errors
/// The file is missing, unreadable, too large, not a regular file, or not UTF-8 text.
pub(super) fn read_file(path: &Path, budget: u64) -> Result<(String, Stamp), SourceError> {
    read_regular(path, budget, false)
}

/// [`read_file`] without the check before opening, if `is_regular`: the file type is known.
fn read_regular(path: &Path, budget: u64, is_regular: bool) -> Result<(String, Stamp), SourceError> {
    let unreadable = |error| SourceError::io(path, &error);
    // Check before opening: opening a pipe or a device may block or have side effects.
    if !is_regular && !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(SourceError::NotAFile(path.to_owned()));
    }
    let file = open(path).map_err(unreadable)?;
    // The stamp is from before the read: a write during the read then makes the next stamp differ.
    let meta = file.metadata().map_err(unreadable)?;
    if !meta.is_file() {
        return Err(SourceError::NotAFile(path.to_owned()));
    }
    let stamp = Stamp::of(&meta);
    // One byte more than the file, so that the read finds the end without growing the buffer.
    let size = usize::try_from(meta.len().min(budget)).unwrap_or(0) + 1;
    let mut bytes = Vec::with_capacity(size);
    file.take(budget + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > budget {
        return Err(SourceError::TooLarge(path.to_owned()));
    }
    let text = String::from_utf8(bytes).map_err(|error| SourceError::NotUtf8 {
        path: path.to_owned(),
        offset: error.utf8_error().valid_up_to(),
    })?;
    Ok((text, stamp))
}

/// Opens a file without blocking, in case the file was replaced by a pipe after the check.
fn open(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
    match options.open(path) {
        // Another process holds a lease on the file: only a blocking open waits until the lease is broken.
        Err(error) if error.kind() == ErrorKind::WouldBlock => File::open(path),
        opened => opened,
    }
}

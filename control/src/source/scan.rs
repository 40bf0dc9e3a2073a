//! A look at the roots: what is there, and what of it has to be read.

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

/// What may be a config file.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) root: usize,
    /// In a root that is a directory; `None`: the root itself.
    name: Option<Box<OsStr>>,
    /// The directory says that it is a plain file, so that it need not be asked.
    is_regular: bool,
}

/// What a look at the roots finds, nothing read.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// By root, then by path.
    pub(super) candidates: Vec<Candidate>,
    /// Roots that are directories and were listed.
    pub(super) directories: Vec<usize>,
    pub(super) links: BTreeSet<PathBuf>,
    /// By root.
    pub(super) errors: Vec<(usize, SourceError)>,
}

/// What became of a candidate.
#[derive(Debug)]
pub(super) enum Looked {
    /// It is no config file, or gone since it was listed.
    NotConfig,
    /// A link that leads nowhere.
    BrokenLink(PathBuf),
    /// It is as it is known; its length in bytes.
    Unchanged(u64),
    /// It was written to, and says what it said.
    SameText(ObjectKey, Stamp, u64),
    /// It says this.
    Read(ObjectKey, CachedFile),
    /// It was not read: all files together may be too large.
    Unread,
    Failed(SourceError),
}

impl Found {
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
            // A file that is also named by itself comes once.
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

    /// Looks at it, and reads it unless it is as `known`: that is believed of one whose stamp is the same. Reads nothing
    /// where that is more than so many bytes.
    pub(super) fn look(
        &self,
        key: ObjectKey,
        known: Option<&CachedFile>,
        believed: bool,
        budget: Option<u64>,
    ) -> Looked {
        let path = key.path();
        let believed = known.filter(|_| believed);
        // Reading tells whether one is still there, and its stamp.
        let mut is_file = self.is_regular;
        if !is_file || believed.is_some() {
            match fs::metadata(path) {
                Ok(meta) if meta.is_file() => {
                    is_file = true;
                    if let Some(known) = believed.filter(|known| known.stamp == Stamp::of(&meta)) {
                        return Looked::Unchanged(known.text.len() as u64);
                    }
                }
                // A directory with such a name, a socket: not ours.
                Ok(_) if self.name.is_some() => return Looked::NotConfig,
                Ok(_) => return Looked::Failed(SourceError::NotAFile(path.to_owned())),
                Err(_) if self.name.is_some() => {
                    return match fs::symlink_metadata(path) {
                        Ok(_) => Looked::BrokenLink(path.to_owned()),
                        // Gone since it was listed.
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

/// Whether a directory entry is a config file by its name. Names with a dot in front are not:
/// editors and mounts keep their own things there.
pub(super) fn is_config_file(path: &Path) -> bool {
    let hidden = path
        .file_name()
        .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(|e| e.to_str());
    !hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// Reads a file of at most so many bytes.
pub(super) fn read_file(path: &Path, budget: u64) -> Result<(String, Stamp), SourceError> {
    read_regular(path, budget, false)
}

/// [`read_file`], where it may be known already that it is a plain file.
fn read_regular(path: &Path, budget: u64, is_regular: bool) -> Result<(String, Stamp), SourceError> {
    let unreadable = |error| SourceError::io(path, &error);
    // Opening something else may wait, or do something.
    if !is_regular && !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(SourceError::NotAFile(path.to_owned()));
    }
    let file = open(path).map_err(unreadable)?;
    // Taken before reading: what is written meanwhile makes the next stamp differ.
    let meta = file.metadata().map_err(unreadable)?;
    if !meta.is_file() {
        return Err(SourceError::NotAFile(path.to_owned()));
    }
    let stamp = Stamp::of(&meta);
    // One byte more, so that the end is found without growing.
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

/// Opens a file; one that has become a pipe since it was looked at is not waited for.
fn open(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
    match options.open(path) {
        // Another process has a lease on it, which only an open that waits is given.
        Err(error) if error.kind() == ErrorKind::WouldBlock => File::open(path),
        opened => opened,
    }
}

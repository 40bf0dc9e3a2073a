//! A cache of the texts of all config files by path, so that only changed files are read again.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{self, Metadata};
use std::hash::{Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::scan::{Candidate, Found, Looked, read_file};
use super::{Event, ObjectKey, SourceError, SourceFile};
use crate::parallel::{map_in_order, workers};

/// Limit of bytes of config, all files together: far above what is written in practice, far below what fills the
/// memory.
pub(super) const MAX_BYTES: u64 = 64 << 20;

/// Limit of config files, all directories together.
pub(super) const MAX_FILES: usize = 200_000;

/// Whether a scan may skip a file whose stamp is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// A file with the same inode, size and times is not read again.
    Stamps,
    /// All files are read.
    Nothing,
}

/// A file's identity stamp, a hash of inode, size and times: a changed stamp reveals a changed file without a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp(u64);

impl Stamp {
    /// The full stamp: of inode, size and times.
    pub(super) fn of(meta: &Metadata) -> Self {
        Self::hash((
            (meta.dev(), meta.ino()),
            meta.size(),
            (meta.mtime(), meta.mtime_nsec()),
            (meta.ctime(), meta.ctime_nsec()),
        ))
    }

    /// A stamp of the inode alone: changes of entries in a directory leave the directory's stamp the same.
    pub(super) fn inode(meta: &Metadata) -> Self {
        Self::hash((meta.dev(), meta.ino()))
    }

    fn hash(fields: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        fields.hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// A file's text, shared with the receivers of its [`Event::Apply`], and the stamp of the read.
#[derive(Debug, Clone)]
pub(super) struct CachedFile {
    pub(super) text: Arc<str>,
    pub(super) stamp: Stamp,
}

impl CachedFile {
    /// Whether a file that had text is empty now: a truncation, which is the first half of a write in place.
    fn is_emptied_by(&self, text: &str) -> bool {
        text.trim().is_empty() && !self.text.trim().is_empty()
    }
}

/// The cache of all config files of the roots: files and directories, by their paths as given.
#[derive(Debug)]
pub(super) struct FileSet {
    roots: Vec<PathBuf>,
    /// By root, then by path.
    files: BTreeMap<ObjectKey, CachedFile>,
    bytes: u64,
    /// Directory entries that are symbolic links: their targets change without an event in the directory of the link.
    links: BTreeSet<PathBuf>,
    /// Whether the last scan or refresh failed: then reading single files does not suffice, a full scan is needed.
    incomplete: bool,
    /// The differences since [`take_events`](Self::take_events).
    events: Vec<Event>,
}

impl FileSet {
    pub(super) fn new(paths: &[PathBuf]) -> Self {
        let mut roots: Vec<PathBuf> = Vec::new();
        for path in paths {
            if !roots.contains(path) {
                roots.push(path.clone());
            }
        }
        Self {
            roots,
            files: BTreeMap::new(),
            bytes: 0,
            links: BTreeSet::new(),
            incomplete: true,
            events: Vec::new(),
        }
    }

    /// Takes the differences since the last call.
    pub(super) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    pub(super) fn files(&self) -> Vec<SourceFile> {
        let files = self.files.iter();
        let files = files.map(|(key, kept)| SourceFile {
            path: key.path().to_owned(),
            text: kept.text.as_ref().to_owned(),
        });
        files.collect()
    }

    pub(super) fn roots(&self) -> &[PathBuf] {
        &self.roots
    }

    /// Whether the last scan or refresh failed.
    pub(super) fn is_incomplete(&self) -> bool {
        self.incomplete
    }

    pub(super) fn links(&self) -> &BTreeSet<PathBuf> {
        &self.links
    }

    /// Scans all roots and reads the files that changed. Returns whether any text differs. Blocks on I/O.
    ///
    /// # Errors
    /// Every path that cannot be used; the cached files stay as they were.
    pub(super) fn scan(&mut self, trust: Trust) -> Result<bool, Vec<SourceError>> {
        let Found {
            candidates,
            directories,
            links,
            mut errors,
        } = Found::list(&self.roots);
        self.links = links;
        // The first time nothing is served yet, and all cores are to be had.
        let workers = if self.files.is_empty() { workers() } else { 1 };

        // Everything is read before anything is replaced: a failure leaves the set as it was.
        let mut looks = Looks::new(self.roots.len());
        let read = AtomicU64::new(0);
        map_in_order(
            candidates.iter().collect(),
            workers,
            || (),
            |(), candidate: &Candidate| {
                let key = ObjectKey::new(candidate.root, &candidate.path(&self.roots));
                let known = self.files.get_key_value(&key);
                let key = known.map_or(key, |(key, _)| key.clone());
                // What is too much in all is told in order, and nobody reads much more than that meanwhile.
                let budget = (read.load(Ordering::Relaxed) <= MAX_BYTES).then_some(MAX_BYTES);
                let known = known.map(|(_, kept)| kept);
                let looked = candidate.look(key.clone(), known, trust == Trust::Stamps, budget);
                if let Looked::Read(_, kept) = &looked {
                    read.fetch_add(kept.text.len() as u64, Ordering::Relaxed);
                }
                (candidate, key, looked)
            },
            |(candidate, key, looked)| {
                let looked = match looked {
                    Looked::Unread if !looks.is_over => {
                        let known = self.files.get(&key);
                        candidate.look(key.clone(), known, false, Some(MAX_BYTES))
                    }
                    looked => looked,
                };
                looks.take(candidate.root, key, looked, &self.files);
            },
        );
        let empty = directories.into_iter().filter(|root| !looks.seen[*root]);
        let empty = empty.map(|root| (root, SourceError::NoFiles(self.roots[root].clone())));
        errors.extend(empty.collect::<Vec<_>>());
        errors.append(&mut looks.broken);
        errors.sort_by_key(|(root, _)| *root);
        let mut errors: Vec<SourceError> = errors.into_iter().map(|(_, error)| error).collect();
        errors.append(&mut looks.errors);
        self.incomplete = !errors.is_empty();
        if self.incomplete {
            return Err(errors);
        }
        self.bytes = looks.bytes;
        Ok(self.replace(looks))
    }

    /// Reads these files only. Returns whether any text differs; `None`: these files alone do not suffice, a full
    /// scan is needed. Blocks on I/O.
    ///
    /// # Errors
    /// Every file that cannot be used; the cached files stay as they were.
    pub(super) fn refresh(&mut self, paths: &BTreeSet<PathBuf>) -> Option<Result<bool, Vec<SourceError>>> {
        if self.incomplete || self.files.len() + paths.len() > MAX_FILES {
            return None;
        }
        let mut errors = Vec::new();
        let mut updates = Vec::new();
        let mut bytes = self.bytes;
        for path in paths {
            let Some(root) = self.root_of(path) else { continue };
            let in_directory = self.roots[root] != *path;
            if in_directory && self.needs_scan(path) {
                return None;
            }
            let key = ObjectKey::new(root, path);
            let kept = self.files.get(&key);
            let old = kept.map_or(0, |kept| kept.text.len() as u64);
            match read_file(path, MAX_BYTES - (bytes - old)) {
                Ok((text, _)) if kept.is_some_and(|kept| kept.is_emptied_by(&text)) => {
                    errors.push(SourceError::Emptied(path.clone()));
                }
                Ok((text, stamp)) => {
                    bytes = bytes - old + text.len() as u64;
                    updates.push((key, Some((text, stamp))));
                }
                Err(SourceError::Missing(_)) if in_directory => {
                    bytes -= old;
                    updates.push((key, None));
                }
                Err(error) => errors.push(error),
            }
        }
        // A directory that loses its last file is an error, or the directory itself is gone: only a full scan can tell.
        let removed = updates.iter().filter(|(_, text)| text.is_none());
        let count = removed.clone().count();
        if removed
            .into_iter()
            .any(|(key, _)| self.has_at_most(key.root(), count))
        {
            return None;
        }
        if !errors.is_empty() {
            self.incomplete = true;
            return Some(Err(errors));
        }
        self.bytes = bytes;
        let mut differs = false;
        for (key, update) in updates {
            differs |= self.update(key, update);
        }
        Some(Ok(differs))
    }

    /// Whether only a full scan can read this path: the path is, or was, a symbolic link, or is no regular file.
    fn needs_scan(&self, path: &Path) -> bool {
        self.links.contains(path) || fs::symlink_metadata(path).is_ok_and(|meta| !meta.is_file())
    }

    /// Applies a scan's result to the cache and records the events. In place: the memory of a second, large map would
    /// not go back to the system.
    fn replace(&mut self, looks: Looks) -> bool {
        let before = self.events.len();
        if looks.known.len() < self.files.len() {
            let known: HashSet<ObjectKey> = looks.known.into_iter().collect();
            let gone = self.files.extract_if(.., |key, _| !known.contains(key));
            self.events.extend(gone.map(|(key, _)| Event::Delete(key)));
        }
        for (key, stamp) in looks.stamps {
            if let Some(kept) = self.files.get_mut(&key) {
                kept.stamp = stamp;
            }
        }
        let events = looks.read.iter();
        let events = events.map(|(key, kept)| Event::Apply(key.clone(), Arc::clone(&kept.text).into()));
        self.events.extend(events);
        match self.files.is_empty() {
            // Bulk construction: the nodes of the tree are full then.
            true => self.files = looks.read.into_iter().collect(),
            false => self.files.extend(looks.read),
        }
        self.events.len() > before
    }

    fn update(&mut self, key: ObjectKey, update: Option<(String, Stamp)>) -> bool {
        let Some((text, stamp)) = update else {
            let known = self.files.remove(&key).is_some();
            if known {
                self.events.push(Event::Delete(key));
            }
            return known;
        };
        if let Some(known) = self.files.get_mut(&key)
            && *known.text == text
        {
            known.stamp = stamp;
            return false;
        }
        let text: Arc<str> = text.into();
        self.events
            .push(Event::Apply(key.clone(), Arc::clone(&text).into()));
        self.files.insert(key, CachedFile { text, stamp });
        true
    }

    /// The index of the root that is this path, or else its parent directory.
    fn root_of(&self, path: &Path) -> Option<usize> {
        let named = self.roots.iter().position(|root| root == path);
        named.or_else(|| {
            let parent = path.parent()?;
            self.roots.iter().position(|root| root == parent)
        })
    }

    /// Whether a root has at most `count` files.
    fn has_at_most(&self, root: usize, count: usize) -> bool {
        let start = ObjectKey::new(root, Path::new(""));
        let files = self
            .files
            .range(start..)
            .take_while(|(key, _)| key.root() == root);
        files.take(count + 1).count() <= count
    }
}

/// The result of a scan so far, gathered in the order of candidates.
struct Looks {
    /// By root: whether the root has a config file, or an error.
    seen: Vec<bool>,
    /// Files that exist and are in the cache.
    known: Vec<ObjectKey>,
    /// Files that were written to with the same text, and their new stamps.
    stamps: Vec<(ObjectKey, Stamp)>,
    /// Files that are new or have a new text.
    read: Vec<(ObjectKey, CachedFile)>,
    bytes: u64,
    /// The size limit of all files together is exceeded: the remaining files are skipped.
    is_over: bool,
    /// Broken symbolic links, by root.
    broken: Vec<(usize, SourceError)>,
    errors: Vec<SourceError>,
}

impl Looks {
    fn new(roots: usize) -> Self {
        Self {
            seen: vec![false; roots],
            known: Vec::new(),
            stamps: Vec::new(),
            read: Vec::new(),
            bytes: 0,
            is_over: false,
            broken: Vec::new(),
            errors: Vec::new(),
        }
    }

    /// Adds the outcome of one candidate; `files` is the cache.
    fn take(&mut self, root: usize, key: ObjectKey, looked: Looked, files: &BTreeMap<ObjectKey, CachedFile>) {
        self.seen[root] |= !matches!(looked, Looked::NotConfig);
        if let Looked::BrokenLink(path) = looked {
            self.broken.push((root, SourceError::BrokenLink(path)));
            return;
        }
        if self.is_over {
            return;
        }
        let bytes = match &looked {
            Looked::Unchanged(bytes) | Looked::SameText(_, _, bytes) => *bytes,
            Looked::Read(_, kept) => kept.text.len() as u64,
            _ => 0,
        };
        self.bytes += bytes;
        if self.bytes > MAX_BYTES {
            self.is_over = true;
            self.errors.push(SourceError::TooLarge(key.path().to_owned()));
            return;
        }
        match looked {
            Looked::NotConfig | Looked::BrokenLink(_) | Looked::Unread => {}
            Looked::Unchanged(_) => self.known.push(key),
            Looked::SameText(key, stamp, _) => {
                self.stamps.push((key.clone(), stamp));
                self.known.push(key);
            }
            Looked::Read(key, kept) => {
                if let Some(old) = files.get(&key) {
                    if old.is_emptied_by(&kept.text) {
                        self.errors.push(SourceError::Emptied(key.path().to_owned()));
                        return;
                    }
                    self.known.push(key.clone());
                }
                self.read.push((key, kept));
            }
            Looked::Failed(error) => {
                self.is_over = matches!(error, SourceError::TooLarge(_));
                self.errors.push(error);
            }
        }
    }
}

#[cfg(test)]
#[path = "fileset_tests.rs"]
mod tests;

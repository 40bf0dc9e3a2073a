//! The texts of all config files, kept by path so that only what changed is read again.

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

/// Bytes of config, all files together: far above what anybody writes, far below what hurts.
pub(super) const MAX_BYTES: u64 = 64 << 20;

/// Config files, all directories together.
pub(super) const MAX_FILES: usize = 200_000;

/// Whether a file that looks untouched is believed to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// One with the same inode, size and times is not read again.
    Stamps,
    /// All are read.
    Nothing,
}

/// What tells one state of a file from another without reading it: a hash of inode, size and times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp(u64);

impl Stamp {
    pub(super) fn of(meta: &Metadata) -> Self {
        Self::hash((
            (meta.dev(), meta.ino()),
            meta.size(),
            (meta.mtime(), meta.mtime_nsec()),
            (meta.ctime(), meta.ctime_nsec()),
        ))
    }

    /// Of the inode alone: what happens in a directory leaves it the same.
    pub(super) fn inode(meta: &Metadata) -> Self {
        Self::hash((meta.dev(), meta.ino()))
    }

    fn hash(fields: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        fields.hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// What a file says. Its text is shared with whoever was told of it.
#[derive(Debug, Clone)]
pub(super) struct CachedFile {
    pub(super) text: Arc<str>,
    pub(super) stamp: Stamp,
}

impl CachedFile {
    /// Whether a file that said something says nothing: the first half of a write in place.
    fn is_emptied_by(&self, text: &str) -> bool {
        text.trim().is_empty() && !self.text.trim().is_empty()
    }
}

/// All config files of some roots: files and directories as they were named.
#[derive(Debug)]
pub(super) struct FileSet {
    roots: Vec<PathBuf>,
    /// By root, then by path.
    files: BTreeMap<ObjectKey, CachedFile>,
    bytes: u64,
    /// Directory entries that are symbolic links: they change without an event in their directory.
    links: BTreeSet<PathBuf>,
    /// Whether the last look failed: then no single file tells what is the matter.
    incomplete: bool,
    /// What differs since it was taken last.
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

    /// What differs since this was asked last.
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

    /// Whether the last look failed.
    pub(super) fn is_incomplete(&self) -> bool {
        self.incomplete
    }

    pub(super) fn links(&self) -> &BTreeSet<PathBuf> {
        &self.links
    }

    /// Looks at everything and reads what is not as it was. Returns whether anything differs.
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

    /// Looks at these files only. `None`: they alone do not tell, everything must be looked at.
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
        // The last file of a directory may be gone with it.
        let removed = updates.iter().filter(|(_, text)| text.is_none());
        let count = removed.clone().count();
        if removed
            .into_iter()
            .any(|(key, _)| self.has_at_most(key.root, count))
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

    /// Whether it is, or was, more than a plain file.
    fn needs_scan(&self, path: &Path) -> bool {
        self.links.contains(path) || fs::symlink_metadata(path).is_ok_and(|meta| !meta.is_file())
    }

    /// Makes it what was found. In place: a copy of a large set would be given back to nobody.
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
        let events = events.map(|(key, kept)| Event::Apply(key.clone(), Arc::clone(&kept.text)));
        self.events.extend(events);
        match self.files.is_empty() {
            // In one go: nodes are full then.
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
        self.events.push(Event::Apply(key.clone(), Arc::clone(&text)));
        self.files.insert(key, CachedFile { text, stamp });
        true
    }

    fn root_of(&self, path: &Path) -> Option<usize> {
        let named = self.roots.iter().position(|root| root == path);
        named.or_else(|| {
            let parent = path.parent()?;
            self.roots.iter().position(|root| root == parent)
        })
    }

    /// Whether a root has no more than so many files.
    fn has_at_most(&self, root: usize, count: usize) -> bool {
        let start = ObjectKey::new(root, Path::new(""));
        let files = self.files.range(start..).take_while(|(key, _)| key.root == root);
        files.take(count + 1).count() <= count
    }
}

/// What a look at everything has come to so far.
struct Looks {
    /// By root: whether anything of it is a config file, or wrong.
    seen: Vec<bool>,
    /// Files that are there and were before.
    known: Vec<ObjectKey>,
    /// Files that were written to and say what they said.
    stamps: Vec<(ObjectKey, Stamp)>,
    /// Files that say something new.
    read: Vec<(ObjectKey, CachedFile)>,
    bytes: u64,
    /// All files together are too large: the rest does not matter.
    is_over: bool,
    /// Links that lead nowhere, by root.
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

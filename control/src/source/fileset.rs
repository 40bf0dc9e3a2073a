//! The texts of all config files, kept by path so that only what changed is read again.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::hash::{Hash, Hasher};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Event, ObjectKey, SourceError, SourceFile};

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
    pub(super) fn place(meta: &Metadata) -> Self {
        Self::hash((meta.dev(), meta.ino()))
    }

    fn hash(what: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// What a file says. Its text is shared with whoever was told of it.
#[derive(Debug, Clone)]
struct Kept {
    text: Arc<str>,
    stamp: Stamp,
}

impl Kept {
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
    files: BTreeMap<ObjectKey, Kept>,
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
        let found = Found::list(&self.roots);
        self.links = found.links;
        let mut errors = found.errors;

        // Everything is read before anything is replaced: a failure leaves the set as it was.
        let mut budget = MAX_BYTES;
        let mut next = Vec::with_capacity(found.entries.len());
        for (root, path, stamp) in found.entries {
            let key = ObjectKey::new(root, &path);
            let known = self.files.get_key_value(&key);
            let old = known.map(|(_, kept)| kept);
            let untouched = old.filter(|kept| trust == Trust::Stamps && kept.stamp == stamp);
            let kept = match untouched {
                Some(kept) => kept.clone(),
                None => match read_file(&path, budget) {
                    Ok((text, _)) if old.is_some_and(|old| old.is_emptied_by(&text)) => {
                        errors.push(SourceError::Emptied(path));
                        continue;
                    }
                    Ok((text, stamp)) => {
                        let same = old.filter(|old| *old.text == text);
                        let text = same.map_or_else(|| text.into(), |old| Arc::clone(&old.text));
                        Kept { text, stamp }
                    }
                    Err(error) => {
                        let over = matches!(error, SourceError::TooLarge(_));
                        errors.push(error);
                        if over {
                            break;
                        }
                        continue;
                    }
                },
            };
            let Some(rest) = budget.checked_sub(kept.text.len() as u64) else {
                errors.push(SourceError::TooLarge(path));
                break;
            };
            budget = rest;
            let key = known.map_or(key, |(key, _)| key.clone());
            next.push((key, kept));
        }
        self.incomplete = !errors.is_empty();
        if self.incomplete {
            return Err(errors);
        }
        self.bytes = MAX_BYTES - budget;
        Ok(self.replace(next.into_iter().collect()))
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
            if in_directory && self.is_special(path) {
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
        if removed.into_iter().any(|(key, _)| self.is_all(key.root, count)) {
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
    fn is_special(&self, path: &Path) -> bool {
        self.links.contains(path) || fs::symlink_metadata(path).is_ok_and(|meta| !meta.is_file())
    }

    fn replace(&mut self, next: BTreeMap<ObjectKey, Kept>) -> bool {
        let before = std::mem::replace(&mut self.files, next);
        let told = self.events.len();
        for key in before.keys().filter(|key| !self.files.contains_key(*key)) {
            self.events.push(Event::Delete(key.clone()));
        }
        for (key, kept) in &self.files {
            let known = before.get(key);
            if known.is_none_or(|known| !Arc::ptr_eq(&known.text, &kept.text)) {
                self.events
                    .push(Event::Apply(key.clone(), Arc::clone(&kept.text)));
            }
        }
        self.events.len() > told
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
        self.files.insert(key, Kept { text, stamp });
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
    fn is_all(&self, root: usize, count: usize) -> bool {
        let start = ObjectKey::new(root, Path::new(""));
        let files = self.files.range(start..).take_while(|(key, _)| key.root == root);
        files.take(count + 1).count() <= count
    }
}

/// What a look at the roots finds, nothing read.
#[derive(Default)]
struct Found {
    /// Root, path and what it is as; by root, then by path.
    entries: Vec<(usize, PathBuf, Stamp)>,
    links: BTreeSet<PathBuf>,
    errors: Vec<SourceError>,
}

impl Found {
    fn list(roots: &[PathBuf]) -> Self {
        let mut found = Self::default();
        for (at, root) in roots.iter().enumerate() {
            match fs::metadata(root) {
                Ok(meta) if meta.is_dir() => {
                    let listed = found.directory(at, root, roots);
                    found.errors.extend(listed.err());
                }
                Ok(meta) if meta.is_file() => found.entries.push((at, root.clone(), Stamp::of(&meta))),
                Ok(_) => found.errors.push(SourceError::NotAFile(root.clone())),
                Err(error) => found.errors.push(SourceError::io(root, &error)),
            }
        }
        found
    }

    fn directory(&mut self, at: usize, root: &Path, roots: &[PathBuf]) -> Result<(), SourceError> {
        let unreadable = |error| SourceError::io(root, &error);
        let mut names = Vec::new();
        for entry in fs::read_dir(root).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let path = entry.path();
            // A file that is also named by itself comes once.
            if !is_config_file(&path) || roots.contains(&path) {
                continue;
            }
            if names.len() + self.entries.len() >= MAX_FILES {
                return Err(SourceError::TooMany(root.to_owned()));
            }
            if entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
                self.links.insert(path.clone());
            }
            names.push(path);
        }
        names.sort();
        let before = self.entries.len();
        let errors = self.errors.len();
        for path in names {
            match fs::metadata(&path) {
                Ok(meta) if meta.is_file() => self.entries.push((at, path, Stamp::of(&meta))),
                // A directory with such a name, a socket: not ours.
                Ok(_) => {}
                Err(_) if fs::symlink_metadata(&path).is_ok() => {
                    self.errors.push(SourceError::BrokenLink(path));
                }
                // Gone since it was listed.
                Err(_) => {}
            }
        }
        if self.entries.len() == before && self.errors.len() == errors {
            return Err(SourceError::NoFiles(root.to_owned()));
        }
        Ok(())
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

fn read_file(path: &Path, budget: u64) -> Result<(String, Stamp), SourceError> {
    let unreadable = |error| SourceError::io(path, &error);
    // Opening a pipe would wait for its other end.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(SourceError::NotAFile(path.to_owned()));
    }
    let file = File::open(path).map_err(unreadable)?;
    // Taken before reading: what is written meanwhile makes the next stamp differ.
    let meta = file.metadata().map_err(unreadable)?;
    let stamp = Stamp::of(&meta);
    let mut bytes = Vec::with_capacity(usize::try_from(meta.size().min(budget)).unwrap_or(0));
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

#[cfg(test)]
#[path = "fileset_tests.rs"]
mod tests;

//! The texts of all config files, kept by path so that only what changed is read again.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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

/// What tells one state of a file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(super) fn of(meta: &Metadata) -> Self {
        Self {
            inode: (meta.dev(), meta.ino()),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// Of the inode alone: what happens in a directory leaves it the same.
    pub(super) fn place(meta: &Metadata) -> Self {
        Self {
            inode: (meta.dev(), meta.ino()),
            size: 0,
            modified: (0, 0),
            changed: (0, 0),
        }
    }
}

/// Where a file of the set comes from; parallel to the files.
#[derive(Debug, Clone, Copy)]
struct Origin {
    /// Index of the root that it is, or is in.
    root: usize,
    stamp: Stamp,
}

/// All config files of some roots: files and directories as they were named.
#[derive(Debug)]
pub(super) struct FileSet {
    roots: Vec<PathBuf>,
    /// By root, then by path.
    files: Vec<SourceFile>,
    origins: Vec<Origin>,
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
            files: Vec::new(),
            origins: Vec::new(),
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

    #[cfg(test)]
    pub(super) fn files(&self) -> &[SourceFile] {
        &self.files
    }

    pub(super) fn into_files(self) -> Vec<SourceFile> {
        self.files
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
        let old: HashMap<&Path, usize> = self
            .files
            .iter()
            .enumerate()
            .map(|(at, file)| (file.path.as_path(), at))
            .collect();

        // Everything is read before anything is replaced: a failure leaves the set as it was.
        let mut budget = MAX_BYTES;
        let mut next = Vec::with_capacity(found.entries.len());
        for (root, path, meta) in found.entries {
            let stamp = Stamp::of(&meta);
            let known = old.get(path.as_path()).copied();
            let untouched = known.filter(|&at| trust == Trust::Stamps && self.origins[at].stamp == stamp);
            let (text, stamp) = match untouched {
                Some(at) => (Text::Kept(at), stamp),
                None => match read_file(&path, budget) {
                    Ok((text, _)) if known.is_some_and(|at| self.is_emptied(at, &text)) => {
                        errors.push(SourceError::Emptied(path));
                        continue;
                    }
                    Ok((text, stamp)) => match known.filter(|&at| self.files[at].text == text) {
                        Some(at) => (Text::Kept(at), stamp),
                        None => (Text::New(text), stamp),
                    },
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
            let length = match &text {
                Text::Kept(at) => self.files[*at].text.len(),
                Text::New(text) => text.len(),
            };
            let Some(rest) = budget.checked_sub(length as u64) else {
                errors.push(SourceError::TooLarge(path));
                break;
            };
            budget = rest;
            next.push((path, text, Origin { root, stamp }));
        }
        self.incomplete = !errors.is_empty();
        if self.incomplete {
            return Err(errors);
        }
        self.bytes = MAX_BYTES - budget;
        Ok(self.replace(next))
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
            let at = self.position(root, path);
            let old = at.map_or(0, |at| self.files[at].text.len() as u64);
            match read_file(path, MAX_BYTES - (bytes - old)) {
                Ok((text, _)) if at.is_ok_and(|at| self.is_emptied(at, &text)) => {
                    errors.push(SourceError::Emptied(path.clone()));
                }
                Ok((text, stamp)) => {
                    bytes = bytes - old + text.len() as u64;
                    updates.push((root, path, Some((text, stamp))));
                }
                Err(SourceError::Missing(_)) if in_directory => {
                    bytes -= old;
                    updates.push((root, path, None));
                }
                Err(error) => errors.push(error),
            }
        }
        // The last file of a directory may be gone with it.
        let removed = updates.iter().filter(|(_, _, text)| text.is_none());
        if removed
            .clone()
            .any(|(root, _, _)| self.range(*root).len() <= removed.clone().count())
        {
            return None;
        }
        if !errors.is_empty() {
            self.incomplete = true;
            return Some(Err(errors));
        }
        self.bytes = bytes;
        let mut differs = false;
        for (root, path, update) in updates {
            differs |= self.update(root, path, update);
        }
        Some(Ok(differs))
    }

    /// Whether a file that said something says nothing: the first half of a write in place.
    fn is_emptied(&self, at: usize, text: &str) -> bool {
        text.trim().is_empty() && !self.files[at].text.trim().is_empty()
    }

    /// Whether it is, or was, more than a plain file.
    fn is_special(&self, path: &Path) -> bool {
        self.links.contains(path) || fs::symlink_metadata(path).is_ok_and(|meta| !meta.is_file())
    }

    fn replace(&mut self, next: Vec<(PathBuf, Text, Origin)>) -> bool {
        let mut old = std::mem::take(&mut self.files);
        let roots = std::mem::take(&mut self.origins);
        let mut differs = old.len() != next.len();
        let kept: HashSet<(usize, &Path)> = next
            .iter()
            .map(|(path, _, origin)| (origin.root, path.as_path()))
            .collect();
        for (file, origin) in old.iter().zip(&roots) {
            if !kept.contains(&(origin.root, file.path.as_path())) {
                let key = ObjectKey::new(origin.root, &file.path);
                self.events.push(Event::Delete(key));
            }
        }
        drop(kept);
        for (at, (path, text, origin)) in next.into_iter().enumerate() {
            let text = match text {
                // Of another root it is another object.
                Text::Kept(from) if roots[from].root == origin.root => {
                    differs |= from != at;
                    std::mem::take(&mut old[from].text)
                }
                Text::Kept(from) => {
                    differs = true;
                    let text = std::mem::take(&mut old[from].text);
                    self.applied(origin.root, &path, &text);
                    text
                }
                Text::New(text) => {
                    differs = true;
                    self.applied(origin.root, &path, &text);
                    text
                }
            };
            self.files.push(SourceFile { path, text });
            self.origins.push(origin);
        }
        differs
    }

    fn update(&mut self, root: usize, path: &Path, update: Option<(String, Stamp)>) -> bool {
        match (self.position(root, path), update) {
            (Ok(at), Some((text, stamp))) => {
                self.origins[at].stamp = stamp;
                let differs = self.files[at].text != text;
                if differs {
                    self.applied(root, path, &text);
                    self.files[at].text = text;
                }
                differs
            }
            (Err(at), Some((text, stamp))) => {
                self.applied(root, path, &text);
                let path = path.to_owned();
                self.files.insert(at, SourceFile { path, text });
                self.origins.insert(at, Origin { root, stamp });
                true
            }
            (Ok(at), None) => {
                self.events.push(Event::Delete(ObjectKey::new(root, path)));
                self.files.remove(at);
                self.origins.remove(at);
                true
            }
            (Err(_), None) => false,
        }
    }

    fn applied(&mut self, root: usize, path: &Path, text: &str) {
        let key = ObjectKey::new(root, path);
        self.events.push(Event::Apply(key, text.into()));
    }

    fn root_of(&self, path: &Path) -> Option<usize> {
        let named = self.roots.iter().position(|root| root == path);
        named.or_else(|| {
            let parent = path.parent()?;
            self.roots.iter().position(|root| root == parent)
        })
    }

    fn range(&self, root: usize) -> Range<usize> {
        let start = self.origins.partition_point(|o| o.root < root);
        let end = self.origins.partition_point(|o| o.root <= root);
        start..end
    }

    /// Where a file is, or would be.
    fn position(&self, root: usize, path: &Path) -> Result<usize, usize> {
        let range = self.range(root);
        let start = range.start;
        match self.files[range].binary_search_by(|file| file.path.as_path().cmp(path)) {
            Ok(at) => Ok(start + at),
            Err(at) => Err(start + at),
        }
    }
}

enum Text {
    Kept(usize),
    New(String),
}

/// What a look at the roots finds, nothing read.
#[derive(Default)]
struct Found {
    /// Root, path and what it is; by root, then by path.
    entries: Vec<(usize, PathBuf, Metadata)>,
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
                Ok(meta) if meta.is_file() => found.entries.push((at, root.clone(), meta)),
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
                Ok(meta) if meta.is_file() => self.entries.push((at, path, meta)),
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
    let stamp = Stamp::of(&file.metadata().map_err(unreadable)?);
    let mut bytes = Vec::with_capacity(usize::try_from(stamp.size.min(budget)).unwrap_or(0));
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

//! The set of paths to watch with inotify, so that every way of changing a config file raises an event.
//!
//! A path resolves through symbolic links, and each link can be swapped: a mounted ConfigMap changes by one rename of
//! `..data`, two links away from the file. So the watches are on the directories that hold the entries of the
//! resolved path, never on an inode that a rename leaves behind. A write to a file under another of its names (the
//! source of a bind mount, another hard link) is an event in the directory of that other name only: so root files,
//! and files that are mount points, have a watch of their own too.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::mounts::Mounts;
use super::scan::is_config_file;

/// Limit of symbolic links in one path: the same as Linux's.
const MAX_LINKS: usize = 40;

/// What an event at a watched path affects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Affected {
    /// The text of this config file, by its path as given.
    File(PathBuf),
    /// All config files: a full scan is needed.
    Everything,
    /// A referenced file, one that config files name.
    Referenced,
}

/// The directory entries whose events matter, by their real paths, and the paths to watch for these events.
#[derive(Debug, Default)]
pub(super) struct WatchSet {
    entries: HashMap<PathBuf, Affected>,
    /// Real path of each root directory → the path as given; `None` if the directory was given under several paths.
    directories: HashMap<PathBuf, Option<PathBuf>>,
    watched: HashSet<PathBuf>,
    /// The watched paths that are files.
    files: HashSet<PathBuf>,
    /// A watched path on a remote file system, and the type of the file system.
    remote: Option<(PathBuf, String)>,
}

impl WatchSet {
    /// Resolves the roots, the directory entries that are symbolic links, and the referenced files. Blocks on I/O.
    pub(super) fn of(roots: &[PathBuf], links: &BTreeSet<PathBuf>, referenced: &[PathBuf]) -> Self {
        let mut set = Self::default();
        let mut real_roots = HashMap::new();
        let mounts = Mounts::read();
        for root in roots {
            // An error means an empty path or no current directory: there is nothing to watch.
            let Ok(absolute) = std::path::absolute(root) else {
                continue;
            };
            let resolved = ResolvedPath::resolve(PathBuf::from("/"), &absolute);
            set.add_links(&resolved);
            if fs::metadata(&resolved.real).is_ok_and(|m| m.is_dir()) {
                let files = mounts
                    .within(&resolved.real)
                    .filter(|point| is_config_file(point));
                set.files.extend(files.map(Path::to_owned));
                let entry = set.directories.entry(resolved.real.clone());
                entry
                    .and_modify(|name| *name = None)
                    .or_insert_with(|| Some(root.clone()));
                real_roots.insert(root.clone(), resolved.real);
            } else {
                set.files.insert(resolved.real.clone());
                let entry = set.entries.entry(resolved.real);
                entry
                    .and_modify(|affected| *affected = Affected::Everything)
                    .or_insert_with(|| Affected::File(root.clone()));
            }
        }
        for link in links {
            let real_root = link.parent().and_then(|parent| real_roots.get(parent));
            if let (Some(real_root), Some(name)) = (real_root, link.file_name()) {
                let resolved = ResolvedPath::resolve(real_root.clone(), Path::new(name));
                set.add_links(&resolved);
                if mounts.is_mount(&resolved.real) {
                    set.files.insert(resolved.real.clone());
                }
                set.entries.insert(resolved.real, Affected::Everything);
            }
        }
        let parents = set.entries.keys().filter_map(|entry| entry.parent());
        let directories = set.directories.keys().map(PathBuf::as_path);
        let files = set.files.iter().map(PathBuf::as_path);
        let watched = parents.chain(directories).chain(files);
        set.watched = watched.map(Path::to_owned).collect();
        let on = |path: &PathBuf| Some((path.clone(), mounts.remote(path)?.to_owned()));
        set.remote = set.watched.iter().find_map(on);
        // Referenced files come after `remote` is set: their reader polls them anyway, so that a remote file system
        // below a referenced file is no reason to poll the config files.
        for file in referenced {
            let resolved = ResolvedPath::resolve(PathBuf::from("/"), file);
            for entry in resolved.links.into_iter().chain([resolved.real]) {
                set.watched.extend(entry.parent().map(Path::to_owned));
                set.entries.entry(entry).or_insert(Affected::Referenced);
            }
        }
        set
    }

    fn add_links(&mut self, resolved: &ResolvedPath) {
        for link in &resolved.links {
            self.entries.insert(link.clone(), Affected::Everything);
        }
        // The parent directory itself may be replaced.
        if let Some(parent) = resolved.real.parent().filter(|p| p.parent().is_some()) {
            self.entries.insert(parent.to_owned(), Affected::Everything);
        }
        if resolved.is_directory {
            self.entries.insert(resolved.real.clone(), Affected::Everything);
        }
    }

    /// The directories and files to watch.
    pub(super) fn watched(&self) -> &HashSet<PathBuf> {
        &self.watched
    }

    /// The files to watch.
    pub(super) fn files(&self) -> &HashSet<PathBuf> {
        &self.files
    }

    /// A path on a remote file system, where changes by other machines raise no event, and the type of the file system.
    pub(super) fn remote(&self) -> Option<&(PathBuf, String)> {
        self.remote.as_ref()
    }

    /// What an event at a real path affects; `None`: nothing, the event is ignored.
    pub(super) fn affected(&self, path: &Path) -> Option<Affected> {
        if self.watched.contains(path) && !self.files.contains(path) {
            return Some(Affected::Everything);
        }
        match (self.entries.get(path), self.in_directory(path)) {
            (Some(named), Some(found)) if *named != found => Some(Affected::Everything),
            (Some(named), _) => Some(named.clone()),
            (None, found) => found,
        }
    }

    fn in_directory(&self, path: &Path) -> Option<Affected> {
        let root = self.directories.get(path.parent()?)?;
        let name = path.file_name()?;
        is_config_file(path).then(|| match root {
            Some(root) => Affected::File(root.join(name)),
            None => Affected::Everything,
        })
    }
}

/// A path resolved through its symbolic links.
struct ResolvedPath {
    /// Every symbolic link of the path, by real directory and name.
    links: Vec<PathBuf>,
    /// The resolved path, up to the first component that does not exist.
    real: PathBuf,
    is_directory: bool,
}

impl ResolvedPath {
    /// Resolves `path` from a real directory. Blocks on I/O.
    fn resolve(mut real: PathBuf, path: &Path) -> Self {
        let mut links = Vec::new();
        let mut rest: Vec<OsString> = reversed(path);
        let mut is_directory = true;
        while let Some(name) = rest.pop() {
            if name == ".." {
                real.pop();
                continue;
            }
            let entry = real.join(&name);
            let kind = fs::symlink_metadata(&entry).map(|m| m.file_type());
            match kind {
                Ok(kind) if kind.is_symlink() && links.len() < MAX_LINKS => {
                    let target = fs::read_link(&entry).unwrap_or_default();
                    if target.is_absolute() {
                        real = PathBuf::from("/");
                    }
                    rest.extend(reversed(&target));
                    links.push(entry);
                }
                Ok(kind) => {
                    real = entry;
                    is_directory = kind.is_dir();
                }
                // A missing component: the rest cannot exist either, so the creation of this entry is the event to
                // watch.
                Err(_) => {
                    real = entry;
                    is_directory = true;
                    break;
                }
            }
        }
        Self {
            links,
            real,
            is_directory,
        }
    }
}

fn reversed(path: &Path) -> Vec<OsString> {
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    let mut names: Vec<_> = names.collect();
    names.reverse();
    names
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn none() -> BTreeSet<PathBuf> {
        BTreeSet::new()
    }

    #[test]
    fn a_plain_file_is_watched_through_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let file = root.join("a.yaml");
        fs::write(&file, "").unwrap();
        let set = WatchSet::of(std::slice::from_ref(&file), &none(), &[]);
        assert!(set.watched().contains(&root));
        assert_eq!(set.affected(&file), Some(Affected::File(file.clone())));
        assert_eq!(set.affected(&root), Some(Affected::Everything));
        assert_eq!(set.affected(&root.join("b.yaml")), None);
    }

    #[test]
    fn a_mounted_config_map_is_watched_at_its_swap() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir(root.join("..1")).unwrap();
        fs::write(root.join("..1/a.yaml"), "").unwrap();
        symlink("..1", root.join("..data")).unwrap();
        symlink("..data/a.yaml", root.join("a.yaml")).unwrap();
        let link = root.join("a.yaml");
        let roots = [root.clone()];
        let set = WatchSet::of(&roots, &BTreeSet::from([link]), &[]);
        for entry in ["..data", "a.yaml", "..1/a.yaml", "..1"] {
            let affected = set.affected(&root.join(entry));
            assert_eq!(affected, Some(Affected::Everything), "{entry}");
        }
        assert!(set.watched().contains(&root.join("..1")));
        assert_eq!(set.affected(&root.join("..2")), None);
    }

    #[test]
    fn a_missing_path_is_watched_at_its_last_existing_directory() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let set = WatchSet::of(&[root.join("not/yet/a.yaml")], &none(), &[]);
        assert!(set.watched().contains(&root));
        assert_eq!(set.affected(&root.join("not")), Some(Affected::Everything));
    }

    #[test]
    fn a_file_with_several_paths_affects_everything() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir(root.join("conf")).unwrap();
        fs::write(root.join("conf/a.yaml"), "").unwrap();
        symlink("conf", root.join("same")).unwrap();
        let file = root.join("conf/a.yaml");
        for roots in [
            ["conf", "same"],
            ["same", "conf/a.yaml"],
            ["same/a.yaml", "conf/a.yaml"],
        ] {
            let set = WatchSet::of(&roots.map(|name| root.join(name)), &none(), &[]);
            assert_eq!(set.affected(&file), Some(Affected::Everything), "{roots:?}");
        }
        let set = WatchSet::of(&["conf", "conf/a.yaml"].map(|name| root.join(name)), &none(), &[]);
        assert_eq!(set.affected(&file), Some(Affected::File(file)));
    }

    #[test]
    fn a_cycle_of_links_ends() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        symlink("b.yaml", root.join("a.yaml")).unwrap();
        symlink("a.yaml", root.join("b.yaml")).unwrap();
        let set = WatchSet::of(&[root.join("a.yaml")], &none(), &[]);
        assert!(set.affected(&root.join("b.yaml")).is_some());
    }
}

//! Which directories must be watched so that no way of changing a file goes unseen.
//!
//! A path means what its symbolic links make of it, and each of them can be swapped: a mounted
//! ConfigMap changes by one rename of `..data`, two links away from the file. So what is watched
//! are the directories that hold an entry on the way, never an inode that a rename leaves behind. A file that is
//! written by another name of its own, the one it was bind-mounted from or another hard link, is an event in the
//! directory of that name: so files that were named, and those that are mounts, are watched besides.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::mounts::Mounts;
use super::scan::is_config_file;

/// As many links as Linux follows.
const MAX_LINKS: usize = 40;

/// What an event at a path means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Meaning {
    /// This file, as it was named, may say something else.
    File(PathBuf),
    /// Anything may have changed.
    Everything,
    /// A file that config files name may be another.
    Named,
}

/// The entries that matter, by their real paths.
#[derive(Debug, Default)]
pub(super) struct Interests {
    entries: HashMap<PathBuf, Meaning>,
    /// Real directory → the name it was given; `None` for one with several names.
    directories: HashMap<PathBuf, Option<PathBuf>>,
    watched: HashSet<PathBuf>,
    /// Of these, the ones that are files.
    files: HashSet<PathBuf>,
    remote: Option<(PathBuf, String)>,
}

impl Interests {
    /// For the roots, for directory entries that are links, and for files that config files name.
    pub(super) fn of(roots: &[PathBuf], links: &BTreeSet<PathBuf>, named: &[PathBuf]) -> Self {
        let mut interests = Self::default();
        let mut real_roots = HashMap::new();
        let mounts = Mounts::read();
        for root in roots {
            // Fails only for an empty path or without a current directory: then nothing is there.
            let Ok(absolute) = std::path::absolute(root) else {
                continue;
            };
            let way = Way::walk(PathBuf::from("/"), &absolute);
            interests.pass(&way);
            if fs::metadata(&way.end).is_ok_and(|m| m.is_dir()) {
                let files = mounts.within(&way.end).filter(|point| is_config_file(point));
                interests.files.extend(files.map(Path::to_owned));
                let named = interests.directories.entry(way.end.clone());
                named
                    .and_modify(|name| *name = None)
                    .or_insert_with(|| Some(root.clone()));
                real_roots.insert(root.clone(), way.end);
            } else {
                interests.files.insert(way.end.clone());
                let named = interests.entries.entry(way.end);
                named
                    .and_modify(|meaning| *meaning = Meaning::Everything)
                    .or_insert_with(|| Meaning::File(root.clone()));
            }
        }
        for link in links {
            let real_root = link.parent().and_then(|parent| real_roots.get(parent));
            if let (Some(real_root), Some(name)) = (real_root, link.file_name()) {
                let way = Way::walk(real_root.clone(), Path::new(name));
                interests.pass(&way);
                if mounts.is_mount(&way.end) {
                    interests.files.insert(way.end.clone());
                }
                interests.entries.insert(way.end, Meaning::Everything);
            }
        }
        let parents = interests.entries.keys().filter_map(|entry| entry.parent());
        let directories = interests.directories.keys().map(PathBuf::as_path);
        let files = interests.files.iter().map(PathBuf::as_path);
        let watched = parents.chain(directories).chain(files);
        interests.watched = watched.map(Path::to_owned).collect();
        let on = |path: &PathBuf| Some((path.clone(), mounts.remote(path)?.to_owned()));
        interests.remote = interests.watched.iter().find_map(on);
        // Last: whoever reads these polls them too, so a remote file system below them is no reason to poll more.
        for file in named {
            let way = Way::walk(PathBuf::from("/"), file);
            for entry in way.links.into_iter().chain([way.end]) {
                interests.watched.extend(entry.parent().map(Path::to_owned));
                interests.entries.entry(entry).or_insert(Meaning::Named);
            }
        }
        interests
    }

    fn pass(&mut self, way: &Way) {
        for link in &way.links {
            self.entries.insert(link.clone(), Meaning::Everything);
        }
        // The directory itself may be replaced.
        if let Some(parent) = way.end.parent().filter(|p| p.parent().is_some()) {
            self.entries.insert(parent.to_owned(), Meaning::Everything);
        }
        if way.is_directory {
            self.entries.insert(way.end.clone(), Meaning::Everything);
        }
    }

    /// The directories to watch, and files.
    pub(super) fn watched(&self) -> &HashSet<PathBuf> {
        &self.watched
    }

    /// The files to watch.
    pub(super) fn files(&self) -> &HashSet<PathBuf> {
        &self.files
    }

    /// A path that others may change without an event, and the type of its file system.
    pub(super) fn remote(&self) -> Option<&(PathBuf, String)> {
        self.remote.as_ref()
    }

    /// What an event at a real path means; `None`: nothing to us.
    pub(super) fn meaning(&self, path: &Path) -> Option<Meaning> {
        if self.watched.contains(path) && !self.files.contains(path) {
            return Some(Meaning::Everything);
        }
        match (self.entries.get(path), self.in_directory(path)) {
            (Some(named), Some(found)) if *named != found => Some(Meaning::Everything),
            (Some(named), _) => Some(named.clone()),
            (None, found) => found,
        }
    }

    fn in_directory(&self, path: &Path) -> Option<Meaning> {
        let root = self.directories.get(path.parent()?)?;
        let name = path.file_name()?;
        is_config_file(path).then(|| match root {
            Some(root) => Meaning::File(root.join(name)),
            None => Meaning::Everything,
        })
    }
}

/// How a path resolves.
struct Way {
    /// Every symbolic link on it, by real directory and name.
    links: Vec<PathBuf>,
    /// Where it ends: real as far as it exists.
    end: PathBuf,
    is_directory: bool,
}

impl Way {
    /// Resolves `path` from a real directory.
    fn walk(mut real: PathBuf, path: &Path) -> Self {
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
                // The rest cannot exist either: what is waited for is this entry.
                Err(_) => {
                    real = entry;
                    is_directory = true;
                    break;
                }
            }
        }
        Self {
            links,
            end: real,
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
        let interests = Interests::of(std::slice::from_ref(&file), &none(), &[]);
        assert!(interests.watched().contains(&root));
        assert_eq!(interests.meaning(&file), Some(Meaning::File(file.clone())));
        assert_eq!(interests.meaning(&root), Some(Meaning::Everything));
        assert_eq!(interests.meaning(&root.join("b.yaml")), None);
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
        let interests = Interests::of(&roots, &BTreeSet::from([link]), &[]);
        for entry in ["..data", "a.yaml", "..1/a.yaml", "..1"] {
            let meaning = interests.meaning(&root.join(entry));
            assert_eq!(meaning, Some(Meaning::Everything), "{entry}");
        }
        assert!(interests.watched().contains(&root.join("..1")));
        assert_eq!(interests.meaning(&root.join("..2")), None);
    }

    #[test]
    fn what_is_missing_is_waited_for_where_it_would_appear() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let interests = Interests::of(&[root.join("not/yet/a.yaml")], &none(), &[]);
        assert!(interests.watched().contains(&root));
        assert_eq!(interests.meaning(&root.join("not")), Some(Meaning::Everything));
    }

    #[test]
    fn what_has_several_names_is_looked_at_under_all_of_them() {
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
            let interests = Interests::of(&roots.map(|name| root.join(name)), &none(), &[]);
            assert_eq!(interests.meaning(&file), Some(Meaning::Everything), "{roots:?}");
        }
        let interests = Interests::of(&["conf", "conf/a.yaml"].map(|name| root.join(name)), &none(), &[]);
        assert_eq!(interests.meaning(&file), Some(Meaning::File(file)));
    }

    #[test]
    fn links_that_go_round_end() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        symlink("b.yaml", root.join("a.yaml")).unwrap();
        symlink("a.yaml", root.join("b.yaml")).unwrap();
        let interests = Interests::of(&[root.join("a.yaml")], &none(), &[]);
        assert!(interests.meaning(&root.join("b.yaml")).is_some());
    }
}

//! The directory: locked, versioned, bounded.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The format of the directory.
const VERSION: &str = "1";

/// The size of one document.
const MAX_BYTES: u64 = 16 << 20;

/// Documents of one directory.
const MAX_DOCUMENTS: usize = 100_000;

/// The length of a name: the file's name has a few more bytes, and 255 in all.
const MAX_NAME: usize = 200;

const SUFFIX: &str = ".json";

/// What is wrong with a state directory.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another gateway uses the directory.
    #[error("{} is in use by another gateway{}: give each its own state.directory",
        directory.display(), process.map_or_else(String::new, |id| format!(" (process {id})")))]
    InUse {
        /// The directory.
        directory: PathBuf,
        /// The other gateway's process, where it could be read.
        process: Option<u32>,
    },
    /// The directory has a format that this version does not know.
    #[error("{} has format {found:?}, and this version reads format {VERSION}: it was written by a newer sluice", directory.display())]
    Version {
        /// The directory.
        directory: PathBuf,
        /// What its file `version` says.
        found: String,
    },
    /// A bound of the directory.
    #[error("{name}: {why}")]
    Bound {
        /// The document.
        name: String,
        /// The bound, in words.
        why: String,
    },
    /// The system refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
}

/// The documents of a directory, for reading: also while another process writes them, since each is replaced whole.
#[derive(Debug, Clone)]
pub struct Documents {
    directory: PathBuf,
}

/// Named documents in a directory that this process alone uses, until the value is dropped.
#[derive(Debug)]
pub struct Store {
    documents: Documents,
    /// The number of documents.
    count: AtomicUsize,
    /// Locked; the lock ends with the file.
    _lock: File,
}

impl Store {
    /// Opens a directory, and makes it if need be, for its owner alone.
    ///
    /// # Errors
    /// [`StateError::InUse`] while another process has it, [`StateError::Version`] for a format of the future, and whatever the
    /// system refuses.
    pub fn open(directory: &Path) -> Result<Self, StateError> {
        let mut builder = DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(directory);
        made.map_err(failed(directory))?;
        let lock = lock(directory)?;
        let version = directory.join("version");
        match fs::read_to_string(&version) {
            Ok(found) if found.trim() == VERSION => {}
            Ok(found) => {
                return Err(StateError::Version {
                    directory: directory.to_owned(),
                    found: found.trim().chars().take(20).collect(),
                });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                replace(directory, "version", format!("{VERSION}\n").as_bytes())?;
            }
            Err(error) => return Err(failed(&version)(error)),
        }
        let store = Self {
            documents: Documents::of(directory),
            count: AtomicUsize::new(Documents::of(directory).names()?.len()),
            _lock: lock,
        };
        store.remove_unfinished();
        Ok(store)
    }

    /// The documents, for reading.
    pub fn documents(&self) -> &Documents {
        &self.documents
    }

    /// Writes a document, on disk when this returns. After a crash in between the document is the one before.
    ///
    /// # Errors
    /// For a name that no document can have, a document above the bound, one document too many, and whatever the system
    /// refuses.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        let path = self.documents.path(name)?;
        bounded(name, bytes)?;
        let is_new = !path.exists();
        if is_new && self.count.load(Ordering::Relaxed) >= MAX_DOCUMENTS {
            let why = format!("there are {MAX_DOCUMENTS} documents already");
            return Err(bound(name, why));
        }
        replace(&self.documents.directory, &format!("{name}{SUFFIX}"), bytes)?;
        self.count.fetch_add(usize::from(is_new), Ordering::Relaxed);
        Ok(())
    }

    /// Removes a document; one that is not there is no error.
    ///
    /// # Errors
    /// For a name that no document can have, and whatever the system refuses.
    pub fn remove(&self, name: &str) -> Result<(), StateError> {
        let path = self.documents.path(name)?;
        match fs::remove_file(&path) {
            Ok(()) => {
                self.count.fetch_sub(1, Ordering::Relaxed);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed(&path)(error)),
        }
    }

    /// What a crash left beside its place.
    fn remove_unfinished(&self) {
        let entries = fs::read_dir(&self.documents.directory)
            .into_iter()
            .flatten()
            .flatten();
        for entry in entries {
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b".") && name.as_encoded_bytes().ends_with(b".tmp") {
                // It is in nobody's way, should that fail.
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

impl Documents {
    /// Keeps a copy of a document that cannot be understood, beside it, as `{name}.json.damaged`: it is about to be replaced.
    ///
    /// # Errors
    /// For a name that no document can have, and whatever the system refuses.
    pub fn set_aside(&self, name: &str) -> Result<(), StateError> {
        let path = self.path(name)?;
        let mut aside = path.clone().into_os_string();
        aside.push(".damaged");
        fs::copy(&path, aside).map(drop).map_err(failed(&path))
    }

    /// The documents of a directory, which need not exist.
    pub fn of(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    /// A document; `None` where there is none.
    ///
    /// # Errors
    /// For a name that no document can have, a document above the bound, and whatever the system refuses.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.path(name)?;
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&path)(error)),
        };
        let mut bytes = Vec::new();
        let read = file.take(MAX_BYTES + 1).read_to_end(&mut bytes);
        read.map_err(failed(&path))?;
        bounded(name, &bytes)?;
        Ok(Some(bytes))
    }

    /// The names of all documents, in no order.
    ///
    /// # Errors
    /// Whatever the system refuses.
    pub fn names(&self) -> Result<Vec<String>, StateError> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed(&self.directory))?,
        };
        let names = entries.flatten().filter_map(|entry| {
            let file = entry.file_name().into_string().ok()?;
            Some(file.strip_suffix(SUFFIX)?.to_owned())
        });
        Ok(names.collect())
    }

    fn path(&self, name: &str) -> Result<PathBuf, StateError> {
        let fits = !name.is_empty() && name.len() <= MAX_NAME && !name.starts_with('.');
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
        if !fits || !name.bytes().all(plain) {
            let why = "a document's name is made of a-z, 0-9, - and .".to_owned();
            return Err(bound(name, why));
        }
        Ok(self.directory.join(format!("{name}{SUFFIX}")))
    }
}

/// Locks the directory, and writes this process's id into the lock file, for whoever finds it locked.
fn lock(directory: &Path) -> Result<File, StateError> {
    let path = directory.join("lock");
    let mut options = OpenOptions::new();
    let opened = options
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .mode(0o600)
        .open(&path);
    let mut file = opened.map_err(failed(&path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            // Without the id the message says less.
            let _ = (&file).take(20).read_to_string(&mut text);
            return Err(StateError::InUse {
                directory: directory.to_owned(),
                process: text.trim().parse().ok(),
            });
        }
        Err(TryLockError::Error(error)) => return Err(failed(&path)(error)),
    }
    let written = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(failed(&path))?;
    Ok(file)
}

/// Replaces a file: written beside it, synced, renamed, and the directory synced.
fn replace(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), StateError> {
    let temporary = directory.join(format!(".{name}.tmp"));
    let target = directory.join(name);
    let mut options = OpenOptions::new();
    let opened = options
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary);
    let mut file = opened.map_err(failed(&temporary))?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.map_err(failed(&temporary))?;
    fs::rename(&temporary, &target).map_err(failed(&target))?;
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(failed(directory))
}

fn bounded(name: &str, bytes: &[u8]) -> Result<(), StateError> {
    if bytes.len() as u64 <= MAX_BYTES {
        return Ok(());
    }
    Err(bound(
        name,
        format!("a document has at most {} MiB", MAX_BYTES >> 20),
    ))
}

fn bound(name: &str, why: String) -> StateError {
    StateError::Bound {
        name: name.to_owned(),
        why,
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |error| StateError::Io { path, error }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn documents_outlive_the_store_and_are_for_the_owner_alone() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("var/state");
        let store = Store::open(&directory).unwrap();
        assert_eq!(store.documents().read("a.b-1").unwrap(), None);
        store.write("a.b-1", b"one").unwrap();
        store.write("a.b-1", b"two").unwrap();
        store.write("c", b"").unwrap();
        drop(store);
        let store = Store::open(&directory).unwrap();
        assert_eq!(
            store.documents().read("a.b-1").unwrap().as_deref(),
            Some(&b"two"[..])
        );
        let mut names = store.documents().names().unwrap();
        names.sort();
        assert_eq!(names, ["a.b-1", "c"]);
        store.remove("c").unwrap();
        store.remove("c").unwrap();
        assert_eq!(store.documents().read("c").unwrap(), None);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&directory), 0o700);
        assert_eq!(mode(&directory.join("a.b-1.json")), 0o600);
    }

    #[test]
    fn a_second_gateway_is_told_who_has_it() {
        let home = tempfile::tempdir().unwrap();
        let first = Store::open(home.path()).unwrap();
        let error = Store::open(home.path()).unwrap_err();
        let id = std::process::id();
        assert!(
            matches!(&error, StateError::InUse { process, .. } if *process == Some(id)),
            "{error}"
        );
        assert!(error.to_string().contains("another gateway"), "{error}");
        drop(first);
        Store::open(home.path()).unwrap();
    }

    #[test]
    fn a_format_of_the_future_is_refused_and_kept() {
        let home = tempfile::tempdir().unwrap();
        drop(Store::open(home.path()).unwrap());
        fs::write(home.path().join("version"), "2\n").unwrap();
        let error = Store::open(home.path()).unwrap_err().to_string();
        assert!(
            error.contains("format \"2\"") && error.contains("newer"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(home.path().join("version")).unwrap(), "2\n");
    }

    /// What a crash between the write and the rename leaves: the document before, and a file that the next start removes.
    #[test]
    fn a_crash_leaves_the_document_before() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        store.write("a", b"whole").unwrap();
        drop(store);
        let unfinished = home.path().join(".a.json.tmp");
        fs::write(&unfinished, b"ha").unwrap();
        let store = Store::open(home.path()).unwrap();
        assert_eq!(
            store.documents().read("a").unwrap().as_deref(),
            Some(&b"whole"[..])
        );
        assert!(!unfinished.exists());
        assert_eq!(store.documents().names().unwrap(), ["a"]);
    }

    #[test]
    fn names_and_sizes_are_bounded() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        let long = "a".repeat(MAX_NAME + 1);
        for name in ["", ".a", "../a", "a/b", "A", "a b", "ä", &long] {
            assert!(
                matches!(store.write(name, b""), Err(StateError::Bound { .. })),
                "{name}"
            );
        }
        store.write(&"a".repeat(MAX_NAME), b"").unwrap();
        let huge = vec![0; usize::try_from(MAX_BYTES).unwrap() + 1];
        assert!(matches!(store.write("a", &huge), Err(StateError::Bound { .. })));
        fs::write(home.path().join("b.json"), &huge).unwrap();
        assert!(matches!(
            store.documents().read("b"),
            Err(StateError::Bound { .. })
        ));
    }
}

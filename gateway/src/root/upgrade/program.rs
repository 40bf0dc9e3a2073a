//! The command line of this process, to start the new process of an upgrade with it.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::{env, io};

use tokio::process::{Child, Command};

/// Environment variable with the old process's id: the socket on standard input leads to that process. Instances
/// inherit the variable, so it counts only together with such a socket.
pub(super) const VARIABLE: &str = "SLUICE_UPGRADE_FROM";

/// Environment variable with the soft limit of descriptors that the first process was started with, which
/// instances get.
const DESCRIPTORS: &str = "SLUICE_STARTED_DESCRIPTORS";

/// The binary on disk and its arguments.
#[derive(Debug)]
pub(crate) struct Program {
    path: PathBuf,
    name: OsString,
    arguments: Vec<OsString>,
    descriptors: Option<u64>,
}

impl Program {
    /// The running program. To be called at start: later the file may have another name, or none.
    ///
    /// # Errors
    /// When the path of the executable is unknown.
    pub(crate) fn running() -> io::Result<Self> {
        let exact = env::current_exe()?;
        let mut words = env::args_os();
        let name = words.next().unwrap_or_else(|| exact.clone().into());
        // The path as typed rather than the resolved one: where the path is a link, an upgrade changes the link.
        let path = env::current_dir()
            .ok()
            .and_then(|here| named(Path::new(&name), &here, env::var_os("PATH")))
            .filter(|path| same_file(path, &exact))
            .unwrap_or(exact);
        Ok(Self {
            path,
            name,
            arguments: words.collect(),
            descriptors: None,
        })
    }

    /// With the soft limit of descriptors that this process was started with.
    pub(crate) fn with_limit(mut self, descriptors: Option<u64>) -> Self {
        self.descriptors = descriptors;
        self
    }

    /// With the limit from the old process's environment variable; an older binary sets none.
    pub(crate) fn with_inherited_limit(self) -> Self {
        let told = env::var(DESCRIPTORS).ok().and_then(|limit| limit.parse().ok());
        let descriptors = told.or(self.descriptors);
        self.with_limit(descriptors)
    }

    /// The soft limit of descriptors to be passed on.
    pub(crate) fn descriptors(&self) -> Option<u64> {
        self.descriptors
    }

    /// The path of the binary.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Starts the binary that is now at the path, with the socket as its standard input.
    pub(super) fn start(&self, socket: UnixStream) -> io::Result<Child> {
        Command::new(&self.path)
            .arg0(&self.name)
            .args(&self.arguments)
            .env(VARIABLE, std::process::id().to_string())
            .envs(self.descriptors.map(|limit| (DESCRIPTORS, limit.to_string())))
            .stdin(Stdio::from(OwnedFd::from(socket)))
            .kill_on_drop(false)
            .spawn()
    }
}

/// The absolute path of a command, resolved as a shell does.
fn named(name: &Path, here: &Path, path: Option<OsString>) -> Option<PathBuf> {
    if name.components().count() > 1 {
        return Some(here.join(name));
    }
    let path = path?;
    let mut candidates = env::split_paths(&path).map(|dir| here.join(dir).join(name));
    candidates.find(|candidate| candidate.is_file())
}

fn same_file(a: &Path, b: &Path) -> bool {
    let identity = |path: &Path| path.metadata().map(|m| (m.dev(), m.ino()));
    matches!((identity(a), identity(b)), (Ok(a), Ok(b)) if a == b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_followed_anew_and_a_name_is_found_as_a_shell_finds_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = dir.path().join("sluice-1");
        std::fs::write(&first, "1").unwrap();
        let link = dir.path().join("sluice");
        std::os::unix::fs::symlink(&first, &link).unwrap();
        assert!(same_file(&link, &first));
        let here = dir.path();
        assert_eq!(
            named(Path::new("./sluice"), here, None),
            Some(here.join("./sluice"))
        );
        assert_eq!(named(&link, Path::new("/"), None), Some(link.clone()));
        let path = env::join_paths([Path::new("/nonexistent"), here]).unwrap();
        assert_eq!(named(Path::new("sluice"), Path::new("/"), Some(path)), Some(link));
        assert_eq!(named(Path::new("sluice"), here, None), None);
        assert!(!same_file(&here.join("gone"), &first));
    }
}

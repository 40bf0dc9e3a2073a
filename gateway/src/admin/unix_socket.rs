//! The Unix socket of the admin server: bound for the gateway's own user alone, and removed when the gateway goes.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Binds a socket with mode 0600. The socket that a gateway left behind which was killed is replaced.
///
/// # Errors
/// Another process serves on it, the path is something else than a socket, or the system's error.
pub(super) fn bind(path: &Path) -> io::Result<UnixListener> {
    remove_stale(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    // Between bind and listen nobody can connect, whatever the umask is.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(UnixListener::from(std::os::fd::OwnedFd::from(socket)))
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::other(
                "there is something that is not a socket: remove it, or name another path",
            ));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(io::Error::other("another process serves on this socket")),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
    }
}

/// The file of a bound socket, which this process may remove.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// A file that took its place is somebody else's.
    identity: Option<Identity>,
}

impl SocketFile {
    pub(super) fn of(path: &Path) -> Self {
        Self {
            identity: identity(path),
            path: path.to_owned(),
        }
    }

    /// Removes the file, unless it was replaced. For a process that no other one takes over from.
    pub fn remove(&self) {
        if self.identity.is_some()
            && identity(&self.path) == self.identity
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(%error, "{} stays behind", self.path.display());
        }
    }
}

/// Device, inode and time of change: an inode is used again at once after its file was removed.
type Identity = (u64, u64, i64, i64);

fn identity(path: &Path) -> Option<Identity> {
    let found = fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino(), found.ctime(), found.ctime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_for_its_owner_and_a_stale_one_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let first = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        let taken = bind(&path).unwrap_err().to_string();
        assert!(taken.contains("another process"), "{taken}");
        drop(first);
        assert!(path.exists(), "closing does not remove the file");
        let second = bind(&path).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
        let file = SocketFile::of(&path);
        drop(second);
        file.remove();
        assert!(!path.exists());
    }

    #[test]
    fn what_is_not_ours_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        fs::write(&path, "precious").unwrap();
        let refused = bind(&path).unwrap_err().to_string();
        assert!(refused.contains("not a socket"), "{refused}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        fs::remove_file(&path).unwrap();
        let first = bind(&path).unwrap();
        let file = SocketFile::of(&path);
        drop(first);
        let _second = bind(&path).unwrap();
        file.remove();
        assert!(path.exists(), "of another gateway");
    }
}

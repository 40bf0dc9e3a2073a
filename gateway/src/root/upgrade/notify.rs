//! Notifications to systemd (`sd_notify(3)`).

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::time::{ClockId, clock_gettime};

/// Sends the service's state to systemd; does nothing without `NOTIFY_SOCKET`. A message that cannot be sent is
/// logged and has no other consequence.
#[derive(Debug, Default)]
pub(crate) struct Notifier {
    to: Option<(UnixDatagram, SocketAddr)>,
    reloading: AtomicBool,
}

impl Notifier {
    /// A notifier to the socket in `NOTIFY_SOCKET`: a path, or a name in the abstract namespace after an `@`.
    pub(crate) fn from_environment() -> Self {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Self::default();
        };
        match Self::to(name.as_bytes()) {
            Ok(notifier) => notifier,
            Err(error) => {
                tracing::warn!(%error, "NOTIFY_SOCKET={} cannot be used", name.display());
                Self::default()
            }
        }
    }

    fn to(name: &[u8]) -> io::Result<Self> {
        let address = match name.split_first() {
            Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
            Some((b'/', _)) => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name))?,
            _ => return Err(io::Error::other("neither a path nor an abstract name")),
        };
        let socket = UnixDatagram::unbound()?;
        // Non-blocking: a full socket must not stop the gateway.
        socket.set_nonblocking(true)?;
        Ok(Self {
            to: Some((socket, address)),
            reloading: AtomicBool::new(false),
        })
    }

    /// `READY=1`: the gateway serves.
    pub(crate) fn ready(&self) {
        self.say("READY=1\nSTATUS=serving");
    }

    /// `RELOADING=1`: the configuration is read again; [`Self::reloaded`] follows.
    pub(crate) fn reloading(&self) {
        self.reloading.store(true, Ordering::SeqCst);
        self.say(&format!(
            "RELOADING=1\nMONOTONIC_USEC={}\nSTATUS=reading the configuration",
            monotonic_micros()
        ));
    }

    /// `READY=1` after a reload; nothing without a [`Self::reloading`] before.
    pub(crate) fn reloaded(&self) {
        if self.reloading.swap(false, Ordering::SeqCst) {
            self.ready();
        }
    }

    /// `STOPPING=1`: the gateway drains.
    pub(crate) fn stopping(&self) {
        self.say("STOPPING=1\nSTATUS=draining");
    }

    /// `MAINPID`: another process is the service's main process. systemd accepts this from the old main process
    /// alone.
    pub(crate) fn main_pid(&self, pid: u32) {
        self.say(&format!("MAINPID={pid}"));
    }

    fn say(&self, message: &str) {
        if let Some((socket, address)) = &self.to
            && let Err(error) = socket.send_to_addr(message.as_bytes(), address)
        {
            tracing::warn!(%error, "systemd cannot be told {message:?}");
        }
    }
}

fn monotonic_micros() -> i64 {
    // Only an unknown clock fails, and every Linux has this one.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(socket: &UnixDatagram) -> String {
        socket
            .set_read_timeout(Some(std::time::Duration::from_secs(20)))
            .unwrap();
        let mut message = [0; 512];
        let n = socket.recv(&mut message).unwrap();
        String::from_utf8(message[..n].to_vec()).unwrap()
    }

    #[test]
    fn both_kinds_of_address_are_spoken_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        Notifier::to(path.as_os_str().as_bytes()).unwrap().ready();
        assert!(said(&by_path).starts_with("READY=1\n"));

        let name = format!("sluice-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&address).unwrap();
        Notifier::to(format!("@{name}").as_bytes()).unwrap().main_pid(7);
        assert_eq!(said(&by_name), "MAINPID=7");

        assert!(Notifier::to(b"vsock:2:1234").is_err());
        Notifier::default().ready();
    }

    #[test]
    fn only_a_reload_that_began_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::to(path.as_os_str().as_bytes()).unwrap();
        notifier.reloaded();
        notifier.reloading();
        notifier.reloaded();
        notifier.reloaded();
        notifier.stopping();
        let reloading = said(&socket);
        let micros: i64 = reloading
            .split("MONOTONIC_USEC=")
            .nth(1)
            .and_then(|rest| rest.lines().next())
            .and_then(|digits| digits.parse().ok())
            .unwrap();
        assert!(
            reloading.starts_with("RELOADING=1\n") && micros > 0,
            "{reloading}"
        );
        assert!(said(&socket).starts_with("READY=1\n"));
        assert!(said(&socket).starts_with("STOPPING=1\n"));
    }

    #[test]
    fn nobody_there_is_no_reason_to_fail() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gone");
        Notifier::to(path.as_os_str().as_bytes()).unwrap().ready();
    }
}

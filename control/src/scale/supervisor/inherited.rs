//! What an instance inherits (fork(2), execve(2)): what the gateway was started with, not what it made of it.
//!
//! Umask, priority, control group, capabilities and hard limits pass as they are. Signals are at their defaults and
//! none is blocked, which the standard library sees to; descriptors are closed on exec.

use std::io;
use std::process::{Child, Command};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Variables that speak to one process. An instance that believed them would tell the service manager that the gateway
/// is ready, feed its watchdog, or take sockets for its own that it has not got (sd_notify(3), sd_listen_fds(3),
/// sd_watchdog_enabled(3)).
const PERSONAL: [&str; 9] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "SLUICE_UPGRADE_FROM",
    "SLUICE_STARTED_DESCRIPTORS",
];

/// What instances get otherwise than by inheriting it from the supervisor.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Inherited {
    /// Their soft limit of descriptors. Programs that use select(2) break above 1024, and those that close every
    /// descriptor there may be take seconds over a million.
    pub(crate) descriptors: Option<u64>,
}

impl Inherited {
    /// Takes out of the environment what is not meant for an instance. What is set afterwards stays.
    pub(super) fn disown(command: &mut Command) {
        for name in PERSONAL {
            command.env_remove(name);
        }
    }

    /// Starts the command.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        // A limit is inherited at fork(2): nothing else on this thread opens a descriptor meanwhile, and what is open
        // above the limit stays open.
        let lowered = self.descriptors.and_then(Lowered::to);
        let spawned = command.spawn();
        let was_lowered = lowered.is_some();
        drop(lowered);
        let child = match spawned {
            // This process itself has as many open: better an instance with another limit than none.
            Err(error)
                if was_lowered && Errno::from_raw(error.raw_os_error().unwrap_or(0)) == Errno::EMFILE =>
            {
                command.spawn()?
            }
            spawned => spawned?,
        };
        unprotect(child.id());
        Ok(child)
    }
}

/// A lowered soft limit of this process; dropping it raises the limit again.
struct Lowered {
    from: u64,
    hard: u64,
}

impl Lowered {
    /// `None`: nothing was to be lowered, or nothing could be.
    fn to(soft: u64) -> Option<Self> {
        let (from, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
        if soft >= from {
            return None;
        }
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).ok()?;
        Some(Self { from, hard })
    }
}

impl Drop for Lowered {
    fn drop(&mut self) {
        // Not above the hard limit, so it is allowed.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, self.from, self.hard);
    }
}

/// Gives up the protection that an instance inherits where the gateway's own is not to be killed first when memory
/// runs out (proc_pid_oom_score_adj(5)): what fills the memory is more likely an instance.
fn unprotect(pid: u32) {
    let protected = |text: String| text.trim().parse::<i32>().is_ok_and(|score| score < 0);
    if std::fs::read_to_string("/proc/self/oom_score_adj").is_ok_and(protected) {
        // It may be gone, or another user's by its set-user-ID bit.
        let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), "0");
    }
}

//! Spawns an instance with the attributes that the gateway was started with, not those that the gateway set for itself.
//!
//! Umask, priority, control group, capabilities and hard limits are inherited unchanged (fork(2), execve(2)). The standard
//! library resets signal handlers and the signal mask; descriptors are closed on exec.

use std::io;
use std::process::{Child, Command};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Variables that are for the gateway's process alone. With them an instance would notify the service manager that the
/// gateway is ready, feed the gateway's watchdog, use descriptors that it does not have (sd_notify(3),
/// sd_listen_fds(3), sd_watchdog_enabled(3)), or change the gateway by its admin API.
const PERSONAL: [&str; 10] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "SLUICE_UPGRADE_FROM",
    "SLUICE_STARTED_DESCRIPTORS",
    "SLUICE_TOKEN",
];

/// Attributes of instances that differ from those of the supervisor.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SpawnOptions {
    /// The soft limit of descriptors. Programs that use select(2) break above 1024, and programs that close every possible
    /// descriptor take seconds for a million.
    pub(crate) descriptors: Option<u64>,
}

impl SpawnOptions {
    /// Removes the gateway's own variables from the environment. Variables set afterwards stay.
    pub(super) fn remove_own_variables(command: &mut Command) {
        for name in PERSONAL {
            command.env_remove(name);
        }
    }

    /// Starts the command.
    ///
    /// # Errors
    /// The error of fork(2) or execve(2).
    pub(super) fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        // The limit is inherited at fork(2). No other code on this thread opens a descriptor meanwhile, and descriptors
        // above the limit stay open.
        let lowered = self.descriptors.and_then(Lowered::to);
        let spawned = command.spawn();
        let was_lowered = lowered.is_some();
        drop(lowered);
        let child = match spawned {
            // The supervisor itself has that many open: an instance with another limit is better than none.
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
    /// Lowers the limit; `None` when it is as low already, or cannot be changed.
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
        // Allowed, because the value is not above the hard limit.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, self.from, self.hard);
    }
}

/// Resets the OOM score adjustment of an instance, where the gateway's own is negative (proc_pid_oom_score_adj(5)): when
/// memory runs out, the kernel should kill an instance first.
fn unprotect(pid: u32) {
    let protected = |text: String| text.trim().parse::<i32>().is_ok_and(|score| score < 0);
    if std::fs::read_to_string("/proc/self/oom_score_adj").is_ok_and(protected) {
        // An error means that the process is gone, or runs as another user by its set-user-ID bit.
        let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), "0");
    }
}

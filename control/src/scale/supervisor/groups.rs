//! The process groups that the supervisor owns: one per instance, ended as a whole.

use std::collections::BTreeMap;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::launch::{Launched, launch};
use super::spawn::SpawnOptions;
use super::wire::{Event, Label, Listed, Start};
use super::{orphans, output};

/// The polling interval of a group whose leader is gone, while other members have their grace period: members that are no
/// children of this process end without SIGCHLD.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The time to wait for a killed process, which hangs in the kernel after that: longer waiting would only hide the
/// instance's end.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// The processes that the supervisor's own process may reap and kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All descendants, because all belong to instances.
    Process,
    /// The instances' groups only: the process, a test, has other children.
    #[cfg(test)]
    Groups,
}

pub(crate) struct Groups {
    scope: Scope,
    options: SpawnOptions,
    events: mpsc::Sender<Event>,
    instances: BTreeMap<u64, Group>,
    /// The next poll of ending groups. Kept as an instant, so that other events cannot delay it for ever.
    poll_at: Option<Instant>,
}

struct Group {
    pid: Pid,
    label: Label,
    grace: Duration,
    /// The leader's exit status, once reaped.
    status: Option<String>,
    /// The instant of SIGKILL, once the group is being stopped.
    kill_at: Option<Instant>,
    killed_at: Option<Instant>,
    /// Sends the status when the whole group is gone.
    exit: oneshot::Sender<String>,
}

impl Groups {
    pub(crate) fn new(scope: Scope, options: SpawnOptions, events: mpsc::Sender<Event>) -> Self {
        Self {
            scope,
            options,
            events,
            instances: BTreeMap::new(),
            poll_at: None,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.instances.is_empty()
    }

    /// Starts an instance. Its output and its exit come through the event channel.
    pub(crate) fn start(&mut self, start: Start) -> Event {
        let instance = start.instance;
        if self.instances.contains_key(&instance) {
            return Event::StartFailed {
                instance,
                error: "an instance of this number runs already".to_owned(),
            };
        }
        let Launched { pid, stdout, stderr } = match launch(&start, &self.options) {
            Ok(launched) => launched,
            Err(error) => return Event::StartFailed { instance, error },
        };
        let (exit, exited) = oneshot::channel();
        tokio::spawn(output::watch(
            instance,
            stdout,
            stderr,
            exited,
            self.events.clone(),
        ));
        let group = Group {
            pid: Pid::from_raw(pid),
            label: start.label,
            grace: Duration::from_millis(start.grace_ms),
            status: None,
            kill_at: None,
            killed_at: None,
            exit,
        };
        self.instances.insert(instance, group);
        Event::Started { instance, pid }
    }

    pub(crate) fn list(&self) -> Vec<Listed> {
        let listed = self.instances.iter().map(|(&instance, group)| Listed {
            instance,
            pid: group.pid.as_raw(),
            label: group.label.clone(),
        });
        listed.collect()
    }

    /// Sends SIGTERM now and SIGKILL after the grace period.
    pub(crate) fn stop(&mut self, instance: u64, grace: Duration, now: Instant) {
        if let Some(group) = self.instances.get_mut(&instance) {
            group.stop(grace, now);
        }
    }

    /// Stops every group, with its own grace period but at most `longest`.
    pub(crate) fn stop_all(&mut self, longest: Duration, now: Instant) {
        for group in self.instances.values_mut() {
            group.stop(group.grace.min(longest), now);
        }
    }

    /// The latest instant for the next [`Self::tick`].
    pub(crate) fn next_wake(&self) -> Option<Instant> {
        let kills = self.instances.values().filter(|group| group.killed_at.is_none());
        kills.filter_map(|group| group.kill_at).chain(self.poll_at).min()
    }

    /// Reaps ended processes, kills groups past their grace period, and reports every group that is gone.
    pub(crate) fn tick(&mut self, now: Instant) {
        for group in self.instances.values_mut() {
            group.reap_leader(now);
            group.kill_if_due(now);
        }
        if self.scope == Scope::Process {
            self.reap_others(now);
        }
        let gone = self
            .instances
            .iter_mut()
            .filter_map(|(&instance, group)| group.is_gone(now).then_some(instance));
        for instance in gone.collect::<Vec<_>>() {
            if self.scope == Scope::Process {
                orphans::end_of(instance);
            }
            if let Some(Group { exit, status, .. }) = self.instances.remove(&instance) {
                let status = status.unwrap_or_else(|| "killed, but it hangs in the kernel".to_owned());
                // The receiver is gone only when the supervisor itself ends.
                let _ = exit.send(status);
            }
        }
        let mut groups = self.instances.values();
        let ending = groups.any(|group| group.status.is_some() || group.killed_at.is_some());
        self.poll_at = ending.then(|| now + POLL_INTERVAL);
    }

    /// Reaps orphans, whose parent this subreaper has become.
    fn reap_others(&mut self, now: Instant) {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                // A leader that ended since its check.
                Ok(status) => {
                    let pid = status.pid();
                    if let Some(group) = self.instances.values_mut().find(|g| Some(g.pid) == pid) {
                        group.leader_ended(describe(Ok(status)), now);
                    }
                }
                // Reaped, but by a signal that has no name, or interrupted.
                Err(_) => {}
            }
        }
    }
}

/// Kills every group, should the loop end before its instances.
impl Drop for Groups {
    fn drop(&mut self) {
        for group in self.instances.values() {
            let _ = killpg(group.pid, Signal::SIGKILL);
        }
    }
}

impl Group {
    fn stop(&mut self, grace: Duration, now: Instant) {
        let kill_at = now + grace;
        if self.kill_at.is_none() && !grace.is_zero() {
            // An error means that the group is gone already.
            let _ = killpg(self.pid, Signal::SIGTERM);
        }
        self.kill_at = Some(self.kill_at.map_or(kill_at, |earlier| earlier.min(kill_at)));
        self.kill_if_due(now);
    }

    fn kill_if_due(&mut self, now: Instant) {
        if self.killed_at.is_none() && self.kill_at.is_some_and(|at| at <= now) {
            let _ = killpg(self.pid, Signal::SIGKILL);
            self.killed_at = Some(now);
        }
    }

    fn reap_leader(&mut self, now: Instant) {
        if self.status.is_some() {
            return;
        }
        // Checked without reaping: as long as the leader is a zombie, the kernel cannot reuse the id of its group.
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        if matches!(
            waitid(Id::Pid(self.pid), peek),
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR)
        ) {
            return;
        }
        if self.kill_at.is_none() {
            let _ = killpg(self.pid, Signal::SIGKILL);
        }
        let status = describe(waitpid(self.pid, Some(WaitPidFlag::WNOHANG)));
        self.leader_ended(status, now);
    }

    fn leader_ended(&mut self, status: String, now: Instant) {
        self.status = Some(status);
        if self.kill_at.is_none() {
            // An unrequested exit: the instance serves no more, and the rest of its group is useless.
            self.kill_at = Some(now);
            self.kill_if_due(now);
        }
    }

    fn is_gone(&self, now: Instant) -> bool {
        if self.killed_at.is_some_and(|at| now >= at + KILL_TIMEOUT) {
            return true;
        }
        if self.status.is_none() {
            return false;
        }
        // Orphans of the group that came to this process are zombies until they are reaped.
        let group = Pid::from_raw(-self.pid.as_raw());
        while matches!(
            waitpid(group, Some(WaitPidFlag::WNOHANG)),
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..))
        ) {}
        killpg(self.pid, None) == Err(Errno::ESRCH)
    }
}

fn describe(status: nix::Result<WaitStatus>) -> String {
    match status {
        Ok(WaitStatus::Exited(_, code)) => format!("exit status {code}"),
        Ok(WaitStatus::Signaled(_, signal, _)) => format!("signal {} ({signal})", signal as i32),
        Ok(other) => format!("{other:?}"),
        // nix has no name for real-time signals and says so after the process was reaped.
        Err(Errno::EINVAL) => "a real-time signal".to_owned(),
        Err(error) => format!("unknown status: {error}"),
    }
}

//! The hand-over of local processes to the next gateway of an upgrade: the scaler's part.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use sluice_model::{InstanceId, RevisionId};

use super::{Actor, Running};
use crate::scale::handover::{HandoverError, PendingHandover, Saved, SavedProcess};
use crate::scale::supervisor::{ATTACHES, Command, Link, Listed, VERSION};

/// The older gateway's processes, with a socket to their supervisor.
#[derive(Debug)]
pub(crate) struct InheritedProcesses {
    pub(crate) supervisor: OwnedFd,
    pub(crate) processes: Vec<(RevisionId, SavedProcess)>,
}

impl<C: Fn() -> io::Result<UnixStream>> Actor<C> {
    /// Adds the processes, and a socket to the supervisor for the next gateway. The supervisor executes commands in order, so
    /// earlier orders are done before the next gateway's first one.
    pub(super) fn hand_over(&mut self, mut pending: PendingHandover) {
        let processes = self.instances.iter().map(|(id, running)| {
            let saved = SavedProcess {
                instance: id.0,
                port: running.port,
                pid: running.pid,
                port_taken: running.port_taken,
            };
            Saved::of(&running.revision, saved)
        });
        pending.state.processes = processes.collect();
        let supervisor = self.attach();
        pending.finish(supervisor);
    }

    fn attach(&mut self) -> Result<Option<OwnedFd>, HandoverError> {
        let Some(link) = &mut self.link else {
            return Ok(None);
        };
        // A supervisor without a `Hello` yet was started by this gateway, from the same binary.
        if let Some(version) = self.version.filter(|version| *version < ATTACHES) {
            return Err(HandoverError::OldSupervisor(version));
        }
        let (ours, theirs) = UnixStream::pair()?;
        link.push_with(&Command::Attach, theirs.into())?;
        Ok(Some(ours.into()))
    }

    /// Reclaims the supervisor after a failed upgrade.
    pub(super) fn take_back(&mut self) {
        if let Some(link) = &mut self.link {
            link.push(&Command::Reclaim).expect("a reclaim is short");
            self.expected = self.instances.keys().copied().collect();
        }
    }

    /// Takes over the processes of an older gateway.
    pub(super) fn inherit(&mut self, inherited: InheritedProcesses) -> io::Result<()> {
        for (revision, saved) in inherited.processes {
            self.ports.occupy(saved.port);
            let running = Running {
                revision,
                port: saved.port,
                pid: saved.pid,
                port_taken: saved.port_taken,
            };
            self.instances.insert(InstanceId(saved.instance), running);
        }
        let mut link = Link::new(UnixStream::from(inherited.supervisor))?;
        link.push(&Command::Hello { version: VERSION })?;
        link.push(&Command::List)?;
        self.expected = self.instances.keys().copied().collect();
        self.link = Some(link);
        Ok(())
    }

    /// Reconciles with the supervisor's listing: instances that started or exited while another gateway got the events.
    pub(super) async fn listed(&mut self, listed: Vec<Listed>) {
        let mut gone: BTreeSet<InstanceId> = std::mem::take(&mut self.expected);
        for process in listed {
            let instance = InstanceId(process.instance);
            gone.remove(&instance);
            match self.instances.get(&instance) {
                // Reported again where known: the controller may have missed the event.
                Some(_) => self.started(instance, process.pid).await,
                None => {
                    tracing::warn!(%instance, pid = process.pid, "an instance that nobody knows is ended");
                    self.end(instance);
                }
            }
        }
        for instance in gone {
            self.exited(instance, "ended during an upgrade".to_owned(), None)
                .await;
        }
    }

    fn end(&mut self, instance: InstanceId) {
        if let Some(link) = &mut self.link {
            let stop = Command::Stop {
                instance: instance.0,
                grace_ms: 0,
            };
            link.push(&stop).expect("a stop is short");
        }
    }
}

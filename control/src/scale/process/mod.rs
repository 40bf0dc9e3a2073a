//! Local processes as a [`Scaler`]: ports, environment, and one conversation with the supervisor.

mod expand;
mod handover;
mod ports;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use sluice_model::{Failure, InstanceId, RevisionId};
use tokio::sync::mpsc;

use self::expand::expand;
pub(crate) use self::handover::InheritedProcesses;
use self::ports::Ports;
pub(crate) use self::state::{ProcessAction, ProcessEvent, ProcessState, SavedProcessState};
use super::handover::PendingHandover;
use super::supervisor::{Command, Event, Label, Link, Start, Stream, Turn, VERSION, decode};
use super::{InstanceOrder, Scaler, ScalerEvent};
use crate::plan::{PlanDelta, ProcessLimits, ProcessSpec, RevisionPlan, ScalerSpec};

/// The most of a line of stderr that becomes part of an answer.
const MAX_LAST_WORDS: usize = 512;

/// Starts and stops local processes. The work is done by a task of its own; dropping this ends
/// the task, closes the socket, and so ends every instance.
#[derive(Debug)]
pub(crate) struct ProcessScaler {
    /// Unbounded, because the controller must not wait for a task that waits for it. It holds at
    /// most one start and a few stops for each instance, whose number is bounded.
    orders: mpsc::UnboundedSender<Order>,
}

#[derive(Debug)]
enum Order {
    Limits(ProcessLimits),
    Start(RevisionId, InstanceId, Arc<RevisionPlan>),
    Stop(InstanceId, Duration),
    HandOver(PendingHandover),
    TakeBack,
}

impl ProcessScaler {
    /// Starts the task. `executable` is what the command word `sluice` means; `connect` starts a
    /// supervisor and is called when the first instance is started, and again should it be lost.
    /// `adopted` is what an older gateway left.
    pub(crate) fn spawn(
        executable: PathBuf,
        seed: u64,
        connect: impl Fn() -> io::Result<UnixStream> + Send + Sync + 'static,
        events: mpsc::Sender<ScalerEvent>,
        adopted: Option<InheritedProcesses>,
    ) -> Self {
        let (orders, inbox) = mpsc::unbounded_channel();
        let mut rng = fastrand::Rng::with_seed(seed);
        // No range until there is a plan; without a plan nothing is started.
        #[expect(clippy::reversed_empty_ranges, reason = "a range without ports")]
        let ports = Ports::new(1..=0, &mut rng);
        let actor = Actor {
            executable,
            rng,
            connect,
            events,
            max: 0,
            ports,
            link: None,
            version: None,
            instances: BTreeMap::new(),
            expected: BTreeSet::new(),
        };
        tokio::spawn(actor.run(inbox, adopted));
        Self { orders }
    }

    fn tell(&self, order: Order) {
        // The task ends only after this end is dropped.
        let _ = self.orders.send(order);
    }
}

impl Scaler for ProcessScaler {
    type Order = InstanceOrder;

    fn configure(&mut self, plan: &PlanDelta) {
        self.tell(Order::Limits(plan.processes.clone()));
    }

    fn order(&mut self, revision: &RevisionId, order: InstanceOrder) {
        self.tell(match order {
            InstanceOrder::Start(instance, plan) => Order::Start(revision.clone(), instance, plan),
            InstanceOrder::Stop(instance, grace) => Order::Stop(instance, grace),
        });
    }

    fn hand_over(&mut self, pending: PendingHandover) {
        self.tell(Order::HandOver(pending));
    }

    fn take_back(&mut self) {
        self.tell(Order::TakeBack);
    }
}

struct Actor<C> {
    executable: PathBuf,
    rng: fastrand::Rng,
    connect: C,
    events: mpsc::Sender<ScalerEvent>,
    max: u32,
    ports: Ports,
    link: Option<Link>,
    /// The supervisor's, once it said it.
    version: Option<u32>,
    instances: BTreeMap<InstanceId, Running>,
    /// Those that a list that was asked for has to have in it.
    expected: BTreeSet<InstanceId>,
}

struct Running {
    revision: RevisionId,
    port: u16,
    /// Once it runs.
    pid: Option<i32>,
    /// It said that its port is taken.
    port_taken: bool,
}

impl<C: Fn() -> io::Result<UnixStream>> Actor<C> {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Order>, adopted: Option<InheritedProcesses>) {
        if let Some(adopted) = adopted
            && let Err(error) = self.adopt(adopted)
        {
            self.lost(&error.to_string()).await;
        }
        loop {
            tokio::select! {
                order = inbox.recv() => match order {
                    Some(Order::Limits(limits)) => {
                        self.max = limits.max;
                        self.ports.set_range(limits.ports, &mut self.rng);
                    }
                    Some(Order::Start(revision, instance, plan)) => {
                        self.start(revision, instance, &plan).await;
                    }
                    Some(Order::Stop(instance, grace)) => self.stop(instance, grace),
                    Some(Order::HandOver(pending)) => self.hand_over(pending),
                    Some(Order::TakeBack) => self.take_back(),
                    None => return,
                },
                turn = next_turn(&mut self.link) => match turn {
                    Ok(Turn::Message(frame)) => self.hear(&frame).await,
                    Ok(Turn::Wrote) => {}
                    Ok(Turn::Closed) => self.lost("it closed the connection").await,
                    Err(error) => self.lost(&error.to_string()).await,
                },
            }
        }
    }

    async fn start(&mut self, revision: RevisionId, instance: InstanceId, plan: &RevisionPlan) {
        if let Err((failure, detail)) = self.try_start(&revision, instance, plan) {
            self.tell(ScalerEvent::Failed {
                revision,
                instance,
                failure,
                detail,
            })
            .await;
        }
    }

    fn try_start(
        &mut self,
        revision: &RevisionId,
        instance: InstanceId,
        plan: &RevisionPlan,
    ) -> Result<(), (Failure, String)> {
        let ScalerSpec::Process(spec) = &plan.scaler else {
            return Err((Failure::Failed, "it is not a local process".to_owned()));
        };
        if self.instances.len() >= self.max as usize {
            let detail = format!("processes.max is reached: {} local instances", self.max);
            return Err((Failure::NotAllowed, detail));
        }
        let Some(port) = self.ports.take(ports::is_free) else {
            let (first, last) = (self.ports.range().start(), self.ports.range().end());
            let detail = format!("no port is free in processes.ports {first}-{last}");
            return Err((Failure::NotAllowed, detail));
        };
        let start = self.prepare(revision, instance, plan, spec, port);
        let sent = self
            .link()
            .and_then(|link| link.push(&Command::Start(Box::new(start))));
        if let Err(error) = sent {
            self.ports.give_back(port);
            return Err((Failure::Failed, format!("the supervisor cannot be told: {error}")));
        }
        self.instances.insert(
            instance,
            Running {
                revision: revision.clone(),
                port,
                pid: None,
                port_taken: false,
            },
        );
        Ok(())
    }

    fn prepare(
        &self,
        revision: &RevisionId,
        instance: InstanceId,
        plan: &RevisionPlan,
        spec: &ProcessSpec,
        port: u16,
    ) -> Start {
        let number = port.to_string();
        let value = |name: &str| match name {
            "PORT" => Some(number.as_str()),
            "K_SERVICE" | "K_CONFIGURATION" => Some(plan.service.as_str()),
            "K_REVISION" => Some(revision.name()),
            _ => None,
        };
        let mut command: Vec<String> = spec.command.iter().map(|word| expand(word, value)).collect();
        if let Some(word) = command.first_mut().filter(|word| *word == "sluice") {
            *word = self.executable.to_string_lossy().into_owned();
        }
        let mut env: BTreeMap<String, String> = spec
            .env
            .iter()
            .map(|(name, text)| (name.clone(), expand(text, value)))
            .collect();
        for name in ["PORT", "K_SERVICE", "K_CONFIGURATION", "K_REVISION"] {
            env.insert(name.to_owned(), value(name).unwrap_or_default().to_owned());
        }
        Start {
            instance: instance.0,
            command,
            env,
            cwd: spec.working_directory.clone(),
            clear_env: !spec.inherit_env,
            grace_ms: milliseconds(spec.stop_grace_period),
            label: Label {
                namespace: revision.namespace().to_owned(),
                revision: revision.name().to_owned(),
                port,
            },
        }
    }

    fn stop(&mut self, instance: InstanceId, grace: Duration) {
        // Unknown, or without a connection, it is gone already.
        if let Some(link) = self
            .link
            .as_mut()
            .filter(|_| self.instances.contains_key(&instance))
        {
            let grace_ms = milliseconds(grace);
            let stop = Command::Stop {
                instance: instance.0,
                grace_ms,
            };
            link.push(&stop).expect("a stop is short");
        }
    }

    fn link(&mut self) -> io::Result<&mut Link> {
        if self.link.is_none() {
            let mut link = Link::new((self.connect)()?)?;
            link.push(&Command::Hello { version: VERSION })?;
            self.version = None;
            self.link = Some(link);
        }
        self.link
            .as_mut()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    async fn hear(&mut self, frame: &[u8]) {
        match decode(frame) {
            Ok(Event::Hello { version }) => {
                tracing::debug!(version, "the supervisor is there");
                self.version = Some(version);
            }
            Ok(Event::Started { instance, pid }) => self.started(InstanceId(instance), pid).await,
            Ok(Event::StartFailed { instance, error }) => {
                if let Some(running) = self.forget(InstanceId(instance)) {
                    self.tell(ScalerEvent::Failed {
                        revision: running.revision,
                        instance: InstanceId(instance),
                        failure: Failure::Failed,
                        detail: error,
                    })
                    .await;
                }
            }
            Ok(Event::Output {
                instance,
                stream,
                line,
                dropped,
            }) => self.output(InstanceId(instance), stream, &line, dropped),
            Ok(Event::Exited {
                instance,
                status,
                last_stderr,
                dropped,
            }) => {
                if dropped > 0 {
                    tracing::warn!(target: "sluice::instance", instance, dropped, "output was lost");
                }
                self.exited(InstanceId(instance), status, last_stderr).await;
            }
            Ok(Event::Listing { instances }) => self.listed(instances).await,
            Ok(Event::Outranked) => tracing::warn!("a newer gateway gives the orders"),
            Ok(Event::Refused { error }) => tracing::warn!(%error, "the supervisor refused a command"),
            // It may be newer than this gateway and say what this one does not know.
            Err(error) => tracing::debug!(%error, "the supervisor was not understood"),
        }
    }

    async fn started(&mut self, instance: InstanceId, pid: i32) {
        if let Some(running) = self.instances.get_mut(&instance) {
            running.pid = Some(pid);
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, running.port));
            let revision = running.revision.clone();
            tracing::debug!(%revision, %instance, pid, %address, "instance runs");
            self.tell(ScalerEvent::Started {
                revision,
                instance,
                address,
            })
            .await;
        }
    }

    fn output(&mut self, instance: InstanceId, stream: Stream, line: &str, dropped: u64) {
        let Some(running) = self.instances.get_mut(&instance) else {
            return;
        };
        running.port_taken |= says_port_taken(line);
        let revision = &running.revision;
        let stream = match stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        if dropped > 0 {
            tracing::warn!(target: "sluice::instance", %revision, %instance, stream, dropped, "output was lost");
        }
        tracing::info!(target: "sluice::instance", %revision, %instance, stream, "{line}");
    }

    async fn exited(&mut self, instance: InstanceId, status: String, last_stderr: Option<String>) {
        let Some(running) = self.forget(instance) else {
            return;
        };
        let said = last_stderr.as_deref();
        let port_taken = running.port_taken || said.is_some_and(says_port_taken);
        let detail = match said {
            Some(line) => format!("{status}: {}", shorten(line)),
            None => status,
        };
        self.tell(ScalerEvent::Exited {
            revision: running.revision,
            instance,
            detail,
            port_taken,
        })
        .await;
    }

    /// The supervisor is gone before its gateway: somebody killed it. Its instances have lost
    /// their owner and are ended from here, as far as their groups reach.
    async fn lost(&mut self, why: &str) {
        tracing::error!(
            instances = self.instances.len(),
            "the supervisor of local instances is gone: {why}"
        );
        self.link = None;
        for (instance, running) in std::mem::take(&mut self.instances) {
            if let Some(pid) = running.pid {
                let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
            }
            self.ports.give_back(running.port);
            self.tell(ScalerEvent::Exited {
                revision: running.revision,
                instance,
                detail: "lost with its supervisor".to_owned(),
                port_taken: false,
            })
            .await;
        }
    }

    fn forget(&mut self, instance: InstanceId) -> Option<Running> {
        let running = self.instances.remove(&instance)?;
        self.ports.give_back(running.port);
        Some(running)
    }

    async fn tell(&self, event: ScalerEvent) {
        // Without a controller nobody needs to know.
        let _ = self.events.send(event).await;
    }
}

async fn next_turn(link: &mut Option<Link>) -> io::Result<Turn> {
    match link {
        Some(link) => link.next().await,
        None => std::future::pending().await,
    }
}

/// There is no other way to learn it: the exit status of a server that could not bind is its own.
fn says_port_taken(line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    [
        "address already in use",
        "eaddrinuse",
        "address in use",
        "port is already allocated",
    ]
    .iter()
    .any(|complaint| line.contains(complaint))
}

fn shorten(line: &str) -> &str {
    &line[..line.floor_char_boundary(MAX_LAST_WORDS)]
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;

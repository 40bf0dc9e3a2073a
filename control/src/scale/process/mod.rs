//! The scaler of local processes: allocates ports, expands commands, and sends orders to the supervisor.

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
use super::supervisor::{Command, Event, Label, Link, LinkEvent, Start, Stream, VERSION, decode};
use super::{InstanceOrder, Scaler, ScalerEvent};
use crate::plan::{PlanDelta, ProcessLimits, ProcessSpec, RevisionPlan, ScalerSpec};

/// The longest part of an instance's last line on stderr that becomes a failure's detail, in bytes.
const MAX_STDERR_DETAIL: usize = 512;

/// The handle of the task that starts and stops local processes. Dropping the handle ends the task, which closes the
/// supervisor's socket, and so ends every instance.
#[derive(Debug)]
pub(crate) struct ProcessScaler {
    /// Unbounded, because the controller must not wait for a task that waits for the controller. Bounded in practice by the
    /// number of instances: one start and a few stops for each.
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
    /// Starts the task. `executable` replaces the command word `sluice`. `connect` starts a supervisor: called for the first
    /// instance, and again after the supervisor was lost. `inherited` are the processes of an older gateway.
    pub(crate) fn spawn(
        executable: PathBuf,
        seed: u64,
        connect: impl Fn() -> io::Result<UnixStream> + Send + Sync + 'static,
        events: mpsc::Sender<ScalerEvent>,
        inherited: Option<InheritedProcesses>,
    ) -> Self {
        let (orders, inbox) = mpsc::unbounded_channel();
        let mut rng = fastrand::Rng::with_seed(seed);
        // An empty range until the first plan, before which nothing is started.
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
        tokio::spawn(actor.run(inbox, inherited));
        Self { orders }
    }

    fn send(&self, order: Order) {
        // The task ends only after the sender is dropped.
        let _ = self.orders.send(order);
    }
}

impl Scaler for ProcessScaler {
    type Order = InstanceOrder;

    fn configure(&mut self, plan: &PlanDelta) {
        self.send(Order::Limits(plan.processes.clone()));
    }

    fn order(&mut self, revision: &RevisionId, order: InstanceOrder) {
        self.send(match order {
            InstanceOrder::Start(instance, plan) => Order::Start(revision.clone(), instance, plan),
            InstanceOrder::Stop(instance, grace) => Order::Stop(instance, grace),
        });
    }

    fn hand_over(&mut self, pending: PendingHandover) {
        self.send(Order::HandOver(pending));
    }

    fn take_back(&mut self) {
        self.send(Order::TakeBack);
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
    /// The supervisor's protocol version, after its `Hello`.
    version: Option<u32>,
    instances: BTreeMap<InstanceId, Running>,
    /// The instances that the next listing should contain; the others have exited.
    expected: BTreeSet<InstanceId>,
}

struct Running {
    revision: RevisionId,
    port: u16,
    /// The leader's process id, once the instance runs.
    pid: Option<i32>,
    /// Its output says that its port was taken.
    port_taken: bool,
}

impl<C: Fn() -> io::Result<UnixStream>> Actor<C> {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Order>, inherited: Option<InheritedProcesses>) {
        if let Some(inherited) = inherited
            && let Err(error) = self.inherit(inherited)
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
                turn = next_event(&mut self.link) => match turn {
                    Ok(LinkEvent::Message(frame)) => self.on_message(&frame).await,
                    Ok(LinkEvent::Wrote) => {}
                    Ok(LinkEvent::Closed) => self.lost("it closed the connection").await,
                    Err(error) => self.lost(&error.to_string()).await,
                },
            }
        }
    }

    async fn start(&mut self, revision: RevisionId, instance: InstanceId, plan: &RevisionPlan) {
        if let Err((failure, detail)) = self.try_start(&revision, instance, plan) {
            self.report(ScalerEvent::Failed {
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
            self.ports.release(port);
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
            "K_REVISION" => Some(revision.revision_name()),
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
        // An unknown instance, or one without a supervisor, is gone already.
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

    async fn on_message(&mut self, frame: &[u8]) {
        match decode(frame) {
            Ok(Event::Hello { version }) => {
                tracing::debug!(version, "the supervisor is there");
                self.version = Some(version);
            }
            Ok(Event::Started { instance, pid }) => self.started(InstanceId(instance), pid).await,
            Ok(Event::StartFailed { instance, error }) => {
                if let Some(running) = self.forget(InstanceId(instance)) {
                    self.report(ScalerEvent::Failed {
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
            // A newer supervisor may send messages that this gateway does not know.
            Err(error) => tracing::debug!(%error, "the supervisor was not understood"),
        }
    }

    async fn started(&mut self, instance: InstanceId, pid: i32) {
        if let Some(running) = self.instances.get_mut(&instance) {
            running.pid = Some(pid);
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, running.port));
            let revision = running.revision.clone();
            tracing::debug!(%revision, %instance, pid, %address, "instance runs");
            self.report(ScalerEvent::Started {
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
        let last_line = last_stderr.as_deref();
        let port_taken = running.port_taken || last_line.is_some_and(says_port_taken);
        let detail = match last_line {
            Some(line) => format!("{status}: {}", shorten(line)),
            None => status,
        };
        self.report(ScalerEvent::Exited {
            revision: running.revision,
            instance,
            detail,
            port_taken,
        })
        .await;
    }

    /// Handles the loss of the supervisor, which somebody must have killed: kills the process groups of its instances from
    /// here, and reports them as exited.
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
            self.ports.release(running.port);
            self.report(ScalerEvent::Exited {
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
        self.ports.release(running.port);
        Some(running)
    }

    async fn report(&self, event: ScalerEvent) {
        // A controller that is gone needs no event.
        let _ = self.events.send(event).await;
    }
}

async fn next_event(link: &mut Option<Link>) -> io::Result<LinkEvent> {
    match link {
        Some(link) => link.next().await,
        None => std::future::pending().await,
    }
}

/// Whether a line of output says that the port was taken. The exit status does not: every server has its own.
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
    &line[..line.floor_char_boundary(MAX_STDERR_DETAIL)]
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;

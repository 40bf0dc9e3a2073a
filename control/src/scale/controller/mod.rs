//! The controller: the one task that owns the state of every revision.

mod handover;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_model::{Demand, DemandSink, EndpointSink, LaunchStep, RevisionId, RevisionStatus, StatusSource};
use tokio::sync::{mpsc, watch};

use self::handover::{HandoverCommand, InheritedRevisions, Ownership, split};
use super::events::{IdSource, RevisionEvent};
use super::fleet::{Fleet, RevisionMachine};
use super::handover::{HandedOver, PlatformAnswer};
use super::mailbox::{Mail, Mailbox};
use super::needs::Needs;
use super::process::{ProcessEvent, ProcessScaler, ProcessState};
use super::scalers::Scalers;
use super::webhook::{WebhookEvent, WebhookScaler, WebhookState};
use super::{Answer, Ask, InstanceOrder, Scaler, ScalerEvent, supervisor};
use crate::autoscale::DesiredSink;
use crate::plan::{PlanDelta, RevisionPlan, ScalerSpec};

/// The bound of the channel of scaler events: back-pressure on the supervisor's socket.
const EVENTS: usize = 256;

/// The time that a shutdown waits beyond the longest grace period, for processes that hang in the kernel.
const SHUTDOWN_MARGIN: Duration = Duration::from_secs(10);

type Statuses = BTreeMap<RevisionId, RevisionStatus>;

/// The controller's options.
#[derive(Debug, Clone)]
pub struct ScaleOptions {
    /// The running executable: it becomes the supervisor, and the command word `sluice` means it.
    pub executable: PathBuf,
    /// Seeds jitter and the choice of ports.
    pub seed: u64,
    /// The soft limit of descriptors that instances get, where that is not this process's: the one it was started
    /// with.
    pub descriptors: Option<u64>,
}

/// A handle of the controller, for the data plane, the autoscaler, the reconciler and the API. Calls never wait, and calls
/// before [`Controller::spawn`] are kept.
#[derive(Debug, Clone)]
pub struct ScaleHandle {
    mailbox: Arc<Mailbox>,
    commands: mpsc::UnboundedSender<HandoverCommand>,
    status: watch::Receiver<Statuses>,
}

impl ScaleHandle {
    /// Applies a change of the plan. To be called after the Snapshot that it was compiled with is published. The first plan
    /// is complete.
    pub fn apply(&self, plan: PlanDelta) {
        self.mailbox.put(|mail| match &mut mail.plan {
            Some(earlier) => earlier.then(plan),
            None => mail.plan = Some(plan),
        });
    }

    /// Stops every instance, each within its own grace period, and returns when none is left. Nothing is started any more,
    /// and requests in flight fail: drain first. A dropped future does not cancel the shutdown. Waits for ever before
    /// [`Controller::spawn`].
    pub async fn shutdown(&self) {
        self.mailbox.put(|mail| mail.shutdown = true);
        let mut status = self.status.clone();
        // The sender goes with the task.
        while status.changed().await.is_ok() {}
    }
}

#[cfg(test)]
impl ScaleHandle {
    /// Whether the task has read all mail.
    fn mailbox_is_empty(&self) -> bool {
        self.mailbox.is_empty()
    }
}

impl DesiredSink for ScaleHandle {
    fn set_desired(&self, revision: &RevisionId, desired: u32, reason: String) {
        self.mailbox.put(|mail| {
            mail.desired.insert(revision.clone(), (desired, reason));
        });
    }
}

impl DemandSink for ScaleHandle {
    fn demand(&self, demand: Demand) {
        self.mailbox.demand(demand);
    }
}

impl StatusSource for ScaleHandle {
    fn revision_status(&self, revision: &RevisionId) -> Option<RevisionStatus> {
        self.status.borrow().get(revision).cloned()
    }
}

/// The controller before its task runs. Construction has two steps, because the data plane needs the handle, and the
/// controller needs the data plane.
#[derive(Debug)]
pub struct Controller {
    mailbox: Arc<Mailbox>,
    commands: mpsc::UnboundedReceiver<HandoverCommand>,
    status: watch::Sender<Statuses>,
}

impl Controller {
    /// A controller that does not run yet, and its handle.
    pub fn new() -> (ScaleHandle, Self) {
        let mailbox = Arc::new(Mailbox::default());
        // As many as there are upgrades and answers: a handful.
        let (commands, inbox) = mpsc::unbounded_channel();
        let (sender, status) = watch::channel(Statuses::new());
        let handle = ScaleHandle {
            mailbox: Arc::clone(&mailbox),
            commands,
            status,
        };
        let controller = Self {
            mailbox,
            commands: inbox,
            status: sender,
        };
        (handle, controller)
    }

    /// Starts the task on the current runtime; the task runs until [`ScaleHandle::shutdown`]. The supervisor process is
    /// started with the first local instance. The state of an older gateway (`handed_over`) is restored at once, and acted
    /// on after the first plan.
    pub fn spawn(self, sink: Arc<dyn EndpointSink>, options: ScaleOptions, handed_over: Option<HandedOver>) {
        let (ids, inherited, processes) = split(options.seed, handed_over);
        let (events, inbox) = mpsc::channel(EVENTS);
        let binary = options.executable.clone();
        let descriptors = options.descriptors;
        let connect = move || supervisor::spawn(&binary, descriptors);
        let processes = ProcessScaler::spawn(
            options.executable,
            options.seed,
            connect,
            events.clone(),
            processes,
        );
        let scalers = Scalers {
            processes,
            platforms: WebhookScaler::spawn(events),
            failed: Vec::new(),
        };
        tokio::spawn(self.run(sink, scalers, inbox, ids, inherited));
    }

    pub(super) async fn run<P, W>(
        mut self,
        sink: Arc<dyn EndpointSink>,
        scalers: Scalers<P, W>,
        mut events: mpsc::Receiver<ScalerEvent>,
        ids: IdSource,
        inherited: InheritedRevisions,
    ) where
        P: Scaler<Order = InstanceOrder>,
        W: Scaler<Order = Ask>,
    {
        let mut worker = Worker {
            sink,
            scalers,
            drain: Duration::ZERO,
            ids,
            processes: Fleet::default(),
            webhooks: Fleet::default(),
            early: BTreeSet::new(),
            closing: None,
            status: self.status,
            ownership: Ownership::Ours,
            held: None,
            owed: BTreeSet::new(),
            needs: Needs::default(),
            is_first: true,
        };
        worker.inherit(inherited);
        loop {
            let due = worker.next_deadline();
            let ours = matches!(worker.ownership, Ownership::Ours);
            let (mailbox, deciding) = (&self.mailbox, ours && worker.held.is_none());
            tokio::select! {
                // Readiness is read before a start timeout is found to be over.
                biased;
                Some(command) = self.commands.recv() => worker.command(command, mailbox),
                mail = mailbox.take(), if ours => worker.read(mail),
                () = mailbox.closing(), if !ours && worker.closing.is_none() => worker.end(mailbox),
                Some(event) = events.recv() => worker.hear(event),
                () = sleep_until(due), if deciding || worker.closing.is_some() => worker.tick(),
            }
            if worker.is_done() {
                return;
            }
        }
    }
}

/// The present by Tokio's clock, which tests can pause.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// The state of the controller's task.
struct Worker<P, W> {
    sink: Arc<dyn EndpointSink>,
    scalers: Scalers<P, W>,
    /// The plan's drain timeout; zero before the first plan, when there is nothing to drain.
    drain: Duration,
    ids: IdSource,
    /// Revisions of local processes. A revision whose kind changed is in both fleets until its old instances are gone.
    processes: Fleet<ProcessState>,
    /// Revisions that a platform scales.
    webhooks: Fleet<WebhookState>,
    /// Revisions with waiters whose plan has not come yet: the Snapshot comes first. Empty again with the next plan.
    early: BTreeSet<RevisionId>,
    /// The deadline of a shutdown under way.
    closing: Option<Instant>,
    status: watch::Sender<Statuses>,
    ownership: Ownership,
    /// Events held back while the controller is frozen, and before the first plan where another gateway handed over its
    /// state. Bounded by the number of instances and calls.
    held: Option<Vec<ScalerEvent>>,
    /// Revisions with a call of an older gateway whose answer has not been passed on yet.
    owed: BTreeSet<RevisionId>,
    /// Which revisions need which.
    needs: Needs,
    /// No plan has come yet.
    is_first: bool,
}

impl<P: Scaler<Order = InstanceOrder>, W: Scaler<Order = Ask>> Worker<P, W> {
    fn read(&mut self, mail: Mail) {
        for (revision, instance) in mail.ready {
            self.drive(&revision, RevisionEvent::Ready(instance));
            self.needs_changed(&revision);
        }
        for (revision, instance) in mail.drained {
            self.drive(&revision, RevisionEvent::Drained(instance));
        }
        if let Some(plan) = mail.plan.filter(|_| self.closing.is_none()) {
            self.apply(plan);
        }
        for (revision, (count, decision)) in mail.desired {
            self.drive(&revision, RevisionEvent::Desired { count, decision });
        }
        for revision in mail.activated {
            self.drive(&revision, RevisionEvent::Activated);
            self.needs_changed(&revision);
        }
        for revision in mail.activate {
            let is_known = self.processes.contains(&revision) || self.webhooks.contains(&revision);
            if is_known && self.held.is_none() {
                self.drive(&revision, RevisionEvent::Activate);
            } else if self.closing.is_none() {
                self.early.insert(revision);
            }
        }
        for revision in mail.activated_since {
            self.drive(&revision, RevisionEvent::Activated);
            self.needs_changed(&revision);
        }
        if mail.shutdown && self.closing.is_none() {
            self.shut_down();
        }
    }

    fn apply(&mut self, plan: PlanDelta) {
        self.scalers.processes.configure(&plan);
        self.scalers.platforms.configure(&plan);
        if self.drain != plan.drain {
            self.drain = plan.drain;
            self.processes.set_drain(plan.drain);
            self.webhooks.set_drain(plan.drain);
        }
        // The first plan is complete: inherited revisions that it does not have are removed.
        if std::mem::replace(&mut self.is_first, false) {
            let inherited: BTreeSet<RevisionId> = self
                .processes
                .names()
                .into_iter()
                .chain(self.webhooks.names())
                .collect();
            for revision in inherited
                .iter()
                .filter(|&revision| !plan.revisions.contains_key(revision))
            {
                self.drive(revision, RevisionEvent::Removed);
            }
        }
        for (revision, wanted) in &plan.revisions {
            let needs = wanted.as_ref().map_or(&[][..], |plan| &plan.needs);
            let changed = self.needs.plan(revision, needs);
            self.hold(changed);
        }
        for (revision, wanted) in plan.revisions {
            self.plan(revision, wanted);
        }
        // A replaced revision has forgotten it.
        self.hold(self.needs.held().map(|need| (need.clone(), true)).collect());
        for revision in std::mem::take(&mut self.early) {
            self.drive(&revision, RevisionEvent::Activate);
        }
        self.replay();
    }

    /// Scales a revision by this plan from now on, or not at all. The state of the other kind, if the kind changed, is
    /// removed.
    fn plan(&mut self, revision: RevisionId, wanted: Option<Arc<RevisionPlan>>) {
        let scaler = wanted.as_ref().map(|plan| &plan.scaler);
        if !matches!(scaler, Some(ScalerSpec::Process(_))) {
            self.drive_process(&revision, RevisionEvent::Removed.into());
        }
        if !matches!(scaler, Some(ScalerSpec::Webhook(_))) {
            self.drive_webhook(&revision, RevisionEvent::Removed.into());
        }
        let Some(plan) = wanted else { return };
        match plan.scaler {
            ScalerSpec::Process(_) => {
                if self.processes.plan(&revision, &plan, self.drain) {
                    self.drive_process(&revision, RevisionEvent::Plan(plan).into());
                }
            }
            ScalerSpec::Webhook(_) => {
                if self.webhooks.plan(&revision, &plan, self.drain) {
                    self.drive_webhook(&revision, RevisionEvent::Plan(plan).into());
                }
            }
        }
    }

    fn shut_down(&mut self) {
        let graces = self.processes.iter().map(|(_, state)| state.longest_grace());
        self.closing = Some(now() + graces.max().unwrap_or_default() + SHUTDOWN_MARGIN);
        for revision in self.processes.names() {
            self.drive_process(&revision, RevisionEvent::Shutdown.into());
        }
        for revision in self.webhooks.names() {
            self.drive_webhook(&revision, RevisionEvent::Shutdown.into());
        }
    }

    fn is_done(&self) -> bool {
        let is_over = match self.ownership {
            Ownership::Ours => self.processes.is_empty() && self.webhooks.is_empty(),
            Ownership::Frozen => false,
            Ownership::Theirs(_) => !self.webhooks.iter().any(|(_, state)| state.awaits_answer()),
        };
        self.closing.is_some_and(|limit| is_over || limit <= now())
    }

    fn next_deadline(&self) -> Option<Instant> {
        let deadlines = [
            self.processes.next_deadline(),
            self.webhooks.next_deadline(),
            self.closing,
        ];
        deadlines.into_iter().flatten().min()
    }

    fn hear(&mut self, event: ScalerEvent) {
        if let Ownership::Theirs(relay) = &self.ownership {
            if let ScalerEvent::Answered { revision, answer } = event {
                // The answer is the next gateway's; nobody here waits for it, whether it arrives or not.
                let _ = relay.send(PlatformAnswer::new(&revision, answer));
                self.webhooks.remove(&revision);
            }
            return;
        }
        if let Some(held) = &mut self.held {
            held.push(event);
            return;
        }
        match event {
            ScalerEvent::Started {
                revision,
                instance,
                address,
            } => self.drive_process(&revision, ProcessEvent::Started(instance, address)),
            ScalerEvent::Failed {
                revision,
                instance,
                failure,
                detail,
            } => {
                let event = ProcessEvent::Failed {
                    instance,
                    failure,
                    detail,
                };
                self.drive_process(&revision, event);
            }
            ScalerEvent::Exited {
                revision,
                instance,
                detail,
                port_taken,
            } => {
                tracing::debug!(%revision, %instance, "instance is gone: {detail}");
                let event = ProcessEvent::Exited {
                    instance,
                    detail,
                    port_taken,
                };
                self.drive_process(&revision, event);
            }
            ScalerEvent::Answered { revision, answer } => {
                if matches!(answer, Answer::Agreed { .. }) {
                    self.sink.launch(&revision, LaunchStep::Started);
                }
                self.drive_webhook(&revision, WebhookEvent::Answered(answer));
            }
        }
    }

    fn tick(&mut self) {
        if !matches!(self.ownership, Ownership::Ours) {
            return;
        }
        let now = now();
        for revision in self.processes.due(now) {
            self.drive_process(&revision, RevisionEvent::Tick.into());
        }
        for revision in self.webhooks.due(now) {
            self.drive_webhook(&revision, RevisionEvent::Tick.into());
        }
    }

    /// Applies an event to the revision of this name, of whichever kind: of both while one replaces the other.
    fn drive(&mut self, revision: &RevisionId, event: RevisionEvent) {
        self.drive_process(revision, event.clone().into());
        self.drive_webhook(revision, event.into());
    }

    fn drive_process(&mut self, revision: &RevisionId, event: ProcessEvent) {
        let (webhooks, status) = (&self.webhooks, &self.status);
        let (scalers, sink) = (&mut self.scalers, self.sink.as_ref());
        self.processes.drive(
            revision,
            event,
            now(),
            &mut self.ids,
            |processes| show(status, revision, processes, webhooks),
            |action| scalers.process_action(revision, action, sink),
        );
        self.follow_needs(revision);
    }

    fn drive_webhook(&mut self, revision: &RevisionId, event: WebhookEvent) {
        let (processes, status) = (&self.processes, &self.status);
        let (scalers, sink) = (&mut self.scalers, self.sink.as_ref());
        self.webhooks.drive(
            revision,
            event,
            now(),
            &mut self.ids,
            |webhooks| show(status, revision, processes, webhooks),
            |action| scalers.webhook_action(revision, action, sink),
        );
        self.follow_needs(revision);
    }

    /// Holds what a revision needs while it runs, and tells of failed starts to those that wait for them.
    fn follow_needs(&mut self, revision: &RevisionId) {
        let process = self.processes.get(revision).is_some_and(RevisionMachine::runs);
        let webhook = self.webhooks.get(revision).is_some_and(RevisionMachine::runs);
        let changed = self.needs.runs(revision, process || webhook);
        self.hold(changed);
        while let Some(failed) = self.scalers.failed.pop() {
            self.needs_changed(&failed);
        }
    }

    fn hold(&mut self, changed: Vec<(RevisionId, bool)>) {
        for (need, held) in changed {
            self.sink.hold(&need, held);
            let by = self.needs.running(&need);
            self.status.send_if_modified(|all| match all.get_mut(&need) {
                Some(status) if status.held_by != by => {
                    status.held_by = by;
                    true
                }
                _ => false,
            });
        }
    }

    /// Something of a revision became ready, or its start failed: those that wait for it look again.
    fn needs_changed(&mut self, scaled: &RevisionId) {
        for dependent in self.needs.dependents(&scaled.revision()) {
            self.drive(&dependent, RevisionEvent::NeedsChanged);
        }
    }
}

/// Publishes a revision's status. Where both kinds have the revision, the one that is not removed is shown.
fn show(
    status: &watch::Sender<Statuses>,
    revision: &RevisionId,
    processes: &Fleet<ProcessState>,
    webhooks: &Fleet<WebhookState>,
) {
    let process = processes
        .get(revision)
        .map(|state| (state.is_removed(), state.status()));
    let webhook = webhooks
        .get(revision)
        .map(|state| (state.is_removed(), state.status()));
    let known = process.into_iter().chain(webhook);
    let shown = known
        .min_by_key(|(is_removed, _)| *is_removed)
        .map(|(_, status)| status);
    status.send_if_modified(|all| {
        let shown = shown.map(|status| RevisionStatus {
            held_by: all
                .get(revision)
                .map(|before| before.held_by.clone())
                .unwrap_or_default(),
            ..status
        });
        let same = all.get(revision) == shown.as_ref();
        match shown {
            _ if same => {}
            Some(status) => _ = all.insert(revision.clone(), status),
            None => _ = all.remove(revision),
        }
        !same
    });
}

#[cfg(test)]
mod tests;

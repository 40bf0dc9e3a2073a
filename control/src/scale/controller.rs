//! The one task that owns every revision's instances.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_model::{
    Demand, DemandSink, EndpointSink, InstanceId, ManagedEndpoint, RevisionId, RevisionStatus, StatusSource,
};
use tokio::sync::{mpsc, watch};

use super::mailbox::{Mail, Mailbox};
use super::process::ProcessScaler;
use super::state::{Action, Event, Fresh, RevisionState};
use super::{Scaler, ScalerEvent, supervisor};
use crate::plan::Plan;

/// Events that may wait for the controller; the supervisor's socket is read no faster.
const EVENTS: usize = 256;

/// On top of the longest grace: how long a shutdown waits for processes that hang in the kernel.
const SHUTDOWN_MARGIN: Duration = Duration::from_secs(10);

type Statuses = BTreeMap<RevisionId, RevisionStatus>;

/// What the controller needs to know about where it runs.
#[derive(Debug, Clone)]
pub struct ScaleOptions {
    /// The running executable: it becomes the supervisor, and the command word `sluice` means it.
    pub executable: PathBuf,
    /// How long a retired instance may finish what it has.
    pub drain_timeout: Duration,
    /// Seeds jitter and the choice of ports.
    pub seed: u64,
}

/// The way to the controller, for everybody who has something to tell or to ask. Nothing said
/// before [`Controller::spawn`] is lost.
#[derive(Debug, Clone)]
pub struct ScaleHandle {
    mailbox: Arc<Mailbox>,
    status: watch::Receiver<Statuses>,
}

impl ScaleHandle {
    /// How everything is scaled from now on; only the latest plan counts. Call it after the
    /// Snapshot that was compiled with it is published.
    pub fn apply(&self, plan: Arc<Plan>) {
        self.mailbox.put(|mail| mail.plan = Some(plan));
    }

    /// The autoscaler's decision, in its words as status shows them. It stands until the next
    /// one, an activation that needs more, or a start that fails.
    pub fn set_desired(&self, revision: &RevisionId, count: u32, decision: impl Into<String>) {
        let decision = decision.into();
        self.mailbox.put(|mail| {
            mail.desired.insert(revision.clone(), (count, decision));
        });
    }

    /// Stops every instance, each within its own grace, and returns when none is left. Whatever
    /// is in flight on them fails: drain first. Nothing is started any more. Dropping the future
    /// does not stop the stopping. Waits for ever while [`Controller::spawn`] was not called yet.
    pub async fn shutdown(&self) {
        self.mailbox.put(|mail| mail.shutdown = true);
        let mut status = self.status.clone();
        // The sender goes with the task.
        while status.changed().await.is_ok() {}
    }
}

#[cfg(test)]
impl ScaleHandle {
    /// Whether everything said was taken in by the task.
    fn mailbox_is_empty(&self) -> bool {
        self.mailbox.is_empty()
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

/// The controller before it runs. It comes in two parts because the data plane needs the handle
/// to exist, and the controller needs the data plane.
#[derive(Debug)]
pub struct Controller {
    mailbox: Arc<Mailbox>,
    status: watch::Sender<Statuses>,
}

impl Controller {
    /// A controller that does not run yet, and the way to it.
    pub fn new() -> (ScaleHandle, Self) {
        let mailbox = Arc::new(Mailbox::default());
        let (sender, status) = watch::channel(Statuses::new());
        let handle = ScaleHandle {
            mailbox: Arc::clone(&mailbox),
            status,
        };
        let status = sender;
        (handle, Self { mailbox, status })
    }

    /// Starts its task on the current runtime; it runs until [`ScaleHandle::shutdown`]. The
    /// supervisor process is started with the first local instance.
    pub fn spawn(self, sink: Arc<dyn EndpointSink>, options: ScaleOptions) {
        let (events, inbox) = mpsc::channel(EVENTS);
        let binary = options.executable.clone();
        let connect = move || supervisor::spawn(&binary);
        let scaler = ProcessScaler::spawn(options.executable, options.seed, connect, events);
        tokio::spawn(self.run(sink, scaler, inbox, options.drain_timeout, options.seed));
    }

    pub(super) async fn run<S: Scaler>(
        self,
        sink: Arc<dyn EndpointSink>,
        scaler: S,
        mut events: mpsc::Receiver<ScalerEvent>,
        drain: Duration,
        seed: u64,
    ) {
        let mut worker = Worker {
            sink,
            scaler,
            drain,
            fresh: Fresh::new(seed),
            revisions: BTreeMap::new(),
            due: BTreeMap::new(),
            early: BTreeSet::new(),
            closing: None,
            status: self.status,
        };
        loop {
            let due = worker.due.values().copied().chain(worker.closing).min();
            tokio::select! {
                // What became ready counts as ready before its time is found to be over.
                biased;
                mail = self.mailbox.take() => worker.read(mail),
                Some(event) = events.recv() => worker.hear(event),
                () = sleep_until(due) => worker.tick(),
            }
            if worker.is_done() {
                return;
            }
        }
    }
}

/// Tokio's clock, so that tests can hold it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

struct Worker<S> {
    sink: Arc<dyn EndpointSink>,
    scaler: S,
    drain: Duration,
    fresh: Fresh,
    revisions: BTreeMap<RevisionId, RevisionState>,
    /// The deadlines of those revisions that have one.
    due: BTreeMap<RevisionId, Instant>,
    /// Somebody waits for a revision whose plan has not come yet: the Snapshot comes first. Empty
    /// again with the next plan.
    early: BTreeSet<RevisionId>,
    /// When to give up waiting, once the gateway ends.
    closing: Option<Instant>,
    status: watch::Sender<Statuses>,
}

impl<S: Scaler> Worker<S> {
    fn read(&mut self, mail: Mail) {
        for (revision, instance) in mail.ready {
            self.drive(&revision, Event::Ready(instance));
        }
        for (revision, instance) in mail.drained {
            self.drive(&revision, Event::Drained(instance));
        }
        if let Some(plan) = mail.plan.filter(|_| self.closing.is_none()) {
            self.apply(&plan);
        }
        for (revision, (count, decision)) in mail.desired {
            self.drive(&revision, Event::Desired { count, decision });
        }
        for revision in mail.activate {
            if self.revisions.contains_key(&revision) {
                self.drive(&revision, Event::Activate);
            } else if self.closing.is_none() {
                self.early.insert(revision);
            }
        }
        if mail.shutdown && self.closing.is_none() {
            self.shut_down();
        }
    }

    fn apply(&mut self, plan: &Plan) {
        self.scaler.configure(plan);
        let removed: Vec<RevisionId> = self
            .revisions
            .keys()
            .filter(|revision| !plan.revisions.contains_key(revision))
            .cloned()
            .collect();
        for revision in removed {
            self.drive(&revision, Event::Removed);
        }
        for (revision, wanted) in &plan.revisions {
            let is_new = match self.revisions.get(revision) {
                Some(state) if state.follows(wanted) => continue,
                Some(_) => false,
                None => true,
            };
            let wanted = Arc::new(wanted.clone());
            if is_new {
                let state = RevisionState::new(Arc::clone(&wanted), self.drain);
                self.revisions.insert(revision.clone(), state);
            }
            self.drive(revision, Event::Plan(wanted));
        }
        for revision in std::mem::take(&mut self.early) {
            self.drive(&revision, Event::Activate);
        }
    }

    fn shut_down(&mut self) {
        let graces = self.revisions.values().map(RevisionState::longest_grace);
        self.closing = Some(now() + graces.max().unwrap_or_default() + SHUTDOWN_MARGIN);
        for revision in self.revisions.keys().cloned().collect::<Vec<_>>() {
            self.drive(&revision, Event::Shutdown);
        }
    }

    fn is_done(&self) -> bool {
        self.closing
            .is_some_and(|limit| self.revisions.is_empty() || limit <= now())
    }

    fn hear(&mut self, event: ScalerEvent) {
        let (revision, event) = match event {
            ScalerEvent::Started {
                revision,
                instance,
                address,
            } => (revision, Event::Started(instance, address)),
            ScalerEvent::Failed {
                revision,
                instance,
                failure,
                detail,
            } => {
                let event = Event::Failed {
                    instance,
                    failure,
                    detail,
                };
                (revision, event)
            }
            ScalerEvent::Exited {
                revision,
                instance,
                detail,
                port_taken,
            } => {
                tracing::debug!(%revision, %instance, "instance is gone: {detail}");
                let event = Event::Exited {
                    instance,
                    detail,
                    port_taken,
                };
                (revision, event)
            }
        };
        self.drive(&revision, event);
    }

    fn tick(&mut self) {
        let now = now();
        let due = self.due.iter().filter(|&(_, &at)| at <= now);
        for revision in due.map(|(revision, _)| revision.clone()).collect::<Vec<_>>() {
            self.drive(&revision, Event::Tick);
        }
    }

    /// Puts an event into a revision's state and carries out what follows, to the end.
    fn drive(&mut self, revision: &RevisionId, event: Event) {
        let now = now();
        let Some(state) = self.revisions.get_mut(revision) else {
            return;
        };
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in state.step(event, now, &mut self.fresh) {
                events.extend(carry_out(revision, action, self.sink.as_ref(), &mut self.scaler));
            }
        }
        if state.is_over() {
            self.revisions.remove(revision);
            self.due.remove(revision);
            self.status.send_modify(|all| {
                all.remove(revision);
            });
            return;
        }
        match state.next_deadline() {
            Some(at) => self.due.insert(revision.clone(), at),
            None => self.due.remove(revision),
        };
        let status = state.status();
        self.status.send_if_modified(|all| {
            let same = all.get(revision) == Some(&status);
            if !same {
                all.insert(revision.clone(), status);
            }
            !same
        });
    }
}

/// Does one thing; the data plane's answer, where it gives one, is the next event.
fn carry_out(
    revision: &RevisionId,
    action: Action,
    sink: &dyn EndpointSink,
    scaler: &mut impl Scaler,
) -> Option<Event> {
    match action {
        Action::Start(instance, plan) => {
            tracing::info!(%revision, %instance, "starting an instance");
            scaler.start(revision, instance, &plan);
        }
        Action::Stop(instance, grace) => {
            tracing::info!(%revision, %instance, "stopping an instance");
            scaler.stop(instance, grace);
        }
        Action::Add(instance, address) => sink.add(revision, ManagedEndpoint { instance, address }),
        Action::Remove(instance) => sink.remove(revision, instance),
        Action::Retire { count, to_zero } => {
            let chosen: Vec<InstanceId> = sink.retire(revision, count, to_zero);
            return Some(Event::Victims { asked: count, chosen });
        }
        Action::RetireThese(instances) => sink.retire_these(revision, &instances),
        Action::Fail(failure) => sink.fail(revision, Arc::new(failure)),
        Action::Forgive => sink.forgive(revision),
        Action::Warn(what) => tracing::warn!(%revision, "{what}"),
    }
    None
}

#[cfg(test)]
#[path = "controller_tests.rs"]
mod tests;

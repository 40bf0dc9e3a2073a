//! The one task that owns every revision's instances.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_model::{Demand, DemandSink, EndpointSink, LaunchStep, RevisionId, RevisionStatus, StatusSource};
use tokio::sync::{mpsc, oneshot, watch};

use super::handover::{HandedOver, Handing, HandoverError, Left, PlatformAnswer, ScaleState};
use super::mailbox::{Mail, Mailbox};
use super::process::{Adopted, ProcessScaler};
use super::scaled::{Kind, Scaled, ScaledLeft};
use super::scalers::Scalers;
use super::state::{Event, Fresh};
use super::webhook::WebhookScaler;
use super::{Answer, Ask, InstanceOrder, Scaler, ScalerEvent, supervisor};
use crate::plan::{PlanDelta, RevisionPlan};

#[path = "turnover.rs"]
mod turnover;

use self::turnover::{Legacy, Standing, Turn, take_over};

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
    /// Seeds jitter and the choice of ports.
    pub seed: u64,
    /// The soft limit of descriptors that instances get, where that is not this process's: the one it was started
    /// with.
    pub descriptors: Option<u64>,
}

/// The way to the controller, for everybody who has something to tell or to ask. Nothing said
/// before [`Controller::spawn`] is lost.
#[derive(Debug, Clone)]
pub struct ScaleHandle {
    mailbox: Arc<Mailbox>,
    turns: mpsc::UnboundedSender<Turn>,
    status: watch::Receiver<Statuses>,
}

impl ScaleHandle {
    /// What is scaled in another way from now on. Call it after what was compiled with it is
    /// published. The first one has everything.
    pub fn apply(&self, plan: PlanDelta) {
        self.mailbox.put(|mail| match &mut mail.plan {
            Some(earlier) => earlier.then(plan),
            None => mail.plan = Some(plan),
        });
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
    turns: mpsc::UnboundedReceiver<Turn>,
    status: watch::Sender<Statuses>,
}

impl Controller {
    /// A controller that does not run yet, and the way to it.
    pub fn new() -> (ScaleHandle, Self) {
        let mailbox = Arc::new(Mailbox::default());
        // As many as there are upgrades and answers: a handful.
        let (turns, inbox) = mpsc::unbounded_channel();
        let (sender, status) = watch::channel(Statuses::new());
        let handle = ScaleHandle {
            mailbox: Arc::clone(&mailbox),
            turns,
            status,
        };
        let controller = Self {
            mailbox,
            turns: inbox,
            status: sender,
        };
        (handle, controller)
    }

    /// Starts its task on the current runtime; it runs until [`ScaleHandle::shutdown`]. The
    /// supervisor process is started with the first local instance. With what an older gateway
    /// left it goes on from there, once the first plan has come.
    pub fn spawn(self, sink: Arc<dyn EndpointSink>, options: ScaleOptions, left: Option<HandedOver>) {
        let (fresh, legacy, adopted) = take_over(options.seed, left);
        let (events, inbox) = mpsc::channel(EVENTS);
        let binary = options.executable.clone();
        let descriptors = options.descriptors;
        let connect = move || supervisor::spawn(&binary, descriptors);
        let processes =
            ProcessScaler::spawn(options.executable, options.seed, connect, events.clone(), adopted);
        let scalers = Scalers {
            processes,
            platforms: WebhookScaler::spawn(events),
        };
        tokio::spawn(self.run(sink, scalers, inbox, fresh, legacy));
    }

    pub(super) async fn run<I, R>(
        mut self,
        sink: Arc<dyn EndpointSink>,
        scalers: Scalers<I, R>,
        mut events: mpsc::Receiver<ScalerEvent>,
        fresh: Fresh,
        legacy: Legacy,
    ) where
        I: Scaler<Order = InstanceOrder>,
        R: Scaler<Order = Ask>,
    {
        let mut worker = Worker {
            sink,
            scalers,
            drain: Duration::ZERO,
            fresh,
            revisions: BTreeMap::new(),
            due: BTreeMap::new(),
            early: BTreeSet::new(),
            closing: None,
            status: self.status,
            standing: Standing::Ours,
            held: None,
            owed: BTreeSet::new(),
            is_first: true,
        };
        worker.adopt(legacy);
        loop {
            let due = worker.due.values().copied().chain(worker.closing).min();
            let ours = matches!(worker.standing, Standing::Ours);
            let (mailbox, deciding) = (&self.mailbox, ours && worker.held.is_none());
            tokio::select! {
                // What became ready counts as ready before its time is found to be over.
                biased;
                Some(turn) = self.turns.recv() => worker.turn(turn, mailbox),
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

type Key = (RevisionId, Kind);

struct Worker<I, R> {
    sink: Arc<dyn EndpointSink>,
    scalers: Scalers<I, R>,
    /// As the plan says; there is nothing to drain before the first.
    drain: Duration,
    fresh: Fresh,
    /// A revision whose kind changed is here twice until what it was is gone.
    revisions: BTreeMap<Key, Scaled>,
    /// The deadlines of those revisions that have one.
    due: BTreeMap<Key, Instant>,
    /// Somebody waits for a revision whose plan has not come yet: the Snapshot comes first. Empty
    /// again with the next plan.
    early: BTreeSet<RevisionId>,
    /// When to give up waiting, once the gateway ends.
    closing: Option<Instant>,
    status: watch::Sender<Statuses>,
    standing: Standing,
    /// Events that are heard before this may act on them: while it is frozen, and before the first
    /// plan where another gateway left something. Bounded by instances and calls.
    held: Option<Vec<ScalerEvent>>,
    /// Calls of an older gateway that it has not passed the answer of yet.
    owed: BTreeSet<RevisionId>,
    /// No plan has come yet.
    is_first: bool,
}

impl<I: Scaler<Order = InstanceOrder>, R: Scaler<Order = Ask>> Worker<I, R> {
    fn read(&mut self, mail: Mail) {
        for (revision, instance) in mail.ready {
            self.drive(&revision, Event::Ready(instance));
        }
        for (revision, instance) in mail.drained {
            self.drive(&revision, Event::Drained(instance));
        }
        if let Some(plan) = mail.plan.filter(|_| self.closing.is_none()) {
            self.apply(plan);
        }
        for (revision, (count, decision)) in mail.desired {
            self.drive(&revision, Event::Desired { count, decision });
        }
        for revision in mail.activated {
            self.drive(&revision, Event::Activated);
        }
        for revision in mail.activate {
            let known = self.held.is_none();
            if known
                && Kind::ALL
                    .iter()
                    .any(|&kind| self.revisions.contains_key(&(revision.clone(), kind)))
            {
                self.drive(&revision, Event::Activate);
            } else if self.closing.is_none() {
                self.early.insert(revision);
            }
        }
        for revision in mail.activated_since {
            self.drive(&revision, Event::Activated);
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
            for state in self.revisions.values_mut() {
                state.set_drain(plan.drain);
            }
        }
        // The first plan is the whole of it: what another gateway left and it does not name, goes.
        let left = match std::mem::replace(&mut self.is_first, false) {
            true => self.revisions.keys().cloned().collect(),
            false => Vec::new(),
        };
        let is_unnamed = |key: &&Key| !plan.revisions.contains_key(&key.0);
        for key in left.iter().filter(is_unnamed) {
            self.drive_one(key, Event::Removed);
        }
        for (revision, wanted) in plan.revisions {
            self.plan(revision, wanted);
        }
        for revision in std::mem::take(&mut self.early) {
            self.drive(&revision, Event::Activate);
        }
        self.replay();
    }

    /// Scales a revision by this plan from now on, or not at all.
    fn plan(&mut self, revision: RevisionId, wanted: Option<Arc<RevisionPlan>>) {
        let kind = wanted.as_ref().map(|wanted| Kind::of(wanted));
        for other in Kind::ALL.into_iter().filter(|other| Some(*other) != kind) {
            let key = (revision.clone(), other);
            if self.revisions.contains_key(&key) {
                self.drive_one(&key, Event::Removed);
            }
        }
        let (Some(wanted), Some(kind)) = (wanted, kind) else {
            return;
        };
        let key = (revision, kind);
        match self.revisions.get(&key) {
            Some(state) if state.follows(&wanted) => return,
            Some(_) => {}
            None => {
                let state = Scaled::new(Arc::clone(&wanted), self.drain);
                self.revisions.insert(key.clone(), state);
            }
        }
        self.drive_one(&key, Event::Plan(wanted));
    }

    fn shut_down(&mut self) {
        let graces = self.revisions.values().map(Scaled::longest_grace);
        self.closing = Some(now() + graces.max().unwrap_or_default() + SHUTDOWN_MARGIN);
        for key in self.revisions.keys().cloned().collect::<Vec<_>>() {
            self.drive_one(&key, Event::Shutdown);
        }
    }

    fn is_done(&self) -> bool {
        let nothing_left = match self.standing {
            Standing::Ours => self.revisions.is_empty(),
            Standing::Frozen => false,
            Standing::Theirs(_) => !self.revisions.values().any(Scaled::awaits_answer),
        };
        self.closing.is_some_and(|limit| nothing_left || limit <= now())
    }

    fn hear(&mut self, event: ScalerEvent) {
        if let Standing::Theirs(relay) = &self.standing {
            if let ScalerEvent::Answered { revision, answer } = event {
                // Whether it is heard or not, nobody here waits for it any more.
                let _ = relay.send(PlatformAnswer::new(&revision, answer));
                self.revisions.remove(&(revision, Kind::Replicas));
            }
            return;
        }
        if let Some(held) = &mut self.held {
            held.push(event);
            return;
        }
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
            ScalerEvent::Answered { revision, answer } => {
                if matches!(answer, Answer::Agreed { .. }) {
                    self.sink.launch(&revision, LaunchStep::Started);
                }
                (revision, Event::Answered(answer))
            }
        };
        self.drive(&revision, event);
    }

    fn tick(&mut self) {
        if !matches!(self.standing, Standing::Ours) {
            return;
        }
        let now = now();
        let due = self.due.iter().filter(|&(_, &at)| at <= now);
        for key in due.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.drive_one(&key, Event::Tick);
        }
    }

    /// Tells everything that goes by this name: what an event does not concern ignores it.
    fn drive(&mut self, revision: &RevisionId, event: Event) {
        for kind in Kind::ALL {
            self.drive_one(&(revision.clone(), kind), event.clone());
        }
    }

    /// Puts an event into a revision's state and carries out what follows, to the end.
    fn drive_one(&mut self, key: &Key, event: Event) {
        let now = now();
        let revision = &key.0;
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let Some(state) = self.revisions.get_mut(key) else {
                return;
            };
            let actions = state.step(event, now, &mut self.fresh);
            // First: whoever is told that it failed finds the cause when he looks.
            self.show(revision);
            for action in actions {
                events.extend(self.scalers.carry_out(revision, action, self.sink.as_ref()));
            }
        }
        let Some(state) = self.revisions.get(key) else {
            return;
        };
        match state.next_deadline() {
            Some(at) => self.due.insert(key.clone(), at),
            None => self.due.remove(key),
        };
        if state.is_over() {
            self.revisions.remove(key);
            self.due.remove(key);
            self.show(revision);
        }
    }

    /// Of what is there twice, that which is not leaving is shown.
    fn show(&self, revision: &RevisionId) {
        let known = Kind::ALL
            .iter()
            .filter_map(|&kind| self.revisions.get(&(revision.clone(), kind)));
        let status = known.min_by_key(|state| state.is_removed()).map(Scaled::status);
        self.status.send_if_modified(|all| {
            let same = all.get(revision) == status.as_ref();
            match status {
                _ if same => {}
                Some(status) => _ = all.insert(revision.clone(), status),
                None => _ = all.remove(revision),
            }
            !same
        });
    }
}

#[cfg(test)]
#[path = "controller_tests.rs"]
mod tests;

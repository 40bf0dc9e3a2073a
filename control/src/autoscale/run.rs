//! The autoscaler's loop: samples the data plane every 100 ms, decides every second, and passes decisions on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sluice_model::{EndpointSink, RevisionId, ScalingSource, ScalingStatus};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::reason::ScaleDecision;
use super::revision::RevisionAutoscaler;
use crate::plan::{PlanDelta, RevisionPlan};
use crate::state::StateHandle;

/// The sampling interval of revisions in use.
const PEEK: Duration = Duration::from_millis(100);

/// The bound of idle revisions that are sampled in one round, round-robin: with thousands of them a round costs no more than
/// its busy revisions. Every revision is sampled once a second.
const IDLE_PEEKS: usize = 1_000;

/// The number of revisions between two yields to other tasks of the worker thread.
const SLICE: usize = 256;

/// The interval at which what forecasts learned is written, where there is a state directory: a bin of a day. A crash costs
/// no more than that.
const SAVE: Duration = Duration::from_secs(300);

/// What the loop needs from outside besides the data plane.
pub struct Outside {
    /// The wall clock, in seconds since 1970: schedules and forecasts go by it.
    pub wall: Box<dyn Fn() -> u64 + Send + Sync>,
    /// Where forecasts outlive the process; without it they begin anew.
    pub state: Option<StateHandle>,
}

impl std::fmt::Debug for Outside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outside")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

/// Takes the autoscaler's decisions; implemented by the controller's handle.
pub trait DesiredSink: Send + Sync {
    /// Sets the desired number of instances of a revision; `reason` is the decision in one line. The number holds until the
    /// next decision, an activation that needs more, or a failed start. Called when the number changes, when a panic begins
    /// or ends, and once a second while there are requests and fewer instances than desired: an equal number may repeat.
    /// Must not block.
    fn set_desired(&self, revision: &RevisionId, desired: u32, reason: String);
}

/// A handle of a running [`AutoscaleLoop`], which ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub struct AutoscaleHandle {
    planned: watch::Sender<()>,
    pending: Arc<Pending>,
    statuses: Statuses,
}

/// The status of each revision, written by the loop.
type Statuses = Arc<Mutex<BTreeMap<RevisionId, Arc<Mutex<ScalingStatus>>>>>;

/// Changed plans and activations not yet handled. Bounded by the number of revisions.
#[derive(Debug, Default)]
struct Pending {
    plans: Mutex<BTreeMap<RevisionId, Option<Arc<RevisionPlan>>>>,
    revisions: Mutex<BTreeSet<RevisionId>>,
    /// Floors of rollouts that changed.
    floors: Mutex<BTreeMap<RevisionId, Option<u32>>>,
    /// Who waits for everything learned to be queued for the disk.
    saves: Mutex<Vec<oneshot::Sender<()>>>,
    changed: Notify,
}

impl AutoscaleHandle {
    /// Applies a change of the plan. Revisions that stay keep their samples.
    pub fn apply(&self, plan: &PlanDelta) {
        let changed = plan.revisions.iter();
        let changed = changed.map(|(id, plan)| (id.clone(), plan.clone()));
        self.pending.plans.lock().extend(changed);
        self.planned.send_replace(());
    }

    /// Reports a waiter of a revision at zero, for a decision without delay. Ignored for a revision without a plan, and for one
    /// whose desired number is above zero.
    pub fn activate(&self, revision: &RevisionId) {
        self.pending.revisions.lock().insert(revision.clone());
        self.pending.changed.notify_one();
    }

    /// Sets the least number of instances that a rollout needs of a revision, until the next call; `None` is no floor. Ignored for a
    /// revision without a plan: who needs the floor repeats it.
    pub fn set_rollout_floor(&self, revision: &RevisionId, floor: Option<u32>) {
        self.pending.floors.lock().insert(revision.clone(), floor);
        self.pending.changed.notify_one();
    }

    /// Queues everything that forecasts learned for the state directory. Resolves when it is queued, or at once when the loop
    /// has ended. A dropped future changes nothing.
    pub async fn save(&self) {
        if self.planned.is_closed() {
            return;
        }
        let (sender, saved) = oneshot::channel();
        self.pending.saves.lock().push(sender);
        self.pending.changed.notify_one();
        // An error means that the loop has ended.
        let _ = saved.await;
    }
}

impl ScalingSource for AutoscaleHandle {
    fn scaling_status(&self, revision: &RevisionId) -> Option<ScalingStatus> {
        let status = self.statuses.lock().get(revision).cloned();
        status.map(|status| status.lock().clone())
    }
}

/// The name of the document of a revision, or of a tier, in the state directory.
fn document_name(revision: &RevisionId) -> String {
    // No name has two dots in a row, and a document's name no `@`.
    let name = revision.name().replace('@', "..");
    format!("forecast.{}.{name}", revision.namespace())
}

/// The desired number of instances of each revision, as of an older gateway.
pub type Inherited = BTreeMap<RevisionId, u32>;

/// Makes a loop and its handle. `desired` must get a plan before the loop does, because decisions about new revisions follow
/// at once. Inherited instances are kept until a full window shows that they are not needed.
pub fn autoscaler(
    endpoints: Arc<dyn EndpointSink>,
    desired: Arc<dyn DesiredSink>,
    inherited: Inherited,
    outside: Outside,
) -> (AutoscaleHandle, AutoscaleLoop) {
    let (sender, planned) = watch::channel(());
    let pending = Arc::new(Pending::default());
    let handle = AutoscaleHandle {
        planned: sender,
        pending: Arc::clone(&pending),
        statuses: Statuses::default(),
    };
    let autoscale = AutoscaleLoop {
        endpoints,
        desired,
        planned,
        pending,
        watched: Vec::new(),
        statuses: Arc::clone(&handle.statuses),
        outside,
        saved_at: Duration::ZERO,
        inherited,
        turn: 0,
        origin: Instant::now(),
    };
    (handle, autoscale)
}

/// The autoscaler's loop: the one source of desired numbers.
pub struct AutoscaleLoop {
    endpoints: Arc<dyn EndpointSink>,
    desired: Arc<dyn DesiredSink>,
    planned: watch::Receiver<()>,
    pending: Arc<Pending>,
    /// Sorted by id. Boxed, so that insertion and removal move pointers.
    #[expect(
        clippy::vec_box,
        reason = "an insertion moves what follows: pointers, of which there may be 100,000"
    )]
    watched: Vec<Box<TrackedRevision>>,
    statuses: Statuses,
    outside: Outside,
    saved_at: Duration,
    /// An older gateway's numbers, until the first plan.
    inherited: Inherited,
    /// The index where the next round of idle revisions begins.
    turn: usize,
    origin: Instant,
}

struct TrackedRevision {
    id: RevisionId,
    autoscaler: RevisionAutoscaler,
}

impl AutoscaleLoop {
    /// Runs until the last handle is dropped. Cancellation at any await leaves only the present round incomplete.
    pub async fn run(mut self) {
        self.origin = Instant::now();
        let mut peek = interval_at(self.origin + PEEK, PEEK);
        // Rounds stay on multiples of the interval, so that one of them always meets the whole second.
        peek.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let pending = Arc::clone(&self.pending);
        let mut second = 0;
        loop {
            tokio::select! {
                changed = self.planned.changed() => match changed {
                    Ok(()) => self.replan().await,
                    Err(_) => return,
                },
                () = pending.changed.notified() => self.activate(),
                _ = peek.tick() => {
                    let now = self.now();
                    if now.as_secs() > second {
                        second = now.as_secs();
                        self.tick(now).await;
                    } else {
                        self.peek(now).await;
                    }
                }
            }
        }
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// Seconds since 1970.
    fn wall(&self) -> u64 {
        (self.outside.wall)()
    }

    async fn replan(&mut self) {
        self.planned.mark_unchanged();
        let plans = std::mem::take(&mut *self.pending.plans.lock());
        let (now, wall) = (self.now(), self.wall());
        let inherited = std::mem::take(&mut self.inherited);
        for (done, (id, new)) in plans.into_iter().enumerate() {
            let known = self.watched.binary_search_by(|watched| watched.id.cmp(&id));
            let at = match (known, new) {
                (Ok(at), Some(new)) => {
                    let autoscaler = &mut self.watched[at].autoscaler;
                    if *autoscaler.plan() == new {
                        continue;
                    }
                    autoscaler.replan(new, now, wall);
                    at
                }
                (Err(at), Some(new)) => {
                    let load = self.endpoints.sample(&id).unwrap_or_default();
                    let found = inherited.get(&id).copied();
                    let autoscaler = RevisionAutoscaler::new(new, &load, found, now, wall);
                    self.statuses.lock().insert(id.clone(), autoscaler.status());
                    self.watched
                        .insert(at, Box::new(TrackedRevision { id, autoscaler }));
                    at
                }
                (Ok(at), None) => {
                    let removed = self.watched.remove(at);
                    self.statuses.lock().remove(&id);
                    // What it learned is of no use to a revision of another name.
                    if let Some(state) = self.outside.state.as_ref()
                        && removed.autoscaler.is_restored
                    {
                        state.remove(&document_name(&id));
                    }
                    continue;
                }
                (Err(_), None) => continue,
            };
            self.restore(at);
            let autoscaler = &mut self.watched[at].autoscaler;
            let decision = autoscaler.decide_now(now);
            autoscaler.show();
            self.apply(at, decision);
            yield_every(done).await;
        }
    }

    fn activate(&mut self) {
        let now = self.now();
        let pending = std::mem::take(&mut *self.pending.revisions.lock());
        for id in pending {
            // A revision without a plan yet is found waiting by a later sample.
            if let Ok(at) = self.watched.binary_search_by(|w| w.id.cmp(&id)) {
                let decision = self.watched[at].autoscaler.activate(now);
                self.apply(at, decision);
            }
        }
        let floors = std::mem::take(&mut *self.pending.floors.lock());
        for (id, floor) in floors {
            let Ok(at) = self.watched.binary_search_by(|watched| watched.id.cmp(&id)) else {
                continue;
            };
            let wall = self.wall();
            if self.watched[at].autoscaler.set_rollout_floor(floor, wall) {
                let decision = self.watched[at].autoscaler.decide_now(now);
                self.watched[at].autoscaler.show();
                self.apply(at, decision);
            }
        }
        let saves = std::mem::take(&mut *self.pending.saves.lock());
        if !saves.is_empty() {
            self.save();
        }
        for saved in saves {
            // Who no longer waits has no use for it.
            let _ = saved.send(());
        }
    }

    async fn tick(&mut self, now: Duration) {
        let wall = self.wall();
        for at in 0..self.watched.len() {
            self.restore(at);
            let TrackedRevision { id, autoscaler } = &mut *self.watched[at];
            // A revision that the data plane does not have yet has no load, and gets no decision.
            if let Some(load) = self.endpoints.sample(id) {
                autoscaler.sample(load, now);
                let tick = autoscaler.tick(now, wall);
                if let Some(judgement) = tick.judgement {
                    let trust = if autoscaler.is_forecast_trusted() {
                        "trusted"
                    } else {
                        "not trusted"
                    };
                    tracing::info!(revision = %id, "forecast: over the last season {judgement}; it is {trust}");
                }
                if tick.decision.is_none()
                    && let Some(unmet) = autoscaler.unmet()
                {
                    self.desired.set_desired(id, unmet.desired, unmet.to_string());
                }
                self.apply(at, tick.decision);
                self.scale_up_now(at, now);
                self.watched[at].autoscaler.show();
            }
            yield_every(at).await;
        }
        if now.saturating_sub(self.saved_at) >= SAVE {
            self.saved_at = now;
            self.save();
        }
    }

    /// Restores what an earlier process learned, once, as soon as the state directory is this process's.
    fn restore(&mut self, at: usize) {
        let TrackedRevision { id, autoscaler } = &mut *self.watched[at];
        if autoscaler.is_restored || !autoscaler.has_forecast() {
            return;
        }
        let Some(state) = self.outside.state.as_ref().filter(|state| state.is_open()) else {
            return;
        };
        autoscaler.is_restored = true;
        let Some(document) = state.read(&document_name(id)) else {
            return;
        };
        match autoscaler.restore(&document) {
            Ok(()) => tracing::info!(revision = %id, "forecast: restored what was learned before"),
            Err(why) => {
                tracing::warn!(revision = %id, "forecast: begins anew, what was kept is unusable: {why}")
            }
        }
    }

    /// Queues what forecasts learned. One that is not restored yet would overwrite what was learned before.
    fn save(&self) {
        let Some(state) = &self.outside.state else { return };
        for TrackedRevision { id, autoscaler } in self.watched.iter().map(AsRef::as_ref) {
            if autoscaler.is_restored
                && let Some(document) = autoscaler.document()
            {
                state.write(&document_name(id), document);
            }
        }
    }

    async fn peek(&mut self, now: Duration) {
        let len = self.watched.len();
        let mut idle_peeks = IDLE_PEEKS;
        let turn = self.turn;
        for step in 0..len {
            let at = (turn + step) % len;
            if !self.watched[at].autoscaler.is_used() {
                if idle_peeks == 0 {
                    continue;
                }
                idle_peeks -= 1;
                self.turn = (at + 1) % len;
            }
            let TrackedRevision { id, autoscaler } = &mut *self.watched[at];
            if let Some(load) = self.endpoints.sample(id) {
                autoscaler.sample(load, now);
                self.scale_up_now(at, now);
            }
            yield_every(step).await;
        }
    }

    fn scale_up_now(&mut self, at: usize, now: Duration) {
        let decision = self.watched[at].autoscaler.scale_up_now(now);
        self.apply(at, decision);
    }

    fn apply(&self, at: usize, decision: Option<ScaleDecision>) {
        let Some(decision) = decision else { return };
        let TrackedRevision { id, autoscaler } = &*self.watched[at];
        let reason = decision.to_string();
        let source = decision.source().as_str();
        if autoscaler.observes() {
            tracing::info!(revision = %id, source, "observe: would scale {reason}");
            return;
        }
        tracing::info!(revision = %id, source, "scale {reason}");
        self.desired.set_desired(id, decision.desired, reason);
    }
}

async fn yield_every(done: usize) {
    if done % SLICE == SLICE - 1 {
        tokio::task::yield_now().await;
    }
}

impl std::fmt::Debug for AutoscaleLoop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AutoscaleLoop")
            .field("watched", &self.watched.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;

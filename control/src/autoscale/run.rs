//! The autoscaler's loop: samples the data plane every 100 ms, decides every second, and passes decisions on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sluice_model::{EndpointSink, RevisionId};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::reason::ScaleDecision;
use super::tracker::Tracker;
use crate::plan::{PlanDelta, RevisionPlan};

/// The sampling interval of revisions in use.
const PEEK: Duration = Duration::from_millis(100);

/// The bound of idle revisions that are sampled in one round, round-robin: with thousands of them a round costs no more than
/// its busy revisions. Every revision is sampled once a second.
const IDLE_PEEKS: usize = 1_000;

/// The number of revisions between two yields to other tasks of the worker thread.
const SLICE: usize = 256;

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
}

/// Changed plans and activations not yet handled. Bounded by the number of revisions.
#[derive(Debug, Default)]
struct Pending {
    plans: Mutex<BTreeMap<RevisionId, Option<Arc<RevisionPlan>>>>,
    revisions: Mutex<BTreeSet<RevisionId>>,
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
}

/// The desired number of instances of each revision, as of an older gateway.
pub type Inherited = BTreeMap<RevisionId, u32>;

/// Makes a loop and its handle. `desired` must get a plan before the loop does, because decisions about new revisions follow
/// at once. Inherited instances are kept until a full window shows that they are not needed.
pub fn autoscaler(
    endpoints: Arc<dyn EndpointSink>,
    desired: Arc<dyn DesiredSink>,
    inherited: Inherited,
) -> (AutoscaleHandle, AutoscaleLoop) {
    let (sender, planned) = watch::channel(());
    let pending = Arc::new(Pending::default());
    let handle = AutoscaleHandle {
        planned: sender,
        pending: Arc::clone(&pending),
    };
    let autoscale = AutoscaleLoop {
        endpoints,
        desired,
        planned,
        pending,
        watched: Vec::new(),
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
    /// An older gateway's numbers, until the first plan.
    inherited: Inherited,
    /// The index where the next round of idle revisions begins.
    turn: usize,
    origin: Instant,
}

struct TrackedRevision {
    id: RevisionId,
    plan: Arc<RevisionPlan>,
    tracker: Tracker,
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

    async fn replan(&mut self) {
        self.planned.mark_unchanged();
        let plans = std::mem::take(&mut *self.pending.plans.lock());
        let now = self.now();
        let inherited = std::mem::take(&mut self.inherited);
        for (done, (id, new)) in plans.into_iter().enumerate() {
            let known = self.watched.binary_search_by(|watched| watched.id.cmp(&id));
            let at = match (known, new) {
                (Ok(at), Some(new)) => {
                    let watched = &mut self.watched[at];
                    if watched.plan == new {
                        continue;
                    }
                    watched.tracker.replan(&watched.plan, &new, now);
                    watched.plan = new;
                    at
                }
                (Err(at), Some(new)) => {
                    let load = self.endpoints.sample(&id).unwrap_or_default();
                    let tracker = match inherited.get(&id) {
                        Some(wanted) => Tracker::after(&new, &load, *wanted, now),
                        None => Tracker::new(&new, &load, now),
                    };
                    let plan = new;
                    self.watched
                        .insert(at, Box::new(TrackedRevision { id, plan, tracker }));
                    at
                }
                (Ok(at), None) => {
                    self.watched.remove(at);
                    continue;
                }
                (Err(_), None) => continue,
            };
            let watched = &mut self.watched[at];
            let decision = watched.tracker.decide_now(&watched.plan, now);
            let watched = &self.watched[at];
            self.apply(&watched.id, decision);
            yield_every(done).await;
        }
    }

    fn activate(&mut self) {
        let now = self.now();
        let pending = std::mem::take(&mut *self.pending.revisions.lock());
        for id in pending {
            // A revision without a plan yet is found waiting by a later sample.
            if let Ok(at) = self.watched.binary_search_by(|w| w.id.cmp(&id)) {
                let watched = &mut self.watched[at];
                let decision = watched.tracker.activate(&watched.plan, now);
                self.apply(&id, decision);
            }
        }
    }

    async fn tick(&mut self, now: Duration) {
        for at in 0..self.watched.len() {
            let watched = &mut self.watched[at];
            // A revision that the data plane does not have yet has no load, and gets no decision.
            if let Some(load) = self.endpoints.sample(&watched.id) {
                watched.tracker.sample(load, now);
                let decision = watched.tracker.tick(&watched.plan, now);
                let watched = &self.watched[at];
                if decision.is_none()
                    && let Some(unmet) = watched.tracker.unmet()
                {
                    self.desired
                        .set_desired(&watched.id, unmet.desired, unmet.to_string());
                }
                self.apply(&watched.id, decision);
                self.scale_up_now(at, now);
            }
            yield_every(at).await;
        }
    }

    async fn peek(&mut self, now: Duration) {
        let len = self.watched.len();
        let mut idle_peeks = IDLE_PEEKS;
        let turn = self.turn;
        for step in 0..len {
            let at = (turn + step) % len;
            let watched = &mut self.watched[at];
            if !watched.tracker.is_used() {
                if idle_peeks == 0 {
                    continue;
                }
                idle_peeks -= 1;
                self.turn = (at + 1) % len;
            }
            if let Some(load) = self.endpoints.sample(&watched.id) {
                watched.tracker.sample(load, now);
                self.scale_up_now(at, now);
            }
            yield_every(step).await;
        }
    }

    fn scale_up_now(&mut self, at: usize, now: Duration) {
        let watched = &mut self.watched[at];
        let decision = watched.tracker.scale_up_now(&watched.plan, now);
        let watched = &self.watched[at];
        self.apply(&watched.id, decision);
    }

    fn apply(&self, revision: &RevisionId, decision: Option<ScaleDecision>) {
        let Some(decision) = decision else { return };
        let reason = decision.to_string();
        tracing::info!(%revision, "scale {reason}");
        self.desired.set_desired(revision, decision.desired, reason);
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

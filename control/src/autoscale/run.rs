//! The loop around the decisions: samples the data plane, keeps the clock, passes decisions on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sluice_model::{EndpointSink, RevisionId};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::reason::ScaleDecision;
use super::track::Tracker;
use crate::plan::{PlanDelta, RevisionPlan};

/// Between looks at revisions in use.
const PEEK: Duration = Duration::from_millis(100);

/// Revisions not in use that are looked at in one round, in turn: with thousands of them a round
/// costs what the busy ones cost, and an idle one is seen at the latest at the next whole second.
const IDLE_PEEKS: usize = 1_000;

/// Revisions handled before other tasks of this worker get a turn.
const SLICE: usize = 256;

/// Who carries decisions out.
pub trait Desired: Send + Sync {
    /// From now on the revision should have `desired` instances; `reason` is the decision in one
    /// line. Called when the number changes, when a panic begins or ends, and once a second while
    /// requests are there and fewer instances than asked for: the same again is no news. Must not
    /// block.
    fn set_desired(&self, revision: &RevisionId, desired: u32, reason: String);
}

/// Speaks to a running [`AutoscaleLoop`], which ends when the last handle is gone.
#[derive(Debug, Clone)]
pub struct AutoscaleHandle {
    planned: watch::Sender<()>,
    waiting: Arc<Waiting>,
}

/// Revisions somebody waits for, and plans that came. Bounded by the revisions there are.
#[derive(Debug, Default)]
struct Waiting {
    plans: Mutex<BTreeMap<RevisionId, Option<Arc<RevisionPlan>>>>,
    revisions: Mutex<BTreeSet<RevisionId>>,
    changed: Notify,
}

impl AutoscaleHandle {
    /// Scales like this from now on. Revisions that stay keep all that was measured of them.
    pub fn apply(&self, plan: &PlanDelta) {
        let changed = plan.revisions.iter();
        let changed = changed.map(|(id, plan)| (id.clone(), plan.clone()));
        self.waiting.plans.lock().extend(changed);
        self.planned.send_replace(());
    }

    /// Somebody waits for a revision at zero: decided at once, without a tick. Does nothing for a
    /// revision that is not planned or for which something was asked already.
    pub fn activate(&self, revision: &RevisionId) {
        self.waiting.revisions.lock().insert(revision.clone());
        self.waiting.changed.notify_one();
    }
}

/// How many instances of each revision another gateway wanted.
pub type Inherited = BTreeMap<RevisionId, u32>;

/// Makes a loop and its handle. Whoever implements [`Desired`] should know a plan before the loop
/// is given it: decisions about new revisions come at once. What another gateway wanted is not
/// taken away before a window has shown that nobody needs it.
pub fn autoscaler(
    endpoints: Arc<dyn EndpointSink>,
    desired: Arc<dyn Desired>,
    inherited: Inherited,
) -> (AutoscaleHandle, AutoscaleLoop) {
    let (sender, planned) = watch::channel(());
    let waiting = Arc::new(Waiting::default());
    let handle = AutoscaleHandle {
        planned: sender,
        waiting: Arc::clone(&waiting),
    };
    let autoscale = AutoscaleLoop {
        endpoints,
        desired,
        planned,
        waiting,
        watched: Vec::new(),
        inherited,
        turn: 0,
        origin: Instant::now(),
    };
    (handle, autoscale)
}

/// The one writer of how many instances there should be.
pub struct AutoscaleLoop {
    endpoints: Arc<dyn EndpointSink>,
    desired: Arc<dyn Desired>,
    planned: watch::Receiver<()>,
    waiting: Arc<Waiting>,
    /// By id. Boxed, so that one that comes or goes moves pointers.
    #[expect(
        clippy::vec_box,
        reason = "an insertion moves what follows: pointers, of which there may be 100,000"
    )]
    watched: Vec<Box<Watched>>,
    /// What another gateway wanted, until the first plan says of what to go on.
    inherited: Inherited,
    /// Where the next round of idle revisions begins.
    turn: usize,
    origin: Instant,
}

struct Watched {
    id: RevisionId,
    plan: Arc<RevisionPlan>,
    tracker: Tracker,
}

impl AutoscaleLoop {
    /// Runs until the last handle is gone. May be dropped at any await: nothing is half done but
    /// the round under way.
    pub async fn run(mut self) {
        self.origin = Instant::now();
        let mut peek = interval_at(self.origin + PEEK, PEEK);
        // Rounds stay on multiples of their period: one of them always meets the whole second.
        peek.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let waiting = Arc::clone(&self.waiting);
        let mut second = 0;
        loop {
            tokio::select! {
                changed = self.planned.changed() => match changed {
                    Ok(()) => self.replan().await,
                    Err(_) => return,
                },
                () = waiting.changed.notified() => self.activate(),
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
        let plans = std::mem::take(&mut *self.waiting.plans.lock());
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
                    self.watched.insert(at, Box::new(Watched { id, plan, tracker }));
                    at
                }
                (Ok(at), None) => {
                    self.watched.remove(at);
                    continue;
                }
                (Err(_), None) => continue,
            };
            let watched = &mut self.watched[at];
            let decision = watched.tracker.reconsider(&watched.plan, now);
            let watched = &self.watched[at];
            self.tell(&watched.id, decision);
            breathe(done).await;
        }
    }

    fn activate(&mut self) {
        let now = self.now();
        let waiting = std::mem::take(&mut *self.waiting.revisions.lock());
        for id in waiting {
            // One that is not planned yet is seen waiting at the next look.
            if let Ok(at) = self.watched.binary_search_by(|w| w.id.cmp(&id)) {
                let watched = &mut self.watched[at];
                let decision = watched.tracker.activate(&watched.plan, now);
                self.tell(&id, decision);
            }
        }
    }

    async fn tick(&mut self, now: Duration) {
        for at in 0..self.watched.len() {
            let watched = &mut self.watched[at];
            // A revision that the data plane has not heard of yet has no load: no decision.
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
                self.tell(&watched.id, decision);
                self.hurry(at, now);
            }
            breathe(at).await;
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
                self.hurry(at, now);
            }
            breathe(step).await;
        }
    }

    fn hurry(&mut self, at: usize, now: Duration) {
        let watched = &mut self.watched[at];
        let decision = watched.tracker.hurry(&watched.plan, now);
        let watched = &self.watched[at];
        self.tell(&watched.id, decision);
    }

    fn tell(&self, revision: &RevisionId, decision: Option<ScaleDecision>) {
        let Some(decision) = decision else { return };
        let reason = decision.to_string();
        tracing::info!(%revision, "scale {reason}");
        self.desired.set_desired(revision, decision.desired, reason);
    }
}

async fn breathe(done: usize) {
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

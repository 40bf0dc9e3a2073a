//! Live state by revision, kept across Snapshots.
//!
//! A request reads one [`Serving`]: a Snapshot with the live state of each of its revisions, both
//! behind one `Arc`, so they cannot be of different generations. A new table takes over the live
//! state of every revision that stays: throttler, health and counters survive the swap.

mod handover;
mod live;
mod serving;

#[cfg(test)]
pub(crate) mod test_kit;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use sluice_model::{
    ActivationFailure, Demand, DemandSink, EndpointSink, InstanceId, LaunchStep, Load, ManagedEndpoint,
    RevisionId, RevisionSpec, Snapshot,
};
use tokio::runtime::Handle;

pub use crate::throttle::{ActivationResult, NoObserver, RevisionObserver};
pub(crate) use handover::{Inherited, kind};
pub use live::{LiveRevision, PutOff};
pub use serving::{Serving, ServingReader};

use crate::throttle::{Closing, QueueBudget, ThrottleEnv, clock};
use crate::upkeep::UpkeepEnv;

/// Makes the observer of a revision that appears.
pub type MakeObserver = Box<dyn Fn(&RevisionSpec) -> Arc<dyn RevisionObserver> + Send + Sync>;

/// Tables above this many revisions are dropped off the request path.
const BIG: usize = 1_000;

/// All live state, and the only writer of the table that requests read.
pub struct Registry {
    current: Arc<ArcSwap<Serving>>,
    /// Removed revisions that still have instances or requests. Also serialises writers.
    leaving: Mutex<Vec<Arc<LiveRevision>>>,
    demand: Arc<dyn DemandSink>,
    make_observer: MakeObserver,
    budget: Arc<QueueBudget>,
    upkeep: UpkeepEnv,
    alive: Arc<AtomicUsize>,
    runtime: Handle,
}

impl Registry {
    /// Starts with the live state of a first Snapshot. Timers, probes and name lookups run on
    /// `runtime`.
    pub fn new(
        first: &Arc<Snapshot>,
        demand: Arc<dyn DemandSink>,
        make_observer: MakeObserver,
        runtime: Handle,
    ) -> Self {
        let settings = first.settings();
        let alive = Arc::new(AtomicUsize::new(0));
        let empty = Serving::new(Arc::clone(first), Box::default(), Arc::clone(&alive));
        let registry = Self {
            current: Arc::new(ArcSwap::from_pointee(empty)),
            leaving: Mutex::new(Vec::new()),
            demand,
            make_observer,
            budget: Arc::new(QueueBudget::new(settings.queue)),
            upkeep: UpkeepEnv::new(Arc::clone(settings)),
            alive,
            runtime,
        };
        registry.apply(first);
        registry
    }

    /// [`prepare`](Self::prepare), then [`publish`](Self::publish).
    ///
    /// There is one writer: these three are not to be called concurrently.
    pub fn apply(&self, snapshot: &Arc<Snapshot>) -> Arc<Serving> {
        let serving = self.prepare(snapshot);
        self.publish(&serving);
        serving
    }

    /// Builds the table of a Snapshot. Revisions that stay are changed in place (limits, timeouts,
    /// addresses), new ones appear with fresh state and have their names looked up and probes
    /// running when this returns; one whose kind of backend changed is replaced.
    pub fn prepare(&self, snapshot: &Arc<Snapshot>) -> Arc<Serving> {
        let leaving = self.leaving.lock();
        let settings = snapshot.settings();
        self.budget.set_totals(settings.queue);
        self.upkeep.settings.store(Arc::clone(settings));
        let current = self.current.load_full();
        let live = snapshot.revisions().iter().map(|spec| {
            let known = current.get(&spec.id).into_iter();
            let mut known = known.chain(leaving.iter().filter(|l| l.id() == &spec.id));
            if let Some(live) = known.find(|live| live.fits(spec)) {
                live.update(Arc::clone(spec), clock());
                return Arc::clone(live);
            }
            let env = ThrottleEnv {
                demand: Arc::clone(&self.demand),
                observer: (self.make_observer)(spec),
                budget: Arc::clone(&self.budget),
                runtime: self.runtime.clone(),
            };
            LiveRevision::start(Arc::clone(spec), env, self.upkeep.clone(), clock())
        });
        let live = live.collect();
        Arc::new(Serving::new(Arc::clone(snapshot), live, Arc::clone(&self.alive)))
    }

    /// Lets requests read a prepared table. Waiters of revisions that are not in it any more
    /// resolve with [`Rejection::Removed`](crate::throttle::Rejection::Removed); what is in flight
    /// on them finishes.
    pub fn publish(&self, serving: &Arc<Serving>) {
        let mut leaving = self.leaving.lock();
        for live in serving.live() {
            live.throttler().reopen();
        }
        let old = self.current.swap(Arc::clone(serving));
        for gone in old.live().iter().filter(|live| !serving.holds(live)) {
            gone.throttler().close(Closing::Removed, clock());
            leaving.push(Arc::clone(gone));
        }
        leaving.retain(|live| !serving.holds(live) && !live.throttler().is_spent());
        drop(leaving);
        if old.live().len() > BIG {
            self.runtime.spawn(drop_when_unused(old));
        }
    }

    /// The reading end for requests.
    pub fn reader(&self) -> ServingReader {
        ServingReader::new(Arc::clone(&self.current))
    }

    /// The live state of a revision in the current table.
    pub fn live(&self, revision: &RevisionId) -> Option<Arc<LiveRevision>> {
        self.current.load_full().get(revision).map(Arc::clone)
    }

    /// Revisions that are in the current table no more, while they have requests or instances left.
    /// One may have the name of its successor in the table.
    pub fn leaving(&self) -> Vec<Arc<LiveRevision>> {
        let mut leaving = self.leaving.lock();
        leaving.retain(|live| !live.throttler().is_spent());
        leaving.clone()
    }

    /// Tables not yet dropped: one, two for as long as requests hold the previous one.
    pub fn tables_alive(&self) -> usize {
        self.alive.load(Ordering::Relaxed)
    }

    /// What waits in all queues together, and may.
    pub fn budget(&self) -> &Arc<QueueBudget> {
        &self.budget
    }

    /// The drain is over: resolves every waiter with
    /// [`Rejection::Draining`](crate::throttle::Rejection::Draining), and every later arrival.
    pub fn close_all(&self) {
        let leaving = self.leaving.lock();
        let current = self.current.load_full();
        for live in current.live().iter().chain(leaving.iter()) {
            live.throttler().close(Closing::Draining, clock());
        }
    }

    /// The live states a name may mean: of the current table, then those that are leaving. A
    /// replaced revision and its successor have the same name.
    fn named(&self, revision: &RevisionId) -> Vec<Arc<LiveRevision>> {
        // Under the lock, or a revision could be missed that is just moving from one to the other.
        let leaving = self.leaving.lock();
        let current = self.current.load_full();
        let named = leaving.iter().filter(|live| live.id() == revision);
        current.get(revision).into_iter().chain(named).cloned().collect()
    }
}

impl EndpointSink for Registry {
    fn launch(&self, revision: &RevisionId, step: LaunchStep) {
        if let Some(live) = self.live(revision) {
            live.throttler().launch_step(step, clock());
        }
    }

    fn add(&self, revision: &RevisionId, endpoint: ManagedEndpoint) {
        if let Some(live) = self.named(revision).into_iter().find(|l| l.takes_instances()) {
            live.add_instance(&endpoint, clock());
        }
    }

    fn remove(&self, revision: &RevisionId, instance: InstanceId) {
        for live in self.named(revision) {
            live.throttler().remove_instance(instance, clock());
        }
        self.leaving.lock().retain(|live| !live.throttler().is_spent());
    }

    fn retire(&self, revision: &RevisionId, count: u32, to_zero: bool) -> Vec<InstanceId> {
        let mut victims = Vec::new();
        for live in self.named(revision) {
            let left = count.saturating_sub(u32::try_from(victims.len()).unwrap_or(u32::MAX));
            if left > 0 {
                victims.extend(live.throttler().retire(left, to_zero, clock()));
            }
        }
        victims
    }

    fn to_zero(&self, revision: &RevisionId) -> Option<Vec<InstanceId>> {
        // What is leaving gets nothing new: looking at it first misses nothing.
        let (current, leaving): (Vec<_>, Vec<_>) = {
            let serving = self.current.load_full();
            let named = self.named(revision).into_iter();
            named.partition(|live| serving.holds(live))
        };
        let idle = |live: &Arc<LiveRevision>| {
            let load = live.throttler().peek(clock());
            load.in_flight == 0 && load.queued == 0
        };
        if !leaving.iter().all(idle) {
            return None;
        }
        let mut victims = Vec::new();
        for live in current.iter().chain(&leaving) {
            victims.extend(live.throttler().to_zero(clock())?);
        }
        Some(victims)
    }

    fn retire_these(&self, revision: &RevisionId, instances: &[InstanceId]) {
        let named = self.named(revision);
        let mut unknown = instances.to_vec();
        for live in named {
            let known = live.throttler().retire_these(instances, clock());
            unknown.retain(|instance| !known.contains(instance));
        }
        for instance in unknown {
            let revision = revision.clone();
            self.demand.demand(Demand::Drained { revision, instance });
        }
    }

    fn end(&self, revision: &RevisionId, instances: &[InstanceId]) {
        for live in self.named(revision) {
            live.throttler().end(instances);
        }
    }

    fn fail(&self, revision: &RevisionId, failure: Arc<ActivationFailure>) {
        if let Some(live) = self.live(revision) {
            live.throttler().fail(&failure, clock());
        }
    }

    fn forgive(&self, revision: &RevisionId) {
        if let Some(live) = self.live(revision) {
            live.throttler().forgive();
        }
    }

    fn sample(&self, revision: &RevisionId) -> Option<Load> {
        let named = self.named(revision);
        named.first().map(|live| live.throttler().sample(clock()))
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

/// Whoever drops the last reference to a table pays for it. For a big one that is seen to not
/// being a request: this keeps one until it is the last.
async fn drop_when_unused(old: Arc<Serving>) {
    while Arc::strong_count(&old) > 1 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(tokio::task::spawn_blocking(move || drop(old)));
}

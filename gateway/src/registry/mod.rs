//! Registry: the routing table that requests read, with live state on its entries, and the only writer of both.
//!
//! A request reads one [`Snapshot`]: routes with the live state of each service, behind one `Arc`, so that
//! routes and live state are always of one generation. A change edits the table: services that the change does
//! not name stay the same ones, and every revision that stays keeps its throttler, health and counters.

mod inherit;
mod live;
mod page_templates;
#[cfg(test)]
mod pause_tests;
mod service;

#[cfg(test)]
pub(crate) mod test_kit;
#[cfg(test)]
mod tests;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use sluice_model::{
    ActivationFailure, Delta, Demand, DemandSink, EndpointSink, Expectation, InstanceId, LaunchStep, Load,
    ManagedEndpoint, ReplicaSink as _, RevisionId, RevisionSpec, Settings, SnapshotError, SnapshotPublisher,
};
use tokio::runtime::Handle;

pub use crate::throttle::{ActivationOutcome, NoObserver, RevisionObserver};
pub(crate) use inherit::{Inherited, backend_kind};
use live::LiveEnv;
pub use live::{LiveRevision, RetryHold};
pub use page_templates::{MAX_PAGE_BYTES, PageTemplates, check_page};
pub use service::{LiveService, Reader, Snapshot};

use crate::dns::DnsEnv;
use crate::probe::ProbeLimiter;
use crate::replicas::{ReplicaStatus, Replicas};
use crate::throttle::{Closing, ColdPhase, QueueBudget, clock};

/// Factory of the observer of a new revision.
pub type MakeObserver = Box<dyn Fn(&RevisionSpec) -> Arc<dyn RevisionObserver> + Send + Sync>;

/// Changes of more services than this leave an old table that is dropped off the request path.
const BIG: usize = 1_000;

/// Size of [`Leaving`] at which spent revisions are swept for the first time.
const SWEEP: usize = 64;

/// Removed revisions that are draining, by name.
type Leaving = HashMap<RevisionId, Vec<Arc<LiveRevision>>>;

/// All live state, and the only writer of the table that requests read.
pub struct Registry {
    reader: Reader,
    /// Serialises writers. No admission, activation or start waits for this lock.
    writer: Mutex<Writer>,
    /// Previous tables that are still referenced.
    past: Mutex<Vec<Weak<Snapshot>>>,
    /// Removed revisions that still have instances or requests. Locked for moments only: a cold start takes
    /// this lock, too.
    leaving: Mutex<Leaving>,
    env: Arc<LiveEnv>,
}

struct Writer {
    publisher: SnapshotPublisher<Arc<LiveService>>,
    /// Size of `leaving` at which the next sweep happens.
    sweep_at: usize,
}

impl Registry {
    /// A registry with an empty table. Timers, probes and name lookups of its revisions run on `runtime`.
    pub fn new(
        settings: &Arc<Settings>,
        demand: Arc<dyn DemandSink>,
        make_observer: MakeObserver,
        runtime: Handle,
    ) -> Self {
        let (publisher, reader) = SnapshotPublisher::new(Snapshot::empty(Arc::clone(settings)));
        Self {
            reader,
            writer: Mutex::new(Writer {
                publisher,
                sweep_at: SWEEP,
            }),
            past: Mutex::new(Vec::new()),
            leaving: Mutex::new(HashMap::new()),
            env: Arc::new(LiveEnv {
                demand,
                make_observer,
                budget: Arc::new(QueueBudget::new(settings.queue)),
                dns: DnsEnv::new(Arc::clone(settings)),
                probe_limiter: Arc::new(ProbeLimiter::new(clock())),
                runtime,
                replicas: None,
            }),
        }
    }

    /// Shares the slots of Knative revisions with a concurrency limit with other replicas. Before the first table.
    #[must_use]
    pub fn sharing(mut self, replicas: Arc<Replicas>) -> Self {
        if let Some(env) = Arc::get_mut(&mut self.env) {
            env.replicas = Some(replicas);
        }
        self
    }

    /// The other replicas, while slots are shared with them.
    pub fn replicas(&self) -> Vec<ReplicaStatus> {
        let replicas = self.env.replicas.as_ref().filter(|replicas| replicas.is_wanted());
        replicas.map(|replicas| replicas.status()).unwrap_or_default()
    }

    /// Edits the table and publishes it: one swap, in which routes and live state change together. The cost
    /// depends on the size of the change, not on that of the table.
    ///
    /// Revisions that stay are changed in place (limits, timeouts, addresses); new ones get fresh state, with
    /// name lookups and probes running when this returns; a revision whose kind of backend changed is replaced.
    /// Waiters of removed revisions resolve with [`Rejection::Removed`](crate::throttle::Rejection::Removed);
    /// their requests in flight run to their end.
    ///
    /// # Errors
    /// The change contradicts the table, which stays as it is.
    pub fn apply(&self, delta: &Delta) -> Result<Arc<Snapshot>, SnapshotError> {
        let mut writer = self.writer.lock();
        let current = self.reader.load();
        let mut revived = Vec::new();
        // Those that more than one service of the change may list, each with the live state of its first service.
        let mut shared: HashMap<&RevisionId, Option<Arc<LiveRevision>>> = HashMap::new();
        for service in &delta.services {
            let others = service.revisions.iter().filter(|spec| spec.service != service.id);
            shared.extend(others.map(|spec| (&spec.id, None)));
        }
        let edited = current.edit(delta, |service| {
            let before = current.service(&service.id);
            let revisions = service.revisions.iter().map(|spec| {
                if let Some(live) = shared.get(&spec.id).and_then(Option::as_ref) {
                    return Arc::clone(live);
                }
                let known = self.known(&current, spec);
                if let Some(live) = known.as_ref().filter(|live| self.is_leaving(live)) {
                    revived.push(Arc::clone(live));
                }
                let live = known.unwrap_or_else(|| self.start(spec));
                if let Some(first) = shared.get_mut(&spec.id) {
                    *first = Some(Arc::clone(&live));
                }
                live
            });
            let revisions = revisions.collect();
            Arc::new(LiveService::new(service, revisions, before.map(|e| &*e.live)))
        });
        let next = edited?;
        // The edit cannot fail any more: live state is changed only from here on.
        self.env.budget.set_totals(delta.settings.queue);
        self.env.dns.settings.store(Arc::clone(&delta.settings));
        let entries = delta.services.iter().filter_map(|s| next.service(&s.id));
        for entry in entries {
            for (spec, live) in entry.service.revisions.iter().zip(entry.live.revisions()) {
                live.update(Arc::clone(spec), clock());
                // Of a revision that several services list, the one that it belongs to pauses it.
                if spec.service == entry.service.id {
                    live.pause(entry.service.paused, clock());
                }
            }
        }
        let gone = gone(delta, &current, &next);
        for live in &revived {
            live.reopen();
        }
        // A lookup by name finds the live state at every moment: a removed revision is in `leaving` before it
        // is out of the table, a revived one stays in `leaving` until it is in the table again.
        for live in &gone {
            let mut leaving = self.leaving.lock();
            leaving
                .entry(live.id().clone())
                .or_default()
                .push(Arc::clone(live));
        }
        let (next, old) = writer.publisher.publish(next);
        for live in &gone {
            live.close(Closing::Removed, clock());
        }
        for live in revived.iter().chain(&gone) {
            self.forget(live, |live| live.is_spent() || holds(&next, live));
        }
        self.sweep(&mut writer.sweep_at);
        let mut past = self.past.lock();
        past.retain(|table| table.strong_count() > 0);
        past.push(Arc::downgrade(&old));
        drop(past);
        drop(current);
        if delta.services.len() + delta.removed.len() > BIG {
            self.env.runtime.spawn(drop_when_unused(old));
        }
        Ok(next)
    }

    /// Reads the files of all waiting pages again. A file that cannot be read leaves its last content in place; the
    /// errors are returned.
    pub fn reread_pages(&self) -> Vec<String> {
        let table = self.reader.load();
        let pages = table.entries().filter_map(|entry| entry.live.pages());
        pages.flat_map(|pages| pages.reread()).collect()
    }

    /// The live state that can serve a revision from now on: from the table, or from the removed ones.
    fn known(&self, current: &Snapshot, spec: &RevisionSpec) -> Option<Arc<LiveRevision>> {
        let here = live(current, &spec.id).filter(|live| live.fits(spec));
        here.cloned().or_else(|| {
            let leaving = self.leaving.lock();
            let mut named = leaving.get(&spec.id)?.iter();
            named.find(|live| live.fits(spec)).cloned()
        })
    }

    fn is_leaving(&self, live: &Arc<LiveRevision>) -> bool {
        let leaving = self.leaving.lock();
        let named = leaving.get(live.id());
        named.is_some_and(|named| named.iter().any(|l| Arc::ptr_eq(l, live)))
    }

    /// Drops a live state from `leaving`, if `done`.
    fn forget(&self, live: &Arc<LiveRevision>, done: impl Fn(&Arc<LiveRevision>) -> bool) {
        let mut leaving = self.leaving.lock();
        if let Entry::Occupied(mut named) = leaving.entry(live.id().clone()) {
            named.get_mut().retain(|l| !(Arc::ptr_eq(l, live) && done(l)));
            if named.get().is_empty() {
                named.remove();
            }
        }
    }

    /// Sweeps spent revisions out of `leaving`: the registry gets no event when their last request ends.
    /// Amortised, so that a change does not pay for all of `leaving`.
    fn sweep(&self, at: &mut usize) {
        let mut leaving = self.leaving.lock();
        if leaving.len() > *at {
            drop_spent(&mut leaving);
            *at = leaving.len() * 2 + SWEEP;
        }
    }

    fn start(&self, spec: &Arc<RevisionSpec>) -> Arc<LiveRevision> {
        LiveRevision::start(Arc::clone(spec), Arc::clone(&self.env), clock())
    }

    /// The reader for requests.
    pub fn reader(&self) -> Reader {
        self.reader.clone()
    }

    /// The live state of a revision in the current table.
    pub fn live(&self, revision: &RevisionId) -> Option<Arc<LiveRevision>> {
        live(&self.reader.peek(), revision).cloned()
    }

    /// Removed revisions that still have requests or instances. One may have the same name as its successor in
    /// the table.
    pub fn leaving(&self) -> Vec<Arc<LiveRevision>> {
        let mut leaving = self.leaving.lock();
        drop_spent(&mut leaving);
        let current = self.reader.peek();
        let all = leaving.values().flatten();
        all.filter(|live| !holds(&current, live)).cloned().collect()
    }

    /// Number of tables not yet dropped: one, or two while requests hold the previous one.
    pub fn tables_alive(&self) -> usize {
        let mut past = self.past.lock();
        past.retain(|table| table.strong_count() > 0);
        1 + past.len()
    }

    /// The gateway-wide queue budget.
    pub fn budget(&self) -> &Arc<QueueBudget> {
        &self.env.budget
    }

    /// Ends the drain: rejects every waiter and every later arrival with
    /// [`Rejection::Draining`](crate::throttle::Rejection::Draining).
    pub fn close_all(&self) {
        let _no_other = self.writer.lock();
        for live in self.all_live() {
            live.close(Closing::Draining, clock());
        }
    }

    /// The live states with the tier that is scaled by this id, as [`named`](Self::named) has them.
    fn tiers(&self, scaled: &RevisionId) -> Vec<(Arc<LiveRevision>, u8)> {
        let named = self.named(&scaled.revision()).into_iter();
        let tiers = named.filter_map(|live| live.tier_of(scaled).map(|tier| (live, tier)));
        tiers.collect()
    }

    /// The live state of the current table, with the tier that is scaled by this id.
    fn serving(&self, scaled: &RevisionId) -> Option<(Arc<LiveRevision>, u8)> {
        let live = self.live(&scaled.revision())?;
        let tier = live.tier_of(scaled)?;
        Some((live, tier))
    }

    /// All live states of a name: that of the current table, then removed ones. A replaced revision and its
    /// successor have the same name.
    fn named(&self, revision: &RevisionId) -> Vec<Arc<LiveRevision>> {
        // Under the lock: a revision that moves between table and `leaving` is in both for a moment.
        let leaving = self.leaving.lock();
        let current = live(&self.reader.peek(), revision).cloned();
        let left = leaving.get(revision).into_iter().flatten();
        let left = left.filter(|live| current.as_ref().is_none_or(|now| !Arc::ptr_eq(now, live)));
        let left: Vec<_> = left.cloned().collect();
        current.into_iter().chain(left).collect()
    }
}

fn drop_spent(leaving: &mut Leaving) {
    leaving.retain(|_, named| {
        named.retain(|live| !live.is_spent());
        !named.is_empty()
    });
}

/// The live state of a revision in a table.
fn live<'s>(snapshot: &'s Snapshot, revision: &RevisionId) -> Option<&'s Arc<LiveRevision>> {
    let (entry, slot) = snapshot.revision(revision)?;
    entry.live.revisions().get(slot)
}

/// Whether a table has this very live state.
fn holds(snapshot: &Snapshot, state: &Arc<LiveRevision>) -> bool {
    live(snapshot, state.id()).is_some_and(|now| Arc::ptr_eq(now, state))
}

/// Live states that a change removes from the table.
fn gone(delta: &Delta, current: &Snapshot, next: &Snapshot) -> Vec<Arc<LiveRevision>> {
    let touched = delta.services.iter().map(|service| &service.id);
    let touched = touched.chain(&delta.removed);
    let before = touched.filter_map(|id| current.service(id));
    let before = before.flat_map(|entry| entry.live.revisions());
    let gone = before.filter(|live| !holds(next, live));
    // Of two services that list a revision each one names it.
    let mut known = HashSet::new();
    gone.filter(|live| known.insert(Arc::as_ptr(live)))
        .cloned()
        .collect()
}

impl EndpointSink for Registry {
    fn launch(&self, revision: &RevisionId, step: LaunchStep) {
        if let Some((live, tier)) = self.serving(revision) {
            live.throttler().launch_step(tier, step, clock());
        }
    }

    fn add(&self, revision: &RevisionId, endpoint: ManagedEndpoint) {
        let mut tiers = self.tiers(revision).into_iter();
        let takes = |(live, tier): &(Arc<LiveRevision>, u8)| live.spec().backend_of(*tier).is_started();
        if let Some((live, tier)) = tiers.find(takes) {
            live.add_instance(tier, &endpoint, clock());
        }
    }

    fn remove(&self, revision: &RevisionId, instance: InstanceId) {
        for live in self.named(&revision.revision()) {
            if let Some(throttler) = live.awake() {
                throttler.remove_instance(instance, clock());
            }
            self.forget(&live, |live| live.is_spent());
        }
    }

    fn retire(&self, revision: &RevisionId, count: u32, to_zero: bool) -> Vec<InstanceId> {
        let mut victims = Vec::new();
        for (live, tier) in self.tiers(revision) {
            let left = count.saturating_sub(u32::try_from(victims.len()).unwrap_or(u32::MAX));
            if let (1.., Some(throttler)) = (left, live.awake()) {
                victims.extend(throttler.retire(tier, left, to_zero, clock()));
            }
        }
        victims
    }

    fn to_zero(&self, revision: &RevisionId) -> Option<Vec<InstanceId>> {
        // Removed revisions get no new request: checking them first misses none.
        let (current, leaving): (Vec<_>, Vec<_>) = {
            let current = self.reader.load();
            let tiers = self.tiers(revision).into_iter();
            tiers.partition(|(live, _)| holds(&current, live))
        };
        let idle = |(live, _): &(Arc<LiveRevision>, u8)| {
            let load = live.peek(clock());
            load.in_flight == 0 && load.queued == 0
        };
        if !leaving.iter().all(idle) {
            return None;
        }
        let mut victims = Vec::new();
        for (live, tier) in current.iter().chain(&leaving) {
            victims.extend(live.throttler().to_zero(*tier, clock())?);
        }
        Some(victims)
    }

    fn retire_these(&self, revision: &RevisionId, instances: &[InstanceId]) {
        let named = self.named(&revision.revision());
        let mut unknown = instances.to_vec();
        for live in named {
            if let Some(throttler) = live.awake() {
                let known = throttler.retire_these(instances, clock());
                unknown.retain(|instance| !known.contains(instance));
            }
        }
        for instance in unknown {
            let revision = revision.clone();
            self.env.demand.demand(Demand::Drained { revision, instance });
        }
    }

    fn end(&self, revision: &RevisionId, instances: &[InstanceId]) {
        for live in self.named(&revision.revision()) {
            if let Some(throttler) = live.awake() {
                throttler.end(instances);
            }
        }
    }

    fn fail(&self, revision: &RevisionId, failure: Arc<ActivationFailure>) {
        if let Some((live, tier)) = self.serving(revision) {
            live.throttler().fail(tier, &failure, clock());
        }
    }

    fn forgive(&self, revision: &RevisionId) {
        if let Some((live, tier)) = self.serving(revision)
            && let Some(throttler) = live.awake()
        {
            throttler.forgive(tier);
        }
    }

    fn sample(&self, revision: &RevisionId) -> Option<Load> {
        let tiers = self.tiers(revision);
        tiers.first().map(|(live, tier)| live.sample(*tier, clock()))
    }

    fn expect(&self, revision: &RevisionId) -> Expectation {
        let Some(live) = self.live(revision) else {
            return Expectation::Ready;
        };
        match live.throttler().visit(Duration::ZERO, clock()) {
            None => Expectation::Ready,
            Some(cold) => match cold.phase {
                ColdPhase::Failed { failure, retry_after } => {
                    Expectation::Failed(Arc::new(ActivationFailure {
                        retry_after,
                        ..ActivationFailure::clone(&failure)
                    }))
                }
                ColdPhase::Queued | ColdPhase::Starting | ColdPhase::Booting => Expectation::Starting,
            },
        }
    }

    fn hold(&self, revision: &RevisionId, needed: bool) {
        if needed {
            if let Some(live) = self.live(revision) {
                live.throttler().hold(true, clock());
            }
            return;
        }
        // Also those that left: a change may remove a revision together with the need for it. A dormant one is held by
        // nobody.
        for throttler in self.named(revision).iter().filter_map(|live| live.awake()) {
            throttler.hold(false, clock());
        }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

/// Drops a big table on a blocking thread. The thread that drops the last reference to a table pays for the
/// drop: this task keeps a reference until it is the last one, so that no request pays.
async fn drop_when_unused(old: Arc<Snapshot>) {
    while Arc::strong_count(&old) > 1 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(tokio::task::spawn_blocking(move || drop(old)));
}

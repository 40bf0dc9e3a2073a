//! The task that carries rollouts on: looks once a second at those that are open, and publishes what the engine says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use sluice_model::{OutcomeSource, Outcomes, RevisionId, ScalingSource, ServiceId, StatusSource};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::engine::{self, Event, Rules};
use super::{Rollout, RolloutState, Seen, Side};
use crate::autoscale::AutoscaleHandle;
use crate::release::{EditError, HistoryHandle, Release, ServiceHistory};

/// The interval of looks.
const TICK: Duration = Duration::from_secs(1);

/// The interval at which evidence is kept without a change: what a crash costs.
const KEEP: Duration = Duration::from_secs(5);

/// How long the floor of a revision stays that got all of the share at once: until the autoscaler's usual window knows the load.
const LINGER: Duration = Duration::from_secs(60);

/// What may be scaled, and how far; implemented by the autoscaler's handle.
pub trait FloorSink: ScalingSource {
    /// As [`AutoscaleHandle::set_rollout_floor`].
    fn set_rollout_floor(&self, revision: &RevisionId, floor: Option<u32>);
}

impl FloorSink for AutoscaleHandle {
    fn set_rollout_floor(&self, revision: &RevisionId, floor: Option<u32>) {
        Self::set_rollout_floor(self, revision, floor);
    }
}

/// What the task needs from outside.
pub struct Surroundings {
    /// Where histories are read and changed.
    pub histories: HistoryHandle,
    /// What requests came to.
    pub outcomes: Arc<dyn OutcomeSource>,
    /// Gets floors, and knows what may be scaled.
    pub autoscale: Arc<dyn FloorSink>,
    /// Knows failed starts.
    pub status: Arc<dyn StatusSource>,
    /// The wall clock, in seconds since 1970.
    pub wall: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl std::fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Surroundings").finish_non_exhaustive()
    }
}

/// How a rollout ended, as the metric has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Completed,
    Failed,
    Aborted,
    Superseded,
}

/// The names of ends; `End as usize` is the index.
const ENDS: [&str; 4] = ["completed", "failed", "aborted", "superseded"];

/// What rollouts did, for metrics. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct RolloutStatuses(Arc<Statuses>);

#[derive(Debug, Default)]
struct Statuses {
    /// By service, the candidate's part of the share in percent.
    steps: Mutex<BTreeMap<ServiceId, f64>>,
    ended: [AtomicU64; ENDS.len()],
}

impl RolloutStatuses {
    /// By service with a rollout, open or the last one, the newer revision's part of the share in percent.
    pub fn steps(&self) -> Vec<(ServiceId, f64)> {
        let steps = self.0.steps.lock();
        steps
            .iter()
            .map(|(service, percent)| (service.clone(), *percent))
            .collect()
    }

    /// How many rollouts ended so far, by result.
    pub fn ended(&self) -> Vec<(&'static str, u64)> {
        let counts = self.0.ended.iter().map(|count| count.load(Ordering::Relaxed));
        ENDS.into_iter().zip(counts).collect()
    }

    fn end(&self, end: End) {
        self.0.ended[end as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// The task. Nothing of it runs while no rollout is open.
#[derive(Debug)]
pub struct RolloutTask {
    outside: Surroundings,
    statuses: RolloutStatuses,
    open: BTreeMap<ServiceId, Open>,
    /// Services whose rollout is to begin.
    due: BTreeSet<ServiceId>,
    lingering: Vec<Lingering>,
}

/// A floor that ends by itself, or when its revision has less than everything.
#[derive(Debug)]
struct Lingering {
    end: Instant,
    service: ServiceId,
    revision: RevisionId,
}

/// An open rollout as this task knows it: newer than the published one by evidence and time alone.
#[derive(Debug)]
struct Open {
    rollout: Rollout,
    /// Counters at the last look: of the candidate and of the settled revision.
    counted: Option<(Outcomes, Outcomes)>,
    looked: Instant,
    kept: Instant,
    /// The candidate, while it has a floor.
    floored: Option<RevisionId>,
}

impl RolloutTask {
    /// A task, and what it tells metrics.
    pub fn new(outside: Surroundings) -> (Self, RolloutStatuses) {
        let statuses = RolloutStatuses::default();
        let task = Self {
            outside,
            statuses: statuses.clone(),
            open: BTreeMap::new(),
            due: BTreeSet::new(),
            lingering: Vec::new(),
        };
        (task, statuses)
    }

    /// Runs until the future is dropped, which leaves every rollout as it was published last.
    pub async fn run(mut self) {
        let histories = self.outside.histories.clone();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            let is_idle = self.open.is_empty() && self.lingering.is_empty();
            tokio::select! {
                changes = histories.changed() => self.read(changes),
                _ = tick.tick(), if !is_idle => self.look().await,
                // One after the other, so that those that are open are looked at meanwhile.
                () = std::future::ready(()), if !self.due.is_empty() => self.begin_one().await,
            }
        }
    }

    /// Takes over what was published: by this task, by files and by commands.
    fn read(&mut self, changes: BTreeSet<ServiceId>) {
        for service in changes {
            let Some(release) = self.outside.histories.release(&service) else {
                self.close(&service, End::Superseded);
                self.statuses.0.steps.lock().remove(&service);
                self.due.remove(&service);
                self.drop_floors(|floor| floor.service == service);
                continue;
            };
            self.take_over(&service, &release);
            // Who has less than everything by now needs no more than the autoscaler says.
            let settled = release.history.settled.as_deref().unwrap_or_default();
            let is_whole = release.follows_latest > 0 && release.history.pinned(release.digest).is_none();
            self.drop_floors(|floor| {
                let of = floor.revision.name().split('@').next();
                floor.service == service && !(is_whole && of == Some(settled))
            });
            if engine::wanted(&release).is_some() || engine::give_up(&release).is_some() {
                self.due.insert(service);
            }
        }
    }

    /// Begins a rollout that is due.
    async fn begin_one(&mut self) {
        let Some(service) = self.due.pop_first() else {
            return;
        };
        let now = (self.outside.wall)();
        let begin = move |release: &Release| {
            let next = engine::begin(release, now).or_else(|| engine::give_up(release));
            next.ok_or_else(|| EditError("the rollout is no longer due".to_owned()))
        };
        // Its publication is read in its turn.
        if let Err(error) = self.outside.histories.edit(&service, begin).await {
            tracing::debug!(%service, "rollout: not begun: {error}");
        }
    }

    fn drop_floors(&mut self, is_over: impl Fn(&Lingering) -> bool) {
        for floor in self.lingering.extract_if(.., |floor| is_over(floor)) {
            self.outside.autoscale.set_rollout_floor(&floor.revision, None);
        }
    }

    /// Makes what is known of a service's rollout equal to what was published, but for newer evidence.
    fn take_over(&mut self, service: &ServiceId, release: &Release) {
        let published = release.history.rollout.as_ref();
        match published {
            Some(rollout) => {
                _ = self
                    .statuses
                    .0
                    .steps
                    .lock()
                    .insert(service.clone(), rollout.percent())
            }
            None => _ = self.statuses.0.steps.lock().remove(service),
        }
        if let Some(open) = self.open.get_mut(service) {
            match published {
                Some(rollout) if is_same(rollout, &open.rollout) => match end_of(rollout.state) {
                    Some(end) => self.finish(service, release, end),
                    None => open.take_over(rollout),
                },
                _ => self.finish(service, release, End::Superseded),
            }
        }
        if let Some(rollout) = published.filter(|rollout| rollout.state.is_open())
            && !self.open.contains_key(service)
        {
            tracing::info!(service = %service, revision = rollout.candidate, "rollout: begins, or goes on");
            let now = Instant::now();
            let open = Open {
                rollout: rollout.clone(),
                counted: None,
                looked: now,
                kept: now,
                floored: None,
            };
            self.open.insert(service.clone(), open);
        }
    }

    /// Ends what is known of a rollout whose end was published. Who has all of the share at once keeps a floor for a while.
    fn finish(&mut self, service: &ServiceId, release: &Release, end: End) {
        let Some(open) = self.open.get_mut(service) else {
            return;
        };
        let fleet = open.rollout.fleet;
        let winner = match end {
            End::Completed => open.floored.take(),
            // What the candidate had is the settled one's again, at once.
            End::Failed | End::Aborted | End::Superseded => release
                .history
                .settled
                .as_deref()
                .and_then(|settled| id_of(release, settled))
                .map(|settled| release.scaled_as(&settled)),
        };
        if let Some(winner) = winner.filter(|_| fleet > 0) {
            self.outside.autoscale.set_rollout_floor(&winner, Some(fleet));
            self.lingering.push(Lingering {
                end: Instant::now() + LINGER,
                service: service.clone(),
                revision: winner,
            });
        }
        self.close(service, end);
    }

    fn close(&mut self, service: &ServiceId, end: End) {
        let Some(open) = self.open.remove(service) else {
            return;
        };
        self.statuses.end(end);
        if let Some(candidate) = open.floored {
            self.outside.autoscale.set_rollout_floor(&candidate, None);
        }
        let result = ENDS[end as usize];
        tracing::info!(service = %service, revision = open.rollout.candidate, result, "rollout: ended");
    }

    /// One look at every open rollout.
    async fn look(&mut self) {
        let now = Instant::now();
        self.drop_floors(|floor| floor.end <= now);
        let services: Vec<ServiceId> = self.open.keys().cloned().collect();
        for service in services {
            let Some(release) = self.outside.histories.release(&service) else {
                continue;
            };
            self.tick(&service, &release, now).await;
        }
    }

    async fn tick(&mut self, service: &ServiceId, release: &Release, now: Instant) {
        let Some(open) = self.open.get_mut(service) else {
            return;
        };
        let elapsed = now.saturating_duration_since(open.looked);
        open.looked = now;
        let history = &release.history;
        let over = history
            .over
            .as_ref()
            .filter(|over| over.declared == release.digest);
        if over.is_some_and(|over| over.paused || over.pinned.is_some()) {
            // An operator's word on the whole service: neither time nor requests count.
            open.counted = None;
            return;
        }
        let settled = history.settled.as_deref().unwrap_or_default();
        if settled == open.rollout.candidate {
            // The files no longer list the revision that had the rest.
            let state = open.rollout.state;
            let why = Some("no other revision is listed".to_owned());
            open.rollout
                .enter(RolloutState::Completed, (self.outside.wall)(), why);
            self.publish(service, state, Some(Event::Completed)).await;
            return;
        }
        let (Some(candidate), Some(base)) =
            (id_of(release, &open.rollout.candidate), id_of(release, settled))
        else {
            return;
        };
        let (Some(of_candidate), Some(of_base)) = (
            self.outside.outcomes.outcomes(service, &candidate),
            self.outside.outcomes.outcomes(service, &base),
        ) else {
            return;
        };
        let (candidate, base) = (release.scaled_as(&candidate), release.scaled_as(&base));
        let scaling = self.outside.autoscale.scaling_status(&candidate);
        let scaled = scaling.filter(|scaling| scaling.observed.is_none());
        let status = self.outside.status.revision_status(&candidate);
        let base_scaled = self.outside.autoscale.scaling_status(&base);
        let base_scaled = base_scaled.filter(|scaling| scaling.observed.is_none());
        let base_status = self.outside.status.revision_status(&base);
        let counted = open.counted.take();
        let (before, base_before) = counted.unwrap_or_else(|| (of_candidate.clone(), of_base.clone()));
        let seen = Seen {
            candidate: Side {
                most: match &scaled {
                    Some(scaling) => scaling.wants.max_scale,
                    None => Some(of_candidate.endpoints),
                },
                ..Side::since(&of_candidate, &before)
            },
            base: Side {
                wanted: match (&base_scaled, &base_status) {
                    (Some(_), Some(status)) if status.last_failure.is_some() => None,
                    (Some(_), Some(status)) => Some(status.desired),
                    _ => Some(of_base.endpoints),
                },
                ..Side::since(&of_base, &base_before)
            },
            start_failure: status.and_then(|status| status.last_failure),
        };
        open.counted = Some((of_candidate, of_base));
        let rules = Rules {
            policy: release.policy.as_deref(),
            base: settled,
            of: release.follows_latest,
        };
        let state = open.rollout.state;
        let event = open.rollout.tick(rules, &seen, elapsed, (self.outside.wall)());
        if scaled.is_some() && open.rollout.state.is_open() {
            let floor = open.rollout.floor(rules, &seen);
            self.outside.autoscale.set_rollout_floor(&candidate, Some(floor));
            open.floored = Some(candidate);
        }
        let is_due = now.saturating_duration_since(open.kept) >= KEEP;
        if event.is_none() && !is_due {
            return;
        }
        self.publish(service, state, event).await;
    }

    /// Publishes the rollout as it is known here, if the published one is still in this state.
    async fn publish(&mut self, service: &ServiceId, state: RolloutState, event: Option<Event>) {
        let Some(open) = self.open.get_mut(service) else {
            return;
        };
        open.kept = Instant::now();
        let rollout = open.rollout.clone();
        if let Some(event) = event {
            tell(service, event, &rollout);
        }
        let change = move |release: &Release| changed(release, rollout, state);
        if let Err(error) = self.outside.histories.edit(service, change).await {
            tracing::debug!(service = %service, "rollout: {error}");
            // A command or the files came first.
            let release = self.outside.histories.release(service);
            if let (Some(open), Some(release)) = (self.open.get_mut(service), release)
                && let Some(published) = &release.history.rollout
                && is_same(published, &open.rollout)
            {
                open.take_over(published);
            }
        }
    }
}

impl Open {
    /// Takes over what was published of the same rollout: all but the evidence and the time, which are newer here.
    fn take_over(&mut self, published: &Rollout) {
        let own = std::mem::replace(&mut self.rollout, published.clone());
        self.rollout.fleet = self.rollout.fleet.max(own.fleet);
        self.rollout.ready |= own.ready;
        if own.step == published.step {
            self.rollout.spent = self.rollout.spent.max(own.spent);
        }
        if own.evidence.base.requests >= published.evidence.base.requests {
            self.rollout.evidence = own.evidence;
        }
    }
}

/// The history with this rollout, if it is still the one that was ticked.
fn changed(release: &Release, rollout: Rollout, state: RolloutState) -> Result<ServiceHistory, EditError> {
    let published = release.history.rollout.as_ref();
    if !published.is_some_and(|published| is_same(published, &rollout) && published.state == state) {
        return Err(EditError("the rollout was changed meanwhile".to_owned()));
    }
    let mut history = (*release.history).clone();
    if rollout.state == RolloutState::Completed {
        history.settled = Some(rollout.candidate.clone());
    }
    history.rollout = Some(rollout);
    Ok(history)
}

fn is_same(one: &Rollout, other: &Rollout) -> bool {
    one.candidate == other.candidate && one.started == other.started
}

fn end_of(state: RolloutState) -> Option<End> {
    match state {
        RolloutState::Running | RolloutState::Paused => None,
        RolloutState::Completed => Some(End::Completed),
        RolloutState::Failed => Some(End::Failed),
        RolloutState::Aborted => Some(End::Aborted),
    }
}

fn id_of(release: &Release, name: &str) -> Option<RevisionId> {
    release.revisions.iter().find(|id| id.name() == name).cloned()
}

fn tell(service: &ServiceId, event: Event, rollout: &Rollout) {
    let revision = &rollout.candidate;
    let percent = rollout.percent();
    let reason = rollout.reason.as_deref().unwrap_or_default();
    match event {
        Event::Ready => tracing::info!(service = %service, revision, "rollout: ready for the first time"),
        Event::Step => {
            tracing::info!(service = %service, revision, percent, "rollout: step {}", rollout.step)
        }
        Event::Waits if reason.is_empty() => {}
        Event::Waits => tracing::info!(service = %service, revision, percent, "rollout: {reason}"),
        Event::Completed => tracing::info!(service = %service, revision, "rollout: all of the share"),
        Event::Failed => tracing::warn!(service = %service, revision, "rollout: rolled back: {reason}"),
    }
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;

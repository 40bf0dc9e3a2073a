//! All revisions of one kind: their state machines and deadlines.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_model::{RevisionId, RevisionStatus};

use super::events::{IdSource, RevisionEvent};
use crate::plan::RevisionPlan;

/// The state machine of one revision: events in, actions out. No I/O, no clock, no randomness.
pub(super) trait RevisionMachine {
    /// Events of this kind of revision; those that both kinds have are among them.
    type Event: From<RevisionEvent>;
    /// Actions of this kind of revision.
    type Action;

    /// A revision without instances. To begin, it gets its plan with [`RevisionEvent::Plan`].
    fn new(plan: Arc<RevisionPlan>, drain: Duration) -> Self;

    /// Applies an event and returns the actions that follow, in their order.
    fn step(&mut self, event: Self::Event, now: Instant, ids: &mut IdSource) -> Vec<Self::Action>;

    /// The latest instant for the next [`RevisionEvent::Tick`].
    fn next_deadline(&self) -> Option<Instant>;

    /// Sets the drain timeout of instances that are retired from now on.
    fn set_drain(&mut self, drain: Duration);

    /// Whether the revision was removed and nothing of it is left.
    fn is_over(&self) -> bool;

    /// Whether the revision was removed: it only has to end.
    fn is_removed(&self) -> bool;

    /// Whether an instance runs, or is about to be started: what the revision needs is held above zero.
    fn runs(&self) -> bool;

    /// Whether the revision follows this very plan already.
    fn follows(&self, plan: &RevisionPlan) -> bool;

    /// The revision as status and admin API show it.
    fn status(&self) -> RevisionStatus;
}

/// The revisions of one kind.
#[derive(Debug)]
pub(super) struct Fleet<M> {
    machines: BTreeMap<RevisionId, M>,
    /// The next deadline of revisions that have one.
    due: BTreeMap<RevisionId, Instant>,
}

impl<M> Default for Fleet<M> {
    fn default() -> Self {
        Self {
            machines: BTreeMap::new(),
            due: BTreeMap::new(),
        }
    }
}

impl<M: RevisionMachine> Fleet<M> {
    pub(super) fn is_empty(&self) -> bool {
        self.machines.is_empty()
    }

    pub(super) fn contains(&self, revision: &RevisionId) -> bool {
        self.machines.contains_key(revision)
    }

    pub(super) fn get(&self, revision: &RevisionId) -> Option<&M> {
        self.machines.get(revision)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&RevisionId, &M)> {
        self.machines.iter()
    }

    pub(super) fn names(&self) -> Vec<RevisionId> {
        self.machines.keys().cloned().collect()
    }

    pub(super) fn insert(&mut self, revision: RevisionId, machine: M) {
        self.machines.insert(revision, machine);
    }

    pub(super) fn remove(&mut self, revision: &RevisionId) {
        self.machines.remove(revision);
        self.due.remove(revision);
    }

    pub(super) fn set_drain(&mut self, drain: Duration) {
        for machine in self.machines.values_mut() {
            machine.set_drain(drain);
        }
    }

    /// Makes the revision follow a plan; `false` when it does already. Its event is the caller's to give.
    pub(super) fn plan(&mut self, revision: &RevisionId, plan: &Arc<RevisionPlan>, drain: Duration) -> bool {
        if self.get(revision).is_some_and(|machine| machine.follows(plan)) {
            return false;
        }
        if !self.contains(revision) {
            self.insert(revision.clone(), M::new(Arc::clone(plan), drain));
        }
        true
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.due.values().copied().min()
    }

    /// Revisions whose deadline has passed.
    pub(super) fn due(&self, now: Instant) -> Vec<RevisionId> {
        let due = self.due.iter().filter(|&(_, &at)| at <= now);
        due.map(|(revision, _)| revision.clone()).collect()
    }

    pub(super) fn forget_deadlines(&mut self) {
        self.due.clear();
    }

    /// Applies an event to a revision, if this kind has it, and carries out all that follows. `show` publishes the
    /// revision's status: before the actions, because a waiter that is failed by one finds the cause there.
    pub(super) fn drive(
        &mut self,
        revision: &RevisionId,
        event: M::Event,
        now: Instant,
        ids: &mut IdSource,
        show: impl Fn(&Self),
        mut carry_out: impl FnMut(M::Action) -> Option<M::Event>,
    ) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let Some(machine) = self.machines.get_mut(revision) else {
                return;
            };
            let actions = machine.step(event, now, ids);
            show(self);
            for action in actions {
                events.extend(carry_out(action));
            }
        }
        let Some(machine) = self.get(revision) else {
            return;
        };
        if machine.is_over() {
            self.remove(revision);
            show(self);
            return;
        }
        match machine.next_deadline() {
            Some(at) => self.due.insert(revision.clone(), at),
            None => self.due.remove(revision),
        };
    }
}

//! The queue of statuses to be written: which Ingress, and what, now. Pure.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::acks::{AckBook, Served, Verdict};
use super::objects::IngressStatus;
use super::status::{Addresses, is_ready, next};
use crate::ingress::IngressOutcome;
use crate::object_name::ObjectName;

/// The pause after the first refusal of a status.
const MIN_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause between attempts to write a status that is refused.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// A status to be written.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) name: ObjectName,
    pub(super) uid: Arc<str>,
    pub(super) status: IngressStatus,
}

/// The newest outcome of an Ingress.
#[derive(Debug)]
struct Newest {
    outcome: IngressOutcome,
    served: Served,
    /// The version that was written as ready, by this replica or by the leader before it. This Ready stands: it is not
    /// taken back because a replica joins, reconnects or falls behind.
    standing: Option<Served>,
    /// Refusals of its status in a row.
    refusals: u32,
    /// Whether this leader has not looked at the Ingress yet: a Ready that it finds is the former leader's.
    is_new: bool,
}

/// The newest outcomes, and which of them are to be looked at.
#[derive(Debug, Default)]
pub(super) struct StatusQueue {
    book: AckBook,
    /// Kept by replicas that do not lead as well: the next leader knows them all.
    newest: HashMap<ObjectName, Newest>,
    /// To be looked at.
    waiting: BTreeSet<ObjectName>,
    /// Being written.
    busy: HashSet<ObjectName>,
    /// Not acknowledged by all.
    unsettled: BTreeSet<ObjectName>,
    /// When somebody will be late.
    timers: BTreeSet<(Instant, ObjectName)>,
}

impl StatusQueue {
    /// This replica leads, and knows the other ones.
    pub(super) fn begin(&mut self, now: Instant) {
        self.book.begin(now);
        self.waiting.extend(self.newest.keys().cloned());
    }

    /// This replica does not lead any more.
    pub(super) fn end(&mut self) {
        self.book.end();
        self.timers.clear();
        self.unsettled.clear();
        for newest in self.newest.values_mut() {
            newest.standing = None;
            newest.is_new = true;
        }
    }

    /// An outcome was published.
    pub(super) fn publish(&mut self, outcome: IngressOutcome, served: Served, now: Instant) {
        let name = outcome.object.name.clone();
        self.book.serve(&name, served.clone(), now);
        let before = self.newest.remove(&name);
        let before = before.filter(|before| before.served.uid == served.uid);
        let newest = Newest {
            outcome,
            served,
            refusals: before.as_ref().map_or(0, |before| before.refusals),
            is_new: before.as_ref().is_none_or(|before| before.is_new),
            standing: before.and_then(|before| before.standing),
        };
        self.newest.insert(name.clone(), newest);
        self.waiting.insert(name);
    }

    /// These other replicas are ready now.
    pub(super) fn ready(&mut self, names: &BTreeSet<String>, now: Instant) {
        self.book.ready(names, now);
        self.waiting.extend(self.unsettled.iter().cloned());
    }

    /// A replica has connected.
    pub(super) fn joined(&mut self, connection: u64, replica: &str, recipe: u32) {
        self.book.joined(connection, replica, recipe);
    }

    /// A replica acknowledges.
    pub(super) fn acknowledged(
        &mut self,
        connection: u64,
        replica: &str,
        acks: Vec<Served>,
        gone: &[String],
    ) {
        let touched = self.book.acknowledged(connection, replica, acks, gone);
        let unsettled = touched.into_iter().filter(|name| self.unsettled.contains(name));
        self.waiting.extend(unsettled);
    }

    /// A connection has ended.
    pub(super) fn left(&mut self, connection: u64, replica: &str) {
        self.book.left(connection, replica);
    }

    /// A write has ended; one that failed is tried again.
    pub(super) fn written(&mut self, name: ObjectName, is_done: bool) {
        self.busy.remove(&name);
        if let Some(newest) = self.newest.get_mut(&name).filter(|_| is_done) {
            newest.refusals = 0;
        }
        if !is_done {
            self.waiting.insert(name);
        }
    }

    /// The API server refuses the status of an Ingress: it is tried again after a while, by itself, so that others are
    /// written meanwhile. Returns whether it is the first time in a row.
    pub(super) fn refused(&mut self, name: ObjectName, now: Instant) -> bool {
        self.busy.remove(&name);
        let Some(newest) = self.newest.get_mut(&name) else {
            return false;
        };
        let pause = MIN_PAUSE.saturating_mul(2u32.saturating_pow(newest.refusals));
        newest.refusals = newest.refusals.saturating_add(1);
        let is_first = newest.refusals == 1;
        self.timers.insert((now + pause.min(MAX_PAUSE), name));
        is_first
    }

    /// Statuses are other ones than they were, perhaps by somebody else: they are looked at again after a while, since
    /// whoever writes them may do so again.
    pub(super) fn changed(&mut self, names: BTreeSet<ObjectName>, now: Instant) {
        let known = names.into_iter().filter(|name| self.newest.contains_key(name));
        self.timers.extend(known.map(|name| (now + MIN_PAUSE, name)));
    }

    /// When [`take`](Self::take) has to be called though nothing happens.
    pub(super) fn timer(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Forgets Ingresses that are gone.
    pub(super) fn retain(&mut self, is_there: impl Fn(&ObjectName) -> bool) {
        let gone = self.newest.keys().filter(|name| !is_there(name));
        for name in gone.cloned().collect::<Vec<_>>() {
            self.forget(&name);
        }
    }

    fn forget(&mut self, name: &ObjectName) {
        self.newest.remove(name);
        self.unsettled.remove(name);
        self.book.forget(name);
    }

    /// The next status to be written, which has to be [`written`](Self::written) before the same Ingress comes again.
    /// `seen` has the statuses as the API server has them, `clock` is the time for conditions.
    pub(super) fn take(
        &mut self,
        seen: &HashMap<ObjectName, IngressStatus>,
        addresses: &Addresses,
        now: Instant,
        clock: &str,
    ) -> Option<Write> {
        while self.timers.first().is_some_and(|(at, _)| *at <= now) {
            let due = self.timers.pop_first();
            self.waiting.extend(due.map(|(_, name)| name));
        }
        loop {
            let name = self
                .waiting
                .iter()
                .find(|name| !self.busy.contains(*name))
                .cloned()?;
            self.waiting.remove(&name);
            // An Ingress that is gone has no status to be written.
            let Some(seen) = seen.get(&name) else {
                self.forget(&name);
                continue;
            };
            let Some(status) = self.look(&name, seen, addresses, now, clock) else {
                continue;
            };
            self.busy.insert(name.clone());
            let uid = self.newest.get(&name)?.outcome.object.uid.clone();
            return Some(Write { name, uid, status });
        }
    }

    fn look(
        &mut self,
        name: &ObjectName,
        seen: &IngressStatus,
        addresses: &Addresses,
        now: Instant,
        clock: &str,
    ) -> Option<IngressStatus> {
        let newest = self.newest.get_mut(name)?;
        let is_ready = is_ready(seen, newest.served.generation);
        if std::mem::take(&mut newest.is_new) && is_ready {
            newest.standing = Some(newest.served.clone());
        }
        if newest.outcome.problem.is_some() {
            newest.standing = None;
            self.unsettled.remove(name);
            return next(&newest.outcome, &[], seen, addresses, clock);
        }
        let late = match self.book.verdict(name, now) {
            Verdict::Served => {
                newest.standing = Some(newest.served.clone());
                self.unsettled.remove(name);
                return next(&newest.outcome, &[], seen, addresses, clock);
            }
            Verdict::Waiting { late, until } => {
                self.unsettled.insert(name.clone());
                self.timers.extend(until.map(|until| (until, name.clone())));
                late
            }
        };
        let stands = is_ready && newest.standing.as_ref() == Some(&newest.served);
        // Before somebody is late nothing is written: the status of a former generation says so by its generation.
        match stands || late.is_empty() {
            true => None,
            false => next(&newest.outcome, &late, seen, addresses, clock),
        }
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;

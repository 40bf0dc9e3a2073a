//! The FIFO queue of waiters of one revision, indexed by expiry, too.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use sluice_model::ServiceId;

use super::arrival::QueueTicket;
use super::budget::{Account, EnterResult, Reservation};

/// A queued request. `W` is the shell's handle of its waiter.
#[derive(Debug)]
pub(crate) struct QueuedRequest<W> {
    pub(crate) waiter: W,
    pub(crate) ticket: QueueTicket,
    entered: Instant,
    expires: Instant,
}

impl<W> QueuedRequest<W> {
    /// Handle and ticket, the time spent in the queue added.
    pub(crate) fn into_parts(mut self, now: Instant) -> (W, QueueTicket) {
        self.ticket.queued += now.saturating_duration_since(self.entered);
        (self.waiter, self.ticket)
    }
}

/// A waiter whose expiry has passed; a longer bound may apply by now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Due {
    pub(crate) seq: u64,
    pub(crate) waited: Duration,
    pub(crate) deadline: Option<Instant>,
}

/// FIFO by arrival: an ordered map rather than a ring buffer, because clients leave from the middle and a
/// failed-over request comes back to its place in the order.
#[derive(Debug)]
pub(crate) struct Queue<W> {
    entries: BTreeMap<u64, QueuedRequest<W>>,
    expiry: BTreeSet<(Instant, u64)>,
    bytes: u64,
    /// Number of passive waiters.
    passive: usize,
    /// Waiters that a tier answered with 429: they wait for another tier.
    spilled: BTreeSet<u64>,
    account: Account,
}

impl<W> Queue<W> {
    pub(crate) fn new(account: Account) -> Self {
        Self {
            entries: BTreeMap::new(),
            expiry: BTreeSet::new(),
            bytes: 0,
            passive: 0,
            spilled: BTreeSet::new(),
            account,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of passive waiters.
    pub(crate) fn passive(&self) -> usize {
        self.passive
    }

    /// The passive waiters, the oldest first; visits the queue only if it has one.
    pub(crate) fn passive_seqs(&self) -> Vec<u64> {
        if self.passive == 0 {
            return Vec::new();
        }
        let passive = self.entries.iter().filter(|(_, e)| e.ticket.arrival.passive);
        passive.map(|(seq, _)| *seq).collect()
    }

    /// Waiters for another tier than one that answered 429, the oldest first.
    pub(crate) fn spilled(&self) -> &BTreeSet<u64> {
        &self.spilled
    }

    /// The oldest waiter for whichever tier serves. Visits waiters for another tier, of which there are few.
    pub(crate) fn oldest_unspilled(&self) -> Option<u64> {
        let mut seqs = self.entries.keys();
        seqs.find(|seq| !self.spilled.contains(seq)).copied()
    }

    /// Since when the oldest waiter waits that is for whichever tier serves.
    pub(crate) fn oldest_since(&self) -> Option<Instant> {
        self.since(self.oldest_unspilled()?)
    }

    /// Since when the youngest waiter waits.
    pub(crate) fn youngest_since(&self) -> Option<Instant> {
        self.since(*self.entries.last_key_value()?.0)
    }

    fn since(&self, seq: u64) -> Option<Instant> {
        let entry = self.entries.get(&seq)?;
        entry.entered.checked_sub(entry.ticket.queued)
    }

    /// How many waiters are before this one; no more than `most` are counted.
    pub(crate) fn ahead(&self, seq: u64, most: usize) -> usize {
        self.entries.range(..seq).take(most).count()
    }

    pub(crate) fn oldest(&self) -> Option<&QueueTicket> {
        self.entries.first_key_value().map(|(_, e)| &e.ticket)
    }

    pub(crate) fn ticket(&self, seq: u64) -> Option<&QueueTicket> {
        self.entries.get(&seq).map(|e| &e.ticket)
    }

    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.expiry.first().map(|(at, _)| *at)
    }

    /// Takes space in the gateway-wide budget; to be followed by [`push`](Self::push) when the result is
    /// [`Taken`](EnterResult::Taken).
    pub(crate) fn enter(&self, bytes: u64, reservation: Option<Reservation>) -> EnterResult {
        self.account.enter(bytes, reservation)
    }

    /// Evicts the youngest waiter and moves its space to `reservation`; `None` when no eviction is needed.
    pub(crate) fn evict_youngest(&mut self, reservation: &mut Reservation) -> Option<QueuedRequest<W>> {
        let (&seq, youngest) = self.entries.last_key_value()?;
        let gives = self.account.cede(youngest.ticket.arrival.bytes, reservation);
        if gives { self.take(seq) } else { None }
    }

    /// Accounts waiters to this service from now on.
    pub(crate) fn set_service(&mut self, service: &ServiceId) {
        self.account.set_service(service);
    }

    pub(crate) fn push(&mut self, waiter: W, ticket: QueueTicket, expires: Instant, now: Instant) {
        let seq = ticket.seq;
        self.bytes += ticket.arrival.bytes;
        self.passive += usize::from(ticket.arrival.passive);
        self.expiry.insert((expires, seq));
        if ticket.refused_tiers() != 0 {
            self.spilled.insert(seq);
        }
        let entry = QueuedRequest {
            waiter,
            ticket,
            entered: now,
            expires,
        };
        let before = self.entries.insert(seq, entry);
        debug_assert!(before.is_none(), "a request waits once");
    }

    pub(crate) fn remove(&mut self, seq: u64) -> Option<QueuedRequest<W>> {
        let entry = self.take(seq)?;
        self.account.leave(entry.ticket.arrival.bytes);
        Some(entry)
    }

    pub(crate) fn pop(&mut self) -> Option<QueuedRequest<W>> {
        let seq = *self.entries.first_key_value()?.0;
        self.remove(seq)
    }

    /// The waiter whose expiry passed first, if any.
    pub(crate) fn due(&self, now: Instant) -> Option<Due> {
        let (at, seq) = *self.expiry.first()?;
        if at > now {
            return None;
        }
        let entry = self.entries.get(&seq)?;
        Some(Due {
            seq,
            waited: entry.ticket.queued + now.saturating_duration_since(entry.entered),
            deadline: entry.ticket.arrival.deadline,
        })
    }

    /// Changes the expiry of a waiter.
    pub(crate) fn postpone(&mut self, seq: u64, expires: Instant) {
        if let Some(entry) = self.entries.get_mut(&seq) {
            self.expiry.remove(&(entry.expires, seq));
            entry.expires = expires;
            self.expiry.insert((expires, seq));
        }
    }

    /// Removes a waiter from the queue; its space in the budget stays taken.
    fn take(&mut self, seq: u64) -> Option<QueuedRequest<W>> {
        let entry = self.entries.remove(&seq)?;
        self.expiry.remove(&(entry.expires, seq));
        self.bytes -= entry.ticket.arrival.bytes;
        self.passive -= usize::from(entry.ticket.arrival.passive);
        self.spilled.remove(&seq);
        Some(entry)
    }

    #[cfg(test)]
    pub(crate) fn check(&self) {
        assert_eq!(self.entries.len(), self.expiry.len());
        let bytes: u64 = self.entries.values().map(|e| e.ticket.arrival.bytes).sum();
        assert_eq!(bytes, self.bytes);
        let passive = self.entries.values().filter(|e| e.ticket.arrival.passive);
        assert_eq!(passive.count(), self.passive);
        let spilled = self.entries.iter().filter(|(_, e)| e.ticket.refused_tiers() != 0);
        assert!(spilled.map(|(seq, _)| seq).eq(&self.spilled));
        assert!(
            self.entries
                .iter()
                .all(|(seq, e)| self.expiry.contains(&(e.expires, *seq)))
        );
    }
}

impl<W> Drop for Queue<W> {
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}

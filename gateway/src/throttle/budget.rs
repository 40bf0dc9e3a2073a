//! The gateway-wide queue budget, shared fairly by the services that wait.
//!
//! While there is space, every arrival gets it. Once the budget is exhausted, an arrival of a service below its
//! fair share (the total divided by the number of services that wait) still gets a place: the youngest waiter
//! of the longest queue of the service with the highest usage is evicted. An arrival of a service at or above
//! its share is rejected.
//!
//! **Locks:** a throttler's lock may be held while the budget's is taken, never the other way round, and no
//! thread holds two throttlers' locks. So a throttler whose arrival finds the budget full only gets the key of
//! the queue to evict from; after the throttler released its lock, [`RevisionThrottler::evict_for`] moves the
//! evicted waiter's space into a [`Reservation`], which is the arrival's alone, and the arrival comes back with
//! the reservation. Space is never counted twice and never left uncounted, so the totals hold at every instant
//! in between, too.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use sluice_model::{QueueTotals, ServiceId};

use super::accounting::{QueueAccounting, QueueKey, QueueUsage, SpaceDecision, SpaceRequest};
use super::shell::RevisionThrottler;

/// Counts waiters and their bytes over all revisions, by service, and decides which requests may wait.
///
/// Only held requests touch it, never the warm path.
#[derive(Debug)]
pub struct QueueBudget {
    state: Mutex<BudgetState>,
}

#[derive(Debug)]
struct BudgetState {
    accounting: QueueAccounting,
    queues: HashMap<QueueKey, Weak<RevisionThrottler>>,
    next_key: u64,
}

impl QueueBudget {
    /// An empty budget with these totals.
    pub fn new(totals: QueueTotals) -> Self {
        Self {
            state: Mutex::new(BudgetState {
                accounting: QueueAccounting::new(totals),
                queues: HashMap::new(),
                next_key: 0,
            }),
        }
    }

    /// Changes the totals. Present waiters go on waiting, and are evicted at most one for one.
    pub fn set_totals(&self, totals: QueueTotals) {
        self.state.lock().accounting.set_totals(totals);
    }

    /// Waiters and bytes now, reservations included.
    pub fn used(&self) -> QueueTotals {
        let QueueUsage { depth, bytes } = self.state.lock().accounting.used();
        QueueTotals { depth, bytes }
    }

    /// The throttler of a queue that [`EnterResult::NeedsEviction`] named; `None` when the throttler is gone.
    pub(crate) fn owner(&self, queue: QueueKey) -> Option<Arc<RevisionThrottler>> {
        self.state.lock().queues.get(&queue)?.upgrade()
    }

    /// Number of services with usage.
    #[cfg(test)]
    pub(crate) fn services(&self) -> usize {
        self.state.lock().accounting.services()
    }
}

/// Result of a request to wait.
#[derive(Debug)]
pub(crate) enum EnterResult {
    /// The space is taken.
    Taken,
    /// The request may wait once the youngest waiter of the named queue was evicted for it.
    NeedsEviction(Reservation, QueueKey),
    /// The request must not wait.
    Full,
}

/// One queue's account in the budget. Its owner accounts for every waiter that comes and goes.
pub(crate) struct Account {
    budget: Arc<QueueBudget>,
    service: ServiceId,
    key: QueueKey,
}

impl Account {
    pub(crate) fn open(budget: Arc<QueueBudget>, service: ServiceId, owner: Weak<RevisionThrottler>) -> Self {
        let mut state = budget.state.lock();
        let key = QueueKey(state.next_key);
        state.next_key += 1;
        state.queues.insert(key, owner);
        drop(state);
        Self { budget, service, key }
    }

    #[cfg(test)]
    pub(crate) fn key(&self) -> QueueKey {
        self.key
    }

    /// Takes space for a waiter, with the reservation of an earlier [`EnterResult::NeedsEviction`], if any.
    pub(crate) fn enter(&self, bytes: u64, mut reservation: Option<Reservation>) -> EnterResult {
        let mut state = self.budget.state.lock();
        let decision = state.accounting.decide(SpaceRequest {
            service: &self.service,
            bytes,
            reservation: reservation.as_ref().map(|r| r.held).unwrap_or_default(),
        });
        match decision {
            SpaceDecision::Fits => {
                if let Some(reservation) = &mut reservation {
                    reservation.give_back(&mut state);
                }
                state
                    .accounting
                    .add(&self.service, Some(self.key), QueueUsage::one(bytes));
                EnterResult::Taken
            }
            SpaceDecision::Evict(queue) => {
                let reservation = reservation.take().unwrap_or_else(|| Reservation {
                    budget: Arc::clone(&self.budget),
                    service: self.service.clone(),
                    wanted: bytes,
                    held: QueueUsage::default(),
                });
                EnterResult::NeedsEviction(reservation, queue)
            }
            SpaceDecision::Refused => EnterResult::Full,
        }
    }

    /// Releases the space of a waiter.
    pub(crate) fn leave(&self, bytes: u64) {
        let mut state = self.budget.state.lock();
        state
            .accounting
            .remove(&self.service, Some(self.key), QueueUsage::one(bytes));
    }

    /// Moves the space of a waiter to `reservation`; `false`, and nothing moved, when the arrival needs no
    /// space any more or this service is not above its share any more.
    pub(crate) fn cede(&self, bytes: u64, reservation: &mut Reservation) -> bool {
        let mut state = self.budget.state.lock();
        let gives = state.accounting.may_evict_from(&self.service, reservation.want());
        if gives {
            let place = QueueUsage::one(bytes);
            state.accounting.remove(&self.service, Some(self.key), place);
            state.accounting.add(&reservation.service, None, place);
            reservation.held.depth += place.depth;
            reservation.held.bytes += place.bytes;
        }
        gives
    }

    /// Accounts this queue, waiters included, to another service from now on.
    pub(crate) fn set_service(&mut self, service: &ServiceId) {
        if self.service != *service {
            let mut state = self.budget.state.lock();
            state.accounting.transfer(self.key, &self.service, service);
            self.service = service.clone();
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.budget.state.lock().queues.remove(&self.key);
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account")
            .field("service", &self.service)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// Space of evicted waiters that is reserved for one arrival. It is accounted to the arrival's service at once;
/// dropping it releases the rest.
#[must_use = "dropping it gives the reservation back"]
pub(crate) struct Reservation {
    budget: Arc<QueueBudget>,
    service: ServiceId,
    wanted: u64,
    held: QueueUsage,
}

impl Reservation {
    fn want(&self) -> SpaceRequest<'_> {
        SpaceRequest {
            service: &self.service,
            bytes: self.wanted,
            reservation: self.held,
        }
    }

    fn give_back(&mut self, state: &mut BudgetState) {
        let held = std::mem::take(&mut self.held);
        if !held.is_nothing() {
            state.accounting.remove(&self.service, None, held);
        }
    }

    #[cfg(test)]
    pub(crate) fn held(&self) -> QueueUsage {
        self.held
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // Most reservations were taken and are empty.
        if !self.held.is_nothing() {
            let budget = Arc::clone(&self.budget);
            self.give_back(&mut budget.state.lock());
        }
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation")
            .field("service", &self.service)
            .field("wanted", &self.wanted)
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}

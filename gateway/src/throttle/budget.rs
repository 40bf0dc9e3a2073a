//! The bound on all queues together, shared fairly by the services that wait.
//!
//! While there is room everybody gets it. Once there is none, a service that holds less than its
//! equal share (the total over the services that wait) still gets a place: the youngest waiter of
//! the longest queue of the service that holds most gives way. Whoever holds its share or more is
//! refused.
//!
//! **Locks:** a throttler's lock may be held while the budget's is taken, never the other way
//! round, and nobody holds two throttlers' locks. So the throttler that an arrival finds full only
//! learns *whose* waiter has to go; with its lock given back, [`RevisionThrottler::evict_for`] displaces that waiter
//! into a [`Reservation`], which is the arrival's alone, and the arrival comes back with it. A place is
//! never counted twice and never counted not at all, so the totals hold at every instant in
//! between, too.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use sluice_model::{QueueTotals, ServiceId};

use super::accounting::{QueueAccounting, QueueKey, QueueUsage, SpaceDecision, SpaceRequest};
use super::shell::RevisionThrottler;

/// Counts waiters and their bytes over all revisions, by service, and says who may wait.
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
    /// An empty one.
    pub fn new(totals: QueueTotals) -> Self {
        Self {
            state: Mutex::new(BudgetState {
                accounting: QueueAccounting::new(totals),
                queues: HashMap::new(),
                next_key: 0,
            }),
        }
    }

    /// Changes the bounds. Who waits already goes on waiting, and is displaced at most one for one.
    pub fn set_totals(&self, totals: QueueTotals) {
        self.state.lock().accounting.set_totals(totals);
    }

    /// Waiters and bytes now; places on their way from one waiter to another count.
    pub fn used(&self) -> QueueTotals {
        let QueueUsage { depth, bytes } = self.state.lock().accounting.used();
        QueueTotals { depth, bytes }
    }

    /// Whom [`EnterResult::NeedsEviction`] named; `None` when it is gone.
    pub(crate) fn owner(&self, queue: QueueKey) -> Option<Arc<RevisionThrottler>> {
        self.state.lock().queues.get(&queue)?.upgrade()
    }

    /// Services that hold something.
    #[cfg(test)]
    pub(crate) fn services(&self) -> usize {
        self.state.lock().accounting.services()
    }
}

/// Whether a request may wait.
#[derive(Debug)]
pub(crate) enum EnterResult {
    /// It has a place.
    Taken,
    /// It may once the named queue's youngest waiter gave way to it.
    NeedsEviction(Reservation, QueueKey),
    /// It may not.
    Full,
}

/// One queue's side of the budget. Its owner books every waiter that comes and goes.
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

    /// Takes a place, with what was given up for it, if it was crowded before.
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

    /// Gives a waiter's place back.
    pub(crate) fn leave(&self, bytes: u64) {
        let mut state = self.budget.state.lock();
        state
            .accounting
            .remove(&self.service, Some(self.key), QueueUsage::one(bytes));
    }

    /// Gives a waiter's place to `room`; false, and nothing given, when the arrival does not need
    /// it any more or this service is not above its share any more.
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

    /// Counts for another service from now on, waiters included.
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

/// What displaced waiters gave up for one arrival. It counts for the arrival's service at once;
/// dropping it gives back what is left.
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
        // Most are: what was in it was taken.
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

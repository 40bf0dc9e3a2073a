//! The bound on all queues together, shared fairly by the services that wait.
//!
//! While there is room everybody gets it. Once there is none, a service that holds less than its
//! equal share (the total over the services that wait) still gets a place: the youngest waiter of
//! the longest queue of the service that holds most gives way. Whoever holds its share or more is
//! refused.
//!
//! **Locks:** a throttler's lock may be held while the budget's is taken, never the other way
//! round, and nobody holds two throttlers' locks. So the throttler that an arrival finds full only
//! learns *whose* waiter has to go; with its lock given back, [`RevisionThrottler::make_room`] displaces that waiter
//! into a [`Room`], which is the arrival's alone, and the arrival comes back with it. A place is
//! never counted twice and never counted not at all, so the totals hold at every instant in
//! between, too.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use sluice_model::{QueueTotals, ServiceId};

use super::ledger::{Decision, Held, Ledger, QueueKey, Want};
use super::shell::RevisionThrottler;

/// Counts waiters and their bytes over all revisions, by service, and says who may wait.
///
/// Only held requests touch it, never the warm path.
#[derive(Debug)]
pub struct QueueBudget {
    books: Mutex<Books>,
}

#[derive(Debug)]
struct Books {
    ledger: Ledger,
    queues: HashMap<QueueKey, Weak<RevisionThrottler>>,
    next_key: u64,
}

impl QueueBudget {
    /// An empty one.
    pub fn new(totals: QueueTotals) -> Self {
        Self {
            books: Mutex::new(Books {
                ledger: Ledger::new(totals),
                queues: HashMap::new(),
                next_key: 0,
            }),
        }
    }

    /// Changes the bounds. Who waits already goes on waiting, and is displaced at most one for one.
    pub fn set_totals(&self, totals: QueueTotals) {
        self.books.lock().ledger.set_totals(totals);
    }

    /// Waiters and bytes now; places on their way from one waiter to another count.
    pub fn used(&self) -> QueueTotals {
        let Held { depth, bytes } = self.books.lock().ledger.used();
        QueueTotals { depth, bytes }
    }

    /// Whom [`Entry::Crowded`] named; `None` when it is gone.
    pub(crate) fn owner(&self, queue: QueueKey) -> Option<Arc<RevisionThrottler>> {
        self.books.lock().queues.get(&queue)?.upgrade()
    }

    /// Services that hold something.
    #[cfg(test)]
    pub(crate) fn services(&self) -> usize {
        self.books.lock().ledger.services()
    }
}

/// Whether a request may wait.
#[derive(Debug)]
pub(crate) enum Entry {
    /// It has a place.
    Taken,
    /// It may once the named queue's youngest waiter gave way to it.
    Crowded(Room, QueueKey),
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
        let mut books = budget.books.lock();
        let key = QueueKey(books.next_key);
        books.next_key += 1;
        books.queues.insert(key, owner);
        drop(books);
        Self { budget, service, key }
    }

    #[cfg(test)]
    pub(crate) fn key(&self) -> QueueKey {
        self.key
    }

    /// Takes a place, with what was given up for it, if it was crowded before.
    pub(crate) fn enter(&self, bytes: u64, mut room: Option<Room>) -> Entry {
        let mut books = self.budget.books.lock();
        let decision = books.ledger.decide(Want {
            service: &self.service,
            bytes,
            room: room.as_ref().map(|r| r.held).unwrap_or_default(),
        });
        match decision {
            Decision::Fits => {
                if let Some(room) = &mut room {
                    room.give_back(&mut books);
                }
                books.ledger.add(&self.service, Some(self.key), Held::one(bytes));
                Entry::Taken
            }
            Decision::Displace(queue) => {
                let room = room.take().unwrap_or_else(|| Room {
                    budget: Arc::clone(&self.budget),
                    service: self.service.clone(),
                    wanted: bytes,
                    held: Held::default(),
                });
                Entry::Crowded(room, queue)
            }
            Decision::Refused => Entry::Full,
        }
    }

    /// Gives a waiter's place back.
    pub(crate) fn leave(&self, bytes: u64) {
        let mut books = self.budget.books.lock();
        books
            .ledger
            .remove(&self.service, Some(self.key), Held::one(bytes));
    }

    /// Gives a waiter's place to `room`; false, and nothing given, when the arrival does not need
    /// it any more or this service is not above its share any more.
    pub(crate) fn give_way(&self, bytes: u64, room: &mut Room) -> bool {
        let mut books = self.budget.books.lock();
        let gives = books.ledger.gives_way(&self.service, room.want());
        if gives {
            let place = Held::one(bytes);
            books.ledger.remove(&self.service, Some(self.key), place);
            books.ledger.add(&room.service, None, place);
            room.held.depth += place.depth;
            room.held.bytes += place.bytes;
        }
        gives
    }

    /// Counts for another service from now on, waiters included.
    pub(crate) fn set_service(&mut self, service: &ServiceId) {
        if self.service != *service {
            let mut books = self.budget.books.lock();
            books.ledger.transfer(self.key, &self.service, service);
            self.service = service.clone();
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.budget.books.lock().queues.remove(&self.key);
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
#[must_use = "dropping it gives the room back"]
pub(crate) struct Room {
    budget: Arc<QueueBudget>,
    service: ServiceId,
    wanted: u64,
    held: Held,
}

impl Room {
    fn want(&self) -> Want<'_> {
        Want {
            service: &self.service,
            bytes: self.wanted,
            room: self.held,
        }
    }

    fn give_back(&mut self, books: &mut Books) {
        let held = std::mem::take(&mut self.held);
        if !held.is_nothing() {
            books.ledger.remove(&self.service, None, held);
        }
    }

    #[cfg(test)]
    pub(crate) fn held(&self) -> Held {
        self.held
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // Most are: what was in it was taken.
        if !self.held.is_nothing() {
            let budget = Arc::clone(&self.budget);
            self.give_back(&mut budget.books.lock());
        }
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room")
            .field("service", &self.service)
            .field("wanted", &self.wanted)
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}

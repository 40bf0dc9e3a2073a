//! Slots of revisions with a concurrency limit, shared by the replicas of a cluster: which replica owns which endpoints, and
//! the messages between them. The leases themselves are the throttlers' (`throttle/lease.rs`).
//!
//! The endpoints are dealt out by rendezvous among the replicas that serve: a *view* of them. Replicas see the cluster change
//! at different moments, so a view takes effect in two steps. A replica whose view changes gives up at once what it does not
//! own any more, and announces the view to every other replica together with the slots it holds of that one's endpoints. It
//! owns what is new to it once every other replica has announced the same view, as an answer to its own announcement: then
//! none acts as the former owner any more, and all that is in flight is counted. What it owned before, it goes on owning.
//!
//! A throttler that begins later (a revision wakes, or comes back) asks every replica that is connected what it holds of that
//! revision, and owns nothing of it before all have answered.
//!
//! A replica that cannot be reached answers no announcement: endpoints that move wait for it, and slots that it holds are not
//! free, until it is back or its Pod is gone. Such slots are lost for a while, never doubled.
//!
//! **Invariant:** at no time do two replicas own an endpoint.

mod exchange;
mod peer;
mod word;

#[cfg(test)]
mod sim_tests;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sluice_model::{Replica, ReplicaSender, ReplicaSink, RevisionId};

use crate::throttle::{RevisionThrottler, clock};
use exchange::Exchange;
pub use exchange::ReplicaStatus;
use peer::Outbox;
use word::Word;

/// How often leases are renewed and looked at.
const TICK: Duration = Duration::from_millis(250);

/// The time now.
type Clock = Box<dyn Fn() -> Instant + Send + Sync>;

/// Finds the throttler of a revision that messages arrive for, and wakes it if need be.
pub type FindThrottler = Box<dyn Fn(&RevisionId) -> Option<Arc<RevisionThrottler>> + Send + Sync>;

/// The slots that this replica shares with others. Cheap where no revision has a concurrency limit.
pub struct Replicas {
    exchange: Mutex<Exchange>,
    outbox: Arc<Outbox>,
    find: Mutex<Option<FindThrottler>>,
    /// Revisions with a limit.
    wanted: AtomicUsize,
    on_wanted: Mutex<Option<Box<dyn Fn() + Send + Sync>>>,
    /// Monotonic; a simulation has one that drifts.
    clock: Clock,
}

impl Replicas {
    /// Without other replicas, and without a list of them: nothing is owned before there is one.
    pub fn new() -> Arc<Self> {
        Self::with_clock(Box::new(clock))
    }

    fn with_clock(clock: Clock) -> Arc<Self> {
        let outbox = Arc::new(Outbox::default());
        Arc::new(Self {
            exchange: Mutex::new(Exchange::new(Arc::clone(&outbox))),
            outbox,
            find: Mutex::new(None),
            wanted: AtomicUsize::new(0),
            on_wanted: Mutex::new(None),
            clock,
        })
    }

    /// Says how throttlers are found. Messages for revisions are of no use before it.
    pub fn find_by(&self, find: FindThrottler) {
        *self.find.lock() = Some(find);
    }

    /// Sends messages and renews leases until the future is dropped.
    pub async fn run(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.outbox.notify.notified() => {}
                _ = ticks.tick() => self.tick(),
            }
            self.pump();
        }
    }

    fn tick(&self) {
        self.exchange.lock().tick((self.clock)());
    }

    /// Sends what there is to be sent.
    fn pump(&self) {
        let messages = self.exchange.lock().take_messages();
        for (sender, message) in messages {
            sender(message);
        }
    }

    /// Counts a revision with a limit: while there is one, replicas have to meet.
    pub(crate) fn want(self: &Arc<Self>) -> Want {
        self.wanted.fetch_add(1, Ordering::SeqCst);
        self.tell_wanted();
        Want(Arc::downgrade(self))
    }

    /// Shares the slots of this throttler from now on.
    pub(crate) fn join(&self, throttler: &Arc<RevisionThrottler>) {
        self.exchange.lock().join(throttler, (self.clock)());
    }

    /// Tells the other replicas that this process ends, and with it whatever it has in flight: they need not wait for the end
    /// of its leases. Right before it does.
    /// `false`: there is nobody to be told.
    pub fn leave(&self) -> bool {
        let told = self.exchange.lock().leave();
        self.pump();
        told
    }

    /// The other replicas, by name.
    pub fn status(&self) -> Vec<ReplicaStatus> {
        self.exchange.lock().status((self.clock)())
    }

    fn tell_wanted(&self) {
        if let Some(wake) = &*self.on_wanted.lock() {
            wake();
        }
    }
}

impl ReplicaSink for Replicas {
    fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::SeqCst) > 0
    }

    fn on_wanted(&self, wake: Box<dyn Fn() + Send + Sync>) {
        *self.on_wanted.lock() = Some(wake);
    }

    fn replicas(&self, me: &str, all: &[Replica]) {
        self.exchange.lock().replicas(me, all, (self.clock)());
    }

    fn connected(&self, replica: &str, incarnation: u64, sender: ReplicaSender) {
        self.exchange
            .lock()
            .connected(replica, incarnation, Arc::from(sender), (self.clock)());
    }

    fn received(&self, replica: &str, message: &[u8]) -> Result<(), String> {
        for word in word::read(message)? {
            // Woken before the exchange is locked, which it joins. A revision that sleeps holds nothing, and has lent nothing.
            if let Word::About(about) = &word
                && about.wakes()
            {
                let revision = about.revision()?;
                let is_known = self.exchange.lock().newest(&revision).is_some();
                if !is_known && let Some(find) = &*self.find.lock() {
                    drop(find(&revision));
                }
            }
            self.exchange.lock().heard(replica, word, (self.clock)())?;
        }
        Ok(())
    }

    fn disconnected(&self, replica: &str) {
        self.exchange.lock().disconnected(replica, (self.clock)());
    }
}

impl fmt::Debug for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replicas").finish_non_exhaustive()
    }
}

/// A guard: a revision with a limit exists.
#[derive(Debug)]
pub(crate) struct Want(Weak<Replicas>);

impl Drop for Want {
    fn drop(&mut self) {
        if let Some(replicas) = self.0.upgrade() {
            replicas.wanted.fetch_sub(1, Ordering::SeqCst);
            replicas.tell_wanted();
        }
    }
}

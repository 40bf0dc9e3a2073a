//! All calls of the [`ReplicaSink`], one after the other.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use sluice_model::{Replica, ReplicaSink};

use super::link::Outbox;
use crate::source::cluster::peers::Members;

/// The connections to other replicas, and what the sink was told.
///
/// Calls are made under one lock: none blocks, and calls about a replica that is gone, met anew or replaced by another Pod
/// of its name come in an order that makes sense.
#[derive(Debug)]
pub(super) struct Hub {
    me: String,
    sink: Arc<dyn ReplicaSink>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The one connection to each replica.
    connections: HashMap<String, Arc<Outbox>>,
    /// The replicas that the sink was told of, with the uids of their Pods; `None` until they are listed.
    told: Option<BTreeMap<String, Told>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    uid: Arc<str>,
    serves: bool,
}

impl Hub {
    pub(super) fn new(me: String, sink: Arc<dyn ReplicaSink>) -> Self {
        Self {
            me,
            sink,
            inner: Mutex::default(),
        }
    }

    pub(super) fn sink(&self) -> &dyn ReplicaSink {
        &*self.sink
    }

    /// Tells the sink who is there, if that has changed. The connection to a replica that is gone ends before.
    pub(super) fn list(&self, members: &Members) {
        let mut inner = self.inner.lock();
        let before = inner.told.take();
        let known = |name: &str| before.as_ref().and_then(|told| told.get(name));
        let mut now = BTreeMap::new();
        let mut replaced = Vec::new();
        for (name, uids, serves) in members.all() {
            let former = known(name).map(|told| &told.uid);
            // Another Pod of the name, once the one before is in no slice of either address family.
            let uid = former.filter(|uid| uids.contains(*uid));
            let Some(uid) = uid.or_else(|| uids.first()) else {
                continue;
            };
            if former.is_some_and(|former| former != uid) && *name != self.me {
                replaced.push(name);
            }
            let told = Told {
                uid: Arc::clone(uid),
                serves,
            };
            now.insert(name.clone(), told);
        }
        let gone = before.iter().flatten().map(|(name, _)| name);
        let gone: Vec<&String> = gone.filter(|name| !now.contains_key(*name)).collect();
        for &name in gone.iter().chain(&replaced) {
            self.end(&mut inner, name, "the Pod is gone");
        }
        if !replaced.is_empty() {
            let others = now.iter().filter(|(name, _)| !replaced.contains(name));
            self.sink.replicas(&self.me, &told(others));
        }
        let is_known = |before: &BTreeMap<String, Told>| {
            before.len() == now.len()
                && before
                    .iter()
                    .zip(&now)
                    .all(|((one, a), (other, b))| one == other && a.serves == b.serves)
        };
        if !replaced.is_empty() || !before.as_ref().is_some_and(is_known) {
            self.sink.replicas(&self.me, &told(&now));
        }
        inner.told = Some(now);
    }

    /// A connection to this replica begins; one that there is ends before.
    pub(super) fn join(self: &Arc<Self>, replica: String, incarnation: u64) -> Joined {
        let outbox = Arc::<Outbox>::default();
        let mut inner = self.inner.lock();
        self.end(&mut inner, &replica, "a newer connection has replaced it");
        inner.connections.insert(replica.clone(), Arc::clone(&outbox));
        let sends = Arc::clone(&outbox);
        let sender = Box::new(move |message: Vec<u8>| sends.push(&message));
        self.sink.connected(&replica, incarnation, sender);
        drop(inner);
        Joined {
            hub: Arc::clone(self),
            replica,
            outbox,
        }
    }

    fn end(&self, inner: &mut Inner, replica: &str, why: &'static str) {
        if let Some(outbox) = inner.connections.remove(replica) {
            outbox.end(why);
            self.sink.disconnected(replica);
        }
    }
}

fn told<'t>(all: impl IntoIterator<Item = (&'t String, &'t Told)>) -> Vec<Replica> {
    let replica = |(name, told): (&String, &Told)| Replica {
        name: name.as_str().into(),
        serves: told.serves,
    };
    all.into_iter().map(replica).collect()
}

/// A guard of a connection, whose end the sink is told on drop, unless it was told before.
#[derive(Debug)]
pub(super) struct Joined {
    hub: Arc<Hub>,
    replica: String,
    pub(super) outbox: Arc<Outbox>,
}

impl Joined {
    fn is_current(&self, inner: &Inner) -> bool {
        let current = inner.connections.get(&self.replica);
        current.is_some_and(|current| Arc::ptr_eq(current, &self.outbox))
    }

    /// Gives a message to the sink.
    ///
    /// # Errors
    /// It is no message, or the connection has ended.
    pub(super) fn receive(&self, message: &[u8]) -> io::Result<()> {
        // Held, or the connection could be replaced before the call.
        let inner = self.hub.inner.lock();
        if !self.is_current(&inner) {
            return Err(io::Error::other("the connection was to be ended"));
        }
        let received = self.hub.sink.received(&self.replica, message);
        received.map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        let mut inner = self.hub.inner.lock();
        if self.is_current(&inner) {
            self.hub
                .end(&mut inner, &self.replica, "the connection has ended");
        }
    }
}

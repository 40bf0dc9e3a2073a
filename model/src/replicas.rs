//! Replicas of one gateway that share the slots of revisions with a concurrency limit.

use std::fmt;
use std::sync::Arc;

/// One replica of the gateway.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Replica {
    /// Its name, unique among all replicas: that of its Pod.
    pub name: Arc<str>,
    /// Whether it gets new requests: it is ready, and not being stopped. Only such replicas own slots.
    pub serves: bool,
}

/// Sends messages to another replica, in order; never blocks. Sending fails silently once the connection has ended: its
/// end is reported by [`ReplicaSink::disconnected`].
pub type ReplicaSender = Box<dyn Fn(Vec<u8>) + Send + Sync>;

/// What replicas tell each other of slots: read and written by the data plane, carried by the control plane.
///
/// Calls about one replica come one after the other. Messages of one connection arrive in the order they were sent, none
/// twice; how a message is encoded is the data plane's alone. No call blocks.
pub trait ReplicaSink: fmt::Debug + Send + Sync {
    /// Whether there is something to be told: a revision has a concurrency limit. Without one there are no connections.
    fn is_wanted(&self) -> bool;

    /// Calls `wake` whenever [`is_wanted`](Self::is_wanted) may have changed.
    fn on_wanted(&self, wake: Box<dyn Fn() + Send + Sync>);

    /// Every replica there is, this one (`me`) among them once its Pod is listed. A replica that was among them and is not
    /// any more is gone with all it had in flight: its Pod is.
    fn replicas(&self, me: &str, all: &[Replica]);

    /// A connection to this replica begins. `incarnation` is another number for each of its processes: with a new one, what
    /// the process before had in flight is gone.
    fn connected(&self, replica: &str, incarnation: u64, sender: ReplicaSender);

    /// A message arrived.
    ///
    /// # Errors
    /// What arrived is no message, in words: the connection is to be ended.
    fn received(&self, replica: &str, message: &[u8]) -> Result<(), String>;

    /// The connection has ended.
    fn disconnected(&self, replica: &str);
}

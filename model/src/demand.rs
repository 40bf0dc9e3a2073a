//! What passes between the planes besides the Snapshot: demand up, endpoints down.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::name::RevisionId;

/// What the data plane learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Demand {
    /// Somebody waits for a revision without a usable endpoint. Sent once when the first waiter
    /// arrives, and again when waiters remain after the control plane reported a failure.
    Activate(RevisionId),
    /// A managed endpoint answered its readiness probe for the first time.
    Ready {
        /// The revision.
        revision: RevisionId,
        /// The instance.
        instance: InstanceId,
    },
    /// What [`Activate`](Self::Activate) asked for is there: an endpoint became ready, a configured
    /// one perhaps, which no instance stands for.
    Activated(RevisionId),
    /// A retired instance has nothing in flight any more and may be stopped.
    Drained {
        /// The revision.
        revision: RevisionId,
        /// The instance.
        instance: InstanceId,
    },
}

/// Where the data plane sends what it learned; implemented by the control plane.
pub trait DemandSink: Send + Sync {
    /// Never blocks and never fails: what cannot be taken now is coalesced.
    fn demand(&self, demand: Demand);
}

/// Names an instance for its whole life; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceId(pub u64);

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// An instance that the control plane started. The data plane probes it and uses it once ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagedEndpoint {
    /// The instance.
    pub instance: InstanceId,
    /// Where it listens, or will.
    pub address: SocketAddr,
    /// From the decision to start it to its being started, which is now.
    pub took: Duration,
}

/// How far bringing something up has come, before there is anything to probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaunchStep {
    /// More is being started, or a platform is being asked for more.
    Ordered,
    /// The platform agreed: it listens, or will, at addresses that are known.
    Started,
}

/// Why an activation failed, in the terms of the user contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// `activation_failed`: it cannot start.
    Failed,
    /// `activation_timeout`: it did not start in time.
    TimedOut,
    /// `no_endpoints`: nothing may be started (`maxScale` reached at 0, processes.max).
    NotAllowed,
}

/// A failed activation with its cause, for log, status and admin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActivationFailure {
    /// Which answer waiters get.
    pub failure: Failure,
    /// The cause in one line: exit status, last line of stderr.
    pub detail: String,
    /// When starting is tried again at the earliest, counted from the report.
    pub retry_after: Duration,
}

/// What a revision carries, for autoscaler and status.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Load {
    /// In flight plus queued, time-weighted over the time since the previous sample.
    pub average_concurrency: f64,
    /// Requests that arrived since the previous sample.
    pub requests: u64,
    /// Now in flight.
    pub in_flight: u32,
    /// Now queued.
    pub queued: u32,
    /// Endpoints that may be used now.
    pub ready: u32,
    /// Endpoints known but not ready.
    pub starting: u32,
    /// Endpoints that finish what they have and get nothing new.
    pub draining: u32,
}

/// The data plane as the control plane sees it; implemented by the gateway's registry.
///
/// Calls about a revision that the data plane does not know (any more) do nothing.
pub trait EndpointSink: Send + Sync {
    /// Says how far a start has come, now. Only timing depends on it; said again it changes nothing
    /// until something became ready or failed.
    fn launch(&self, revision: &RevisionId, step: LaunchStep);

    /// Adds a started instance. Probing starts at once.
    fn add(&self, revision: &RevisionId, endpoint: ManagedEndpoint);

    /// Forgets an instance that is gone; what is in flight on it fails by itself.
    fn remove(&self, revision: &RevisionId, instance: InstanceId);

    /// Chooses up to `count` victims, the ones with the least in flight, and gives them nothing
    /// new; each is reported by [`Demand::Drained`] once nothing is in flight on it. With
    /// `to_zero` all may be chosen if the revision is idle (no waiter, nothing in flight); if it is
    /// not, one stays at least, and so does every one that has something in flight.
    /// Atomic with admission.
    fn retire(&self, revision: &RevisionId, count: u32, to_zero: bool) -> Vec<InstanceId>;

    /// Lets a revision go to zero if it is idle: no waiter, nothing in flight. `None`: it is not,
    /// and nothing changed. Otherwise every instance is retired as by [`retire`](Self::retire) and
    /// named, and configured addresses have to prove themselves before they are used again; a
    /// revision that is not known is idle. Atomic with admission.
    fn to_zero(&self, revision: &RevisionId) -> Option<Vec<InstanceId>>;

    /// Gives these instances nothing new, whatever they have in flight; each is reported by
    /// [`Demand::Drained`] like those that [`retire`](Self::retire) chose, one that is not known at
    /// once. For replacing instances: whoever calls it has added others, or wants the revision gone.
    fn retire_these(&self, revision: &RevisionId, instances: &[InstanceId]);

    /// The time of these retired instances is over: what they have in flight is asked to end (a
    /// WebSocket by a Close, an HTTP/2 stream's client by GOAWAY) and is broken off a moment later.
    /// [`Demand::Drained`] follows as always.
    fn end(&self, revision: &RevisionId, instances: &[InstanceId]);

    /// Fails everybody who waits for the revision, and arrivals until `retry_after` is over.
    fn fail(&self, revision: &RevisionId, failure: Arc<ActivationFailure>);

    /// Takes back what [`fail`](Self::fail) said of arrivals: how the revision is started has
    /// changed, so the next one may ask again at once.
    fn forgive(&self, revision: &RevisionId);

    /// The load since the previous call; only the autoscaler calls this.
    fn sample(&self, revision: &RevisionId) -> Option<Load>;
}

/// What the control plane knows of a revision, for status and admin.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RevisionStatus {
    /// Instances wanted.
    pub desired: u32,
    /// The last decision with its reason: `3 → 7: panic, 412 in flight / target 70`.
    pub last_decision: Option<String>,
    /// The last failed activation: what is wrong while it is wrong.
    pub last_failure: Option<String>,
    /// Instances started so far.
    pub starts: u64,
}

/// Where status comes from; implemented by the control plane.
pub trait StatusSource: Send + Sync {
    /// `None` for a revision that nothing scales.
    fn revision_status(&self, revision: &RevisionId) -> Option<RevisionStatus>;
}

//! The messages between the planes besides the Snapshot: demand from the data plane, endpoints from the control
//! plane.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::name::RevisionId;

/// An event that the data plane reports to the control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Demand {
    /// A request waits for a revision without a usable endpoint, or a browser was shown a waiting page for it. Sent once
    /// when the first of them arrives, and again when waiters remain after the control plane reported a failure.
    Activate(RevisionId),
    /// A managed endpoint answered its readiness probe for the first time.
    Ready {
        /// The revision.
        revision: RevisionId,
        /// The instance.
        instance: InstanceId,
    },
    /// An [`Activate`](Self::Activate) is answered: an endpoint became ready. The endpoint may be a configured one,
    /// which belongs to no instance.
    Activated(RevisionId),
    /// A retired instance has nothing in flight any more, so that the control plane may stop the instance.
    Drained {
        /// The revision.
        revision: RevisionId,
        /// The instance.
        instance: InstanceId,
    },
}

/// The receiver of [`Demand`]; implemented by the control plane.
pub trait DemandSink: Send + Sync {
    /// Sends an event. Never blocks and never fails: an event that cannot be sent now is coalesced.
    fn demand(&self, demand: Demand);
}

/// The id of an instance for its whole life; an id is never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceId(pub u64);

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// An instance that the control plane started. The data plane probes the instance, and uses it once ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagedEndpoint {
    /// The instance.
    pub instance: InstanceId,
    /// The address where the instance listens, or will listen.
    pub address: SocketAddr,
    /// The time from the decision to start the instance until now, when it is started.
    pub took: Duration,
}

/// The progress of a start, before there is anything to probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaunchStep {
    /// Instances are being started, or a platform is being asked for them.
    Ordered,
    /// The platform agreed: the addresses are known where an instance listens, or will listen.
    Started,
}

/// The reason of a failed activation, as in the `x-sluice-reason` of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// `activation_failed`: the revision cannot start.
    Failed,
    /// `activation_timeout`: the revision did not start in time.
    TimedOut,
    /// `no_endpoints`: nothing may be started (`maxScale` reached at 0, processes.max).
    NotAllowed,
}

/// A failed activation with its cause, for the log, status and admin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActivationFailure {
    /// The reason in the response to waiters.
    pub failure: Failure,
    /// The cause in one line, such as the exit status or the last line of stderr.
    pub detail: String,
    /// The back-off from the report of the failure until the next start may be tried.
    pub retry_after: Duration,
}

/// The load of a revision, for the autoscaler and status.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Load {
    /// In flight plus queued, time-weighted over the time since the previous sample.
    pub average_concurrency: f64,
    /// Requests that arrived since the previous sample.
    pub requests: u64,
    /// Requests in flight now.
    pub in_flight: u32,
    /// Requests in the queue now.
    pub queued: u32,
    /// Requests in flight and queued now that count as no activity (`noWake`): they are in `in_flight` and `queued`, and
    /// in no other field.
    pub passive: u32,
    /// Whether a waiting page was shown for the start that is under way: the browser is expected back.
    pub expected: bool,
    /// The remaining time for which an instance is kept because a waiting page started it; zero for none.
    pub keep: Duration,
    /// What starts took lately, a moving average; `None` before the first one.
    pub typical_start: Option<Duration>,
    /// Whether a revision that needs this one runs, or is about to be started.
    pub needed: bool,
    /// Whether the service is paused: the last instance stays.
    pub paused: bool,
    /// Endpoints that are usable now.
    pub ready: u32,
    /// Endpoints that are known and not ready.
    pub starting: u32,
    /// Draining endpoints: they finish their requests and get no new ones.
    pub draining: u32,
}

/// The data plane as the control plane sees it: the receiver of endpoints and failures; implemented by the gateway's
/// registry.
///
/// Calls about a revision that the data plane does not know (any more) do nothing.
pub trait EndpointSink: Send + Sync {
    /// Reports the progress of a start, at the moment of the call. Only the timing in responses depends on the
    /// report; a repeated report changes nothing until an endpoint became ready or the start failed.
    fn launch(&self, revision: &RevisionId, step: LaunchStep);

    /// Adds a started instance. Probing starts at once.
    fn add(&self, revision: &RevisionId, endpoint: ManagedEndpoint);

    /// Removes an instance that has ended; the requests in flight on the instance fail on their own.
    fn remove(&self, revision: &RevisionId, instance: InstanceId);

    /// Chooses up to `count` instances to drain, those with the least in flight, and gives them no new requests; each
    /// is reported by [`Demand::Drained`] once nothing is in flight on the instance. With `to_zero` all instances may
    /// be chosen if the revision is idle (no waiter and nothing in flight but passive requests, which are finished); if the revision is not idle, at least one
    /// instance stays, and so does every instance with something in flight. Atomic with admission.
    fn retire(&self, revision: &RevisionId, count: u32, to_zero: bool) -> Vec<InstanceId>;

    /// Scales an idle revision (no waiter, nothing in flight, neither needed nor paused) to zero. `None`: the revision is not idle, and nothing
    /// changed. Otherwise every instance is retired as by [`retire`](Self::retire) and returned, and configured
    /// addresses need a successful probe before they are used again; an unknown revision counts as idle. Atomic with
    /// admission.
    fn to_zero(&self, revision: &RevisionId) -> Option<Vec<InstanceId>>;

    /// Gives these instances no new requests, whatever they have in flight; each is reported by [`Demand::Drained`]
    /// like an instance chosen by [`retire`](Self::retire), an unknown instance at once. For replacing instances: the
    /// caller has added others, or removes the revision.
    fn retire_these(&self, revision: &RevisionId, instances: &[InstanceId]);

    /// Ends the drain of these retired instances: their requests are asked to end (a WebSocket by a Close, an HTTP/2
    /// stream's client by GOAWAY) and are aborted a moment later. [`Demand::Drained`] follows as always.
    fn end(&self, revision: &RevisionId, instances: &[InstanceId]);

    /// Fails all waiters of the revision, and arrivals until `retry_after` is over.
    fn fail(&self, revision: &RevisionId, failure: Arc<ActivationFailure>);

    /// Lifts the back-off of [`fail`](Self::fail) for arrivals: the way in which the revision is started has changed,
    /// so the next arrival may ask again at once.
    fn forgive(&self, revision: &RevisionId);

    /// The load since the previous call; only the autoscaler calls this.
    fn sample(&self, revision: &RevisionId) -> Option<Load>;

    /// Asks for a revision that another one needs: as a request would that waits, but for place in the queue. Where
    /// nothing of it is ready a start is demanded, and [`Demand::Activated`] or a failed start follows.
    fn expect(&self, revision: &RevisionId) -> Expectation;

    /// Keeps a revision that others need above zero, or no more: a retirement to zero leaves one instance, and its load
    /// says why. Atomic with [`retire`](Self::retire). A replaced revision forgets it.
    fn hold(&self, revision: &RevisionId, needed: bool);
}

/// How far a revision is that another one needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expectation {
    /// It serves, or nothing starts it.
    Ready,
    /// It is being started.
    Starting,
    /// Its last start failed, and the back-off lasts.
    Failed(Arc<ActivationFailure>),
}

/// The control plane's state of a revision, for status and admin.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RevisionStatus {
    /// Instances wanted.
    pub desired: u32,
    /// The last decision with its reason: `3 → 7: panic, 412 in flight / target 70`.
    pub last_decision: Option<String>,
    /// The last failed activation, for as long as the failure lasts.
    pub last_failure: Option<String>,
    /// Instances started so far.
    pub starts: u64,
    /// Revisions that it needs, while their start is waited for.
    pub waits_for: Vec<RevisionId>,
    /// Revisions that need it, and run: it is held above zero.
    pub held_by: Vec<RevisionId>,
}

/// The source of [`RevisionStatus`]; implemented by the control plane.
pub trait StatusSource: Send + Sync {
    /// The status of a revision; `None` for a revision that nothing scales.
    fn revision_status(&self, revision: &RevisionId) -> Option<RevisionStatus>;
}

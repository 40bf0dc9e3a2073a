//! Events and actions that both kinds of revision have in common, whoever starts their instances.
//!
//! A kind adds its own: [`ProcessEvent`](super::process::ProcessEvent) and
//! [`WebhookEvent`](super::webhook::WebhookEvent).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sluice_model::{ActivationFailure, InstanceId, RevisionId};

use crate::plan::RevisionPlan;

/// The time that requests of a retired instance may take to end after [`EndpointAction::End`]: a little more than the data
/// plane gives them.
pub(crate) const END_GRACE: Duration = Duration::from_secs(6);

/// An event of a revision, from the data plane, the autoscaler, the configuration or the clock.
#[derive(Debug, Clone)]
pub(crate) enum RevisionEvent {
    /// A request waits and no endpoint is usable.
    Activate,
    /// An endpoint became usable for the requests that waited.
    Activated,
    /// The instance answered its readiness probe.
    Ready(InstanceId),
    /// The instance was retired and has nothing in flight any more.
    Drained(InstanceId),
    /// The autoscaler's decision, with its reason.
    Desired { count: u32, decision: String },
    /// The revision's plan, new or changed.
    Plan(Arc<RevisionPlan>),
    /// The revision is no longer configured.
    Removed,
    /// The gateway shuts down: nothing is in flight that still counts.
    Shutdown,
    /// The data plane's answer to [`EndpointAction::Retire`].
    Victims { asked: u32, chosen: Vec<InstanceId> },
    /// A deadline may have passed.
    Tick,
    /// Something that the revision needs became ready, or failed to start.
    NeedsChanged,
    /// The data plane's answer to [`EndpointAction::Expect`]: all of them are ready. Without an answer some are starting.
    NeedsReady,
    /// The data plane's answer to [`EndpointAction::Expect`]: the start of this one failed.
    NeedFailed {
        need: RevisionId,
        failure: Arc<ActivationFailure>,
    },
}

/// An order to the data plane about a revision's endpoints and waiters, or a line for the log.
#[derive(Debug, PartialEq)]
pub(crate) enum EndpointAction {
    /// Adds the endpoint of an instance, this long after the start was decided.
    Add(InstanceId, SocketAddr, Duration),
    /// Removes the endpoint of an instance: nothing is sent to the instance after that.
    Remove(InstanceId),
    /// Lets the data plane choose instances to retire. Answered by [`RevisionEvent::Victims`].
    Retire { count: u32, to_zero: bool },
    /// Retires exactly these instances.
    RetireThese(Vec<InstanceId>),
    /// Ends what these retired instances still have in flight.
    End(Vec<InstanceId>),
    /// Fails every waiter.
    Fail(ActivationFailure),
    /// Lets the next request ask again: another plan may work where the last one failed.
    Forgive,
    /// Logs a warning.
    Warn(String),
    /// Has these revisions started, which this one needs, and asks whether they are ready.
    Expect(Vec<RevisionId>),
}

/// A source of instance numbers, decision keys and randomness, so that state machines have none of their own.
#[derive(Debug)]
pub(crate) struct IdSource {
    next_instance: u64,
    next_decision: u64,
    /// Differs between runs of the gateway.
    run: u64,
    rng: fastrand::Rng,
}

impl IdSource {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            next_instance: 1,
            next_decision: 1,
            run: seed,
            rng: fastrand::Rng::with_seed(seed),
        }
    }

    /// Continues after another run of the gateway: no instance number is used twice.
    pub(crate) fn after(seed: u64, next_instance: u64) -> Self {
        Self {
            next_instance,
            ..Self::new(seed)
        }
    }

    pub(crate) fn next_instance(&self) -> u64 {
        self.next_instance
    }

    pub(crate) fn instance(&mut self) -> InstanceId {
        let id = InstanceId(self.next_instance);
        self.next_instance += 1;
        id
    }

    /// A key for a decision, unique over all runs of the gateway.
    pub(crate) fn decision(&mut self) -> String {
        let key = format!("{:016x}-{}", self.run, self.next_decision);
        self.next_decision += 1;
        key
    }

    /// A random number from 0 to 1.
    pub(crate) fn jitter(&mut self) -> f64 {
        self.rng.f64()
    }
}

//! What a revision's state is told, and what it says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sluice_model::{ActivationFailure, Failure, InstanceId};

use crate::plan::RevisionPlan;
use crate::scale::webhook::{Answer, Ask};

/// What happened.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// Somebody waits and nothing is usable.
    Activate,
    /// What somebody waited for is there.
    Activated,
    /// It answered its probe.
    Ready(InstanceId),
    /// It was retired and has nothing in flight any more.
    Drained(InstanceId),
    /// The autoscaler's decision, with its words.
    Desired { count: u32, decision: String },
    /// The revision's plan, new or again.
    Plan(Arc<RevisionPlan>),
    /// The revision is no longer served.
    Removed,
    /// The gateway ends: nothing is in flight that still counts.
    Shutdown,
    /// It runs; this is where it will listen.
    Started(InstanceId, SocketAddr),
    /// It could not be started, or not become ready by itself.
    Failed {
        instance: InstanceId,
        failure: Failure,
        detail: String,
    },
    /// It and all it had started are gone.
    Exited {
        instance: InstanceId,
        detail: String,
        /// It complained that its port was taken.
        port_taken: bool,
    },
    /// What the data plane answered to [`Action::Retire`].
    Victims { asked: u32, chosen: Vec<InstanceId> },
    /// What the data plane answered to [`Action::ToZero`].
    AtZero(Option<Vec<InstanceId>>),
    /// What a platform answered to [`Action::Ask`].
    Answered(Answer),
    /// A deadline may have passed.
    Tick,
}

/// What to do, in this order.
#[derive(Debug, PartialEq)]
pub(crate) enum Action {
    Start(InstanceId, Arc<RevisionPlan>),
    /// SIGTERM now, SIGKILL after the grace.
    Stop(InstanceId, Duration),
    /// It is started, this long after that was decided.
    Add(InstanceId, SocketAddr, Duration),
    Remove(InstanceId),
    /// Let the data plane choose; its answer is [`Event::Victims`].
    Retire {
        count: u32,
        to_zero: bool,
    },
    RetireThese(Vec<InstanceId>),
    /// Let the data plane end what these still have in flight.
    End(Vec<InstanceId>),
    /// Let the data plane agree to zero, or not; its answer is [`Event::AtZero`].
    ToZero,
    /// Tell a platform how many; its answer is [`Event::Answered`].
    Ask(Ask),
    /// Answer everybody who waits.
    Fail(ActivationFailure),
    /// Let the next request ask again: another plan may work where the last one failed.
    Forgive,
    /// For the log: something is wrong, and what.
    Warn(String),
}

/// Where instance numbers and randomness come from: both are the caller's.
#[derive(Debug)]
pub(crate) struct Fresh {
    next_instance: u64,
    next_decision: u64,
    /// No other run of the gateway has the same.
    run: u64,
    rng: fastrand::Rng,
}

impl Fresh {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            next_instance: 1,
            next_decision: 1,
            run: seed,
            rng: fastrand::Rng::with_seed(seed),
        }
    }

    /// Goes on where another run of the gateway stopped: no number is used twice.
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

    /// Names a decision, in this run of the gateway and in all others.
    pub(crate) fn decision(&mut self) -> String {
        let key = format!("{:016x}-{}", self.run, self.next_decision);
        self.next_decision += 1;
        key
    }

    /// From 0 to 1.
    pub(crate) fn jitter(&mut self) -> f64 {
        self.rng.f64()
    }
}

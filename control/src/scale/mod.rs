//! Decisions become running instances.
//!
//! One task, the [`Controller`], owns what every revision has and wants. It hears of demand from
//! the data plane, of decisions from the autoscaler, of plans from the configuration and of starts
//! and ends from the scaler that carries its decisions out; what follows is worked out by a pure state machine per revision.
//! Everybody else holds a [`ScaleHandle`] and never waits for it.
//!
//! Local processes belong to a process of their own, the [`supervisor`], so that none of them
//! survives the gateway. What a platform runs elsewhere it is asked for over HTTP, in numbers.

mod backoff;
mod controller;
mod events;
mod fleet;
mod handover;
mod mailbox;
mod process;
mod scalers;
pub mod supervisor;
#[cfg(test)]
mod testing;
mod webhook;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sluice_model::{Failure, InstanceId, RevisionId};

pub use self::controller::{Controller, ScaleHandle, ScaleOptions};
use self::handover::PendingHandover;
pub use self::handover::{HandedOver, HandoverError, PlatformAnswer, ScaleState};
use self::webhook::{Answer, Ask};
use crate::plan::{PlanDelta, RevisionPlan};

/// Carries decisions out somewhere: how, and within which bounds of the place, is the scaler's
/// business. Nothing here waits; what became of an order comes as a [`ScalerEvent`].
pub(crate) trait Scaler: Send + 'static {
    /// What it can be told: where the gateway starts instances itself, this one or that one
    /// ([`InstanceOrder`]); where somebody else does, how many ([`Ask`]).
    type Order;

    /// Takes over bounds that a plan sets for all revisions together.
    fn configure(&mut self, plan: &PlanDelta);

    /// Sees to it.
    fn order(&mut self, revision: &RevisionId, order: Self::Order);

    /// Leaves everything to the next gateway: adds what it knows, and answers. Nothing is ordered
    /// after it but [`take_back`](Self::take_back).
    fn hand_over(&mut self, pending: PendingHandover) {
        pending.finish(Ok(None));
    }

    /// The next gateway came to nothing. What ended meanwhile comes as events.
    fn take_back(&mut self) {}
}

/// An order to the scaler of processes. Every started instance ends in exactly one `Failed` or `Exited` event.
#[derive(Debug, PartialEq)]
pub(crate) enum InstanceOrder {
    /// Starts an instance by a plan; answered by `Started` or `Failed`.
    Start(InstanceId, Arc<RevisionPlan>),
    /// Sends SIGTERM now and SIGKILL after the grace period, at once when that is zero; answered by `Exited`. Ignored for
    /// an instance that has ended.
    Stop(InstanceId, Duration),
}

/// What became of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ScalerEvent {
    /// It runs, or will soon, and will listen here.
    Started {
        revision: RevisionId,
        instance: InstanceId,
        address: SocketAddr,
    },
    /// It was not started.
    Failed {
        revision: RevisionId,
        instance: InstanceId,
        failure: Failure,
        detail: String,
    },
    /// It is gone, and everything it had started with it.
    Exited {
        revision: RevisionId,
        instance: InstanceId,
        detail: String,
        /// It complained that its port is taken.
        port_taken: bool,
    },
    /// What a platform said; there is exactly one for each [`Ask`].
    Answered { revision: RevisionId, answer: Answer },
}

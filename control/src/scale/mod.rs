//! Scaling: starts and stops instances as plans, demand and the autoscaler ask for them.
//!
//! One task, the [`Controller`], owns the state of every revision. Its inputs are demand from the data plane, decisions of
//! the autoscaler, plans of the configuration, and events of the scalers that carry out its orders; a pure state machine
//! per revision makes actions of them. Everybody else holds a [`ScaleHandle`] and never waits for the controller.
//!
//! A revision is of one of two kinds. Local processes belong to a process of their own, the [`supervisor`], so that none of
//! them survives the gateway; a platform's instances are asked for over HTTP, by number. What the two kinds share is in
//! `events` and `fleet`.

mod backoff;
mod controller;
mod events;
mod fleet;
mod handover;
mod mailbox;
mod needs;
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

/// Carries out orders of the controller, by local processes or by a platform. No method waits; the outcome of an order comes
/// as a [`ScalerEvent`].
pub(crate) trait Scaler: Send + 'static {
    /// An order: about one instance ([`InstanceOrder`]) for local processes, a number of instances ([`Ask`]) for a platform.
    type Order;

    /// Applies the bounds that a plan sets for all revisions together.
    fn configure(&mut self, plan: &PlanDelta);

    /// Queues an order.
    fn order(&mut self, revision: &RevisionId, order: Self::Order);

    /// Adds this scaler's state to a hand-over and replies. No order follows, unless [`take_back`](Self::take_back) does.
    fn hand_over(&mut self, pending: PendingHandover) {
        pending.finish(Ok(None));
    }

    /// Continues after a failed upgrade. Exits that happened meanwhile come as events.
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

/// The outcome of an order, or the end of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ScalerEvent {
    /// The instance runs, or will soon, and will listen on this address.
    Started {
        revision: RevisionId,
        instance: InstanceId,
        address: SocketAddr,
    },
    /// The instance was not started.
    Failed {
        revision: RevisionId,
        instance: InstanceId,
        failure: Failure,
        detail: String,
    },
    /// The instance is gone, with all processes that it had started.
    Exited {
        revision: RevisionId,
        instance: InstanceId,
        detail: String,
        /// Its output says that its port was taken.
        port_taken: bool,
    },
    /// A platform's answer; exactly one for each [`Ask`].
    Answered { revision: RevisionId, answer: Answer },
}

//! Admission control for one revision: a [`RevisionThrottler`] has its capacity, its in-flight counts and its
//! FIFO queue.
//!
//! `core` is the sans-IO state machine: events in, actions out, time an argument.
//! Endpoints, in-flight counts and queue are under one lock of the shell's, so that they can never disagree.
//! The shell ([`RevisionThrottler`], [`Permit`], [`Waiter`]) adds the lock, wake-ups, the timer and RAII.
//!
//! **Invariants:** an endpoint is never given a request at or above its limit; no request waits while a slot is
//! free, unless the service is paused, and waiters are admitted in order of arrival; every waiter resolves exactly once; nothing here names a
//! type of Pingora's.

mod accounting;
mod actions;
mod arrival;
mod budget;
mod core;
mod endpoint;
mod endpoint_events;
mod endpoint_leases;
mod endpoint_pick;
mod endpoint_set;
mod lease;
mod lease_holder;
mod lease_owner;
mod load;
mod log_limit;
mod observer;
mod outlier;
mod pause;
mod permit;
mod queue;
mod rejection;
mod shell;
mod shell_leases;
mod start_timeline;
mod tiers;
mod visits;
mod waiter;
mod waiting;

#[cfg(test)]
mod fair_sim_tests;
#[cfg(test)]
mod fair_tests;
#[cfg(test)]
mod large_tests;
#[cfg(test)]
mod policy_tests;
#[cfg(test)]
mod shell_tests;
#[cfg(test)]
mod sim_tests;
#[cfg(test)]
pub(crate) mod test_kit;
#[cfg(test)]
mod tiers_sim_tests;
#[cfg(test)]
mod tiers_tests;

pub use self::core::{Supply, ThrottleLimits};
pub use arrival::{Admission, Arrival, Outcome};
pub use budget::QueueBudget;
pub use endpoint::{EndpointPhase, EndpointState};
pub use lease::{Ask, Deal, EndpointId, EndpointInUse, LeaseMessage, PeerId};
pub use observer::{ActivationOutcome, NoObserver, RevisionObserver};
pub use permit::Permit;
pub use rejection::{Closing, Rejection};
pub use shell::{EndpointView, Outlet, RevisionThrottler, ThrottleEnv};
pub use start_timeline::StartTimeline;
pub use tiers::TierLimits;
pub use visits::{ColdPhase, ColdState};
pub use waiter::Waiter;

pub(crate) use shell::clock;

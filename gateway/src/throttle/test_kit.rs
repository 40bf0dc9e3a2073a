//! What tests of the shell share.

use std::sync::Arc;
use std::time::Duration;

use sluice_model::{ActivationFailure, Demand, Failure, InstanceId, ManagedEndpoint, QueueTotals};

use super::shell::clock;
use super::*;
use crate::registry::test_kit::{Demands, address, id, queue};

pub(super) fn throttler(supply: Supply, concurrency: Option<u32>) -> (Arc<RevisionThrottler>, Arc<Demands>) {
    let demands = Arc::new(Demands::default());
    let env = ThrottleEnv {
        demand: Arc::clone(&demands) as _,
        observer: Arc::new(NoObserver),
        budget: Arc::new(QueueBudget::new(QueueTotals {
            depth: 1_000,
            bytes: 1 << 30,
        })),
        runtime: tokio::runtime::Handle::current(),
    };
    let limits = ThrottleLimits {
        concurrency,
        queue: queue(),
        start_timeout: Duration::from_secs(10),
        supply,
    };
    (RevisionThrottler::new(id("r"), limits, env), demands)
}

pub(super) fn fixed(ports: &[u16], concurrency: Option<u32>) -> Arc<RevisionThrottler> {
    let (throttler, _) = throttler(Supply::Fixed, concurrency);
    let addresses: Vec<_> = ports.iter().map(|p| address(*p)).collect();
    throttler.set_addresses(&addresses, true, clock());
    throttler
}

/// Adds an instance and returns its key.
pub(super) fn add(throttler: &Arc<RevisionThrottler>, instance: u64) -> u64 {
    let endpoint = ManagedEndpoint {
        instance: InstanceId(instance),
        address: ([127, 0, 0, 1], 9_000).into(),
    };
    let state = throttler.add_instance(&endpoint, clock());
    state.expect("is new").key
}

pub(super) fn admit(throttler: &Arc<RevisionThrottler>) -> Permit {
    match throttler.admit(Arrival::default(), clock()) {
        Admission::Admitted(permit) => permit,
        other => panic!("not admitted: {other:?}"),
    }
}

pub(super) fn wait(throttler: &Arc<RevisionThrottler>) -> Waiter {
    match throttler.admit(Arrival::default(), clock()) {
        Admission::Waiting(waiter) => waiter,
        other => panic!("does not wait: {other:?}"),
    }
}

pub(super) fn reject(throttler: &Arc<RevisionThrottler>) -> Rejection {
    match throttler.admit(Arrival::default(), clock()) {
        Admission::Rejected(rejection) => rejection,
        other => panic!("not rejected: {other:?}"),
    }
}

pub(super) fn failed(retry_after: u64) -> Arc<ActivationFailure> {
    Arc::new(ActivationFailure {
        failure: Failure::Failed,
        detail: "exit status 1".into(),
        retry_after: Duration::from_secs(retry_after),
    })
}

pub(super) fn activate() -> Demand {
    Demand::Activate(id("r"))
}

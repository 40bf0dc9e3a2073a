//! Fixtures for tests of the shell.

use std::sync::{Arc, Weak};
use std::time::Duration;

use sluice_model::{
    ActivationFailure, Demand, DemandSink, Failure, InstanceId, ManagedEndpoint, QueueTotals, ServiceId,
};

use super::budget::Account;
use super::shell::clock;
use super::*;
use crate::registry::test_kit::{Demands, address, id, queue};

pub(crate) fn throttler(supply: Supply, concurrency: Option<u32>) -> (Arc<RevisionThrottler>, Arc<Demands>) {
    let demands = Arc::new(Demands::default());
    let throttler = throttler_for(Arc::clone(&demands) as _, supply, concurrency);
    (throttler, demands)
}

pub(super) fn throttler_for(
    demand: Arc<dyn DemandSink>,
    supply: Supply,
    concurrency: Option<u32>,
) -> Arc<RevisionThrottler> {
    let env = ThrottleEnv {
        demand,
        observer: Arc::new(NoObserver),
        budget: Arc::new(QueueBudget::new(QueueTotals {
            depth: 1_000,
            bytes: 1 << 30,
        })),
        runtime: tokio::runtime::Handle::current(),
    };
    RevisionThrottler::new(id("r"), service("shop"), limits(supply, concurrency), env)
}

pub(crate) fn limits(supply: Supply, concurrency: Option<u32>) -> ThrottleLimits {
    ThrottleLimits {
        concurrency,
        queue: queue(),
        start_timeout: Duration::from_secs(10),
        supply,
    }
}

pub(super) fn service(name: &str) -> ServiceId {
    ServiceId::parse("default", name).expect("a name")
}

/// The account of a core without a shell: the test itself carries evictions out.
pub(super) fn account(budget: &Arc<QueueBudget>, name: &str) -> Account {
    Account::open(Arc::clone(budget), service(name), Weak::new())
}

pub(super) fn fixed(ports: &[u16], concurrency: Option<u32>) -> Arc<RevisionThrottler> {
    let (throttler, _) = throttler(Supply::Fixed, concurrency);
    let addresses: Vec<_> = ports.iter().map(|p| address(*p)).collect();
    throttler.set_addresses(0, &addresses, true, clock());
    throttler
}

/// Adds an instance and returns its key.
pub(super) fn add(throttler: &Arc<RevisionThrottler>, instance: u64) -> u64 {
    let endpoint = ManagedEndpoint {
        instance: InstanceId(instance),
        address: ([127, 0, 0, 1], 9_000).into(),
        took: Duration::ZERO,
    };
    let state = throttler.add_instance(0, &endpoint, clock());
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

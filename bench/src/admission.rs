//! The operations `admit/`: warm admission, where a slot is free, is taken and released.

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use sluice_gateway::throttle::{
    Admission, Arrival, NoObserver, QueueBudget, RevisionThrottler, Supply, ThrottleEnv, ThrottleLimits,
};

use super::fixture::{self, NoDemand};
use super::{Operation, Weight, operation, repeat};

pub(crate) fn operations() -> Vec<Operation> {
    let mut all = vec![operation("admit/clock", Weight::Light, || {
        repeat(|_| (Instant::now(), Instant::now()))
    })];
    for endpoints in [1, 10, 100] {
        all.push(alone(format!("admit/unlimited/{endpoints}"), endpoints, None));
    }
    all.push(alone("admit/containerConcurrency/10".to_owned(), 10, Some(100)));
    all.push(operation("admit/one-ejected/1000", Weight::Light, || {
        let (throttler, runtime) = throttler(1_000, None);
        eject_one(&throttler);
        repeat(move |_| {
            let _ = &runtime;
            admit_and_release(&throttler);
        })
    }));
    for endpoints in [1, 10] {
        let name = format!("admit/two-threads/{endpoints}");
        all.push(operation(name, Weight::Contended, move || contended(endpoints)));
    }
    all
}

fn alone(name: String, endpoints: u16, limit: Option<u32>) -> Operation {
    operation(name, Weight::Light, move || {
        let (throttler, runtime) = throttler(endpoints, limit);
        repeat(move |_| {
            let _ = &runtime;
            admit_and_release(&throttler);
        })
    })
}

/// Runs `n` admissions on each of two threads at once, and returns the time until both are done.
fn contended(endpoints: u16) -> super::Run {
    let (throttler, runtime) = throttler(endpoints, None);
    Box::new(move |times| {
        let _ = &runtime;
        let start = Barrier::new(2);
        let both = |_: usize| {
            start.wait();
            let started = Instant::now();
            for _ in 0..times {
                admit_and_release(&throttler);
            }
            started.elapsed()
        };
        thread::scope(|scope| {
            let other = scope.spawn(|| both(1));
            let mine = both(0);
            mine.max(other.join().unwrap_or(Duration::ZERO))
        })
    })
}

/// Admits and releases as the request path does: the clock is read before each.
fn admit_and_release(throttler: &Arc<RevisionThrottler>) {
    match throttler.admit(Arrival::default(), Instant::now()) {
        Admission::Admitted(permit) => drop(std::hint::black_box(permit)),
        // A queued or refused admission would be another operation than the measured one.
        other => panic!("not admitted: {other:?}"),
    }
}

/// Ejects one endpoint for a minute: each ejection lasts twice as long as the one before.
fn eject_one(throttler: &Arc<RevisionThrottler>) {
    let all = throttler.endpoints();
    let Some(view) = all.first() else { return };
    let (key, now) = (view.endpoint.key, Instant::now());
    for _ in 0..6 {
        throttler.endpoint_failing(key, now);
        throttler.endpoint_ready(key, now);
    }
    throttler.endpoint_failing(key, now);
}

fn throttler(endpoints: u16, limit: Option<u32>) -> (Arc<RevisionThrottler>, Arc<tokio::runtime::Runtime>) {
    let runtime = fixture::runtime();
    let env = ThrottleEnv {
        demand: Arc::new(NoDemand),
        observer: Arc::new(NoObserver),
        budget: Arc::new(QueueBudget::new(fixture::totals())),
        runtime: runtime.handle().clone(),
    };
    let limits = ThrottleLimits {
        concurrency: limit,
        queue: fixture::queue(),
        start_timeout: Duration::from_secs(60),
        supply: Supply::Fixed,
    };
    let throttler = RevisionThrottler::new(
        fixture::id("greeter"),
        fixture::service_id("greeter"),
        limits,
        env,
    );
    throttler.set_addresses(0, &fixture::addresses(endpoints), true, Instant::now());
    (throttler, runtime)
}

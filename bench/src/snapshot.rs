//! A Snapshot's change: built, published, and its live state brought up to date.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_gateway::registry::{NoObserver, Registry};
use sluice_model::SnapshotPublisher;

use super::fixture::{self, NoDemand};
use super::{Operation, Run, Weight, operation, repeat};

const HOSTS: usize = 100_000;

pub(crate) fn operations() -> Vec<Operation> {
    vec![
        operation("snapshot/load", Weight::Light, || {
            let (publisher, reader) = SnapshotPublisher::new(fixture::snapshot(1));
            repeat(move |_| {
                let _ = &publisher;
                reader.load().generation
            })
        }),
        operation(format!("snapshot/build/{HOSTS}"), Weight::Heavy, build),
        operation(format!("snapshot/publish/{HOSTS}"), Weight::Heavy, publish),
        operation(format!("snapshot/registry/{HOSTS}"), Weight::Heavy, registry),
    ]
}

/// Revisions and services into a Snapshot. Freeing it is not in it.
fn build() -> Run {
    let revisions = fixture::revisions(HOSTS);
    summed(move || {
        let revisions = revisions.clone();
        let start = Instant::now();
        let snapshot = fixture::assemble(revisions, HOSTS);
        (start.elapsed(), snapshot)
    })
}

/// What a reader could be held up by.
fn publish() -> Run {
    let first = fixture::snapshot(HOSTS);
    let (mut publisher, reader) = SnapshotPublisher::new(first.clone());
    summed(move || {
        let (next, last) = (first.clone(), reader.load());
        let start = Instant::now();
        let published = publisher.publish(next);
        (start.elapsed(), (published, last))
    })
}

/// Live state of 100,000 revisions brought up to date with a Snapshot in which nothing changed, and
/// the table swapped. Requests go on meanwhile.
fn registry() -> Run {
    let runtime = fixture::runtime();
    let first = Arc::new(fixture::snapshot(HOSTS));
    let observe = Box::new(|_: &_| Arc::new(NoObserver) as _);
    let registry = Registry::new(&first, Arc::new(NoDemand), observe, runtime.handle().clone());
    summed(move || {
        let _ = &runtime;
        let next = Arc::new(fixture::snapshot(HOSTS));
        let start = Instant::now();
        let serving = registry.apply(&next);
        (start.elapsed(), serving)
    })
}

/// Adds up what is measured inside; what `once` leaves is dropped outside.
fn summed<T>(mut once: impl FnMut() -> (Duration, T) + 'static) -> Run {
    Box::new(move |times| (0..times).map(|_| once().0).sum())
}

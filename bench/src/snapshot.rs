//! A Snapshot's change: built, published, and its live state brought up to date.

use std::time::{Duration, Instant};

use sluice_model::{Delta, SnapshotPublisher};

use super::fixture;
use super::{Operation, Run, Weight, operation, repeat};

const HOSTS: usize = 100_000;

pub(crate) fn operations() -> Vec<Operation> {
    vec![
        operation("snapshot/load", Weight::Light, || {
            let (publisher, reader) = SnapshotPublisher::new(fixture::snapshot(1));
            repeat(move |_| {
                let _ = &publisher;
                reader.peek().generation
            })
        }),
        operation(format!("snapshot/build/{HOSTS}"), Weight::Heavy, build),
        operation(format!("snapshot/edit/{HOSTS}"), Weight::Heavy, edit),
        operation(format!("snapshot/registry/{HOSTS}"), Weight::Heavy, registry),
    ]
}

/// Revisions and services into a Snapshot. Freeing it is not in it.
fn build() -> Run {
    let revisions = fixture::revisions(HOSTS);
    summed(move || {
        let revisions = revisions.clone();
        let start = Instant::now();
        let snapshot = fixture::assemble(revisions);
        (start.elapsed(), snapshot)
    })
}

/// One service of 100,000 other than before: the edited table, with live state and the swap.
fn edit() -> Run {
    let runtime = fixture::runtime();
    let registry = fixture::registry(&fixture::snapshot(HOSTS), &runtime);
    let mut turn = 0usize;
    summed(move || {
        let _ = &runtime;
        turn += 1;
        let delta = fixture::changed(&registry.reader().load(), turn * 7_919 % HOSTS);
        let start = Instant::now();
        let published = registry.apply(&delta);
        (start.elapsed(), (published, delta))
    })
}

/// Every service of 100,000 other than before. Requests go on meanwhile.
fn registry() -> Run {
    let runtime = fixture::runtime();
    let tables = [fixture::snapshot(HOSTS), fixture::revised(HOSTS)];
    let registry = fixture::registry(&tables[0], &runtime);
    let mut turn = 0;
    summed(move || {
        let _ = &runtime;
        turn += 1;
        let delta = Delta::between(&registry.reader().load(), &tables[turn % 2]);
        let start = Instant::now();
        let published = registry.apply(&delta);
        (start.elapsed(), (published, delta))
    })
}

/// Adds up what is measured inside; what `once` leaves is dropped outside.
fn summed<T>(mut once: impl FnMut() -> (Duration, T) + 'static) -> Run {
    Box::new(move |times| (0..times).map(|_| once().0).sum())
}

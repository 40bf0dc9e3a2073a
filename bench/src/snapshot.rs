//! The operations `snapshot/`: building and publishing a Snapshot, and updating its live state.

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

/// Builds a Snapshot from revisions and services. Freeing the Snapshot is not measured.
fn build() -> Run {
    let revisions = fixture::revisions(HOSTS);
    summed(move || {
        let revisions = revisions.clone();
        let start = Instant::now();
        let snapshot = fixture::assemble(revisions);
        (start.elapsed(), snapshot)
    })
}

/// Changes one service of 100,000: the edited table, with live state and the swap.
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

/// Changes every service of 100,000. Requests are served meanwhile.
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

/// Adds up the durations that `once` measures itself; the value that `once` returns is dropped outside of them.
fn summed<T>(mut once: impl FnMut() -> (Duration, T) + 'static) -> Run {
    Box::new(move |times| (0..times).map(|_| once().0).sum())
}

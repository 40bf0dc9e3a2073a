//! Every operation by the clock, with criterion: `cargo bench -p sluice-bench -- find`, then `bench/summary`.

#![allow(missing_docs)] // criterion's macros make public functions

use std::time::Duration;

use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use sluice_bench::{Weight, measured, operations};

fn micro(criterion: &mut Criterion) {
    for operation in operations() {
        let mut group = criterion.benchmark_group("sluice");
        if operation.weight == Weight::Heavy {
            group.sample_size(10);
        } else {
            // Samples of 2 ms, shorter than a time slice: under load most samples are disturbed, but not all, and the
            // fastest samples show the cost of the operation.
            group.sample_size(1_000);
            group.sampling_mode(SamplingMode::Flat);
        }
        group.nresamples(1_000);
        group.warm_up_time(Duration::from_millis(500));
        group.measurement_time(Duration::from_secs(2));
        let mut run = None;
        group.bench_function(&operation.name, |bencher| {
            // Only operations that the filter selects are set up.
            let run = run.get_or_insert_with(|| (operation.set_up)());
            bencher.iter_custom(|times| measured(run, times));
        });
        group.finish();
    }
}

criterion_group!(benches, micro);
criterion_main!(benches);

//! The micro-benchmarks: operations of the request path and of a Snapshot's change, set up for measuring.
//!
//! The module `measure` has the load benchmarks: runs of the real gateway under load, each with a results file.
//!
//! Each operation is measured in two ways: by the clock (`benches/micro.rs`), and in instructions and allocations,
//! which load on the machine does not disturb (`src/bin/operation.rs` under valgrind). Both ways run the same loops.

#![allow(clippy::disallowed_methods, reason = "real clients, real time")]

mod admission;
mod fixture;
pub mod foresight;
mod head;
mod history;
pub mod measure;
mod responder;
pub mod rollout;
mod routing;
mod snapshot;
mod traces;

use std::hint::black_box;
use std::time::{Duration, Instant};

/// Runs an operation this number of times and returns the time, set-up excluded.
pub type Run = Box<dyn FnMut(u64) -> Duration>;

/// One measured operation.
pub struct Operation {
    /// The name, with the size of the input: `find/exact/100000`.
    pub name: String,
    /// The cost of one run: instructions of operations that take seconds are not counted.
    pub weight: Weight,
    /// Sets the operation up.
    pub set_up: Box<dyn Fn() -> Run>,
}

/// The cost of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// Nanoseconds, on one thread.
    Light,
    /// Nanoseconds, on several threads: instruction counts do not show contention.
    Contended,
    /// Milliseconds.
    Heavy,
}

/// All operations.
pub fn operations() -> Vec<Operation> {
    let groups = [
        routing::operations(),
        admission::operations(),
        head::operations(),
        history::operations(),
        snapshot::operations(),
        traces::operations(),
    ];
    groups.into_iter().flatten().collect()
}

/// The frame in which valgrind counts: everything outside of this function is set-up.
#[inline(never)]
pub fn measured(run: &mut Run, times: u64) -> Duration {
    run(times)
}

fn operation(name: impl Into<String>, weight: Weight, set_up: impl Fn() -> Run + 'static) -> Operation {
    Operation {
        name: name.into(),
        weight,
        set_up: Box::new(set_up),
    }
}

/// A run that calls `once` with the index of the iteration.
fn repeat<T>(mut once: impl FnMut(u64) -> T + 'static) -> Run {
    Box::new(move |times| {
        let start = Instant::now();
        for turn in 0..times {
            black_box(once(turn));
        }
        start.elapsed()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_runs() {
        let mut names = Vec::new();
        for operation in operations() {
            if !operation.name.ends_with("100000") {
                measured(&mut (operation.set_up)(), 3);
            }
            names.push(operation.name);
        }
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all, "two operations share a name");
    }
}

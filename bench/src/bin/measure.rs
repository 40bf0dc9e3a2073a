//! Runs one of the load benchmarks; `bench/run` builds it and the gateway and calls it.

use std::process::ExitCode;

fn main() -> ExitCode {
    sluice_bench::measure::main()
}

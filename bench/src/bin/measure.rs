//! Runs one of the load benchmarks; `bench/run` builds this program and the gateway, and runs it.

use std::process::ExitCode;

fn main() -> ExitCode {
    sluice_bench::measure::main()
}

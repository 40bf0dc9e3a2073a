//! Writes tables and plot of simulated rollouts: `cargo run --release -p sluice-bench --bin rollout -- docs/rollouts`.

use std::path::PathBuf;
use std::process::ExitCode;

use sluice_bench::rollout::{RUNS, play, plot};

fn main() -> ExitCode {
    let findings = play(RUNS);
    let tables = findings.tables();
    print!("{tables}");
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else {
        return ExitCode::SUCCESS;
    };
    let written = std::fs::create_dir_all(&directory)
        .and_then(|()| std::fs::write(directory.join("simulated.md"), tables))
        .and_then(|()| std::fs::write(directory.join("simulated.svg"), plot(findings.detections())));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", directory.display());
            ExitCode::FAILURE
        }
    }
}

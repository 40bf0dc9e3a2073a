//! Writes table and plot of the seven simulated days: `cargo run --release -p sluice-bench --bin foresight -- docs/foresight`.

use std::path::PathBuf;
use std::process::ExitCode;

use sluice_bench::foresight::{SEED, compare, plot, week};

fn main() -> ExitCode {
    let load = week(SEED);
    let comparison = compare(&load);
    print!("{}", comparison.table());
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else {
        return ExitCode::SUCCESS;
    };
    let written = std::fs::create_dir_all(&directory)
        .and_then(|()| std::fs::write(directory.join("week.md"), comparison.table()))
        .and_then(|()| std::fs::write(directory.join("week.svg"), plot(&comparison, &load, 10.0)));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", directory.display());
            ExitCode::FAILURE
        }
    }
}

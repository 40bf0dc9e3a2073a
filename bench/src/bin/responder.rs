//! The backend of `bench/compare`.

use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let address = std::env::args().nth(1).and_then(|a| a.parse().ok());
    let Some(address) = address else {
        eprintln!("usage: responder ADDRESS:PORT");
        return ExitCode::from(2);
    };
    match sluice_bench::responder::run(address, Duration::ZERO) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("responder: {error}");
            ExitCode::FAILURE
        }
    }
}

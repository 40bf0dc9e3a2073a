//! Runs one operation a given number of times, or lists all operations; `bench/count` runs this program under
//! valgrind.

use std::process::ExitCode;

use sluice_bench::{Weight, measured, operations};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(name) = args.next() else {
        for operation in operations() {
            if operation.weight == Weight::Light {
                println!("{}", operation.name);
            }
        }
        return ExitCode::SUCCESS;
    };
    let times = args.next().and_then(|n| n.parse().ok());
    let operation = operations().into_iter().find(|o| o.name == name);
    let (Some(times), Some(operation)) = (times, operation) else {
        eprintln!("usage: operation [NAME TIMES]; without arguments it lists the names");
        return ExitCode::FAILURE;
    };
    let took = measured(&mut (operation.set_up)(), times);
    println!("{name}: {times} times in {took:?}");
    ExitCode::SUCCESS
}

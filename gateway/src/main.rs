//! `sluice`: the composition root. Parses the command line and wires data plane and control plane together.

mod root;

use std::process::ExitCode;

use clap::Parser;
use sluice_gateway::cli::{self, Cli, Command};
use sluice_gateway::echo;

fn main() -> ExitCode {
    // Before any thread exists: the supervisor forks and signals.
    if std::env::args().nth(1).as_deref() == Some(sluice_control::scale::supervisor::ARGUMENT) {
        return sluice_control::scale::supervisor::main();
    }
    let cli = Cli::parse();
    // Fails only when a provider was installed before, which nothing did.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match cli.command {
        Command::Run(args) => root::run::run(&args),
        Command::Check(args) => root::check::run(&args),
        Command::Explain(args) => match &args.admin {
            Some(admin) => cli::explain::run_remote(&args, admin),
            None => root::check::explain(&args),
        },
        Command::Status(args) => cli::status::run(&args),
        Command::Revisions(args) => cli::revisions::run(&args),
        Command::Rollout(args) => cli::command::rollout(&args.verb),
        Command::Rollback(args) => cli::command::rollback(&args),
        Command::Pause(args) => cli::command::pause(&args.action),
        Command::Resume(args) => cli::command::resume(&args.action),
        Command::Upgrade(args) => cli::upgrade::run(&args),
        Command::Schema(_) => root::check::schema(),
        Command::Echo(args) => echo::run(&args),
    }
}

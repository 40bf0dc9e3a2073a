//! The command line: arguments of every command, and the output of those that ask a running gateway.
//!
//! Exit codes: 0 success; 1 the configuration was rejected, `explain` found no service for the request,
//! no new process took over, or a command had nothing to act on; 2 wrong usage or failure to start. `clap` itself exits with 2.

mod client;
pub mod command;
pub mod explain;
mod release;
pub mod revisions;
mod rollout;
mod service_args;
pub mod status;
mod table;
mod token;
pub mod upgrade;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use sluice_model::AdminAddress;

use crate::admin::parse_upgrade_limit;
use crate::observe::LogFormat;

pub use client::{AdminError, AdminUrl};
pub use service_args::{
    ActionArgs, PauseArgs, ResumeArgs, RevisionsArgs, RollbackArgs, RolloutArgs, RolloutStatusArgs,
    RolloutVerb,
};

/// The default path of the configuration.
pub const DEFAULT_CONFIG: &str = "sluice.yaml";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "sluice",
    version,
    about = "An HTTP gateway that can start what it routes to",
    after_help = "Examples:
  sluice run                                  run on ./sluice.yaml
  sluice check configs/                       validate every file in a directory
  sluice explain http://hello.example.com/v2  which revision would serve this, and why
  sluice status                               what runs, and why
  sluice rollout status greeter               how far traffic has moved to a new revision
  sluice rollback greeter                     back to the revision before
  sluice upgrade                              put the binary now on disk in place of the running one

Exit codes: 0 fine; 1 configuration rejected, nothing would serve, not upgraded, or nothing to act on; 2 usage or failure
to start."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the gateway
    Run(RunArgs),
    /// Validate the configuration and report every mistake in it
    Check(CheckArgs),
    /// Say which listener, route, split and revision would serve a request, and why
    Explain(ExplainArgs),
    /// Show services, revisions and what runs
    Status(StatusArgs),
    /// Show revisions with their age, their traffic and what their templates changed
    Revisions(RevisionsArgs),
    /// Show or steer how traffic moves to a new revision
    Rollout(RolloutArgs),
    /// Give the traffic back to an earlier revision, at once
    Rollback(RollbackArgs),
    /// Hold the requests to a service, for a migration
    Pause(PauseArgs),
    /// Let the requests to a paused service go on
    Resume(ResumeArgs),
    /// Start the binary now on disk in place of the running one, without losing a connection
    Upgrade(UpgradeArgs),
    /// Print the JSON Schema of the configuration
    Schema(SchemaArgs),
    /// A small backend for demos and tests: answers with message, revision, host and headers
    Echo(EchoArgs),
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people
    Text,
    /// For programs
    Json,
}

/// Paths of the configuration; positional and `-c` mean the same.
#[derive(Debug, Clone, Default, Args)]
pub struct ConfigArgs {
    /// Files or directories [default: sluice.yaml]
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// The same, as an option
    #[arg(short = 'c', long = "config", value_name = "PATH")]
    config: Vec<PathBuf>,
}

impl ConfigArgs {
    /// Every path named, else [`DEFAULT_CONFIG`].
    pub fn paths(&self) -> Vec<PathBuf> {
        or_default(self.named())
    }

    fn named(&self) -> Vec<PathBuf> {
        self.config.iter().chain(&self.paths).cloned().collect()
    }
}

fn or_default(paths: Vec<PathBuf>) -> Vec<PathBuf> {
    if paths.is_empty() {
        vec![PathBuf::from(DEFAULT_CONFIG)]
    } else {
        paths
    }
}

/// `sluice run`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sluice run
  sluice run configs/greeter.yaml
  sluice run /etc/sluice.d --admin 127.0.0.1:9901 --log-format json

SIGHUP reloads the configuration (a change on disk does, too); SIGTERM drains and exits 0.
SLUICE_LOG sets the log level: info, debug, sluice_gateway=debug,info.")]
pub struct RunArgs {
    /// Where the configuration is.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Where the admin server listens, instead of what the configuration says: 127.0.0.1:9901 or unix:/path
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<AdminAddress>,
    /// How the log on stderr looks
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "pretty")]
    pub log_format: LogFormat,
    /// Follow a Kubernetes cluster: the Knative Ingresses of our class. Files are optional then
    #[arg(long)]
    pub kubernetes: bool,
    /// How to reach the cluster [default: $KUBECONFIG, or the credentials of the Pod]
    #[arg(long, value_name = "FILE", requires = "kubernetes")]
    pub kubeconfig: Option<PathBuf>,
}

impl RunArgs {
    /// Every path named, else [`DEFAULT_CONFIG`], or none where a cluster is followed.
    pub fn paths(&self) -> Vec<PathBuf> {
        match self.kubernetes {
            true => self.config.named(),
            false => self.config.paths(),
        }
    }
}

/// `sluice check`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sluice check
  sluice check configs/ --format json

Each mistake is printed as file:line:col: message, with a hint where there is one.")]
pub struct CheckArgs {
    /// Where the configuration is.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// How the result is printed
    #[arg(long, value_enum, default_value = "text")]
    pub format: OutputFormat,
}

/// `sluice explain`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sluice explain http://greeter.default.localhost:8080/
  sluice explain -c configs/ -X POST -H 'X-Beta: 1' https://hello.example.com/v2/items
  sluice explain --admin http://127.0.0.1:9900 http://hello.example.com/

Exits 1 when nothing would serve the request.")]
pub struct ExplainArgs {
    /// The URL as a client would use it
    #[arg(value_name = "URL")]
    pub url: String,
    /// Files or directories [default: sluice.yaml]
    #[arg(short = 'c', long = "config", value_name = "PATH", conflicts_with = "admin")]
    config: Vec<PathBuf>,
    /// A request header; may be repeated
    #[arg(short = 'H', long = "header", value_name = "K: V", value_parser = parse_header)]
    headers: Vec<String>,
    /// The method
    #[arg(short = 'X', long, value_name = "METHOD", default_value = "GET")]
    method: String,
    /// Ask a running gateway instead of reading the configuration
    #[arg(long, value_name = "URL")]
    pub admin: Option<AdminUrl>,
    /// How the answer is printed
    #[arg(long, value_enum, default_value = "text")]
    pub format: OutputFormat,
}

impl ExplainArgs {
    /// Every path named, else [`DEFAULT_CONFIG`].
    pub fn paths(&self) -> Vec<PathBuf> {
        or_default(self.config.clone())
    }
}

/// `sluice status`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sluice status
  sluice status --admin http://127.0.0.1:9901 --format json")]
pub struct StatusArgs {
    /// The admin address of the running gateway
    #[arg(long, value_name = "URL", default_value = client::DEFAULT_ADMIN)]
    pub admin: AdminUrl,
    /// How the table is printed
    #[arg(long, value_enum, default_value = "text")]
    pub format: OutputFormat,
}

/// `sluice upgrade`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sluice upgrade
  sluice upgrade --admin http://127.0.0.1:9901 --timeout 45s
  sluice upgrade --admin unix:/run/sluice/admin.sock --token-file /etc/sluice/token

Exits 0 when the new process serves; 1 when the old one goes on, and says why; 2 when no gateway
answers. SIGQUIT to the running gateway does the same.")]
pub struct UpgradeArgs {
    /// The admin address of the running gateway
    #[arg(long, value_name = "URL", default_value = client::DEFAULT_ADMIN)]
    pub admin: AdminUrl,
    /// A file with the admin token; by default it is taken from $SLUICE_TOKEN
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// How long the new process may take to get ready
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_upgrade_limit)]
    pub timeout: Duration,
}

/// `sluice schema`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sluice schema > sluice.schema.json
  # then, as the first line of a configuration, for editors:
  # yaml-language-server: $schema=sluice.schema.json")]
pub struct SchemaArgs {}

/// `sluice echo`
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  sluice echo --port 9001 --message Hello
  PORT=9002 K_REVISION=greeter-v2 sluice echo --message Namaste --start-delay 2s

GET /healthz is answered with `ok`, without delay. SIGTERM finishes open requests and exits 0.")]
pub struct EchoArgs {
    /// Where to listen; 0 lets the system choose [default: $PORT, else 8080]
    #[arg(long)]
    pub port: Option<u16>,
    /// The address to listen on; 0.0.0.0 in a container
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub address: IpAddr,
    /// The first word of every answer [default: $MESSAGE, else Hello]
    #[arg(long)]
    pub message: Option<String>,
    /// How long to wait before listening, as a slow start
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_duration)]
    pub start_delay: Duration,
    /// How long to wait before every answer, as slow work
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_duration)]
    pub delay: Duration,
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|e| format!("{e}; write it as 250ms, 10s or 5m"))
}

fn parse_header(text: &str) -> Result<String, String> {
    match text.split_once(':') {
        Some((name, _)) if !name.trim().is_empty() => Ok(text.to_owned()),
        _ => Err("write it as 'Name: value'".to_owned()),
    }
}

/// Prints an error message that says what to do; returns exit code 2.
fn fail(message: impl std::fmt::Display) -> ExitCode {
    eprintln!("sluice: {message}");
    ExitCode::from(2)
}

/// Prints to stdout. A closed pipe (`| head`) is not an error.
fn print(text: &str) {
    use std::io::Write;
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// Runs a future on a current-thread runtime.
fn block_on<T>(future: impl Future<Output = T>) -> std::io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(future))
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;
    use clap::{CommandFactory, Parser};

    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.command)
    }

    #[test]
    fn definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_examples() {
        let mut root = Cli::command();
        assert!(root.render_help().to_string().contains("Examples:"));
        for command in root.get_subcommands_mut().filter(|c| c.get_name() != "help") {
            let help = command.render_help().to_string();
            assert!(help.contains("Examples:"), "{help}");
        }
    }

    #[test]
    fn configuration_is_named_either_way() {
        let paths = |line| match parse(line).unwrap() {
            Command::Run(args) => args.config.paths(),
            Command::Check(args) => args.config.paths(),
            Command::Explain(args) => args.paths(),
            other => panic!("{other:?}"),
        };
        assert_eq!(paths("sluice run"), [PathBuf::from("sluice.yaml")]);
        assert_eq!(paths("sluice run a b"), [PathBuf::from("a"), "b".into()]);
        assert_eq!(paths("sluice check -c a -c b"), [PathBuf::from("a"), "b".into()]);
        assert_eq!(paths("sluice explain -c a http://x/"), [PathBuf::from("a")]);
        assert_eq!(paths("sluice explain http://x/"), [PathBuf::from("sluice.yaml")]);
    }

    #[test]
    fn options_of_the_contract_are_understood() {
        let line = "sluice run --admin 127.0.0.1:0 --log-format json --kubernetes a.yaml";
        let Command::Run(run) = parse(line).unwrap() else {
            panic!("{line}")
        };
        assert!(run.kubernetes && run.log_format == LogFormat::Json && run.admin.is_some());
        let line = "sluice echo --port 0 --message Namaste --start-delay 2s --delay 250ms";
        let Command::Echo(echo) = parse(line).unwrap() else {
            panic!("{line}")
        };
        assert_eq!((echo.start_delay.as_secs(), echo.delay.as_millis()), (2, 250));
        assert!(parse("sluice schema").is_ok());
        assert!(parse("sluice upgrade --admin http://[::1]:9900 --token-file a").is_ok());
        assert!(parse("sluice status --admin unix:/run/a.sock").is_ok());
        assert!(parse("sluice run --admin unix:a.sock").is_ok());
        for verb in ["status", "pause", "resume", "promote", "abort", "retry"] {
            let line = format!("sluice rollout {verb} shop/greeter --format json");
            assert!(parse(&line).is_ok(), "{line}");
        }
        assert!(parse("sluice revisions").is_ok() && parse("sluice revisions greeter").is_ok());
        assert!(parse("sluice pause greeter --token-file a --admin unix:a.sock").is_ok());
        assert!(parse("sluice resume greeter").is_ok());
        let Command::Rollback(back) = parse("sluice rollback shop/greeter greeter-v1").unwrap() else {
            panic!()
        };
        assert_eq!(back.action.service.to_string(), "shop/greeter");
        assert_eq!(back.revision.as_deref(), Some("greeter-v1"));
    }

    #[test]
    fn wrong_usage_exits_with_2() {
        for line in [
            "sluice",
            "sluice rum",
            "sluice run --admin nonsense",
            "sluice echo --delay 5",
            "sluice explain",
            "sluice explain -H nonsense http://x/",
            "sluice explain -c a --admin http://127.0.0.1:1 http://x/",
            "sluice status --admin https://127.0.0.1:9900",
            "sluice status --format xml",
            "sluice upgrade --timeout 2m",
            "sluice rollback",
            "sluice pause a/b/c",
            "sluice rollout",
            "sluice rollout stop greeter",
            "sluice rollout pause",
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}: {error}");
        }
        for line in ["sluice --help", "sluice -V", "sluice run --help"] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.exit_code(), 0, "{line}");
        }
        assert_eq!(parse("sluice -V").unwrap_err().kind(), ErrorKind::DisplayVersion);
    }
}

//! The load benchmarks: runs of the real gateway under load, each with a table, a verdict on its budget and a results
//! file.
//!
//! One process is the client, the judge and the parent of all child processes. However a run ends (success, failure,
//! time limit, signal), its future is dropped, and every child process with it.

mod admissions;
mod changes;
mod child;
mod client;
mod cluster;
mod flood;
mod gateway;
mod heap;
mod held_memory;
mod history;
mod hold;
mod instance;
mod load;
mod machine;
mod report;
mod stats;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use child::Child;
use report::Report;

/// The reason why a run has no figures.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("{0}")]
    Missing(String),
    #[error("{0}")]
    Unexpected(String),
    #[error("not done after {0:?}: the machine is too slow or too busy; try fewer rounds")]
    TooLong(Duration),
    #[error("interrupted")]
    Interrupted,
}

impl Failure {
    fn io(what: &str, source: impl Into<std::io::Error>) -> Self {
        Self::Io {
            what: what.to_owned(),
            source: source.into(),
        }
    }
}

#[derive(Debug, Parser)]
#[command(name = "measure", about = "Runs of the real gateway under load")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Detection and release after the backend's own listen().
    Hold(hold::Options),
    /// Memory of held requests.
    HeldMemory(held_memory::Options),
    /// Allocations of held and of warm requests by allocation site, under valgrind.
    Heap(heap::Options),
    /// Warm admissions per second and core.
    Admissions(admissions::Options),
    /// Latency of a quiet service beside a flooded one.
    Flood(flood::Options),
    /// The dashboard's hour at 1,000 revisions: time of a step, memory.
    History(history::Options),
    /// One changed file among thousands of services: time, CPU, memory, added latency.
    Changes(changes::Options),
    /// Figures in a Kubernetes cluster, inside `tests/cluster/run`: `bench/cluster` runs them.
    Cluster(cluster::Options),
    /// The program of a Pod.
    #[command(hide = true)]
    Pod {
        #[arg(long, default_value_t = 0)]
        work_ms: u64,
    },
    /// The backend of cold starts; the gateway starts it.
    #[command(hide = true)]
    Instance,
    /// A backend that answers the same 100 bytes.
    #[command(hide = true)]
    Responder {
        address: std::net::SocketAddr,
        #[arg(default_value_t = 0)]
        delay_ms: u64,
    },
    /// An open-loop load generator for one service.
    #[command(hide = true)]
    Offer(flood::Offer),
    /// Allocations of a warm request, for `bench/guard`.
    #[command(hide = true)]
    Warm(heap::Warm),
    /// The clients and the backends of `bench/compare`.
    #[command(hide = true)]
    Load(load::Options),
}

/// Options of every run.
#[derive(Debug, Clone, Args)]
pub(crate) struct Common {
    /// The gateway's binary.
    #[arg(long)]
    sluice: Option<PathBuf>,
    /// The directory of the results.
    #[arg(long, default_value = "bench/results/unsorted")]
    out: PathBuf,
    /// The profile that the binaries were built with, for the record.
    #[arg(long, default_value = "unknown")]
    profile: String,
    /// Seconds until the run gives up; rounds that would not end before are left out.
    #[arg(long, default_value_t = 240, overrides_with = "limit")]
    limit: u64,
}

impl Common {
    /// Options for a run without a report.
    fn of(sluice: PathBuf) -> Self {
        Self {
            sluice: Some(sluice),
            out: PathBuf::new(),
            profile: String::new(),
            limit: 240,
        }
    }
}

/// The environment of a run.
pub(crate) struct Run {
    sluice: PathBuf,
    /// A temporary directory, removed at the end of the run.
    folder: tempfile::TempDir,
    started: Instant,
    limit: Duration,
}

impl Run {
    fn new(common: &Common, needs_gateway: bool) -> Result<Self, Failure> {
        child::program("setpriv")?;
        child::program("taskset")?;
        let given = common.sluice.as_deref().filter(|_| needs_gateway);
        let sluice = match given.map(Path::canonicalize) {
            Some(Ok(path)) if path.is_file() => path,
            None if !needs_gateway => PathBuf::new(),
            _ => {
                return Err(Failure::Missing(format!(
                    "no gateway at '{}': build it and give --sluice PATH (bench/run does)",
                    given.unwrap_or_else(|| Path::new("")).display()
                )));
            }
        };
        Ok(Self {
            sluice,
            folder: tempfile::tempdir().map_err(|e| Failure::io("a temporary directory", e))?,
            started: Instant::now(),
            limit: Duration::from_secs(common.limit),
        })
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A directory inside of the run's own directory.
    fn inner(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.folder().join(name);
        std::fs::create_dir_all(&path).map_err(|e| Failure::io(&path.display().to_string(), e))?;
        Ok(path)
    }

    /// Whether another round of the same duration still fits into the time limit, with time to finish.
    fn another(&self, round: Duration) -> bool {
        self.started.elapsed() + round.mul_f64(1.3) < self.limit.mul_f64(0.95)
    }

    /// Starts a backend with responses of 100 bytes.
    async fn responder(
        &self,
        delay_ms: u64,
        cpu: Option<usize>,
    ) -> Result<(Child, std::net::SocketAddr), Failure> {
        let [address] = child::free_addresses()?;
        let me = std::env::current_exe().map_err(|e| Failure::io("this executable", e))?;
        let arguments = ["responder".to_owned(), address.to_string(), delay_ms.to_string()];
        let name = format!("responder-{}", address.port());
        let mut child = Child::start(&name, &me, &arguments, cpu, self.folder())?;
        child.listens(address, Duration::from_secs(10)).await?;
        Ok((child, address))
    }
}

/// Checks for two CPUs, one for the measured process and one for all other processes, and binds this process to the
/// second.
fn two_cpus() -> Result<(), Failure> {
    if machine::cpus() < 2 {
        return Err(Failure::Missing(
            "one CPU for the proxy and one for the rest are needed".to_owned(),
        ));
    }
    machine::pin(OTHER_CPU)
}

const PROXY_CPU: usize = 0;
const OTHER_CPU: usize = 1;

/// Runs the benchmark of the command line.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // Fails only if a provider is installed already, and none is.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let outcome = match cli.command {
        Command::Hold(o) => run("hold", &o.common.clone(), || hold::run(o)),
        Command::HeldMemory(o) => run("held-memory", &o.common.clone(), || held_memory::run(o)),
        Command::Heap(o) => run("heap", &o.common.clone(), || heap::run(o)),
        Command::Admissions(o) => run("admissions", &o.common.clone(), || admissions::run(o)),
        Command::Flood(o) => run("flood", &o.common.clone(), || flood::run(o)),
        Command::Changes(o) => run("changes", &o.common.clone(), || changes::run(o)),
        Command::History(o) => run("history", &o.common.clone(), || history::run(o)),
        Command::Cluster(options) => cluster::main(options),
        Command::Pod { work_ms } => blocking(cluster::pod(Duration::from_millis(work_ms))),
        Command::Instance => blocking(instance::run()),
        Command::Offer(offer) => blocking(flood::offer(offer)),
        Command::Warm(options) => blocking(heap::warm(options)),
        Command::Load(options) => blocking(load::run(options)),
        Command::Responder { address, delay_ms } => {
            responder(address, Duration::from_millis(delay_ms)).map_err(|e| Failure::io("the responder", e))
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("measure: {failure}");
            ExitCode::FAILURE
        }
    }
}

use crate::responder::run as responder;

fn blocking(task: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::io("a runtime", e))?;
    runtime.block_on(task)
}

/// Runs one benchmark within its time limit and keeps its report.
fn run<F>(name: &str, common: &Common, task: impl FnOnce() -> F) -> Result<(), Failure>
where
    F: Future<Output = Result<Report, Failure>>,
{
    let load = machine::load_average();
    let started = Instant::now();
    machine::raise_descriptors(1024)?;
    let limit = Duration::from_secs(common.limit);
    blocking(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(|e| Failure::io("signals", e))?;
        let report = tokio::select! {
            report = task() => report?,
            () = tokio::time::sleep(limit) => return Err(Failure::TooLong(limit)),
            _ = tokio::signal::ctrl_c() => return Err(Failure::Interrupted),
            _ = terminate.recv() => return Err(Failure::Interrupted),
        };
        let about = report::about(&common.profile, load, started.elapsed().as_secs());
        report.keep(name, &about, &common.out)
    })
}

//! `sluice run`: build, run, drain.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sluice_control::autoscale::autoscaler;
use sluice_control::compile;
use sluice_control::config::Diagnostics;
use sluice_control::reconcile::{Compiled, Loaded};
use sluice_control::scale::{Controller, ScaleHandle, ScaleOptions};
use sluice_control::source::{FileSource, ReloadHandle, SourceFile};
use sluice_gateway::admin::{AdminServer, HealthServer};
use sluice_gateway::cli::RunArgs;
use sluice_gateway::edge::{Drain, Edge};
use sluice_gateway::observe::{AccessLog, LineWriter, Metrics, Observer, init_logging};
use sluice_gateway::proxy::Proxy;
use sluice_gateway::registry::Registry;
use sluice_gateway::request::{Engine, MeasuredRevision};
use sluice_model::{DrainSettings, SnapshotReader};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use super::check::{bad_files, env};
use super::observed::{DemandRouter, Observed, Plans};
use super::parties::{Everybody, Listeners, Orders};
use super::signals::{Ask, Signals};

/// Bytes of log lines that may wait for a slow reader, for each of stdout and stderr.
const LOG_BUFFER: usize = 4 << 20;

/// How long the last log lines may take.
const LOG_FLUSH: Duration = Duration::from_secs(1);

/// Why the gateway cannot run, with the exit code that says so.
struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// The configuration was rejected.
    fn rejected(message: impl ToString) -> Self {
        Self {
            code: 1,
            message: message.to_string(),
        }
    }

    /// It cannot start.
    fn start(message: impl ToString) -> Self {
        Self {
            code: 2,
            message: message.to_string(),
        }
    }
}

/// Runs the gateway until it is told to stop.
pub(crate) fn run(args: &RunArgs) -> ExitCode {
    if args.kubernetes {
        eprintln!("sluice: --kubernetes is not available in this build: name config files instead");
        return ExitCode::from(2);
    }
    let metrics = Metrics::new();
    let writer = |name, file: std::io::Result<File>| {
        LineWriter::start(name, file?, LOG_BUFFER, metrics.log_lines_dropped())
    };
    // Duplicates: the writers own what they write to, and std keeps its own.
    let stdout = writer(
        "access-log",
        std::io::stdout().as_fd().try_clone_to_owned().map(File::from),
    );
    let stderr = writer(
        "log",
        std::io::stderr().as_fd().try_clone_to_owned().map(File::from),
    );
    let (stdout, stderr) = match (stdout, stderr) {
        (Ok(stdout), Ok(stderr)) => (stdout, stderr),
        (Err(e), _) | (_, Err(e)) => {
            eprintln!("sluice: cannot start logging: {e}");
            return ExitCode::from(2);
        }
    };
    let outcome = init_logging(args.log_format, stderr.sink())
        .map_err(Failure::start)
        .and_then(|()| start(args, metrics.clone(), AccessLog::new(stdout.sink())));
    stdout.shutdown(LOG_FLUSH);
    stderr.shutdown(LOG_FLUSH);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("sluice: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

fn start(args: &RunArgs, metrics: Metrics, access_log: AccessLog) -> Result<(), Failure> {
    raise_descriptor_limit();
    let source = FileSource::new(&args.config.paths());
    let reload = source.reload_handle();
    let listeners = Listeners::default();
    let loaded = Loaded::first(source, loader(Arc::clone(&listeners)))
        .map_err(|e| Failure::rejected(format!("config rejected\n{e}")))?;
    // Requests on one runtime, everything else on another: a reload of ten thousand services or a
    // scrape does not stand in a request's way.
    let data = runtime("sluice-data", None)?;
    let control = runtime("sluice-control", Some(2))?;
    let executable =
        std::env::current_exe().map_err(|e| Failure::start(format!("cannot find my own executable: {e}")))?;

    let (drain, phase) = watch::channel(Drain::Serving);
    let (scale, controller) = Controller::new();
    let demand = Arc::new(DemandRouter {
        scale: scale.clone(),
        autoscale: OnceLock::new(),
    });
    let snapshot = loaded.reader().load();
    let registry = {
        let metrics = metrics.clone();
        let observer = Box::new(
            move |spec: &sluice_model::RevisionSpec| -> Arc<dyn sluice_gateway::registry::RevisionObserver> {
                Arc::new(MeasuredRevision(metrics.revision(&spec.service, &spec.id)))
            },
        );
        Arc::new(Registry::new(
            &snapshot,
            Arc::clone(&demand) as _,
            observer,
            data.handle().clone(),
        ))
    };
    let observer = Observer {
        access_log,
        metrics: metrics.clone(),
    };
    let engine = Arc::new(Engine {
        serving: registry.reader(),
        observer,
        drain: phase.clone(),
    });
    let proxy = Arc::new(Proxy::new(engine, workers()));
    let edge = {
        let _entered = data.enter();
        Arc::new(Edge::new(
            loaded.reader().clone(),
            Arc::clone(&proxy) as _,
            Arc::new(metrics.clone()),
            drain,
        ))
    };

    let settings = Arc::clone(snapshot.settings());
    drop(snapshot);
    let (admin, health) = control.block_on(async {
        let admin = AdminServer::bind(args.admin.unwrap_or(settings.admin))
            .await
            .map_err(Failure::start)?;
        let health = match settings.health {
            Some(address) => Some(HealthServer::bind(address).await.map_err(Failure::start)?),
            None => None,
        };
        Ok::<_, Failure>((admin, health))
    })?;
    let errors = data.block_on(edge.apply(&settings));
    if !errors.is_empty() {
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        return Err(Failure::start(lines.join("\nsluice: ")));
    }

    {
        let _entered = control.enter();
        let seed = fastrand::u64(..);
        let options = ScaleOptions { executable, seed };
        controller.spawn(Arc::clone(&registry) as _, options);
    }
    let (autoscale, decisions) = autoscaler(Arc::clone(&registry) as _, Arc::new(Orders(scale.clone())));
    let _ = demand.autoscale.set(autoscale.clone());
    control.spawn(decisions.run());

    let plans = Arc::new(Plans::default());
    let observed = Arc::new(Observed {
        registry: Arc::clone(&registry),
        edge: Arc::clone(&edge),
        scale: scale.clone(),
        metrics: metrics.clone(),
        drain: phase,
        plans: Arc::clone(&plans),
        admin: admin.address(),
        health: health.as_ref().map(HealthServer::address),
    });
    let reader = loaded.reader().clone();
    let parties = Everybody {
        registry: Arc::clone(&registry),
        edge: Arc::clone(&edge),
        scale: scale.clone(),
        autoscale,
        metrics,
        plans,
        runtime: data.handle().clone(),
        listeners,
        started: false,
    };
    let reconciler = loaded
        .attach(parties)
        .map_err(|refused| Failure::rejected(refused.join("\n")))?;
    announce(&edge, &observed);
    control.spawn(admin.serve(Arc::clone(&observed) as _));
    if let Some(health) = health {
        control.spawn(health.serve(observed as _));
    }
    control.spawn(reconciler.run());

    let signals = {
        let _entered = control.enter();
        Signals::new().map_err(|e| Failure::start(format!("cannot listen for signals: {e}")))?
    };
    control.block_on(until_stopped(
        signals, reload, &edge, &registry, &scale, &reader, &proxy,
    ));
    // Whatever still runs is of no use to anybody: connections are closed, instances stopped.
    data.shutdown_background();
    control.shutdown_background();
    Ok(())
}

/// Reads and compiles; what is wrong comes as lines. The first time certificates have to be good,
/// too: later a bad one leaves the old one in place, and the edge says so.
/// Where listeners stand goes to `listeners`, for whoever binds them.
fn loader(
    listeners: Listeners,
) -> impl FnMut(&[SourceFile]) -> Result<Compiled, Vec<String>> + Send + 'static {
    let lines = |all: &Diagnostics| all.items().iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut first = true;
    move |files| {
        let compiled = compile::load(files, &env).map_err(|diagnostics| lines(&diagnostics))?;
        if std::mem::take(&mut first) {
            let bad = bad_files(&compiled);
            if !bad.is_empty() {
                return Err(lines(&bad));
            }
        }
        *listeners.lock() = compiled.listeners;
        let warnings = lines(&compiled.warnings);
        Ok(Compiled {
            snapshot: compiled.snapshot,
            plan: compiled.plan,
            warnings,
        })
    }
}

/// Takes as many descriptors as the system lets this process have: the usual soft limit of 1024 is
/// for programs that use `select`. Instances inherit it, as they inherit everything else.
fn raise_descriptor_limit() {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) if soft < hard => match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
            Ok(()) => tracing::info!(from = soft, to = hard, "descriptor limit raised"),
            Err(e) => tracing::warn!("the descriptor limit stays at {soft}: {e}"),
        },
        Ok(_) => {}
        Err(e) => tracing::warn!("the descriptor limit is unknown: {e}"),
    }
}

fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn runtime(name: &'static str, workers: Option<usize>) -> Result<Runtime, Failure> {
    let mut builder = Builder::new_multi_thread();
    if let Some(workers) = workers {
        builder.worker_threads(workers);
    }
    builder
        .thread_name(name)
        .enable_all()
        .build()
        .map_err(|e| Failure::start(format!("cannot start threads: {e}")))
}

/// Says on stdout what is bound, one line each: port 0 is known only now.
fn announce(edge: &Edge, observed: &Observed) {
    let mut out = std::io::stdout().lock();
    let mut lines = String::new();
    for (index, listener) in edge.listeners().iter().enumerate() {
        let scheme = if listener.certificates.is_some() {
            "https"
        } else {
            "http"
        };
        lines.push_str(&format!(
            "sluice: listener {index} on {} ({scheme})\n",
            listener.bound
        ));
    }
    lines.push_str(&format!("sluice: admin on {}\n", observed.admin));
    if let Some(health) = observed.health {
        lines.push_str(&format!("sluice: health on {health}\n"));
    }
    lines.push_str("sluice: ready\n");
    let _ = out.write_all(lines.as_bytes()).and_then(|()| out.flush());
}

async fn until_stopped(
    mut signals: Signals,
    reload: ReloadHandle,
    edge: &Edge,
    registry: &Registry,
    scale: &ScaleHandle,
    reader: &SnapshotReader,
    proxy: &Proxy,
) {
    loop {
        match signals.next().await {
            Ask::Reload => {
                tracing::info!("reload asked for");
                reload.reload();
            }
            Ask::Upgrade => tracing::warn!("SIGQUIT: an upgrade in place is not available in this build"),
            Ask::Stop => break,
        }
    }
    let settings = reader.load().settings().drain;
    tokio::select! {
        () = leave(edge, registry, proxy, settings) => {}
        // A second signal means now.
        () = async { while signals.next().await != Ask::Stop {} } => tracing::warn!("stopping at once"),
    }
    scale.shutdown().await;
    tracing::info!("gone");
}

/// The way out: nothing new, what is open finishes, the rest is closed at the deadline.
async fn leave(edge: &Edge, registry: &Registry, proxy: &Proxy, settings: DrainSettings) {
    tracing::info!(open = edge.open_connections(), "draining");
    edge.drain();
    proxy.drain();
    tokio::time::sleep(settings.delay).await;
    edge.stop_accepting().await;
    if tokio::time::timeout(settings.timeout, edge.drained())
        .await
        .is_err()
    {
        tracing::warn!(
            open = edge.open_connections(),
            "the drain's deadline is over: closing what is open"
        );
        registry.close_all();
        edge.close();
        // Waiters get their answer, WebSockets their Close.
        let _ = tokio::time::timeout(CLOSING, edge.drained()).await;
    }
}

/// How long connections may take to end once they are told to.
const CLOSING: Duration = Duration::from_secs(6);

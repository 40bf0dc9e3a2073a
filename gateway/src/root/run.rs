//! `sluice run`: build, run, drain.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sluice_control::autoscale::autoscaler;
use sluice_control::compile;
use sluice_control::config::Diagnostics;
use sluice_control::reconcile::{Compiled, Loaded};
use sluice_control::scale::{Controller, ScaleHandle, ScaleOptions};
use sluice_control::source::{FileSource, ReloadHandle, SourceFile};
use sluice_gateway::admin::{AdminServer, HealthServer, leave};
use sluice_gateway::cli::RunArgs;
use sluice_gateway::edge::{Drain, Edge};
use sluice_gateway::observe::{AccessLog, LineWriter, Metrics, Observer, init_logging};
use sluice_gateway::proxy::Proxy;
use sluice_gateway::registry::Registry;
use sluice_gateway::request::{Engine, MeasuredRevision};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::check::{bad_files, env};
use super::observed::{DemandRouter, Observed, Plans};
use super::parties::{Everybody, Listeners, Orders};
use super::signals::Signals;
use super::upgrade::{self, Giving, New, Notifier, Old, Program, SocketKind, SocketName, Table};
use super::way_out::Running;

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
    let origin = Origin {
        started: SystemTime::now(),
        program: Program::running()
            .map_err(|e| Failure::start(format!("cannot find my own executable: {e}")))?,
        notify: Arc::new(Notifier::from_environment()),
    };
    // Requests on one runtime, everything else on another: a reload of ten thousand services or a
    // scrape does not stand in a request's way.
    let data = runtime("sluice-data", None)?;
    let control = runtime("sluice-control", Some(2))?;
    let socket = upgrade::called().map_err(|e| Failure::start(format!("cannot be upgraded to: {e}")))?;
    let mut new = match socket {
        Some(socket) => {
            let greeted = control.block_on(New::greet(socket));
            Some(greeted.map_err(|why| Failure::start(format!("cannot take over: {why}")))?)
        }
        None => None,
    };
    let built = build(args, metrics, access_log, new.as_mut(), &data, &control).and_then(|built| {
        // Nothing is accepted or scaled before this returns: until then another process does.
        if let Some(new) = &mut new {
            let told = control.block_on(new.prepared());
            told.map_err(|why| Failure::start(format!("cannot take over: {why}")))?;
        }
        Ok(built)
    });
    let running = match built.and_then(|built| serve(built, origin, new.as_mut(), &control)) {
        Ok(running) => running,
        Err(failure) => {
            if let Some(new) = new {
                control.block_on(new.refuse(&failure.message));
            }
            return Err(failure);
        }
    };
    control.block_on(serve_on(running, new));
    // Whatever still runs is of no use to anybody: connections are closed, instances stopped.
    data.shutdown_background();
    control.shutdown_background();
    Ok(())
}

async fn serve_on(mut running: Running, new: Option<New>) {
    match new {
        Some(new) => {
            running.edge.open();
            tracing::info!("upgrade: serving in place of process {}", new.old_pid());
            running.predecessor = Some(new.serving(Arc::clone(&running.notify)).await);
        }
        None => running.notify.ready(),
    }
    running.run().await;
}

/// How this process came to be.
struct Origin {
    started: SystemTime,
    program: Program,
    notify: Arc<Notifier>,
}

/// Everything in its place: bound, and nothing done yet.
struct Built<L> {
    loaded: Loaded<FileSource, L>,
    reload: ReloadHandle,
    executable: PathBuf,
    phase: watch::Receiver<Drain>,
    scale: ScaleHandle,
    controller: Controller,
    demand: Arc<DemandRouter>,
    registry: Arc<Registry>,
    proxy: Arc<Proxy>,
    edge: Arc<Edge>,
    admin: AdminServer,
    health: Option<HealthServer>,
    /// Admin and health, by configured address.
    servers: Vec<(SocketName, OwnedFd)>,
    /// Where listeners accept.
    accepting: Handle,
    /// Where the configuration has them.
    listeners: Listeners,
    metrics: Metrics,
}

/// Loads the configuration, builds and binds. Sockets come from the process whose place this one takes
/// wherever it has them; then nothing accepts yet.
fn build(
    args: &RunArgs,
    metrics: Metrics,
    access_log: AccessLog,
    mut new: Option<&mut New>,
    data: &Runtime,
    control: &Runtime,
) -> Result<Built<impl Load>, Failure> {
    let source = FileSource::new(&args.config.paths());
    let reload = source.reload_handle();
    let listeners = Listeners::default();
    let loaded = Loaded::first(source, loader(Arc::clone(&listeners)))
        .map_err(|e| Failure::rejected(format!("config rejected\n{e}")))?;
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
    let admin_address = args.admin.unwrap_or(settings.admin);
    let mut inherited = |kind, address| new.as_mut().and_then(|new| new.take(kind, address));
    let (admin, health) = control.block_on(async {
        let cannot = |e: std::io::Error| Failure::start(format!("cannot use an inherited socket: {e}"));
        let admin = match inherited(SocketKind::Admin, admin_address) {
            Some(socket) => AdminServer::from_std(socket).map_err(cannot)?,
            None => AdminServer::bind(admin_address).await.map_err(Failure::start)?,
        };
        let health = match settings.health {
            Some(address) => Some(match inherited(SocketKind::Health, address) {
                Some(socket) => HealthServer::from_std(socket).map_err(cannot)?,
                None => HealthServer::bind(address).await.map_err(Failure::start)?,
            }),
            None => None,
        };
        Ok::<_, Failure>((admin, health))
    })?;
    let mut servers = Vec::new();
    let mut keep = |kind, address, socket: std::io::Result<OwnedFd>| {
        let socket = socket.map_err(|e| Failure::start(format!("no more descriptors: {e}")))?;
        servers.push((SocketName { kind, address }, socket));
        Ok::<_, Failure>(())
    };
    keep(SocketKind::Admin, admin_address, admin.socket())?;
    if let (Some(address), Some(health)) = (settings.health, &health) {
        keep(SocketKind::Health, address, health.socket())?;
    }
    if let Some(new) = new {
        edge.hold_shut();
        edge.inherit(new.take_listeners())
            .map_err(|e| Failure::start(format!("cannot use an inherited socket: {e}")))?;
    }
    let errors = data.block_on(edge.apply(&settings));
    edge.forget_inherited();
    if !errors.is_empty() {
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        return Err(Failure::start(lines.join("\nsluice: ")));
    }
    Ok(Built {
        loaded,
        reload,
        executable,
        phase,
        scale,
        controller,
        demand,
        registry,
        proxy,
        edge,
        admin,
        health,
        servers,
        accepting: data.handle().clone(),
        listeners,
        metrics,
    })
}

/// Sets everything going. An edge that is held shut stays so: who called opens it.
fn serve<L: Load>(
    built: Built<L>,
    origin: Origin,
    new: Option<&mut New>,
    control: &Runtime,
) -> Result<Running, Failure> {
    let Built {
        loaded,
        reload,
        executable,
        phase,
        scale,
        controller,
        demand,
        registry,
        proxy,
        edge,
        admin,
        health,
        servers,
        accepting,
        listeners,
        metrics,
    } = built;
    // First: from here on a signal is an order, and not the end.
    let signals = {
        let _entered = control.enter();
        Signals::new().map_err(|e| Failure::start(format!("cannot listen for signals: {e}")))?
    };
    // Before anything is admitted or decided here.
    let (left, wanted) = new
        .map(|new| new.take_over(&registry, &scale))
        .unwrap_or_default();
    {
        let _entered = control.enter();
        let seed = fastrand::u64(..);
        let options = ScaleOptions { executable, seed };
        controller.spawn(Arc::clone(&registry) as _, options, left);
    }
    let (autoscale, decisions) = autoscaler(
        Arc::clone(&registry) as _,
        Arc::new(Orders(scale.clone())),
        wanted,
    );
    let _ = demand.autoscale.set(autoscale.clone());
    let decisions = control.spawn(decisions.run()).abort_handle();

    let plans = Arc::new(Plans::default());
    let (upgrades, asked) = upgrade::upgrades();
    let observed = Arc::new(Observed {
        registry: Arc::clone(&registry),
        edge: Arc::clone(&edge),
        scale: scale.clone(),
        metrics: metrics.clone(),
        drain: phase,
        plans: Arc::clone(&plans),
        admin: admin.address(),
        health: health.as_ref().map(HealthServer::address),
        started: origin.started,
        upgrades,
        handed_over: AtomicBool::new(false),
    });
    let reader = loaded.reader().clone();
    let table = Table::new(Arc::clone(&registry), reader.clone());
    let parties = Everybody {
        registry: Arc::clone(&registry),
        table: Arc::clone(&table),
        edge: Arc::clone(&edge),
        scale: scale.clone(),
        autoscale,
        metrics,
        plans,
        runtime: accepting,
        notify: Arc::clone(&origin.notify),
        listeners,
        started: false,
    };
    let reconciler = loaded
        .attach(parties)
        .map_err(|refused| Failure::rejected(refused.join("\n")))?;
    announce(&edge, &observed);
    let (leaver, leave) = leave();
    let mut conversations = JoinSet::new();
    if let Some(health) = health {
        let health = health.serve(Arc::clone(&observed) as _, leave.clone());
        conversations.spawn_on(health, control.handle());
    }
    conversations.spawn_on(admin.serve(Arc::clone(&observed) as _, leave), control.handle());
    let reconciler = control.spawn(reconciler.run()).abort_handle();
    Ok(Running {
        signals,
        reload,
        reconciler,
        edge: Arc::clone(&edge),
        registry,
        proxy,
        scale: scale.clone(),
        reader,
        observed,
        notify: origin.notify,
        leaver,
        servers: conversations,
        old: Old {
            program: origin.program,
            edge,
            servers,
            scaling: Giving::new(scale.clone(), table, decisions),
        },
        asked,
        predecessor: None,
    })
}

/// Makes a Snapshot of files, or says what is wrong in lines.
trait Load: FnMut(&[SourceFile]) -> Result<Compiled, Vec<String>> + Send + 'static {}

impl<L: FnMut(&[SourceFile]) -> Result<Compiled, Vec<String>> + Send + 'static> Load for L {}

/// Reads and compiles; what is wrong comes as lines. The first time certificates have to be good,
/// too: later a bad one leaves the old one in place, and the edge says so.
/// Where listeners stand goes to `listeners`, for whoever binds them.
fn loader(listeners: Listeners) -> impl Load {
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

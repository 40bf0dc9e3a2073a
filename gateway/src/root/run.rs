//! `sluice run`: builds the gateway, serves, and drains.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use parking_lot::Mutex;
use serde_json::Value;
use sluice_control::autoscale::{Outside, autoscaler};
use sluice_control::release::{HistoryHandle, Recorder, RetentionTask};
use sluice_control::rollout::{RolloutTask, Surroundings};
use sluice_control::scale::ScaleOptions;
use sluice_gateway::admin::{AdminServer, graceful_shutdown};
use sluice_gateway::cli::RunArgs;
use sluice_gateway::edge::Edge;
use sluice_gateway::observe::{AccessLog, LogWriter, Metrics, RecentDecisions, init_logging, wall_clock};
use sluice_gateway::replicas::Replicas;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use super::admin_state::{GatewayState, Plans, RecordedDecisions};
use super::applier::Applier;
use super::build::{Built, build};
use super::cluster;
use super::outcomes::CountedOutcomes;
use super::shutdown::Running;
use super::signals::Signals;
use super::startup_error::StartupError;
use super::upgrade::{self, Handoff, HandoffSender, Notifier, Program, Table, Takeover};

/// Bytes of log lines that may wait for a slow reader, for each of stdout and stderr.
const LOG_BUFFER: usize = 4 << 20;

/// Time to flush the last log lines.
const LOG_FLUSH: Duration = Duration::from_secs(1);

/// Runs the gateway until a stop is requested.
pub(crate) fn run(args: &RunArgs) -> ExitCode {
    if args.kubernetes && !cfg!(feature = "cluster") {
        eprintln!("sluice: --kubernetes is not available in this build: name config files instead");
        return ExitCode::from(2);
    }
    let metrics = Metrics::new();
    let writer = |name, file: std::io::Result<File>| {
        LogWriter::start(name, file?, LOG_BUFFER, metrics.log_lines_dropped())
    };
    // Duplicates: the log writers own their files, and std keeps its own.
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
        .map_err(StartupError::start)
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

/// Time for the last words to other replicas, which otherwise wait for the end of this one's leases.
const FAREWELL: Duration = Duration::from_millis(20);

fn start(args: &RunArgs, metrics: Metrics, access_log: AccessLog) -> Result<(), StartupError> {
    let descriptors = raise_descriptor_limit();
    let program =
        Program::running().map_err(|e| StartupError::start(format!("cannot find my own executable: {e}")))?;
    let mut origin = Origin {
        started: SystemTime::now(),
        program: program.with_limit(descriptors),
        notify: Arc::new(Notifier::from_environment()),
    };
    // Requests on one runtime, everything else on another: a reload of ten thousand services or a
    // scrape does not stand in a request's way.
    let data = runtime("sluice-data", None)?;
    let control = runtime("sluice-control", Some(2))?;
    let socket = upgrade::inherited_socket()
        .map_err(|e| StartupError::start(format!("cannot be upgraded to: {e}")))?;
    if socket.is_some() {
        // This process was started with the limit that the old process had raised.
        origin.program = origin.program.with_inherited_limit();
    }
    let mut new = match socket {
        Some(socket) => {
            let greeted = control.block_on(Takeover::greet(socket));
            Some(greeted.map_err(|why| StartupError::start(format!("cannot take over: {why}")))?)
        }
        None => None,
    };
    let replicas = Replicas::new();
    let built = build(
        args,
        metrics,
        access_log,
        new.as_mut(),
        &data,
        &control,
        &replicas,
    );
    let built = built.and_then(|built| {
        // Nothing is accepted or scaled before `prepared` returns: until then the old process does both.
        if let Some(new) = &mut new {
            let told = control.block_on(new.prepared());
            told.map_err(|why| StartupError::start(format!("cannot take over: {why}")))?;
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
    // Remaining tasks are dropped: connections are closed and instances stopped.
    data.shutdown_background();
    if replicas.leave() {
        control.block_on(async { tokio::time::sleep(FAREWELL).await });
    }
    control.shutdown_background();
    Ok(())
}

async fn serve_on(mut running: Running, new: Option<Takeover>) {
    match new {
        Some(new) => {
            running.edge.start_accepting();
            tracing::info!("upgrade: serving in place of process {}", new.old_pid());
            running.predecessor = Some(new.serving(Arc::clone(&running.notify)).await);
        }
        None => running.notify.ready(),
    }
    running.run().await;
}

/// How this process was started.
struct Origin {
    started: SystemTime,
    program: Program,
    notify: Arc<Notifier>,
}

/// Starts all tasks. An edge that is held shut stays shut until the caller opens it.
fn serve(
    built: Built,
    origin: Origin,
    new: Option<&mut Takeover>,
    control: &Runtime,
) -> Result<Running, StartupError> {
    let Built {
        loaded,
        cluster,
        synced,
        generation,
        reload,
        executable,
        phase,
        scale,
        controller,
        demand,
        registry,
        edge,
        admin,
        health,
        servers,
        accepting,
        metrics,
        exporter,
        state: kept,
    } = built;
    // First: until the handlers are installed, a signal kills the process.
    let signals = {
        let _entered = control.enter();
        Signals::new().map_err(|e| StartupError::start(format!("cannot listen for signals: {e}")))?
    };
    // Before any request is admitted and any scale decision made in this process.
    let (left, wanted, inherited) = new
        .map(|new| new.take_over(&registry, &scale))
        .unwrap_or_default();
    {
        let _entered = control.enter();
        let seed = fastrand::u64(..);
        let options = ScaleOptions {
            executable,
            seed,
            descriptors: origin.program.descriptors(),
        };
        controller.spawn(Arc::clone(&registry) as _, options, left);
    }
    let recent = Arc::new(RecentDecisions::default());
    let desired = Arc::new(RecordedDecisions {
        scale: scale.clone(),
        recent: Arc::clone(&recent),
    });
    let kept = kept.map(|(handle, writer)| {
        control.spawn(writer.run());
        handle
    });
    let wall = || {
        let since = wall_clock().duration_since(SystemTime::UNIX_EPOCH);
        since.unwrap_or_default().as_secs()
    };
    let (histories, edits) = HistoryHandle::new();
    let recorder = Recorder::new(edits, kept.clone(), wall);
    let outside = Outside {
        wall: Box::new(wall),
        state: kept.clone(),
    };
    let (autoscale, decisions) = autoscaler(Arc::clone(&registry) as _, desired, wanted, outside);
    let _ = demand.autoscale.set(autoscale.clone());
    let decisions = control.spawn(decisions.run()).abort_handle();

    let (task, rollouts) = RolloutTask::new(Surroundings {
        histories: histories.clone(),
        outcomes: Arc::new(CountedOutcomes {
            registry: Arc::clone(&registry),
            metrics: metrics.clone(),
        }),
        autoscale: Arc::new(autoscale.clone()),
        status: Arc::new(scale.clone()),
        wall: Box::new(wall),
    });

    let retention = RetentionTask {
        histories: histories.clone(),
        retention: {
            let reader = registry.reader();
            Box::new(move || reader.peek().settings().retention)
        },
        busy: {
            let registry = Arc::clone(&registry);
            Arc::new(move |id| {
                let load = registry.live(id).map(|live| live.peek(Instant::now()));
                load.is_some_and(|load| load.in_flight + load.queued > 0)
            })
        },
        wall: Box::new(wall),
    };

    let plans = Arc::new(Plans::default());
    let diagnostics = Arc::new(Mutex::new(Value::Null));
    let (upgrades, upgrade_requests) = upgrade::upgrade_requests();
    let state = Arc::new(GatewayState {
        registry: Arc::clone(&registry),
        edge: Arc::clone(&edge),
        scale: scale.clone(),
        autoscale: autoscale.clone(),
        metrics: metrics.clone(),
        drain: phase,
        plans: Arc::clone(&plans),
        admin: admin.address().clone(),
        health: health.as_ref().and_then(AdminServer::tcp_address),
        decisions: recent,
        diagnostics: Arc::clone(&diagnostics),
        started: origin.started,
        upgrades,
        handed_over: AtomicBool::new(false),
        synced: Arc::clone(&synced),
        stats: demand.stats.clone(),
        histories: histories.clone(),
        rollouts,
    });
    if let Some(stats) = &demand.stats {
        cluster::report(stats.clone(), &registry, control);
    }
    let reader = registry.reader();
    let table = Table::new(Arc::clone(&registry));
    let applier = Applier {
        table: Arc::clone(&table),
        edge: Arc::clone(&edge),
        scale: scale.clone(),
        autoscale: autoscale.clone(),
        metrics,
        settings: Arc::clone(reader.peek().settings()),
        plans,
        diagnostics,
        runtime: accepting,
        notify: Arc::clone(&origin.notify),
        edge_is_wrong: false,
        synced,
    };
    let mut reconciler = loaded.attach_with(applier, generation, recorder, cluster);
    if let Some(inherited) = inherited {
        reconciler.inherit(inherited);
    }
    announce(&edge, &state);
    let socket_file = admin.socket_file();
    let (server_shutdown, signal) = graceful_shutdown();
    let mut servers_running = JoinSet::new();
    if let Some(health) = health {
        let health = health.serve(Arc::clone(&state) as _, signal.clone());
        servers_running.spawn_on(health, control.handle());
    }
    servers_running.spawn_on(admin.serve(Arc::clone(&state) as _, signal), control.handle());
    let reconciler = control.spawn(reconciler.run()).abort_handle();
    let rollouts = async {
        tokio::join!(task.run(), retention.run());
    };
    let rollouts = control.spawn(rollouts).abort_handle();
    Ok(Running {
        signals,
        reload,
        reconciler,
        rollouts,
        edge: Arc::clone(&edge),
        registry,
        scale: scale.clone(),
        autoscale,
        kept,
        reader,
        state,
        notify: origin.notify,
        server_shutdown,
        servers: servers_running,
        exporter: exporter.map(|exporter| exporter.spawn(control.handle())),
        socket_file,
        handoff: Handoff {
            program: origin.program,
            edge,
            servers,
            scaling: HandoffSender::new(scale.clone(), table, decisions, histories),
        },
        upgrade_requests,
        predecessor: None,
    })
}

/// Raises the soft limit of descriptors to the hard one: the usual soft limit of 1024 is for programs that use
/// `select`. Returns the old soft limit, which instances get, since they may be such programs.
fn raise_descriptor_limit() -> Option<u64> {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) if soft < hard => {
            match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
                Ok(()) => tracing::info!(from = soft, to = hard, "descriptor limit raised"),
                Err(e) => tracing::warn!("the descriptor limit stays at {soft}: {e}"),
            }
            Some(soft)
        }
        Ok((soft, _)) => Some(soft),
        Err(e) => {
            tracing::warn!("the descriptor limit is unknown: {e}");
            None
        }
    }
}

fn runtime(name: &'static str, workers: Option<usize>) -> Result<Runtime, StartupError> {
    let mut builder = Builder::new_multi_thread();
    if let Some(workers) = workers {
        builder.worker_threads(workers);
    }
    builder
        .thread_name(name)
        .enable_all()
        .build()
        .map_err(|e| StartupError::start(format!("cannot start threads: {e}")))
}

/// Prints the bound addresses on stdout, one a line: ports chosen by the system are known only now.
fn announce(edge: &Edge, state: &GatewayState) {
    let mut out = std::io::stdout().lock();
    let mut lines = String::new();
    for (index, listener) in edge.listeners().iter().enumerate() {
        let scheme = if listener.tls.is_some() { "https" } else { "http" };
        lines.push_str(&format!(
            "sluice: listener {index} on {} ({scheme})\n",
            listener.bound
        ));
    }
    lines.push_str(&format!("sluice: admin on {}\n", state.admin));
    if let Some(health) = state.health {
        lines.push_str(&format!("sluice: health on {health}\n"));
    }
    lines.push_str("sluice: ready\n");
    let _ = out.write_all(lines.as_bytes()).and_then(|()| out.flush());
}

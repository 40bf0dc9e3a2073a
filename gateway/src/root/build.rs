//! Builds the gateway: loads the configuration, binds sockets, and makes every part that can fail before anything
//! runs.

use std::io::IsTerminal;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use sluice_control::reconcile::{LoadError, Loaded};
use sluice_control::scale::{Controller, ScaleHandle};
use sluice_control::source::{FileSource, ReloadHandle};
use sluice_control::state::{StateHandle, StateWriter, Store};
use sluice_gateway::admin::{AdminServer, Purpose};
use sluice_gateway::cli::RunArgs;
use sluice_gateway::downstream::Downstream;
use sluice_gateway::edge::{Drain, Edge};
use sluice_gateway::observe::{AccessLog, Metrics, Observer};
use sluice_gateway::registry::Registry;
use sluice_gateway::replicas::Replicas;
use sluice_gateway::request::{Engine, MeasuredRevision};
use sluice_gateway::traces::{Exporter, TraceEnvironment, Tracer};
use sluice_model::Generation;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;

use super::admin_state::DemandRouter;
use super::check::{bad_files, bad_pages, env, restore_histories};
use super::cluster::{self, ClusterSource, StatsHandle};
use super::startup_error::StartupError;
use super::upgrade::{SocketKind, SocketName, Takeover};

/// All parts of a gateway, bound and not running yet.
pub(super) struct Built {
    pub(super) loaded: Loaded<FileSource>,
    pub(super) cluster: Option<ClusterSource>,
    /// No cluster is followed.
    pub(super) synced: Arc<AtomicBool>,
    /// The generation of the first Snapshot.
    pub(super) generation: Generation,
    pub(super) reload: ReloadHandle,
    pub(super) executable: PathBuf,
    pub(super) phase: watch::Receiver<Drain>,
    pub(super) scale: ScaleHandle,
    pub(super) controller: Controller,
    pub(super) demand: Arc<DemandRouter>,
    pub(super) registry: Arc<Registry>,
    pub(super) edge: Arc<Edge>,
    pub(super) admin: AdminServer,
    pub(super) health: Option<AdminServer>,
    /// Admin and health, by configured address.
    pub(super) servers: Vec<(SocketName, OwnedFd)>,
    /// Where listeners accept.
    pub(super) accepting: Handle,
    pub(super) metrics: Metrics,
    /// Sends traces, where there are any.
    pub(super) exporter: Option<Exporter>,
    /// The state directory, where there is one.
    pub(super) state: Option<(StateHandle, StateWriter)>,
}

/// Loads the configuration, builds and binds. Sockets come from the old process of an upgrade where it has them;
/// in that case no listener accepts yet.
pub(super) fn build(
    args: &RunArgs,
    metrics: Metrics,
    access_log: AccessLog,
    mut new: Option<&mut Takeover>,
    data: &Runtime,
    control: &Runtime,
    replicas: &Arc<Replicas>,
) -> Result<Built, StartupError> {
    let source = FileSource::new(&args.paths());
    let reload = source.reload_handle();
    let rejected = |why: &dyn std::fmt::Display| StartupError::rejected(format!("config rejected\n{why}"));
    let (drain, phase) = watch::channel(Drain::Serving);
    let cluster = match args.kubernetes {
        true => Some(cluster::start(args, control, phase.clone(), replicas).map_err(StartupError::start)?),
        false => None,
    };
    let loaded = Loaded::first(
        source,
        Box::new(env),
        cluster::defaults(args),
        progress(),
        restore_histories,
    );
    let loaded = loaded.map_err(|e| match e {
        LoadError::Histories(_) => StartupError::start(e.to_string()),
        e => rejected(&e),
    })?;
    let state = match &loaded.delta().settings.state_directory {
        Some(directory) => {
            let failed = |e| StartupError::start(format!("state.directory: {e}"));
            let state = match new.is_some() {
                // The old process of an upgrade has it, until it hands over.
                true => StateHandle::awaiting(directory),
                false => StateHandle::new(Store::open(directory).map_err(failed)?),
            };
            Some(state)
        }
        None => None,
    };
    // Only at start: on a reload a bad certificate leaves the old one in place, and the edge logs an error.
    let first = loaded.delta();
    let revisions = first.services.iter().flat_map(|service| &service.revisions);
    let mut bad = bad_files(&first.settings, revisions.map(AsRef::as_ref), &loaded.files());
    bad.append(bad_pages(first.services.iter().map(AsRef::as_ref), || {
        loaded.files()
    }));
    if !bad.is_empty() {
        return Err(rejected(&bad));
    }
    let executable = std::env::current_exe()
        .map_err(|e| StartupError::start(format!("cannot find my own executable: {e}")))?;

    let counted = Arc::new(AtomicBool::new(false));
    let (scale, controller) = Controller::new();
    let demand = Arc::new(DemandRouter {
        scale: scale.clone(),
        autoscale: OnceLock::new(),
        stats: args.kubernetes.then(|| StatsHandle::new(Arc::clone(&counted))),
    });
    let first = loaded.delta();
    let registry = {
        let metrics = metrics.clone();
        let observer = Box::new(
            move |spec: &sluice_model::RevisionSpec| -> Arc<dyn sluice_gateway::registry::RevisionObserver> {
                Arc::new(MeasuredRevision(metrics.revision(&spec.service, &spec.id)))
            },
        );
        let registry = Registry::new(
            &first.settings,
            Arc::clone(&demand) as _,
            observer,
            data.handle().clone(),
        );
        Arc::new(match args.kubernetes {
            true => registry.sharing(Arc::clone(replicas)),
            false => registry,
        })
    };
    if args.kubernetes {
        let found = Arc::downgrade(&registry);
        replicas.find_by(Box::new(move |revision| {
            let live = found.upgrade()?.live(revision)?;
            live.is_shared().then(|| Arc::clone(live.throttler()))
        }));
        data.spawn(Arc::clone(replicas).run());
    }
    let published = registry
        .apply(first)
        .map_err(|e| StartupError::rejected(format!("internal error: {e}")))?;
    metrics.set_generation(published.generation);
    let observer = Observer {
        access_log,
        metrics: metrics.clone(),
    };
    let (tracer, exporter) = traces(&metrics);
    let engine = Arc::new(Engine {
        table: registry.reader(),
        observer,
        drain: phase.clone(),
        counted,
        tracer,
    });
    let downstream = Arc::new(Downstream::new(engine));
    let edge = {
        let _entered = data.enter();
        Arc::new(Edge::new(
            {
                let table = registry.reader();
                Arc::new(move || Arc::clone(table.peek().settings()))
            },
            downstream,
            Arc::new(metrics.clone()),
            drain,
        ))
    };

    let settings = Arc::clone(&first.settings);
    let generation = published.generation;
    drop(published);
    let admin_address = args
        .admin
        .clone()
        .unwrap_or_else(|| settings.admin.address.clone());
    let mut inherited = |kind, address| new.as_mut().and_then(|new| new.take(kind, address));
    let health_purpose = match args.kubernetes {
        true => Purpose::HealthAndMetrics,
        false => Purpose::Health,
    };
    let (admin, health) = control.block_on(async {
        let cannot = |e: std::io::Error| StartupError::start(format!("cannot use an inherited socket: {e}"));
        let admin = match inherited(SocketKind::Admin, admin_address.clone()) {
            Some(socket) => AdminServer::inherit(socket, &admin_address, Purpose::Admin).map_err(cannot)?,
            None => AdminServer::bind(admin_address.clone(), Purpose::Admin)
                .await
                .map_err(StartupError::start)?,
        };
        let health = match settings.health {
            Some(address) => Some(match inherited(SocketKind::Health, address.into()) {
                Some(socket) => {
                    AdminServer::inherit(socket, &address.into(), health_purpose).map_err(cannot)?
                }
                None => AdminServer::bind(address, health_purpose)
                    .await
                    .map_err(StartupError::start)?,
            }),
            None => None,
        };
        Ok::<_, StartupError>((admin, health))
    })?;
    let mut servers = Vec::new();
    let mut keep = |kind, address, socket: std::io::Result<OwnedFd>| {
        let socket = socket.map_err(|e| StartupError::start(format!("no more descriptors: {e}")))?;
        servers.push((SocketName { kind, address }, socket));
        Ok::<_, StartupError>(())
    };
    keep(SocketKind::Admin, admin_address, admin.socket())?;
    if let (Some(address), Some(health)) = (settings.health, &health) {
        keep(SocketKind::Health, address.into(), health.socket())?;
    }
    if let Some(new) = new {
        edge.pause_accepting();
        edge.inherit(new.take_listeners())
            .map_err(|e| StartupError::start(format!("cannot use an inherited socket: {e}")))?;
    }
    edge.offer_certificates(first).complete();
    let errors = data.block_on(edge.apply(&settings));
    edge.close_inherited();
    if !errors.is_empty() {
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        return Err(StartupError::start(lines.join("\nsluice: ")));
    }
    Ok(Built {
        loaded,
        synced: Arc::new(AtomicBool::new(cluster.is_none())),
        cluster,
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
        accepting: data.handle().clone(),
        metrics,
        exporter,
        state,
    })
}

/// What makes and sends traces, as the environment says.
fn traces(metrics: &Metrics) -> (Option<Tracer>, Option<Exporter>) {
    let TraceEnvironment { settings, warnings } = TraceEnvironment::read(env);
    for warning in warnings {
        tracing::warn!("traces: {warning}");
    }
    let Some(settings) = settings else {
        return (None, None);
    };
    let to = settings.endpoint.authority();
    tracing::info!(
        "traces: sent to {}, sampled: {}",
        to.map_or_else(Default::default, ToString::to_string),
        settings.sampler
    );
    let (tracer, exporter) = Tracer::new(&settings, metrics.traces_dropped());
    (Some(tracer), Some(exporter))
}

/// Shows the progress of a long load on a terminal, from its first second on.
fn progress() -> impl FnMut(usize, usize) {
    let (start, mut told) = (Instant::now(), None);
    let is_terminal = std::io::stderr().is_terminal();
    move |done, all| {
        let ended = done == all && told.is_some();
        let due = told.unwrap_or(start) + if told.is_some() { TELL_AGAIN } else { TELL_FIRST };
        if !is_terminal || !(ended || Instant::now() >= due) {
            return;
        }
        told = Some(Instant::now());
        let end = if ended { "\n" } else { "" };
        eprint!("\rsluice: {done} of {all} config files read{end}");
    }
}

/// A load that takes longer shows its progress.
const TELL_FIRST: Duration = Duration::from_secs(1);

/// The interval between updates of the progress.
const TELL_AGAIN: Duration = Duration::from_millis(250);

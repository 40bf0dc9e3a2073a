//! The state of the running gateway that the admin API shows.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::{Value, json};
use sluice_control::autoscale::{AutoscaleHandle, DesiredSink};
use sluice_control::config::{Diagnostic, Severity};
use sluice_control::plan::{AutoscalePolicy, Plan, PlanDelta, RevisionPlan, ScalerSpec, ScalingMode};
use sluice_control::release::HistoryHandle;
use sluice_control::rollout::RolloutStatuses;
use sluice_control::scale::ScaleHandle;
use sluice_gateway::admin::{
    AdminState, BoundAddresses, CommandError, ReleaseView, ServiceCommand, UpgradeError, Upgraded, redacted,
};
use sluice_gateway::edge::{Drain, Edge};
use sluice_gateway::observe::{
    Decision, EndpointCondition, EndpointLoad, ListenerCertificates, Metrics, PresentRequests,
    RecentDecisions, RevisionLoad, RolloutGauges, StatsConnection, wall_clock,
};
use sluice_gateway::registry::{LiveRevision, Registry, Snapshot};
use sluice_gateway::replicas::ReplicaStatus;
use sluice_gateway::throttle::{EndpointPhase, EndpointView};
use sluice_model::{
    AdminAddress, Backend, Demand, DemandSink, Generation, RevisionId, ScalingSource, ScalingStatus,
    ServiceId, StatusSource,
};
use tokio::sync::watch;

use super::cluster::StatsHandle;
use super::releases;
use super::upgrade::UpgradeRequester;

/// Implements [`AdminState`] on both planes.
pub(super) struct GatewayState {
    pub(super) registry: Arc<Registry>,
    pub(super) edge: Arc<Edge>,
    pub(super) scale: ScaleHandle,
    pub(super) autoscale: AutoscaleHandle,
    pub(super) metrics: Metrics,
    pub(super) drain: watch::Receiver<Drain>,
    pub(super) plans: Arc<Plans>,
    pub(super) admin: AdminAddress,
    pub(super) health: Option<SocketAddr>,
    pub(super) started: SystemTime,
    pub(super) decisions: Arc<RecentDecisions>,
    /// As [`AdminState::diagnostics`] gives it.
    pub(super) diagnostics: Arc<Mutex<Value>>,
    pub(super) upgrades: UpgradeRequester,
    /// Another process serves on these addresses.
    pub(super) handed_over: AtomicBool,
    /// The objects of the cluster were listed and published, or no cluster is followed.
    pub(super) synced: Arc<AtomicBool>,
    /// The statistics for a cluster's autoscaler.
    pub(super) stats: Option<StatsHandle>,
    /// What rollouts did.
    pub(super) rollouts: RolloutStatuses,
    /// The releases of services, and changes of them by command.
    pub(super) histories: HistoryHandle,
}

/// The plan in force, for `/api/config`.
#[derive(Default)]
pub(super) struct Plans(Mutex<Option<Plan>>);

impl Plans {
    pub(super) fn edit(&self, delta: &PlanDelta) {
        let mut plan = self.0.lock();
        let plan = plan.get_or_insert_with(|| Plan {
            revisions: BTreeMap::new(),
            processes: delta.processes.clone(),
            drain: delta.drain,
        });
        plan.edit(delta);
    }
}

#[async_trait]
impl AdminState for GatewayState {
    fn ready(&self) -> Result<Generation, &'static str> {
        // A balancer's health check on an old connection is about the address, which another process serves.
        if *self.drain.borrow() != Drain::Serving && !self.handed_over.load(Ordering::SeqCst) {
            return Err("draining");
        }
        if !self.synced.load(Ordering::Relaxed) {
            return Err("the cluster's objects are not listed yet");
        }
        Ok(self.registry.reader().peek().generation)
    }

    fn started(&self) -> SystemTime {
        self.started
    }

    async fn upgrade(&self, limit: Duration) -> Result<Upgraded, UpgradeError> {
        self.upgrades.ask(limit).await
    }

    async fn command(&self, service: &ServiceId, command: ServiceCommand) -> Result<String, CommandError> {
        releases::command(&self.histories, &self.table(), service, command).await
    }

    fn release(&self, service: &ServiceId) -> Option<ReleaseView> {
        releases::view(&self.histories, service)
    }

    fn differences(&self, service: &ServiceId) -> BTreeMap<String, Vec<String>> {
        releases::template_differences(&self.histories, service)
    }

    fn table(&self) -> Arc<Snapshot> {
        self.registry.reader().load()
    }

    fn bound(&self) -> BoundAddresses {
        let listeners = self.edge.listeners().iter().map(|l| l.bound).collect();
        BoundAddresses {
            listeners,
            admin: self.admin.clone(),
            health: self.health,
        }
    }

    fn status(&self) -> &dyn StatusSource {
        &self.scale
    }

    fn scaling_status(&self, revision: &RevisionId) -> Option<ScalingStatus> {
        self.autoscale.scaling_status(revision)
    }

    fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    fn decisions(&self, after: u64) -> Vec<Decision> {
        self.decisions.after(after)
    }

    fn diagnostics(&self) -> Value {
        self.diagnostics.lock().clone()
    }

    fn scaling(&self) -> Value {
        let plan = self.plans.0.lock().clone();
        let Some(plan) = plan else { return Value::Null };
        let revisions = plan
            .revisions
            .iter()
            .map(|(id, plan)| (id.to_string(), revision(plan)));
        json!({
            "processes": {
                "max": plan.processes.max,
                "ports": format!("{}-{}", plan.processes.ports.start(), plan.processes.ports.end()),
            },
            "revisions": revisions.collect::<serde_json::Map<_, _>>(),
        })
    }

    fn loads(&self) -> Vec<RevisionLoad> {
        let leaving = self.registry.leaving();
        let table = self.registry.reader().load();
        let now = Instant::now();
        let load = |live: &Arc<LiveRevision>, leaving| {
            let load = live.peek(now);
            let held = u32::try_from(live.held()).unwrap_or(u32::MAX);
            RevisionLoad {
                service: live.spec().service.clone(),
                revision: live.id().clone(),
                in_flight: load.in_flight,
                queued: load.queued.saturating_add(held),
                ready: load.ready,
                leaving,
                owner: match &live.spec().backend {
                    Backend::Pods(pods) => Some(Arc::clone(&pods.owner)),
                    _ => None,
                },
            }
        };
        let current = table
            .slots()
            .filter_map(|(entry, slot)| entry.live.revisions().get(slot));
        let current = current.map(|live| (live.id().clone(), load(live, false)));
        let mut loads: BTreeMap<RevisionId, RevisionLoad> = current.collect();
        for live in leaving {
            let left = load(&live, true);
            match loads.entry(left.revision.clone()) {
                // A revision of the same name is configured again: there is one series for both.
                Entry::Occupied(mut known) => {
                    let known = known.get_mut();
                    known.in_flight += left.in_flight;
                    known.queued += left.queued;
                }
                Entry::Vacant(free) => _ = free.insert(left),
            }
        }
        loads.into_values().collect()
    }

    fn present(&self, revisions: &[RevisionId]) -> Vec<PresentRequests> {
        let mut leaving: HashMap<RevisionId, Vec<Arc<LiveRevision>>> = HashMap::new();
        for live in self.registry.leaving() {
            leaving.entry(live.id().clone()).or_default().push(live);
        }
        let now = Instant::now();
        let present = revisions.iter().map(|id| {
            let mut present = PresentRequests::default();
            let past = leaving.get(id).into_iter().flatten().cloned();
            for live in self.registry.live(id).into_iter().chain(past) {
                let load = live.peek(now);
                let held = u32::try_from(live.held()).unwrap_or(u32::MAX);
                present.in_flight += load.in_flight;
                present.queued += load.queued.saturating_add(held);
            }
            present
        });
        present.collect()
    }

    fn tables(&self) -> usize {
        self.registry.tables_alive()
    }

    fn certificates(&self) -> Vec<ListenerCertificates> {
        let listeners = self.edge.listeners().into_iter().filter_map(|listener| {
            let certificates = listener.tls?.certificates();
            let ends = certificates.iter().map(|c| (c.name.clone(), c.not_after));
            Some(ListenerCertificates {
                listener: listener.bound,
                ends: ends.collect(),
            })
        });
        listeners.collect()
    }

    fn stats_connection(&self) -> Option<StatsConnection> {
        let (reachable, errors) = self.stats.as_ref()?.connection()?;
        Some(StatsConnection { reachable, errors })
    }

    fn replicas(&self) -> Vec<ReplicaStatus> {
        self.registry.replicas()
    }

    fn rollouts(&self) -> RolloutGauges {
        RolloutGauges {
            steps: self.rollouts.steps(),
            ended: self.rollouts.ended(),
        }
    }

    fn endpoints(&self, revision: &RevisionId) -> Vec<EndpointLoad> {
        let leaving = self.registry.leaving().into_iter();
        let leaving = leaving.filter(|live| live.id() == revision);
        let named = self.registry.live(revision).into_iter().chain(leaving);
        let mut loads = Vec::new();
        for live in named {
            match live.awake() {
                Some(throttler) => loads.extend(throttler.endpoints().into_iter().filter_map(endpoint)),
                None => loads.extend(live.addresses().into_iter().map(|address| EndpointLoad {
                    address,
                    tier: 0,
                    condition: EndpointCondition::Ready,
                    in_flight: 0,
                })),
            }
        }
        loads
    }
}

fn revision(plan: &RevisionPlan) -> Value {
    let scaler = match &plan.scaler {
        ScalerSpec::Process(process) => json!({
            "process": {
                "command": process.command,
                "env": redacted(process.env.keys()),
                "workingDirectory": process.working_directory.display().to_string(),
                "inheritEnv": process.inherit_env,
            },
        }),
        // A webhook's URL may contain a token in path or query; its host identifies the webhook well enough.
        ScalerSpec::Webhook(webhook) => json!({
            "webhook": {
                "host": webhook.url.split("://").nth(1).and_then(|rest| rest.split(['/', '?', '@']).next()),
                "headers": redacted(webhook.headers.keys()),
            },
        }),
    };
    let mut value = autoscaling(&plan.policy);
    value["scaler"] = scaler;
    value["reachable"] = json!(plan.reachable);
    value["needs"] = plan.needs.iter().map(ToString::to_string).collect();
    value
}

/// How a revision is scaled, for `/api/config` and `explain`.
pub(super) fn autoscaling(policy: &AutoscalePolicy) -> Value {
    let mode = |mode: ScalingMode| match mode {
        ScalingMode::Active => "active",
        ScalingMode::Observe => "observe",
    };
    let foresight = policy.foresight.as_deref();
    let schedules = foresight.map(|policy| &policy.schedules[..]).unwrap_or_default();
    let schedules = schedules.iter().map(|schedule| {
        json!({
            "window": schedule.to_string(),
            "minScale": schedule.min_scale,
            // 0 is no limit, as in a file.
            "maxScale": schedule.max_scale.map(|max| if max == u32::MAX { 0 } else { max }),
        })
    });
    let forecast = foresight.and_then(|policy| policy.forecast).map(|forecast| {
        json!({
            "season": humantime::format_duration(forecast.season).to_string(),
            "mode": mode(forecast.mode),
        })
    });
    json!({
        "mode": mode(policy.mode),
        "minScale": policy.min_scale,
        "maxScale": policy.max_scale,
        "activationScale": policy.activation_scale,
        "target": policy.target_value,
        "window": format!("{:?}", policy.stable_window),
        "schedules": schedules.collect::<Vec<_>>(),
        "forecast": forecast,
    })
}

/// The load of an endpoint; `None` for an endpoint that is gone.
fn endpoint(view: EndpointView) -> Option<EndpointLoad> {
    let condition = match view.phase {
        EndpointPhase::Starting => EndpointCondition::Starting,
        EndpointPhase::Ready => EndpointCondition::Ready,
        EndpointPhase::Ejected { .. } => EndpointCondition::Ejected,
        EndpointPhase::Draining => EndpointCondition::Draining,
        EndpointPhase::Gone => return None,
    };
    Some(EndpointLoad {
        address: view.endpoint.address.clone(),
        tier: view.endpoint.tier,
        condition,
        in_flight: view.in_flight,
    })
}

/// What is wrong with a configuration, as [`AdminState::diagnostics`] gives it.
pub(super) fn diagnostics(at: SystemTime, found: &[Diagnostic]) -> Value {
    let errors = found.iter().filter(|one| one.severity == Severity::Error).count();
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    json!({
        // Exact up to 2^53 milliseconds.
        "at": since.as_millis() as f64 / 1_000.0,
        "rejected": errors > 0,
        "errors": errors,
        "warnings": found.len() - errors,
        "items": found,
    })
}

/// Passes the autoscaler's decisions on to the scaler, and keeps the last ones for the dashboard.
pub(super) struct RecordedDecisions {
    pub(super) scale: ScaleHandle,
    pub(super) recent: Arc<RecentDecisions>,
}

impl DesiredSink for RecordedDecisions {
    fn set_desired(&self, revision: &RevisionId, desired: u32, reason: String) {
        self.recent.add(wall_clock(), revision, &reason);
        self.scale.set_desired(revision, desired, reason);
    }
}

/// Routes demand to autoscaler and scaler. The autoscaler is built after the data plane, which sends demand; until
/// then the scaler acts on demand alone.
pub(super) struct DemandRouter {
    pub(super) scale: ScaleHandle,
    pub(super) autoscale: OnceLock<AutoscaleHandle>,
    /// The statistics for a cluster's autoscaler.
    pub(super) stats: Option<StatsHandle>,
}

impl DemandSink for DemandRouter {
    fn demand(&self, demand: Demand) {
        if let (Demand::Activate(revision), Some(autoscale)) = (&demand, self.autoscale.get()) {
            autoscale.activate(revision);
        }
        if let (Demand::Activate(revision), Some(stats)) = (&demand, &self.stats) {
            stats.activate(revision);
        }
        self.scale.demand(demand);
    }
}

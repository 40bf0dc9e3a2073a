//! The scaling plan: the part of a compiled configuration that scaler and autoscaler use.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sluice_model::RevisionId;

use crate::schedule::Schedule;

/// A local process that is started on demand. `$(PORT)`, `$(K_SERVICE)` and `$(K_REVISION)` in command and env are expanded
/// for each instance; `${NAME}` is expanded already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Program and arguments; never empty. The program is looked up on `PATH` unless it has a
    /// slash; the word `sluice` means the running executable.
    pub command: Vec<String>,
    /// Variables, on top of the inherited ones.
    pub env: BTreeMap<String, String>,
    /// Absolute.
    pub working_directory: PathBuf,
    /// Whether the gateway's own environment is passed on.
    pub inherit_env: bool,
    /// Between SIGTERM and SIGKILL.
    pub stop_grace_period: Duration,
}

/// A webhook: a platform that starts instances elsewhere.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookSpec {
    /// Where the POST goes; http or https.
    pub url: String,
    /// Headers of every call; may hold secrets.
    pub headers: BTreeMap<String, String>,
}

/// Without secrets: values of headers are left out, and the URL, which may hold one.
impl fmt::Debug for WebhookSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookSpec")
            .field("headers", &self.headers.keys())
            .finish_non_exhaustive()
    }
}

/// The scaler of a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScalerSpec {
    /// Local processes.
    Process(ProcessSpec),
    /// A platform.
    Webhook(WebhookSpec),
}

/// The metric that the autoscaler scales by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Requests in flight and queued.
    Concurrency,
    /// Requests a second.
    Rps,
}

/// Whether the autoscaler's decisions are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ScalingMode {
    /// They are.
    #[default]
    Active,
    /// Nothing is started or stopped: what would have been is logged and counted.
    Observe,
}

/// What raises or limits the number of instances before the load does.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ForesightPolicy {
    /// Floors and ceilings by the clock.
    pub schedules: Vec<Schedule>,
    /// A floor by what came before.
    pub forecast: Option<ForecastPolicy>,
}

/// A forecast of the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForecastPolicy {
    /// The time after which the load is expected to repeat; whole seconds, at least an hour.
    pub season: Duration,
    /// Whether its floor is applied.
    pub mode: ScalingMode,
}

/// One revision's autoscaling, under Knative's names; gateway-wide values already merged in.
#[derive(Debug, Clone, PartialEq)]
pub struct AutoscalePolicy {
    /// The metric.
    pub metric: Metric,
    /// The target of one instance, before utilisation is applied.
    pub total_value: f64,
    /// The target of one instance with utilisation applied; at least 0.01.
    pub target_value: f64,
    /// The minimum, while the revision is reachable.
    pub min_scale: u32,
    /// The maximum; `None` is no limit.
    pub max_scale: Option<u32>,
    /// The number of instances to start when the revision is first served.
    pub initial_scale: u32,
    /// The number of instances that the first waiter at zero starts; at least 1.
    pub activation_scale: u32,
    /// The averaging window of stable decisions; 6 s to 1 h.
    pub stable_window: Duration,
    /// The averaging window of panic decisions; at least 1 s.
    pub panic_window: Duration,
    /// The panic threshold, as a multiple of the running instances; Knative's 200 % is 2.0.
    pub panic_threshold: f64,
    /// The bound of one scale-up, as a multiple of the running instances.
    pub max_scale_up_rate: f64,
    /// The bound of one scale-down, as a divisor.
    pub max_scale_down_rate: f64,
    /// The time that a lower number must hold before a scale-down.
    pub scale_down_delay: Duration,
    /// Whether zero is allowed at all.
    pub scale_to_zero: bool,
    /// The time between the decision for zero and zero.
    pub scale_to_zero_grace: Duration,
    /// The time that the last instance is kept at least.
    pub scale_to_zero_retention: Duration,
    /// The burst capacity wanted in reserve, in requests; -1 is unlimited. For the status only: the gateway never leaves the
    /// path.
    pub target_burst_capacity: f64,
    /// Whether decisions are carried out.
    pub mode: ScalingMode,
    /// Schedules and forecast; `None` for most revisions.
    pub foresight: Option<Arc<ForesightPolicy>>,
}

impl AutoscalePolicy {
    /// The number of instances between the minimum and the highest maximum that this policy ever has. Schedules are followed
    /// by the autoscaler alone; this is for who carries its decisions out, or acts before it.
    pub(crate) fn within(&self, desired: u32, reachable: bool) -> u32 {
        let least = if reachable { self.min_scale } else { 0 };
        desired.max(least).min(self.highest())
    }

    /// The highest maximum that this policy ever has.
    pub(crate) fn highest(&self) -> u32 {
        let schedules = self.foresight.iter().flat_map(|policy| &policy.schedules);
        let ceilings = schedules.filter_map(|schedule| schedule.max_scale);
        ceilings.fold(self.max_scale.unwrap_or(u32::MAX), u32::max)
    }
}

/// The scaling plan of one revision.
#[derive(Debug, Clone, PartialEq)]
pub struct RevisionPlan {
    /// The scaler of a revision.
    pub scaler: ScalerSpec,
    /// The autoscaler's policy.
    pub policy: AutoscalePolicy,
    /// The timeout of a start, until readiness.
    pub start_timeout: Duration,
    /// The value of `K_SERVICE` for instances.
    pub service: String,
    /// Whether a traffic target or tag leads to the revision; an unreachable one has no minimum.
    pub reachable: bool,
    /// Revisions that are ready before the first instance of this one is started, and held above zero while it runs.
    pub needs: Vec<RevisionId>,
}

/// The bounds of local processes, all revisions together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessLimits {
    /// The number of instances.
    pub max: u32,
    /// The range of their ports.
    pub ports: RangeInclusive<u16>,
}

/// The scaling plan of all revisions.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The plans by revision; a revision with fixed endpoints has none.
    pub revisions: BTreeMap<RevisionId, Arc<RevisionPlan>>,
    /// Bounds of local processes.
    pub processes: ProcessLimits,
    /// The drain timeout of retired instances.
    pub drain: Duration,
}

/// A change of the scaling plan; compiled together with a [`Delta`](sluice_model::Delta) and applied after its publication.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanDelta {
    /// New and changed plans, and revisions that are no longer scaled (`None`).
    pub revisions: BTreeMap<RevisionId, Option<Arc<RevisionPlan>>>,
    /// The bounds of local processes from now on.
    pub processes: ProcessLimits,
    /// The drain timeout from now on.
    pub drain: Duration,
}

impl PlanDelta {
    /// Merges a later change into this one.
    pub fn then(&mut self, later: Self) {
        self.revisions.extend(later.revisions);
        self.processes = later.processes;
        self.drain = later.drain;
    }
}

impl Plan {
    /// Applies a change.
    pub fn edit(&mut self, delta: &PlanDelta) {
        for (revision, plan) in &delta.revisions {
            match plan {
                Some(plan) => _ = self.revisions.insert(revision.clone(), Arc::clone(plan)),
                None => _ = self.revisions.remove(revision),
            }
        }
        self.processes = delta.processes.clone();
        self.drain = delta.drain;
    }
}

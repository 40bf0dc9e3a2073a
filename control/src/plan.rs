//! What the control plane itself needs of a compiled configuration: how revisions are scaled.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sluice_model::RevisionId;

/// A local process that is started on demand. `$(PORT)`, `$(K_SERVICE)` and `$(K_REVISION)` in
/// command and env are expanded per instance; everything else is already expanded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Program and arguments; never empty. The program is looked up on `PATH` unless it has a
    /// slash; the word `sluice` means the running executable.
    pub command: Vec<String>,
    /// Set on top of what is inherited.
    pub env: BTreeMap<String, String>,
    /// Absolute.
    pub working_directory: PathBuf,
    /// Whether the gateway's own environment is passed on.
    pub inherit_env: bool,
    /// Between SIGTERM and SIGKILL.
    pub stop_grace_period: Duration,
}

/// A platform that starts things elsewhere when asked.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookSpec {
    /// Where the POST goes; http or https.
    pub url: String,
    /// Set on every request; may hold secrets.
    pub headers: BTreeMap<String, String>,
}

/// Without secrets: headers hold some, and a URL may.
impl fmt::Debug for WebhookSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookSpec")
            .field("headers", &self.headers.keys())
            .finish_non_exhaustive()
    }
}

/// What carries decisions out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScalerSpec {
    /// Local processes.
    Process(ProcessSpec),
    /// A platform.
    Webhook(WebhookSpec),
}

/// What the autoscaler scales by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Requests in flight and queued.
    Concurrency,
    /// Requests a second.
    Rps,
}

/// One revision's autoscaling, under Knative's names; gateway-wide values already merged in.
#[derive(Debug, Clone, PartialEq)]
pub struct AutoscalePolicy {
    /// What is measured.
    pub metric: Metric,
    /// The wanted value per instance, utilisation not yet applied.
    pub total_value: f64,
    /// The wanted value per instance with utilisation applied; at least 0.01.
    pub target_value: f64,
    /// Never fewer, while reachable.
    pub min_scale: u32,
    /// Never more; `None` is no limit.
    pub max_scale: Option<u32>,
    /// Started when the revision is first served.
    pub initial_scale: u32,
    /// Started by the first waiter at zero; at least 1.
    pub activation_scale: u32,
    /// Averaged over for stable decisions; 6 s to 1 h.
    pub stable_window: Duration,
    /// Averaged over for panic; at least 1 s.
    pub panic_window: Duration,
    /// Panic above this many times what runs; Knative's 200 % is 2.0.
    pub panic_threshold: f64,
    /// How many times more than runs may be asked for at once.
    pub max_scale_up_rate: f64,
    /// How many times fewer.
    pub max_scale_down_rate: f64,
    /// Scale down only when it was wanted this long.
    pub scale_down_delay: Duration,
    /// Whether zero is allowed at all.
    pub scale_to_zero: bool,
    /// Between the decision for zero and zero.
    pub scale_to_zero_grace: Duration,
    /// How long the last instance stays at least.
    pub scale_to_zero_retention: Duration,
    /// Capacity wanted in reserve; -1 is unlimited. Informs status only: the gateway never leaves
    /// the path.
    pub target_burst_capacity: f64,
}

/// How one revision is scaled.
#[derive(Debug, Clone, PartialEq)]
pub struct RevisionPlan {
    /// What carries decisions out.
    pub scaler: ScalerSpec,
    /// The autoscaler's policy.
    pub policy: AutoscalePolicy,
    /// The longest an instance may take to become ready.
    pub start_timeout: Duration,
    /// `K_SERVICE` of its instances.
    pub service: String,
    /// Whether any traffic target or tag leads to it; an unreachable revision has no minimum.
    pub reachable: bool,
}

/// Bounds of local processes, all revisions together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessLimits {
    /// Instances at once.
    pub max: u32,
    /// Ports they may get.
    pub ports: RangeInclusive<u16>,
}

/// How everything is scaled.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// By revision; a revision with fixed endpoints has none.
    pub revisions: BTreeMap<RevisionId, Arc<RevisionPlan>>,
    /// Bounds of local processes.
    pub processes: ProcessLimits,
    /// How long what is retired from now on may take to finish what it has.
    pub drain: Duration,
}

/// What is scaled in another way than before; compiled together with a
/// [`Delta`](sluice_model::Delta) and applied after its publication.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanDelta {
    /// Revisions that are new or scaled in another way than before, and those that nothing scales any
    /// more (`None`).
    pub revisions: BTreeMap<RevisionId, Option<Arc<RevisionPlan>>>,
    /// From now on.
    pub processes: ProcessLimits,
    /// From now on.
    pub drain: Duration,
}

impl PlanDelta {
    /// Makes it one with a later one, for whoever has not seen either.
    pub fn then(&mut self, later: Self) {
        self.revisions.extend(later.revisions);
        self.processes = later.processes;
        self.drain = later.drain;
    }
}

impl Plan {
    /// Makes it the next one.
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

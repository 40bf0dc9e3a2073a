//! What a scale decision was made of, for status, log and metrics.

use crate::name::RevisionId;

/// The signal that set the number of a scale decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ScaleSource {
    /// The load: the stable window's average, or a request that waits at zero.
    #[default]
    Reactive,
    /// The load of the panic window.
    Panic,
    /// The floor or the ceiling of a schedule.
    Schedule,
    /// The floor of the forecast.
    Forecast,
    /// A bound of the configuration: `minScale`, `maxScale`, `initialScale`, or a rule of scale to zero.
    Bound,
    /// Another revision needs this one.
    Need,
    /// A rollout gives it traffic, or is about to.
    Rollout,
}

impl ScaleSource {
    /// The name in `/api/revisions` and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reactive => "reactive",
            Self::Panic => "panic",
            Self::Schedule => "schedule",
            Self::Forecast => "forecast",
            Self::Bound => "bound",
            Self::Need => "need",
            Self::Rollout => "rollout",
        }
    }
}

/// The number of instances that each signal wanted at one decision; `None` for a signal that said nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScaleWants {
    /// The stable window's average.
    pub reactive: u32,
    /// The panic window's average, in panic.
    pub panic: Option<u32>,
    /// The greatest floor of the schedules that are active, or begin within the time that a start takes.
    pub schedule: Option<u32>,
    /// The floor of a forecast that is trusted.
    pub forecast: Option<u32>,
    /// At least this many, because another revision needs this one.
    pub need: Option<u32>,
    /// The floor of a rollout: what it gives traffic to, or is about to.
    pub rollout: Option<u32>,
    /// `minScale`.
    pub min_scale: u32,
    /// The ceiling in force: `maxScale`, or the least one of the active schedules. `None` is no limit.
    pub max_scale: Option<u32>,
}

/// The autoscaler's view of a revision, for status and metrics.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ScalingStatus {
    /// The signal that set the present number.
    pub source: ScaleSource,
    /// What each signal wanted.
    pub wants: ScaleWants,
    /// Instances × seconds so far: those that were ready or finishing requests.
    pub instance_seconds: f64,
    /// What would have been, in observe mode.
    pub observed: Option<ObservedScaling>,
    /// The forecast, where there is one.
    pub forecast: Option<ForecastStatus>,
}

/// What decisions that are not carried out would have made of a revision.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ObservedScaling {
    /// Instances wanted now.
    pub desired: u32,
    /// The last decision with its reason.
    pub last_decision: Option<String>,
    /// Starts that requests would have waited for, so far.
    pub cold_starts: u64,
    /// Instances × seconds so far.
    pub instance_seconds: f64,
}

/// The state of a forecast.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ForecastStatus {
    /// Whole seasons that it knows.
    pub seasons: u32,
    /// Whether it would have saved cold starts in the last seasons, so that its floor is applied.
    pub trusted: bool,
    /// The floor that it has now, applied or not; `None` before a whole season was seen.
    pub floor: Option<u32>,
    /// Cold starts of the last season that was judged, by the load alone.
    pub cold_starts: Option<u64>,
    /// The same with the forecast's floor.
    pub cold_starts_with_forecast: Option<u64>,
    /// Instances × seconds of that season that the floor would have cost in addition.
    pub extra_instance_seconds: Option<f64>,
}

/// The source of [`ScalingStatus`]; implemented by the control plane.
pub trait ScalingSource: Send + Sync {
    /// The autoscaler's view of a revision; `None` for a revision that nothing scales.
    fn scaling_status(&self, revision: &RevisionId) -> Option<ScalingStatus>;
}

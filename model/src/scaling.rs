//! What a scale decision was made of, for status, log and metrics.

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
    /// `minScale`.
    pub min_scale: u32,
    /// The ceiling in force: `maxScale`, or the least one of the active schedules. `None` is no limit.
    pub max_scale: Option<u32>,
}

//! A scale decision and its reason, with the text for log and status.

use std::fmt;
use std::time::Duration;

use sluice_model::{ScaleSource, ScaleWants};

use crate::plan::{AutoscalePolicy, Metric};

/// The desired number of instances of a revision, with the reason.
#[derive(Debug, Clone, PartialEq)]
pub struct ScaleDecision {
    /// The number before.
    pub from: u32,
    /// The number from now on.
    pub desired: u32,
    /// The signal that called for the number.
    pub reason: Reason,
    /// The limit that changed the number; the last one applied if there were several.
    pub limit: Option<Limit>,
    /// What each signal wanted.
    pub wants: ScaleWants,
    /// Whether the revision is in panic.
    pub panic: bool,
    /// The spare capacity in requests, less the burst capacity wanted in reserve; -1 where the reserve is unlimited. For the
    /// status only.
    pub excess_burst_capacity: i64,
}

/// The signal that called for a decision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reason {
    /// The stable window's average.
    Stable(Measured),
    /// The panic window's average.
    Panic(Measured),
    /// No request came or was in flight for this long.
    Idle(Duration),
    /// A request waits at zero.
    FirstWaiter,
    /// The revision is new.
    New,
}

/// A measured value with the target of one instance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// The metric, which gives the unit.
    pub metric: Metric,
    /// The value of all instances together.
    pub value: f64,
    /// The target of one instance, utilisation applied.
    pub target: f64,
}

impl Measured {
    /// A value with the target of its policy.
    pub fn new(value: f64, policy: &AutoscalePolicy) -> Self {
        Self {
            metric: policy.metric,
            value,
            target: policy.target_value,
        }
    }
}

/// The limit that changed a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// `max-scale-up-rate`.
    ScaleUpRate,
    /// `max-scale-down-rate`.
    ScaleDownRate,
    /// `activation-scale`.
    ActivationScale,
    /// No instance is taken away in panic.
    PanicHolds,
    /// `scale-down-delay`.
    ScaleDownDelay,
    /// `min-scale`.
    MinScale,
    /// `max-scale`.
    MaxScale,
    /// `initial-scale`.
    InitialScale,
    /// `enable-scale-to-zero` is off.
    NeverZero,
    /// There was a request within the window.
    InUse,
    /// An instance is starting, and may finish, for clients that come back.
    Starting,
    /// The revision has been active for less than the window.
    JustStarted,
    /// `scale-to-zero-pod-retention-period`.
    Retention,
    /// `scale-to-zero-grace-period`.
    Grace,
    /// The floor of a schedule.
    Schedule,
    /// The ceiling of a schedule.
    ScheduleCeiling,
    /// The floor of the forecast.
    Forecast,
    /// Another revision needs this one.
    Need,
    /// The floor of a rollout.
    Rollout,
    /// The service is paused.
    Paused,
}

impl ScaleDecision {
    /// The signal that set the number.
    pub fn source(&self) -> ScaleSource {
        match (self.limit, self.reason) {
            (Some(Limit::Schedule | Limit::ScheduleCeiling), _) => ScaleSource::Schedule,
            (Some(Limit::Forecast), _) => ScaleSource::Forecast,
            (Some(Limit::Need), _) => ScaleSource::Need,
            (Some(Limit::Rollout), _) => ScaleSource::Rollout,
            (
                Some(
                    Limit::MinScale
                    | Limit::MaxScale
                    | Limit::InitialScale
                    | Limit::NeverZero
                    | Limit::Retention
                    | Limit::Grace
                    | Limit::Paused,
                ),
                _,
            ) => ScaleSource::Bound,
            (_, Reason::Panic(_)) => ScaleSource::Panic,
            _ => ScaleSource::Reactive,
        }
    }
}

impl fmt::Display for ScaleDecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} → {}: {}", self.from, self.desired, self.reason)?;
        if let Some(limit) = self.limit {
            write!(f, ", {limit}")?;
        }
        // What the load alone calls for needs no second look.
        let ScaleWants {
            schedule,
            forecast,
            need,
            rollout,
            ..
        } = self.wants;
        if schedule.or(forecast).or(need).or(rollout).is_some() {
            write!(f, "; wanted:")?;
            for (n, (name, wanted)) in wanted(&self.wants).enumerate() {
                write!(f, "{} {name} {wanted}", if n == 0 { "" } else { "," })?;
            }
        }
        Ok(())
    }
}

/// The signals that said something, by name.
fn wanted(wants: &ScaleWants) -> impl Iterator<Item = (&'static str, u32)> {
    let floor = |source: ScaleSource, wanted: Option<u32>| Some((source.as_str(), wanted?));
    [
        Some((ScaleSource::Reactive.as_str(), wants.reactive)),
        floor(ScaleSource::Panic, wants.panic),
        floor(ScaleSource::Schedule, wants.schedule),
        floor(ScaleSource::Forecast, wants.forecast),
        floor(ScaleSource::Need, wants.need),
        floor(ScaleSource::Rollout, wants.rollout),
        (wants.min_scale > 0).then_some(("minScale", wants.min_scale)),
    ]
    .into_iter()
    .flatten()
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stable(measured) => write!(f, "stable, {measured}"),
            Self::Panic(measured) => write!(f, "panic, {measured}"),
            Self::Idle(time) => write!(f, "idle for {}s", time.as_secs()),
            Self::FirstWaiter => f.write_str("a request waits at zero"),
            Self::New => f.write_str("new revision"),
        }
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.metric {
            Metric::Concurrency => "in flight",
            Metric::Rps => "requests/s",
        };
        write!(f, "{} {unit} / target {}", Short(self.value), Short(self.target))
    }
}

/// A number with as many decimals as a reader needs: 412, 7.5, 0.02.
struct Short(f64);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places = match self.0 {
            v if v >= 100.0 || v.fract() == 0.0 => 0,
            v if v >= 1.0 => 1,
            _ => 2,
        };
        write!(f, "{:.places$}", self.0)
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ScaleUpRate => "limited by maxScaleUpRate",
            Self::ScaleDownRate => "limited by maxScaleDownRate",
            Self::ActivationScale => "raised to activationScale",
            Self::PanicHolds => "panic takes nothing away",
            Self::ScaleDownDelay => "held by scaleDownDelay",
            Self::MinScale => "raised to minScale",
            Self::MaxScale => "limited by maxScale",
            Self::InitialScale => "raised to initialScale",
            Self::NeverZero => "scale to zero is off",
            Self::InUse => "in use within the window",
            Self::Starting => "an instance is starting",
            Self::JustStarted => "up for less than the window",
            Self::Retention => "held by scaleToZeroPodRetentionPeriod",
            Self::Grace => "held by scaleToZeroGracePeriod",
            Self::Schedule => "raised by a schedule",
            Self::ScheduleCeiling => "limited by a schedule",
            Self::Forecast => "raised by the forecast",
            Self::Need => "another revision needs it",
            Self::Rollout => "raised for a rollout",
            Self::Paused => "the service is paused",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision(reason: Reason, limit: Option<Limit>) -> ScaleDecision {
        ScaleDecision {
            from: 3,
            desired: 7,
            reason,
            limit,
            wants: ScaleWants::default(),
            panic: false,
            excess_burst_capacity: 0,
        }
    }

    fn measured(metric: Metric, value: f64, target: f64) -> Measured {
        Measured {
            metric,
            value,
            target,
        }
    }

    #[test]
    fn decisions_read_like_sentences() {
        let panic = Reason::Panic(measured(Metric::Concurrency, 412.3, 70.0));
        assert_eq!(
            decision(panic, None).to_string(),
            "3 → 7: panic, 412 in flight / target 70"
        );
        let stable = Reason::Stable(measured(Metric::Rps, 7.46, 0.7));
        assert_eq!(
            decision(stable, Some(Limit::MaxScale)).to_string(),
            "3 → 7: stable, 7.5 requests/s / target 0.70, limited by maxScale"
        );
        assert_eq!(
            decision(Reason::Idle(Duration::from_secs(20)), None).to_string(),
            "3 → 7: idle for 20s"
        );
    }

    #[test]
    fn a_decision_names_who_won_and_what_the_others_wanted() {
        let load = Reason::Stable(measured(Metric::Concurrency, 1.0, 70.0));
        let wants = ScaleWants {
            reactive: 1,
            schedule: Some(7),
            forecast: Some(4),
            min_scale: 1,
            ..ScaleWants::default()
        };
        let raised = ScaleDecision {
            wants,
            ..decision(load, Some(Limit::Schedule))
        };
        assert_eq!(
            raised.to_string(),
            "3 → 7: stable, 1 in flight / target 70, raised by a schedule; \
             wanted: reactive 1, schedule 7, forecast 4, minScale 1"
        );
        let panic = Reason::Panic(measured(Metric::Concurrency, 412.3, 70.0));
        for (reason, limit, want) in [
            (load, None, ScaleSource::Reactive),
            (load, Some(Limit::ScaleDownDelay), ScaleSource::Reactive),
            (load, Some(Limit::MinScale), ScaleSource::Bound),
            (load, Some(Limit::Grace), ScaleSource::Bound),
            (load, Some(Limit::Schedule), ScaleSource::Schedule),
            (panic, None, ScaleSource::Panic),
            (panic, Some(Limit::ScheduleCeiling), ScaleSource::Schedule),
            (panic, Some(Limit::MaxScale), ScaleSource::Bound),
            (load, Some(Limit::Forecast), ScaleSource::Forecast),
            (Reason::New, Some(Limit::Need), ScaleSource::Need),
            (Reason::New, Some(Limit::Rollout), ScaleSource::Rollout),
        ] {
            assert_eq!(decision(reason, limit).source(), want, "{reason:?} {limit:?}");
        }
    }
}

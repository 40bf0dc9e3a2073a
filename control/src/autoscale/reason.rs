//! A decision and how it says why.

use std::fmt;
use std::time::Duration;

use crate::plan::{AutoscalePolicy, Metric};

/// How many instances a revision should have, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct ScaleDecision {
    /// Instances asked for before.
    pub from: u32,
    /// Instances asked for now.
    pub desired: u32,
    /// What called for it.
    pub reason: Reason,
    /// What kept it from being more or less; the last word if there were several.
    pub limit: Option<Limit>,
    /// Whether the panic window rules.
    pub panic: bool,
    /// Requests that could still come at once before instances have too much, less what is wanted
    /// in reserve; -1 where the reserve is unlimited. For status.
    pub excess_burst_capacity: i64,
}

/// What called for a decision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reason {
    /// The stable window's average.
    Stable(Measured),
    /// The panic window's average.
    Panic(Measured),
    /// Nothing came, and nothing was under way, for this long.
    Idle(Duration),
    /// Somebody waits at zero.
    FirstWaiter,
    /// The revision is new.
    New,
}

/// What was measured, beside what one instance should have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// In which unit.
    pub metric: Metric,
    /// All instances together.
    pub value: f64,
    /// Wanted for each instance, utilisation applied.
    pub target: f64,
}

impl Measured {
    /// A value beside its policy's target.
    pub fn new(value: f64, policy: &AutoscalePolicy) -> Self {
        Self {
            metric: policy.metric,
            value,
            target: policy.target_value,
        }
    }
}

/// What kept a decision from being more or less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// `max-scale-up-rate`.
    ScaleUpRate,
    /// `max-scale-down-rate`.
    ScaleDownRate,
    /// `activation-scale`.
    ActivationScale,
    /// While in panic nothing is taken away.
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
    /// A request was there within the window.
    InUse,
    /// An instance is starting; it is let through to serve whoever comes back.
    Starting,
    /// It has been up for less than the window.
    JustStarted,
    /// `scale-to-zero-pod-retention-period`.
    Retention,
    /// `scale-to-zero-grace-period`.
    Grace,
}

impl fmt::Display for ScaleDecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} → {}: {}", self.from, self.desired, self.reason)?;
        self.limit.map_or(Ok(()), |limit| write!(f, ", {limit}"))
    }
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

/// As many places as a reader needs: 412, 7.5, 0.02.
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
}

//! Autoscaling keys, under Knative's names: gateway-wide as in config-autoscaler, per revision as
//! in the annotations. Ranges are Knative's.

use std::time::Duration;

use super::schedules::{FORECAST, MODE, SCHEDULE};
use crate::plan::{ForecastPolicy, Metric, ScalingMode};
use crate::schedule::Schedule;
use sluice_config_shape::{
    Choice, DurationRange, Flag, Integer, List, Located, Number, Object, Record, WithLocation,
};

const HOUR: Duration = Duration::from_secs(3600);
const NOTHING: Duration = Duration::ZERO;
/// Knative's lower bound of windows.
const SHORTEST_WINDOW: Duration = Duration::from_secs(6);
/// The bound of scales: above what one gateway is used for.
const MAX_SCALE: u64 = 1_000_000;
pub(super) const SCALE: Integer = Integer {
    min: 0,
    max: MAX_SCALE,
};
const WINDOW: DurationRange = DurationRange {
    min: SHORTEST_WINDOW,
    max: HOUR,
    whole_seconds: true,
};
const DELAY: DurationRange = DurationRange {
    min: NOTHING,
    max: HOUR,
    whole_seconds: true,
};
const RETENTION: DurationRange = DurationRange {
    min: NOTHING,
    max: HOUR,
    whole_seconds: false,
};
const BURST: Number = Number {
    min: 0.0,
    max: 1e9,
    or_minus_one: true,
};

/// The autoscaling defaults of all revisions.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Globals {
    /// The target utilisation, as a fraction.
    pub(crate) target_fraction: f64,
    pub(crate) concurrency_target: f64,
    pub(crate) rps_target: f64,
    pub(crate) burst_capacity: f64,
    pub(crate) stable_window: Duration,
    pub(crate) panic_window_percentage: f64,
    pub(crate) panic_threshold_percentage: f64,
    pub(crate) max_scale_up_rate: f64,
    pub(crate) max_scale_down_rate: f64,
    pub(crate) scale_to_zero: bool,
    pub(crate) scale_to_zero_grace: Duration,
    pub(crate) scale_to_zero_retention: Duration,
    pub(crate) initial_scale: u64,
    pub(crate) allow_zero_initial_scale: bool,
    pub(crate) min_scale: u64,
    pub(crate) max_scale: u64,
    pub(crate) max_scale_limit: u64,
    pub(crate) scale_down_delay: Duration,
}

impl Default for Globals {
    fn default() -> Self {
        Self {
            target_fraction: 0.7,
            concurrency_target: 100.0,
            rps_target: 200.0,
            burst_capacity: 211.0,
            stable_window: Duration::from_secs(60),
            panic_window_percentage: 10.0,
            panic_threshold_percentage: 200.0,
            max_scale_up_rate: 1000.0,
            max_scale_down_rate: 2.0,
            scale_to_zero: true,
            // Knative's 30 s are for the activator to enter the path; nothing enters the path here.
            scale_to_zero_grace: NOTHING,
            scale_to_zero_retention: NOTHING,
            // Knative starts each new revision once, to see that the revision can start. Here a file may list revisions
            // without traffic, which stay at zero.
            initial_scale: 0,
            allow_zero_initial_scale: true,
            min_scale: 0,
            max_scale: 0,
            max_scale_limit: 0,
            scale_down_delay: NOTHING,
        }
    }
}

pub(super) const GLOBALS: Record<Globals> = Record {
    name: "AutoscalingDefaults",
    doc: "Defaults for all revisions, under the names of Knative's config-autoscaler.",
    decode: globals,
};

fn globals(o: &mut Object<'_>) -> Option<Globals> {
    let d = Globals::default();
    let before = o.cx.errors();
    let percentage = o.or(
        "containerConcurrencyTargetPercentage",
        "Target utilisation for the concurrency metric; up to 1 it is read as a fraction.",
        Number::between(1e-6, 100.0),
        d.target_fraction * 100.0,
    );
    let target_fraction = if percentage > 1.0 {
        percentage / 100.0
    } else {
        percentage
    };
    let globals = Globals {
        target_fraction,
        concurrency_target: o.or(
            "containerConcurrencyTargetDefault",
            "Requests per instance where containerConcurrency is 0.",
            Number::between(0.01, 1e9),
            d.concurrency_target,
        ),
        rps_target: o.or(
            "requestsPerSecondTargetDefault",
            "Requests per second and instance for the rps metric.",
            Number::between(0.01, 1e9),
            d.rps_target,
        ),
        burst_capacity: o.or(
            "targetBurstCapacity",
            "Capacity wanted in reserve; -1 is unlimited. Shown, but without effect on the path.",
            BURST,
            d.burst_capacity,
        ),
        stable_window: o.or(
            "stableWindow",
            "Averaged over for stable decisions.",
            WINDOW,
            d.stable_window,
        ),
        panic_window_percentage: o.or(
            "panicWindowPercentage",
            "The panic window in percent of the stable one.",
            Number::between(1.0, 100.0),
            d.panic_window_percentage,
        ),
        panic_threshold_percentage: o.or(
            "panicThresholdPercentage",
            "Panic when this much of what runs is wanted.",
            Number::between(1.0, 1e6),
            d.panic_threshold_percentage,
        ),
        max_scale_up_rate: o.or(
            "maxScaleUpRate",
            "How many times more than runs may be asked for at once; above 1.",
            Number::between(1.000_001, 1e9),
            d.max_scale_up_rate,
        ),
        max_scale_down_rate: o.or(
            "maxScaleDownRate",
            "How many times fewer; above 1.",
            Number::between(1.000_001, 1e9),
            d.max_scale_down_rate,
        ),
        scale_to_zero: o.or(
            "enableScaleToZero",
            "Whether zero is allowed at all.",
            Flag,
            d.scale_to_zero,
        ),
        scale_to_zero_grace: o.or(
            "scaleToZeroGracePeriod",
            "Between the decision for zero and zero. 0s, because nothing has to enter the path.",
            DurationRange::ANY,
            d.scale_to_zero_grace,
        ),
        scale_to_zero_retention: o.or(
            "scaleToZeroPodRetentionPeriod",
            "How long the last instance stays at least.",
            DurationRange::ANY,
            d.scale_to_zero_retention,
        ),
        initial_scale: o.or(
            "initialScale",
            "Started when a revision is first served.",
            SCALE,
            d.initial_scale,
        ),
        allow_zero_initial_scale: o.or(
            "allowZeroInitialScale",
            "Whether initialScale may be 0.",
            Flag,
            d.allow_zero_initial_scale,
        ),
        min_scale: o.or("minScale", "Never fewer.", SCALE, d.min_scale),
        max_scale: o.or("maxScale", "Never more; 0 is no limit.", SCALE, d.max_scale),
        max_scale_limit: o.or(
            "maxScaleLimit",
            "The most that a revision may set as maxScale; 0 is no limit.",
            SCALE,
            d.max_scale_limit,
        ),
        scale_down_delay: o.or(
            "scaleDownDelay",
            "Scale down only when it was wanted this long.",
            DELAY,
            d.scale_down_delay,
        ),
    };
    o.close();
    if o.cx.errors() == before {
        check_globals(o, &globals);
    }
    Some(globals)
}

fn check_globals(o: &mut Object<'_>, g: &Globals) {
    let limit = g.max_scale_limit;
    if g.max_scale > 0 && g.min_scale > g.max_scale {
        let message = format!("minScale {} is above maxScale {}", g.min_scale, g.max_scale);
        report_at(
            o,
            &["minScale", "maxScale"],
            &message,
            "raise maxScale or lower minScale",
        );
    }
    if limit > 0 && !(1..=limit).contains(&g.max_scale) {
        let message = format!(
            "maxScale {} is not between 1 and maxScaleLimit {limit}",
            g.max_scale
        );
        report_at(
            o,
            &["maxScale", "maxScaleLimit"],
            &message,
            "set maxScale within the limit",
        );
    }
    if g.initial_scale == 0 && !g.allow_zero_initial_scale {
        let keys = ["initialScale", "allowZeroInitialScale"];
        report_at(
            o,
            &keys,
            "initialScale is 0, which allowZeroInitialScale forbids",
            "set initialScale",
        );
    }
    if g.target_fraction * g.concurrency_target < 0.01 {
        let keys = [
            "containerConcurrencyTargetPercentage",
            "containerConcurrencyTargetDefault",
        ];
        report_at(
            o,
            &keys,
            "percentage and target make less than 0.01 requests",
            "raise one of them",
        );
    }
}

/// Reports an error at the first of these keys that is present.
fn report_at(o: &mut Object<'_>, keys: &[&str], message: &str, hint: &str) {
    let at = keys.iter().find_map(|key| o.value(key));
    let at = at.unwrap_or_else(|| o.at.whole());
    o.cx.report(at.error(message).hint(hint));
}

/// The autoscaling keys of one revision; absent ones come from [`Globals`].
#[derive(Debug, Clone, Default)]
pub(crate) struct Scaling {
    pub(crate) min_scale: Option<u64>,
    pub(crate) max_scale: Option<u64>,
    pub(crate) initial_scale: Option<u64>,
    pub(crate) activation_scale: Option<u64>,
    pub(crate) scale_down_delay: Option<Duration>,
    pub(crate) metric: Option<Metric>,
    pub(crate) target: Option<f64>,
    pub(crate) target_utilization_percentage: Option<f64>,
    pub(crate) target_burst_capacity: Option<f64>,
    pub(crate) window: Option<Duration>,
    pub(crate) panic_window_percentage: Option<f64>,
    pub(crate) panic_threshold_percentage: Option<f64>,
    pub(crate) scale_to_zero_retention: Option<Duration>,
    pub(crate) mode: ScalingMode,
    pub(crate) schedules: Vec<Located<Schedule>>,
    pub(crate) forecast: Option<Located<ForecastPolicy>>,
    /// No key has a mistake by itself.
    pub(crate) sound: bool,
}

pub(super) const SCALING: Record<Scaling> = Record {
    name: "Autoscaling",
    doc: "How a revision is scaled, under the names of Knative's annotations.",
    decode: scaling,
};

/// The schedules of one revision at most.
const MAX_SCHEDULES: usize = 32;

fn schedules(o: &mut Object<'_>) -> Vec<Located<Schedule>> {
    let schedules = o.optional(
        "schedules",
        "Floors and ceilings by the clock. The greatest floor and the least ceiling of those that are active win.",
        List(WithLocation(SCHEDULE)),
    );
    let schedules = schedules.unwrap_or_default();
    if let (true, Some(key)) = (schedules.len() > MAX_SCHEDULES, o.key("schedules")) {
        let message = format!(
            "there are {} schedules, and {MAX_SCHEDULES} are allowed",
            schedules.len()
        );
        o.cx.report(
            key.error(message)
                .hint("one pattern may name several hours and days: 0 8,20 * * 1-5"),
        );
    }
    let sound = schedules.into_iter().filter_map(|Located { value, node }| {
        let value = value?;
        Some(Located { value, node })
    });
    sound.collect()
}

fn scaling(o: &mut Object<'_>) -> Option<Scaling> {
    let before = o.cx.errors();
    let mut scaling = Scaling {
        min_scale: o.optional("minScale", "Never fewer.", SCALE),
        max_scale: o.optional("maxScale", "Never more; 0 is no limit.", SCALE),
        initial_scale: o.optional(
            "initialScale",
            "Started when the revision is first served.",
            SCALE,
        ),
        activation_scale: o.optional(
            "activationScale",
            "Started by the first request at zero. Default 1.",
            Integer {
                min: 1,
                max: MAX_SCALE,
            },
        ),
        scale_down_delay: o.optional(
            "scaleDownDelay",
            "Scale down only when it was wanted this long.",
            DELAY,
        ),
        metric: o.optional(
            "metric",
            "What is measured. Default concurrency.",
            Choice(&[("concurrency", Metric::Concurrency), ("rps", Metric::Rps)]),
        ),
        target: o.optional(
            "target",
            "The wanted value per instance, before utilisation.",
            Number::between(0.01, 1e9),
        ),
        target_utilization_percentage: o.optional(
            "targetUtilizationPercentage",
            "How much of the target is aimed at.",
            Number::between(1.0, 100.0),
        ),
        target_burst_capacity: o.optional(
            "targetBurstCapacity",
            "Capacity wanted in reserve; -1 is unlimited.",
            BURST,
        ),
        window: o.optional("window", "Averaged over for stable decisions.", WINDOW),
        panic_window_percentage: o.optional(
            "panicWindowPercentage",
            "The panic window in percent of the stable one.",
            Number::between(1.0, 100.0),
        ),
        panic_threshold_percentage: o.optional(
            "panicThresholdPercentage",
            "Panic when this much of what runs is wanted.",
            Number::between(110.0, 1000.0),
        ),
        scale_to_zero_retention: o.optional(
            "scaleToZeroPodRetentionPeriod",
            "How long the last instance stays at least.",
            RETENTION,
        ),
        mode: o.or(
            "mode",
            "observe: starts and stops nothing; what would have been started and stopped is logged and counted.",
            MODE,
            ScalingMode::Active,
        ),
        schedules: schedules(o),
        forecast: o
            .optional(
                "forecast",
                "Raises the floor ahead of load that came at the same time before.",
                WithLocation(FORECAST),
            )
            .and_then(|forecast| {
                let value = forecast.value?;
                let node = forecast.node;
                Some(Located { value, node })
            }),
        sound: false,
    };
    o.close();
    if o.cx.errors() == before
        && let (Some(min), Some(max)) = (scaling.min_scale, scaling.max_scale)
        && max > 0
        && min > max
    {
        let message = format!("minScale {min} is above maxScale {max}");
        report_at(o, &["minScale"], &message, "raise maxScale or lower minScale");
    }
    scaling.sound = o.cx.errors() == before;
    Some(scaling)
}

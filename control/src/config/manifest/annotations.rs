//! Annotations of a template: how its revision is scaled.

use std::time::Duration;

use sluice_config_shape::{Context, Located, NodeRef, did_you_mean, quoted};

use super::metadata::{Texts, Unused, check_group, first};
use super::quantity::{duration, number, whole};
use crate::config::autoscaling::Scaling;
use crate::plan::Metric;

const GROUP: &str = "autoscaling.knative.dev";
const HOUR: Duration = Duration::from_secs(3600);
/// As of the key `maxScale`.
const MAX_SCALE: u64 = 1_000_000;

/// Every key of the group, in both spellings; of each whether it applies here.
const KNOWN: [(&str, bool); 27] = [
    ("class", true),
    ("min-scale", true),
    ("minScale", true),
    ("max-scale", true),
    ("maxScale", true),
    ("initial-scale", true),
    ("initialScale", true),
    ("activation-scale", true),
    ("activationScale", true),
    ("scale-down-delay", true),
    ("scaleDownDelay", true),
    ("metric", true),
    ("metric-aggregation-algorithm", true),
    ("metricAggregationAlgorithm", true),
    ("target", true),
    ("target-utilization-percentage", true),
    ("targetUtilizationPercentage", true),
    ("target-burst-capacity", true),
    ("targetBurstCapacity", true),
    ("window", true),
    ("panic-window-percentage", true),
    ("panicWindowPercentage", true),
    ("panic-threshold-percentage", true),
    ("panicThresholdPercentage", true),
    ("scale-to-zero-pod-retention-period", true),
    ("scaleToZeroPodRetentionPeriod", true),
    ("panic-window", false),
];

/// An annotation of the group in either spelling; the spelling with hyphens goes first.
fn get<'t>(texts: &'t Texts, kebab: &str, camel: &str) -> Option<&'t Located<String>> {
    let (kebab, camel) = (format!("{GROUP}/{kebab}"), format!("{GROUP}/{camel}"));
    first(texts, &[&kebab, &camel])
}

/// The scaling that annotations ask for. What they say for a class of autoscalers that is not there means nothing here.
pub(super) fn scaling(
    texts: &Texts,
    template: &NodeRef,
    unused: &mut Unused,
    cx: &mut Context,
) -> Located<Scaling> {
    let before = cx.errors();
    check_group(texts, GROUP, &KNOWN, unused, cx);
    let is_kpa = is_kpa(texts, unused, cx);
    let mut scaling = Scaling {
        min_scale: scale(texts, "min-scale", "minScale", 0, cx),
        max_scale: scale(texts, "max-scale", "maxScale", 0, cx),
        // A new revision is started once, so that it is seen whether it starts.
        initial_scale: scale(texts, "initial-scale", "initialScale", 0, cx).or(Some(1)),
        activation_scale: scale(texts, "activation-scale", "activationScale", 2, cx),
        scale_down_delay: time(
            texts,
            "scale-down-delay",
            "scaleDownDelay",
            Duration::ZERO,
            false,
            cx,
        ),
        window: time(texts, "window", "window", Duration::from_secs(6), false, cx),
        scale_to_zero_retention: time(
            texts,
            "scale-to-zero-pod-retention-period",
            "scaleToZeroPodRetentionPeriod",
            Duration::ZERO,
            true,
            cx,
        ),
        target_burst_capacity: burst(texts, cx),
        panic_window_percentage: fraction(
            texts,
            "panic-window-percentage",
            "panicWindowPercentage",
            (1.0, 100.0),
            cx,
        ),
        panic_threshold_percentage: fraction(
            texts,
            "panic-threshold-percentage",
            "panicThresholdPercentage",
            (110.0, 1000.0),
            cx,
        ),
        target_utilization_percentage: fraction(
            texts,
            "target-utilization-percentage",
            "targetUtilizationPercentage",
            (1.0, 100.0),
            cx,
        ),
        ..Scaling::default()
    };
    let algorithm = get(
        texts,
        "metric-aggregation-algorithm",
        "metricAggregationAlgorithm",
    );
    if let Some(algorithm) = algorithm {
        one_of(
            algorithm,
            &["linear", "weighted-exponential", "weightedExponential"],
            cx,
        );
        if algorithm.value != "linear" {
            unused.add(algorithm.node.clone());
        }
    }
    if is_kpa {
        scaling.metric = metric(texts, cx);
        scaling.target = fraction(texts, "target", "target", (0.01, 1e9), cx);
    } else {
        let of_class = ["metric", "target"].map(|key| format!("{GROUP}/{key}"));
        for text in of_class.iter().filter_map(|key| texts.get(key)) {
            unused.add(text.node.clone());
        }
    }
    if cx.errors() == before
        && let (Some(min), Some(max)) = (scaling.min_scale, scaling.max_scale)
        && max > 0
        && min > max
    {
        let message = format!("min-scale {min} is above max-scale {max}");
        let at = get(texts, "min-scale", "minScale").map_or(template, |text| &text.node);
        cx.report(at.error(message).hint("raise max-scale or lower min-scale"));
    }
    scaling.sound = cx.errors() == before;
    Located {
        value: scaling,
        node: template.clone(),
    }
}

/// Whether the class is Knative's own, which is how everything is scaled here.
fn is_kpa(texts: &Texts, unused: &mut Unused, cx: &mut Context) -> bool {
    let Some(class) = texts.get(&format!("{GROUP}/class")) else {
        return true;
    };
    if class.value == "kpa.autoscaling.knative.dev" {
        return true;
    }
    if class.value.ends_with(".knative.dev") && class.value != "hpa.autoscaling.knative.dev" {
        let message = format!("{} is no class of autoscalers", quoted(&class.value));
        let hint = "write kpa.autoscaling.knative.dev, or leave it out";
        cx.report(class.node.error(message).hint(hint));
    }
    unused.add(class.node.clone());
    false
}

fn metric(texts: &Texts, cx: &mut Context) -> Option<Metric> {
    let metric = texts.get(&format!("{GROUP}/metric"))?;
    match one_of(metric, &["concurrency", "rps"], cx)? {
        0 => Some(Metric::Concurrency),
        _ => Some(Metric::Rps),
    }
}

/// Which of some words a text is.
fn one_of(text: &Located<String>, words: &[&str], cx: &mut Context) -> Option<usize> {
    let found = words.iter().position(|word| *word == text.value);
    if found.is_none() {
        let message = format!("{} is none of {}", quoted(&text.value), words.join(", "));
        let mut diagnostic = text.node.error(message);
        if let Some(meant) = did_you_mean(&text.value, words.iter().copied()) {
            diagnostic = diagnostic.hint(format!("did you mean '{meant}'?"));
        }
        cx.report(diagnostic);
    }
    found
}

fn scale(texts: &Texts, kebab: &str, camel: &str, min: u64, cx: &mut Context) -> Option<u64> {
    whole(get(texts, kebab, camel)?, min, MAX_SCALE, cx)
}

fn fraction(texts: &Texts, kebab: &str, camel: &str, range: (f64, f64), cx: &mut Context) -> Option<f64> {
    number(get(texts, kebab, camel)?, range.0, range.1, cx)
}

fn time(
    texts: &Texts,
    kebab: &str,
    camel: &str,
    min: Duration,
    fine: bool,
    cx: &mut Context,
) -> Option<Duration> {
    duration(get(texts, kebab, camel)?, min, HOUR, fine, cx)
}

/// Without a bound, or -1 for unlimited.
fn burst(texts: &Texts, cx: &mut Context) -> Option<f64> {
    let text = get(texts, "target-burst-capacity", "targetBurstCapacity")?;
    match text
        .value
        .parse::<f64>()
        .is_ok_and(|value| value.total_cmp(&-1.0).is_eq())
    {
        true => Some(-1.0),
        false => number(text, 0.0, 1e9, cx),
    }
}

/// How long an instance may take to become ready: Knative's progress deadline.
pub(super) fn start_timeout(texts: &Texts, cx: &mut Context) -> Duration {
    let keys = [
        "serving.knative.dev/progress-deadline",
        "serving.knative.dev/progressDeadline",
    ];
    let longest = sluice_config_shape::MAX_DURATION;
    let deadline =
        first(texts, &keys).and_then(|text| duration(text, Duration::from_secs(1), longest, false, cx));
    deadline.unwrap_or(Duration::from_secs(600))
}

const ALIBABA: &str = "knative.aliyun.com";

/// What kind of machine a reserve is on, which means nothing here.
const KIND_OF_RESERVE: [&str; 7] = [
    "reserve-instance-type",
    "reserve-instance-eci-use-specs",
    "reserve-instance-ecs-use-specs",
    "reserve-instance-cpu-resource-request",
    "reserve-instance-cpu-resource-limit",
    "reserve-instance-memory-resource-request",
    "reserve-instance-memory-resource-limit",
];

/// The instances of a reserve that serves the first requests while a standard instance starts: Alibaba's reserved instances.
/// 0: no reserve.
pub(super) fn reserve(texts: &Texts, unused: &mut Unused, cx: &mut Context) -> u32 {
    let get = |key: &str| texts.get(&format!("{ALIBABA}/{key}"));
    let Some(enabled) = get("reserve-instance") else {
        return 0;
    };
    let is_enabled = match enabled.value.as_str() {
        "enable" => true,
        "disable" => false,
        _ => {
            let message = format!("{} is neither enable nor disable", quoted(&enabled.value));
            cx.report(enabled.node.error(message));
            false
        }
    };
    for text in KIND_OF_RESERVE.iter().filter_map(|key| get(key)) {
        unused.add(text.node.clone());
    }
    let count = get("reserve-instance-replicas").and_then(|text| whole(text, 1, 1_000, cx));
    match is_enabled {
        true => u32::try_from(count.unwrap_or(1)).unwrap_or(1),
        false => 0,
    }
}

//! Autoscaling policies: a revision's settings over the defaults, combined by Knative's rules.

use std::sync::Arc;
use std::time::Duration;

use sluice_model::Backend;

use crate::config::{Context, Draft, Globals, Located, RevisionDraft, Scaling, ServiceDraft};
use crate::plan::{AutoscalePolicy, ForesightPolicy, Metric, ScalingMode};
use crate::schedule::{NO_LIMIT, Schedule, conflict};

/// Knative's `requests-per-second` utilisation, which no key changes.
const RPS_FRACTION: f64 = 0.7;
/// Knative's smallest target.
const LEAST_TARGET: f64 = 0.01;

/// The policies by service, revision and tier, of which a revision without tiers has one; `None` for a tier that is not
/// scaled.
pub(super) fn policies(
    services: &[ServiceDraft],
    top_level: &Draft,
    cx: &mut Context,
) -> Vec<Vec<Vec<Option<AutoscalePolicy>>>> {
    services
        .iter()
        .map(|service| {
            let revisions = service.revisions.iter();
            revisions.map(|r| tier_policies(r, top_level, cx)).collect()
        })
        .collect()
}

/// The revision's policy for each tier that is scaled. Minimum, initial scale, schedules and forecast are those of the
/// last one: the others are there for the time until it is.
fn tier_policies(
    revision: &RevisionDraft,
    top_level: &Draft,
    cx: &mut Context,
) -> Vec<Option<AutoscalePolicy>> {
    let scaling = scaling(revision, top_level, cx);
    let globals = &top_level.autoscaling;
    let scalers = revision.scalers();
    let last = scalers.iter().rposition(|(scaler, _)| scaler.is_some());
    let policy = |(tier, (scaler, limit)): (usize, (Option<_>, Option<u32>))| {
        let (Some(scaling), Some(_)) = (&scaling, scaler) else {
            return None;
        };
        let policy = derive(scaling, globals, limit);
        let always = revision.tiers.get(tier).map_or(0, |tier| tier.always);
        Some(match last == Some(tier) {
            true => policy,
            false => AutoscalePolicy {
                min_scale: always,
                max_scale: if always > 0 {
                    Some(always)
                } else {
                    policy.max_scale
                },
                initial_scale: 0,
                foresight: None,
                ..policy
            },
        })
    };
    scalers.into_iter().enumerate().map(policy).collect()
}

/// The checked scaling of a revision that something scales.
fn scaling(revision: &RevisionDraft, top_level: &Draft, cx: &mut Context) -> Option<Scaling> {
    let globals = &top_level.autoscaling;
    if revision.scalers().iter().all(|(scaler, _)| scaler.is_none()) {
        // A revision without a backend was reported already.
        if let (Some(scaling), Some(_)) = (&revision.scaling, &revision.backend) {
            let diagnostic = scaling
                .node
                .whole()
                .error("autoscaling is ignored: nothing starts instances");
            let hint = "only a process, or endpoints with activation, are scaled";
            cx.report(diagnostic.hint(hint).warning());
        }
        return None;
    }
    match &revision.scaling {
        Some(scaling) if !scaling.value.sound => None,
        Some(scaling) => {
            check(scaling, globals, cx);
            check_schedules(&scaling.value, globals, cx);
            warn(scaling, revision, top_level, cx);
            Some(scaling.value.clone())
        }
        None => Some(Scaling::default()),
    }
}

/// Checks values that are valid alone and invalid with the defaults.
fn check(scaling: &Located<Scaling>, globals: &Globals, cx: &mut Context) {
    let s = &scaling.value;
    let min = s.min_scale.unwrap_or(globals.min_scale);
    let max = s.max_scale.unwrap_or(globals.max_scale);
    let limit = globals.max_scale_limit;
    let mut complain = |message: String, hint: &str| {
        cx.report(scaling.node.whole().error(message).hint(hint));
    };
    if s.max_scale.is_some() && limit > 0 && !(1..=limit).contains(&max) {
        complain(
            format!("maxScale {max} is not between 1 and maxScaleLimit {limit}"),
            "maxScaleLimit is set in the top-level autoscaling",
        );
    }
    // A conflict within the revision was reported there.
    if max > 0 && min > max {
        complain(
            format!("minScale {min} is above maxScale {max}"),
            "one of them comes from the top-level autoscaling",
        );
    }
    if s.initial_scale == Some(0) && !globals.allow_zero_initial_scale {
        complain(
            "initialScale is 0, which allowZeroInitialScale forbids".to_owned(),
            "allowZeroInitialScale is set in the top-level autoscaling",
        );
    }
    if let Some(activation) = s.activation_scale {
        if activation < min {
            complain(
                format!("activationScale {activation} is below minScale {min}"),
                "raise activationScale or lower minScale",
            );
        }
        if max > 0 && activation > max {
            complain(
                format!("activationScale {activation} is above maxScale {max}"),
                "lower activationScale or raise maxScale",
            );
        }
    }
}

/// Reports a schedule with a floor above a ceiling: its own, another one's or the revision's.
fn check_schedules(s: &Scaling, globals: &Globals, cx: &mut Context) {
    if s.schedules.is_empty() {
        return;
    }
    let limit = globals.max_scale_limit;
    for schedule in &s.schedules {
        let beyond = |max: u32| max == NO_LIMIT || u64::from(max) > limit;
        if let Some(max) = schedule.value.max_scale.filter(|max| limit > 0 && beyond(*max)) {
            let max = if max == NO_LIMIT { 0 } else { max };
            let message = format!("maxScale {max} is not between 1 and maxScaleLimit {limit}");
            let hint = "maxScaleLimit is set in the top-level autoscaling";
            cx.report(schedule.node.whole().error(message).hint(hint));
        }
    }
    let min = scale(s.min_scale.unwrap_or(globals.min_scale));
    let max = s.max_scale.unwrap_or(globals.max_scale);
    let max = (max > 0).then(|| scale(max));
    if max.is_some_and(|max| min > max) {
        // Reported already, and in conflict with everything.
        return;
    }
    let schedules: Vec<Schedule> = s
        .schedules
        .iter()
        .map(|schedule| schedule.value.clone())
        .collect();
    let Some(found) = conflict(&schedules, min, max) else {
        return;
    };
    let time =
        jiff::Timestamp::from_second(found.at).map_or_else(|_| found.at.to_string(), |at| at.to_string());
    let message = format!(
        "minScale {} is above maxScale {} while this schedule is active, as at {time}",
        found.floor, found.ceiling
    );
    let hint = "the greatest minScale and the least maxScale of active schedules win, minScale of the revision included";
    cx.report(s.schedules[found.schedule].node.whole().error(message).hint(hint));
}

/// Warns about keys that do less than they seem to.
fn warn(scaling: &Located<Scaling>, revision: &RevisionDraft, top_level: &Draft, cx: &mut Context) {
    let s = &scaling.value;
    if s.mode == ScalingMode::Observe && matches!(revision.backend, Some(Backend::Managed)) {
        let diagnostic = scaling
            .node
            .whole()
            .error("mode is observe: nothing starts this revision");
        let hint = "observe is for endpoints that are there anyway: list them, with activation for later";
        cx.report(diagnostic.hint(hint).warning());
    }
    if let (Some(forecast), None) = (&s.forecast, &top_level.settings.state_directory) {
        let diagnostic = forecast
            .node
            .whole()
            .error("a restart forgets what the forecast learned");
        cx.report(diagnostic.hint("set state.directory at the top level").warning());
    }
}

fn scale(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// One revision's policy.
pub(super) fn derive(s: &Scaling, g: &Globals, container_concurrency: Option<u32>) -> AutoscalePolicy {
    let metric = s.metric.unwrap_or(Metric::Concurrency);
    let (total_value, target_value) = target(s, g, metric, container_concurrency);
    let stable_window = s.window.unwrap_or(g.stable_window);
    let panic_percentage = s.panic_window_percentage.unwrap_or(g.panic_window_percentage);
    let panic_threshold = s
        .panic_threshold_percentage
        .unwrap_or(g.panic_threshold_percentage);
    let max_scale = s.max_scale.unwrap_or(g.max_scale);
    AutoscalePolicy {
        metric,
        total_value,
        target_value,
        min_scale: scale(s.min_scale.unwrap_or(g.min_scale)),
        max_scale: (max_scale > 0).then(|| scale(max_scale)),
        initial_scale: scale(s.initial_scale.unwrap_or(g.initial_scale)),
        activation_scale: scale(s.activation_scale.unwrap_or(1)),
        stable_window,
        panic_window: panic_window(stable_window, panic_percentage),
        panic_threshold: panic_threshold / 100.0,
        max_scale_up_rate: g.max_scale_up_rate,
        max_scale_down_rate: g.max_scale_down_rate,
        scale_down_delay: s.scale_down_delay.unwrap_or(g.scale_down_delay),
        scale_to_zero: g.scale_to_zero,
        scale_to_zero_grace: g.scale_to_zero_grace,
        scale_to_zero_retention: s.scale_to_zero_retention.unwrap_or(g.scale_to_zero_retention),
        target_burst_capacity: s.target_burst_capacity.unwrap_or(g.burst_capacity),
        mode: s.mode,
        foresight: (!s.schedules.is_empty() || s.forecast.is_some()).then(|| {
            Arc::new(ForesightPolicy {
                schedules: s
                    .schedules
                    .iter()
                    .map(|schedule| schedule.value.clone())
                    .collect(),
                forecast: s.forecast.as_ref().map(|forecast| forecast.value),
            })
        }),
    }
}

/// Total and target value, after Knative's `pkg/reconciler/autoscaling/resources/target.go`.
fn target(s: &Scaling, g: &Globals, metric: Metric, container_concurrency: Option<u32>) -> (f64, f64) {
    let (fraction, total) = match metric {
        Metric::Concurrency => {
            let limit = container_concurrency.map(f64::from);
            let total = limit.unwrap_or(g.concurrency_target);
            let total = match (s.target, limit) {
                (Some(target), Some(limit)) => target.min(limit),
                (Some(target), None) => target,
                (None, _) => total,
            };
            (g.target_fraction, total)
        }
        Metric::Rps => (RPS_FRACTION, s.target.unwrap_or(g.rps_target)),
    };
    let fraction = s.target_utilization_percentage.map_or(fraction, |p| p / 100.0);
    (total, (total * fraction).max(LEAST_TARGET))
}

/// A percentage of the stable window in whole seconds, at least one.
fn panic_window(stable: Duration, percentage: f64) -> Duration {
    let seconds = (stable.as_secs_f64() * percentage / 100.0).round().max(1.0);
    Duration::from_secs_f64(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of Knative's `target_test.go`: (target, total).
    #[test]
    fn knative_target_vectors() {
        let globals = |fraction: f64, default: f64| Globals {
            target_fraction: fraction,
            concurrency_target: default,
            ..Globals::default()
        };
        let none = Scaling::default;
        let to = |target: f64| Scaling {
            target: Some(target),
            ..none()
        };
        let used = |percentage: f64| Scaling {
            target_utilization_percentage: Some(percentage),
            ..none()
        };
        let rps = |s: Scaling| Scaling {
            metric: Some(Metric::Rps),
            ..s
        };
        for (name, s, g, cc, want_target, want_total) in [
            ("defaults", none(), globals(1.0, 100.0), None, 100.0, 100.0),
            ("default .8", none(), globals(0.8, 100.0), None, 80.0, 100.0),
            ("default 2 .3", none(), globals(0.3, 2.0), None, 0.6, 2.0),
            (
                "cc 12 TU 75",
                used(75.0),
                globals(1.0, 100.0),
                Some(12),
                9.0,
                12.0,
            ),
            ("cc 10 .8", none(), globals(0.8, 100.0), Some(10), 8.0, 10.0),
            ("cc 1 .8", none(), globals(0.8, 100.0), Some(1), 0.8, 1.0),
            ("target 1 .001", to(1.0), globals(0.001, 100.0), None, 0.01, 1.0),
            ("target 10 .75", to(10.0), globals(0.75, 100.0), None, 7.5, 10.0),
            ("cc 10 target 1", to(1.0), globals(1.0, 100.0), Some(10), 1.0, 1.0),
            ("target 500", to(500.0), globals(1.0, 100.0), None, 500.0, 500.0),
            ("cc 1 target 10", to(10.0), globals(1.0, 100.0), Some(1), 1.0, 1.0),
            ("rps", rps(none()), globals(1.0, 100.0), None, 140.0, 200.0),
            ("rps target 1", rps(to(1.0)), globals(1.0, 100.0), None, 0.7, 1.0),
            (
                "rps TU 75",
                rps(used(75.0)),
                globals(1.0, 100.0),
                None,
                150.0,
                200.0,
            ),
            (
                "rps target 300",
                rps(to(300.0)),
                globals(1.0, 100.0),
                None,
                210.0,
                300.0,
            ),
        ] {
            let policy = derive(&s, &g, cc);
            assert!(
                (policy.target_value - want_target).abs() < 1e-9,
                "{name}: {policy:?}"
            );
            assert!(
                (policy.total_value - want_total).abs() < 1e-9,
                "{name}: {policy:?}"
            );
        }
    }

    /// `pkg/reconciler/autoscaling/resources/metric.go`.
    #[test]
    fn panic_windows_are_whole_seconds_and_at_least_one() {
        let window = |seconds, percentage| panic_window(Duration::from_secs(seconds), percentage).as_secs();
        assert_eq!(window(60, 10.0), 6);
        assert_eq!(window(6, 10.0), 1);
        assert_eq!(window(6, 1.0), 1);
        assert_eq!(window(25, 10.0), 3);
        assert_eq!(window(20, 12.0), 2);
        assert_eq!(window(3600, 100.0), 3600);
    }

    #[test]
    fn a_revision_sets_over_what_holds_for_all() {
        let g = Globals {
            min_scale: 1,
            max_scale: 5,
            ..Globals::default()
        };
        let s = Scaling {
            max_scale: Some(0),
            window: Some(Duration::from_secs(20)),
            panic_threshold_percentage: Some(150.0),
            ..Scaling::default()
        };
        let policy = derive(&s, &g, None);
        assert_eq!((policy.min_scale, policy.max_scale), (1, None));
        assert_eq!(policy.stable_window, Duration::from_secs(20));
        assert_eq!(policy.panic_window, Duration::from_secs(2));
        assert!((policy.panic_threshold - 1.5).abs() < 1e-9);
    }
}

//! Vectors of Knative Serving, pkg/reconciler/autoscaling/kpa/scaler_test.go: grace 60 s, as there.

use super::*;
use crate::autoscale::reason::{Measured, Reason};
use crate::plan::Metric;

const GRACE: Duration = Duration::from_secs(60);
const WINDOW: Duration = Duration::from_secs(60);
const NOW: Duration = Duration::from_secs(10_000);

fn policy() -> AutoscalePolicy {
    AutoscalePolicy {
        metric: Metric::Concurrency,
        total_value: 100.0,
        target_value: 70.0,
        min_scale: 0,
        max_scale: None,
        initial_scale: 1,
        activation_scale: 1,
        stable_window: WINDOW,
        panic_window: Duration::from_secs(6),
        panic_threshold: 2.0,
        max_scale_up_rate: 10.0,
        max_scale_down_rate: 10.0,
        scale_down_delay: Duration::ZERO,
        scale_to_zero: true,
        scale_to_zero_grace: GRACE,
        scale_to_zero_retention: Duration::ZERO,
        target_burst_capacity: 211.0,
        mode: crate::plan::ScalingMode::Active,
        foresight: None,
    }
}

struct Case {
    policy: AutoscalePolicy,
    input: ClampInput,
    activity_state: ActivityState,
}

/// A revision that was initialised and has been in this state for `time`.
fn case(activity: fn(Duration) -> Activity, time: Duration) -> Case {
    Case {
        policy: policy(),
        input: ClampInput {
            ready: 1,
            reachable: true,
            in_use: false,
            needed: false,
            paused: false,
            start_timeout: Duration::from_secs(600),
        },
        activity_state: ActivityState {
            activity: activity(NOW - time),
            initialized: true,
        },
    }
}

impl Case {
    fn policy(mut self, change: impl FnOnce(&mut AutoscalePolicy)) -> Self {
        change(&mut self.policy);
        self
    }

    fn unreachable(mut self) -> Self {
        self.input.reachable = false;
        self
    }

    fn ready(mut self, ready: u32) -> Self {
        self.input.ready = ready;
        self
    }

    fn uninitialized(mut self) -> Self {
        self.activity_state.initialized = false;
        self
    }

    fn scale(&mut self, from: u32, desired: u32) -> (u32, Option<Limit>) {
        let decision = ScaleDecision {
            from,
            desired,
            reason: Reason::Stable(Measured::new(0.0, &self.policy)),
            limit: None,
            wants: Default::default(),
            panic: false,
            excess_burst_capacity: 0,
        };
        let bounded = clamp(decision, &self.input, &self.policy, &mut self.activity_state, NOW);
        (bounded.desired, bounded.limit)
    }

    fn desired(mut self, from: u32, desired: u32) -> u32 {
        self.scale(from, desired).0
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// "waits to scale to zero (just before idle period)", "… from 10".
#[test]
fn active_for_less_than_the_window_keeps_one() {
    let just_before = || case(Activity::Active, WINDOW - SECOND);
    assert_eq!(just_before().scale(1, 0), (1, Some(Limit::JustStarted)));
    assert_eq!(just_before().scale(10, 0), (1, Some(Limit::JustStarted)));
}

/// "scale to zero after idle period", "… grace period", "just before grace period".
#[test]
fn zero_after_window_and_grace() {
    let mut idle = case(Activity::Active, WINDOW);
    assert_eq!(idle.scale(1, 0), (1, Some(Limit::Grace)));
    assert_eq!(idle.activity_state.activity(), Activity::Inactive(NOW));

    assert_eq!(case(Activity::Inactive, GRACE).desired(1, 0), 0);
    let before = || case(Activity::Inactive, GRACE - SECOND);
    assert_eq!(before().scale(1, 0), (1, Some(Limit::Grace)));
    assert_eq!(
        before()
            .policy(|p| p.scale_to_zero_grace = Duration::ZERO)
            .desired(1, 0),
        0
    );
}

/// Without grace, the product's default, idle means gone: no step in between.
#[test]
fn without_grace_zero_is_zero_at_once() {
    let idle = case(Activity::Active, WINDOW).policy(|p| p.scale_to_zero_grace = Duration::ZERO);
    assert_eq!(idle.desired(1, 0), 0);
}

/// "waits for retention", "… from annotation", "annotation 0 overrides", "unreachable ignores it".
#[test]
fn retention() {
    let retained = || case(Activity::Inactive, GRACE).policy(|p| p.scale_to_zero_retention = 2 * GRACE);
    assert_eq!(retained().scale(1, 0), (1, Some(Limit::Retention)));
    assert_eq!(retained().unreachable().desired(1, 0), 0);
    assert_eq!(
        retained()
            .policy(|p| p.scale_to_zero_retention = Duration::ZERO)
            .desired(1, 0),
        0
    );
    let over = case(Activity::Inactive, 2 * GRACE).policy(|p| p.scale_to_zero_retention = 2 * GRACE);
    assert_eq!(over.desired(1, 0), 0);
}

/// Retention keeps the last instance, it starts none.
#[test]
fn at_zero_nothing_is_retained() {
    let retained = case(Activity::Inactive, SECOND).policy(|p| p.scale_to_zero_retention = 2 * GRACE);
    assert_eq!(retained.desired(0, 0), 0);
}

/// "scale to zero while activating before deadline", "… after deadline", "… custom deadline".
#[test]
fn what_starts_may_finish_starting() {
    let mut half_way = case(Activity::Activating, Duration::from_secs(300)).ready(0);
    assert_eq!(half_way.scale(2, 0), (2, Some(Limit::Starting)));
    assert_eq!(
        half_way.activity_state.activity(),
        Activity::Activating(NOW - Duration::from_secs(300))
    );
    assert_eq!(
        case(Activity::Activating, Duration::from_secs(601))
            .ready(0)
            .desired(1, 0),
        0
    );
    let mut custom = case(Activity::Activating, Duration::from_secs(6)).ready(0);
    custom.input.start_timeout = Duration::from_secs(5);
    assert_eq!(custom.desired(1, 0), 0);
}

/// "scale to zero disabled".
#[test]
fn never_zero() {
    let never = case(Activity::Inactive, GRACE).policy(|p| p.scale_to_zero = false);
    assert_eq!(never.desired(1, 0), 1);
}

/// "scale down to minScale when reachable / unknown / unreachable", "scales up to maxScale".
#[test]
fn min_and_max() {
    let least_two = || case(Activity::Active, SECOND).policy(|p| p.min_scale = 2);
    assert_eq!(least_two().scale(10, 0), (2, Some(Limit::MinScale)));
    assert_eq!(least_two().scale(10, 2), (2, None));
    let gone = case(Activity::Inactive, GRACE)
        .policy(|p| p.min_scale = 2)
        .unreachable();
    assert_eq!(gone.desired(10, 0), 0);
    let most_eight = case(Activity::Active, SECOND).policy(|p| p.max_scale = Some(8));
    assert_eq!(most_eight.desired(1, 10), 8);
}

/// "initial scale not reached", "reached before", "reached for the first time", "unreachable".
#[test]
fn initial_scale() {
    let initial = |n| case(Activity::Activating, SECOND).policy(move |p| p.initial_scale = n);
    assert_eq!(
        initial(2).uninitialized().scale(2, 1),
        (2, Some(Limit::InitialScale))
    );

    let two_minutes = case(Activity::Active, WINDOW - SECOND).policy(|p| p.initial_scale = 2);
    assert_eq!(two_minutes.desired(5, 0), 1);

    let mut five = initial(5).uninitialized().ready(5);
    assert_eq!(five.scale(5, 1).0, 5);
    assert!(five.activity_state.initialized);
    assert_eq!(five.scale(5, 1).0, 1);

    let unreachable = case(Activity::Active, SECOND).policy(|p| p.initial_scale = 2);
    assert_eq!(unreachable.uninitialized().unreachable().desired(2, 0), 1);
}

/// An initial scale of 0 starts nothing; one that cannot be reached is given up.
#[test]
fn initial_scale_ends() {
    let none = case(Activity::Inactive, SECOND).policy(|p| p.initial_scale = 0);
    assert_eq!(none.uninitialized().ready(0).desired(0, 0), 0);

    let mut stuck = case(Activity::Activating, Duration::from_secs(601))
        .uninitialized()
        .ready(0);
    assert_eq!(stuck.scale(1, 0).0, 1);
    assert_eq!(stuck.scale(1, 0).0, 0);
}

/// An unreachable revision keeps its initial scale for when traffic first leads to it.
#[test]
fn initial_scale_waits_for_traffic() {
    let mut fresh = case(Activity::Inactive, SECOND)
        .policy(|p| p.initial_scale = 3)
        .uninitialized();
    fresh.input.reachable = false;
    fresh.input.ready = 0;
    assert_eq!(fresh.scale(0, 0).0, 0);
    fresh.input.reachable = true;
    assert_eq!(fresh.scale(0, 0), (3, Some(Limit::InitialScale)));
}

#[test]
fn what_is_in_use_is_never_zero() {
    let mut streaming = case(Activity::Inactive, 2 * GRACE);
    streaming.input.in_use = true;
    assert_eq!(streaming.scale(1, 0), (1, Some(Limit::InUse)));
}

#[test]
fn what_is_needed_is_never_zero_whether_traffic_leads_to_it_or_not() {
    let mut needed = case(Activity::Inactive, 2 * GRACE);
    needed.input.needed = true;
    assert_eq!(needed.scale(1, 0), (1, Some(Limit::Need)));
    needed.input.reachable = false;
    assert_eq!(needed.scale(1, 0), (1, Some(Limit::Need)));
    assert_eq!(needed.scale(1, 3).0, 3);
}

#[test]
fn the_last_instance_of_a_paused_service_stays_and_none_is_started() {
    let mut paused = case(Activity::Inactive, 2 * GRACE);
    paused.input.paused = true;
    assert_eq!(paused.scale(3, 0), (1, Some(Limit::Paused)));
    assert_eq!(paused.scale(1, 0), (1, Some(Limit::Paused)));
    paused.input.reachable = false;
    assert_eq!(paused.scale(1, 0), (1, Some(Limit::Paused)));
    let mut at_zero = case(Activity::Inactive, 2 * GRACE);
    at_zero.input.paused = true;
    assert_eq!(at_zero.scale(0, 0), (0, None));
}

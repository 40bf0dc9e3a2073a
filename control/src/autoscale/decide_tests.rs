//! Vectors of Knative Serving, pkg/autoscaler/scaling/autoscaler_test.go.

use super::*;
use crate::plan::Metric;

/// newTestAutoscaler: total is target over 0.75, panic at 200 %, rates of 10, a minute's window.
fn policy(target: f64, burst: f64) -> AutoscalePolicy {
    AutoscalePolicy {
        metric: Metric::Concurrency,
        total_value: target / 0.75,
        target_value: target,
        min_scale: 0,
        max_scale: None,
        initial_scale: 0,
        activation_scale: 1,
        stable_window: Duration::from_secs(60),
        panic_window: Duration::from_secs(6),
        panic_threshold: 2.0,
        max_scale_up_rate: 10.0,
        max_scale_down_rate: 10.0,
        scale_down_delay: Duration::ZERO,
        scale_to_zero: true,
        scale_to_zero_grace: Duration::ZERO,
        scale_to_zero_retention: Duration::ZERO,
        target_burst_capacity: burst,
        mode: crate::plan::ScalingMode::Active,
        foresight: None,
    }
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(1_000 + seconds)
}

/// The scaler under test with its clock.
struct Scaler {
    policy: AutoscalePolicy,
    state: DeciderState,
    reachable: bool,
}

impl Scaler {
    fn new(policy: AutoscalePolicy) -> Self {
        Self {
            policy,
            state: DeciderState::new(1, at(0)),
            reachable: true,
        }
    }

    fn at(&mut self, seconds: u64, ready: u32, stable: f64, panic: f64) -> ScaleDecision {
        self.when(at(seconds), ready, stable, panic)
    }

    fn when(&mut self, now: Duration, ready: u32, stable: f64, panic: f64) -> ScaleDecision {
        let observation = Observation {
            ready,
            asked: 0,
            reachable: self.reachable,
            stable,
            panic,
        };
        decide(&observation, &self.policy, &mut self.state, now)
    }
}

/// The count exactly, the capacity give or take one, as upstream compares.
#[track_caller]
fn expect(decision: &ScaleDecision, desired: u32, capacity: i64) {
    assert_eq!(decision.desired, desired, "{decision}");
    let actual = decision.excess_burst_capacity;
    assert!(
        actual.abs_diff(capacity) <= 1,
        "excess burst capacity {actual}, not {capacity}"
    );
}

/// TestAutoscalerNoDataNoAutoscale aside (no observation, no decision): the table of contract 4.6,
/// rows that need one decision from a fresh scaler.
#[test]
fn one_decision() {
    // (row, target, burst, ready, stable, panic, desired, capacity)
    for (row, target, burst, ready, stable, panic, desired, capacity) in [
        (1, 10.0, 100.0, 1, 0.0, 0.0, 0, -87),
        (2, 10.0, 100.0, 1, 50.0, 50.0, 5, -137),
        (3, 10.0, 100.0, 5, 50.0, 50.0, 5, -84),
        (6, 181.0, -1.0, 1, 21.0, 26.0, 1, -1),
        (7, 10.0, 0.0, 1, 50.0, 49.0, 5, 0),
        (8, 10.0, 84.0, 1, 50.0, 100.0, 10, -171),
        (16, 10.0, 81.0, 0, 1000.0, 888.0, 10, -969),
    ] {
        let decision = Scaler::new(policy(target, burst)).at(0, ready, stable, panic);
        println!("row {row}: {decision}");
        expect(&decision, desired, capacity);
    }
}

/// TestAutoscalerStableModeIncreaseWithConcurrencyDefault (row 4).
#[test]
fn stable_increase() {
    let mut scaler = Scaler::new(policy(10.0, 101.0));
    expect(&scaler.at(0, 1, 50.0, 10.0), 5, -98);
    expect(&scaler.at(2, 1, 100.0, 10.0), 10, -98);
}

/// TestAutoscalerStableModeIncreaseWithRPS (row 5).
#[test]
fn requests_per_second() {
    let rps = AutoscalePolicy {
        metric: Metric::Rps,
        ..policy(10.0, 101.0)
    };
    let decision = Scaler::new(rps).at(0, 1, 100.0, 99.0);
    expect(&decision, 10, -187);
    assert!(decision.to_string().contains("requests/s"));
}

/// TestAutoscalerUnpanicAfterSlowIncrease's neighbours (rows 9 and 10): in panic since 5 s.
#[test]
fn in_panic_the_greater_counts() {
    for (stable, panic, desired) in [(50.0, 30.0, 50), (20.0, 30.0, 30)] {
        let mut scaler = Scaler::new(policy(1.0, 100.0));
        scaler.state = DeciderState::new(5, at(0));
        let decision = scaler.at(5, 5, stable, panic);
        expect(&decision, desired, -124);
        assert!(decision.panic);
    }
}

/// TestAutoscalerRateLimitScaleUp / ScaleDown (rows 11 to 13).
#[test]
fn rates_limit() {
    let up = AutoscalePolicy {
        max_scale_up_rate: 1.1,
        ..policy(1.0, 1982.0)
    };
    expect(&Scaler::new(up).at(0, 2, 3.0, 3.1), 3, -1983);

    let down = AutoscalePolicy {
        max_scale_down_rate: 1.1,
        ..policy(10.0, 1982.0)
    };
    let mut scaler = Scaler::new(down);
    let decision = scaler.at(0, 100, 1.0, 1.0);
    expect(&decision, 90, -650);
    assert_eq!(decision.limit, Some(Limit::ScaleDownRate));
    scaler.reachable = false;
    expect(&scaler.at(2, 100, 1.0, 1.0), 1, -650);
}

/// TestAutoscalerStableModeNoTrafficScaleToZero and TestAutoscalerActivationScale (rows 14, 15).
#[test]
fn to_zero_and_from_zero() {
    let mut scaler = Scaler::new(policy(10.0, 75.0));
    expect(&scaler.at(0, 1, 1.0, 0.0), 1, -62);
    expect(&scaler.at(2, 1, 0.0, 0.0), 0, -62);

    let mut scaler = Scaler::new(AutoscalePolicy {
        activation_scale: 2,
        ..policy(10.0, 75.0)
    });
    expect(&scaler.at(0, 1, 0.0, 0.0), 0, -62);
    let decision = scaler.at(2, 1, 1.0, 0.0);
    expect(&decision, 2, -62);
    assert_eq!(decision.limit, Some(Limit::ActivationScale));
}

/// TestAutoscalerPanicModeExponentialTrackAndStablize's neighbours (rows 17 to 19).
#[test]
fn two_decisions() {
    let mut scaler = Scaler::new(policy(10.0, 61.0));
    expect(&scaler.at(0, 1, 1000.0, 1001.0), 10, -1049);
    expect(&scaler.at(2, 10, 1000.0, 1001.0), 100, -929);

    let mut scaler = Scaler::new(policy(10.0, 61.0));
    expect(&scaler.at(0, 100, 1.0, 1.0), 10, 1271);
    expect(&scaler.at(2, 10, 1.0, 1.0), 1, 71);

    let mut scaler = Scaler::new(policy(10.0, 98.0));
    expect(&scaler.at(0, 8, 100.0, 100.0), 10, -92);
    expect(&scaler.at(2, 8, 50.0, 50.0), 5, -42);
}

/// TestAutoscalerPanicThenUnPanicScaleDown (S1).
#[test]
fn panic_is_entered_and_left() {
    let mut scaler = Scaler::new(policy(10.0, 93.0));
    expect(&scaler.at(0, 1, 100.0, 100.0), 10, -180);
    expect(&scaler.at(2, 10, 100.0, 1000.0), 100, -960);
    let held = scaler.at(32, 10, 1.0, 1.0);
    expect(&held, 100, 39);
    assert_eq!((held.panic, held.limit), (true, Some(Limit::PanicHolds)));
    let left = scaler.at(63, 10, 1.0, 1.0);
    expect(&left, 1, 39);
    assert!(!left.panic);
}

/// TestAutoscalerUnpanicAfterSlowIncrease (S2).
#[test]
fn a_slow_increase_does_not_extend_panic() {
    let mut scaler = Scaler::new(policy(1.0, 98.0));
    expect(&scaler.at(0, 10, 11.0, 25.0), 25, -110);
    assert_eq!(scaler.state.panicked_at, Some(at(0)));
    expect(&scaler.at(30, 40, 30.0, 41.0), 41, -86);
    assert_eq!(scaler.state.panicked_at, Some(at(0)));
    expect(&scaler.at(62, 55, 50.0, 56.0), 50, -81);
    assert!(!scaler.state.panicking());
}

/// TestAutoscalerExtendPanicWindow (S3).
#[test]
fn more_of_it_extends_panic() {
    let mut scaler = Scaler::new(policy(1.0, 98.0));
    expect(&scaler.at(0, 10, 11.0, 25.0), 25, -110);
    assert_eq!(scaler.at(30, 40, 30.0, 80.0).desired, 80);
    assert_eq!(scaler.state.panicked_at, Some(at(30)));
}

/// TestAutoscalerPanicModeExponentialTrackAndStablize (S4).
#[test]
fn exponential_growth() {
    let mut scaler = Scaler::new(policy(1.0, 101.0));
    for (tick, (ready, load, desired, capacity)) in (0..).zip([
        (1, 6.0, 6, -106),
        (6, 36.0, 36, -129),
        (36, 216.0, 216, -269),
        (216, 1296.0, 1296, -1109),
        (1296, 1296.0, 1296, 331),
    ]) {
        expect(&scaler.at(2 * tick, ready, load, load), desired, capacity);
    }
}

/// TestAutoscalerScaleDownDelay (S5).
#[test]
fn scale_down_waits_for_its_delay() {
    let delayed = AutoscalePolicy {
        scale_down_delay: Duration::from_secs(300),
        panic_threshold: 100.0,
        ..policy(10.0, 0.0)
    };
    let mut scaler = Scaler::new(delayed);
    let steps = [
        (2, 40.0, 4),
        (300, 0.0, 4),
        (302, 0.0, 0),
        (540, 40.0, 4),
        (600, 30.0, 4),
        (660, 0.0, 4),
        (840, 0.0, 3),
        (900, 0.0, 0),
    ];
    for (second, load, desired) in steps {
        assert_eq!(scaler.at(second, 1, load, load).desired, desired, "at {second} s");
    }

    assert_eq!(scaler.at(910, 1, 40.0, 40.0).desired, 4);
    assert_eq!(scaler.at(912, 1, 0.0, 0.0).limit, Some(Limit::ScaleDownDelay));
    scaler.reachable = false;
    assert_eq!(scaler.at(914, 1, 0.0, 0.0).desired, 0);
}

/// TestAutoscalerScaleDownDelayZero (S5).
#[test]
fn no_delay_no_wait() {
    let mut scaler = Scaler::new(AutoscalePolicy {
        panic_threshold: 100.0,
        ..policy(10.0, 0.0)
    });
    assert_eq!(scaler.at(0, 1, 40.0, 40.0).desired, 4);
    let half_a_second_later = at(0) + Duration::from_millis(500);
    assert_eq!(scaler.when(half_a_second_later, 1, 20.0, 20.0).desired, 2);
}

/// TestAutoscalerUpdateTarget (S6).
#[test]
fn a_new_target_counts_at_once() {
    let mut scaler = Scaler::new(policy(10.0, 77.0));
    expect(&scaler.at(0, 1, 100.0, 101.0), 10, -165);
    scaler.policy = policy(1.0, 71.0);
    expect(&scaler.at(2, 10, 100.0, 101.0), 100, -159);
}

/// TestStartInPanicMode / TestStartNotPanic: contract 4.6, "Start-up".
#[test]
fn who_finds_several_running_starts_in_panic() {
    assert!(!DeciderState::new(0, at(0)).panicking());
    assert!(!DeciderState::new(1, at(0)).panicking());
    let mut scaler = Scaler::new(policy(10.0, 0.0));
    scaler.state = DeciderState::new(7, at(0));
    assert_eq!(scaler.at(60, 7, 0.0, 0.0).desired, 7);
    assert_eq!(scaler.at(61, 7, 0.0, 0.0).desired, 0);
}

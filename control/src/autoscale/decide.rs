//! Knative's scale decision, in the steps of `Scale` in pkg/autoscaler/scaling/autoscaler.go.

use std::time::Duration;

use sluice_model::ScaleWants;

use super::reason::{Limit, Measured, Reason, ScaleDecision};
use super::sliding_max::SlidingMax;
use crate::plan::AutoscalePolicy;

/// The input of a decision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observation {
    /// Instances that may be used now.
    pub ready: u32,
    /// Instances asked for so far; only reported, never decided on.
    pub asked: u32,
    /// Whether traffic can lead here.
    pub reachable: bool,
    /// The metric's average over the stable window, all instances together.
    pub stable: f64,
    /// The same over the panic window.
    pub panic: f64,
}

/// The state between decisions: panic mode and the scale-down delay.
#[derive(Debug, Clone)]
pub struct DeciderState {
    /// The start, or last extension, of the panic.
    panicked_at: Option<Duration>,
    /// The highest number decided during this panic.
    panic_peak: u32,
    /// The numbers of the last `scale-down-delay`, with the delay that the window was made for.
    delay: Option<(Duration, SlidingMax)>,
}

impl DeciderState {
    /// The state of a revision with `ready` instances. More than one means that the revision has a history, which was lost: it
    /// starts in panic, so that no instance is taken away before a stable window is full.
    pub fn new(ready: u32, now: Duration) -> Self {
        Self {
            panicked_at: (ready > 1).then_some(now),
            panic_peak: ready,
            delay: None,
        }
    }

    /// Whether the revision is in panic.
    pub fn panicking(&self) -> bool {
        self.panicked_at.is_some()
    }

    /// Ends a panic early, for a caller that knows that the load is gone.
    pub fn end_panic(&mut self) {
        self.panicked_at = None;
        self.panic_peak = 0;
    }

    /// Applies the scale-down delay. A delay changed by a reload applies at once, unlike in Knative, which makes the window
    /// once.
    fn delayed(&mut self, policy: &AutoscalePolicy, want: u32, now: Duration) -> u32 {
        let delay = policy.scale_down_delay;
        if delay.is_zero() {
            self.delay = None;
            return want;
        }
        match &mut self.delay {
            Some((made_for, max)) if *made_for == delay => max.record(now.as_secs(), want),
            stale => {
                let steps = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
                let (_, max) = stale.insert((delay, SlidingMax::new(steps)));
                max.record(now.as_secs(), want)
            }
        }
    }
}

/// Computes the number of instances that the load calls for. Minimum, maximum and the rules of scale to zero are applied
/// after that, in [`clamp`](super::clamp).
pub fn decide(
    observation: &Observation,
    policy: &AutoscalePolicy,
    state: &mut DeciderState,
    now: Duration,
) -> ScaleDecision {
    let running = f64::from(observation.ready.max(1));
    let most = (policy.max_scale_up_rate * running).ceil();
    let least = if observation.reachable {
        (running / policy.max_scale_down_rate).floor()
    } else {
        0.0
    };

    let stable = wanted(observation.stable, least, most, policy);
    let panic = wanted(observation.panic, least, most, policy);

    // Panic is judged by the number that the load calls for, before the rates limit it.
    let over = panic.called_for / running >= policy.panic_threshold;
    match state.panicked_at {
        _ if over => state.panicked_at = Some(now),
        Some(at) if at + policy.stable_window < now => state.end_panic(),
        _ => {}
    }

    let mut choice = stable;
    if state.panicking() {
        if panic.count > choice.count {
            choice = panic;
        }
        if state.panic_peak > choice.count {
            choice.count = state.panic_peak;
            choice.limit = Some(Limit::PanicHolds);
        }
        state.panic_peak = choice.count;
    }
    if observation.reachable {
        let held = state.delayed(policy, choice.count, now);
        if held > choice.count {
            choice.count = held;
            choice.limit = Some(Limit::ScaleDownDelay);
        }
    }

    let reason = if state.panicking() {
        Reason::Panic(Measured::new(observation.panic.max(observation.stable), policy))
    } else {
        Reason::Stable(Measured::new(observation.stable, policy))
    };
    ScaleDecision {
        from: observation.asked,
        desired: choice.count,
        reason,
        limit: choice.limit,
        wants: ScaleWants {
            reactive: stable.count,
            panic: state.panicking().then_some(panic.count.max(state.panic_peak)),
            ..ScaleWants::default()
        },
        panic: state.panicking(),
        excess_burst_capacity: excess_burst_capacity(observation, policy),
    }
}

#[derive(Clone, Copy)]
struct Wanted {
    /// The number before any limit.
    called_for: f64,
    count: u32,
    limit: Option<Limit>,
}

fn wanted(load: f64, least: f64, most: f64, policy: &AutoscalePolicy) -> Wanted {
    let called_for = (load / policy.target_value).ceil();
    let (count, limit) = match called_for {
        // Lower bound first, as Knative: should they cross, the upper one wins.
        n if n.max(least) > most => (most, Some(Limit::ScaleUpRate)),
        n if n < least => (least, Some(Limit::ScaleDownRate)),
        n => (n, None),
    };
    // The cast saturates; no load is that high.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let count = count as u32;
    // activation-scale is not limited by the rate, as in Knative: a cold start starts that many.
    if policy.activation_scale > 1 && called_for > 0.0 && policy.activation_scale > count {
        return Wanted {
            called_for,
            count: policy.activation_scale,
            limit: Some(Limit::ActivationScale),
        };
    }
    Wanted {
        called_for,
        count,
        limit,
    }
}

#[allow(clippy::cast_possible_truncation)]
fn excess_burst_capacity(observation: &Observation, policy: &AutoscalePolicy) -> i64 {
    let reserve = policy.target_burst_capacity;
    if reserve == 0.0 {
        return 0;
    }
    if reserve < 0.0 {
        return -1;
    }
    // Ready instances, which may be none: at zero there is no capacity.
    let capacity = f64::from(observation.ready) * policy.total_value;
    (capacity - reserve - observation.panic).floor() as i64
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;

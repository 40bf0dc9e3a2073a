//! How much of a decision is allowed: min and max, initial scale, and when zero is zero. What
//! Knative's pkg/reconciler/autoscaling/kpa does between the decision and the Deployment.
//!
//! Two things of Knative's have no place here. It waits for its activator to take over before the
//! last instance goes, and asks it whether it has: nothing enters or leaves our path. And its
//! grace counts from then; ours counts from the decision for zero.

use std::time::Duration;

use super::reason::{Limit, ScaleDecision};
use crate::plan::AutoscalePolicy;

/// What the bounds look at besides the policy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Circumstances {
    /// Instances that may be used now.
    pub ready: u32,
    /// Whether traffic can lead here; an unreachable revision has no minimum and no retention.
    pub reachable: bool,
    /// Whether a request was there within the stable window.
    pub in_use: bool,
    /// The longest an instance may take to become ready.
    pub start_timeout: Duration,
}

/// Knative's condition `Active`, each with when it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Unknown: instances are asked for, not enough are ready.
    Activating(Duration),
    /// True.
    Active(Duration),
    /// False: nothing is asked for.
    Inactive(Duration),
}

/// Where a revision stands between zero and not.
#[derive(Debug, Clone)]
pub struct Standing {
    activity: Activity,
    /// Knative's `ScaleTargetInitialized`: once true, `initial-scale` is over.
    initialized: bool,
}

impl Standing {
    /// Of a revision that nothing was ever asked for.
    pub fn new(now: Duration) -> Self {
        Self {
            activity: Activity::Inactive(now),
            initialized: false,
        }
    }

    /// Between zero and not.
    pub fn activity(&self) -> Activity {
        self.activity
    }

    fn least(&self, policy: &AutoscalePolicy, reachable: bool) -> (u32, Limit) {
        match policy {
            _ if !reachable => (0, Limit::MinScale),
            p if !self.initialized && p.initial_scale > p.min_scale => (p.initial_scale, Limit::InitialScale),
            p => (p.min_scale, Limit::MinScale),
        }
    }

    /// How many must be ready for it to count as active.
    fn enough(&self, policy: &AutoscalePolicy, reachable: bool) -> u32 {
        let min = if reachable { policy.min_scale } else { 0 };
        min.max(if self.initialized { 1 } else { policy.initial_scale })
    }

    fn settle(&mut self, want: Want, circumstances: &Circumstances, policy: &AutoscalePolicy, now: Duration) {
        let enough = self.enough(policy, circumstances.reachable);
        let given_up = matches!(self.activity,
            Activity::Activating(since) if now.saturating_sub(since) > circumstances.start_timeout);
        // A start that failed counts as over: what cannot start is not asked for until it is wanted.
        self.initialized |= circumstances.ready >= enough || given_up;
        let active = circumstances.ready >= enough.max(1);
        self.activity = match (want, self.activity) {
            (Want::Zero, Activity::Inactive(since)) => Activity::Inactive(since),
            (Want::Zero, _) => Activity::Inactive(now),
            (Want::Some, Activity::Active(since)) if active => Activity::Active(since),
            (Want::Some, _) if active => Activity::Active(now),
            (Want::Some, Activity::Activating(since)) => Activity::Activating(since),
            (Want::Some, _) => Activity::Activating(now),
        };
    }
}

/// Whether zero was decided; the last instance may still be kept for a while.
#[derive(Clone, Copy)]
enum Want {
    Zero,
    Some,
}

/// Bounds a decision and moves the standing on.
pub fn bound(
    mut decision: ScaleDecision,
    circumstances: &Circumstances,
    policy: &AutoscalePolicy,
    standing: &mut Standing,
    now: Duration,
) -> ScaleDecision {
    let (least, raised_by) = standing.least(policy, circumstances.reachable);
    if decision.desired < least {
        decision.desired = least;
        decision.limit = Some(raised_by);
    } else if let Some(most) = policy.max_scale.filter(|&most| decision.desired > most) {
        decision.desired = most;
        decision.limit = Some(Limit::MaxScale);
    }
    let want = if decision.desired > 0 {
        Want::Some
    } else {
        let (want, desired, limit) = zero(decision.from, circumstances, policy, standing, now);
        decision.desired = desired;
        decision.limit = limit.or(decision.limit);
        want
    };
    standing.settle(want, circumstances, policy, now);
    decision
}

/// What becomes of a decision for zero.
fn zero(
    from: u32,
    circumstances: &Circumstances,
    policy: &AutoscalePolicy,
    standing: &Standing,
    now: Duration,
) -> (Want, u32, Option<Limit>) {
    if !policy.scale_to_zero {
        return (Want::Some, 1, Some(Limit::NeverZero));
    }
    if circumstances.in_use {
        return (Want::Some, 1, Some(Limit::InUse));
    }
    let inactive_for = match standing.activity {
        // Whoever gave up waiting may come back: what is starting may finish starting.
        Activity::Activating(since) if now.saturating_sub(since) <= circumstances.start_timeout => {
            return (Want::Some, from.max(1), Some(Limit::Starting));
        }
        Activity::Active(since) if now.saturating_sub(since) < policy.stable_window => {
            return (Want::Some, 1, Some(Limit::JustStarted));
        }
        Activity::Activating(_) => return (Want::Zero, 0, None),
        Activity::Active(_) => Duration::ZERO,
        Activity::Inactive(since) => now.saturating_sub(since),
    };
    let retention = if circumstances.reachable {
        policy.scale_to_zero_retention
    } else {
        Duration::ZERO
    };
    let held_by = match inactive_for {
        t if t < retention => Some(Limit::Retention),
        t if t < policy.scale_to_zero_grace => Some(Limit::Grace),
        _ => None,
    };
    match held_by {
        // The last instance is kept; none is started to be kept.
        Some(_) if from > 0 => (Want::Zero, 1, held_by),
        _ => (Want::Zero, 0, None),
    }
}

#[cfg(test)]
#[path = "bounds_tests.rs"]
mod tests;

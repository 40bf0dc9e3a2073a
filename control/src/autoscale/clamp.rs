//! Clamps a decision: minimum, maximum, initial scale, and the rules of scale to zero. The counterpart of Knative's
//! pkg/reconciler/autoscaling/kpa, between the decision and the Deployment.
//!
//! Two differences from Knative. Knative waits until its activator is in the path before the last instance goes, and probes
//! the activator; nothing enters or leaves the path here. So Knative's grace period counts from that moment, and ours from
//! the decision for zero.

use std::time::Duration;

use super::reason::{Limit, ScaleDecision};
use crate::plan::AutoscalePolicy;

/// The present state of a revision, which the rules depend on besides the policy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClampInput {
    /// Instances that may be used now.
    pub ready: u32,
    /// Whether traffic can lead here; an unreachable revision has no minimum and no retention.
    pub reachable: bool,
    /// Whether a request was there within the stable window, or a waiting page keeps the instance.
    pub in_use: bool,
    /// Whether a revision that needs this one runs, or is about to be started.
    pub needed: bool,
    /// Whether the service is paused.
    pub paused: bool,
    /// The longest an instance may take to become ready.
    pub start_timeout: Duration,
}

/// Knative's condition `Active`, with its last transition time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Unknown: instances are desired, and not enough are ready.
    Activating(Duration),
    /// True: enough instances are ready.
    Active(Duration),
    /// False: no instance is desired.
    Inactive(Duration),
}

/// The activity of a revision, and whether its initial scale was reached.
#[derive(Debug, Clone)]
pub struct ActivityState {
    activity: Activity,
    /// Knative's `ScaleTargetInitialized`: once true, `initial-scale` is over.
    initialized: bool,
}

impl ActivityState {
    /// The state of a new revision: inactive.
    pub fn new(now: Duration) -> Self {
        Self {
            activity: Activity::Inactive(now),
            initialized: false,
        }
    }

    /// The present activity.
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

    /// The number of ready instances that makes the revision active.
    fn enough(&self, policy: &AutoscalePolicy, reachable: bool) -> u32 {
        let min = if reachable { policy.min_scale } else { 0 };
        min.max(if self.initialized { 1 } else { policy.initial_scale })
    }

    fn settle(&mut self, intent: Intent, input: &ClampInput, policy: &AutoscalePolicy, now: Duration) {
        let enough = self.enough(policy, input.reachable);
        let given_up = matches!(self.activity,
            Activity::Activating(since) if now.saturating_sub(since) > input.start_timeout);
        // A failed start ends the initial scale: a broken command is not started again before a request comes.
        self.initialized |= input.ready >= enough || given_up;
        let active = input.ready >= enough.max(1);
        self.activity = match (intent, self.activity) {
            (Intent::Zero, Activity::Inactive(since)) => Activity::Inactive(since),
            (Intent::Zero, _) => Activity::Inactive(now),
            (Intent::NonZero, Activity::Active(since)) if active => Activity::Active(since),
            (Intent::NonZero, _) if active => Activity::Active(now),
            (Intent::NonZero, Activity::Activating(since)) => Activity::Activating(since),
            (Intent::NonZero, _) => Activity::Activating(now),
        };
    }
}

/// Whether a decision is for zero; the last instance may still be kept for a while.
#[derive(Clone, Copy)]
enum Intent {
    Zero,
    NonZero,
}

/// Clamps a decision and updates the activity.
pub fn clamp(
    mut decision: ScaleDecision,
    input: &ClampInput,
    policy: &AutoscalePolicy,
    activity_state: &mut ActivityState,
    now: Duration,
) -> ScaleDecision {
    let (least, raised_by) = match activity_state.least(policy, input.reachable) {
        (0, _) if input.needed => (1, Limit::Need),
        least => least,
    };
    if decision.desired < least {
        decision.desired = least;
        decision.limit = Some(raised_by);
    } else if let Some(most) = policy.max_scale.filter(|&most| decision.desired > most) {
        decision.desired = most;
        decision.limit = Some(Limit::MaxScale);
    }
    let intent = if decision.desired > 0 {
        Intent::NonZero
    } else {
        let (intent, desired, limit) = zero(decision.from, input, policy, activity_state, now);
        decision.desired = desired;
        decision.limit = limit.or(decision.limit);
        intent
    };
    activity_state.settle(intent, input, policy, now);
    decision
}

/// Applies the rules of scale to zero to a decision for zero.
fn zero(
    from: u32,
    input: &ClampInput,
    policy: &AutoscalePolicy,
    activity_state: &ActivityState,
    now: Duration,
) -> (Intent, u32, Option<Limit>) {
    if !policy.scale_to_zero {
        return (Intent::NonZero, 1, Some(Limit::NeverZero));
    }
    if input.in_use {
        return (Intent::NonZero, 1, Some(Limit::InUse));
    }
    // The last instance is kept, but none is started.
    if input.paused && from > 0 {
        return (Intent::NonZero, 1, Some(Limit::Paused));
    }
    let inactive_for = match activity_state.activity {
        // A client that gave up may come back: an instance that is starting may finish.
        Activity::Activating(since) if now.saturating_sub(since) <= input.start_timeout => {
            return (Intent::NonZero, from.max(1), Some(Limit::Starting));
        }
        Activity::Active(since) if now.saturating_sub(since) < policy.stable_window => {
            return (Intent::NonZero, 1, Some(Limit::JustStarted));
        }
        Activity::Activating(_) => return (Intent::Zero, 0, None),
        Activity::Active(_) => Duration::ZERO,
        Activity::Inactive(since) => now.saturating_sub(since),
    };
    let retention = if input.reachable {
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
        // The last instance is kept, but none is started.
        Some(_) if from > 0 => (Intent::Zero, 1, held_by),
        _ => (Intent::Zero, 0, None),
    }
}

#[cfg(test)]
#[path = "clamp_tests.rs"]
mod tests;

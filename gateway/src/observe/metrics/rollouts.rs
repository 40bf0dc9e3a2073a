//! Metrics of rollouts.

use super::RolloutGauges;
use super::exposition::Exposition;
use super::families::{ROLLOUT_STEP, ROLLOUTS};

/// Writes the step of each service with a rollout, and how rollouts ended.
pub(super) fn expose(out: &mut Exposition, rollouts: &RolloutGauges) {
    let mut steps = out.family(&ROLLOUT_STEP);
    for (service, percent) in &rollouts.steps {
        let (namespace, name) = (service.namespace(), service.name());
        steps.sample(
            format_args!("namespace=\"{namespace}\",service=\"{name}\""),
            *percent,
        );
    }
    let mut ended = out.family(&ROLLOUTS);
    for (result, count) in &rollouts.ended {
        ended.sample(format_args!("result=\"{result}\""), *count);
    }
}

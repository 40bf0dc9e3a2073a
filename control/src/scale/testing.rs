//! Plans for tests.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::plan::{AutoscalePolicy, Metric, ProcessSpec, RevisionPlan, ScalerSpec};

pub(crate) fn policy() -> AutoscalePolicy {
    AutoscalePolicy {
        metric: Metric::Concurrency,
        total_value: 100.0,
        target_value: 70.0,
        min_scale: 0,
        max_scale: Some(10),
        initial_scale: 0,
        activation_scale: 1,
        stable_window: Duration::from_secs(60),
        panic_window: Duration::from_secs(6),
        panic_threshold: 2.0,
        max_scale_up_rate: 1000.0,
        max_scale_down_rate: 2.0,
        scale_down_delay: Duration::ZERO,
        scale_to_zero: true,
        scale_to_zero_grace: Duration::ZERO,
        scale_to_zero_retention: Duration::ZERO,
        target_burst_capacity: 0.0,
    }
}

pub(crate) fn process(command: &[&str]) -> ProcessSpec {
    ProcessSpec {
        command: command.iter().map(|&word| word.to_owned()).collect(),
        env: BTreeMap::new(),
        working_directory: "/".into(),
        inherit_env: true,
        stop_grace_period: Duration::from_secs(10),
    }
}

pub(crate) fn plan(command: &[&str]) -> RevisionPlan {
    RevisionPlan {
        scaler: ScalerSpec::Process(process(command)),
        policy: policy(),
        start_timeout: Duration::from_secs(60),
        service: "greeter".to_owned(),
        reachable: true,
    }
}

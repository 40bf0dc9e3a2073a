//! Plans and a supervisor for tests.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::supervisor::{self, Inherited, Scope};
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

/// The supervisor's loop as a task, and the gateway's end of the socket.
pub(crate) fn supervisor() -> io::Result<(UnixStream, JoinHandle<()>)> {
    // The first process of a container often reaps nobody, and a zombie keeps its group alive.
    nix::sys::prctl::set_child_subreaper(true)?;
    let (ours, theirs) = UnixStream::pair()?;
    let serving = tokio::spawn(async move {
        supervisor::serve(theirs, Scope::Groups, Inherited::default())
            .await
            .unwrap()
    });
    Ok((ours, serving))
}

//! Plans, a supervisor and a simulation harness for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use sluice_model::InstanceId;
use tokio::task::JoinHandle;

use super::events::{EndpointAction, RevisionEvent};
use super::fleet::RevisionMachine;
use super::supervisor::{self, Scope, SpawnOptions};
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
        mode: crate::plan::ScalingMode::Active,
        foresight: None,
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
        needs: Vec::new(),
    }
}

/// The supervisor's loop as a task, and the gateway's end of the socket.
pub(crate) fn supervisor() -> io::Result<(UnixStream, JoinHandle<()>)> {
    // The first process of a container often reaps nobody, and a zombie keeps its group alive.
    nix::sys::prctl::set_child_subreaper(true)?;
    let (ours, theirs) = UnixStream::pair()?;
    let serving = tokio::spawn(async move {
        supervisor::serve(theirs, Scope::Groups, SpawnOptions::default())
            .await
            .unwrap()
    });
    Ok((ours, serving))
}

/// Runs a simulation for 256 seeds, or for the one in `SLUICE_SIM_SEED`.
pub(crate) fn for_seeds(simulate: fn(u64)) {
    let seeds = match std::env::var("SLUICE_SIM_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..256).collect(),
    };
    for seed in seeds {
        let result = std::panic::catch_unwind(|| simulate(seed));
        assert!(result.is_ok(), "replay with SLUICE_SIM_SEED={seed}");
    }
}

/// Fails when a deadline is still due after it was handled: the controller would spin.
pub(crate) fn assert_deadline_ahead(machine: &impl RevisionMachine, now: Instant) {
    let deadline = machine.next_deadline();
    assert!(
        deadline.is_none_or(|at| at > now),
        "a deadline that does not pass"
    );
}

/// The data plane of a simulation: the endpoints it knows. Retires as many as it likes.
#[derive(Debug, Default)]
pub(crate) struct FakeEndpoints {
    pub(crate) known: BTreeSet<InstanceId>,
}

impl FakeEndpoints {
    /// Carries out an action and returns the answer, if there is one. `live` are the instances that may be retired.
    pub(crate) fn carry_out(
        &mut self,
        action: EndpointAction,
        live: Vec<InstanceId>,
        rng: &mut fastrand::Rng,
    ) -> Option<RevisionEvent> {
        match action {
            EndpointAction::Add(id, ..) => drop(self.known.insert(id)),
            EndpointAction::Remove(id) => drop(self.known.remove(&id)),
            EndpointAction::Retire { count, .. } => {
                let known = live.into_iter().filter(|id| self.known.contains(id));
                let chosen = known.take(rng.usize(..=count as usize)).collect();
                return Some(RevisionEvent::Victims { asked: count, chosen });
            }
            EndpointAction::End(ids) => {
                let known = ids.iter().all(|id| self.known.contains(id));
                assert!(known, "ended after it was forgotten");
            }
            EndpointAction::Expect(_) => return Some(RevisionEvent::NeedsReady),
            EndpointAction::RetireThese(_)
            | EndpointAction::Fail(_)
            | EndpointAction::Forgive
            | EndpointAction::Warn(_) => {}
        }
        None
    }
}

mod storm;

use std::net::SocketAddr;

use super::*;
use crate::plan::ScalerSpec;
use crate::scale::{InstanceOrder, testing};

const DRAIN: Duration = Duration::from_secs(300);
const GRACE: Duration = Duration::from_secs(10);

/// A revision with a manual clock.
struct Bench {
    state: ProcessState,
    ids: IdSource,
    now: Instant,
}

impl Bench {
    fn new(change: impl FnOnce(&mut RevisionPlan)) -> Self {
        let mut bench = Self::silent(change);
        let plan = Arc::clone(&bench.state.plan);
        assert_eq!(bench.step(RevisionEvent::Plan(plan)), []);
        bench
    }

    /// Without having been given its plan as an event.
    fn silent(change: impl FnOnce(&mut RevisionPlan)) -> Self {
        let mut plan = testing::plan(&["server"]);
        change(&mut plan);
        Self {
            state: ProcessState::new(Arc::new(plan), DRAIN),
            ids: IdSource::new(7),
            now: Instant::now(),
        }
    }

    fn step(&mut self, event: impl Into<ProcessEvent>) -> Vec<ProcessAction> {
        self.state.step(event.into(), self.now, &mut self.ids)
    }

    fn after(&mut self, time: Duration, event: impl Into<ProcessEvent>) -> Vec<ProcessAction> {
        self.now += time;
        self.step(event)
    }

    fn desired(&mut self, count: u32) -> Vec<ProcessAction> {
        let decision = format!("to {count}");
        self.step(RevisionEvent::Desired { count, decision })
    }

    fn plan(&mut self, change: impl FnOnce(&mut RevisionPlan)) -> Vec<ProcessAction> {
        let mut plan = RevisionPlan::clone(&self.state.plan);
        change(&mut plan);
        self.step(RevisionEvent::Plan(Arc::new(plan)))
    }

    /// Brings this many instances to ready.
    fn with_ready(mut self, count: u32) -> Self {
        let started = starts(&self.desired(count));
        assert_eq!(started.len(), count as usize);
        self.make_ready(&started);
        self
    }

    fn make_ready(&mut self, ids: &[u64]) -> Vec<ProcessAction> {
        let mut all = Vec::new();
        for &id in ids {
            all.extend(self.step(ProcessEvent::Started(InstanceId(id), address())));
            all.extend(self.step(RevisionEvent::Ready(InstanceId(id))));
        }
        all
    }

    fn exited(&mut self, id: u64, detail: &str) -> Vec<ProcessAction> {
        self.step(ProcessEvent::Exited {
            instance: InstanceId(id),
            detail: detail.to_owned(),
            port_taken: false,
        })
    }
}

fn address() -> SocketAddr {
    ([127, 0, 0, 1], 20_000).into()
}

fn starts(actions: &[ProcessAction]) -> Vec<u64> {
    let ids = actions.iter().filter_map(|action| match action {
        ProcessAction::Order(InstanceOrder::Start(id, _)) => Some(id.0),
        _ => None,
    });
    ids.collect()
}

fn failures(actions: &[ProcessAction]) -> Vec<(Failure, &str)> {
    let failures = actions.iter().filter_map(|action| match action {
        ProcessAction::Endpoint(EndpointAction::Fail(f)) => Some((f.failure, f.detail.as_str())),
        _ => None,
    });
    failures.collect()
}

fn command(plan: &mut RevisionPlan, word: &str) {
    plan.scaler = ScalerSpec::Process(testing::process(&[word]));
}

#[test]
fn the_first_waiter_starts_the_activation_scale_and_the_next_ones_nothing() {
    let mut bench = Bench::new(|plan| plan.policy.activation_scale = 3);
    assert_eq!(starts(&bench.step(RevisionEvent::Activate)), [1, 2, 3]);
    assert_eq!(bench.step(RevisionEvent::Activate), []);
    let took = Duration::from_millis(7);
    assert_eq!(
        bench.after(took, ProcessEvent::Started(InstanceId(1), address())),
        [ProcessAction::Endpoint(EndpointAction::Add(
            InstanceId(1),
            address(),
            took
        ))]
    );
    let status = bench.state.status();
    assert_eq!((status.desired, status.starts), (3, 3));
    assert_eq!(status.last_decision.as_deref(), Some("0 → 3: somebody waits"));
}

#[test]
fn a_decision_for_zero_asks_the_data_plane_and_a_refusal_is_asked_again() {
    let mut bench = Bench::new(|_| {}).with_ready(2);
    let retire = [ProcessAction::Endpoint(EndpointAction::Retire {
        count: 2,
        to_zero: true,
    })];
    assert_eq!(bench.desired(0), retire);
    assert_eq!(
        bench.step(RevisionEvent::Victims {
            asked: 2,
            chosen: vec![]
        }),
        []
    );
    assert_eq!(bench.step(RevisionEvent::Tick), []);
    assert_eq!(bench.state.next_deadline(), Some(bench.now + RETIRE_AGAIN));
    assert_eq!(bench.after(RETIRE_AGAIN, RevisionEvent::Tick), retire);
    let chosen = vec![InstanceId(1), InstanceId(2)];
    bench.step(RevisionEvent::Victims { asked: 2, chosen });
    for id in [InstanceId(1), InstanceId(2)] {
        assert_eq!(
            bench.step(RevisionEvent::Drained(id)),
            [
                ProcessAction::Endpoint(EndpointAction::Remove(id)),
                ProcessAction::Order(InstanceOrder::Stop(id, GRACE))
            ],
            "out of the data plane before it is asked to end"
        );
        assert_eq!(bench.exited(id.0, "signal 15 (SIGTERM)"), []);
    }
    assert_eq!(bench.state.status().last_failure, None);
    assert_eq!(bench.state.next_deadline(), None);
}

#[test]
fn fewer_are_wanted_so_the_young_that_serve_nobody_go_first() {
    let mut bench = Bench::new(|_| {}).with_ready(2);
    assert_eq!(starts(&bench.desired(4)), [3, 4]);
    bench.step(ProcessEvent::Started(InstanceId(4), address()));
    assert_eq!(
        bench.desired(1),
        [
            // Not known to the data plane yet.
            ProcessAction::Endpoint(EndpointAction::Remove(InstanceId(3))),
            ProcessAction::Order(InstanceOrder::Stop(InstanceId(3), GRACE)),
            // Known, and perhaps found ready just now.
            ProcessAction::Endpoint(EndpointAction::RetireThese(vec![InstanceId(4)])),
            ProcessAction::Endpoint(EndpointAction::Retire {
                count: 1,
                to_zero: false
            }),
        ]
    );
}

#[test]
fn what_does_not_drain_is_ended_at_the_deadline_and_then_stopped() {
    let mut bench = Bench::new(|_| {}).with_ready(2);
    bench.desired(1);
    bench.step(RevisionEvent::Victims {
        asked: 1,
        chosen: vec![InstanceId(2)],
    });
    assert_eq!(bench.state.next_deadline(), Some(bench.now + DRAIN));
    let victim = InstanceId(2);
    let actions = bench.after(DRAIN, RevisionEvent::Tick);
    assert_eq!(
        actions,
        [ProcessAction::Endpoint(EndpointAction::End(vec![victim]))]
    );
    // Asked once, and not stopped while it may still say goodbye.
    assert_eq!(bench.step(RevisionEvent::Tick), []);
    assert_eq!(bench.state.next_deadline(), Some(bench.now + END_GRACE));
    let actions = bench.after(END_GRACE, RevisionEvent::Tick);
    assert_eq!(
        actions[1..],
        [
            ProcessAction::Endpoint(EndpointAction::Remove(victim)),
            ProcessAction::Order(InstanceOrder::Stop(victim, GRACE))
        ]
    );
}

#[test]
fn what_ends_when_asked_to_is_stopped_at_once() {
    let mut bench = Bench::new(|_| {}).with_ready(2);
    bench.desired(1);
    let victim = InstanceId(2);
    bench.step(RevisionEvent::Victims {
        asked: 1,
        chosen: vec![victim],
    });
    bench.after(DRAIN, RevisionEvent::Tick);
    let actions = bench.step(RevisionEvent::Drained(victim));
    assert_eq!(
        actions,
        [
            ProcessAction::Endpoint(EndpointAction::Remove(victim)),
            ProcessAction::Order(InstanceOrder::Stop(victim, GRACE))
        ]
    );
}

#[test]
fn an_edited_drain_timeout_counts_for_what_is_retired_from_then_on() {
    let mut bench = Bench::new(|_| {}).with_ready(3);
    let retire = |id| RevisionEvent::Victims {
        asked: 1,
        chosen: vec![InstanceId(id)],
    };
    bench.desired(2);
    bench.step(retire(3));
    bench.state.set_drain(Duration::from_secs(1));
    bench.desired(1);
    bench.step(retire(2));
    let actions = bench.after(Duration::from_secs(1), RevisionEvent::Tick);
    assert_eq!(
        actions,
        [ProcessAction::Endpoint(EndpointAction::End(vec![InstanceId(2)]))]
    );
}

#[test]
fn a_start_that_fails_answers_at_once_and_is_tried_again_only_for_the_next_waiter() {
    let mut bench = Bench::new(|_| {});
    bench.step(RevisionEvent::Activate);
    let actions = bench.exited(1, "exit status 1: no module");
    assert_eq!(
        failures(&actions),
        [(Failure::Failed, "exit status 1: no module")]
    );
    assert!(actions.contains(&ProcessAction::Endpoint(EndpointAction::Remove(InstanceId(1)))));
    assert_eq!(bench.state.next_deadline(), None, "nobody waits any more");

    let again = bench.step(RevisionEvent::Activate);
    assert_eq!(failures(&again).len(), 1, "too early: {again:?}");
    assert!(starts(&again).is_empty());
    assert_eq!(
        starts(&bench.after(Duration::from_secs(2), RevisionEvent::Activate)),
        [2]
    );
    bench.make_ready(&[2]);
    assert_eq!(bench.state.status().last_failure, None);
}

#[test]
fn a_command_that_cannot_start_and_a_bound_that_is_reached_are_told_apart() {
    let mut bench = Bench::new(|_| {});
    for (id, failure, detail) in [
        (1, Failure::Failed, "command not found: foo"),
        (2, Failure::NotAllowed, "processes.max is reached"),
    ] {
        assert_eq!(
            starts(&bench.after(Duration::from_secs(60), RevisionEvent::Activate)),
            [id]
        );
        let actions = bench.step(ProcessEvent::Failed {
            instance: InstanceId(id),
            failure,
            detail: detail.to_owned(),
        });
        assert_eq!(failures(&actions), [(failure, detail)]);
    }
}

#[test]
fn what_is_never_ready_is_killed_when_its_time_is_over() {
    let mut bench = Bench::new(|_| {});
    bench.step(RevisionEvent::Activate);
    bench.step(ProcessEvent::Started(InstanceId(1), address()));
    assert_eq!(
        bench.state.next_deadline(),
        Some(bench.now + Duration::from_secs(60))
    );
    let actions = bench.after(Duration::from_secs(60), RevisionEvent::Tick);
    assert_eq!(
        actions[0],
        ProcessAction::Endpoint(EndpointAction::Remove(InstanceId(1)))
    );
    assert_eq!(
        actions[1],
        ProcessAction::Order(InstanceOrder::Stop(InstanceId(1), Duration::ZERO))
    );
    assert_eq!(
        failures(&actions),
        [(Failure::TimedOut, "not ready within 60s at 127.0.0.1:$PORT")]
    );
    let actions = bench.exited(1, "signal 9 (SIGKILL): waiting for the database");
    assert!(
        matches!(actions[..], [ProcessAction::Endpoint(EndpointAction::Warn(_))]),
        "{actions:?}"
    );
    assert_eq!(
        bench.state.status().last_failure.as_deref(),
        Some(
            "not ready within 60s at 127.0.0.1:$PORT; ended with signal 9 (SIGKILL): waiting for the database"
        )
    );
}

#[test]
fn a_taken_port_is_tried_again_at_once_but_not_for_ever() {
    let mut bench = Bench::new(|_| {});
    bench.step(RevisionEvent::Activate);
    let taken = |id| ProcessEvent::Exited {
        instance: InstanceId(id),
        detail: "exit status 1: Address already in use".to_owned(),
        port_taken: true,
    };
    for id in 1..=u64::from(PORT_TRIES) {
        let actions = bench.step(taken(id));
        assert_eq!(starts(&actions), [id + 1]);
        assert_eq!(failures(&actions), []);
    }
    assert_eq!(failures(&bench.step(taken(6))).len(), 1);
}

#[test]
fn nobody_is_told_of_a_failure_while_another_instance_serves_or_comes() {
    let mut bench = Bench::new(|_| {}).with_ready(1);
    assert_eq!(starts(&bench.desired(2)), [2]);
    let actions = bench.exited(2, "exit status 1");
    assert_eq!(failures(&actions), []);
    assert!(bench.state.status().last_failure.is_some());
    // Still wanted, so tried again when the time has come.
    let due = bench.state.next_deadline().unwrap();
    bench.now = due;
    assert_eq!(starts(&bench.step(RevisionEvent::Tick)), [3]);
}

#[test]
fn a_crash_is_made_good_at_once_and_a_crash_loop_is_not() {
    let mut bench = Bench::new(|_| {}).with_ready(1);
    let actions = bench.exited(1, "signal 9 (SIGKILL)");
    assert_eq!(
        actions[0],
        ProcessAction::Endpoint(EndpointAction::Remove(InstanceId(1)))
    );
    assert_eq!(starts(&actions), [2]);
    bench.make_ready(&[2]);
    assert!(starts(&bench.exited(2, "signal 11 (SIGSEGV)")).is_empty());
    let actions = bench.step(RevisionEvent::Activate);
    assert_eq!(failures(&actions), [(Failure::Failed, "signal 11 (SIGSEGV)")]);
    assert_eq!(
        starts(&bench.after(Duration::from_secs(2), RevisionEvent::Activate)),
        [3]
    );
}

#[test]
fn a_waiter_that_came_before_the_crash_is_not_forgotten() {
    let mut bench = Bench::new(|_| {}).with_ready(1);
    // Refused, because somebody waits; then the only instance ends.
    bench.step(RevisionEvent::Activate);
    bench.desired(0);
    bench.step(RevisionEvent::Victims {
        asked: 1,
        chosen: vec![],
    });
    assert_eq!(starts(&bench.exited(1, "exit status 1")), [2]);
}

#[test]
fn the_minimum_runs_while_the_revision_is_reachable() {
    let mut bench = Bench::silent(|plan| plan.policy.min_scale = 2);
    let plan = Arc::clone(&bench.state.plan);
    let actions = bench.step(RevisionEvent::Plan(plan));
    assert_eq!(starts(&actions), [1, 2]);
    bench.make_ready(&[1, 2]);
    assert_eq!(bench.desired(0), []);
    assert_eq!(starts(&bench.exited(1, "exit status 0")), [3]);
    let actions = bench.plan(|plan| plan.reachable = false);
    assert_eq!(
        actions,
        [ProcessAction::Endpoint(EndpointAction::Retire {
            count: 2,
            to_zero: true
        })]
    );
}

#[test]
fn the_maximum_binds_decision_and_activation() {
    let mut bench = Bench::new(|plan| plan.policy.max_scale = Some(2));
    assert_eq!(starts(&bench.desired(9)), [1, 2]);
    let mut none = Bench::new(|plan| plan.policy.max_scale = Some(0));
    let actions = none.step(RevisionEvent::Activate);
    assert_eq!(failures(&actions), [(Failure::NotAllowed, "maxScale is 0")]);
}

#[test]
fn a_changed_process_is_ready_before_the_old_ones_go() {
    let mut bench = Bench::new(|_| {}).with_ready(2);
    assert_eq!(starts(&bench.plan(|plan| command(plan, "server-2"))), [3, 4]);
    let actions = bench.make_ready(&[3]);
    assert!(
        actions.contains(&ProcessAction::Endpoint(EndpointAction::RetireThese(vec![
            InstanceId(1)
        ]))),
        "{actions:?}"
    );
    let actions = bench.make_ready(&[4]);
    assert!(
        actions.contains(&ProcessAction::Endpoint(EndpointAction::RetireThese(vec![
            InstanceId(2)
        ]))),
        "{actions:?}"
    );
    assert_eq!(
        bench.step(RevisionEvent::Drained(InstanceId(2))),
        [
            ProcessAction::Endpoint(EndpointAction::Remove(InstanceId(2))),
            ProcessAction::Order(InstanceOrder::Stop(InstanceId(2), GRACE))
        ]
    );
}

#[test]
fn a_changed_process_that_cannot_start_leaves_the_old_ones_serving() {
    let mut bench = Bench::new(|_| {}).with_ready(1);
    assert_eq!(starts(&bench.plan(|plan| command(plan, "broken"))), [2]);
    let actions = bench.exited(2, "exit status 2");
    assert_eq!(failures(&actions), []);
    assert!(matches!(
        actions[..],
        [
            ProcessAction::Endpoint(EndpointAction::Remove(InstanceId(2))),
            ProcessAction::Endpoint(EndpointAction::Warn(_))
        ]
    ));
    assert_eq!(
        bench.state.status().last_failure.as_deref(),
        Some("exit status 2")
    );
    // Put right again: what runs is what is wanted, and nothing is started.
    assert_eq!(
        bench.plan(|plan| command(plan, "server")),
        [ProcessAction::Endpoint(EndpointAction::Forgive)]
    );
    assert_eq!(bench.state.status().last_failure, None);
}

#[test]
fn a_change_stops_what_had_not_come_up_and_starts_the_new_for_who_waits() {
    let mut bench = Bench::new(|_| {});
    bench.step(RevisionEvent::Activate);
    let actions = bench.plan(|plan| command(plan, "server-2"));
    assert_eq!(
        actions[1],
        ProcessAction::Order(InstanceOrder::Stop(InstanceId(1), GRACE))
    );
    assert_eq!(starts(&actions), [2]);
    // A limit is no reason to start anything anew.
    assert_eq!(bench.plan(|plan| plan.policy.max_scale = Some(3)), []);
}

#[test]
fn a_removed_revision_drains_and_one_that_comes_back_starts_anew() {
    let mut bench = Bench::new(|_| {}).with_ready(1);
    assert_eq!(starts(&bench.desired(2)), [2]);
    assert_eq!(
        bench.step(RevisionEvent::Removed),
        [
            ProcessAction::Endpoint(EndpointAction::Remove(InstanceId(2))),
            ProcessAction::Order(InstanceOrder::Stop(InstanceId(2), GRACE)),
            ProcessAction::Endpoint(EndpointAction::RetireThese(vec![InstanceId(1)])),
        ]
    );
    assert_eq!(bench.step(RevisionEvent::Activate), []);
    bench.exited(2, "signal 15 (SIGTERM)");
    assert!(!bench.state.is_over());
    let mut back = bench.plan(|_| {});
    back.extend(bench.step(RevisionEvent::Activate));
    assert_eq!(starts(&back), [3]);
    bench.step(RevisionEvent::Removed);
    for id in 1..=3 {
        bench.step(RevisionEvent::Drained(InstanceId(id)));
        bench.exited(id, "signal 15 (SIGTERM)");
    }
    assert!(bench.state.is_over());
}

#[test]
fn shutdown_stops_whatever_state_an_instance_is_in() {
    let mut bench = Bench::new(|_| {}).with_ready(2);
    bench.desired(3);
    let stopped = bench.step(RevisionEvent::Shutdown);
    let stops = stopped
        .iter()
        .filter(|a| matches!(a, ProcessAction::Order(InstanceOrder::Stop(..))))
        .count();
    assert_eq!(stops, 3);
    for id in 1..=3 {
        assert_eq!(bench.exited(id, "signal 15 (SIGTERM)"), []);
    }
    assert!(bench.state.is_over());
}

#[test]
fn in_observe_mode_nothing_is_started_and_waiters_are_told() {
    let mut bench = Bench::new(|plan| {
        plan.policy.mode = ScalingMode::Observe;
        plan.policy.min_scale = 2;
    });
    let actions = bench.step(RevisionEvent::Activate);
    assert_eq!(starts(&actions), [0_u64; 0]);
    assert_eq!(
        failures(&actions),
        [(Failure::NotAllowed, "mode is observe: nothing is started")]
    );
    assert_eq!(bench.after(Duration::from_secs(60), RevisionEvent::Tick), []);
    // What runs when a reload brings the mode is kept.
    let mut running = Bench::new(|_| {}).with_ready(2);
    assert_eq!(running.plan(|plan| plan.policy.mode = ScalingMode::Observe), []);
    assert_eq!(running.step(RevisionEvent::Activate), []);
    assert_eq!(running.after(Duration::from_secs(600), RevisionEvent::Tick), []);
    assert_eq!(running.state.status().desired, 2);
}

#[test]
fn a_schedules_ceiling_above_the_revisions_is_not_cut() {
    let schedule = crate::schedule::tests::schedule("0 8 * * *", "UTC", 1.0, Some(4), Some(20));
    let mut bench = Bench::new(|plan| {
        plan.policy.max_scale = Some(2);
        plan.policy.foresight = Some(Arc::new(crate::plan::ForesightPolicy {
            schedules: vec![schedule],
            forecast: None,
        }));
    });
    assert_eq!(starts(&bench.desired(4)).len(), 4);
}

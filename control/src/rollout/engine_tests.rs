use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn policy() -> RolloutPolicy {
    RolloutPolicy {
        steps: Steps::Listed {
            shares: vec![2_000, 5_000],
            every: Duration::from_secs(10),
        },
        ..RolloutPolicy::default()
    }
}

fn rules(policy: &RolloutPolicy) -> Rules<'_> {
    Rules {
        policy: Some(policy),
        base: "v1",
        of: WHOLE,
    }
}

fn side(requests: u64, failures: u64, ready: u32) -> Side {
    Side {
        requests,
        failures,
        ready,
        wanted: Some(ready),
        ..Side::default()
    }
}

fn seen(candidate: Side, base: Side) -> Seen {
    Seen {
        candidate,
        base,
        start_failure: None,
    }
}

/// Plays good seconds until something happens.
fn until_event(rollout: &mut Rollout, rules: Rules<'_>, seen: &Seen) -> (u32, Event) {
    for seconds in 1..10_000 {
        if let Some(event) = rollout.tick(rules, seen, SECOND, 7) {
            return (seconds, event);
        }
    }
    panic!("nothing happens: {rollout:?}");
}

#[test]
fn shares_grow_when_instances_are_ready_and_time_has_passed() {
    let policy = policy();
    let rules = rules(&policy);
    let mut rollout = Rollout::new("v2", 0);
    let cold = seen(side(0, 0, 0), side(50, 0, 10));
    assert_eq!(rollout.tick(rules, &cold, SECOND, 1), Some(Event::Waits));
    assert_eq!(rollout.reason.as_deref(), Some("waits for 2 ready instances"));
    assert_eq!(rollout.floor(rules, &cold), 2, "20 % of ten");
    assert_eq!(rollout.tick(rules, &cold, SECOND, 2), None, "said once");

    let one = seen(side(0, 0, 1), side(50, 0, 10));
    assert_eq!(rollout.tick(rules, &one, SECOND, 3), Some(Event::Ready));
    assert_eq!(rollout.share, 0);
    let two = seen(side(10, 0, 2), side(40, 0, 10));
    assert_eq!(rollout.tick(rules, &two, SECOND, 4), Some(Event::Step));
    assert_eq!(
        (rollout.share, rollout.step, rollout.reason.clone()),
        (2_000, 1, None)
    );

    assert_eq!(rollout.floor(rules, &two), 2, "what it serves");
    for _ in 0..5 {
        assert_eq!(rollout.tick(rules, &two, SECOND, 5), None);
    }
    assert_eq!(rollout.floor(rules, &two), 5, "half of ten, ahead of the step");
    let five = seen(side(10, 0, 5), side(40, 0, 8));
    assert_eq!(until_event(&mut rollout, rules, &five), (5, Event::Step));
    assert_eq!(rollout.share, 5_000);
    let five = seen(side(25, 0, 5), side(25, 0, 8));
    assert_eq!(until_event(&mut rollout, rules, &five), (10, Event::Waits));
    assert_eq!(rollout.reason.as_deref(), Some("waits for 10 ready instances"));
    let ten = seen(side(25, 0, 10), side(25, 0, 5));
    assert_eq!(until_event(&mut rollout, rules, &ten), (1, Event::Completed));
    assert_eq!(
        (rollout.state, rollout.share, rollout.unjudged, rollout.since),
        (RolloutState::Completed, WHOLE, 0, 7)
    );
    assert_eq!(rollout.tick(rules, &ten, SECOND, 9), None, "it is over");
}

#[test]
fn a_candidate_that_fails_goes_back_at_once_with_the_reason() {
    let policy = policy();
    let rules = rules(&policy);
    let mut rollout = Rollout::new("v2", 0);
    let ready = seen(side(10, 2, 4), side(40, 0, 4));
    assert_eq!(rollout.tick(rules, &ready, SECOND, 1), Some(Event::Step));
    assert_eq!(
        rollout.evidence.candidate.requests, 0,
        "requests by tag before the first share"
    );
    let (seconds, event) = until_event(&mut rollout, rules, &ready);
    assert!(seconds < 8 && event == Event::Failed, "{seconds} {event:?}");
    assert_eq!((rollout.state, rollout.share), (RolloutState::Failed, 0));
    let reason = rollout.reason.clone().unwrap_or_default();
    assert!(
        reason.contains("(20.0 %)") && reason.contains("of v1 over the same time"),
        "{reason}"
    );
    assert_eq!(rollout.tick(rules, &ready, SECOND, 9), None, "it stays so");
}

#[test]
fn a_slow_candidate_goes_back_with_the_reason() {
    let policy = policy();
    let rules = rules(&policy);
    let mut rollout = Rollout::new("v2", 0);
    let with = |micros: u64, side: Side| Side {
        latency: vec![(sluice_model::latency_bucket(micros), side.requests)],
        ..side
    };
    let slow = seen(with(50_000, side(10, 0, 4)), with(10_000, side(40, 0, 4)));
    assert_eq!(rollout.tick(rules, &slow, SECOND, 1), Some(Event::Step));
    let (seconds, event) = until_event(&mut rollout, rules, &slow);
    assert!(
        (5..10).contains(&seconds) && event == Event::Failed,
        "{seconds} {event:?}: {rollout:?}"
    );
    let reason = rollout.reason.clone().unwrap_or_default();
    assert!(
        reason.contains("took longer than 15 ms, 1.5 times the"),
        "{reason}"
    );
}

#[test]
fn a_step_that_looks_bad_is_held_and_ends_in_the_end() {
    let policy = policy();
    let rules = rules(&policy);
    let mut rollout = Rollout::new("v2", 0);
    let good = seen(side(10, 0, 4), side(40, 0, 4));
    assert_eq!(rollout.tick(rules, &good, SECOND, 1), Some(Event::Step));
    // Two of 150: above the limit of 1 %, and no proof.
    assert_eq!(
        rollout.tick(rules, &seen(side(50, 2, 4), side(50, 0, 4)), SECOND, 2),
        None
    );
    let idle = seen(side(0, 0, 4), side(0, 0, 4));
    let (seconds, event) = until_event(&mut rollout, rules, &idle);
    assert_eq!(
        (seconds, event, rollout.unjudged),
        (99, Event::Step, 1),
        "ten times ten seconds"
    );
    // Good answers make it clear.
    let (seconds, event) = until_event(&mut rollout, rules, &seen(side(25, 0, 4), side(25, 0, 4)));
    assert_eq!((seconds, event, rollout.unjudged), (10, Event::Completed, 1));
}

#[test]
fn a_pause_stops_the_clock_and_not_the_judge() {
    let policy = policy();
    let rules = rules(&policy);
    let mut rollout = Rollout::new("v2", 0);
    let good = seen(side(10, 0, 4), side(40, 0, 4));
    assert_eq!(rollout.tick(rules, &good, SECOND, 1), Some(Event::Step));
    rollout.enter(RolloutState::Paused, 2, None);
    for _ in 0..1_000 {
        assert_eq!(rollout.tick(rules, &good, SECOND, 3), None);
    }
    assert_eq!((rollout.share, rollout.spent), (2_000, 0));
    assert_eq!(rollout.floor(rules, &good), 1, "what the present share needs");
    let (_, event) = until_event(&mut rollout, rules, &seen(side(10, 9, 4), side(40, 0, 4)));
    assert_eq!(event, Event::Failed);
}

#[test]
fn a_candidate_that_cannot_start_fails_after_ten_minutes() {
    let policy = policy();
    let rules = rules(&policy);
    let mut rollout = Rollout::new("v2", 0);
    let broken = Seen {
        start_failure: Some("exit status 1".to_owned()),
        ..seen(side(0, 0, 0), side(50, 0, 1))
    };
    assert_eq!(rollout.tick(rules, &broken, SECOND, 1), Some(Event::Waits));
    assert_eq!(
        rollout.reason.as_deref(),
        Some("waits for a ready instance: exit status 1")
    );
    assert_eq!(until_event(&mut rollout, rules, &broken), (599, Event::Failed));
    assert_eq!(
        rollout.reason.as_deref(),
        Some("no instance became ready: exit status 1")
    );
}

#[test]
fn one_failed_start_after_a_long_wait_is_no_reason() {
    let policy = policy();
    let rules = rules(&policy);
    let mut rollout = Rollout::new("v2", 0);
    // The gate is waited for: two instances, and there is one.
    let waits = seen(side(0, 0, 1), side(50, 0, 10));
    for _ in 0..2_000 {
        rollout.tick(rules, &waits, SECOND, 1);
    }
    let failed = Seen {
        start_failure: Some("exit status 1".to_owned()),
        ..seen(side(0, 0, 0), side(50, 0, 10))
    };
    for _ in 0..599 {
        rollout.tick(rules, &failed, SECOND, 1);
        assert_eq!(rollout.state, RolloutState::Running);
    }
    assert_eq!(
        rollout.tick(rules, &failed, SECOND, 1),
        Some(Event::Failed),
        "ten minutes since the first of them"
    );
}

#[test]
fn a_candidate_that_is_ready_for_moments_and_crashes_fails_after_ten_minutes() {
    let policy = policy();
    let rules = rules(&policy);
    let mut rollout = Rollout::new("v2", 0);
    let moment = seen(side(0, 0, 1), side(50, 0, 10));
    let crashed = Seen {
        start_failure: Some("ended with exit status 1".to_owned()),
        ..seen(side(0, 0, 0), side(50, 0, 10))
    };
    let mut seconds = 0;
    while rollout.state.is_open() && seconds < 2_000 {
        let seen = if seconds % 20 == 0 { &moment } else { &crashed };
        rollout.tick(rules, seen, SECOND, 1);
        seconds += 1;
    }
    assert_eq!((rollout.state, seconds), (RolloutState::Failed, 602));
    assert_eq!(
        rollout.reason.as_deref(),
        Some("no instance stays ready: ended with exit status 1")
    );
}

#[test]
fn no_step_passes_while_requests_hang() {
    let policy = policy();
    let rules = rules(&policy);
    let mut rollout = Rollout::new("v2", 0);
    let with = |in_flight: u32, unanswered: u64| {
        let candidate = Side {
            in_flight,
            unanswered,
            ..side(0, 0, 4)
        };
        seen(candidate, side(40, 0, 4))
    };
    assert_eq!(
        rollout.tick(rules, &with(0, 0), SECOND, 1),
        Some(Event::Step),
        "the first one waits for no request"
    );
    for hangs in [with(30, 0), with(0, 10)] {
        let mut rollout = rollout.clone();
        assert_eq!(until_event(&mut rollout, rules, &hangs), (10, Event::Waits));
        assert_eq!(
            rollout.reason.as_deref(),
            Some("waits for a good answer of the new revision")
        );
        for _ in 0..1_000 {
            assert_eq!(rollout.tick(rules, &hangs, SECOND, 1), None);
        }
        assert_eq!((rollout.share, rollout.unjudged), (2_000, 0));
        let answers = seen(side(10, 0, 4), side(40, 0, 4));
        assert_eq!(until_event(&mut rollout, rules, &answers), (1, Event::Step));
    }
    // A stream that the client ended is an answer, and no requests at all are no reason to wait.
    for quiet in [
        seen(
            Side {
                interrupted: 1,
                in_flight: 5,
                ..side(0, 0, 4)
            },
            side(40, 0, 4),
        ),
        with(0, 0),
    ] {
        let mut rollout = rollout.clone();
        assert_eq!(until_event(&mut rollout, rules, &quiet), (100, Event::Step));
        assert_eq!(rollout.unjudged, 1);
    }
}

#[test]
fn the_gate_holds_while_the_settled_revision_lacks_instances() {
    let policy = policy();
    let rules = rules(&policy);
    let mut rollout = Rollout::new("v2", 0);
    let good = |base: Side| seen(side(10, 0, 5), base);
    assert_eq!(
        rollout.tick(rules, &good(side(40, 0, 10)), SECOND, 1),
        Some(Event::Step)
    );
    for _ in 0..9 {
        assert_eq!(rollout.tick(rules, &good(side(40, 0, 10)), SECOND, 1), None);
    }
    // All of them crash; a restart forgets what was steady, and what is wanted.
    for wanted in [Some(10), Some(0), None] {
        let mut rollout = rollout.clone();
        let crashed = good(Side {
            wanted,
            ..side(0, 0, 0)
        });
        if wanted != Some(10) {
            let document = serde_json::to_vec(&rollout).unwrap();
            rollout = serde_json::from_slice(&document).unwrap();
        }
        assert_eq!(
            rollout.floor(rules, &crashed),
            5,
            "half of ten as before: {wanted:?}"
        );
        assert_eq!(rollout.tick(rules, &crashed, SECOND, 1), Some(Event::Waits));
        let reason = rollout.reason.clone().unwrap_or_default();
        assert!(reason.starts_with("waits for v1: 0 of "), "{reason}");
        for _ in 0..50 {
            assert_eq!(rollout.tick(rules, &crashed, SECOND, 1), None);
        }
        assert_eq!(rollout.share, 2_000);
        let back = good(side(40, 0, 10));
        assert_ne!(rollout.tick(rules, &back, SECOND, 1), None, "it goes on");
    }
    // One that stays broken is waited for no longer than ten minutes: the candidate may be what mends it.
    let mut broken = rollout.clone();
    let away = good(Side {
        wanted: None,
        ..side(0, 0, 0)
    });
    assert_eq!(until_event(&mut broken, rules, &away), (1, Event::Waits));
    let (seconds, _) = until_event(&mut broken, rules, &away);
    assert!((590..=600).contains(&seconds), "{seconds}");
    // One that was scaled down on purpose is no reason to wait: less load needs less.
    let small = good(side(40, 0, 2));
    let mut down = rollout.clone();
    for _ in 0..55 {
        down.tick(rules, &small, SECOND, 1);
    }
    assert_eq!(down.share, 5_000);
}

#[test]
fn without_rules_traffic_moves_when_it_was_ready() {
    let rules = Rules {
        policy: None,
        base: "v1",
        of: WHOLE,
    };
    let mut rollout = Rollout::new("v2", 0);
    assert_eq!(
        rollout.tick(rules, &seen(side(0, 0, 0), side(1, 0, 9)), SECOND, 1),
        Some(Event::Waits)
    );
    assert_eq!(rollout.floor(rules, &Seen::default()), 1);
    let event = rollout.tick(rules, &seen(side(0, 0, 1), side(1, 0, 9)), SECOND, 2);
    assert_eq!((event, rollout.ready), (Some(Event::Completed), true));
}

#[test]
fn what_cannot_grow_is_not_waited_for() {
    let policy = policy();
    let rules = rules(&policy);
    let mut rollout = Rollout::new("v2", 0);
    // Three fixed addresses before, one now.
    let fixed = Side {
        most: Some(1),
        ..side(10, 0, 1)
    };
    let both = seen(fixed, side(40, 0, 3));
    assert_eq!(rollout.tick(rules, &both, SECOND, 1), Some(Event::Step));
    assert_eq!(until_event(&mut rollout, rules, &both), (10, Event::Step));
    assert_eq!(until_event(&mut rollout, rules, &both), (10, Event::Completed));
}

#[test]
fn knatives_steps_go_by_the_time_that_a_start_took() {
    let policy = RolloutPolicy::of_duration(Duration::from_secs(120));
    let rules = rules(&policy);
    let mut rollout = Rollout::new("v2", 0);
    rollout.tick(
        rules,
        &seen(side(0, 0, 0), side(9, 0, 1)),
        Duration::from_millis(2_400),
        1,
    );
    let ready = seen(side(0, 0, 1), side(9, 0, 1));
    assert_eq!(rollout.tick(rules, &ready, Duration::ZERO, 2), Some(Event::Step));
    let mut shares = vec![rollout.share];
    while rollout.state.is_open() {
        let (seconds, _) = until_event(&mut rollout, rules, &ready);
        assert_eq!(seconds, 3);
        shares.push(rollout.share);
    }
    assert_eq!((&shares[..3], shares.len()), (&[100, 400, 700][..], 34));
    assert_eq!(rollout.unjudged, 0, "they go by time alone");
}

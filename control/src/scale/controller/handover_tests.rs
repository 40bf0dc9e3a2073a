//! One controller after another, with real processes under one supervisor.

use super::*;

/// As it comes out of a wire.
fn sent(handed: HandedOver) -> HandedOver {
    let bytes = serde_json::to_vec(&handed.state).unwrap();
    let state: ScaleState = serde_json::from_slice(&bytes).unwrap();
    state.check().unwrap();
    HandedOver {
        state,
        supervisor: handed.supervisor,
    }
}

fn kill(directory: &Path) {
    let pid = std::fs::read_to_string(directory.join("pid")).unwrap();
    let pid = nix::unistd::Pid::from_raw(pid.trim().parse().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// Tells where it is, and leaves a mark of its start and its end.
fn known_server(directory: &Path) -> RevisionPlan {
    let script = "echo x >> starts; echo $$$$ > pid.new; mv pid.new pid; \
                  trap 'echo x >> stops; exit' TERM; while :; do sleep 0.01; done";
    shell(directory, script)
}

/// The next call but that of an instance the real data plane has inherited and knows.
async fn call_but(bench: &mut Bench, known: InstanceId) -> Call {
    loop {
        match bench.call().await {
            Call::Add(instance) if instance == known => {}
            other => return other,
        }
    }
}

async fn running(bench: &mut Bench, directory: &Path, plan: &RevisionPlan) -> InstanceId {
    bench.apply(&[(&revision(), plan.clone())]);
    bench.activate();
    let instance = bench.added().await;
    let pid = directory.join("pid");
    bench.until("it is up", || pid.exists()).await;
    bench.ready(instance);
    bench
        .until("it counts as ready", || bench.handle.mailbox_is_empty())
        .await;
    instance
}

async fn wait_removed(bench: &mut Bench, instance: InstanceId) {
    while bench.call().await != Call::Remove(instance) {}
}

#[tokio::test]
async fn the_next_gateway_has_the_same_instances_and_stops_them() {
    let dir = tempfile::tempdir().unwrap();
    let plan = known_server(dir.path());
    let mut old = Bench::new();
    let instance = running(&mut old, dir.path(), &plan).await;
    let handed = sent(old.handle.freeze().await.unwrap());
    assert_eq!(handed.state.desired(), BTreeMap::from([(revision(), 1)]));
    let _answers = old.handle.release();

    let mut new = Bench::after(Some(handed));
    new.apply(&[(&revision(), plan)]);
    new.until("its plan is known", || new.status().starts == 1).await;
    // The older one goes, and nothing ends with it.
    old.handle.shutdown().await;
    drop(old);
    new.handle.set_desired(&revision(), 0, "1 → 0: idle".to_owned());
    let Call::Retire(chosen) = call_but(&mut new, instance).await else {
        panic!("it was not retired");
    };
    assert_eq!((marks(dir.path(), "starts"), marks(dir.path(), "stops")), (1, 0));
    new.apply(&[]);
    if chosen.is_empty() {
        // The pretended data plane had not been told of it; the real one inherits it.
        assert_eq!(
            call_but(&mut new, instance).await,
            Call::RetireThese(vec![instance])
        );
    }
    new.drained(instance);
    wait_removed(&mut new, instance).await;
    new.until("it was asked to end", || marks(dir.path(), "stops") == 1)
        .await;
}

#[tokio::test]
async fn a_changed_command_is_seen_as_changed_by_the_next_gateway() {
    let dir = tempfile::tempdir().unwrap();
    let mut old = Bench::new();
    let first = running(&mut old, dir.path(), &known_server(dir.path())).await;
    let handed = sent(old.handle.freeze().await.unwrap());
    let _answers = old.handle.release();
    let mut new = Bench::after(Some(handed));
    new.apply(&[(
        &revision(),
        shell(dir.path(), "echo x >> starts; sleep 1000 & wait"),
    )]);
    let Call::Add(second) = call_but(&mut new, first).await else {
        panic!("nothing was started");
    };
    assert!(second > first, "a number is never used twice");
    assert_eq!(marks(dir.path(), "stops"), 0);
    new.ready(second);
    assert_eq!(call_but(&mut new, first).await, Call::RetireThese(vec![first]));
}

#[tokio::test]
async fn what_ends_between_two_gateways_is_noticed_by_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let plan = known_server(dir.path());
    let mut old = Bench::new();
    let first = running(&mut old, dir.path(), &plan).await;
    let handed = sent(old.handle.freeze().await.unwrap());
    let _answers = old.handle.release();
    kill(dir.path());
    let mut new = Bench::after(Some(handed));
    new.apply(&[(&revision(), plan)]);
    assert_eq!(call_but(&mut new, first).await, Call::Remove(first));
    assert!(new.added().await > first);
}

#[tokio::test]
async fn thawed_it_hears_of_what_ended_meanwhile_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let plan = known_server(dir.path());
    let mut old = Bench::new();
    let first = running(&mut old, dir.path(), &plan).await;
    let handed = old.handle.freeze().await.unwrap();
    old.handle
        .set_desired(&revision(), 2, "1 → 2: asked while frozen".to_owned());
    kill(dir.path());
    // The news of its end goes to the next gateway, which dies without a word.
    let mut next = supervisor::Link::new(handed.supervisor.unwrap().into()).unwrap();
    let heard = async {
        loop {
            match next.next().await.unwrap() {
                supervisor::LinkEvent::Message(frame) => return frame,
                _ => continue,
            }
        }
    };
    let frame = tokio::time::timeout(PATIENCE, heard).await.unwrap();
    assert!(String::from_utf8_lossy(&frame).contains("exited"));
    assert!(old.calls.try_recv().is_err(), "it ordered something");
    drop(next);
    old.handle.thaw();
    let mut calls = Vec::new();
    while calls.len() < 3 {
        calls.push(old.call().await);
    }
    assert!(calls.contains(&Call::Remove(first)), "{calls:?}");
    assert_eq!(
        calls.iter().filter(|call| matches!(call, Call::Add(_))).count(),
        2
    );
    // It gives the orders again: two processes run that only it can have started.
    old.until("both run", || marks(dir.path(), "starts") == 3).await;
}

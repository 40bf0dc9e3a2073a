//! The whole control side of a cold start with real processes; only the data plane is pretended.

use std::path::Path;

use parking_lot::Mutex;
use sluice_model::{ActivationFailure, Expectation, Failure, InstanceId, Load, ManagedEndpoint};

use super::*;
use crate::plan::{ProcessLimits, RevisionPlan, ScalerSpec};
use crate::scale::handover::ScaleState;
use crate::scale::testing;

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, PartialEq)]
enum Call {
    Add(InstanceId),
    Remove(InstanceId),
    Retire(Vec<InstanceId>),
    RetireThese(Vec<InstanceId>),
    End(Vec<InstanceId>),
    ToZero(Option<Vec<InstanceId>>),
    Fail(Failure, String),
    Forgive,
    Expect(RevisionId),
    Hold(RevisionId, bool),
}

/// Chooses whatever it knows, unless somebody waits.
struct FakePlane {
    calls: mpsc::UnboundedSender<Call>,
    known: Mutex<BTreeSet<InstanceId>>,
    /// What is expected, and not ready.
    expected: Mutex<BTreeMap<RevisionId, Expectation>>,
    somebody_waits: Mutex<bool>,
    status: ScaleHandle,
}

impl FakePlane {
    fn call(&self, call: Call) {
        let _ = self.calls.send(call);
    }
}

impl EndpointSink for FakePlane {
    fn launch(&self, _: &RevisionId, _: LaunchStep) {}

    fn add(&self, _: &RevisionId, endpoint: ManagedEndpoint) {
        self.known.lock().insert(endpoint.instance);
        self.call(Call::Add(endpoint.instance));
    }

    fn remove(&self, _: &RevisionId, instance: InstanceId) {
        self.known.lock().remove(&instance);
        self.call(Call::Remove(instance));
    }

    fn retire(&self, _: &RevisionId, count: u32, to_zero: bool) -> Vec<InstanceId> {
        let refused = to_zero && *self.somebody_waits.lock();
        let count = if refused { 0 } else { count as usize };
        let chosen: Vec<InstanceId> = self.known.lock().iter().copied().take(count).collect();
        self.call(Call::Retire(chosen.clone()));
        chosen
    }

    fn to_zero(&self, _: &RevisionId) -> Option<Vec<InstanceId>> {
        if *self.somebody_waits.lock() {
            self.call(Call::ToZero(None));
            return None;
        }
        let all: Vec<InstanceId> = self.known.lock().iter().copied().collect();
        self.call(Call::ToZero(Some(all.clone())));
        Some(all)
    }

    fn retire_these(&self, _: &RevisionId, instances: &[InstanceId]) {
        self.call(Call::RetireThese(instances.to_vec()));
    }

    fn end(&self, _: &RevisionId, instances: &[InstanceId]) {
        self.call(Call::End(instances.to_vec()));
    }

    /// As status tells it to whoever looks the moment it is answered.
    fn fail(&self, revision: &RevisionId, failure: Arc<ActivationFailure>) {
        let shown = self.status.revision_status(revision).unwrap_or_default();
        let shown = shown.last_failure.unwrap_or_default();
        self.call(Call::Fail(failure.failure, shown));
    }

    fn forgive(&self, _: &RevisionId) {
        self.call(Call::Forgive);
    }

    fn sample(&self, _: &RevisionId) -> Option<Load> {
        None
    }

    fn expect(&self, need: &RevisionId) -> Expectation {
        self.call(Call::Expect(need.clone()));
        self.expected
            .lock()
            .get(need)
            .cloned()
            .unwrap_or(Expectation::Ready)
    }

    fn hold(&self, need: &RevisionId, held: bool) {
        self.call(Call::Hold(need.clone(), held));
    }
}

struct Bench {
    handle: ScaleHandle,
    plane: Arc<FakePlane>,
    calls: mpsc::UnboundedReceiver<Call>,
    planned: Mutex<BTreeSet<RevisionId>>,
}

impl Bench {
    fn new() -> Self {
        Self::after(None)
    }

    /// The next gateway of an upgrade, with the state of an older one.
    fn after(handed_over: Option<HandedOver>) -> Self {
        let (events, inbox) = mpsc::channel(EVENTS);
        let connect = || testing::supervisor().map(|(ours, _)| ours);
        let (ids, inherited, inherited_processes) = split(1, handed_over);
        let processes = ProcessScaler::spawn(
            "/bin/false".into(),
            1,
            connect,
            events.clone(),
            inherited_processes,
        );
        let platforms = WebhookScaler::spawn(events);
        let scalers = Scalers {
            processes,
            platforms,
            failed: Vec::new(),
        };
        let (sender, calls) = mpsc::unbounded_channel();
        let (handle, controller) = Controller::new();
        let plane = Arc::new(FakePlane {
            calls: sender,
            known: Mutex::default(),
            expected: Mutex::default(),
            somebody_waits: Mutex::default(),
            status: handle.clone(),
        });
        let sink = Arc::clone(&plane) as Arc<dyn EndpointSink>;
        tokio::spawn(controller.run(sink, scalers, inbox, ids, inherited));
        let planned = Mutex::default();
        Self {
            handle,
            plane,
            calls,
            planned,
        }
    }

    fn apply(&self, plans: &[(&RevisionId, RevisionPlan)]) {
        let mut planned = self.planned.lock();
        let gone = std::mem::take(&mut *planned).into_iter();
        let mut revisions: BTreeMap<_, _> = gone.map(|revision| (revision, None)).collect();
        for (revision, plan) in plans {
            planned.insert((*revision).clone());
            revisions.insert((*revision).clone(), Some(Arc::new(plan.clone())));
        }
        self.handle.apply(PlanDelta {
            revisions,
            processes: ProcessLimits {
                max: 64,
                ports: 20_000..=29_999,
            },
            drain: Duration::from_secs(300),
        });
    }

    async fn call(&mut self) -> Call {
        let call = tokio::time::timeout(PATIENCE, self.calls.recv()).await;
        call.expect("the data plane was not called in time").unwrap()
    }

    async fn added(&mut self) -> InstanceId {
        match self.call().await {
            Call::Add(instance) => instance,
            other => panic!("{other:?}"),
        }
    }

    fn activate(&self) {
        self.handle.demand(Demand::Activate(revision()));
    }

    fn ready(&self, instance: InstanceId) {
        let revision = revision();
        self.handle.demand(Demand::Ready { revision, instance });
    }

    fn drained(&self, instance: InstanceId) {
        let revision = revision();
        self.handle.demand(Demand::Drained { revision, instance });
    }

    fn status(&self) -> RevisionStatus {
        self.handle.revision_status(&revision()).unwrap_or_default()
    }

    async fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let waiting = async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, waiting).await;
        assert!(in_time.is_ok(), "not in time: {what}");
    }
}

fn revision() -> RevisionId {
    RevisionId::parse("default", "greeter-v1").unwrap()
}

/// Runs until it is told to end, and leaves a mark of both.
fn server(directory: &Path) -> RevisionPlan {
    let script = "echo x >> starts; trap 'echo x >> stops; exit' TERM; while :; do sleep 0.01; done";
    shell(directory, script)
}

fn shell(directory: &Path, script: &str) -> RevisionPlan {
    let command = ["sh", "-c", script];
    let mut process = testing::process(&command);
    process.working_directory = directory.to_owned();
    RevisionPlan {
        scaler: ScalerSpec::Process(process),
        ..testing::plan(&command)
    }
}

fn marks(directory: &Path, name: &str) -> usize {
    let text = std::fs::read_to_string(directory.join(name)).unwrap_or_default();
    text.lines().count()
}

#[path = "handover_tests.rs"]
mod handover_tests;
#[path = "needs_tests.rs"]
mod needs_tests;

#[tokio::test]
async fn from_zero_to_one_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::new();
    // The Snapshot is published before its plan is applied, so a waiter may come first.
    bench.activate();
    tokio::task::yield_now().await;
    bench.apply(&[(&revision(), server(dir.path()))]);
    let instance = bench.added().await;
    bench.activate();
    // Read together with the readiness it would count as asked for after it.
    bench
        .until("the second waiter is known", || bench.handle.mailbox_is_empty())
        .await;
    bench.until("it is up", || marks(dir.path(), "starts") == 1).await;
    bench.ready(instance);

    *bench.plane.somebody_waits.lock() = true;
    bench.handle.set_desired(&revision(), 0, "1 → 0: idle".to_owned());
    assert_eq!(bench.call().await, Call::Retire(vec![]));
    assert_eq!(marks(dir.path(), "stops"), 0);
    *bench.plane.somebody_waits.lock() = false;
    assert_eq!(bench.call().await, Call::Retire(vec![instance]));
    bench.drained(instance);
    assert_eq!(bench.call().await, Call::Remove(instance));
    bench
        .until("it was asked to end", || marks(dir.path(), "stops") == 1)
        .await;
    assert_eq!(marks(dir.path(), "starts"), 1, "one start, whoever else came");
    let status = bench.status();
    assert_eq!((status.desired, status.starts), (0, 1));
    assert_eq!(status.last_decision.as_deref(), Some("1 → 0: idle"));
}

#[tokio::test]
async fn what_cannot_start_answers_at_once_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::new();
    bench.apply(&[(
        &revision(),
        shell(dir.path(), "echo 'no such module' >&2; exit 2"),
    )]);
    bench.activate();
    let instance = bench.added().await;
    assert_eq!(bench.call().await, Call::Remove(instance));
    let reason = "exit status 2: no such module".to_owned();
    assert_eq!(bench.call().await, Call::Fail(Failure::Failed, reason.clone()));
    bench
        .until("status tells it", || {
            bench.status().last_failure.as_ref() == Some(&reason)
        })
        .await;

    // Put right, it starts at once: what failed was another command.
    bench.apply(&[(&revision(), server(dir.path()))]);
    assert_eq!(bench.call().await, Call::Forgive);
    bench.activate();
    let instance = bench.added().await;
    bench.ready(instance);
    bench
        .until("nothing is wrong", || bench.status().last_failure.is_none())
        .await;
}

#[tokio::test]
async fn a_missing_command_and_one_that_never_becomes_ready_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::new();
    bench.apply(&[(&revision(), testing::plan(&["no-such-command"]))]);
    bench.activate();
    let reason = "command not found: no-such-command".to_owned();
    assert_eq!(bench.call().await, Call::Fail(Failure::Failed, reason));

    let mut slow = server(dir.path());
    slow.start_timeout = Duration::from_millis(50);
    bench.apply(&[(&revision(), slow)]);
    assert_eq!(bench.call().await, Call::Forgive);
    bench.activate();
    let instance = bench.added().await;
    assert_eq!(bench.call().await, Call::Remove(instance));
    let reason = "not ready within 50ms at 127.0.0.1:$PORT".to_owned();
    assert_eq!(bench.call().await, Call::Fail(Failure::TimedOut, reason));
}

#[tokio::test]
async fn a_changed_command_takes_over_and_a_removed_revision_drains() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::new();
    bench.apply(&[(&revision(), server(dir.path()))]);
    bench.activate();
    let old = bench.added().await;
    bench.ready(old);
    bench.until("it is up", || marks(dir.path(), "starts") == 1).await;

    bench.apply(&[(
        &revision(),
        shell(dir.path(), "echo x >> starts; sleep 1000 & wait"),
    )]);
    let new = bench.added().await;
    bench
        .until("its successor is up", || marks(dir.path(), "starts") == 2)
        .await;
    assert_eq!(marks(dir.path(), "stops"), 0);
    bench.ready(new);
    assert_eq!(bench.call().await, Call::RetireThese(vec![old]));
    bench.drained(old);
    assert_eq!(bench.call().await, Call::Remove(old));
    bench
        .until("the old one was asked to end", || marks(dir.path(), "stops") == 1)
        .await;

    bench.apply(&[]);
    assert_eq!(bench.call().await, Call::RetireThese(vec![new]));
    bench.drained(new);
    assert_eq!(bench.call().await, Call::Remove(new));
    bench
        .until("it is forgotten", || {
            bench.handle.revision_status(&revision()).is_none()
        })
        .await;
}

#[tokio::test]
async fn an_instance_that_is_killed_is_replaced_because_it_is_still_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::new();
    let script = "echo $$$$ > pid.new; mv pid.new pid; sleep 1000 & wait";
    bench.apply(&[(&revision(), shell(dir.path(), script))]);
    bench.activate();
    let first = bench.added().await;
    bench.ready(first);
    let pid_file = dir.path().join("pid");
    bench.until("it is up", || pid_file.exists()).await;
    let pid: i32 = std::fs::read_to_string(&pid_file)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    // The end must not be seen before the readiness.
    bench
        .until("it counts as ready", || bench.handle.mailbox_is_empty())
        .await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(bench.call().await, Call::Remove(first));
    assert_ne!(bench.added().await, first);
    let failure = bench.status().last_failure;
    assert_eq!(failure.as_deref(), Some("signal 9 (SIGKILL)"));
}

#[tokio::test]
async fn shutdown_returns_when_every_instance_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::new();
    let mut plan = server(dir.path());
    plan.policy.min_scale = 3;
    bench.apply(&[(&revision(), plan)]);
    for _ in 0..3 {
        bench.added().await;
    }
    bench
        .until("all are up", || marks(dir.path(), "starts") == 3)
        .await;
    tokio::time::timeout(PATIENCE, bench.handle.shutdown())
        .await
        .unwrap();
    assert_eq!(marks(dir.path(), "stops"), 3);
    for _ in 0..3 {
        assert!(matches!(bench.call().await, Call::Remove(_)));
    }
    // What comes too late changes nothing, and a second call has nothing to wait for.
    bench.activate();
    bench.handle.shutdown().await;
}

//! Real processes under a supervisor loop in this process.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Mutex;

use super::*;
use crate::scale::testing;

const PATIENCE: Duration = Duration::from_secs(20);

struct Bench {
    scaler: ProcessScaler,
    events: mpsc::Receiver<ScalerEvent>,
    supervisors: Arc<Mutex<Vec<tokio::task::JoinHandle<()>>>>,
    next: u64,
}

impl Bench {
    fn new(max: u32, ports: std::ops::RangeInclusive<u16>) -> Self {
        let (sender, events) = mpsc::channel(16);
        let supervisors = Arc::new(Mutex::new(Vec::new()));
        let started = Arc::clone(&supervisors);
        let connect = move || {
            let (ours, serving) = testing::supervisor()?;
            started.lock().unwrap().push(serving);
            Ok(ours)
        };
        let mut scaler = ProcessScaler::spawn("/bin/echo".into(), 1, connect, sender, None);
        let processes = ProcessLimits { max, ports };
        scaler.configure(&PlanDelta {
            revisions: BTreeMap::new(),
            processes,
            drain: Duration::from_secs(300),
        });
        Self {
            scaler,
            events,
            supervisors,
            next: 0,
        }
    }

    fn start(&mut self, plan: RevisionPlan) -> InstanceId {
        self.next += 1;
        let instance = InstanceId(self.next);
        let revision = RevisionId::parse("default", "greeter-v1").unwrap();
        self.scaler
            .order(&revision, InstanceOrder::Start(instance, Arc::new(plan)));
        instance
    }

    async fn event(&mut self) -> ScalerEvent {
        let event = tokio::time::timeout(PATIENCE, self.events.recv()).await;
        event.unwrap().unwrap()
    }

    async fn started(&mut self) -> SocketAddr {
        match self.event().await {
            ScalerEvent::Started { address, .. } => address,
            other => panic!("{other:?}"),
        }
    }

    async fn failed(&mut self) -> (Failure, String) {
        match self.event().await {
            ScalerEvent::Failed { failure, detail, .. } => (failure, detail),
            other => panic!("{other:?}"),
        }
    }

    async fn exited(&mut self) -> (String, bool) {
        match self.event().await {
            ScalerEvent::Exited {
                detail, port_taken, ..
            } => (detail, port_taken),
            other => panic!("{other:?}"),
        }
    }
}

fn in_directory(command: &[&str], directory: &Path, env: &[(&str, &str)]) -> RevisionPlan {
    let mut plan = testing::plan(command);
    let env = env
        .iter()
        .map(|&(name, value)| (name.to_owned(), value.to_owned()));
    plan.scaler = ScalerSpec::Process(ProcessSpec {
        working_directory: directory.to_owned(),
        env: env.collect(),
        ..testing::process(command)
    });
    plan
}

#[tokio::test]
async fn an_instance_learns_its_port_and_names_and_the_log_its_output() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(8, 20_000..=29_999);
    let script = "echo $PORT $K_SERVICE $K_REVISION $K_CONFIGURATION $URL \"$1\" > said";
    let command = ["sh", "-c", script, "_", "--port=$(PORT) $$(PORT)"];
    bench.start(in_directory(
        &command,
        dir.path(),
        &[("URL", "http://$(K_SERVICE):$(PORT)")],
    ));
    let port = bench.started().await.port();
    assert_eq!(bench.exited().await, ("exit status 0".to_owned(), false));
    assert_eq!(
        std::fs::read_to_string(dir.path().join("said")).unwrap(),
        format!("{port} greeter greeter-v1 greeter http://greeter:{port} --port={port} $(PORT)\n")
    );
}

#[tokio::test]
async fn the_word_sluice_is_the_executable() {
    let mut bench = Bench::new(8, 20_000..=29_999);
    bench.start(testing::plan(&["sluice", "echo"]));
    bench.started().await;
    assert_eq!(bench.exited().await.0, "exit status 0");
    bench.start(testing::plan(&["sluice-of-old"]));
    let (failure, detail) = bench.failed().await;
    assert_eq!(
        (failure, detail.as_str()),
        (Failure::Failed, "command not found: sluice-of-old")
    );
}

#[tokio::test]
async fn the_end_comes_with_its_status_and_the_last_line_of_stderr() {
    let mut bench = Bench::new(8, 20_000..=29_999);
    bench.start(testing::plan(&["sh", "-c", "echo one >&2; echo two >&2; exit 7"]));
    bench.started().await;
    assert_eq!(bench.exited().await, ("exit status 7: two".to_owned(), false));
    let complaint = "echo 'OSError: [Errno 98] Address already in use' >&2; echo bye >&2; exit 1";
    bench.start(testing::plan(&["sh", "-c", complaint]));
    bench.started().await;
    assert_eq!(bench.exited().await, ("exit status 1: bye".to_owned(), true));
}

#[tokio::test]
async fn no_more_run_than_are_allowed_and_an_end_makes_room() {
    let mut bench = Bench::new(1, 20_000..=29_999);
    let first = bench.start(testing::plan(&["sleep", "1000"]));
    bench.started().await;
    bench.start(testing::plan(&["sleep", "1000"]));
    let (failure, detail) = bench.failed().await;
    assert_eq!(failure, Failure::NotAllowed);
    assert_eq!(detail, "processes.max is reached: 1 local instances");
    let stop = InstanceOrder::Stop(first, Duration::from_secs(10));
    bench
        .scaler
        .order(&RevisionId::parse("default", "greeter-v1").unwrap(), stop);
    assert_eq!(bench.exited().await.0, "signal 15 (SIGTERM)");
    bench.start(testing::plan(&["true"]));
    bench.started().await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_passed_over_and_none_is_given_twice() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut bench = Bench::new(8, port..=port);
    bench.start(testing::plan(&["sleep", "1000"]));
    let (failure, detail) = bench.failed().await;
    assert_eq!(failure, Failure::NotAllowed);
    assert_eq!(
        detail,
        format!("no port is free in processes.ports {port}-{port}")
    );
    drop(listener);
    // A process that another test is just forking holds a copy until it is a program of its own.
    let deadline = std::time::Instant::now() + PATIENCE;
    while !ports::is_free(port) {
        assert!(std::time::Instant::now() < deadline, "{port} stays taken");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    bench.start(testing::plan(&["sleep", "1000"]));
    assert_eq!(bench.started().await.port(), port);
    // It does not listen, but the port is its own.
    bench.start(testing::plan(&["sleep", "1000"]));
    assert_eq!(bench.failed().await.0, Failure::NotAllowed);
}

#[tokio::test]
async fn a_lost_supervisor_loses_its_instances_and_the_next_start_gets_another() {
    let mut bench = Bench::new(8, 20_000..=29_999);
    bench.start(testing::plan(&["sleep", "1000"]));
    bench.started().await;
    bench.supervisors.lock().unwrap()[0].abort();
    assert_eq!(bench.exited().await.0, "lost with its supervisor");
    bench.start(testing::plan(&["true"]));
    bench.started().await;
    assert_eq!(bench.supervisors.lock().unwrap().len(), 2);
}

#[test]
fn last_words_are_cut_at_a_character() {
    assert_eq!(shorten("short"), "short");
    assert_eq!(shorten(&"ü".repeat(MAX_STDERR_DETAIL)).len(), MAX_STDERR_DETAIL);
    assert!(says_port_taken(
        "Error: listen EADDRINUSE: address already in use :::8080"
    ));
    assert!(!says_port_taken("listening on port 8080"));
}

//! Real processes. Most tests run the loop here; two start it as a process of its own.

use super::wire::Listed;
use super::*;
use std::collections::BTreeMap;
use std::time::Instant as StdInstant;

const PATIENCE: Duration = Duration::from_secs(20);

const APART: &str = "SLUICE_TEST_SUPERVISOR";

pub(super) struct Gateway(pub(super) Link);

impl Gateway {
    /// With the supervisor's loop in this process.
    pub(super) fn beside() -> Self {
        let ours = crate::scale::testing::supervisor().unwrap().0;
        Self(Link::new(ours).unwrap())
    }

    /// With a supervisor process: this test binary, told to run only [`as_a_process`].
    fn apart() -> (Self, tokio::process::Child) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let child = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "scale::supervisor::tests::as_a_process", "--ignored"])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .env(APART, "1")
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        (Self(Link::new(ours).unwrap()), child)
    }

    pub(super) fn say(&mut self, command: &Command) {
        self.0.push(command).unwrap();
    }

    pub(super) async fn hear(&mut self) -> Event {
        loop {
            let turn = tokio::time::timeout(PATIENCE, self.0.next()).await.unwrap();
            match turn.unwrap() {
                LinkEvent::Message(frame) => return decode(&frame).unwrap(),
                LinkEvent::Wrote => {}
                LinkEvent::Closed => panic!("the supervisor is gone"),
            }
        }
    }

    /// The next event that is no output, and the lines before it.
    async fn hear_end(&mut self) -> (Event, Vec<String>) {
        let mut lines = Vec::new();
        loop {
            match self.hear().await {
                Event::Output { line, .. } => lines.push(line),
                other => return (other, lines),
            }
        }
    }

    async fn line(&mut self) -> String {
        match self.hear().await {
            Event::Output { line, .. } => line,
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn start(&mut self, start: Start) -> i32 {
        self.say(&Command::Start(Box::new(start)));
        match self.hear().await {
            Event::Started { pid, .. } => pid,
            other => panic!("{other:?}"),
        }
    }
}

pub(super) fn sh(instance: u64, script: &str) -> Start {
    Start {
        instance,
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: BTreeMap::new(),
        cwd: "/".into(),
        clear_env: false,
        grace_ms: 10_000,
        label: Label {
            namespace: "default".to_owned(),
            revision: "greeter-v1".to_owned(),
            port: 20_000,
        },
    }
}

/// Zombies are dead: whether somebody reaps them is the business of whoever adopted them.
pub(super) fn lives(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    !state.is_empty() && !state.starts_with('Z')
}

pub(super) async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = StdInstant::now() + PATIENCE;
    while !condition() {
        assert!(StdInstant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Not a test: the supervisor process of [`Gateway::apart`].
#[test]
#[ignore = "runs as a child of other tests only"]
fn as_a_process() {
    // It would take the other tests' children for its own.
    if std::env::var_os(APART).is_some() {
        assert_eq!(main(), ExitCode::SUCCESS);
    }
}

#[tokio::test]
async fn an_instance_runs_says_something_and_ends_with_its_reason() {
    let mut gateway = Gateway::beside();
    gateway.say(&Command::Hello { version: VERSION });
    assert_eq!(gateway.hear().await, Event::Hello { version: VERSION });
    let mut start = sh(
        1,
        "echo $GREETING; echo; echo first >&2; echo last words >&2; exit 3",
    );
    start.env = BTreeMap::from([("GREETING".to_owned(), "hello".to_owned())]);
    gateway.start(start).await;
    let (end, mut lines) = gateway.hear_end().await;
    lines.sort();
    assert_eq!(lines, ["first", "hello", "last words"]);
    assert_eq!(
        end,
        Event::Exited {
            instance: 1,
            status: "exit status 3".to_owned(),
            last_stderr: Some("last words".to_owned()),
            dropped: 0,
        }
    );
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let mut gateway = Gateway::beside();
    let mut start = sh(1, "");
    start.command = vec!["no-such-command".to_owned()];
    let mut elsewhere = sh(2, "");
    elsewhere.cwd = "/no/such/directory".into();
    gateway.say(&Command::Start(Box::new(start)));
    gateway.say(&Command::Start(Box::new(elsewhere)));
    assert_eq!(
        gateway.hear().await,
        Event::StartFailed {
            instance: 1,
            error: "command not found: no-such-command".to_owned()
        }
    );
    assert_eq!(
        gateway.hear().await,
        Event::StartFailed {
            instance: 2,
            error: "working directory not found: /no/such/directory".to_owned()
        }
    );
    gateway.say(&Command::List);
    assert_eq!(gateway.hear().await, Event::Listing { instances: vec![] });
}

#[tokio::test]
async fn a_cleared_environment_holds_only_what_was_given() {
    let mut gateway = Gateway::beside();
    let mut start = sh(4, "");
    start.command = vec!["env".to_owned()];
    start.clear_env = true;
    start.env = BTreeMap::from([("PORT".to_owned(), "20001".to_owned())]);
    gateway.start(start).await;
    let (_, mut lines) = gateway.hear_end().await;
    lines.sort();
    assert_eq!(lines, ["PORT=20001".to_owned(), launch::marker(4)]);
}

#[tokio::test]
async fn a_grandchild_ends_with_the_instance_that_exits() {
    let mut gateway = Gateway::beside();
    gateway.start(sh(1, "sleep 1000 & echo $!")).await;
    let grandchild: i32 = gateway.line().await.parse().unwrap();
    let (end, _) = gateway.hear_end().await;
    assert!(matches!(end, Event::Exited { .. }), "{end:?}");
    until("the grandchild is gone", || !lives(grandchild)).await;
}

#[tokio::test]
async fn stop_asks_first_and_waits_for_the_whole_group() {
    let mut gateway = Gateway::beside();
    // The shell dies of the signal at once; what it started wants to finish.
    let script = "(trap 'echo finishing; sleep 0.2; echo finished; exit' TERM; echo up; \
                  while :; do sleep 0.01; done) 2>/dev/null & wait";
    let pid = gateway.start(sh(1, script)).await;
    assert_eq!(gateway.line().await, "up");
    gateway.say(&Command::Stop {
        instance: 1,
        grace_ms: 10_000,
    });
    let (end, lines) = gateway.hear_end().await;
    assert_eq!(lines, ["finishing", "finished"]);
    assert_eq!(
        end,
        Event::Exited {
            instance: 1,
            status: "signal 15 (SIGTERM)".to_owned(),
            last_stderr: None,
            dropped: 0,
        }
    );
    assert!(!lives(pid));
}

#[tokio::test]
async fn who_does_not_listen_is_killed_after_the_grace() {
    let mut gateway = Gateway::beside();
    gateway
        .start(sh(1, "trap '' TERM; echo up; while :; do sleep 0.01; done"))
        .await;
    assert_eq!(gateway.line().await, "up");
    let asked = StdInstant::now();
    gateway.say(&Command::Stop {
        instance: 1,
        grace_ms: 100,
    });
    let (end, _) = gateway.hear_end().await;
    assert!(asked.elapsed() >= Duration::from_millis(100));
    assert!(
        matches!(&end, Event::Exited { status, .. } if status == "signal 9 (SIGKILL)"),
        "{end:?}"
    );
}

#[tokio::test]
async fn no_grace_kills_at_once_and_unknown_instances_are_ignored() {
    let mut gateway = Gateway::beside();
    gateway
        .start(sh(
            1,
            "trap 'echo asked' TERM; echo up; while :; do sleep 0.01; done",
        ))
        .await;
    assert_eq!(gateway.line().await, "up");
    gateway.say(&Command::Stop {
        instance: 99,
        grace_ms: 0,
    });
    gateway.say(&Command::Stop {
        instance: 1,
        grace_ms: 0,
    });
    let (end, lines) = gateway.hear_end().await;
    assert!(lines.is_empty());
    assert!(matches!(end, Event::Exited { instance: 1, .. }), "{end:?}");
}

#[tokio::test]
async fn a_gateway_that_takes_over_learns_what_runs() {
    let mut gateway = Gateway::beside();
    let pid = gateway.start(sh(5, "sleep 1000")).await;
    gateway.say(&Command::List);
    let (listing, _) = gateway.hear_end().await;
    let label = sh(5, "").label;
    let listed = Listed {
        instance: 5,
        pid,
        label,
    };
    assert_eq!(
        listing,
        Event::Listing {
            instances: vec![listed]
        }
    );
    gateway.0.push(&"what a newer gateway says").unwrap();
    assert!(matches!(gateway.hear().await, Event::Refused { .. }));
}

#[tokio::test]
async fn nothing_survives_the_gateway_grandchildren_included() {
    let mut gateway = Gateway::beside();
    let mut pids = Vec::new();
    for instance in 1..=3 {
        pids.push(
            gateway
                .start(sh(instance, "sleep 1000 & echo $!; sleep 1000 & echo $!; wait"))
                .await,
        );
        pids.push(gateway.line().await.parse().unwrap());
        pids.push(gateway.line().await.parse().unwrap());
    }
    assert!(pids.iter().all(|&pid| lives(pid)));
    drop(gateway);
    until("every process is gone", || !pids.iter().any(|&pid| lives(pid))).await;
}

#[tokio::test]
async fn a_chatty_instance_is_neither_blocked_nor_kept_when_nobody_reads() {
    let dir = tempfile::tempdir().unwrap();
    let mut gateway = Gateway::beside();
    let mut start = sh(
        1,
        "yes chatter | head -c 20000000; echo last words >&2; touch done; exit 4",
    );
    start.cwd = dir.path().to_owned();
    gateway.start(start).await;
    // Not a byte is read until it has said everything: more than socket and pipes can hold.
    until("it has said everything", || dir.path().join("done").exists()).await;
    let (mut heard, mut dropped_lines) = (0, 0);
    let end = loop {
        match gateway.hear().await {
            Event::Output { dropped, .. } => {
                heard += 1;
                dropped_lines += dropped;
            }
            other => break other,
        }
    };
    let Event::Exited {
        status,
        last_stderr,
        dropped,
        ..
    } = end
    else {
        panic!("{end:?}");
    };
    assert_eq!(status, "exit status 4");
    assert_eq!(last_stderr.as_deref(), Some("last words"));
    assert_eq!(
        heard + dropped_lines + dropped,
        20_000_000 / 8 + 1,
        "every line is accounted for"
    );
    assert!(heard < 50_000, "{heard} lines were kept");
}

#[tokio::test]
async fn a_supervisor_process_ends_what_left_its_group_and_ignores_signals() {
    let (mut gateway, mut child) = Gateway::apart();
    let supervisor = nix::unistd::Pid::from_raw(child.id().unwrap().try_into().unwrap());
    let pid = gateway
        .start(sh(1, "setsid sh -c 'echo $$; exec sleep 1000' & wait"))
        .await;
    let stray: i32 = gateway.line().await.parse().unwrap();
    for deaf_to in [
        nix::sys::signal::Signal::SIGTERM,
        nix::sys::signal::Signal::SIGINT,
    ] {
        nix::sys::signal::kill(supervisor, deaf_to).unwrap();
    }
    gateway.say(&Command::Hello { version: VERSION });
    assert_eq!(gateway.hear().await, Event::Hello { version: VERSION });
    assert!(lives(stray) && lives(pid));
    drop(gateway);
    let status = tokio::time::timeout(PATIENCE, child.wait())
        .await
        .unwrap()
        .unwrap();
    assert!(status.success(), "{status}");
    until("every process is gone", || !lives(stray) && !lives(pid)).await;
}

#[tokio::test]
async fn a_stray_ends_with_its_instance_and_no_zombie_stays() {
    let (mut gateway, mut child) = Gateway::apart();
    gateway.start(sh(1, "sleep 1000")).await;
    let supervisor = child.id().unwrap();
    gateway
        .start(sh(2, "setsid sh -c 'echo $$; exec sleep 1000' & wait"))
        .await;
    let stray: i32 = gateway.line().await.parse().unwrap();
    gateway.say(&Command::Stop {
        instance: 2,
        grace_ms: 0,
    });
    let (end, _) = gateway.hear_end().await;
    assert!(matches!(end, Event::Exited { instance: 2, .. }), "{end:?}");
    until("the stray is reaped, not only dead", || {
        std::fs::metadata(format!("/proc/{stray}")).is_err()
    })
    .await;
    assert!(lives(supervisor.try_into().unwrap()));
    drop(gateway);
    tokio::time::timeout(PATIENCE, child.wait())
        .await
        .unwrap()
        .unwrap();
}

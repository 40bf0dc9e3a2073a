//! Failed starts: the response comes at once, with the cause in the log and, if wanted, in the body.

use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::H1Response;
use sluice_tests::process::{is_alive, with_marker};
use sluice_tests::wait::{SOON, wait_for, wait_until};
use tokio::time::Instant;

use crate::WEB;
use crate::cold_start::{exec_echo, shell_service};

/// Well before `startTimeout`, which is 60 s.
const AT_ONCE: Duration = Duration::from_secs(5);

async fn failed(gateway: &Gateway, reason: &str, limit: Duration) -> H1Response {
    let start = Instant::now();
    let response = gateway.get(WEB, "/").await;
    assert_eq!(
        (response.status, response.reason()),
        (503, Some(reason)),
        "{}",
        response.text()
    );
    assert!(start.elapsed() < limit, "{:?} until {reason}", start.elapsed());
    response
}

async fn assert_cause(gateway: &Gateway, cause: &str) {
    let shown = gateway.admin_get("/api/revisions").await.text();
    assert!(shown.contains(cause), "no {cause:?} in {shown}");
    gateway.wait_said(cause).await;
}

fn command(command: &str, revision: &str) -> String {
    format!(
        "services:\n  - name: web\n    revisions:\n      - name: web-a\n        process: {{command: {command}}}\n        {revision}\n"
    )
}

#[tokio::test]
async fn a_command_that_does_not_exist() {
    let config = command("[no-such-command-at-all]", "");
    let gateway = Gateway::start(&config).await;
    let response = failed(&gateway, "activation_failed", AT_ONCE).await;
    assert!(
        !response.text().contains("no-such-command"),
        "clients are not told"
    );
    assert!(response.header("retry-after").is_some());
    assert_cause(&gateway, "no-such-command-at-all").await;
    let failures = gateway.metric("sluice_rejections_total", &[("reason", "activation_failed")]);
    assert!(failures.await >= 1.0);

    let telling = Gateway::start(&format!("errorDetail: true\n{config}")).await;
    let response = failed(&telling, "activation_failed", AT_ONCE).await;
    assert!(response.text().contains("no-such-command"), "{}", response.text());
}

#[tokio::test]
async fn a_command_that_exits_at_once() {
    let config = shell_service("echo the-last-words >&2; exit 43", "");
    let gateway = Gateway::start(&config).await;
    failed(&gateway, "activation_failed", AT_ONCE).await;
    assert_cause(&gateway, "the-last-words").await;
    assert_cause(&gateway, "43").await;
    // During the back-off of starts, new requests fail as quickly.
    for _ in 0..5 {
        failed(&gateway, "activation_failed", AT_ONCE).await;
    }
}

#[tokio::test]
async fn a_process_that_never_becomes_ready() {
    let config = shell_service("exec sleep 1000", "startTimeout: 1s");
    let gateway = Gateway::start(&config).await;
    let start = Instant::now();
    failed(&gateway, "activation_timeout", Duration::from_secs(10)).await;
    assert!(
        start.elapsed() >= Duration::from_millis(900),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn every_waiter_of_a_failed_start_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    let script = format!("while [ ! -e {} ]; do sleep 0.02; done; exit 1", go.display());
    let gateway = Gateway::start(&shell_service(&script, "")).await;
    let addr = gateway.addr();
    let get = sluice_tests::h1::get(WEB, "/");
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let get = get.clone();
            tokio::spawn(async move { sluice_tests::h1::fetch(addr, &get).await })
        })
        .collect();
    gateway
        .wait_metric("sluice_queue_depth", &[], SOON, |n| n == 20.0)
        .await;
    std::fs::write(&go, "").unwrap();
    for waiter in waiting {
        let response = waiter.await.unwrap().unwrap();
        assert_eq!(response.reason(), Some("activation_failed"));
    }
}

#[tokio::test]
async fn a_fixed_config_recovers() {
    let gateway = Gateway::start(&command("[no-such-command-at-all]", "")).await;
    failed(&gateway, "activation_failed", AT_ONCE).await;
    gateway.reload(&shell_service(&exec_echo("fixed"), "")).await;
    let response = gateway.get(WEB, "/").await;
    assert_eq!(response.status, 200, "{}", response.text());
}

#[tokio::test]
async fn a_cause_that_went_away_recovers_without_an_edit() {
    let dir = tempfile::tempdir().unwrap();
    let needed = dir.path().join("needed");
    let script = format!("[ -e {} ] || exit 1; {}", needed.display(), exec_echo("fixed"));
    let gateway = Gateway::start(&shell_service(&script, "")).await;
    failed(&gateway, "activation_failed", AT_ONCE).await;
    std::fs::write(&needed, "").unwrap();
    wait_for("a start is tried again", Duration::from_secs(60), async || {
        (gateway.get(WEB, "/").await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_instance_that_dies_is_replaced() {
    let marker = format!("sluice-test-{:016x}", fastrand::u64(..));
    let gateway = Gateway::start(&shell_service(&exec_echo(&marker), "")).await;
    assert_eq!(gateway.get(WEB, "/").await.status, 200);
    let [pid] = with_marker(&marker)[..] else {
        panic!("one process: {:?}", with_marker(&marker));
    };
    let pid = Pid::from_raw(i32::try_from(pid).unwrap());
    nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
    wait_until("the process is gone", SOON, || {
        !is_alive(pid.as_raw().unsigned_abs())
    })
    .await;
    let response = gateway.get(WEB, "/").await;
    assert_eq!(
        response.status,
        200,
        "{:?} {}",
        response.reason(),
        response.text()
    );
    assert_eq!(with_marker(&marker).len(), 1);
}

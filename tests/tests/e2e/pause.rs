//! A paused service holds its requests: under load, over every protocol, by tag, at zero.

use std::time::Duration;

use serde_json::Value;
use sluice_tests::backend::HttpBackend;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1;
use sluice_tests::load::Load;
use sluice_tests::process::line_count;
use sluice_tests::wait::{SOON, quiet, wait_for, wait_until};
use sluice_tests::websocket::echo_backend;

use crate::cold_start::{exec_echo, mark};
use crate::commands::{command, done};
use crate::{WEB, web, web_split};

/// Sums of all revisions of `web`: in flight, queued, ready.
async fn sums(gateway: &Gateway) -> [u64; 3] {
    let value = gateway.admin_json("/api/revisions?service=default/web").await;
    let rows = value["revisions"].as_array().expect("revisions").clone();
    ["in_flight", "queued", "ready"].map(|key| rows.iter().filter_map(|row| row[key].as_u64()).sum())
}

async fn wait_held(gateway: &Gateway, queued: u64) {
    wait_for("requests are held", SOON, async || {
        let [in_flight, held, _] = sums(gateway).await;
        (in_flight == 0 && held == queued).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_pause_under_load_loses_nothing_whatever_the_protocol() {
    let (a, b) = (HttpBackend::start("a").await, HttpBackend::start("b").await);
    let gateway = Gateway::start(&web_split(a.addr(), "50", b.addr(), "50", "")).await;
    let loads = [
        Load::get(gateway.addr(), 6, WEB),
        Load::get_h2(gateway.addr(), 4, WEB),
        // A tag is no way around.
        Load::get(gateway.addr(), 2, &format!("b-{WEB}")),
    ];
    for load in &loads {
        load.advance(50).await;
    }
    for _ in 0..2 {
        done(&gateway, &["pause", "web"]).await;
        wait_held(&gateway, 12).await;
        let seen = (a.count(), b.count());
        quiet(Duration::from_millis(300)).await;
        assert_eq!(seen, (a.count(), b.count()), "a request was sent on");
        done(&gateway, &["resume", "default/web"]).await;
        for load in &loads {
            load.advance(50).await;
        }
    }
    for load in loads {
        load.stop().await.assert_clean();
    }
}

#[tokio::test]
async fn a_websocket_that_is_open_goes_on_and_a_new_one_waits() {
    let (backend, _codes) = echo_backend().await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let open = Load::websockets(gateway.addr(), 2, WEB);
    open.advance(20).await;
    done(&gateway, &["pause", "web"]).await;
    open.advance(20).await;
    let new = Load::websockets(gateway.addr(), 2, WEB);
    wait_for("they wait", SOON, async || {
        (sums(&gateway).await[1] == 2).then_some(())
    })
    .await;
    assert_eq!(new.done(), 0);
    done(&gateway, &["resume", "web"]).await;
    new.advance(20).await;
    for load in [open, new] {
        load.stop().await.assert_clean();
    }
}

#[tokio::test]
async fn the_queues_bounds_and_timeout_are_as_ever() {
    let (a, b) = (HttpBackend::start("a").await, HttpBackend::start("b").await);
    let config = web_split(a.addr(), "100", b.addr(), "0", "").replace(
        &format!("endpoints: [\"{}\"]", a.addr()),
        &format!(
            "endpoints: [\"{}\"], queue: {{depth: 1, timeout: 700ms}}",
            a.addr()
        ),
    );
    let gateway = Gateway::start(&config).await;
    let paused = done(&gateway, &["pause", "web"]).await;
    assert!(paused.stdout.contains("sluice resume default/web"), "{paused:?}");
    let address = gateway.addr();
    let first = tokio::spawn(async move { h1::fetch(address, &h1::get(WEB, "/")).await.expect("an answer") });
    wait_held(&gateway, 1).await;
    let full = gateway.get(WEB, "/").await;
    assert_eq!((full.status, full.reason()), (503, Some("queue_full")));
    let first = first.await.unwrap();
    assert_eq!((first.status, first.reason()), (503, Some("queue_timeout")));
    assert!(first.header("retry-after").is_some());
    assert_eq!(a.count(), 0);
    let explained = command(
        &gateway,
        &["explain", &format!("http://{WEB}/"), "--format", "json"],
    )
    .await;
    let explained = explained.json();
    assert_eq!(explained["paused"], true, "{explained}");
    assert!(explained["why"].to_string().contains("paused"), "{explained}");
    let status = done(&gateway, &["status"]).await.stdout;
    assert!(status.contains("paused by command"), "{status}");
    let twice = command(&gateway, &["pause", "web"]).await;
    assert_eq!(twice.code, Some(1), "{twice:?}");
    done(&gateway, &["resume", "web"]).await;
    assert_eq!(gateway.get(WEB, "/").await.status, 200);
}

/// Two seconds of idleness scale it to zero.
fn scaled(script: &str) -> String {
    format!(
        "autoscaling: {{scaleToZeroGracePeriod: 0s}}\nservices:\n  - name: web\n    revisions:\n      - name: web-a\n        process: {{command: [sh, -c, '{script}']}}\n        autoscaling: {{window: 6s}}\n"
    )
}

#[tokio::test]
async fn at_zero_the_held_request_starts_an_instance_which_stays_and_serves_it_after_the_resume() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let gateway = Gateway::start(&scaled(&format!("{}; {}", mark(&log), exec_echo("web")))).await;
    done(&gateway, &["pause", "web"]).await;
    let address = gateway.addr();
    let held = tokio::spawn(async move { h1::fetch(address, &h1::get(WEB, "/")).await.expect("an answer") });
    gateway.wait_ready_instances("web-a", 1.0, SOON).await;
    wait_held(&gateway, 1).await;
    assert!(!held.is_finished());
    done(&gateway, &["resume", "web"]).await;
    let answer = held.await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    // Idle, and paused for longer than idleness lasts: the instance stays, and says why.
    done(&gateway, &["pause", "web"]).await;
    wait_for("the autoscaler keeps it", Duration::from_secs(40), async || {
        let value = gateway.admin_json("/api/revisions").await;
        // Idleness alone would have it at zero by now.
        let is_bound = value["revisions"][0]["scaling"]["source"] == "bound";
        (is_bound || sums(&gateway).await[2] == 0).then_some(())
    })
    .await;
    assert_eq!(sums(&gateway).await[2], 1, "still there");
    assert_eq!(line_count(&log), 1);
    done(&gateway, &["resume", "web"]).await;
    wait_for("it is scaled to zero", Duration::from_secs(40), async || {
        (sums(&gateway).await[2] == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_start_that_fails_while_paused_is_tried_again_at_the_resume() {
    let dir = tempfile::tempdir().unwrap();
    let (log, go) = (dir.path().join("log"), dir.path().join("go"));
    let script = format!(
        "{}; [ -e {} ] || exit 3; {}",
        mark(&log),
        go.display(),
        exec_echo("web")
    );
    let gateway = Gateway::start(&scaled(&script)).await;
    done(&gateway, &["pause", "web"]).await;
    let address = gateway.addr();
    let held = tokio::spawn(async move { h1::fetch(address, &h1::get(WEB, "/")).await.expect("an answer") });
    wait_until("the start fails", SOON, || line_count(&log) > 0).await;
    wait_for("the failure is known", SOON, async || {
        let value = gateway.admin_json("/api/revisions").await;
        (value["revisions"][0]["last_failure"] != Value::Null).then_some(())
    })
    .await;
    wait_held(&gateway, 1).await;
    std::fs::write(&go, "").unwrap();
    done(&gateway, &["resume", "web"]).await;
    let answer = held.await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
}

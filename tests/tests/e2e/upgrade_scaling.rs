//! Scaling across an upgrade: instances, slots and waiting requests pass to the new process.

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use sluice_tests::backend::HttpBackend;
use sluice_tests::gateway::{Gateway, pretender};
use sluice_tests::h1::{self, H1};
use sluice_tests::load::Load;
use sluice_tests::process::{is_alive, line_count, require_python3, with_marker};
use sluice_tests::wait::{SOON, wait_for, wait_until};

use crate::cold_start::{exec_echo, mark, shell_service};
use crate::upgrade::{finished, upload};
use crate::{WEB, web_with};

const GONE: Duration = Duration::from_secs(20);

/// The service `web` with a process whose instances are found by a marker, and whose starts are counted.
struct Marked {
    dir: tempfile::TempDir,
    marker: String,
}

impl Marked {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let name = dir
            .path()
            .file_name()
            .expect("it has a name")
            .to_string_lossy()
            .into_owned();
        let marker = format!("marked-{}", name.trim_start_matches('.'));
        Self { dir, marker }
    }

    fn starts(&self) -> usize {
        line_count(&self.dir.path().join("starts"))
    }

    fn gate(&self) -> PathBuf {
        self.dir.path().join("go")
    }

    fn config(&self, before: &str, revision: &str) -> String {
        let mark = mark(&self.dir.path().join("starts"));
        shell_service(&format!("{mark}; {before} {}", exec_echo(&self.marker)), revision)
    }

    /// Started, but not listening before the gate is open.
    fn gated(&self, revision: &str) -> String {
        let wait = format!("while [ ! -e {} ]; do sleep 0.01; done;", self.gate().display());
        self.config(&wait, revision)
    }

    fn open(&self) {
        std::fs::write(self.gate(), "").expect("the gate is written");
    }

    fn pids(&self) -> Vec<u32> {
        let mut pids = with_marker(&self.marker);
        pids.sort_unstable();
        pids
    }
}

async fn in_flight(gateway: &Gateway, count: f64) {
    gateway
        .wait_metric("sluice_requests_in_flight", &[("revision", "web-a")], SOON, |n| {
            n == count
        })
        .await;
}

async fn queued(gateway: &Gateway, count: f64) {
    gateway
        .wait_metric("sluice_queue_depth", &[("revision", "web-a")], SOON, |n| {
            n == count
        })
        .await;
}

#[tokio::test]
async fn instances_stay_the_same_and_end_with_the_last_process() {
    let marked = Marked::new();
    let config = marked.config("", "autoscaling: {minScale: 2}");
    let mut gateway = Gateway::start(&config).await;
    gateway.wait_ready_instances("web-a", 2.0, SOON).await;
    let before = marked.pids();
    assert_eq!(before.len(), 2);
    let second = gateway.upgraded().await;
    assert_eq!(gateway.wait_exit(GONE).await.code(), Some(0));
    gateway.wait_ready_instances("web-a", 2.0, SOON).await;
    for _ in 0..4 {
        assert_eq!(gateway.get(WEB, "/").await.status, 200);
    }
    let third = gateway.upgraded().await;
    gateway.wait_gone(second, GONE).await;
    assert_eq!(gateway.get(WEB, "/").await.status, 200);
    assert_eq!((marked.pids(), marked.starts()), (before, 2));
    gateway.signal_to(third, Signal::SIGKILL);
    wait_until("nothing is left", GONE, || marked.pids().is_empty()).await;
}

#[tokio::test]
async fn an_edited_process_takes_over_without_loss_and_one_that_is_gone_drains() {
    let (old, new) = (Marked::new(), Marked::new());
    let gateway = Gateway::start(&old.config("", "autoscaling: {minScale: 1}")).await;
    gateway.wait_ready_instances("web-a", 1.0, SOON).await;
    let under_way = upload(&gateway, WEB).await;
    in_flight(&gateway, 1.0).await;
    let pids = old.pids();
    // Both processes may read the new config: one reloads, the other starts with it.
    gateway.write_config(&sluice_tests::gateway::with_defaults(
        &new.config("", "autoscaling: {minScale: 1}"),
    ));
    gateway.upgraded().await;
    wait_for("the new command answers", SOON, async || {
        let text = gateway.get(WEB, "/").await.text();
        text.contains(&new.marker).then_some(())
    })
    .await;
    assert_eq!(old.pids(), pids, "it has a request");
    let answer = finished(under_way).await;
    assert!(answer.text().contains(&old.marker), "{}", answer.text());
    wait_until("the old instance is gone", GONE, || old.pids().is_empty()).await;
    assert_eq!((old.starts(), new.starts()), (1, 1));
}

#[tokio::test]
async fn a_held_request_gets_the_instance_that_the_new_process_finds_ready() {
    let marked = Marked::new();
    let mut gateway = Gateway::start(&marked.gated("")).await;
    let addr = gateway.addr();
    let held = tokio::spawn(async move { h1::fetch(addr, &h1::get(WEB, "/")).await });
    wait_until("it is started", SOON, || marked.starts() == 1).await;
    gateway.upgraded().await;
    // The new process counts the waiters of the old one.
    queued(&gateway, 1.0).await;
    assert!(is_alive(gateway.pid()) && !held.is_finished());
    marked.open();
    assert_eq!(held.await.unwrap().unwrap().status, 200);
    assert_eq!(gateway.wait_exit(GONE).await.code(), Some(0));
    assert_eq!(gateway.get(WEB, "/").await.status, 200);
    assert_eq!(marked.starts(), 1);
}

#[tokio::test]
async fn a_request_in_the_old_process_starts_an_instance_of_the_new_one() {
    let marked = Marked::new();
    let gateway = Gateway::start(&marked.config("", "")).await;
    // The head is incomplete, so the old process waits for its rest.
    let mut late = H1::connect(gateway.addr()).await.unwrap();
    late.send(b"GET / HTTP/1.1\r\n").await.unwrap();
    let head = wait_for("the connection is there", SOON, async || {
        let open = gateway.metric("sluice_connections", &[]).await;
        (open >= 1.0).then_some(format!("Host: {WEB}\r\n\r\n"))
    })
    .await;
    gateway.upgraded().await;
    assert_eq!(marked.starts(), 0);
    let response = late.exchange(head.as_bytes()).await.unwrap();
    assert_eq!(response.status, 200, "{response:?}");
    assert_eq!(marked.starts(), 1);
    gateway.wait_ready_instances("web-a", 1.0, SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_at_a_time_stays_one_at_a_time() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&web_with(backend.addr(), "containerConcurrency: 1")).await;
    let loads = [
        Load::get(gateway.addr(), 6, WEB),
        Load::get_anew(gateway.addr(), 3, WEB),
        Load::get_h2(gateway.addr(), 3, WEB),
    ];
    for _ in 0..3 {
        for load in &loads {
            load.advance(50).await;
        }
        gateway.upgraded().await;
    }
    for load in loads {
        load.advance(50).await;
        load.stop().await.assert_clean();
    }
    assert_eq!(backend.peak_in_flight(), 1);
}

#[tokio::test]
async fn a_long_request_keeps_its_instance_and_no_other_past_its_window() {
    let (busy, idle) = (Marked::new(), Marked::new());
    let window = "autoscaling: {window: 6s}";
    let second = idle.config("", window).replace("web", "other");
    let second = second.strip_prefix("services:\n").unwrap();
    let gateway = Gateway::start(&format!("{}{second}", busy.config("", window))).await;
    let under_way = upload(&gateway, WEB).await;
    in_flight(&gateway, 1.0).await;
    assert_eq!(gateway.get("other.default.localhost", "/").await.status, 200);
    gateway.upgraded().await;
    in_flight(&gateway, 1.0).await;
    // The idle instance ends when its window is over; the window of the other instance is over then, too.
    wait_until("the idle one is at zero", Duration::from_secs(40), || {
        idle.pids().is_empty()
    })
    .await;
    assert_eq!(busy.pids().len(), 1);
    assert_eq!(finished(under_way).await.status, 200);
    wait_until("at zero", Duration::from_secs(40), || busy.pids().is_empty()).await;
    assert_eq!((busy.starts(), idle.starts()), (1, 1));
}

#[tokio::test]
async fn what_the_old_process_had_is_free_when_it_is_killed() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&web_with(backend.addr(), "containerConcurrency: 1")).await;
    let _under_way = upload(&gateway, WEB).await;
    wait_until("it runs", SOON, || backend.in_flight() == 1).await;
    gateway.upgraded().await;
    let addr = gateway.addr();
    let waits = tokio::spawn(async move { h1::fetch(addr, &h1::get(WEB, "/")).await });
    queued(&gateway, 1.0).await;
    assert_eq!(backend.in_flight(), 1);
    gateway.sigkill();
    assert_eq!(waits.await.unwrap().unwrap().status, 200);
    in_flight(&gateway, 0.0).await;
}

#[tokio::test]
async fn the_old_process_is_a_life_line_for_what_it_has() {
    let marked = Marked::new();
    let mut gateway = Gateway::start(&marked.config("", "autoscaling: {minScale: 1}")).await;
    gateway.wait_ready_instances("web-a", 1.0, SOON).await;
    let under_way = upload(&gateway, WEB).await;
    in_flight(&gateway, 1.0).await;
    let new = gateway.upgraded().await;
    gateway.signal_to(new, Signal::SIGKILL);
    gateway.wait_gone(new, GONE).await;
    let answer = finished(under_way).await;
    assert_eq!(answer.status, 200);
    assert!(answer.text().contains(&marked.marker));
    assert_eq!(gateway.wait_exit(GONE).await.code(), Some(0));
    wait_until("nothing is left", GONE, || marked.pids().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_takes_everything_and_dies_costs_nothing() {
    require_python3();
    let marked = Marked::new();
    let backend = HttpBackend::start("b").await;
    let config = format!(
        "{}  - name: fixed\n    revisions:\n      - name: fixed-a\n        endpoints: [\"{}\"]\n        containerConcurrency: 2\n",
        marked.config("", "autoscaling: {minScale: 1}"),
        backend.addr()
    );
    let gateway = Gateway::builder(&config).own_binary().start().await;
    gateway.wait_ready_instances("web-a", 1.0, SOON).await;
    let pids = marked.pids();
    // A new process that takes over everything, never serves, and exits.
    gateway.replace_binary(&pretender("raise SystemExit(4)"));
    let loads = [
        Load::get(gateway.addr(), 4, WEB),
        Load::get_anew(gateway.addr(), 4, "fixed.default.localhost"),
    ];
    for _ in 0..2 {
        for load in &loads {
            load.advance(20).await;
        }
        let said = gateway.upgrade(&[]).await;
        assert_eq!(said.code, Some(1), "{said:?}");
        assert!(said.stderr.contains("exit status: 4"), "{said:?}");
    }
    for load in loads {
        load.advance(20).await;
        load.stop().await.assert_clean();
    }
    assert!(backend.peak_in_flight() <= 2);
    assert_eq!((marked.pids(), marked.starts()), (pids.clone(), 1));
    // The old process scales as before: an instance that ends is replaced.
    gateway.signal_to(pids[0], Signal::SIGKILL);
    wait_until("another one is started", SOON, || marked.starts() == 2).await;
    gateway.wait_ready_instances("web-a", 1.0, SOON).await;
    assert_eq!(gateway.get(WEB, "/").await.status, 200);
    assert_eq!(gateway.serving_pid().await, gateway.pid());
}

fn webhook(platform: &HttpBackend, address: std::net::SocketAddr) -> String {
    format!(
        "services:\n  - name: web\n    revisions:\n      - name: web-a\n        endpoints: [\"{address}\"]\n        activation: {{webhook: {{url: \"http://{}/scale\"}}}}\n        autoscaling: {{window: 6s}}\n",
        platform.addr()
    )
}

fn replicas(platform: &HttpBackend) -> Vec<u64> {
    let seen = platform.seen().into_iter();
    seen.map(|s| {
        let body: serde_json::Value = serde_json::from_slice(&s.body).expect("JSON");
        body["replicas"].as_u64().expect("a number")
    })
    .collect()
}

#[tokio::test]
async fn a_platform_is_told_everything_once() {
    let platform = HttpBackend::start("platform").await;
    let backend = HttpBackend::start("elsewhere").await;
    let mut gateway = Gateway::start(&webhook(&platform, backend.addr())).await;
    // The call is in flight during the upgrade: its response comes to the old process.
    platform.hold();
    assert_eq!(gateway.get(WEB, "/").await.status, 200);
    wait_until("the platform is asked", SOON, || platform.in_flight() == 1).await;
    let new = gateway.upgraded().await;
    assert_eq!(gateway.get(WEB, "/").await.status, 200);
    platform.release();
    assert_eq!(gateway.wait_exit(GONE).await.code(), Some(0));
    gateway.upgraded().await;
    gateway.wait_gone(new, GONE).await;
    wait_until("the platform is told of zero", Duration::from_secs(40), || {
        platform.count() > 1
    })
    .await;
    assert_eq!(replicas(&platform), [1, 0]);
    let keys: Vec<_> = platform
        .seen()
        .iter()
        .map(|s| s.header("idempotency-key").unwrap_or_default().to_owned())
        .collect();
    assert_ne!(keys[0], keys[1]);
}

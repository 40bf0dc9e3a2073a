//! Bounds on instances and queues, and scaling from zero to many and back.

use std::time::Duration;

use sluice_tests::backend::HttpBackend;
use sluice_tests::cli::sluice_bin;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1};
use sluice_tests::load::Load;
use sluice_tests::process::{line_count, with_marker};
use sluice_tests::wait::{SOON, wait_until};

use crate::cold_start::{exec_echo, mark, shell_service};
use crate::{WEB, web_with};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_never_has_more_than_its_concurrency() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&web_with(backend.addr(), "containerConcurrency: 3")).await;
    let load = Load::get(gateway.addr(), 32, WEB);
    load.advance(1_000).await;
    load.stop().await.assert_clean();
    backend.hold();
    let addr = gateway.addr();
    let held: Vec<_> = (0..10)
        .map(|_| tokio::spawn(async move { h1::fetch(addr, &h1::get(WEB, "/")).await }))
        .collect();
    gateway
        .wait_metric("sluice_queue_depth", &[("revision", "web-a")], SOON, |n| n == 7.0)
        .await;
    wait_until("three arrive", SOON, || backend.in_flight() == 3).await;
    backend.release();
    for request in held {
        assert_eq!(request.await.unwrap().unwrap().status, 200);
    }
    assert_eq!(backend.peak_in_flight(), 3);
}

#[tokio::test]
async fn the_queue_is_bounded_in_count_and_age() {
    let backend = HttpBackend::start("a").await;
    let more = "containerConcurrency: 1\nqueue: {depth: 1, timeout: 1s}";
    let gateway = Gateway::start(&web_with(backend.addr(), more)).await;
    backend.hold();
    let mut running = H1::connect(gateway.addr()).await.unwrap();
    running.send(&h1::get(WEB, "/")).await.unwrap();
    wait_until("one runs", SOON, || backend.in_flight() == 1).await;
    let mut waiting = H1::connect(gateway.addr()).await.unwrap();
    waiting.send(&h1::get(WEB, "/")).await.unwrap();
    gateway
        .wait_metric("sluice_queue_depth", &[("revision", "web-a")], SOON, |n| n == 1.0)
        .await;
    let full = gateway.get(WEB, "/").await;
    assert_eq!((full.status, full.reason()), (503, Some("queue_full")));
    assert!(full.header("retry-after").is_some());
    let late = waiting.response_to(b"GET ").await.unwrap();
    assert_eq!((late.status, late.reason()), (503, Some("queue_timeout")));
    backend.release();
    assert_eq!(running.response_to(b"GET ").await.unwrap().status, 200);
    for reason in ["queue_full", "queue_timeout"] {
        let count = gateway
            .metric("sluice_rejections_total", &[("reason", reason)])
            .await;
        assert_eq!(count, 1.0, "{reason}");
    }
}

#[tokio::test]
async fn the_queue_is_bounded_in_bytes() {
    let backend = HttpBackend::start("a").await;
    let more = "containerConcurrency: 1\nqueue: {bytes: 64KiB}";
    let gateway = Gateway::start(&web_with(backend.addr(), more)).await;
    backend.hold();
    let padding = "x".repeat(40 * 1024);
    let large = h1::request("GET", WEB, "/", &[("X-Padding", &padding)], b"");
    let mut clients = Vec::new();
    for queued in [0.0, 1.0] {
        let mut client = H1::connect(gateway.addr()).await.unwrap();
        client.send(&large).await.unwrap();
        clients.push(client);
        wait_until("the first one runs", SOON, || backend.in_flight() == 1).await;
        gateway
            .wait_metric("sluice_queue_depth", &[("revision", "web-a")], SOON, |n| {
                n == queued
            })
            .await;
    }
    let full = gateway.send(&large).await;
    assert_eq!((full.status, full.reason()), (503, Some("queue_full")));
    backend.release();
    for client in &mut clients {
        assert_eq!(client.response_to(b"GET ").await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn a_body_that_waited_with_its_request_arrives_whole() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&web_with(backend.addr(), "containerConcurrency: 1")).await;
    backend.hold();
    let mut running = H1::connect(gateway.addr()).await.unwrap();
    running.send(&h1::get(WEB, "/")).await.unwrap();
    wait_until("one runs", SOON, || backend.in_flight() == 1).await;
    let body: Vec<u8> = (0..500_000u32).flat_map(u32::to_le_bytes).collect();
    let upload = h1::request("POST", WEB, "/", &[], &body);
    let addr = gateway.addr();
    let waiting = tokio::spawn(async move { h1::fetch(addr, &upload).await });
    gateway
        .wait_metric("sluice_queue_depth", &[("revision", "web-a")], SOON, |n| n == 1.0)
        .await;
    backend.release();
    assert_eq!(waiting.await.unwrap().unwrap().status, 200);
    assert_eq!(backend.last().body, body);
}

#[tokio::test]
async fn a_freed_slot_goes_to_the_oldest_waiter() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&web_with(backend.addr(), "containerConcurrency: 1")).await;
    backend.hold();
    let mut clients = Vec::new();
    for n in 0..6 {
        let mut client = H1::connect(gateway.addr()).await.unwrap();
        client.send(&h1::get(WEB, &format!("/{n}"))).await.unwrap();
        clients.push(client);
        let queued = f64::from(n);
        gateway
            .wait_metric("sluice_queue_depth", &[("revision", "web-a")], SOON, |d| {
                d == queued
            })
            .await;
        wait_until("the first one runs", SOON, || backend.in_flight() == 1).await;
    }
    backend.release();
    for client in &mut clients {
        assert_eq!(client.response_to(b"GET ").await.unwrap().status, 200);
    }
    let order: Vec<_> = backend.seen().into_iter().map(|seen| seen.target).collect();
    assert_eq!(order, ["/0", "/1", "/2", "/3", "/4", "/5"]);
}

#[tokio::test]
async fn waiters_of_a_removed_revision_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    let script = format!(
        "while [ ! -e {}/never ]; do sleep 0.05; done",
        dir.path().display()
    );
    let gateway = Gateway::start(&shell_service(&script, "")).await;
    let mut waiting = H1::connect(gateway.addr()).await.unwrap();
    waiting.send(&h1::get(WEB, "/")).await.unwrap();
    gateway
        .wait_metric("sluice_queue_depth", &[], SOON, |n| n == 1.0)
        .await;
    gateway
        .reload("services:\n  - {name: other, endpoints: [\"127.0.0.1:9\"]}\n")
        .await;
    let response = waiting.response_to(b"GET ").await.unwrap();
    assert!(
        response.status >= 400 && response.reason().is_some(),
        "{response:?}"
    );
    assert_eq!(
        gateway
            .metric("sluice_queue_depth", &[("revision", "web-a")])
            .await,
        0.0
    );
}

#[tokio::test]
async fn load_above_the_target_starts_more_and_the_window_ends_them() {
    let dir = tempfile::tempdir().unwrap();
    let starts = dir.path().join("starts");
    let marker = format!("sluice-test-{:016x}", fastrand::u64(..));
    let script = format!(
        "{}; exec {} echo --port $(PORT) --delay 100ms --message {marker}",
        mark(&starts),
        sluice_bin().display()
    );
    let more = "containerConcurrency: 1\nautoscaling: {maxScale: 3, window: 6s}";
    let gateway = Gateway::start(&shell_service(&script, more)).await;
    let load = Load::get(gateway.addr(), 6, WEB);
    gateway
        .wait_ready_instances("web-a", 3.0, Duration::from_secs(30))
        .await;
    load.advance(60).await;
    let report = load.stop().await;
    report.assert_clean();
    assert_eq!(line_count(&starts), 3, "never more than maxScale");
    // The window, and five seconds more; the rest is for a busy machine.
    gateway
        .wait_ready_instances("web-a", 0.0, Duration::from_secs(20))
        .await;
    wait_until("the processes are gone", SOON, || with_marker(&marker).is_empty()).await;
    let again = gateway.get(WEB, "/").await;
    assert_eq!(again.status, 200, "{}", again.text());
}

#[tokio::test]
async fn a_minimum_is_started_and_kept() {
    let more = "autoscaling: {minScale: 2, window: 6s}";
    let gateway = Gateway::start(&shell_service(&exec_echo("hi"), more)).await;
    gateway.wait_ready_instances("web-a", 2.0, SOON).await;
}

#[tokio::test]
async fn an_open_request_keeps_its_instance() {
    let script = format!(
        "exec {} echo --port $(PORT) --delay 14s --message slow",
        sluice_bin().display()
    );
    let more = "autoscaling: {window: 6s}";
    let gateway = Gateway::start(&shell_service(&script, more)).await;
    let response = gateway.get(WEB, "/").await;
    assert_eq!(response.status, 200, "{:?}", response.reason());
    let starts = gateway.metric("sluice_activations_total", &[]).await;
    assert_eq!(starts, 1.0);
    gateway
        .wait_ready_instances("web-a", 0.0, Duration::from_secs(20))
        .await;
}

//! Delivery of traces: a collector that is slow, busy or gone is in no request's way; what is lost is counted; a drain delivers the rest.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sluice_tests::backend::HttpBackend;
use sluice_tests::collector::Collector;
use sluice_tests::gateway::Gateway;
use sluice_tests::load::Load;
use sluice_tests::process::resident_kib;
use sluice_tests::raw_backend::RawBackend;
use sluice_tests::tls::{Ca, acceptor};
use sluice_tests::wait::{SOON, wait_for, wait_until};

use crate::traces::traced;
use crate::{WEB, web};

const DROPPED: &str = "sluice_traces_dropped_total";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_hangs_holds_nobody_up_and_costs_a_bounded_queue() {
    let (collector, backend) = (Collector::start().await, HttpBackend::start("a").await);
    collector.hold();
    let gateway = traced(&web(backend.addr()), &collector)
        .env("OTEL_BSP_MAX_QUEUE_SIZE", "100")
        // One POST hangs for the whole test: a second one would have the same spans again.
        .env("OTEL_BSP_EXPORT_TIMEOUT", "600000")
        .env("OTEL_EXPORTER_OTLP_TIMEOUT", "600000")
        .start()
        .await;
    let load = Load::get(gateway.addr(), 4, WEB);
    load.advance(1_000).await;
    // The queue is full, and stays full.
    let (before, full) = (resident_kib(gateway.pid()), gateway.metric(DROPPED, &[]).await);
    assert!(
        full > 800.0,
        "{full} of a thousand traces of two spans are not in a queue of a hundred spans"
    );
    load.advance(20_000).await;
    let report = load.stop().await;
    report.assert_clean();
    let after = resident_kib(gateway.pid());
    assert!(after < before + 4096, "{before} KiB before, {after} KiB after");
    let dropped = gateway.metric(DROPPED, &[]).await;
    assert!(
        dropped >= report.ok as f64 - 150.0,
        "{dropped} of {} are counted",
        report.ok
    );

    // Delivered or counted: nothing else.
    collector.release();
    wait_for("every trace is delivered or counted", SOON, async || {
        let delivered = collector.traces().len() as f64;
        let counted = gateway.metric(DROPPED, &[]).await;
        (delivered + counted == report.ok as f64).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_collector_that_is_not_there_is_told_once_and_each_loss_counted() {
    let backend = HttpBackend::start("a").await;
    let gone = {
        let collector = RawBackend::silent().await;
        format!("http://{}", collector.addr())
    };
    let gateway = Gateway::builder(&web(backend.addr()))
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &gone)
        .env("OTEL_BSP_SCHEDULE_DELAY", "10")
        .env("OTEL_BSP_EXPORT_TIMEOUT", "50")
        .start()
        .await;
    for lost in 1..=3 {
        assert_eq!(gateway.get(WEB, "/").await.status, 200);
        gateway
            .wait_metric(DROPPED, &[], SOON, move |n| n == f64::from(lost))
            .await;
    }
    let told = |text: &str| gateway.stderr().iter().filter(|line| line.contains(text)).count();
    assert_eq!((told("does not take them"), told("cannot connect")), (1, 1));
}

#[tokio::test]
async fn a_busy_collector_is_tried_again_and_nothing_is_lost() {
    let (collector, backend) = (Collector::start().await, HttpBackend::start("a").await);
    collector.answers(503);
    let gateway = traced(&web(backend.addr()), &collector).start().await;
    assert_eq!(gateway.get(WEB, "/").await.status, 200);
    wait_until("a first POST", SOON, || !collector.posts().is_empty()).await;
    gateway.wait_said("503 Service Unavailable").await;
    collector.answers(200);
    wait_until("a second POST", SOON, || collector.posts().len() == 2).await;
    let [first, second] = &collector.posts()[..] else {
        panic!("two POSTs")
    };
    assert_eq!(first.body, second.body);
    gateway.wait_said("takes them again").await;
    assert_eq!(gateway.metric(DROPPED, &[]).await, 0.0);

    // What it refuses for good is lost.
    collector.answers(400);
    assert_eq!(gateway.get(WEB, "/").await.status, 200);
    gateway.wait_metric(DROPPED, &[], SOON, |n| n == 1.0).await;
    assert_eq!(collector.posts().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_delivers_what_is_left() {
    let (collector, backend) = (Collector::start().await, HttpBackend::start("a").await);
    let mut gateway = traced(&web(backend.addr()), &collector)
        .env("OTEL_BSP_SCHEDULE_DELAY", "3600000")
        .start()
        .await;
    for _ in 0..5 {
        assert_eq!(gateway.get(WEB, "/").await.status, 200);
    }
    backend.hold();
    let addr = gateway.addr();
    let last =
        tokio::spawn(
            async move { sluice_tests::h1::fetch(addr, &sluice_tests::h1::get(WEB, "/last")).await },
        );
    wait_until("it is in flight", SOON, || backend.in_flight() == 1).await;
    assert!(collector.posts().is_empty(), "nothing is due");
    gateway.sigterm();
    gateway.wait_said("draining").await;
    backend.release();
    assert_eq!(last.await.unwrap().unwrap().status, 200);
    assert_eq!(gateway.wait_exit(SOON).await.code(), Some(0));
    assert_eq!(collector.traces().len(), 6, "the last one, too");
}

#[tokio::test]
async fn an_end_does_not_wait_for_a_collector_that_hangs() {
    let (collector, backend) = (Collector::start().await, HttpBackend::start("a").await);
    collector.hold();
    let mut gateway = traced(&web(backend.addr()), &collector).start().await;
    assert_eq!(gateway.get(WEB, "/").await.status, 200);
    wait_until("a POST", SOON, || !collector.posts().is_empty()).await;
    let start = Instant::now();
    gateway.sigterm();
    assert_eq!(gateway.wait_exit(SOON).await.code(), Some(0));
    // Five seconds are the bound; the rest is the drain itself.
    assert!(start.elapsed() < Duration::from_secs(9), "{:?}", start.elapsed());
    let said = gateway.stderr().join("\n");
    assert!(said.contains("traces: 1 were not delivered"), "{said}");
}

#[tokio::test]
async fn both_processes_of_an_upgrade_deliver_theirs() {
    let (collector, backend) = (Collector::start().await, HttpBackend::start("a").await);
    let gateway = traced(&web(backend.addr()), &collector)
        .env("OTEL_BSP_SCHEDULE_DELAY", "3600000")
        .start()
        .await;
    assert_eq!(gateway.get(WEB, "/old").await.status, 200);
    let new = gateway.upgraded().await;
    gateway.wait_gone(gateway.pid(), SOON).await;
    collector.trace("/old").await;
    assert_eq!(gateway.get(WEB, "/new").await.status, 200);
    gateway.signal_to(new, Signal::SIGTERM);
    gateway.wait_gone(new, SOON).await;
    collector.trace("/new").await;
}

#[tokio::test]
async fn a_collector_over_tls_is_verified() {
    let ca = Ca::new();
    let collector = Collector::start_tls(acceptor(&ca.issue(&["localhost"]), &["http/1.1"])).await;
    let backend = HttpBackend::start("a").await;
    let builder = traced(&web(backend.addr()), &collector).file("ca.pem", ca.pem());
    let file = builder.dir().join("ca.pem").display().to_string();
    let gateway = builder.env("OTEL_EXPORTER_OTLP_CERTIFICATE", &file).start().await;
    assert_eq!(gateway.get(WEB, "/trusted").await.status, 200);
    collector.trace("/trusted").await;

    let other = Ca::new();
    let builder = traced(&web(backend.addr()), &collector).file("ca.pem", other.pem());
    let file = builder.dir().join("ca.pem").display().to_string();
    let gateway = builder.env("OTEL_EXPORTER_OTLP_CERTIFICATE", &file).start().await;
    assert_eq!(gateway.get(WEB, "/not-trusted").await.status, 200);
    gateway.wait_said("TLS failed").await;
    assert_eq!(collector.traces().len(), 1);
}

#[tokio::test]
async fn mistakes_in_variables_are_told_and_stop_nothing() {
    let (collector, backend) = (Collector::start().await, HttpBackend::start("a").await);
    let gateway = traced(&web(backend.addr()), &collector)
        .env("OTEL_TRACES_SAMPLER", "alway_on")
        .env("OTEL_BSP_MAX_QUEUE_SIZE", "lots")
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        .start()
        .await;
    for text in [
        "did you mean 'always_on'?",
        "OTEL_BSP_MAX_QUEUE_SIZE: 'lots'",
        "http/protobuf is spoken",
    ] {
        gateway.wait_said(text).await;
    }
    assert_eq!(gateway.get(WEB, "/").await.status, 200);
    wait_until("traces", SOON, || !collector.traces().is_empty()).await;

    let gateway = Gateway::builder(&web(backend.addr()))
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317")
        .start()
        .await;
    gateway
        .wait_said("OTEL_EXPORTER_OTLP_ENDPOINT: write it as http://HOST:PORT")
        .await;
    assert_eq!(gateway.get(WEB, "/").await.status, 200);
}

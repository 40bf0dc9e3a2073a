//! `noWake`: monitors start nothing, and keep nothing up.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1};
use sluice_tests::process::line_count;
use sluice_tests::wait::{SOON, within};

use crate::WEB;
use crate::cold_start::{exec_echo, mark, shell_service};
use crate::waiting_page::with_keys;

const RULES: &str = "noWake:\n  - {userAgents: [\"kube-probe/*\", \"*bot*\"]}\n  - {paths: [\"/favicon.ico\"], methods: [HEAD]}\n  - {clients: [127.0.0.7, 203.0.113.0/24]}";

fn by(agent: &str) -> Vec<u8> {
    h1::request("GET", WEB, "/", &[("User-Agent", agent)], b"")
}

#[tokio::test]
async fn what_must_not_wake_starts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let starts = dir.path().join("starts");
    let config = shell_service(&format!("{}; {}", mark(&starts), exec_echo("hi")), "");
    let config = format!("trustedProxies: [127.0.0.8]\n{}", with_keys(&config, RULES));
    let gateway = Gateway::start(&config).await;
    let from = async |source: [u8; 4], request: Vec<u8>| {
        let mut connection = H1::connect_from(IpAddr::from(source), gateway.addr())
            .await
            .unwrap();
        connection.exchange(&request).await.unwrap()
    };
    let behind = |client: &str| h1::request("GET", WEB, "/", &[("X-Forwarded-For", client)], b"");
    let own = [127, 0, 0, 1];
    let dormant = [
        (own, by("kube-probe/1.30")),
        (own, by("Mozilla/5.0 (compatible; GoogleBOT/2.1)")),
        (own, h1::request("HEAD", WEB, "/favicon.ico?v=2", &[], b"")),
        ([127, 0, 0, 7], h1::get(WEB, "/")),
        ([127, 0, 0, 8], behind("198.51.100.1, 203.0.113.9")),
    ];
    let count = dormant.len();
    for (source, request) in dormant {
        let response = from(source, request.clone()).await;
        let told = (response.status, response.reason());
        assert_eq!(
            told,
            (503, Some("dormant")),
            "{:?}",
            String::from_utf8_lossy(&request)
        );
        let after: u64 = response
            .header("retry-after")
            .expect("Retry-After")
            .parse()
            .unwrap();
        assert!(after >= 1);
    }
    let labels = [("service", "web"), ("reason", "dormant")];
    // Counted after the response was sent.
    gateway
        .wait_metric("sluice_rejections_total", &labels, SOON, |n| n == count as f64)
        .await;
    let logged = gateway
        .wait_access_log("a monitor", |e| e["reason"] == "dormant")
        .await;
    assert_eq!(
        (&logged["status"], &logged["revision"]),
        (&503.into(), &"web-a".into()),
        "{logged}"
    );
    let gone = [("revision", "web-a"), ("state", "desired")];
    assert_eq!(gateway.metric("sluice_revision_replicas", &gone).await, 0.0);
    assert_eq!(line_count(&starts), 0, "nothing was started");
    // One key of an entry is not enough, and nobody but a trusted proxy names another client.
    let first = h1::request(
        "GET",
        WEB,
        "/favicon.ico",
        &[("X-Forwarded-For", "203.0.113.9")],
        b"",
    );
    let response = from(own, first).await;
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(line_count(&starts), 1);
    assert_eq!(
        from(own, by("kube-probe/1.30")).await.status,
        200,
        "when warm it is served"
    );
}

/// A monitor that never stops asking, and asks for more than one instance can do.
#[tokio::test]
async fn what_must_not_wake_keeps_nothing_up_and_scales_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let starts = dir.path().join("starts");
    let script = format!("{}; {} --delay 100ms", mark(&starts), exec_echo("hi"));
    let config = shell_service(&script, "autoscaling: {window: 6s, target: 1, maxScale: 5}");
    let gateway = Arc::new(Gateway::start(&with_keys(&config, RULES)).await);
    assert_eq!(gateway.get(WEB, "/").await.status, 200);
    let (served, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let monitors: Vec<_> = (0..8)
        .map(|_| {
            let (gateway, served, stop) = (Arc::clone(&gateway), Arc::clone(&served), Arc::clone(&stop));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let response = h1::fetch(gateway.addr(), &by("kube-probe/1.30")).await.unwrap();
                    match (response.status, response.reason()) {
                        (200, None) => _ = served.fetch_add(1, Ordering::Relaxed),
                        (503, Some("dormant")) => return,
                        other => panic!("{other:?}: {}", response.text()),
                    }
                }
            })
        })
        .collect();
    gateway
        .wait_ready_instances("web-a", 0.0, Duration::from_secs(40))
        .await;
    for monitor in monitors {
        within("the monitor finds it dormant", SOON, monitor)
            .await
            .unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    assert!(served.load(Ordering::Relaxed) > 100, "it was asked all the time");
    assert_eq!(line_count(&starts), 1, "eight at once would be eight instances");
}

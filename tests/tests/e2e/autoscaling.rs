//! Autoscaling with real processes: no errors from zero to many and back, panic mode, a killed instance.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;
use sluice_tests::cli::{sluice_bin, sluice_in};
use sluice_tests::gateway::Gateway;
use sluice_tests::h1;
use sluice_tests::h2_client::{self, H2};
use sluice_tests::load::Load;
use sluice_tests::process::require_python3;
use sluice_tests::wait::{SOON, quiet, wait_for, wait_until, within};
use tokio::task::JoinHandle;

use crate::WEB;
use crate::cold_start::shell_service;

/// The limit from the last request to zero: the window, five seconds more, and a margin for a busy machine.
const TO_ZERO: Duration = Duration::from_secs(20);

fn echo(delay: &str, more: &str) -> String {
    let script = format!(
        "exec {} echo --port $(PORT) --delay {delay}",
        sluice_bin().display()
    );
    shell_service(&script, more)
}

#[tokio::test]
async fn from_zero_to_many_and_back_and_again_without_one_error() {
    let more = "containerConcurrency: 1\nautoscaling: {maxScale: 3, window: 6s}";
    let gateway = Gateway::start(&echo("50ms", more)).await;
    for _ in 0..2 {
        assert_eq!(
            gateway
                .metric("sluice_revision_replicas", &[("state", "ready")])
                .await,
            0.0
        );
        let ramp = Load::get(gateway.addr(), 6, WEB);
        gateway.wait_ready_instances("web-a", 3.0, SOON).await;
        ramp.advance(30).await;
        ramp.stop().await.assert_clean();
        // A request now and then during the scale-down.
        for _ in 0..3 {
            assert_eq!(gateway.get(WEB, "/").await.status, 200);
            quiet(Duration::from_millis(300)).await;
        }
        gateway.wait_ready_instances("web-a", 0.0, TO_ZERO).await;
    }
    let again = gateway.get(WEB, "/").await;
    assert_eq!(again.status, 200, "{}", again.text());
    let failed = gateway
        .access_log()
        .into_iter()
        .find(|entry| entry["status"] != 200);
    assert_eq!(failed, None);
    let labels = [("result", "ready")];
    assert!(gateway.metric("sluice_activations_total", &labels).await >= 3.0);
}

/// A backend that responds 500 to concurrent requests, and to every request after the first concurrent one.
const LONER: &str = r#"
import http.server, os, sys, threading, time
alone, shared = threading.Lock(), []
class Loner(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def do_GET(self):
        if alone.acquire(blocking=False):
            time.sleep(0.002)
            alone.release()
        else:
            shared.append(self.path)
        text = f"{os.getpid()}".encode()
        self.send_response(500 if shared else 200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Loner).serve_forever()
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_at_zero_never_meet_in_an_instance() {
    require_python3();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("loner.py");
    std::fs::write(&file, LONER).unwrap();
    let script = format!("exec python3 {} $(PORT)", file.display());
    let more = "containerConcurrency: 1\nautoscaling: {maxScale: 4}";
    let gateway = Gateway::start(&shell_service(&script, more)).await;
    // Streams rather than connections: other tests need descriptors, too.
    let mut burst: Vec<JoinHandle<_>> = Vec::new();
    for _ in 0..20 {
        let client = std::sync::Arc::new(H2::connect(gateway.addr()).await);
        for _ in 0..50 {
            let client = std::sync::Arc::clone(&client);
            let get = h2_client::get("http", WEB, "/");
            burst.push(tokio::spawn(
                async move { client.exchange(get, Bytes::new()).await },
            ));
        }
    }
    let mut instances = BTreeSet::new();
    for request in burst {
        let response = request.await.unwrap().unwrap();
        assert_eq!(
            response.status,
            200,
            "two in flight in instance {}",
            response.text()
        );
        instances.insert(response.text());
    }
    assert!((2..=4).contains(&instances.len()), "{instances:?}");
    assert_eq!(gateway.metric("sluice_rejections_total", &[]).await, 0.0);
}

async fn decision(gateway: &Gateway) -> String {
    let all = gateway.admin_json("/api/revisions").await;
    let decision = &all["revisions"][0]["last_decision"];
    decision.as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_panic_is_entered_and_left_and_says_why() {
    let more = "autoscaling: {target: 10, maxScale: 4, window: 6s}";
    let gateway = Gateway::start(&echo("50ms", more)).await;
    assert_eq!(gateway.get(WEB, "/").await.status, 200);
    let flood = Load::get(gateway.addr(), 40, WEB);
    let admin = format!("http://{}", gateway.admin());
    let panic = wait_for("a panic is shown", SOON, async || {
        let shown = decision(&gateway).await;
        shown.contains("panic, ").then_some(shown)
    })
    .await;
    // For example "1 → 4: panic, 40 in flight / target 7, max-scale".
    let (change, reason) = panic.split_once(": ").expect("a change and its reason");
    let (from, to) = change.split_once(" → ").expect("from and to");
    let number = |text: &str| text.parse::<u32>().expect("a number");
    assert!(number(from) < number(to) && number(to) <= 4, "{panic}");
    assert!(reason.contains(" in flight / target 7"), "{panic}");
    gateway.wait_ready_instances("web-a", 4.0, SOON).await;
    // The last decision may be a later one of the same panic.
    wait_for("`sluice status` shows it", SOON, async || {
        let told = sluice_in(gateway.dir(), &["status", "--admin", &admin]).await;
        (told.code == Some(0) && told.stdout.contains("panic, ")).then_some(())
    })
    .await;
    flood.stop().await.assert_clean();
    let calm = Load::get(gateway.addr(), 1, WEB);
    let stable = wait_for("the panic is left", TO_ZERO, async || {
        let shown = decision(&gateway).await;
        (!shown.contains("panic")).then_some(shown)
    })
    .await;
    assert!(stable.contains("stable, "), "{stable}");
    gateway.wait_ready_instances("web-a", 1.0, SOON).await;
    calm.stop().await.assert_clean();
}

/// Two instances that each have one request, and six more that wait; then one of them is killed.
/// Returns the address of the killed one, and the log entries of the eight requests.
async fn killed_while_serving(method: &'static str) -> (Value, Vec<Value>) {
    let more = "containerConcurrency: 1\nautoscaling: {minScale: 2, maxScale: 2}";
    let gateway = Gateway::start(&echo("400ms", more)).await;
    gateway.wait_ready_instances("web-a", 2.0, SOON).await;
    let first = gateway.get(WEB, "/first").await.text();
    let pid = first
        .split("instance: pid ")
        .nth(1)
        .and_then(|rest| rest.lines().next());
    let pid = Pid::from_raw(pid.expect("echo tells its process").parse().expect("a number"));
    let first = gateway.wait_access_log("/first", |e| e["path"] == "/first").await;
    let addr = gateway.addr();
    let requests: Vec<_> = (0..8)
        .map(|_| tokio::spawn(async move { h1::fetch(addr, &h1::request(method, WEB, "/", &[], b"")).await }))
        .collect();
    let web = [("revision", "web-a")];
    for (metric, count) in [("sluice_requests_in_flight", 2.0), ("sluice_queue_depth", 6.0)] {
        gateway.wait_metric(metric, &web, SOON, |n| n == count).await;
    }
    nix::sys::signal::kill(pid, Signal::SIGKILL).expect("it runs");
    for request in requests {
        let response = within("an answer", SOON, request).await;
        response.expect("no panic").expect("every request is answered");
    }
    let log = || {
        let log = gateway.access_log().into_iter();
        log.filter(|e| e["path"] == "/").collect::<Vec<_>>()
    };
    wait_until("all are logged", SOON, || log().len() == 8).await;
    (first["endpoint"].clone(), log())
}

#[tokio::test]
async fn a_killed_instance_loses_only_what_had_been_sent_to_it() {
    let (killed, log) = killed_while_serving("POST").await;
    let lost: Vec<_> = log.iter().filter(|entry| entry["status"] != 200).collect();
    // The request that the killed instance served, and at most one that its accept queue still took.
    assert!((1..=2).contains(&lost.len()), "{lost:?}");
    for entry in lost {
        assert_eq!(entry["reason"], "upstream_error");
        assert_eq!(
            (&entry["endpoint"], &entry["attempts"]),
            (&killed, &1.into()),
            "{entry}"
        );
    }
    // Idempotent requests are retried.
    let (_, log) = killed_while_serving("GET").await;
    assert!(log.iter().all(|entry| entry["status"] == 200), "{log:?}");
}

#[tokio::test]
async fn a_command_that_cannot_start_answers_well_before_its_start_timeout() {
    for script in ["exit 3", "exec no-such-command-at-all", "sleep 0.2; kill -9 $$"] {
        let gateway = Gateway::start(&shell_service(script, "startTimeout: 60s")).await;
        let addr = gateway.addr();
        let waiting: Vec<_> = (0..20)
            .map(|_| tokio::spawn(async move { h1::fetch(addr, &h1::get(WEB, "/")).await }))
            .collect();
        for waiter in waiting {
            let response = within("the cause is told", Duration::from_secs(5), waiter).await;
            let response = response.unwrap().unwrap();
            assert_eq!(
                (response.status, response.reason()),
                (503, Some("activation_failed")),
                "{script}"
            );
        }
    }
}

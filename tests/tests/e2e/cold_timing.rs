//! Phases of a held request: in the access log, in metrics and, when asked for, in `Server-Timing`.

use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::Value;
use sluice_tests::backend::{HttpBackend, full, ok};
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1};
use sluice_tests::h2_client::{self, H2};
use sluice_tests::raw_backend::{RawBackend, read_head};
use sluice_tests::wait::{SOON, quiet, wait_until};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::cold_start::{exec_echo, shell_service};
use crate::webhook::{reserve, service};
use crate::{WEB, web, web_with};

const TIMING: (&str, &str) = ("X-Sluice-Timing", "1");

const COLD: [&str; 5] = ["queued", "starting", "booting", "admitting", "first_byte"];

fn asking(path: &str) -> Vec<u8> {
    h1::request("GET", WEB, path, &[TIMING], b"")
}

fn millis(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Names and lengths of the phases in a log entry, which add up to its first byte.
fn phases(entry: &Value) -> Vec<(String, f64)> {
    let phases = entry["phases_ms"].as_object();
    let phases = phases.unwrap_or_else(|| panic!("no phases in {entry}")).iter();
    let phases: Vec<(String, f64)> = phases.map(|(name, ms)| (name.clone(), millis(ms))).collect();
    let sum: f64 = phases.iter().map(|(_, ms)| ms).sum();
    let first_byte = millis(&entry["first_byte_ms"]);
    assert!(
        (sum - first_byte).abs() < 1e-6,
        "{sum} is not first_byte_ms: {entry}"
    );
    assert!(first_byte <= millis(&entry["duration_ms"]), "{entry}");
    phases
}

/// Length of one phase in a log entry.
fn phase(entry: &Value, name: &str) -> f64 {
    let phases = phases(entry);
    let found = phases.iter().find(|(n, _)| n == name);
    found.unwrap_or_else(|| panic!("no {name} in {entry}")).1
}

fn names(entry: &Value) -> Vec<String> {
    phases(entry).into_iter().map(|(name, _)| name).collect()
}

/// `Server-Timing` and the access log have the same phases.
fn assert_same(header: &str, entry: &Value) {
    let mut told: Vec<(String, f64)> = header
        .split(", ")
        .map(|metric| {
            let (name, took) = metric.split_once(";dur=").expect("a duration");
            let name = name.strip_prefix("sluice_").expect("our name");
            (name.to_owned(), took.parse().expect("a number"))
        })
        .collect();
    let mut logged = phases(entry);
    told.sort_by(|a, b| a.0.cmp(&b.0));
    logged.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(told, logged);
}

async fn entry(gateway: &Gateway, path: &str) -> Value {
    gateway.wait_access_log(path, |e| e["path"] == path).await
}

fn slow_process(more: &str) -> String {
    format!(
        "services:\n  - name: web\n    revisions:\n      - name: web-a\n        process: {{command: [sluice, echo, --start-delay, 400ms]}}\n{more}"
    )
}

#[tokio::test]
async fn a_cold_start_of_a_process_is_told_in_phases() {
    let gateway = Gateway::start(&slow_process("")).await;
    let response = gateway.send(&asking("/first")).await;
    assert_eq!(response.status, 200, "{}", response.text());
    assert!(!response.text().contains("sluice-timing"), "it is not forwarded");
    let first = entry(&gateway, "/first").await;
    let mut want = COLD.map(str::to_owned);
    want.sort_unstable();
    let mut have = names(&first);
    have.sort_unstable();
    assert_eq!(have, want);
    // The slow phase is the time before the process listens.
    assert!(phase(&first, "booting") >= 300.0, "{first}");
    assert!(
        phase(&first, "starting") > 0.0,
        "a process is not there at once: {first}"
    );
    assert!(millis(&first["queue_ms"]) <= millis(&first["first_byte_ms"]));
    assert_same(
        response.header("server-timing").expect("it was asked for"),
        &first,
    );
    for phase in COLD {
        let labels = [
            ("namespace", "default"),
            ("service", "web"),
            ("revision", "web-a"),
            ("phase", phase),
        ];
        let count = gateway
            .metric("sluice_cold_start_phase_seconds_count", &labels)
            .await;
        assert_eq!(count, 1.0, "{phase}");
    }
    let sum = gateway.metric("sluice_cold_start_phase_seconds_sum", &[]).await;
    assert!(
        (sum * 1e3 - millis(&first["first_byte_ms"])).abs() < 1e-3,
        "{sum} {first}"
    );

    // The next request waits for nothing, and without the request header there is no `Server-Timing`.
    assert_eq!(gateway.get(WEB, "/warm").await.header("server-timing"), None);
    let warm = entry(&gateway, "/warm").await;
    assert_eq!(
        (&warm["phases_ms"], &warm["queue_ms"]),
        (&Value::Null, &Value::Null)
    );
    assert!(millis(&warm["first_byte_ms"]) <= millis(&warm["duration_ms"]));
    let count = [("phase", "queued")];
    assert_eq!(
        gateway
            .metric("sluice_cold_start_phase_seconds_count", &count)
            .await,
        1.0
    );

    let other = "services:\n  - {name: other, endpoints: [\"127.0.0.1:9\"]}\n";
    gateway.reload(other).await;
    gateway
        .wait_metric("sluice_cold_start_phase_seconds_count", &[], SOON, |n| n == 0.0)
        .await;
}

#[tokio::test]
async fn who_joins_late_sees_what_was_left_of_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    let script = format!(
        "while [ ! -e {} ]; do sleep 0.02; done; {}",
        go.display(),
        exec_echo("hi")
    );
    let gateway = Gateway::start(&shell_service(&script, "")).await;
    let addr = gateway.addr();
    let ask = |path: &'static str| tokio::spawn(async move { h1::fetch(addr, &asking(path)).await });
    let queued = |n| gateway.wait_metric("sluice_queue_depth", &[], SOON, move |depth| depth == n);
    let first = ask("/first");
    queued(1.0).await;
    gateway.wait_said("starting an instance").await;
    // What there is between the two is the difference that the log must show.
    quiet(Duration::from_millis(300)).await;
    let late = ask("/late");
    queued(2.0).await;
    std::fs::write(&go, "").unwrap();
    for response in [first, late] {
        let response = response.await.unwrap().unwrap();
        assert_eq!(response.status, 200, "{}", response.text());
    }
    let (first, late) = (entry(&gateway, "/first").await, entry(&gateway, "/late").await);
    assert!(
        phase(&late, "queued") == 0.0 && phase(&late, "starting") == 0.0,
        "{late}"
    );
    let earlier = phase(&first, "booting") - phase(&late, "booting");
    assert!(earlier > 200.0, "{first} {late}");
}

#[tokio::test]
async fn a_platform_takes_its_time_to_agree_and_what_it_starts_to_listen() {
    for named in [false, true] {
        let (_reserved, address) = reserve();
        let builder = HttpBackend::builder("platform").stream(move |_| async move {
            quiet(Duration::from_millis(200)).await;
            let list = if named {
                format!("\"{address}\"")
            } else {
                String::new()
            };
            Response::new(full(format!("{{\"endpoints\": [{list}]}}")))
        });
        let platform = builder.start().await;
        let configured = (!named).then_some(address);
        let gateway = Gateway::start(&service(&platform, configured, "")).await;
        let addr = gateway.addr();
        let waiting = tokio::spawn(async move { h1::fetch(addr, &asking("/first")).await });
        wait_until("the platform is asked", SOON, || platform.count() == 1).await;
        quiet(Duration::from_millis(500)).await;
        let _backend = HttpBackend::builder("elsewhere").at(address).start().await;
        let response = waiting.await.unwrap().unwrap();
        assert_eq!(response.status, 200, "{}", response.text());
        let first = entry(&gateway, "/first").await;
        assert_same(
            response.header("server-timing").expect("it was asked for"),
            &first,
        );
        assert!(phase(&first, "starting") >= 190.0, "{named}: {first}");
        assert!(phase(&first, "booting") >= 100.0, "{named}: {first}");
        let rest = phase(&first, "queued") + phase(&first, "admitting");
        assert!(
            rest < phase(&first, "starting") + phase(&first, "booting"),
            "{named}: {first}"
        );
    }
}

#[tokio::test]
async fn who_waits_for_a_slot_waits_for_no_start() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&web_with(backend.addr(), "containerConcurrency: 1")).await;
    backend.hold();
    let addr = gateway.addr();
    let running = tokio::spawn(async move { h1::fetch(addr, &asking("/running")).await });
    wait_until("one runs", SOON, || backend.in_flight() == 1).await;
    let waiting = tokio::spawn(async move { h1::fetch(addr, &asking("/waiting")).await });
    let depth = [("revision", "web-a")];
    gateway
        .wait_metric("sluice_queue_depth", &depth, SOON, |n| n == 1.0)
        .await;
    quiet(Duration::from_millis(100)).await;
    backend.release();
    let running = running.await.unwrap().unwrap();
    let waiting = waiting.await.unwrap().unwrap();
    let entry = entry(&gateway, "/waiting").await;
    let mut have = names(&entry);
    have.sort_unstable();
    assert_eq!(have, ["first_byte", "queued"]);
    assert!(phase(&entry, "queued") >= 100.0, "{entry}");
    assert_same(waiting.header("server-timing").expect("it was asked for"), &entry);
    let running = running.header("server-timing").expect("it was asked for");
    assert!(
        running.starts_with("sluice_queued;dur=0.000, sluice_first_byte;dur="),
        "{running}"
    );
    assert_eq!(
        gateway.metric("sluice_cold_start_phase_seconds_count", &[]).await,
        0.0
    );
}

#[tokio::test]
async fn an_answer_of_the_gateways_own_tells_it_too_on_every_protocol() {
    let script = "exec sleep 1000";
    let gateway = Gateway::start(&shell_service(script, "startTimeout: 1s")).await;
    let addr = gateway.addr();
    let h1 = tokio::spawn(async move { h1::fetch(addr, &asking("/h1")).await });
    let client = H2::connect(gateway.addr()).await;
    let request = |path: &str, grpc: bool| {
        let mut request = h2_client::with_method("POST", "http", WEB, path);
        request
            .headers_mut()
            .insert("x-sluice-timing", http::HeaderValue::from_static("1"));
        if grpc {
            let grpc = http::HeaderValue::from_static("application/grpc");
            request.headers_mut().insert("content-type", grpc);
        }
        client.exchange(request, Bytes::new())
    };
    let (h2, grpc) = tokio::join!(request("/h2", false), request("/grpc", true));
    let (h2, grpc) = (h2.unwrap(), grpc.unwrap());
    let h1 = h1.await.unwrap().unwrap();
    assert_eq!((h1.status, h1.reason()), (503, Some("activation_timeout")));
    assert_eq!((h2.status, grpc.status), (503, 200));
    assert!(grpc.header("grpc-status").is_some());
    for (path, told) in [
        ("/h1", h1.header("server-timing")),
        ("/h2", h2.header("server-timing")),
        ("/grpc", grpc.header("server-timing")),
    ] {
        let entry = entry(&gateway, path).await;
        assert_same(told.unwrap_or_else(|| panic!("{path} is not told")), &entry);
        // The instance ran and never listened.
        assert!(phase(&entry, "booting") >= 500.0, "{entry}");
        assert_eq!(phase(&entry, "admitting"), 0.0, "{entry}");
    }
}

#[tokio::test]
async fn what_the_backend_says_of_its_own_time_stays() {
    let backend = HttpBackend::builder("a").answer(|_| {
        let mut response = ok(full("hi"));
        let own = http::HeaderValue::from_static("db;dur=53");
        response.headers_mut().insert("server-timing", own);
        *response.status_mut() = StatusCode::ACCEPTED;
        response
    });
    let backend = backend.start().await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let timings = |response: &h1::H1Response| {
        let all = response.headers.iter();
        let all = all.filter(|(name, _)| name.eq_ignore_ascii_case("server-timing"));
        all.map(|(_, value)| value.clone()).collect::<Vec<_>>()
    };
    let plain = gateway.get(WEB, "/").await;
    assert_eq!(timings(&plain), ["db;dur=53"]);
    let asked = gateway.send(&asking("/")).await;
    let [own, ours] = &timings(&asked)[..] else {
        panic!("{asked:?}");
    };
    assert!(
        own == "db;dur=53" && ours.contains("sluice_first_byte;dur="),
        "{asked:?}"
    );
    assert!(
        backend
            .seen()
            .iter()
            .all(|seen| seen.header("x-sluice-timing").is_none())
    );
    let h2 = H2::connect(gateway.addr()).await;
    let mut request = h2_client::get("http", WEB, "/");
    request
        .headers_mut()
        .insert("x-sluice-timing", http::HeaderValue::from_static("1"));
    let asked = h2.exchange(request, Bytes::new()).await.unwrap();
    let all: Vec<_> = asked.headers.get_all("server-timing").iter().collect();
    assert_eq!(all.len(), 2, "{asked:?}");
}

#[tokio::test]
async fn an_upgrade_is_timed_like_any_request() {
    let backend = RawBackend::start(async |_, mut io: TcpStream| {
        let (head, _) = read_head(&mut io).await?;
        assert!(!head.contains("timing"), "{head}");
        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        io.write_all(answer.as_bytes()).await
    })
    .await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let upgrade = [
        TIMING,
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let mut client = H1::connect(gateway.addr()).await.unwrap();
    client
        .send(&h1::request("GET", WEB, "/chat", &upgrade, b""))
        .await
        .unwrap();
    let head = client.head(false).await.unwrap();
    assert_eq!(head.status, 101, "{head:?}");
    let timing = head.header("server-timing").expect("it was asked for");
    assert!(
        timing.starts_with("sluice_queued;dur=0.000, sluice_first_byte;dur="),
        "{timing}"
    );
}

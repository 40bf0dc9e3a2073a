//! Tiers: a reserve that is always there, what is started behind it, and what a tier leaves to the others.

use http::Response;
use serde_json::Value;
use sluice_tests::backend::{HttpBackend, full};
use sluice_tests::cli::sluice_in;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1;
use sluice_tests::process::line_count;
use sluice_tests::wait::{SOON, wait_for, wait_until};

use crate::WEB;
use crate::check::check;
use crate::cold_start::{exec_echo, mark};

/// A service whose revision has these tiers, each a line of YAML.
fn tiers(tiers: &[&str], more: &str) -> String {
    let tiers: String = tiers.iter().map(|tier| format!("          - {tier}\n")).collect();
    format!(
        "services:\n  - name: web\n    revisions:\n      - name: web-a\n        tiers:\n{tiers}        {more}\n"
    )
}

fn endpoints(name: &str, backend: &HttpBackend, limit: u32) -> String {
    let address = backend.addr();
    format!("{{name: {name}, endpoints: [\"{address}\"], containerConcurrency: {limit}}}")
}

fn process(name: &str, script: &str) -> String {
    format!("{{name: {name}, process: {{command: [sh, -c, \"{script}\"]}}}}")
}

fn url(name: &str, backend: &HttpBackend) -> String {
    format!(
        "{{name: {name}, url: \"http://localhost:{}\"}}",
        backend.addr().port()
    )
}

async fn text(gateway: &Gateway) -> String {
    let response = gateway.get(WEB, "/").await;
    assert_eq!(response.status, 200, "{}", response.text());
    response.text().trim().to_owned()
}

/// The tiers of the revision, as `/api/revisions` has them.
async fn shown(gateway: &Gateway) -> Vec<Value> {
    let value = gateway.admin_json("/api/revisions").await;
    value["revisions"][0]["tiers"].as_array().expect("tiers").clone()
}

async fn wait_serving(gateway: &Gateway, name: &str) {
    wait_for(&format!("tier {name} serves"), SOON * 3, async || {
        let tiers = shown(gateway).await;
        let serving = tiers.iter().find(|tier| tier["state"] == "serving");
        serving.filter(|tier| tier["name"] == name).map(|_| ())
    })
    .await;
}

fn busy(name: &'static str) -> sluice_tests::backend::Builder {
    HttpBackend::builder(name).answer(|_| {
        let response = Response::builder().status(429).header("Retry-After", "1");
        response.body(full("busy")).expect("a valid response")
    })
}

#[tokio::test]
async fn a_reserve_serves_the_first_requests_while_the_standard_tier_starts() {
    let dir = tempfile::tempdir().unwrap();
    let (starts, go) = (dir.path().join("starts"), dir.path().join("go"));
    let reserve = HttpBackend::start("reserve").await;
    reserve.hold();
    let script = format!(
        "{}; while [ ! -e {} ]; do sleep 0.02; done; {}",
        mark(&starts),
        go.display(),
        exec_echo("standard")
    );
    let config = tiers(
        &[&endpoints("reserve", &reserve, 1), &process("standard", &script)],
        "autoscaling: {window: 6s}",
    );
    let gateway = Gateway::start(&config).await;
    let send = |path: &'static str| {
        let (address, request) = (gateway.addr(), h1::get(WEB, path));
        tokio::spawn(async move { h1::fetch(address, &request).await.expect("a response") })
    };
    // The reserve takes one; the second waits for whichever tier can serve it first.
    let first = send("/first");
    wait_until("the reserve has a request", SOON, || reserve.in_flight() == 1).await;
    wait_until("the standard tier starts", SOON, || line_count(&starts) == 1).await;
    let second = send("/second");
    gateway
        .wait_metric("sluice_queue_depth", &[("revision", "web-a")], SOON, |n| n == 1.0)
        .await;
    std::fs::write(&go, "").unwrap();
    let second = second.await.unwrap();
    assert_eq!(second.status, 200, "{}", second.text());
    assert!(second.text().contains("standard"), "{}", second.text());
    // New requests move, although the reserve still has the first one.
    wait_serving(&gateway, "standard").await;
    assert!(text(&gateway).await.contains("standard"));
    assert_eq!(
        (reserve.count(), reserve.peak_in_flight()),
        (1, 1),
        "its own limit"
    );
    reserve.release();
    let first = first.await.unwrap();
    assert_eq!((first.status, first.text().trim()), (200, "reserve"));

    // The first one waited for nothing; the phases of the second one's wait for the start add up to its first byte.
    let entry = gateway.wait_access_log("first", |e| e["path"] == "/first").await;
    assert!(
        entry["phases_ms"].is_null() && entry["queue_ms"].is_null(),
        "{entry}"
    );
    let entry = gateway
        .wait_access_log("second", |e| e["path"] == "/second")
        .await;
    let phases = entry["phases_ms"].as_object().expect("phases");
    let sum: f64 = phases.values().filter_map(Value::as_f64).sum();
    let first_byte = entry["first_byte_ms"].as_f64().expect("a number");
    assert!(
        (sum - first_byte).abs() < 1e-6,
        "{sum} is not first_byte_ms: {entry}"
    );
    let booting = phases["booting"].as_f64().expect("a number");
    assert!(booting > 0.0 && entry["queue_ms"].as_f64() > Some(0.0), "{entry}");
    let status = sluice_in(
        gateway.dir(),
        &["status", "--admin", &format!("http://{}", gateway.admin())],
    )
    .await;
    assert!(status.all().contains("tier standard serves"), "{status:?}");

    // Back on idle: the standard tier goes to zero by the usual decision, and the reserve is there at once.
    wait_serving(&gateway, "reserve").await;
    std::fs::remove_file(&go).unwrap();
    assert_eq!(text(&gateway).await, "reserve");
    wait_until("it is started again", SOON, || line_count(&starts) == 2).await;
    std::fs::write(&go, "").unwrap();
    wait_serving(&gateway, "standard").await;
}

#[tokio::test]
async fn a_429_of_one_tier_goes_to_the_next_one_which_it_waits_for() {
    let dir = tempfile::tempdir().unwrap();
    let starts = dir.path().join("starts");
    let platform = busy("platform").start().await;
    let script = format!("{}; sleep 0.3; {}", mark(&starts), exec_echo("standard"));
    let config = tiers(&[&url("platform", &platform), &process("standard", &script)], "");
    let gateway = Gateway::start(&config).await;
    wait_serving(&gateway, "platform").await;
    // Not idempotent: a 429 says that nothing was done with it.
    let request = h1::request("POST", WEB, "/post", &[], b"sent twice");
    let response = gateway.send(&request).await;
    assert_eq!(response.status, 200, "{}", response.text());
    assert!(response.text().contains("standard"), "{}", response.text());
    assert_eq!((platform.count(), line_count(&starts)), (1, 1));
    assert_eq!(
        platform.last().header("host").map(str::to_owned),
        Some(format!("localhost:{}", platform.addr().port()))
    );
    let entry = gateway.wait_access_log("it", |e| e["path"] == "/post").await;
    assert_eq!(
        (&entry["status"], &entry["attempts"]),
        (&200.into(), &2.into()),
        "{entry}"
    );
}

#[tokio::test]
async fn a_429_of_the_serving_tier_goes_to_the_one_that_rests() {
    let reserve = HttpBackend::start("reserve").await;
    let platform = busy("platform").start().await;
    let config = tiers(
        &[&endpoints("reserve", &reserve, 0), &url("platform", &platform)],
        "",
    );
    let gateway = Gateway::start(&config).await;
    wait_serving(&gateway, "platform").await;
    for n in 1..4 {
        assert_eq!(text(&gateway).await, "reserve");
        assert_eq!(
            (platform.count(), reserve.count()),
            (n, n),
            "the last one is asked first"
        );
    }
    assert_eq!(reserve.last().host, WEB, "the Host of a url is that tier's alone");
}

#[tokio::test]
async fn a_429_that_every_tier_gives_is_the_clients_in_the_end() {
    let (one, other) = (busy("one").start().await, busy("other").start().await);
    let config = tiers(
        &[&endpoints("one", &one, 0), &endpoints("other", &other, 0)],
        "queue: {timeout: 2s}",
    );
    let gateway = Gateway::start(&config).await;
    let response = gateway.get(WEB, "/").await;
    assert_eq!((response.status, response.text().as_str()), (429, "busy"));
    assert_eq!((one.count(), other.count()), (1, 1));
}

#[tokio::test]
async fn a_failed_start_of_one_tier_leaves_its_requests_to_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let starts = dir.path().join("starts");
    let broken = format!("{}; exit 3", mark(&starts));
    let config = tiers(
        &[
            &process("spot", &format!("sleep 0.5; {}", exec_echo("spot"))),
            &process("standard", &broken),
        ],
        "",
    );
    let gateway = Gateway::start(&config).await;
    assert!(text(&gateway).await.contains("spot"));
    assert!(line_count(&starts) >= 1, "the first request starts both");
    let tiers = shown(&gateway).await;
    let failure = tiers[1]["last_failure"].as_str().expect("a failure");
    assert!(failure.contains('3'), "{failure}");
    assert_eq!(tiers[0]["state"], "serving");
}

#[tokio::test]
async fn when_every_tier_fails_to_start_the_cause_is_told() {
    let config = tiers(&[&process("spot", "exit 3"), &process("standard", "exit 4")], "");
    let gateway = Gateway::start(&format!("errorDetail: true\n{config}")).await;
    let response = gateway.get(WEB, "/").await;
    assert_eq!(
        (response.status, response.reason()),
        (503, Some("activation_failed"))
    );
    assert!(response.text().contains("exit status"), "{}", response.text());
}

#[tokio::test]
async fn revisions_with_tiers_and_without_share_one_split() {
    let (reserve, fixed) = (
        HttpBackend::start("reserve").await,
        HttpBackend::start("fixed").await,
    );
    let config = format!(
        "services:\n  - name: web\n    traffic:\n      - {{revisionName: web-a, percent: 50}}\n      - {{revisionName: web-b, percent: 50}}\n    revisions:\n      - name: web-a\n        tiers:\n          - {}\n          - {}\n      - name: web-b\n        endpoints: [\"{}\"]\n",
        endpoints("reserve", &reserve, 2),
        process("standard", &exec_echo("standard")),
        fixed.addr(),
    );
    let gateway = Gateway::start(&config).await;
    for _ in 0..20 {
        text(&gateway).await;
    }
    // The draws of a split begin anywhere: any twenty in a row give each half eight to twelve.
    assert!((8..=12).contains(&fixed.count()), "{}", fixed.count());
}

#[tokio::test]
async fn an_upgrade_keeps_the_tiers() {
    let dir = tempfile::tempdir().unwrap();
    let starts = dir.path().join("starts");
    let reserve = HttpBackend::start("reserve").await;
    let script = format!("{}; {}", mark(&starts), exec_echo("standard"));
    let config = tiers(
        &[&endpoints("reserve", &reserve, 1), &process("standard", &script)],
        "",
    );
    let gateway = Gateway::builder(&config).own_binary().start().await;
    text(&gateway).await;
    wait_serving(&gateway, "standard").await;
    gateway.upgraded().await;
    assert!(text(&gateway).await.contains("standard"));
    assert_eq!(line_count(&starts), 1, "the instance is the one from before");
}

#[tokio::test]
async fn explain_and_check_know_tiers() {
    let config = tiers(
        &[
            "{name: reserve, endpoints: [127.0.0.1:9100], containerConcurrency: 2}",
            "{name: standard, process: {command: [sluice, echo]}}",
        ],
        "",
    );
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("sluice.yaml"), &config).unwrap();
    let told = sluice_in(dir.path(), &["explain", &format!("http://{WEB}:8080/")]).await;
    assert_eq!(told.code, Some(0), "{told:?}");
    for name in ["reserve", "standard", "containerConcurrency=2"] {
        assert!(told.stdout.contains(name), "no {name} in {}", told.stdout);
    }
    let one = "{name: a, endpoints: [127.0.0.1:1]}";
    for (listed, more, words) in [
        (vec![one], "", "two at least"),
        (vec![one, "{name: a, url: \"http://b\"}"], "", "listed twice"),
        (vec![one, "{name: b}"], "", "no backend"),
        (
            vec![one, "{name: b, proces: {command: [x]}}"],
            "",
            "did you mean 'process'",
        ),
        (
            vec![
                one,
                "{name: b, process: {command: [x]}, activation: {webhook: {url: \"http://b\"}}}",
            ],
            "",
            "goes with endpoints",
        ),
        (
            vec![one, "{name: b, process: {command: [x]}}"],
            "url: http://c",
            "exclude each other",
        ),
        (
            vec![one, "{name: b, process: {command: [x]}}"],
            "activation: {webhook: {url: \"http://b\"}}",
            "goes into the tier",
        ),
    ] {
        let done = check(&tiers(&listed, more)).await;
        assert_eq!(done.code, Some(1), "{words}: {done:?}");
        assert!(done.all().contains(words), "no {words:?} in {}", done.all());
    }
    let last_is_fixed = check(&tiers(&["{name: b, process: {command: [x]}}", one], "")).await;
    assert_eq!(last_is_fixed.code, Some(0), "{last_is_fixed:?}");
    assert!(
        last_is_fixed.all().contains("is always there"),
        "{last_is_fixed:?}"
    );
}

//! The operator's view: access log, metrics, admin API, signals and exit.

use std::time::Duration;

use sluice_tests::backend::HttpBackend;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1};
use sluice_tests::raw_backend::Refused;
use sluice_tests::wait::{SOON, wait_for, wait_until, within};

use crate::cold_start::{exec_echo, shell_service};
use crate::{WEB, web};

#[tokio::test]
async fn the_metrics_of_the_contract_are_there_and_count() {
    let backend = HttpBackend::start("a").await;
    let refused = Refused::new();
    let mut config = web(backend.addr());
    config.push_str(&format!(
        "  - {{name: broken, endpoints: [\"{}\"]}}\n",
        refused.addr()
    ));
    config.push_str(
        "  - name: cold\n    revisions:\n      - {name: cold-a, process: {command: [sluice, echo, --message, hi]}}\n",
    );
    let gateway = Gateway::start(&config).await;
    for _ in 0..5 {
        gateway.get(WEB, "/secret-path").await;
    }
    gateway.get("broken.default.localhost", "/").await;
    gateway.get("nowhere.example.com", "/").await;
    assert_eq!(gateway.get("cold.default.localhost", "/").await.status, 200);
    let web = [
        ("namespace", "default"),
        ("service", "web"),
        ("revision", "web-a"),
        ("code", "200"),
    ];
    gateway
        .wait_metric("sluice_requests_total", &web, SOON, |n| n == 5.0)
        .await;
    // The client gets the response a moment before the slot is released.
    gateway
        .wait_metric("sluice_requests_in_flight", &[], SOON, |n| n == 0.0)
        .await;
    let metrics = gateway.metrics().await;
    for family in [
        "sluice_requests_total",
        "sluice_request_duration_seconds",
        "sluice_rejections_total",
        "sluice_requests_in_flight",
        "sluice_queue_depth",
        "sluice_queue_wait_seconds",
        "sluice_activations_total",
        "sluice_activation_duration_seconds",
        "sluice_cold_start_phase_seconds",
        "sluice_revision_replicas",
        "sluice_config_generation",
        "sluice_config_reloads_total",
        "sluice_connections",
        "sluice_connections_closed_total",
        "sluice_log_lines_dropped_total",
        "sluice_traces_dropped_total",
        "sluice_tables_alive",
    ] {
        assert!(metrics.has_family(family), "no {family}");
    }
    let names = metrics.label_names("sluice_requests_total");
    assert_eq!(names, ["code", "namespace", "revision", "service"]);
    for family in [
        "sluice_request_duration_seconds_count",
        "sluice_requests_in_flight",
        "sluice_queue_depth",
    ] {
        assert_eq!(
            metrics.label_names(family),
            ["namespace", "revision", "service"],
            "{family}"
        );
    }
    let seconds = metrics.sum("sluice_request_duration_seconds_count", &[("revision", "web-a")]);
    assert_eq!(seconds, 5.0);
    assert!(
        metrics
            .get("sluice_request_duration_seconds_bucket", &[("le", "+Inf")])
            .is_some()
    );
    let broken = [("service", "broken"), ("reason", "connect_failed")];
    assert_eq!(metrics.sum("sluice_rejections_total", &broken), 1.0);
    assert_eq!(
        metrics.sum("sluice_rejections_total", &[("reason", "no_route")]),
        1.0
    );
    assert_eq!(
        metrics.sum("sluice_activations_total", &[("revision", "cold-a")]),
        1.0
    );
    assert_eq!(metrics.sum("sluice_requests_in_flight", &[]), 0.0);
    let generation = gateway.generation().await as f64;
    assert_eq!(metrics.sum("sluice_config_generation", &[]), generation);
    for value in metrics.label_values() {
        assert!(
            !value.contains("secret-path") && !value.contains("nowhere"),
            "{value}"
        );
    }

    gateway
        .reload(&crate::web(backend.addr()).replace("web-a", "web-b"))
        .await;
    wait_for("series of removed revisions vanish", SOON, async || {
        let metrics = gateway.metrics().await;
        let gone = ["web-a", "cold-a"];
        (!metrics.label_values().any(|v| gone.contains(&v))).then_some(())
    })
    .await;
    assert!(gateway.metric("sluice_config_generation", &[]).await > generation);
}

#[tokio::test]
async fn gauges_follow_what_is_open_now() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    backend.hold();
    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    conn.send(&h1::get(WEB, "/")).await.unwrap();
    let web = [("revision", "web-a")];
    gateway
        .wait_metric("sluice_requests_in_flight", &web, SOON, |n| n == 1.0)
        .await;
    assert_eq!(gateway.metric("sluice_connections", &[]).await, 1.0);
    backend.release();
    conn.response_to(b"GET ").await.unwrap();
    gateway
        .wait_metric("sluice_requests_in_flight", &web, SOON, |n| n == 0.0)
        .await;
    drop(conn);
    gateway
        .wait_metric("sluice_connections", &[], SOON, |n| n == 0.0)
        .await;
}

#[tokio::test]
async fn the_access_log_has_every_field() {
    let backend = HttpBackend::builder("")
        .answer(|_| sluice_tests::backend::ok(sluice_tests::backend::full("four")))
        .start()
        .await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let agent = [("User-Agent", "test \"quoted\"\u{e9}")];
    gateway
        .send(&h1::request(
            "POST",
            &format!("{WEB}:80"),
            "/x?secret=1",
            &agent,
            b"three",
        ))
        .await;
    gateway.get("nowhere.example.com", "/y").await;
    let entry = gateway.wait_access_log("/x", |e| e["method"] == "POST").await;
    for field in [
        "time",
        "request_id",
        "client",
        "method",
        "host",
        "path",
        "protocol",
        "status",
        "reason",
        "namespace",
        "service",
        "revision",
        "endpoint",
        "bytes_in",
        "bytes_out",
        "duration_ms",
        "first_byte_ms",
        "queue_ms",
        "phases_ms",
        "upstream_ms",
        "attempts",
        "user_agent",
    ] {
        assert!(entry.get(field).is_some(), "no {field} in {entry}");
    }
    assert_eq!(entry["status"], 200);
    assert_eq!(entry["service"], "web");
    assert_eq!(entry["revision"], "web-a");
    assert_eq!(entry["endpoint"], backend.addr().to_string());
    assert_eq!(entry["attempts"], 1);
    assert!(entry["client"].as_str().unwrap().starts_with("127.0.0.1"));
    assert!(entry["bytes_in"].as_u64().unwrap() >= 5 && entry["bytes_out"].as_u64().unwrap() >= 4);
    assert!(entry["path"].as_str().unwrap().starts_with("/x"));
    let entry = gateway.wait_access_log("/y", |e| e["path"] == "/y").await;
    assert_eq!(
        (entry["status"].as_u64(), entry["reason"].as_str()),
        (Some(404), Some("no_route"))
    );
}

#[tokio::test]
async fn a_client_cannot_forge_a_line_of_the_log() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&format!("accessLog: {{format: pretty}}\n{}", web(backend.addr()))).await;
    let agent = [("User-Agent", "x\u{9b}2J")];
    gateway
        .send(&h1::request("GET", WEB, "/%0aforged", &agent, b""))
        .await;
    gateway.wait_said("forged").await;
    for line in [gateway.stdout(), gateway.stderr()].concat() {
        assert!(
            !line.contains('\u{9b}') && !line.starts_with("forged"),
            "{line:?}"
        );
    }
}

#[tokio::test]
async fn an_access_log_that_is_off_is_off() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&format!(
        "accessLog: {{format: \"off\"}}\n{}",
        web(backend.addr())
    ))
    .await;
    gateway.get(WEB, "/find-me").await;
    gateway
        .wait_metric("sluice_requests_total", &[("code", "200")], SOON, |n| n == 1.0)
        .await;
    assert!(
        ![gateway.stdout(), gateway.stderr()]
            .concat()
            .iter()
            .any(|l| l.contains("find-me"))
    );
}

#[tokio::test]
async fn the_admin_shows_routes_revisions_and_the_config_without_secrets() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::builder(&format!(
        r#"services:
  - {{name: web, hosts: [shop.example.com], endpoints: ["{}"]}}
  - name: url
    revisions:
      - name: url-a
        url: http://localhost:9/
        requestHeaders: {{set: {{X-Api-Key: "${{SLUICE_TEST_KEY}}"}}}}
  - name: proc
    revisions:
      - name: proc-a
        process: {{command: [sluice, echo], env: {{PASSWORD: hunter2-hunter2}}}}
"#,
        backend.addr()
    ))
    .env("SLUICE_TEST_KEY", "s3cret-s3cret")
    .start()
    .await;
    let routes = gateway.admin_json("/api/routes").await.to_string();
    assert!(
        routes.contains("shop.example.com") && routes.contains("web.default.localhost"),
        "{routes}"
    );
    let revisions = gateway.admin_json("/api/revisions").await.to_string();
    for revision in ["web-00001", "url-a", "proc-a"] {
        assert!(revisions.contains(revision), "no {revision} in {revisions}");
    }
    let config = gateway.admin_json("/api/config").await.to_string();
    assert!(
        config.contains(&gateway.addr().to_string()),
        "the bound address is shown: {config}"
    );
    for path in ["/api/routes", "/api/revisions", "/api/config", "/metrics"] {
        let text = gateway.admin_get(path).await.text();
        for secret in ["s3cret-s3cret", "hunter2-hunter2"] {
            assert!(!text.contains(secret), "{path} shows {secret}");
        }
    }
    assert!(config.contains("url-a") && config.contains("proc-a"), "{config}");
    assert_eq!(gateway.admin_get("/no-such-page").await.status, 404);
}

#[tokio::test]
async fn health_and_readiness_are_told_on_both_addresses() {
    let backend = HttpBackend::start("a").await;
    let config = format!("health: {{address: \"127.0.0.1:0\"}}\n{}", web(backend.addr()));
    let gateway = Gateway::start(&config).await;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(gateway.admin_get(path).await.status, 200, "{path}");
        let health = h1::fetch(gateway.health(), &h1::get("any", path)).await.unwrap();
        assert_eq!(health.status, 200, "{path}");
    }
    for path in ["/metrics", "/api/config", "/"] {
        let hidden = h1::fetch(gateway.health(), &h1::get("any", path)).await.unwrap();
        assert_eq!(hidden.status, 404, "{path} is not for balancers");
    }
}

#[tokio::test]
async fn sigterm_drains_what_is_in_flight_and_exits_0() {
    let backend = HttpBackend::start("a").await;
    let config = format!("health: {{address: \"127.0.0.1:0\"}}\n{}", web(backend.addr()));
    let mut gateway = Gateway::start(&config).await;
    backend.hold();
    let mut busy = H1::connect(gateway.addr()).await.unwrap();
    busy.send(&h1::get(WEB, "/")).await.unwrap();
    wait_until("it is in flight", SOON, || backend.in_flight() == 1).await;
    gateway.sigterm();
    let health = gateway.health();
    wait_for("readiness turns", SOON, async || {
        match h1::fetch(health, &h1::get("any", "/readyz")).await {
            Ok(response) => (response.status == 503).then_some(()),
            Err(_) => Some(()),
        }
    })
    .await;
    wait_for("nothing new is accepted", SOON, async || {
        h1::fetch(gateway.addr(), &h1::get("nowhere.example.com", "/"))
            .await
            .is_err()
            .then_some(())
    })
    .await;
    backend.release();
    let response = busy.response_to(b"GET ").await.unwrap();
    assert_eq!((response.status, response.text().as_str()), (200, "a"));
    let status = gateway.wait_exit(Duration::from_secs(10)).await;
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn an_idle_gateway_exits_at_once() {
    let backend = HttpBackend::start("a").await;
    let mut gateway = Gateway::start(&web(backend.addr())).await;
    let mut idle = H1::connect(gateway.addr()).await.unwrap();
    idle.exchange(&h1::get(WEB, "/")).await.unwrap();
    gateway.sigterm();
    let status = gateway.wait_exit(Duration::from_secs(10)).await;
    assert_eq!(status.code(), Some(0), "no grace period is slept out");
    within("the idle connection is closed", SOON, idle.closed())
        .await
        .unwrap();
}

#[tokio::test]
async fn who_still_waits_at_the_drain_timeout_is_answered() {
    let script = format!("sleep 1000; {}", exec_echo("never"));
    let config = format!("drain: {{timeout: 1s}}\n{}", shell_service(&script, ""));
    let mut gateway = Gateway::start(&config).await;
    let mut waiting = H1::connect(gateway.addr()).await.unwrap();
    waiting.send(&h1::get(WEB, "/")).await.unwrap();
    gateway
        .wait_metric("sluice_queue_depth", &[], SOON, |n| n == 1.0)
        .await;
    gateway.sigterm();
    let response = waiting.response_to(b"GET ").await.unwrap();
    assert_eq!((response.status, response.reason()), (503, Some("draining")));
    assert_eq!(gateway.wait_exit(Duration::from_secs(10)).await.code(), Some(0));
}

#[tokio::test]
async fn the_handbook_names_every_metric_and_every_field_of_the_log() {
    let tests = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let handbook = std::fs::read_to_string(tests.join("../docs/operating.md")).unwrap();
    let backend = HttpBackend::start("a").await;
    let config = format!(
        "{}  - {{name: cold, process: {{command: [sluice, echo]}}}}\n",
        web(backend.addr())
    );
    let gateway = Gateway::start(&config).await;
    gateway.get(WEB, "/").await;
    gateway.get("cold.default.localhost", "/").await;
    let entry = gateway.wait_access_log("the request", |_| true).await;
    let fields = entry.as_object().unwrap().keys().cloned();
    let scrape = gateway.admin_get("/metrics").await.text();
    let types = scrape.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let families: Vec<String> = types
        .map(|rest| rest.split(' ').next().unwrap_or_default().to_owned())
        .collect();
    assert!(families.len() > 5, "{scrape}");
    for name in families.into_iter().chain(fields) {
        assert!(handbook.contains(&format!("`{name}`")), "no {name}");
    }
}

#[tokio::test]
async fn a_refused_head_is_logged_as_far_as_it_can_be_read() {
    let gateway = Gateway::start(&web("127.0.0.1:9".parse().unwrap())).await;
    let smuggled = format!(
        "POST /upload?token=secret HTTP/1.1\r\nHost: {WEB}\r\nUser-Agent: odd\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx"
    );
    assert_eq!(gateway.send(smuggled.as_bytes()).await.status, 400);
    let entry = gateway.wait_access_log("the head", |e| e["status"] == 400).await;
    for (key, value) in [
        ("method", "POST"),
        ("host", WEB),
        ("path", "/upload"),
        ("user_agent", "odd"),
    ] {
        assert_eq!(entry[key], value, "{entry}");
    }
    let control = b"GET /a\x07b HTTP/1.1\r\nHost: x\r\n\r\n";
    assert_eq!(gateway.send(control).await.status, 400);
    gateway
        .wait_access_log("the control character, escaped", |e| e["path"] == "/a\u{7}b")
        .await;
    assert!(gateway.stdout().iter().all(|line| !line.contains('\u{7}')));
}

//! Foresight through the real binary: a schedule that is active now, observe mode, and a forecast that outlives the process.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::backend::HttpBackend;
use sluice_tests::cli::sluice_in;
use sluice_tests::gateway::Gateway;
use sluice_tests::wait::{SOON, wait_for};

use crate::WEB;
use crate::cold_start::{exec_echo, shell_service};
use crate::webhook::{platform, service, status};

async fn scaling(gateway: &Gateway) -> Value {
    let all = gateway.admin_json("/api/revisions").await;
    all["revisions"][0]["scaling"].clone()
}

async fn wait_scaling(gateway: &Gateway, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    wait_for(what, SOON, async || Some(scaling(gateway).await).filter(&wanted)).await
}

/// Every minute a window of an hour begins: the schedule is active whenever the test runs.
const ALWAYS: &str = "autoscaling: {window: 6s, schedules: [{cron: '* * * * *', timeZone: Europe/Berlin, duration: 1h, minScale: 2, maxScale: 5}]}";

#[tokio::test]
async fn a_schedule_that_is_active_now_starts_instances_without_a_request() {
    let gateway = Gateway::start(&shell_service(&exec_echo("early"), ALWAYS)).await;
    gateway.wait_ready_instances("web-a", 2.0, SOON).await;
    let scaling = wait_scaling(&gateway, "the schedule is named", |s| s["source"] == "schedule").await;
    assert_eq!(
        scaling["wanted"],
        json!({"reactive": 0, "panic": null, "schedule": 2, "forecast": null, "need": null, "rollout": null, "minScale": 0, "maxScale": 5})
    );
    let floor = [("source", "schedule")];
    assert_eq!(gateway.metric("sluice_scale_floor", &floor).await, 2.0);
    gateway
        .wait_said("raised by a schedule; wanted: reactive 0, schedule 2")
        .await;
    let admin = format!("http://{}", gateway.admin());
    let status = sluice_in(gateway.dir(), &["status", "--admin", &admin]).await;
    assert!(
        status.all().contains("schedule 2 (reactive 0)"),
        "{}",
        status.all()
    );
    let url = format!("http://{WEB}:{}/", gateway.addr().port());
    let explained = sluice_in(gateway.dir(), &["explain", &url, "--admin", &admin]).await;
    assert!(
        explained.all().contains("* * * * * Europe/Berlin for 1h"),
        "{}",
        explained.all()
    );
    let config = gateway.config_path().display().to_string();
    let offline = format!("http://{WEB}/");
    let offline = sluice_in(gateway.dir(), &["explain", &offline, "--config", &config]).await;
    assert!(
        offline.all().contains("* * * * * Europe/Berlin for 1h"),
        "{}",
        offline.all()
    );
    assert_eq!(gateway.get(WEB, "/").await.status, 200);
    gateway
        .wait_metric("sluice_instance_seconds_total", &[], SOON, |seconds| {
            seconds > 1.0
        })
        .await;
    // Without the schedule nothing keeps them.
    gateway
        .rewrite_config(|config| config.replace(ALWAYS, "autoscaling: {window: 6s}"))
        .await;
    gateway
        .wait_ready_instances("web-a", 0.0, Duration::from_secs(20))
        .await;
    assert_eq!(gateway.metric("sluice_scale_floor", &floor).await, 0.0);
}

#[tokio::test]
async fn observe_starts_and_stops_nothing_and_says_what_it_would_have_done() {
    let platform = platform(|_, _| status(202)).await;
    let backend = HttpBackend::start("there").await;
    let more = "containerConcurrency: 1\nautoscaling: {mode: observe, window: 6s}";
    let gateway = Gateway::start(&service(&platform, Some(backend.addr()), more)).await;
    assert_eq!(gateway.get(WEB, "/").await.status, 200);
    let observed = wait_scaling(&gateway, "it observes a start", |s| {
        s["observed"]["cold_starts"] == 1
    })
    .await;
    assert!(
        observed["observed"]["last_decision"]
            .as_str()
            .unwrap()
            .contains("→ 1"),
        "{observed}"
    );
    gateway.wait_said("observe: would scale 0 → 1").await;
    // Idle for a window: it would be at zero, and the backend serves on.
    wait_for("it would be at zero", Duration::from_secs(20), async || {
        (scaling(&gateway).await["observed"]["desired"] == 0).then_some(())
    })
    .await;
    gateway.wait_said("observe: would scale 1 → 0").await;
    assert_eq!(gateway.get(WEB, "/").await.status, 200);
    assert_eq!(platform.count(), 0, "nobody was asked");
    assert!(gateway.metric("sluice_observed_cold_starts_total", &[]).await >= 1.0);
    assert!(
        gateway
            .metric("sluice_observed_instance_seconds_total", &[])
            .await
            > 1.0
    );
    let admin = format!("http://{}", gateway.admin());
    let status = sluice_in(gateway.dir(), &["status", "--admin", &admin]).await;
    assert!(status.all().contains("observed: "), "{}", status.all());
}

/// A forecast that expects 25 requests at any time, and that saved cold starts: the format of version 1, which later versions
/// have to read.
fn document() -> String {
    let bins = |value: f64| vec![value; 288];
    json!({
        "version": 1,
        "seasonSeconds": 86_400,
        "metric": "concurrency",
        "seasons": [bins(25.0), bins(25.0), bins(25.0)],
        "current": {"index": 0, "peaks": bins(0.0), "seen": vec![0; 288], "last": 0},
        "judged": [{"coldStarts": 20, "coldStartsWithForecast": 2, "instanceSeconds": 7200.0, "instanceSecondsWithForecast": 9000.0}],
        "judging": null,
    })
    .to_string()
}

fn with_state(directory: &Path, script: &str) -> String {
    let more = "containerConcurrency: 10\nautoscaling: {window: 6s, forecast: {season: 24h}}";
    format!(
        "state: {{directory: {}}}\n{}",
        directory.display(),
        shell_service(script, more)
    )
}

fn seen(directory: &Path) -> u64 {
    let text = std::fs::read_to_string(directory.join("forecast.default.web-a.json")).expect("a document");
    let document: Value = serde_json::from_str(&text).expect("JSON");
    let seen = document["current"]["seen"].as_array().expect("a list");
    seen.iter().filter_map(Value::as_u64).sum()
}

#[tokio::test]
async fn a_forecast_outlives_the_process() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("state");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("forecast.default.web-a.json"), document()).unwrap();
    let config = with_state(&directory, &exec_echo("foreseen"));
    let mut learned = 0;
    for _ in 0..2 {
        let mut gateway = Gateway::start(&config).await;
        // 25 requests, 10 an instance.
        gateway.wait_ready_instances("web-a", 3.0, SOON).await;
        gateway.wait_said("forecast: restored").await;
        let scaling = wait_scaling(&gateway, "the forecast is named", |s| s["source"] == "forecast").await;
        assert_eq!(
            scaling["forecast"],
            json!({"seasons": 3, "trusted": true, "floor": 3, "cold_starts": 20, "cold_starts_with_forecast": 2,
                "extra_instance_hours": 0.5})
        );
        assert_eq!(
            gateway
                .metric("sluice_scale_floor", &[("source", "forecast")])
                .await,
            3.0
        );
        // Another gateway is told who has the directory.
        let other = home.path().join("other.yaml");
        let ports = "listeners: [{address: 127.0.0.1:0}]\nadmin: {address: 127.0.0.1:0}\n";
        std::fs::write(
            &other,
            format!("{ports}state: {{directory: {}}}\n", directory.display()),
        )
        .unwrap();
        let refused = sluice_in(home.path(), &["run", other.to_str().unwrap()]).await;
        assert_eq!(refused.code, Some(2), "{refused:?}");
        let holder = format!("in use by another gateway (process {})", gateway.pid());
        assert!(refused.all().contains(&holder), "{}", refused.all());
        gateway.sigterm();
        gateway.wait_exit(SOON).await;
        let now = seen(&directory);
        assert!(now > learned, "{now} seconds were seen, {learned} before");
        learned = now;
    }
}

#[tokio::test]
async fn an_upgrade_takes_over_what_forecasts_learned() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("state");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("forecast.default.web-a.json"), document()).unwrap();
    let gateway = Gateway::start(&with_state(&directory, &exec_echo("foreseen"))).await;
    gateway.wait_ready_instances("web-a", 3.0, SOON).await;
    let new = gateway.upgraded().await;
    wait_scaling(&gateway, "the forecast is named", |s| s["source"] == "forecast").await;
    let lock = std::fs::read_to_string(directory.join("lock")).unwrap();
    assert_eq!(lock.trim(), new.to_string());
    assert_eq!(
        gateway
            .metric("sluice_revision_replicas", &[("state", "desired")])
            .await,
        3.0
    );
}

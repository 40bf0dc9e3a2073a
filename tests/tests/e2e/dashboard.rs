//! The dashboard's data: events, history, and the page itself.

use serde_json::Value;
use sluice_tests::backend::HttpBackend;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1};
use sluice_tests::wait::{SOON, wait_for, within};

use crate::cold_start::{exec_echo, shell_service};
use crate::{WEB, web};

/// A client of `/api/events`.
struct Events(H1);

impl Events {
    async fn open(gateway: &Gateway) -> Self {
        let mut client = H1::connect(gateway.admin()).await.expect("the gateway accepts");
        client
            .send(&h1::get("localhost", "/api/events"))
            .await
            .expect("an open connection");
        let head = client.head(false).await.expect("an open connection");
        assert_eq!(head.status, 200);
        assert_eq!(head.header("content-type"), Some("text/event-stream"));
        assert_eq!(head.header("cache-control"), Some("no-store"));
        Self(client)
    }

    /// The next event that is no comment; `None` at the stream's end.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            // An event is written as one chunk.
            let chunk = within("an event", SOON, self.0.chunk()).await.expect("a chunk")?;
            let text = String::from_utf8(chunk).expect("UTF-8");
            if text.starts_with(':') {
                continue;
            }
            let (name, data) = text.trim_end().split_once("\ndata: ").expect("an event");
            let name = name
                .strip_prefix("event: ")
                .expect("the name of an event")
                .to_owned();
            return Some((name, serde_json::from_str(data).expect("JSON")));
        }
    }

    /// Reads changes until one satisfies a condition.
    async fn until(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        within(what, SOON, async {
            loop {
                let (name, change) = self.next().await.expect("the stream goes on");
                assert_eq!(name, "change");
                if wanted(&change) {
                    return change;
                }
            }
        })
        .await
    }
}

#[tokio::test]
async fn events_begin_with_a_snapshot_and_follow_traffic_scaling_and_mistakes() {
    let gateway = Gateway::start(&shell_service(&exec_echo("hi"), "autoscaling: {window: 60s}")).await;
    let mut events = Events::open(&gateway).await;
    let (name, snapshot) = events.next().await.expect("an open connection");
    assert_eq!(name, "snapshot");
    assert_eq!(snapshot["gateway"]["pid"], gateway.pid());
    assert_eq!(snapshot["gateway"]["token"], Value::Null);
    assert_eq!(snapshot["config"]["rejected"], false);
    let service = &snapshot["services"]["default/web"];
    assert!(
        service["hosts"].as_array().unwrap().contains(&WEB.into()),
        "{service}"
    );
    assert_eq!(service["traffic"][0]["percent"], 100);
    assert_eq!(snapshot["revisions"]["default/web-a"]["ready"], 0);

    assert_eq!(gateway.get(WEB, "/").await.status, 200);
    let one = events
        .until("an instance", |c| c["revisions"]["default/web-a"]["ready"] == 1)
        .await;
    let endpoints = &one["revisions"]["default/web-a"]["endpoints"];
    assert_eq!(endpoints.as_array().map(Vec::len), Some(1));
    gateway.write_config("services: [{nmae: web}]\n");
    let wrong = events
        .until("the mistake", |c| c["config"]["rejected"] == true)
        .await;
    let mut items = wrong["config"]["items"].as_array().into_iter().flatten();
    let about_key = |item: &&Value| item["message"].as_str().is_some_and(|m| m.contains("nmae"));
    let item = items
        .find(about_key)
        .expect("the unknown key is among the mistakes");
    assert!(
        item["file"].as_str().is_some_and(|f| f.ends_with("sluice.yaml")),
        "{item}"
    );
    assert_eq!(
        (&item["line"].is_u64(), &item["severity"]),
        (&true, &"error".into())
    );

    let (_, later) = Events::open(&gateway)
        .await
        .next()
        .await
        .expect("an open connection");
    assert_eq!(later["config"]["rejected"], true);
    let decisions = later["decisions"].as_array().unwrap();
    let decision = decisions.iter().find(|d| d["revision"] == "default/web-a");
    assert!(
        decision.is_some_and(|d| d["text"].as_str().unwrap().contains("0 → 1")),
        "{decisions:?}"
    );
}

#[tokio::test]
async fn the_hour_of_a_revision_is_sampled_from_its_requests() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    assert_eq!(
        gateway
            .admin_get("/api/history?revision=default/web-a")
            .await
            .status,
        404,
        "no traffic yet"
    );
    for _ in 0..5 {
        assert_eq!(gateway.get(WEB, "/").await.status, 200);
    }
    assert_eq!(gateway.get("nowhere.example", "/").await.status, 404);
    let sum = |hour: &Value, list: &str| -> u64 {
        let points = hour[list].as_array().expect("a list").iter();
        assert_eq!(points.len(), 360, "{list}");
        points.map(|n| n.as_u64().unwrap()).sum()
    };
    // A step is 10 s.
    let hour = wait_for("a step with all requests", 2 * SOON, async || {
        let hour = gateway.admin_json("/api/history").await;
        (sum(&hour, "requests") == 6).then_some(hour)
    })
    .await;
    assert_eq!(sum(&hour, "errors"), 0);
    let own = gateway.admin_json("/api/history?revision=default%2Fweb-a").await;
    assert_eq!(sum(&own, "requests"), 5);
    assert_eq!(own["revision"], "default/web-a");
    let medians: Vec<f64> = own["median_ms"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_f64)
        .collect();
    assert!(
        !medians.is_empty() && medians.iter().all(|ms| *ms > 0.0 && *ms < 60_000.0),
        "{medians:?}"
    );
    assert_eq!(gateway.admin_get("/api/history?revision=a").await.status, 400);
    let (_, snapshot) = Events::open(&gateway)
        .await
        .next()
        .await
        .expect("an open connection");
    assert_eq!(
        snapshot["history"]["requests"]["default/web-a"]
            .as_array()
            .map(Vec::len),
        Some(360)
    );
}

#[tokio::test]
async fn followers_are_bounded_and_those_that_do_not_read_hold_nobody_up() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let mut silent = Vec::new();
    for _ in 0..16 {
        let mut client = H1::connect(gateway.admin()).await.expect("an open connection");
        client
            .send(&h1::get("localhost", "/api/events"))
            .await
            .expect("an open connection");
        // The head: the follower has its place.
        assert_eq!(client.head(false).await.expect("an open connection").status, 200);
        silent.push(client);
    }
    let refused = gateway.admin_get("/api/events").await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert_eq!(gateway.admin_get("/api/revisions").await.status, 200);
    silent.pop();
    wait_for("a place", SOON, async || {
        let mut client = H1::connect(gateway.admin()).await.ok()?;
        client.send(&h1::get("localhost", "/api/events")).await.ok()?;
        (client.head(false).await.ok()?.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_stream_ends_with_the_process_that_it_is_of() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let mut events = Events::open(&gateway).await;
    let (_, before) = events.next().await.expect("an open connection");
    let new = gateway.upgraded().await;
    within("the old stream ends", SOON, async {
        while events.next().await.is_some() {}
    })
    .await;
    let (_, after) = Events::open(&gateway)
        .await
        .next()
        .await
        .expect("an open connection");
    assert_eq!(
        (
            before["gateway"]["pid"].as_u64(),
            after["gateway"]["pid"].as_u64()
        ),
        (Some(gateway.pid().into()), Some(new.into()))
    );
}

#[tokio::test]
async fn the_page_comes_with_a_policy_that_lets_nothing_else_in() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let page = gateway.admin_get("/dashboard").await;
    assert_eq!(page.status, 200);
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = page.header("content-security-policy").expect("a policy");
    for part in [
        "default-src 'none'",
        "script-src 'sha256-",
        "style-src 'sha256-",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
    ] {
        assert!(policy.contains(part), "{part}: {policy}");
    }
    assert_eq!(page.header("x-frame-options"), Some("DENY"));
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    assert!(gateway.admin_get("/").await.text().contains("/dashboard"));
    // On the health address there is none of it.
    let health = Gateway::start(&format!(
        "health: {{address: 127.0.0.1:0}}\n{}",
        web(backend.addr())
    ))
    .await;
    for path in ["/dashboard", "/api/events", "/api/history"] {
        let answer = h1::fetch(health.health(), &h1::get("anything.example", path))
            .await
            .expect("an open connection");
        assert_eq!(answer.status, 404, "{path}");
    }
    let alive = h1::fetch(health.health(), &h1::get("anything.example", "/healthz"))
        .await
        .expect("an open connection");
    assert_eq!(alive.status, 200, "a balancer's Host does not matter");
}

//! Outlier ejection: failing endpoints are taken out of use for a while, and come back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::Response;
use sluice_tests::backend::{Builder, HttpBackend, full, ok};
use sluice_tests::gateway::Gateway;
use sluice_tests::h1;
use sluice_tests::raw_backend::Refused;
use sluice_tests::wait::{SOON, wait_for, wait_until};

use crate::{WEB, web, web_two};

/// A backend that answers 503 until the switch is on.
fn sick() -> (Builder, Arc<AtomicBool>) {
    let healthy = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&healthy);
    let builder = HttpBackend::builder("").answer(move |_| {
        if switch.load(Ordering::SeqCst) {
            return ok(full("well"));
        }
        Response::builder()
            .status(503)
            .body(full("sick"))
            .expect("a valid response")
    });
    (builder, healthy)
}

/// The state of an endpoint in `/api/revisions`.
async fn state(gateway: &Gateway, addr: SocketAddr) -> String {
    let all = gateway.admin_json("/api/revisions").await;
    find(&all, &addr.to_string()).unwrap_or_else(|| panic!("no {addr} in {all}"))
}

fn find(value: &serde_json::Value, addr: &str) -> Option<String> {
    match value {
        serde_json::Value::Object(fields) => {
            let here = fields.values().any(|v| v == addr);
            let state = fields.get("state").and_then(|s| s.as_str());
            match state.filter(|_| here) {
                Some(state) => Some(state.to_owned()),
                None => fields.values().find_map(|v| find(v, addr)),
            }
        }
        serde_json::Value::Array(items) => items.iter().find_map(|v| find(v, addr)),
        _ => None,
    }
}

async fn wait_state(gateway: &Gateway, addr: SocketAddr, wanted: &str) {
    wait_for(
        &format!("{addr} is {wanted}"),
        Duration::from_secs(60),
        async || (state(gateway, addr).await == wanted).then_some(()),
    )
    .await;
}

#[tokio::test]
async fn five_503_in_a_row_give_an_endpoint_a_rest_and_it_recovers() {
    let (builder, healthy) = sick();
    let sick = builder.start().await;
    let good = HttpBackend::start("good").await;
    let gateway = Gateway::start(&web_two(sick.addr(), good.addr(), "")).await;
    while sick.count() < 5 {
        gateway.get(WEB, "/").await;
    }
    let ejected = Instant::now();
    assert_eq!(state(&gateway, sick.addr()).await, "ejected");
    // The first ejection is a second long.
    while ejected.elapsed() < Duration::from_millis(500) {
        assert_eq!(gateway.get(WEB, "/").await.text(), "good");
    }
    assert_eq!(sick.count(), 5, "an ejected endpoint gets nothing");
    wait_for("it is tried again", SOON, async || {
        gateway.get(WEB, "/").await;
        (sick.count() > 5).then_some(())
    })
    .await;
    healthy.store(true, Ordering::SeqCst);
    wait_state(&gateway, sick.addr(), "ready").await;
    wait_for("it serves again", SOON, async || {
        (gateway.get(WEB, "/").await.text() == "well").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_good_answer_breaks_the_row() {
    let turn = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let moody = HttpBackend::builder("")
        .answer(move |_| {
            let bad = turn.fetch_add(1, Ordering::SeqCst) % 5 != 4;
            let status = if bad { 503 } else { 200 };
            Response::builder().status(status).body(full("moody")).unwrap()
        })
        .start()
        .await;
    let good = HttpBackend::start("good").await;
    let gateway = Gateway::start(&web_two(moody.addr(), good.addr(), "")).await;
    let mut served = 0;
    while moody.count() < 30 {
        gateway.get(WEB, "/").await;
        served += 1;
        assert!(served < 1_000, "ejected after {}", moody.count());
    }
    assert_eq!(state(&gateway, moody.addr()).await, "ready");
}

#[tokio::test]
async fn a_refused_connection_ejects_at_once_and_the_last_one_is_never_ejected() {
    let (refused, good) = (Refused::new(), HttpBackend::start("good").await);
    let gateway = Gateway::start(&web_two(refused.addr(), good.addr(), "")).await;
    wait_for("the dead endpoint is out", SOON, async || {
        assert_eq!(gateway.get(WEB, "/").await.text(), "good");
        (state(&gateway, refused.addr()).await == "ejected").then_some(())
    })
    .await;

    let (builder, _) = sick();
    let sick = builder.start().await;
    let alone = Gateway::start(&web(sick.addr())).await;
    for n in 1..=20 {
        assert_eq!(alone.get(WEB, "/").await.text(), "sick");
        assert_eq!(sick.count(), n);
    }
    assert_eq!(state(&alone, sick.addr()).await, "ready");

    // Both endpoints fail: they share the requests, and one of them is never ejected.
    let (builder, _) = self::sick();
    let other = builder.start().await;
    let both = Gateway::start(&web_two(sick.addr(), other.addr(), "")).await;
    for _ in 0..40 {
        let response = both.get(WEB, "/").await;
        assert_eq!((response.status, response.reason()), (503, None));
    }
}

#[tokio::test]
async fn a_run_of_slow_starts_ejects() {
    let (slow, good) = (HttpBackend::start("slow").await, HttpBackend::start("good").await);
    let more = "responseStartTimeoutSeconds: 1";
    let gateway = Gateway::start(&web_two(slow.addr(), good.addr(), more)).await;
    slow.hold();
    good.hold();
    let addr = gateway.addr();
    let wave: Vec<_> = (0..12)
        .map(|_| tokio::spawn(async move { h1::fetch(addr, &h1::get(WEB, "/")).await }))
        .collect();
    wait_until("both have their half", SOON, || {
        slow.in_flight() >= 5 && slow.in_flight() + good.in_flight() == 12
    })
    .await;
    good.release();
    let mut late = 0;
    for request in wave {
        late += usize::from(request.await.unwrap().unwrap().status == 504);
    }
    assert!(late >= 5, "{late} of 12 timed out");
    assert_eq!(state(&gateway, slow.addr()).await, "ejected");
    assert_eq!(gateway.get(WEB, "/").await.text(), "good");
}

#[tokio::test]
async fn a_failing_readiness_probe_takes_an_endpoint_out_and_a_passing_one_brings_it_back() {
    let ready = Arc::new(AtomicBool::new(true));
    let switch = Arc::clone(&ready);
    let probed = HttpBackend::builder("")
        .answer(move |seen| {
            let unready = seen.target == "/ready" && !switch.load(Ordering::SeqCst);
            let status = if unready { 503 } else { 200 };
            Response::builder().status(status).body(full("probed")).unwrap()
        })
        .start()
        .await;
    let good = HttpBackend::start("good").await;
    let probe = "readinessProbe: {httpGet: {path: /ready}}";
    let gateway = Gateway::start(&web_two(probed.addr(), good.addr(), probe)).await;
    wait_state(&gateway, probed.addr(), "ready").await;
    ready.store(false, Ordering::SeqCst);
    wait_state(&gateway, probed.addr(), "ejected").await;
    let others = || probed.seen().iter().filter(|seen| seen.target == "/").count();
    let before = others();
    for _ in 0..20 {
        assert_eq!(gateway.get(WEB, "/").await.text(), "good");
    }
    assert_eq!(others(), before);
    ready.store(true, Ordering::SeqCst);
    wait_state(&gateway, probed.addr(), "ready").await;
    wait_for("it serves again", SOON, async || {
        (gateway.get(WEB, "/").await.text() == "probed").then_some(())
    })
    .await;
}

#[tokio::test]
async fn ejections_and_recoveries_are_told() {
    let refused = Refused::new();
    let well = HttpBackend::start("well").await;
    let gateway = Gateway::start(&web_two(refused.addr(), well.addr(), "")).await;
    let told = async |what: &str| {
        wait_for(what, SOON, async || {
            assert_eq!(gateway.get(WEB, "/").await.status, 200);
            let address = format!("endpoint={}", refused.addr());
            let lines = gateway.stderr();
            let mut lines = lines.iter();
            lines
                .find(|line| line.contains(what) && line.contains(&address))
                .cloned()
        })
        .await
    };
    let line = told("endpoint ejected: a connection to it failed").await;
    assert!(line.contains("revision=default/web-a"), "{line}");
    told("endpoint is tried again").await;
    let lines = gateway.stderr();
    let said = lines.iter().filter(|line| line.contains("endpoint ejected"));
    assert!(said.count() < 10, "one line for each");
}

//! URL backends: a platform with its own host, certificate and 429 responses.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::Response;
use sluice_tests::backend::{Builder, HttpBackend, full, ok};
use sluice_tests::gateway::Gateway;
use sluice_tests::h1;
use sluice_tests::tls::{self, Ca};

use crate::WEB;

fn url_service(url: &str, more: &str) -> String {
    format!(
        "services:\n  - name: web\n    revisions:\n      - name: web-url\n        url: \"{url}\"\n        {more}\n"
    )
}

/// Refuses the first `refusals` requests with 429 and these fields, then echoes the body.
fn busy_at_first(refusals: usize, retry_after: Option<&'static str>) -> Builder {
    let left = Arc::new(AtomicUsize::new(refusals));
    HttpBackend::builder("").answer(move |seen| {
        let took = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if took.is_err() {
            return ok(full(seen.body));
        }
        let mut response = Response::builder().status(429);
        if let Some(after) = retry_after {
            response = response.header("Retry-After", after);
        }
        response.body(full("busy")).expect("a valid response")
    })
}

#[tokio::test]
async fn a_429_is_held_and_tried_again_when_the_platform_says() {
    let backend = busy_at_first(2, Some("1")).start().await;
    let url = format!("http://localhost:{}", backend.addr().port());
    let gateway = Gateway::start(&url_service(&url, "")).await;
    let start = Instant::now();
    let body = b"sent three times, seen once by the client";
    let response = gateway.send(&h1::request("POST", WEB, "/", &[], body)).await;
    assert_eq!((response.status, response.body.as_slice()), (200, &body[..]));
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
    let bodies: Vec<_> = backend.seen().iter().map(|seen| seen.body.clone()).collect();
    assert_eq!(bodies, [&body[..]; 3], "each attempt carries the whole body");
    let entry = gateway
        .wait_access_log("the request", |e| e["attempts"] == 3)
        .await;
    assert_eq!((&entry["status"], entry["reason"].is_null()), (&200.into(), true));
    assert!(entry["queue_ms"].as_f64().unwrap() >= 2_000.0, "{entry}");
}

#[tokio::test]
async fn a_429_that_says_nothing_is_tried_again_until_it_is_taken() {
    // More attempts than with a broken endpoint: retries after 429 are bounded by time.
    let backend = busy_at_first(12, None).start().await;
    let url = format!("http://localhost:{}", backend.addr().port());
    let gateway = Gateway::start(&url_service(&url, "")).await;
    let response = gateway.get(WEB, "/").await;
    assert_eq!(response.status, 200, "{:?}", response.text());
    assert_eq!(backend.count(), 13);
}

#[tokio::test]
async fn a_429_that_outlasts_the_queue_is_passed_on() {
    for (retry_after, most) in [(Some("30"), 1), (None, 3), (Some("0"), 12)] {
        let backend = busy_at_first(usize::MAX, retry_after).start().await;
        let url = format!("http://localhost:{}", backend.addr().port());
        let gateway = Gateway::start(&url_service(&url, "queue: {timeout: 2s}")).await;
        let start = Instant::now();
        let response = gateway.get(WEB, "/").await;
        assert_eq!(
            (response.status, response.text().as_str()),
            (429, "busy"),
            "{retry_after:?}"
        );
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        let count = backend.count();
        assert!((1..=most).contains(&count), "{retry_after:?}: {count} attempts");
    }
}

#[tokio::test]
async fn a_429_of_an_ordinary_endpoint_is_its_answer() {
    let backend = busy_at_first(1, Some("1")).start().await;
    let gateway = Gateway::start(&crate::web(backend.addr())).await;
    let response = gateway.get(WEB, "/").await;
    assert_eq!(
        (response.status, response.header("retry-after")),
        (429, Some("1"))
    );
    assert_eq!(backend.count(), 1);
}

#[tokio::test]
async fn a_certificate_for_another_name_is_never_served() {
    let ca = Ca::new();
    let acceptor = tls::acceptor(&ca.issue(&["elsewhere.test"]), &["http/1.1"]);
    let backend = HttpBackend::builder("secret").tls(acceptor).start().await;
    let url = format!("https://localhost:{}", backend.addr().port());
    let builder = Gateway::builder(&url_service(&url, "")).file("ca.pem", ca.pem());
    let roots = builder.dir().join("ca.pem");
    let gateway = builder
        .env("SSL_CERT_FILE", roots.to_str().unwrap())
        .start()
        .await;
    let plain = h1::get(WEB, "/");
    let upgrade = h1::request(
        "GET",
        WEB,
        "/chat",
        &[("Connection", "Upgrade"), ("Upgrade", "websocket")],
        b"",
    );
    for request in [plain, upgrade] {
        let refused = gateway.send(&request).await;
        assert_eq!((refused.status, refused.reason()), (502, Some("connect_failed")));
    }
    assert_eq!(backend.count(), 0);
}

#[tokio::test]
async fn a_path_of_the_url_stands_before_what_a_route_makes_of_the_path() {
    let backend = HttpBackend::start("url").await;
    let gateway = Gateway::start(&format!(
        r#"services:
  - name: web
    routes:
      - match: {{path: {{prefix: /v2}}}}
        rewritePath: {{prefix: /}}
        traffic: [{{revisionName: web-url, percent: 100}}]
    revisions:
      - name: web-url
        url: http://localhost:{}/base/
"#,
        backend.addr().port()
    ))
    .await;
    for (asked, seen) in [("/v2/x?y=1", "/base/x?y=1"), ("/", "/base/"), ("/?q", "/base/?q")] {
        assert_eq!(gateway.get(WEB, asked).await.status, 200);
        assert_eq!(backend.last().target, seen, "{asked}");
    }
}

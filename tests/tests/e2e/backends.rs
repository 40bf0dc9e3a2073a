//! Backends of every kind, and requests whose backend breaks: retries, ejection, error responses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, Version};
use sluice_tests::backend::{HttpBackend, full, ok};
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1};
use sluice_tests::load::Load;
use sluice_tests::raw_backend::{RawBackend, Refused, read_head};
use sluice_tests::tls::{self, Ca};
use sluice_tests::wait::{SOON, wait_for, wait_until};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::{WEB, web, web_two, web_with};

#[tokio::test]
async fn unix_sockets_and_names_are_endpoints() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.sock");
    let unix = HttpBackend::builder("unix").start_unix(&path).await;
    let named = HttpBackend::start("named").await;
    let gateway = Gateway::start(&format!(
        "services:\n  - {{name: unix, endpoints: [\"unix:{}\"]}}\n  - {{name: named, endpoints: [\"localhost:{}\"]}}\n  - {{name: nowhere, endpoints: [\"no-such-name.invalid:80\"]}}\n",
        path.display(),
        named.addr().port()
    ))
    .await;
    for _ in 0..3 {
        assert_eq!(gateway.get("unix.default.localhost", "/").await.text(), "unix");
        assert_eq!(gateway.get("named.default.localhost", "/").await.text(), "named");
    }
    assert_eq!(unix.count(), 3);
    let nowhere = gateway.get("nowhere.default.localhost", "/").await;
    assert_eq!((nowhere.status, nowhere.reason()), (503, Some("no_endpoints")));
}

#[tokio::test]
async fn a_url_is_a_backend_with_its_own_host_and_headers() {
    let backend = HttpBackend::start("url").await;
    let gateway = Gateway::builder(&format!(
        r#"services:
  - name: web
    revisions:
      - name: web-url
        url: http://localhost:{}/base
        requestHeaders: {{set: {{X-Api-Key: "${{SLUICE_TEST_KEY}}"}}}}
"#,
        backend.addr().port()
    ))
    .env("SLUICE_TEST_KEY", "s3cret")
    .start()
    .await;
    let request = h1::request("GET", WEB, "/x?y", &[("X-Api-Key", "mine")], b"");
    assert_eq!(gateway.send(&request).await.text(), "url");
    let seen = backend.last();
    assert_eq!(seen.host, format!("localhost:{}", backend.addr().port()));
    assert_eq!(seen.target, "/base/x?y");
    let keys: Vec<_> = seen.headers.get_all("x-api-key").iter().collect();
    assert_eq!(keys, ["s3cret"]);
}

#[tokio::test]
async fn an_https_url_is_verified() {
    let ca = Ca::new();
    let acceptor = tls::acceptor(&ca.issue(&["localhost"]), &["http/1.1"]);
    let backend = HttpBackend::builder("secure").tls(acceptor).start().await;
    let config = format!(
        "services:\n  - name: web\n    revisions:\n      - {{name: web-url, url: \"https://localhost:{}\"}}\n",
        backend.addr().port()
    );
    let builder = Gateway::builder(&config).file("ca.pem", ca.pem());
    let roots = builder.dir().join("ca.pem");
    let trusting = builder
        .env("SSL_CERT_FILE", roots.to_str().unwrap())
        .start()
        .await;
    assert_eq!(trusting.get(WEB, "/").await.text(), "secure");

    let stranger = Gateway::builder(&config).file("ca.pem", Ca::new().pem());
    let roots = stranger.dir().join("ca.pem");
    let stranger = stranger
        .env("SSL_CERT_FILE", roots.to_str().unwrap())
        .start()
        .await;
    let refused = stranger.get(WEB, "/").await;
    assert_eq!((refused.status, refused.reason()), (502, Some("connect_failed")));
    assert_eq!(backend.count(), 1);
}

#[tokio::test]
async fn h2c_is_spoken_to_a_backend_that_asks_for_it() {
    let backend = HttpBackend::builder("h2c").h2c().start().await;
    let gateway = Gateway::start(&web_with(backend.addr(), "protocol: h2c")).await;
    let response = gateway
        .send(&h1::request("POST", WEB, "/x", &[], b"a body"))
        .await;
    assert_eq!(response.text(), "h2c");
    let seen = backend.last();
    assert_eq!(seen.version, Version::HTTP_2);
    assert_eq!((seen.host.as_str(), seen.body.as_ref()), (WEB, &b"a body"[..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_an_endpoint_under_load_costs_no_get() {
    let (a, b) = (HttpBackend::start("a").await, HttpBackend::start("b").await);
    let gateway = Gateway::start(&web_two(a.addr(), b.addr(), "")).await;
    let load = Load::get(gateway.addr(), 16, WEB);
    load.advance(500).await;
    wait_until("both are used", SOON, || a.count() > 0 && b.count() > 0).await;
    drop(a);
    load.advance(2_000).await;
    load.stop().await.assert_clean();
}

#[tokio::test]
async fn a_refused_connection_never_surfaces_while_another_endpoint_lives() {
    let (good, refused) = (HttpBackend::start("good").await, Refused::new());
    let gateway = Gateway::start(&web_two(good.addr(), refused.addr(), "")).await;
    for n in 0..60 {
        let method = if n % 2 == 0 { "GET" } else { "POST" };
        let response = gateway.send(&h1::request(method, WEB, "/", &[], b"")).await;
        assert_eq!(
            (response.status, response.text().as_str()),
            (200, "good"),
            "{method} {n}"
        );
    }
}

#[tokio::test]
async fn nothing_to_connect_to_is_a_502_with_its_reason() {
    let refused = Refused::new();
    let gateway = Gateway::start(&web(refused.addr())).await;
    let response = gateway.get(WEB, "/").await;
    assert_eq!(
        (response.status, response.reason()),
        (502, Some("connect_failed"))
    );
}

#[tokio::test]
async fn a_backend_that_hangs_up_before_answering_is_a_502() {
    let backend = RawBackend::start(async |_, mut io: TcpStream| read_head(&mut io).await.map(drop)).await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    for method in ["GET", "POST"] {
        let response = gateway.send(&h1::request(method, WEB, "/", &[], b"")).await;
        assert_eq!(
            (response.status, response.reason()),
            (502, Some("upstream_error")),
            "{method}"
        );
    }
}

#[tokio::test]
async fn a_stale_pooled_connection_does_not_cost_a_post() {
    let closed = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&closed);
    let backend = RawBackend::start(move |_, mut io: TcpStream| {
        let counter = Arc::clone(&counter);
        async move {
            read_head(&mut io).await?;
            io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .await?;
            // A keep-alive timeout of the server, without `Connection: close` before.
            io.shutdown().await?;
            counter.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    })
    .await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let mut client = H1::connect(gateway.addr()).await.unwrap();
    for n in 0..50 {
        let response = client
            .exchange(&h1::request("POST", WEB, "/", &[], b""))
            .await
            .unwrap();
        assert_eq!(response.status, 200, "POST {n}: {:?}", response.reason());
        wait_until("the backend closed", SOON, || {
            closed.load(Ordering::SeqCst) == n + 1
        })
        .await;
    }
}

#[tokio::test]
async fn half_a_response_is_never_passed_off_as_a_whole_one() {
    let counted = RawBackend::answers_then_resets(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
    let chunked =
        RawBackend::answers_once(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n").await;
    for backend in [counted, chunked] {
        let gateway = Gateway::start(&web(backend.addr())).await;
        let whole = h1::fetch(gateway.addr(), &h1::get(WEB, "/")).await;
        if let Ok(response) = whole {
            assert_eq!(
                response.status, 502,
                "a broken response looks complete: {response:?}"
            );
        } else {
            let entry = gateway
                .wait_access_log("the broken response", |e| e["reason"] == "upstream_reset")
                .await;
            assert_eq!(entry["status"], 200);
        }
    }
}

#[tokio::test]
async fn a_backend_that_never_answers_is_a_504_in_time() {
    let backend = RawBackend::silent().await;
    let more = "responseStartTimeoutSeconds: 1";
    let gateway = Gateway::start(&web_with(backend.addr(), more)).await;
    let response = gateway.send(&h1::request("POST", WEB, "/", &[], b"x")).await;
    assert_eq!((response.status, response.reason()), (504, Some("timeout")));
    let total = "timeoutSeconds: 1";
    let gateway = Gateway::start(&web_with(backend.addr(), total)).await;
    let response = gateway.get(WEB, "/").await;
    assert_eq!((response.status, response.reason()), (504, Some("timeout")));
}

#[tokio::test]
async fn an_error_that_was_answered_is_passed_on_and_not_retried() {
    let broken = HttpBackend::builder("broken")
        .answer(|_| Response::builder().status(500).body(full("mine")).unwrap())
        .start()
        .await;
    let gateway = Gateway::start(&web(broken.addr())).await;
    let response = gateway.get(WEB, "/").await;
    assert_eq!((response.status, response.text().as_str()), (500, "mine"));
    assert_eq!(response.reason(), None, "the answer is not the gateway's own");
    assert_eq!(broken.count(), 1);
}

#[tokio::test]
async fn a_run_of_503_ejects_an_endpoint_but_never_the_last_one() {
    let healthy = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&healthy);
    let sick = HttpBackend::builder("sick")
        .answer(move |_| {
            if switch.load(Ordering::SeqCst) {
                return ok(full("sick"));
            }
            Response::builder().status(503).body(full("no")).unwrap()
        })
        .start()
        .await;
    let good = HttpBackend::start("good").await;
    let gateway = Gateway::start(&web_two(sick.addr(), good.addr(), "")).await;
    wait_for("thirty good answers in a row", SOON, async || {
        for _ in 0..30 {
            if gateway.get(WEB, "/").await.status != 200 {
                return None;
            }
        }
        Some(())
    })
    .await;

    let alone = Gateway::start(&web(sick.addr())).await;
    for _ in 0..30 {
        let response = alone.get(WEB, "/").await;
        assert_eq!(
            (response.status, response.reason()),
            (503, None),
            "it is passed on"
        );
    }
    healthy.store(true, Ordering::SeqCst);
    assert_eq!(
        alone.get(WEB, "/").await.text(),
        "sick",
        "the last one is never ejected"
    );
}

#[tokio::test]
async fn an_endpoint_that_fails_its_readiness_probe_gets_nothing() {
    let ready = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&ready);
    let probed = HttpBackend::builder("probed")
        .answer(move |seen| {
            if seen.target == "/ready" && !switch.load(Ordering::SeqCst) {
                return Response::builder().status(500).body(full("not yet")).unwrap();
            }
            ok(full("probed"))
        })
        .start()
        .await;
    let other = HttpBackend::start("other").await;
    let probe = "readinessProbe: {httpGet: {path: /ready}}";
    let gateway = Gateway::start(&web_two(probed.addr(), other.addr(), probe)).await;
    wait_for("the endpoint is out", SOON, async || {
        for _ in 0..20 {
            if gateway.get(WEB, "/").await.text() == "probed" {
                return None;
            }
        }
        Some(())
    })
    .await;
    ready.store(true, Ordering::SeqCst);
    wait_for("the endpoint is back", Duration::from_secs(60), async || {
        (gateway.get(WEB, "/").await.text() == "probed").then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_body_reaches_the_backend_as_it_was_sent() {
    let backend = HttpBackend::builder("echo")
        .answer(|seen| ok(full(seen.body)))
        .start()
        .await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let body: Bytes = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    let response = gateway.send(&h1::request("POST", WEB, "/", &[], &body)).await;
    assert_eq!(response.body, body);
}

#[tokio::test]
async fn a_get_that_got_no_answer_is_tried_elsewhere_and_a_post_is_not() {
    let broken = RawBackend::start(async |_, mut io: TcpStream| read_head(&mut io).await.map(drop)).await;
    let good = HttpBackend::start("good").await;
    let gateway = Gateway::start(&web_two(broken.addr(), good.addr(), "")).await;
    for n in 0..20 {
        let response = gateway.get(WEB, "/").await;
        assert_eq!(
            (response.status, response.text().as_str()),
            (200, "good"),
            "GET {n}"
        );
    }
    let again = Gateway::start(&web_two(broken.addr(), good.addr(), "")).await;
    let before = (broken.connections(), good.count());
    let mut answers = (0, 0);
    for _ in 0..20 {
        let response = again.send(&h1::request("POST", WEB, "/", &[], b"x")).await;
        match response.status {
            200 => answers.0 += 1,
            502 => answers.1 += 1,
            other => panic!("{other}: {:?}", response.reason()),
        }
    }
    let after = (broken.connections(), good.count());
    assert_eq!(after.1 - before.1, answers.0, "no POST was sent twice");
    assert_eq!(after.0 - before.0, answers.1, "no POST was sent twice");
}

#[tokio::test]
async fn a_stream_that_h2_says_was_not_processed_is_tried_elsewhere() {
    let refusing = RawBackend::start(async |_, io: TcpStream| {
        let mut connection = h2::server::handshake(io).await.map_err(std::io::Error::other)?;
        while let Some(Ok((_request, mut respond))) = connection.accept().await {
            respond.send_reset(h2::Reason::REFUSED_STREAM);
        }
        Ok(())
    })
    .await;
    let good = HttpBackend::builder("good").h2c().start().await;
    let config = web_two(refusing.addr(), good.addr(), "protocol: h2c");
    let gateway = Gateway::start(&config).await;
    for n in 0..20 {
        let method = if n % 2 == 0 { "GET" } else { "POST" };
        let response = gateway.send(&h1::request(method, WEB, "/", &[], b"")).await;
        assert_eq!(
            (response.status, response.text().as_str()),
            (200, "good"),
            "{method} {n}"
        );
    }
}

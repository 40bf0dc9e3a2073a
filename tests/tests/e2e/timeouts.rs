//! The timeouts of a revision, on every pair of protocols.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sluice_tests::backend::{Builder, HttpBackend, ok, streamed};
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1};
use sluice_tests::h2_client::{self, H2};
use sluice_tests::raw_backend::{RawBackend, drain, read_head};
use sluice_tests::wait::{SOON, quiet, wait_until, within};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::{WEB, web_with};

const TIMERS: [(&str, &str); 3] = [
    ("total", "timeoutSeconds: 1"),
    ("start", "responseStartTimeoutSeconds: 1"),
    ("idle", "idleTimeoutSeconds: 1"),
];

/// One service for each timer and upstream protocol, named `total-h1` and so on.
fn services(h1: SocketAddr, h2c: SocketAddr) -> String {
    let mut out = "services:\n".to_owned();
    for (timer, key) in TIMERS {
        for (name, addr, protocol) in [("h1", h1, "http1"), ("h2c", h2c, "h2c")] {
            out.push_str(&format!(
                "  - name: {timer}-{name}\n    revisions:\n      - {{name: {timer}-{name}-a, endpoints: [\"{addr}\"], protocol: {protocol}, {key}}}\n"
            ));
        }
    }
    out
}

fn host(timer: &str, upstream: &str) -> String {
    format!("{timer}-{upstream}.default.localhost")
}

async fn pair(make: impl Fn() -> Builder) -> (HttpBackend, HttpBackend, Gateway) {
    let (h1, h2c) = (make().start().await, make().h2c().start().await);
    let gateway = Gateway::start(&services(h1.addr(), h2c.addr())).await;
    (h1, h2c, gateway)
}

#[tokio::test]
async fn before_the_head_a_timeout_is_a_504_that_names_its_timer_in_the_log() {
    let (a, b, gateway) = pair(|| HttpBackend::builder("late")).await;
    a.hold();
    b.hold();
    let h2 = H2::connect(gateway.addr()).await;
    let mut open = Vec::new();
    for (timer, _) in TIMERS {
        for upstream in ["h1", "h2c"] {
            let host = host(timer, upstream);
            let start = Instant::now();
            let plain = h1::fetch(gateway.addr(), &h1::get(&host, "/h1")).await.unwrap();
            assert_eq!((plain.status, plain.reason()), (504, Some("timeout")), "{host}");
            assert!(start.elapsed() >= Duration::from_millis(900), "{host}");
            let mut send = h2.send.clone().ready().await.unwrap();
            let post = h2_client::with_method("POST", "http", &host, "/h2");
            // The body stays open: no timer waits for it.
            let (response, body) = send.send_request(post, false).unwrap();
            open.push((timer, host, response, body));
        }
    }
    for (timer, host, response, _body) in open {
        let response = within(&host, SOON, response).await.unwrap();
        assert_eq!(response.status(), 504, "{host}");
        assert_eq!(response.headers()["x-sluice-reason"], "timeout");
        for path in ["/h1", "/h2"] {
            let entry = gateway
                .wait_access_log(&host, |e| e["host"] == host.as_str() && e["path"] == path)
                .await;
            assert_eq!(
                (&entry["status"], &entry["reason"], &entry["timer"]),
                (&504.into(), &"timeout".into(), &timer.into()),
                "{entry}"
            );
        }
    }
    a.release();
    b.release();
    for upstream in ["h1", "h2c"] {
        let get = h2_client::get("http", &host("total", upstream), "/");
        let after = h2.exchange(get, Bytes::new()).await.unwrap();
        assert_eq!(
            after.text(),
            "late",
            "connection and endpoint live on: {upstream}"
        );
    }
}

/// Answers with a head and one chunk, then nothing.
fn stalls() -> Builder {
    HttpBackend::builder("").stream(|_| async {
        let (feed, chunks) = mpsc::channel(1);
        tokio::spawn(async move {
            let _ = feed.send(Bytes::from_static(b"hello")).await;
            feed.closed().await;
        });
        ok(streamed(chunks))
    })
}

#[tokio::test]
async fn after_the_head_a_timeout_breaks_off_and_appends_nothing() {
    let (_a, _b, gateway) = pair(stalls).await;
    let h2 = H2::connect(gateway.addr()).await;
    for timer in ["total", "idle"] {
        for upstream in ["h1", "h2c"] {
            let host = host(timer, upstream);
            let mut conn = H1::connect(gateway.addr()).await.unwrap();
            conn.send(&h1::get(&host, "/h1")).await.unwrap();
            let head = conn.head(false).await.unwrap();
            assert_eq!(
                (head.status, head.header("transfer-encoding")),
                (200, Some("chunked"))
            );
            assert_eq!(conn.chunk().await.unwrap().unwrap(), b"hello");
            // Neither a last chunk nor anything else.
            match within(&host, SOON, conn.closed()).await {
                Ok(()) => {}
                Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "{host}: {e}"),
            }

            let mut send = h2.send.clone().ready().await.unwrap();
            let (response, _) = send
                .send_request(h2_client::get("http", &host, "/h2"), true)
                .unwrap();
            let mut response = response.await.unwrap();
            assert_eq!(response.status(), 200);
            let body = response.body_mut();
            assert_eq!(body.data().await.unwrap().unwrap(), "hello");
            let end = within(&host, SOON, body.data()).await;
            let error = end.expect("no orderly end").expect_err("no more bytes");
            assert!(error.is_reset(), "{host}: {error}");
            for path in ["/h1", "/h2"] {
                let entry = gateway
                    .wait_access_log(&host, |e| e["host"] == host.as_str() && e["path"] == path)
                    .await;
                assert_eq!(
                    (&entry["status"], &entry["reason"], &entry["timer"]),
                    (&200.into(), &"timeout".into(), &timer.into()),
                    "{entry}"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_body_that_only_its_end_delimits_does_not_end_like_a_whole_one() {
    let open_ended = RawBackend::start(async |_, mut io: TcpStream| {
        read_head(&mut io).await?;
        io.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello")
            .await?;
        drain(&mut io).await.map(drop)
    })
    .await;
    let chunked = stalls().start().await;
    for (backend, version) in [
        (open_ended.addr(), "1.1"),
        (open_ended.addr(), "1.0"),
        (chunked.addr(), "1.0"),
    ] {
        let gateway = Gateway::start(&web_with(backend, "idleTimeoutSeconds: 1")).await;
        let mut conn = H1::connect(gateway.addr()).await.unwrap();
        let request = format!("GET / HTTP/{version}\r\nHost: {WEB}\r\n\r\n");
        conn.send(request.as_bytes()).await.unwrap();
        let mut head = conn.head(false).await.unwrap();
        assert_eq!(head.status, 200);
        let end = within("the end", SOON, conn.finish(&mut head)).await;
        end.expect_err("half a body");
        let entry = gateway
            .wait_access_log("the request", |e| e["timer"] == "idle")
            .await;
        assert_eq!(
            (&entry["status"], &entry["reason"]),
            (&200.into(), &"timeout".into())
        );
    }
}

#[tokio::test]
async fn the_clock_until_the_head_stops_with_it_and_bytes_set_the_idle_one_back() {
    let (a, b, gateway) = pair(|| {
        HttpBackend::builder("").stream(|_| async {
            let (feed, chunks) = mpsc::channel(1);
            tokio::spawn(async move {
                for _ in 0..8 {
                    let _ = feed.send(Bytes::from_static(b"x")).await;
                    quiet(Duration::from_millis(250)).await;
                }
            });
            ok(streamed(chunks))
        })
    })
    .await;
    let h2 = H2::connect(gateway.addr()).await;
    for timer in ["start", "idle"] {
        for upstream in ["h1", "h2c"] {
            let host = host(timer, upstream);
            let request = h1::get(&host, "/");
            let over_h1 = h1::fetch(gateway.addr(), &request);
            let over_h2 = h2.exchange(h2_client::get("http", &host, "/"), Bytes::new());
            let (over_h1, over_h2) = tokio::join!(over_h1, over_h2);
            assert_eq!(over_h1.expect(&host).text(), "xxxxxxxx");
            assert_eq!(over_h2.expect(&host).text(), "xxxxxxxx");
        }
    }
    assert_eq!(a.count() + b.count(), 8);
}

#[tokio::test]
async fn waiting_in_the_queue_counts() {
    for (timer, key) in &TIMERS[..2] {
        let backend = HttpBackend::start("a").await;
        let more = format!("containerConcurrency: 1\n{key}");
        let gateway = Gateway::start(&web_with(backend.addr(), &more)).await;
        backend.hold();
        let mut first = H1::connect(gateway.addr()).await.unwrap();
        first.send(&h1::get(WEB, "/first")).await.unwrap();
        wait_until("one runs", SOON, || backend.in_flight() == 1).await;
        let second = gateway.get(WEB, "/second").await;
        assert_eq!(
            (second.status, second.reason()),
            (504, Some("timeout")),
            "{timer}"
        );
        let entry = gateway
            .wait_access_log("the one that waited", |e| e["path"] == "/second")
            .await;
        assert_eq!(entry["timer"], *timer, "{entry}");
        assert_eq!(first.response_to(b"GET ").await.unwrap().status, 504);
    }
}

#[tokio::test]
async fn a_client_that_reads_nothing_does_not_outlive_the_clocks() {
    let backend = HttpBackend::builder("endless")
        .answer(|_| {
            let (send, receive) = mpsc::channel(1);
            tokio::spawn(async move { while send.send(Bytes::from(vec![b'x'; 64 << 10])).await.is_ok() {} });
            ok(streamed(receive))
        })
        .start()
        .await;
    for (timer, key) in [("total", "timeoutSeconds: 1"), ("age", "maxStreamAge: 1s")] {
        // The write timeout is a minute.
        let gateway = Gateway::start(&web_with(backend.addr(), key)).await;
        let mut client = H1::connect(gateway.addr()).await.unwrap();
        let start = Instant::now();
        client.send(&h1::get(WEB, "/")).await.unwrap();
        let entry = gateway.wait_access_log("the request", |_| true).await;
        assert_eq!(
            (&entry["reason"], &entry["timer"]),
            (&"timeout".into(), &timer.into()),
            "{entry}"
        );
        assert!(start.elapsed() >= Duration::from_millis(900), "{timer}");
        gateway
            .wait_metric("sluice_requests_in_flight", &[], SOON, |n| n == 0.0)
            .await;
    }
}

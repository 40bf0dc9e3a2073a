//! Backends and clients that keep to no agreement, and what they must not cost anybody else.

use std::time::Duration;

use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1};
use sluice_tests::raw_backend::{RawBackend, drain, read_head};
use sluice_tests::wait::{SOON, wait_for};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::{WEB, web, web_with};

const UPGRADE: &[(&str, &str)] = &[("Upgrade", "websocket"), ("Connection", "Upgrade")];

#[tokio::test]
async fn a_retry_after_beyond_all_clocks_is_passed_on() {
    let backend = RawBackend::start(async |n, mut io: TcpStream| {
        let mut asked = if n == 0 { "1" } else { "18446744073709551615" };
        loop {
            read_head(&mut io).await?;
            let answer =
                format!("HTTP/1.1 429 Slow Down\r\nRetry-After: {asked}\r\nContent-Length: 0\r\n\r\n");
            io.write_all(answer.as_bytes()).await?;
            asked = "18446744073709551615";
        }
    })
    .await;
    let gateway = Gateway::start(&format!(
        "services:\n  - name: web\n    revisions:\n      - {{name: web-a, url: \"http://{}\"}}\n",
        backend.addr()
    ))
    .await;
    let answer = gateway.get(WEB, "/").await;
    assert_eq!(
        (answer.status, answer.header("retry-after")),
        (429, Some("18446744073709551615"))
    );
}

#[tokio::test]
async fn a_101_that_nobody_asked_for_is_an_upstream_error() {
    let backend =
        RawBackend::answers(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nwhatever").await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let answer = gateway.get(WEB, "/").await;
    assert_eq!((answer.status, answer.reason()), (502, Some("upstream_error")));
}

#[tokio::test]
async fn a_request_answered_with_garbage_is_not_sent_again() {
    let backend = RawBackend::answers_once(b"HTTP/1.1 abc\r\n\r\n").await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let answer = gateway.get(WEB, "/").await;
    assert_eq!((answer.status, answer.reason()), (502, Some("upstream_error")));
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn a_request_that_breaks_backends_is_sent_three_times_at_most() {
    let backend = RawBackend::start(async |_, mut io: TcpStream| read_head(&mut io).await.map(drop)).await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let answer = gateway.get(WEB, "/").await;
    assert_eq!((answer.status, answer.reason()), (502, Some("upstream_error")));
    assert_eq!(backend.connections(), 3);
}

/// Answers every request with a head and a first byte of ten, and no more.
async fn unfinished() -> RawBackend {
    RawBackend::start(async |_, mut io: TcpStream| {
        read_head(&mut io).await?;
        io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\na")
            .await?;
        drain(&mut io).await.map(drop)
    })
    .await
}

async fn wait_idle(gateway: &Gateway) {
    wait_for("the slot to be free", SOON, async || {
        let held = gateway
            .metric("sluice_requests_in_flight", &[("revision", "web-a")])
            .await;
        (held == 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_upgrade_answered_without_one_keeps_to_the_timeouts() {
    for timer in ["total", "idle"] {
        let backend = unfinished().await;
        let key = if timer == "total" {
            "timeoutSeconds: 1"
        } else {
            "idleTimeoutSeconds: 1"
        };
        let gateway = Gateway::start(&web_with(backend.addr(), key)).await;
        let mut conn = H1::connect(gateway.addr()).await.unwrap();
        conn.send(&h1::request("GET", WEB, "/", UPGRADE, b""))
            .await
            .unwrap();
        assert_eq!(conn.head(false).await.unwrap().status, 200);
        assert_eq!(conn.exactly(1).await.unwrap(), b"a");
        conn.closed().await.unwrap();
        let line = gateway
            .wait_access_log("the request", |e| e["status"] == 200)
            .await;
        assert_eq!(
            (&line["reason"], &line["timer"]),
            (&"timeout".into(), &timer.into())
        );
        assert_eq!(line["bytes_out"], 1);
    }
}

#[tokio::test]
async fn a_client_that_leaves_after_a_refused_upgrade_frees_its_slot() {
    let backend = unfinished().await;
    let gateway = Gateway::start(&web_with(backend.addr(), "containerConcurrency: 1")).await;
    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    conn.send(&h1::request("GET", WEB, "/", UPGRADE, b""))
        .await
        .unwrap();
    assert_eq!(conn.head(false).await.unwrap().status, 200);
    drop(conn);
    wait_idle(&gateway).await;
}

#[tokio::test]
async fn an_upload_that_stalls_after_its_answer_does_not_keep_the_slot() {
    let backend =
        RawBackend::answers_once(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            .await;
    let gateway = Gateway::start(&web_with(backend.addr(), "containerConcurrency: 1")).await;
    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    let head = format!("POST / HTTP/1.1\r\nHost: {WEB}\r\nContent-Length: 100\r\n\r\nabc");
    assert_eq!(conn.exchange(head.as_bytes()).await.unwrap().text(), "ok");
    wait_idle(&gateway).await;
    conn.closed().await.unwrap();
    let line = gateway
        .wait_access_log("the request", |e| e["status"] == 200)
        .await;
    assert_eq!(line["reason"], "request_timeout");
}

#[tokio::test]
async fn a_tunnel_is_not_logged_as_late_for_outliving_the_request_timeouts() {
    let backend = RawBackend::start(async |_, mut io: TcpStream| {
        read_head(&mut io).await?;
        io.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        )
        .await?;
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        io.write_all(b"still here").await
    })
    .await;
    let keys = "timeoutSeconds: 1\nresponseStartTimeoutSeconds: 1";
    let gateway = Gateway::start(&web_with(backend.addr(), keys)).await;
    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    let request = h1::request("GET", WEB, "/", UPGRADE, b"");
    assert_eq!(conn.exchange(&request).await.unwrap().status, 101);
    assert_eq!(conn.exactly(10).await.unwrap(), b"still here");
    drop(conn);
    let line = gateway
        .wait_access_log("the tunnel", |e| e["status"] == 101)
        .await;
    assert!(line["timer"].is_null() && line["reason"].is_null(), "{line}");
}

#[tokio::test]
async fn lengths_that_http2_clients_take_for_broken_streams_are_settled() {
    for (answer, status, length) in [
        (
            &b"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n"[..],
            204,
            None,
        ),
        (
            b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
            200,
            Some("2"),
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok",
            502,
            Some("57"),
        ),
    ] {
        let backend = RawBackend::answers(answer).await;
        let gateway = Gateway::start(&web(backend.addr())).await;
        let seen = gateway.get(WEB, "/").await;
        let lengths: Vec<_> = seen
            .headers
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case("content-length"))
            .collect();
        assert_eq!((seen.status, seen.minor_version), (status, 1));
        assert_eq!(
            lengths.iter().map(|(_, v)| v.as_str()).collect::<Vec<_>>(),
            length.into_iter().collect::<Vec<_>>()
        );
    }
}

#[tokio::test]
async fn a_response_still_open_at_the_drains_deadline_is_cut_and_logged() {
    let backend = unfinished().await;
    let config = format!("drain: {{timeout: 1s}}\n{}", web(backend.addr()));
    let mut gateway = Gateway::start(&config).await;
    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    conn.send(&h1::get(WEB, "/")).await.unwrap();
    assert_eq!(conn.head(false).await.unwrap().status, 200);
    assert_eq!(conn.exactly(1).await.unwrap(), b"a");
    gateway.sigterm();
    // One second, and nothing like the time that answers and closes are given after it.
    let status = gateway.wait_exit(Duration::from_secs(4)).await;
    assert!(status.success(), "{status}");
    let line = gateway
        .wait_access_log("the request", |e| e["status"] == 200)
        .await;
    assert_eq!(
        (&line["reason"], &line["bytes_out"]),
        (&"draining".into(), &1.into())
    );
}

//! Limits on clients: sizes of requests, numbers of connections.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use sluice_tests::backend::HttpBackend;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1};
use sluice_tests::h2_client::{self, H2};
use sluice_tests::tls::Ca;
use sluice_tests::wait::{SOON, wait_for, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::exhaustion::answered;
use crate::{WEB, web};

#[tokio::test]
async fn h2_requests_over_a_limit_have_answers_of_their_own() {
    let backend = HttpBackend::start("a").await;
    let limits = "limits: {maxHeaderBytes: 8KiB, maxHeaders: 20, maxUriBytes: 1KiB, maxBodyBytes: 1000}";
    let gateway = Gateway::start(&format!("{limits}\n{}", web(backend.addr()))).await;
    let long = "x".repeat(10_000);
    let h2 = H2::connect(gateway.addr()).await;

    let mut many = h2_client::get("http", WEB, "/");
    for n in 0..30 {
        let name = http::HeaderName::try_from(format!("x-{n}")).unwrap();
        many.headers_mut().insert(name, "1".parse().unwrap());
    }
    let long_target = h2_client::get("http", WEB, &format!("/{}", &long[..2_000]));
    let mut announced = h2_client::with_method("POST", "http", WEB, "/");
    announced
        .headers_mut()
        .insert("content-length", "1001".parse().unwrap());
    for (what, request, body, status, reason) in [
        ("many fields", many, Bytes::new(), 431, "headers_too_large"),
        ("a long target", long_target, Bytes::new(), 414, "uri_too_long"),
        (
            "a large body",
            announced,
            Bytes::from(long[..1_001].to_owned()),
            413,
            "body_too_large",
        ),
    ] {
        let response = h2.exchange(request, body).await.expect(what);
        assert_eq!(
            (response.status, response.header("x-sluice-reason")),
            (status, Some(reason)),
            "{what}"
        );
    }
    // Without a Content-Length.
    let mut send = h2.send.clone().ready().await.unwrap();
    let post = h2_client::with_method("POST", "http", WEB, "/");
    let (response, mut stream) = send.send_request(post, false).unwrap();
    stream
        .send_data(Bytes::from(long[..2_000].to_owned()), true)
        .unwrap();
    let response = within("an answer", SOON, response).await.unwrap();
    assert_eq!(response.status(), 413);
    assert_eq!(response.headers()["x-sluice-reason"], "body_too_large");

    // The h2 layer refuses the stream by itself, so there is no reason in a response.
    let mut large = h2_client::get("http", WEB, "/");
    large.headers_mut().insert("x-a", long.parse().unwrap());
    if let Ok(response) = h2.exchange(large, Bytes::new()).await {
        assert_eq!(response.status, 431);
    }
    assert_eq!(backend.count(), 0, "none of them reached the backend whole");
    let fine = H2::connect(gateway.addr()).await;
    let fine = fine
        .exchange(h2_client::get("http", WEB, "/"), Bytes::new())
        .await;
    assert_eq!(fine.unwrap().status, 200);
}

#[tokio::test]
async fn a_body_that_stops_coming_is_a_408() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&format!(
        "limits: {{bodyReadTimeout: 1s}}\n{}",
        web(backend.addr())
    ))
    .await;
    for framing in ["Content-Length: 10", "Transfer-Encoding: chunked"] {
        let mut conn = H1::connect(gateway.addr()).await.unwrap();
        let head = format!("POST / HTTP/1.1\r\nHost: {WEB}\r\n{framing}\r\n\r\n4\r\n");
        conn.send(head.as_bytes()).await.unwrap();
        let response = within(framing, SOON, conn.response_to(b"POST ")).await.unwrap();
        assert_eq!(
            (response.status, response.reason()),
            (408, Some("request_timeout")),
            "{framing}"
        );
    }
}

#[tokio::test]
async fn an_idle_h2_connection_is_closed_in_time_and_a_busy_one_is_not() {
    let backend = HttpBackend::start("a").await;
    let ca = Ca::new();
    let limits = "limits: {idleTimeout: 1s, headerTimeout: 1s}";
    let builder = Gateway::builder(&format!(
        "{limits}\nlisteners: [{{address: \"127.0.0.1:0\"}}, {{address: \"127.0.0.1:0\", tls: {{certificates: [{{certFile: a.crt, keyFile: a.key}}]}}}}]\n{}",
        web(backend.addr())
    ));
    ca.issue(&[WEB]).write(builder.dir(), "a");
    let gateway = builder.start().await;
    let plain = H2::connect(gateway.listener(0)).await;
    let secure = H2::over(ca.connect(gateway.listener(1), WEB, &["h2"]).await.unwrap()).await;
    let busy = H2::connect(gateway.listener(0)).await;
    for (h2, scheme) in [(&plain, "http"), (&secure, "https")] {
        let response = h2.exchange(h2_client::get(scheme, WEB, "/"), Bytes::new()).await;
        assert_eq!(response.unwrap().status, 200);
    }
    backend.hold();
    let mut send = busy.send.clone().ready().await.unwrap();
    let (held, _) = send.send_request(h2_client::get("http", WEB, "/"), true).unwrap();
    for (what, h2) in [("plain", &plain), ("secure", &secure)] {
        wait_for(&format!("{what}: the connection ends"), SOON, async || {
            h2.send.clone().ready().await.err()
        })
        .await;
    }
    backend.release();
    let response = within("the held one", SOON, held).await.unwrap();
    assert_eq!(response.status(), 200, "a stream under way is no idleness");

    // Neither a preface without an end nor a handshake without one keeps a connection.
    for (listener, begin) in [(0, &b"PRI * HTTP/2.0\r\n"[..]), (1, &b"\x16\x03\x01"[..])] {
        let mut io = TcpStream::connect(gateway.listener(listener)).await.unwrap();
        io.write_all(begin).await.unwrap();
        let mut rest = Vec::new();
        let end = within(
            "a connection that goes nowhere is closed",
            SOON,
            io.read_to_end(&mut rest),
        );
        // With unread bytes a close is a reset.
        let _ = end.await;
    }
}

#[tokio::test]
async fn connections_are_bounded_in_all_and_for_each_client() {
    let backend = HttpBackend::start("a").await;
    for (limit, reason) in [
        ("maxConnections: 3", "connection_limit"),
        ("maxConnectionsPerClient: 3", "client_limit"),
    ] {
        let gateway = Gateway::start(&format!("limits: {{{limit}}}\n{}", web(backend.addr()))).await;
        let mut open = Vec::new();
        for _ in 0..3 {
            let mut conn = H1::connect(gateway.addr()).await.unwrap();
            assert!(answered(&mut conn).await, "{limit}");
            open.push(conn);
        }
        let mut surplus = H1::connect(gateway.addr()).await.unwrap();
        assert!(!answered(&mut surplus).await, "{limit}");
        let closed = [("reason", reason)];
        gateway
            .wait_metric("sluice_connections_closed_total", &closed, SOON, |n| n == 1.0)
            .await;
        let elsewhere: IpAddr = "127.0.0.9".parse().unwrap();
        let mut other = H1::connect_from(elsewhere, gateway.addr()).await.unwrap();
        assert_eq!(answered(&mut other).await, reason == "client_limit", "{limit}");
        for conn in &mut open {
            assert!(answered(conn).await, "{limit}: those that are open go on");
        }
        drop(open.pop());
        wait_for("a place that came free is used", SOON, async || {
            let mut conn = H1::connect(gateway.addr()).await.ok()?;
            answered(&mut conn).await.then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_client_that_stops_reading_does_not_hold_a_place_forever() {
    let backend = HttpBackend::builder("")
        .answer(|_| sluice_tests::backend::ok(sluice_tests::backend::full(vec![b'x'; 32 << 20])))
        .start()
        .await;
    let gateway = Gateway::start(&format!("limits: {{writeTimeout: 1s}}\n{}", web(backend.addr()))).await;
    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    conn.send(&h1::get(WEB, "/")).await.unwrap();
    gateway
        .wait_access_log("the request is over", |e| e["reason"] == "client_gone")
        .await;
    gateway
        .wait_metric("sluice_requests_in_flight", &[], Duration::from_secs(5), |n| {
            n == 0.0
        })
        .await;
    drop(conn);
}

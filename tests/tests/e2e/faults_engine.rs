//! Faults of the forwarding engine, found by review: trailers after a Content-Length, a client that leaves while its
//! body is blocked by back-pressure.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use sluice_tests::gateway::Gateway;
use sluice_tests::h2_client::{self, H2};
use sluice_tests::raw_backend::{RawBackend, read_head};
use sluice_tests::wait::{SOON, within};
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::{WEB, web_with};

/// RFC 9113 8.1: trailers may follow a body whose length was announced; some gRPC servers do that.
#[tokio::test]
async fn trailers_follow_a_body_of_known_length_over_http2() {
    let backend = RawBackend::start(async |_, io: TcpStream| {
        let mut connection = h2::server::handshake(io).await.expect("HTTP/2 is spoken");
        while let Some(stream) = connection.accept().await {
            let Ok((_, mut respond)) = stream else { break };
            let head = Response::builder()
                .header("content-length", 5)
                .body(())
                .expect("a head");
            let mut body = respond.send_response(head, false).expect("a stream");
            body.send_data(Bytes::from_static(b"hello"), false)
                .expect("a stream");
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            body.send_trailers(trailers).expect("a stream");
        }
        Ok(())
    })
    .await;
    let gateway = Gateway::start(&web_with(backend.addr(), "protocol: h2c")).await;
    let client = H2::connect(gateway.addr()).await;
    let answer = client
        .exchange(h2_client::get("http", WEB, "/"), Bytes::new())
        .await
        .expect("an answer");
    assert_eq!(
        (answer.text().as_str(), answer.header("content-length")),
        ("hello", Some("5"))
    );
    let trailers = answer.trailers.expect("trailers");
    assert_eq!(
        trailers.get("grpc-status").map(HeaderValue::as_bytes),
        Some(&b"0"[..])
    );
}

/// The slot of a client that left is free at once, also while the backend reads nothing of the body.
async fn gone(gateway: &Gateway) {
    let reason = gateway.wait_access_log("the request", |_| true).await["reason"].clone();
    assert_eq!(reason, "client_gone");
    gateway
        .wait_metric("sluice_requests_in_flight", &[], SOON, |n| n == 0.0)
        .await;
}

/// A backend that reads the head, and nothing of the body.
async fn deaf() -> (RawBackend, Gateway) {
    let backend = RawBackend::start(async |_, mut io: TcpStream| {
        read_head(&mut io).await?;
        std::future::pending().await
    })
    .await;
    let gateway = Gateway::start(&web_with(backend.addr(), "")).await;
    (backend, gateway)
}

/// Sends until back-pressure has blocked the sender for this long.
const STUCK: Duration = Duration::from_millis(300);

#[tokio::test]
async fn a_client_that_resets_while_its_body_is_not_taken_is_gone() {
    let (_backend, gateway) = deaf().await;
    let mut io = TcpStream::connect(gateway.addr()).await.expect("it accepts");
    let head = format!("POST / HTTP/1.1\r\nHost: {WEB}\r\nContent-Length: 1000000000\r\n\r\n");
    io.write_all(head.as_bytes()).await.expect("it reads");
    let piece = vec![b'x'; 64 << 10];
    while tokio::time::timeout(STUCK, io.write_all(&piece)).await.is_ok() {}
    SockRef::from(&io)
        .set_linger(Some(Duration::ZERO))
        .expect("a socket");
    drop(io);
    gone(&gateway).await;
}

#[tokio::test]
async fn a_stream_that_is_reset_while_its_body_is_not_taken_is_gone() {
    let (_backend, gateway) = deaf().await;
    let client = H2::connect(gateway.addr()).await;
    let mut send = client.send.clone().ready().await.expect("a connection");
    let request = h2_client::with_method("POST", "http", WEB, "/");
    let (response, mut body) = send.send_request(request, false).expect("a stream");
    loop {
        body.reserve_capacity(16 << 10);
        let room = std::future::poll_fn(|cx| body.poll_capacity(cx));
        let Ok(Some(Ok(n))) = tokio::time::timeout(STUCK, room).await else {
            break;
        };
        body.send_data(Bytes::from(vec![b'x'; n]), false)
            .expect("a stream");
    }
    body.send_reset(h2::Reason::CANCEL);
    within("the end", SOON, response).await.expect_err("it was reset");
    gone(&gateway).await;
}

//! Long streams: WebSockets and other upgrades, server-sent events, and large bodies under back-pressure.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::Response;
use http_body_util::BodyExt;
use sluice_tests::backend::{HttpBackend, full, ok, streamed};
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1};
use sluice_tests::h2_client::{self, H2};
use sluice_tests::process::{peak_resident_kib, resident_kib};
use sluice_tests::raw_backend::{RawBackend, drain, read_head};
use sluice_tests::wait::{SOON, quiet, within};
use sluice_tests::websocket::{self, echo_backend, echoed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use crate::{WEB, web, web_with};

#[tokio::test]
async fn a_websocket_carries_messages_both_ways_and_closes_cleanly() {
    let (backend, _) = echo_backend().await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let mut ws = websocket::connect(gateway.addr(), WEB).await;
    for n in 0..20 {
        echoed(&mut ws, Message::text(format!("message {n}"))).await;
    }
    echoed(&mut ws, Message::binary(vec![7u8; 200_000])).await;
    ws.close(None).await.unwrap();
    let end = within("the close is answered", SOON, ws.next()).await;
    assert!(end.is_none_or(|m| m.is_ok_and(|m| m.is_close())));
    let entry = gateway
        .wait_access_log("the tunnel", |e| e["status"] == 101)
        .await;
    assert!(entry["bytes_out"].as_u64().unwrap() > 200_000, "{entry}");
}

#[tokio::test]
async fn a_tunnel_outlives_every_timer_but_its_own() {
    let (backend, _) = echo_backend().await;
    let more = "timeoutSeconds: 1\nresponseStartTimeoutSeconds: 1";
    let limits = "limits: {idleTimeout: 1s, headerTimeout: 1s}";
    let gateway = Gateway::start(&format!("{limits}\n{}", web_with(backend.addr(), more))).await;
    let mut ws = websocket::connect(gateway.addr(), WEB).await;
    quiet(Duration::from_secs(3)).await;
    echoed(&mut ws, Message::text("still here")).await;

    let gateway = Gateway::start(&web_with(backend.addr(), "idleTimeoutSeconds: 1")).await;
    let mut ws = websocket::connect(gateway.addr(), WEB).await;
    echoed(&mut ws, Message::text("busy")).await;
    let end = within("its own idle timer ends it", SOON, ws.next()).await;
    assert!(end.is_none_or(|m| m.is_err() || m.is_ok_and(|m| m.is_close())));
}

const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

#[tokio::test]
async fn a_backend_may_answer_101_and_speak_at_once() {
    let backend = RawBackend::start(async |_, mut io: TcpStream| {
        read_head(&mut io).await?;
        io.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello",
        )
        .await?;
        let mut word = [0u8; 4];
        io.read_exact(&mut word).await?;
        io.write_all(&word).await
    })
    .await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let request = format!("GET /chat HTTP/1.1\r\nHost: {WEB}\r\n{UPGRADE}\r\n");
    for n in 0..200 {
        let mut conn = H1::connect(gateway.addr()).await.unwrap();
        let head = conn.exchange(request.as_bytes()).await.unwrap();
        assert_eq!(head.status, 101, "attempt {n}");
        assert_eq!(conn.exactly(5).await.unwrap(), b"hello", "attempt {n}");
        conn.send(b"ping").await.unwrap();
        assert_eq!(conn.exactly(4).await.unwrap(), b"ping", "attempt {n}");
        conn.closed().await.unwrap();
    }
}

#[tokio::test]
async fn what_the_client_sends_right_behind_its_upgrade_is_not_lost() {
    let backend = RawBackend::start(async |_, mut io: TcpStream| {
        let (_, mut early) = read_head(&mut io).await?;
        io.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        )
        .await?;
        while early.len() < 5 {
            io.read_buf(&mut early).await?;
        }
        io.write_all(&early).await
    })
    .await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    let request = format!("GET /chat HTTP/1.1\r\nHost: {WEB}\r\n{UPGRADE}\r\nearly");
    let head = conn.exchange(request.as_bytes()).await.unwrap();
    assert_eq!(head.status, 101);
    assert_eq!(conn.exactly(5).await.unwrap(), b"early");
}

#[tokio::test]
async fn a_refused_upgrade_is_an_ordinary_answer() {
    let backend = HttpBackend::builder("")
        .answer(|_| Response::builder().status(426).body(full("no")).unwrap())
        .start()
        .await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let request = format!("GET / HTTP/1.1\r\nHost: {WEB}\r\n{UPGRADE}\r\n");
    let response = gateway.send(request.as_bytes()).await;
    assert_eq!((response.status, response.text().as_str()), (426, "no"));
}

#[tokio::test]
async fn events_arrive_as_they_are_sent() {
    let (feed, events) = mpsc::channel::<mpsc::Receiver<Bytes>>(4);
    let events = std::sync::Arc::new(tokio::sync::Mutex::new(events));
    let backend = HttpBackend::builder("")
        .stream(move |_| {
            let events = std::sync::Arc::clone(&events);
            async move {
                let body = events.lock().await.recv().await.unwrap();
                let response = Response::builder().header("Content-Type", "text/event-stream");
                response.body(streamed(body)).unwrap()
            }
        })
        .start()
        .await;
    let gateway = Gateway::start(&web(backend.addr())).await;

    let (send, receive) = mpsc::channel(1);
    feed.send(receive).await.unwrap();
    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    conn.send(&h1::get(WEB, "/")).await.unwrap();
    assert_eq!(
        within("the head", SOON, conn.head(false)).await.unwrap().status,
        200
    );
    for n in 0..20 {
        let event = format!("data: {n}\n\n");
        send.send(Bytes::from(event.clone())).await.unwrap();
        let chunk = within("the event, before the next one", SOON, conn.chunk()).await;
        assert_eq!(chunk.unwrap().unwrap(), event.as_bytes());
    }
    drop(send);
    assert_eq!(conn.chunk().await.unwrap(), None);

    let (send, receive) = mpsc::channel(1);
    feed.send(receive).await.unwrap();
    let h2 = H2::connect(gateway.addr()).await;
    let mut requests = h2.send.clone().ready().await.unwrap();
    let (response, _) = requests
        .send_request(h2_client::get("http", WEB, "/"), true)
        .unwrap();
    let mut body = within("the head over h2", SOON, response)
        .await
        .unwrap()
        .into_body();
    for n in 0..20 {
        let event = Bytes::from(format!("data: {n}\n\n"));
        send.send(event.clone()).await.unwrap();
        let chunk = within("the event over h2", SOON, body.data()).await;
        assert_eq!(chunk.unwrap().unwrap(), event);
    }
}

const GIB: u64 = 1 << 30;

/// Growth of resident memory, in KiB, that means that a body was buffered.
const FLAT_KIB: u64 = 64 * 1024;

fn assert_flat(gateway: &Gateway, before_kib: u64) {
    let peak = peak_resident_kib(gateway.pid());
    assert!(
        peak < before_kib + FLAT_KIB,
        "{before_kib} KiB before, {peak} KiB at the peak"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_gib_up_in_flat_memory() {
    let backend = HttpBackend::builder("")
        .stream(async |request| {
            let mut body = request.into_body();
            let mut total = 0u64;
            while let Some(Ok(frame)) = body.frame().await {
                total += frame.data_ref().map_or(0, Bytes::len) as u64;
            }
            ok(full(total.to_string()))
        })
        .start()
        .await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    gateway.get(WEB, "/").await;
    let before = resident_kib(gateway.pid());
    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    let head = format!("POST / HTTP/1.1\r\nHost: {WEB}\r\nContent-Length: {GIB}\r\n\r\n");
    conn.send(head.as_bytes()).await.unwrap();
    let block = vec![b'x'; 1 << 20];
    for _ in 0..GIB >> 20 {
        conn.send(&block).await.unwrap();
    }
    let response = conn.response_to(b"POST ").await.unwrap();
    assert_eq!(response.text(), GIB.to_string());
    assert_flat(&gateway, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_gib_down_in_flat_memory_even_to_a_client_that_pauses() {
    let backend = RawBackend::start(async |_, mut io: TcpStream| {
        read_head(&mut io).await?;
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {GIB}\r\n\r\n");
        io.write_all(head.as_bytes()).await?;
        let block = vec![b'x'; 1 << 20];
        for _ in 0..GIB >> 20 {
            io.write_all(&block).await?;
        }
        drain(&mut io).await.map(drop)
    })
    .await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let before = resident_kib(gateway.pid());
    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    conn.send(&h1::get(WEB, "/")).await.unwrap();
    assert_eq!(conn.head(false).await.unwrap().status, 200);
    // Bytes read from the backend meanwhile would have to be buffered.
    quiet(Duration::from_millis(500)).await;
    conn.discard(GIB).await.unwrap();
    assert_flat(&gateway, before);
}

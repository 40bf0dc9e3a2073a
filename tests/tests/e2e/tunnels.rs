//! The end of upgraded connections: by their own timers and by the gateway's drain alone.

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1};
use sluice_tests::raw_backend::{RawBackend, drain, read_head};
use sluice_tests::wait::{SOON, within};
use sluice_tests::websocket::{self, echo_backend, echoed, going_away};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::{WEB, web_with};

async fn connect(gateway: &Gateway) -> WebSocketStream<TcpStream> {
    let mut ws = websocket::connect(gateway.addr(), WEB).await;
    echoed(&mut ws, Message::text("hi")).await;
    ws
}

async fn assert_told_to_go(ws: &mut WebSocketStream<TcpStream>, closes: &mut mpsc::UnboundedReceiver<u16>) {
    going_away(ws).await;
    let told = within("the backend is told, too", SOON, closes.recv()).await;
    assert_eq!(told, Some(1001));
}

#[tokio::test]
async fn a_websocket_too_old_is_asked_to_go() {
    let (backend, mut closes) = echo_backend().await;
    let gateway = Gateway::start(&web_with(backend.addr(), "maxStreamAge: 1s")).await;
    let start = Instant::now();
    let mut ws = connect(&gateway).await;
    assert_told_to_go(&mut ws, &mut closes).await;
    assert!(
        start.elapsed() >= Duration::from_millis(900),
        "{:?}",
        start.elapsed()
    );
    let entry = gateway
        .wait_access_log("the tunnel", |e| e["status"] == 101)
        .await;
    assert!(entry["reason"].is_null(), "{entry}");
}

#[tokio::test]
async fn a_silent_websocket_ends_by_its_idle_timer() {
    let (backend, _closes) = echo_backend().await;
    let gateway = Gateway::start(&web_with(backend.addr(), "idleTimeoutSeconds: 1")).await;
    let mut ws = connect(&gateway).await;
    let end = within("the end", SOON, ws.next()).await;
    assert!(end.is_none_or(|m| m.is_err() || m.is_ok_and(|m| m.is_close())));
    let entry = gateway
        .wait_access_log("the tunnel", |e| e["status"] == 101)
        .await;
    assert_eq!(
        (&entry["reason"], &entry["timer"]),
        (&"timeout".into(), &"idle".into())
    );
}

#[tokio::test]
async fn at_the_end_of_the_drain_websockets_are_asked_to_go() {
    let (backend, mut closes) = echo_backend().await;
    let mut gateway = Gateway::start(&format!(
        "drain: {{timeout: 1s}}\n{}",
        web_with(backend.addr(), "")
    ))
    .await;
    let mut ws = connect(&gateway).await;
    gateway.sigterm();
    ws.send(Message::text("still")).await.unwrap();
    let reply = within("an echo while it drains", SOON, ws.next()).await;
    assert_eq!(reply.unwrap().unwrap(), Message::text("still"));
    assert_told_to_go(&mut ws, &mut closes).await;
    drop(ws);
    assert_eq!(gateway.wait_exit(Duration::from_secs(15)).await.code(), Some(0));
}

const UPGRADE: [(&str, &str); 4] = [
    ("Upgrade", "websocket"),
    ("Connection", "Upgrade"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

#[tokio::test]
async fn before_the_101_an_upgrade_has_the_clocks_of_every_request() {
    let silent = RawBackend::silent().await;
    for (timer, key) in [
        ("total", "timeoutSeconds: 1"),
        ("start", "responseStartTimeoutSeconds: 1"),
    ] {
        let gateway = Gateway::start(&web_with(silent.addr(), key)).await;
        let request = h1::request("GET", WEB, "/chat", &UPGRADE, b"");
        let response = gateway.send(&request).await;
        assert_eq!((response.status, response.reason()), (504, Some("timeout")));
        let entry = gateway.wait_access_log(timer, |e| e["status"] == 504).await;
        assert_eq!(entry["timer"], timer, "{entry}");
    }
}

#[tokio::test]
async fn the_body_of_a_refused_upgrade_has_them_too() {
    let stalls = RawBackend::start(async |_, mut io: TcpStream| {
        read_head(&mut io).await?;
        io.write_all(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 10\r\n\r\nhalf")
            .await?;
        drain(&mut io).await.map(drop)
    })
    .await;
    let open_ended = RawBackend::start(async |_, mut io: TcpStream| {
        read_head(&mut io).await?;
        io.write_all(b"HTTP/1.1 426 Upgrade Required\r\nConnection: close\r\n\r\nhalf")
            .await?;
        drain(&mut io).await.map(drop)
    })
    .await;
    for (timer, key, backend) in [
        ("total", "timeoutSeconds: 1", &stalls),
        ("idle", "idleTimeoutSeconds: 1", &stalls),
        ("idle", "idleTimeoutSeconds: 1", &open_ended),
    ] {
        let gateway = Gateway::start(&web_with(backend.addr(), key)).await;
        let mut conn = H1::connect(gateway.addr()).await.unwrap();
        conn.send(&h1::request("GET", WEB, "/chat", &UPGRADE, b""))
            .await
            .unwrap();
        let mut head = conn.head(false).await.unwrap();
        assert_eq!(head.status, 426);
        let rest = within("the body breaks off", SOON, conn.finish(&mut head)).await;
        rest.expect_err("half a body");
        let entry = gateway.wait_access_log(timer, |e| e["status"] == 426).await;
        assert_eq!(
            (&entry["reason"], &entry["timer"]),
            (&"timeout".into(), &timer.into()),
            "{entry}"
        );
    }
}

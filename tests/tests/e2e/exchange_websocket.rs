//! WebSocket over HTTP/2 by extended CONNECT (RFC 8441), to HTTP/1.1 backends.

use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::{SinkExt, StreamExt};
use h2::ext::Protocol;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderValue, Request, Response};
use sluice_tests::gateway::Gateway;
use sluice_tests::h2_client::{self, H2, collect};
use sluice_tests::raw_backend::{RawBackend, drain, read_head};
use sluice_tests::wait::{SOON, quiet, wait_for, wait_until, within};
use sluice_tests::websocket::{echoed, going_away};
use sluice_tests::{backend::HttpBackend, h1};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::{WEB, web_with};

const LISTENER: &str = "listeners:\n  - {address: \"127.0.0.1:0\", http2: {webSocket: true}}\n";

/// A backend that echoes messages over HTTP/1.1; the channel has each head and the code of each Close.
async fn echo() -> (RawBackend, mpsc::UnboundedReceiver<String>) {
    let (tell, told) = mpsc::unbounded_channel();
    let backend = RawBackend::start(move |_, mut io: TcpStream| {
        let tell = tell.clone();
        async move {
            let (head, rest) = read_head(&mut io).await?;
            let key = field(&head, "sec-websocket-key").unwrap_or_default();
            let accept = derive_accept_key(key.as_bytes());
            let _ = tell.send(head);
            io.write_all(
                format!(
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
                )
                .as_bytes(),
            )
            .await?;
            let mut ws = WebSocketStream::from_partially_read(io, rest, Role::Server, None).await;
            while let Some(Ok(message)) = ws.next().await {
                match message {
                    Message::Close(frame) => {
                        let code: u16 = frame.map_or(0, |f| f.code.into());
                        let _ = tell.send(format!("close {code}"));
                    }
                    Message::Text(text) if text.as_str() == "break" => {
                        ws.get_mut().set_zero_linger()?;
                        return Ok(());
                    }
                    message => {
                        if ws.send(message).await.is_err() {
                            break;
                        }
                    }
                }
            }
            let _ = tell.send("end".to_owned());
            Ok(())
        }
    })
    .await;
    (backend, told)
}

fn field<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    let mut fields = head.lines().filter_map(|line| line.split_once(": "));
    let found = fields.find(|(n, _)| n.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value)
}

fn connect_for(protocol: &'static str, path: &str) -> Request<()> {
    let mut request = h2_client::with_method("CONNECT", "http", WEB, path);
    request.extensions_mut().insert(Protocol::from_static(protocol));
    let version = HeaderValue::from_static("13");
    request.headers_mut().insert("sec-websocket-version", version);
    request
}

/// A connection whose peer has announced extended CONNECT.
async fn client(gateway: &Gateway) -> H2 {
    let client = H2::connect(gateway.addr()).await;
    wait_until("SETTINGS_ENABLE_CONNECT_PROTOCOL", SOON, || {
        client.send.is_extended_connect_protocol_enabled()
    })
    .await;
    client
}

async fn asked(client: &H2, request: Request<()>) -> (Response<RecvStream>, SendStream<Bytes>) {
    let mut send = client.send.clone().ready().await.expect("open");
    let (response, stream) = send.send_request(request, false).expect("open");
    (
        within("an answer", SOON, response).await.expect("an answer"),
        stream,
    )
}

/// A WebSocket over a stream. `DuplexStream` is the stream's bytes, pumped under its flow control.
async fn open(client: &H2) -> WebSocketStream<DuplexStream> {
    let (response, stream) = asked(client, connect_for("websocket", "/chat?x")).await;
    assert_eq!(response.status(), 200);
    let io = pumped(response.into_body(), stream);
    let mut ws = WebSocketStream::from_raw_socket(io, Role::Client, None).await;
    echoed(&mut ws, Message::text("hi")).await;
    ws
}

fn pumped(mut recv: RecvStream, mut send: SendStream<Bytes>) -> DuplexStream {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (mut from, mut to) = tokio::io::split(far);
    tokio::spawn(async move {
        while let Some(Ok(data)) = recv.data().await {
            if to.write_all(&data).await.is_err() {
                return;
            }
            let _ = recv.flow_control().release_capacity(data.len());
        }
        let _ = to.shutdown().await;
    });
    tokio::spawn(async move {
        let mut data = vec![0; 16 * 1024];
        while let Ok(n @ 1..) = from.read(&mut data).await {
            let mut rest = Bytes::copy_from_slice(&data[..n]);
            while rest.has_remaining() {
                send.reserve_capacity(rest.len());
                let Some(Ok(room)) = std::future::poll_fn(|cx| send.poll_capacity(cx)).await else {
                    return;
                };
                if send
                    .send_data(rest.split_to(room.min(rest.len())), false)
                    .is_err()
                {
                    return;
                }
            }
        }
        let _ = send.send_data(Bytes::new(), true);
    });
    near
}

/// RFC 8441 5.
#[tokio::test]
async fn a_websocket_over_h2_carries_messages_both_ways_and_closes_cleanly() {
    let (backend, mut told) = echo().await;
    let gateway = Gateway::start(&format!("{LISTENER}{}", web_with(backend.addr(), ""))).await;
    let client = client(&gateway).await;
    let (response, stream) = asked(&client, connect_for("websocket", "/chat?x")).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
    for absent in ["sec-websocket-accept", "content-length", "upgrade"] {
        assert!(!response.headers().contains_key(absent), "{response:?}");
    }
    let head = told.recv().await.expect("a head");
    assert!(head.starts_with("GET /chat?x HTTP/1.1\r\n"), "{head}");
    for (name, value) in [
        ("host", WEB),
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
    ] {
        assert_eq!(field(&head, name), Some(value), "{head}");
    }
    assert_eq!(
        field(&head, "sec-websocket-key").map(str::len),
        Some(24),
        "{head}"
    );

    let io = pumped(response.into_body(), stream);
    let mut ws = WebSocketStream::from_raw_socket(io, Role::Client, None).await;
    echoed(&mut ws, Message::binary(vec![7; 300 * 1024])).await;
    // More small messages than any bound on frames: messages count as work.
    for n in 0..3_000 {
        echoed(&mut ws, Message::text(n.to_string())).await;
    }
    // Requests on the same connection.
    let beside = client.exchange(h2_client::get("http", "nobody", "/"), Bytes::new());
    assert_eq!(beside.await.unwrap().status, 404);
    ws.close(None).await.unwrap();
    let end = within("the end", SOON, async {
        while let Some(Ok(_)) = ws.next().await {}
    });
    end.await;
    let entry = gateway
        .wait_access_log("the tunnel", |e| e["path"] == "/chat")
        .await;
    assert_eq!(
        (&entry["status"], &entry["method"], entry["reason"].is_null()),
        (&200.into(), &"GET".into(), true),
        "{entry}"
    );
    assert!(entry["bytes_in"].as_u64() > Some(300 * 1024), "{entry}");
    assert!(entry["bytes_out"].as_u64() > Some(300 * 1024), "{entry}");
    // The same fields as in an upgrade over HTTP/1.1.
    let upgrade = h1::request(
        "GET",
        WEB,
        "/old",
        &[
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Key", "x"),
        ],
        b"",
    );
    let mut old = h1::H1::connect(gateway.addr()).await.unwrap();
    old.send(&upgrade).await.unwrap();
    assert_eq!(old.head(false).await.unwrap().status, 101);
    drop(old);
    let other = gateway
        .wait_access_log("the other", |e| e["path"] == "/old")
        .await;
    assert_eq!(entry["protocol"], other["protocol"]);
}

/// RFC 8441 3 and 4: extended CONNECT is used only where it was announced.
#[tokio::test]
async fn without_the_listeners_key_there_is_none() {
    let backend = HttpBackend::start("web").await;
    let gateway = Gateway::start(&web_with(backend.addr(), "")).await;
    let client = H2::connect(gateway.addr()).await;
    let get = h2_client::get("http", WEB, "/");
    assert_eq!(client.exchange(get, Bytes::new()).await.unwrap().status, 200);
    assert!(!client.send.is_extended_connect_protocol_enabled());
    let plain = Request::builder().method("CONNECT").uri(WEB).body(()).unwrap();
    let refused = client.exchange(plain, Bytes::new()).await.unwrap();
    assert_eq!(
        (refused.status, refused.header("x-sluice-reason")),
        (405, Some("bad_request"))
    );
}

#[tokio::test]
async fn what_cannot_be_served_by_it_is_501_with_a_reason() {
    let h2c = HttpBackend::builder("h2c").h2c().start().await;
    let http1 = HttpBackend::start("http1").await;
    for (revision, addr, protocol) in [
        ("protocol: h2c", h2c.addr(), "websocket"),
        ("", http1.addr(), "connect-udp"),
    ] {
        let gateway = Gateway::start(&format!("{LISTENER}{}", web_with(addr, revision))).await;
        let client = client(&gateway).await;
        let (response, _stream) = asked(&client, connect_for(protocol, "/")).await;
        let refused = collect(response).await.unwrap();
        assert_eq!(
            (refused.status, refused.header("x-sluice-reason")),
            (501, Some("bad_request")),
            "{protocol}"
        );
        assert!(refused.text().contains("WebSocket"), "{}", refused.text());
        // The connection goes on.
        let get = h2_client::get("http", WEB, "/");
        assert_eq!(client.exchange(get, Bytes::new()).await.unwrap().status, 200);
    }
    assert_eq!((h2c.count(), http1.count()), (1, 1));
}

#[tokio::test]
async fn a_declined_websocket_is_an_ordinary_answer() {
    const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n";
    for (answer, status, text) in [
        (
            "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno".to_owned(),
            403,
            "no",
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned(), 200, ""),
        // RFC 6455 4.1: a 101 without the hash of the key is invalid.
        (
            format!("{SWITCH}Upgrade: websocket\r\n\r\n"),
            502,
            "upstream_error",
        ),
        (
            format!(
                "{SWITCH}Upgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
            ),
            502,
            "upstream_error",
        ),
        (format!("{SWITCH}Upgrade: tcp\r\n\r\n"), 502, "upstream_error"),
    ] {
        let backend = RawBackend::start(move |_, mut io: TcpStream| {
            let answer = answer.clone();
            async move {
                read_head(&mut io).await?;
                io.write_all(answer.as_bytes()).await?;
                drain(&mut io).await.map(drop)
            }
        })
        .await;
        let gateway = Gateway::start(&format!("{LISTENER}{}", web_with(backend.addr(), ""))).await;
        let client = client(&gateway).await;
        let (response, _stream) = asked(&client, connect_for("websocket", "/")).await;
        let (refused, ended) = (response.status(), response.body().is_end_stream());
        let answer = within("the body", SOON, collect(response)).await.unwrap();
        assert!(refused == status && answer.text().starts_with(text), "{answer:?}");
        assert!(status != 200 || ended, "nobody may take this 200 for a tunnel");
    }
}

async fn assert_told_to_go(
    ws: &mut WebSocketStream<DuplexStream>,
    told: &mut mpsc::UnboundedReceiver<String>,
) {
    going_away(ws).await;
    let close = within("the backend is told, too", SOON, told.recv()).await;
    assert_eq!(close.as_deref(), Some("close 1001"));
}

#[tokio::test]
async fn it_has_the_bounds_of_every_tunnel() {
    let (backend, mut told) = echo().await;
    let config = |key| format!("{LISTENER}{}", web_with(backend.addr(), key));
    let gateway = Gateway::start(&config("maxStreamAge: 1s")).await;
    let young = client(&gateway).await;
    let mut ws = open(&young).await;
    told.recv().await.expect("a head");
    assert_told_to_go(&mut ws, &mut told).await;

    let gateway = Gateway::start(&config("idleTimeoutSeconds: 1")).await;
    let quiet = client(&gateway).await;
    let mut ws = open(&quiet).await;
    let end = within("the end", SOON, ws.next()).await;
    assert!(end.is_none_or(|m| m.is_err() || m.is_ok_and(|m| m.is_close())));
    let entry = gateway
        .wait_access_log("the tunnel", |e| e["status"] == 200)
        .await;
    assert_eq!(
        (&entry["reason"], &entry["timer"]),
        (&"timeout".into(), &"idle".into())
    );
}

#[tokio::test]
async fn at_the_end_of_the_drain_it_is_asked_to_go() {
    let (backend, mut told) = echo().await;
    let drain = "drain: {timeout: 1s}\n";
    let mut gateway = Gateway::start(&format!("{drain}{LISTENER}{}", web_with(backend.addr(), ""))).await;
    let client = client(&gateway).await;
    let mut ws = open(&client).await;
    told.recv().await.expect("a head");
    gateway.sigterm();
    echoed(&mut ws, Message::text("still")).await;
    assert_told_to_go(&mut ws, &mut told).await;
    drop((ws, client));
    assert_eq!(gateway.wait_exit(Duration::from_secs(15)).await.code(), Some(0));
}

/// RFC 8441 5: a connection that broke is RST_STREAM with CANCEL.
#[tokio::test]
async fn what_breaks_on_one_side_breaks_on_the_other() {
    let (backend, mut told) = echo().await;
    let gateway = Gateway::start(&format!("{LISTENER}{}", web_with(backend.addr(), ""))).await;
    let client = client(&gateway).await;

    let (response, mut stream) = asked(&client, connect_for("websocket", "/")).await;
    told.recv().await.expect("a head");
    // A masked text of five bytes, with a key of zeros.
    let text = Bytes::from_static(b"\x81\x85\0\0\0\0break");
    stream.send_data(text, false).unwrap();
    let mut body = response.into_body();
    let broken = within("a reset", SOON, body.data()).await.expect("no END_STREAM");
    assert_eq!(broken.unwrap_err().reason(), Some(Reason::CANCEL));

    let (_response, mut stream) = asked(&client, connect_for("websocket", "/")).await;
    told.recv().await.expect("a head");
    stream.send_reset(Reason::CANCEL);
    let end = within("the backend sees the end", Duration::from_secs(4), told.recv()).await;
    assert_eq!(end.as_deref(), Some("end"));

    // The connection and its other streams go on.
    let mut ws = open(&client).await;
    echoed(&mut ws, Message::text("on")).await;
}

/// RFC 9113 5.2: flow control blocks one stream only.
#[tokio::test]
async fn a_client_that_does_not_read_stops_its_backend_alone() {
    let written = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&written);
    let backend = RawBackend::start(move |number, mut io: TcpStream| {
        let count = std::sync::Arc::clone(&count);
        async move {
            let (head, _) = read_head(&mut io).await?;
            let accept = derive_accept_key(field(&head, "sec-websocket-key").unwrap_or_default().as_bytes());
            let switch = format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
            );
            io.write_all(switch.as_bytes()).await?;
            if number > 0 {
                return io.write_all(b"\x82\x02ok").await;
            }
            loop {
                let n = io.write(&[0x82, 0].repeat(8 * 1024)).await?;
                count.fetch_add(n, std::sync::atomic::Ordering::SeqCst);
            }
        }
    })
    .await;
    let gateway = Gateway::start(&format!("{LISTENER}{}", web_with(backend.addr(), ""))).await;
    let stuck = client(&gateway).await;
    let (_unread, _stream) = asked(&stuck, connect_for("websocket", "/")).await;
    let seen = || written.load(std::sync::atomic::Ordering::SeqCst);
    // Until back-pressure blocks the sender.
    wait_for("the backend stands still", SOON, async || {
        let before = seen();
        quiet(Duration::from_millis(300)).await;
        (before > 0 && before == seen()).then_some(())
    })
    .await;
    // The bytes in buffers: sockets of either side, and windows.
    assert!(seen() < 16 << 20, "{}", seen());
    // Its connection's window is used up, too: that is this client's choice.
    let other = client(&gateway).await;
    let (response, _stream) = asked(&other, connect_for("websocket", "/")).await;
    let data = within("the other one", SOON, response.into_body().data()).await;
    assert_eq!(data.unwrap().unwrap(), &b"\x82\x02ok"[..]);
}

//! A stream while something starts: signs of life to a held request's client, and then the backend's response.

use std::net::SocketAddr;

use bytes::Bytes;
use http::Response;
use sluice_tests::backend::{Body, HttpBackend, Seen, full, streamed};
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1};
use sluice_tests::h2_client::{self, H2};
use sluice_tests::wait::{SOON, wait_until, within};
use tokio::net::TcpSocket;
use tokio::sync::mpsc;

use crate::WEB;
use crate::waiting_page::with_keys;
use crate::webhook::{platform, reserve, service, status};

const SSE: &str = "cold: {answer: stream, after: 200ms, every: 100ms}";
const JSON: &str = "cold: {answer: stream, after: 200ms, every: 100ms, as: json}";

/// A gateway whose service is started by a platform: the test decides when, and what it answers.
struct Cold {
    gateway: Gateway,
    platform: HttpBackend,
    address: SocketAddr,
    _reserved: TcpSocket,
}

impl Cold {
    async fn start(keys: &str, revision: &str) -> Self {
        let platform = platform(|_, _| status(202)).await;
        let (reserved, address) = reserve();
        let config = with_keys(&service(&platform, Some(address), revision), keys);
        Self {
            gateway: Gateway::start(&config).await,
            platform,
            address,
            _reserved: reserved,
        }
    }

    async fn ready(&self, answer: impl Fn(Seen) -> Response<Body> + Send + Sync + 'static) -> HttpBackend {
        HttpBackend::builder("web")
            .answer(answer)
            .at(self.address)
            .start()
            .await
    }

    async fn open(&self, request: &[u8]) -> H1 {
        let mut connection = H1::connect(self.gateway.addr())
            .await
            .expect("an open connection");
        connection.send(request).await.expect("an open connection");
        connection
    }
}

fn typed(status: u16, kind: &str, body: Body) -> Response<Body> {
    Response::builder()
        .status(status)
        .header("content-type", kind)
        .body(body)
        .expect("a response")
}

fn asks(accept: &str) -> Vec<u8> {
    asks_for("/v1/chat", accept)
}

fn asks_for(path: &str, accept: &str) -> Vec<u8> {
    let fields = [
        ("Accept", accept),
        ("Accept-Encoding", "gzip"),
        ("Content-Type", "application/json"),
    ];
    h1::request("POST", WEB, path, &fields, b"{\"stream\": true}")
}

/// Reads chunks until there are this many signs of life; returns everything.
async fn signs(connection: &mut H1, count: usize) -> String {
    let mut text = String::new();
    while text.matches("\n\n").count() < count {
        let chunk = connection
            .chunk()
            .await
            .expect("an open connection")
            .expect("the stream goes on");
        text.push_str(std::str::from_utf8(&chunk).expect("UTF-8"));
    }
    text
}

async fn rest(connection: &mut H1) -> String {
    let mut text = String::new();
    while let Some(chunk) = connection.chunk().await.expect("an open connection") {
        text.push_str(std::str::from_utf8(&chunk).expect("UTF-8"));
    }
    text
}

#[tokio::test]
async fn comments_tell_of_the_start_until_the_backends_events_follow() {
    let cold = Cold::start(SSE, "").await;
    let mut first = cold.open(&asks("text/event-stream")).await;
    let head = first.head(false).await.expect("an open connection");
    assert_eq!(
        (head.status, head.header("content-type")),
        (200, Some("text/event-stream"))
    );
    assert_eq!(
        (head.header("cache-control"), head.reason()),
        (Some("no-store"), Some("starting"))
    );
    assert!(head.header("x-request-id").is_some() && head.header("content-length").is_none());
    let told = signs(&mut first, 3).await;
    for sign in told.trim_end().split("\n\n") {
        assert!(
            sign.starts_with(": ") && !sign.contains('\n'),
            "a comment: {sign:?}"
        );
        assert!(
            sign.contains(" s so far") && sign.ends_with(", place 1 in the queue"),
            "{sign:?}"
        );
    }
    let mut second = cold.open(&asks_for("/second", "text/event-stream")).await;
    assert_eq!(second.head(false).await.expect("an open connection").status, 200);
    assert!(signs(&mut second, 1).await.contains("place 2 in the queue"));
    assert_eq!(
        cold.gateway.metric("sluice_queue_depth", &[]).await,
        2.0,
        "a held stream is a waiter"
    );
    assert_eq!(cold.platform.count(), 1);

    let (events, chunks) = mpsc::channel(1);
    let chunks = std::sync::Mutex::new(Some(chunks));
    let backend = cold
        // Both are sent at the same moment, and may come in either order.
        .ready(move |seen| match seen.target.as_str() {
            "/second" => typed(200, "text/event-stream", full("data: second\n\n")),
            _ => match chunks.lock().unwrap().take() {
                Some(chunks) => typed(201, "text/event-stream; charset=utf-8", streamed(chunks)),
                None => typed(200, "text/event-stream", full("data: warm\n\n")),
            },
        })
        .await;
    let waits = async |connection: &mut H1, text: &str| {
        let mut seen = String::new();
        while !seen.ends_with(text) {
            seen.push_str(
                &String::from_utf8(
                    connection
                        .chunk()
                        .await
                        .expect("an open connection")
                        .expect("goes on"),
                )
                .unwrap(),
            );
        }
        seen
    };
    events
        .send(Bytes::from("data: one\n\n"))
        .await
        .expect("an open connection");
    let seen = waits(&mut first, "data: one\n\n").await;
    let before = seen.strip_suffix("data: one\n\n").unwrap();
    assert!(
        before
            .split("\n\n")
            .all(|sign| sign.is_empty() || sign.starts_with(": ")),
        "{before:?}"
    );
    events
        .send(Bytes::from("data: two\n\n"))
        .await
        .expect("an open connection");
    drop(events);
    assert_eq!(
        rest(&mut first).await,
        "data: two\n\n",
        "and nothing of the gateway's in between"
    );
    assert!(rest(&mut second).await.ends_with("data: second\n\n"));
    for seen in backend.seen() {
        assert_eq!(
            (seen.header("accept-encoding"), seen.body.as_ref()),
            (None, &b"{\"stream\": true}"[..])
        );
        assert_eq!(seen.header("accept"), Some("text/event-stream"));
    }
    let logged = cold
        .gateway
        .wait_access_log("both statuses", |e| e["final_status"] == 201)
        .await;
    assert_eq!(
        (&logged["status"], &logged["reason"]),
        (&200.into(), &serde_json::Value::Null),
        "{logged}"
    );
    assert!(logged["queue_ms"].as_f64().unwrap() >= 400.0, "{logged}");
    // Warm: what the backend says, and what the client accepts.
    let mut warm = cold.open(&asks("text/event-stream")).await;
    let head = warm.head(false).await.expect("an open connection");
    assert_eq!((head.status, head.reason()), (200, None));
    wait_until("the third request", SOON, || backend.count() == 3).await;
    assert_eq!(backend.last().header("accept-encoding"), Some("gzip"));
}

#[tokio::test]
async fn another_answer_is_an_event_with_its_status() {
    let cold = Cold::start(SSE, "").await;
    let mut stream = cold.open(&asks("text/event-stream")).await;
    assert_eq!(stream.head(false).await.expect("an open connection").status, 200);
    signs(&mut stream, 1).await;
    let _backend = cold
        .ready(|_| typed(404, "text/plain", full("no such model\n\nevent: x")))
        .await;
    let told = rest(&mut stream).await;
    let event = told
        .split("\n\n")
        .find(|part| part.starts_with("event: "))
        .expect("an event");
    let data = event.strip_prefix("event: error\ndata: ").expect("an error");
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(data).unwrap()["status"],
        404
    );
    assert!(!told.contains("no such model"), "{told}");
    let logged = cold
        .gateway
        .wait_access_log("both statuses", |e| e["final_status"] == 404)
        .await;
    assert_eq!(logged["status"], 200, "{logged}");
}

#[tokio::test]
async fn a_start_that_fails_is_an_event_with_its_reason() {
    let cold = Cold::start(SSE, "queue: {timeout: 1s}").await;
    let mut stream = cold.open(&asks("text/event-stream")).await;
    assert_eq!(stream.head(false).await.expect("an open connection").status, 200);
    let told = rest(&mut stream).await;
    assert!(told.starts_with(": "), "{told}");
    let data = told
        .trim_end()
        .rsplit_once("event: error\ndata: ")
        .expect("an error")
        .1;
    let data: serde_json::Value = serde_json::from_str(data).unwrap();
    assert_eq!(
        (&data["status"], &data["reason"]),
        (&503.into(), &"activation_timeout".into())
    );
    let logged = cold
        .gateway
        .wait_access_log("both statuses", |e| e["final_status"] == 503)
        .await;
    assert_eq!(
        (&logged["status"], &logged["reason"]),
        (&200.into(), &"activation_timeout".into()),
        "{logged}"
    );
    let rejected = [("service", "web"), ("reason", "activation_timeout")];
    assert_eq!(
        cold.gateway.metric("sluice_rejections_total", &rejected).await,
        1.0
    );
}

#[tokio::test]
async fn whitespace_goes_before_a_json_answer_and_a_reset_is_the_other_one() {
    let cold = Cold::start(JSON, "").await;
    let mut good = cold.open(&asks("application/json")).await;
    let mut bad = cold
        .open(&h1::request(
            "GET",
            WEB,
            "/bad",
            &[("Accept", "application/json")],
            b"",
        ))
        .await;
    for stream in [&mut good, &mut bad] {
        let head = stream.head(false).await.expect("an open connection");
        assert_eq!(
            (head.status, head.header("content-type")),
            (200, Some("application/json"))
        );
        for _ in 0..2 {
            assert_eq!(
                stream.chunk().await.expect("an open connection").as_deref(),
                Some(&b"\n"[..])
            );
        }
    }
    let _backend = cold
        .ready(|seen| match seen.target.as_str() {
            "/bad" => typed(500, "application/json", full("{}")),
            _ => typed(200, "application/json", full("{\"answer\": 42}")),
        })
        .await;
    let text = rest(&mut good).await;
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["answer"],
        42,
        "{text:?}"
    );
    let cut = within("the stream is cut", SOON, async {
        loop {
            match bad.chunk().await {
                Ok(Some(chunk)) => assert_eq!(chunk, b"\n"),
                Ok(None) => break false,
                Err(_) => break true,
            }
        }
    });
    assert!(cut.await, "a part must not look like the whole");
    cold.gateway
        .wait_access_log("both statuses", |e| e["final_status"] == 500)
        .await;
}

#[tokio::test]
async fn http2_streams_are_the_same() {
    let cold = Cold::start(SSE, "").await;
    let h2 = H2::connect(cold.gateway.addr()).await;
    let open = async |accept: &str| {
        let mut request = h2_client::get("http", WEB, "/");
        request
            .headers_mut()
            .insert("accept", accept.parse().expect("a value"));
        let mut send = h2.send.clone().ready().await.expect("an open connection");
        let (response, _) = send.send_request(request, true).expect("a stream");
        response.await
    };
    let response = open("text/event-stream").await.expect("an open connection");
    assert_eq!(
        (response.status().as_u16(), &response.headers()["x-sluice-reason"]),
        (200, &"starting".parse().expect("a value"))
    );
    let _backend = cold
        .ready(|_| typed(200, "text/event-stream", full("data: x\n\n")))
        .await;
    let whole = h2_client::collect(response)
        .await
        .expect("an open connection")
        .text();
    assert!(
        whole.starts_with(": ") && whole.ends_with("\n\ndata: x\n\n"),
        "{whole}"
    );
}

/// Not named, an interim response expected, or gRPC: held as ever, and what the backend says is what the client gets.
#[tokio::test]
async fn who_does_not_name_the_type_is_held() {
    let cold = Cold::start(SSE, "queue: {timeout: 2s}").await;
    let addr = cold.gateway.addr();
    let request = |fields: &[(&str, &str)]| h1::request("POST", WEB, "/", fields, b"x");
    let requests = [
        request(&[("Accept", "*/*")]),
        request(&[("Accept", "text/*")]),
        request(&[("Accept", "text/event-stream;q=0")]),
        request(&[("Accept", "application/json")]),
        request(&[
            ("Accept", "text/event-stream"),
            ("Content-Type", "application/grpc"),
        ]),
        request(&[
            ("Accept", "text/event-stream"),
            ("Content-Type", "application/grpc-web+proto"),
        ]),
        h1::request("HEAD", WEB, "/", &[("Accept", "text/event-stream")], b""),
    ];
    let held = requests.map(|request| tokio::spawn(async move { h1::fetch(addr, &request).await }));
    for (nth, held) in held.into_iter().enumerate() {
        let response = held.await.expect("an open connection").unwrap();
        assert_eq!(
            response.reason(),
            Some("activation_timeout"),
            "{nth}: {}",
            response.text()
        );
        assert_ne!(
            response.header("content-type"),
            Some("text/event-stream"),
            "{nth}"
        );
    }
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_place() {
    let cold = Cold::start(SSE, "").await;
    let mut stream = cold.open(&asks("text/event-stream")).await;
    assert_eq!(stream.head(false).await.expect("an open connection").status, 200);
    signs(&mut stream, 1).await;
    cold.gateway
        .wait_metric("sluice_queue_depth", &[], SOON, |n| n == 1.0)
        .await;
    drop(stream);
    cold.gateway
        .wait_metric("sluice_queue_depth", &[], SOON, |n| n == 0.0)
        .await;
    let logged = cold
        .gateway
        .wait_access_log("the end", |e| e["reason"] == "client_gone")
        .await;
    assert_eq!(
        (&logged["status"], &logged["final_status"]),
        (&200.into(), &serde_json::Value::Null),
        "{logged}"
    );
}

/// A client that takes no byte of its stream: one sign is pending, and the write timeout ends it.
#[tokio::test]
async fn a_client_that_reads_nothing_is_gone_after_the_write_timeout() {
    let cold = Cold::start(SSE, "").await;
    cold.gateway
        .rewrite_config(|text| format!("limits: {{writeTimeout: 1s}}\n{text}"))
        .await;
    let io = tokio::net::TcpStream::connect(cold.gateway.addr())
        .await
        .expect("an open connection");
    let (send, connection) = h2::client::Builder::new()
        .initial_window_size(0)
        .handshake::<_, Bytes>(io)
        .await
        .expect("an open connection");
    let connection = tokio::spawn(connection);
    let mut request = h2_client::get("http", WEB, "/");
    request
        .headers_mut()
        .insert("accept", "text/event-stream".parse().expect("a value"));
    let (response, _) = send
        .ready()
        .await
        .expect("an open connection")
        .send_request(request, true)
        .unwrap();
    let response = response.await.expect("an open connection");
    assert_eq!(response.status().as_u16(), 200);
    cold.gateway
        .wait_metric("sluice_queue_depth", &[], SOON, |n| n == 0.0)
        .await;
    let logged = cold
        .gateway
        .wait_access_log("the end", |e| e["reason"] == "client_gone")
        .await;
    assert_eq!(
        (&logged["status"], &logged["bytes_out"]),
        (&200.into(), &0.into()),
        "{logged}"
    );
    assert!(logged["duration_ms"].as_f64().unwrap() < 10_000.0, "{logged}");
    assert_eq!(cold.platform.count(), 1);
    drop(response);
    connection.abort();
}

//! Many streams on one connection to a backend that speaks HTTP/2 (RFC 9113 5.1.2).

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use sluice_tests::backend::HttpBackend;
use sluice_tests::gateway::Gateway;
use sluice_tests::grpc::{self, EchoClient, Note};
use sluice_tests::h2_client::{self, H2, H2Response};
use sluice_tests::raw_backend::RawBackend;
use sluice_tests::wait::{SOON, wait_until, within};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::Code;

use crate::{WEB, web_with};

type Calls = Vec<JoinHandle<Result<H2Response, h2::Error>>>;

/// Begins this many requests at once on one connection.
async fn begin(gateway: &Gateway, count: usize) -> (Arc<H2>, Calls) {
    let client = Arc::new(H2::connect(gateway.addr()).await);
    let calls = (0..count).map(|_| {
        let client = Arc::clone(&client);
        tokio::spawn(async move {
            client
                .exchange(h2_client::get("http", WEB, "/"), Bytes::new())
                .await
        })
    });
    (Arc::clone(&client), calls.collect())
}

async fn assert_served(calls: Calls) {
    for call in calls {
        let answered = within("an answer", SOON, call).await.expect("no panic");
        assert_eq!(answered.expect("a whole answer").status, 200);
    }
}

#[tokio::test]
async fn streams_share_connections_up_to_max_streams_per_connection() {
    for (key, connections) in [("", 1), ("maxStreamsPerConnection: 10", 4)] {
        let backend = HttpBackend::builder("h2c").h2c().start().await;
        let gateway = Gateway::start(&web_with(backend.addr(), &format!("protocol: h2c\n{key}"))).await;
        backend.hold();
        let (_client, calls) = begin(&gateway, 40).await;
        wait_until("all are there at once", SOON, || backend.in_flight() == 40).await;
        assert_eq!(backend.connections(), connections, "{key}");
        backend.release();
        assert_served(calls).await;
        // The open connection is used again.
        let (_client, calls) = begin(&gateway, 40).await;
        assert_served(calls).await;
        assert_eq!(backend.connections(), connections, "{key}");
    }
}

/// Begins 20 requests on a backend that takes connections and says nothing, and waits until all of them wait.
async fn convoy(gateway: &Gateway) -> (Arc<H2>, Calls) {
    let (client, calls) = begin(gateway, 20).await;
    gateway
        .wait_metric("sluice_requests_in_flight", &[], SOON, |n| n == 20.0)
        .await;
    (client, calls)
}

#[tokio::test]
async fn all_that_wait_for_a_connection_are_served_by_it() {
    let speaks = Arc::new(tokio::sync::Semaphore::new(0));
    let may = Arc::clone(&speaks);
    let backend = RawBackend::start(move |_, io: TcpStream| {
        let may = Arc::clone(&may);
        async move {
            let _turn = may.acquire().await.map_err(io::Error::other)?;
            let mut connection = h2::server::handshake(io).await.map_err(io::Error::other)?;
            while let Some(Ok((_request, mut respond))) = connection.accept().await {
                let sent = respond.send_response(http::Response::new(()), true);
                sent.map_err(io::Error::other)?;
            }
            Ok(())
        }
    })
    .await;
    let gateway = Gateway::start(&web_with(backend.addr(), "protocol: h2c")).await;
    let (_client, calls) = convoy(&gateway).await;
    speaks.add_permits(1);
    assert_served(calls).await;
    assert_eq!(backend.connections(), 1);
}

/// One after another they would wait twenty times as long.
#[tokio::test]
async fn all_that_wait_for_a_connection_wait_no_longer_than_one() {
    let backend = RawBackend::silent().await;
    let config = format!(
        "limits: {{connectTimeout: 1s}}\n{}",
        web_with(backend.addr(), "protocol: h2c")
    );
    let gateway = Gateway::start(&config).await;
    let begun = tokio::time::Instant::now();
    let (_client, calls) = convoy(&gateway).await;
    for call in calls {
        let answer = within("an answer", SOON, call).await.expect("no panic");
        let answer = answer.expect("a whole answer");
        assert_eq!(
            (answer.status, answer.header("x-sluice-reason")),
            (502, Some("connect_failed"))
        );
    }
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
}

/// RFC 9113 5.1.2: the peer's SETTINGS limit the streams.
#[tokio::test]
async fn no_more_streams_than_the_backends_settings_allow() {
    let open: Arc<Mutex<HashMap<usize, Vec<h2::server::SendResponse<Bytes>>>>> = Arc::default();
    let held = Arc::clone(&open);
    let backend = RawBackend::start(move |number, io: TcpStream| {
        let held = Arc::clone(&held);
        async move {
            let mut builder = h2::server::Builder::new();
            let handshake = builder.max_concurrent_streams(4).handshake(io).await;
            let mut connection = handshake.map_err(io::Error::other)?;
            while let Some(Ok((_request, respond))) = connection.accept().await {
                held.lock().unwrap().entry(number).or_default().push(respond);
            }
            Ok(())
        }
    })
    .await;
    let gateway = Gateway::start(&web_with(backend.addr(), "protocol: h2c")).await;
    let (_client, calls) = begin(&gateway, 12).await;
    let counts = || {
        let open = open.lock().unwrap();
        open.values().map(Vec::len).collect::<Vec<_>>()
    };
    wait_until("all are there at once", SOON, || {
        counts().iter().sum::<usize>() == 12
    })
    .await;
    assert_eq!(counts(), [4; 3]);
    for mut respond in std::mem::take(&mut *open.lock().unwrap()).into_values().flatten() {
        respond.send_response(http::Response::new(()), true).unwrap();
    }
    assert_served(calls).await;
}

#[tokio::test]
async fn a_limit_of_concurrency_counts_streams() {
    let backend = HttpBackend::builder("h2c").h2c().start().await;
    let gateway = Gateway::start(&web_with(
        backend.addr(),
        "protocol: h2c\ncontainerConcurrency: 3",
    ))
    .await;
    backend.hold();
    let (_client, calls) = begin(&gateway, 10).await;
    wait_until("as many as allowed", SOON, || backend.in_flight() == 3).await;
    gateway
        .wait_metric("sluice_queue_depth", &[], SOON, |n| n == 7.0)
        .await;
    backend.release();
    assert_served(calls).await;
    assert_eq!((backend.peak_in_flight(), backend.connections()), (3, 1));
}

/// A gRPC service that counts its connections.
async fn echo_service() -> RawBackend {
    RawBackend::start(async |_, io: TcpStream| {
        let service = service_fn(async |request| Ok::<_, Infallible>(grpc::respond(request).await));
        let builder = http2::Builder::new(TokioExecutor::new());
        let served = builder.serve_connection(TokioIo::new(io), service).await;
        served.map_err(io::Error::other)
    })
    .await
}

#[tokio::test]
async fn what_happens_to_one_stream_leaves_the_others_alone() {
    let backend = echo_service().await;
    let gateway = Gateway::start(&web_with(backend.addr(), "protocol: h2c")).await;
    let mut client = EchoClient::connect(gateway.addr(), WEB).await;
    let (say, notes) = mpsc::channel(4);
    let mut chat = client.chat(notes).await.expect("a stream");
    let mut expect_echo = async |what: &str| {
        say.send(Note::new(what, 1)).await.expect("the stream is open");
        let note = within(what, SOON, chat.message()).await.expect("no status yet");
        assert_eq!(note.map(|note| note.text), Some(format!("re: {what}")));
    };
    expect_echo("before").await;

    // A timeout of one stream.
    let late = client
        .unary(Note::new("sleep", 0), Some(Duration::from_millis(200)))
        .await;
    // Either the gateway's timeout or the client's own deadline comes first.
    let code = late.expect_err("no answer").code();
    assert!(
        matches!(code, Code::DeadlineExceeded | Code::Cancelled),
        "{code:?}"
    );
    expect_echo("after a deadline").await;

    // A reset of one stream.
    let mut endless = client.watch(Note::new("endless", 1)).await.expect("a stream");
    endless.message().await.expect("a note");
    drop(endless);
    expect_echo("after a reset").await;

    // A client that does not read, on a connection of its own: the stream is blocked by back-pressure.
    let mut slow = EchoClient::connect(gateway.addr(), WEB).await;
    let text = "x".repeat(16 * 1024);
    let unread = slow.watch(Note::new(&text, 2_000)).await.expect("a stream");
    for n in 0..20 {
        let answer = within("a unary call", SOON, client.unary(Note::new("hi", n), None)).await;
        assert_eq!(answer.expect("an answer").into_inner().number, n);
    }
    expect_echo("beside a client that does not read").await;
    drop(unread);
    assert_eq!(backend.connections(), 1);
}

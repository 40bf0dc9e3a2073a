//! HTTP/2 over TLS and without, and gRPC on it.

use std::time::Duration;

use bytes::Bytes;
use sluice_tests::backend::{HttpBackend, full, ok, streamed};
use sluice_tests::gateway::Gateway;
use sluice_tests::grpc::{EchoClient, EchoServer, Note};
use sluice_tests::h1::{self, H1};
use sluice_tests::h2_client::{self, H2, collect};
use sluice_tests::tls::{self, Ca};
use sluice_tests::wait::{SOON, wait_for, wait_until, within};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::{WEB, web, web_with};

#[tokio::test]
async fn tls_chooses_certificate_by_sni_and_protocol_by_alpn() {
    let backend = HttpBackend::start("a").await;
    let ca = Ca::new();
    let builder = Gateway::builder(&format!(
        r#"listeners:
  - address: 127.0.0.1:0
    tls:
      certificates:
        - {{certFile: first.crt, keyFile: first.key}}
        - {{certFile: b.crt, keyFile: b.key}}
        - {{certFile: wild.crt, keyFile: wild.key}}
services:
  - {{name: web, hosts: [first.test, b.test, x.wild.test], endpoints: ["{}"]}}
"#,
        backend.addr()
    ));
    for (file, name) in [("first", "first.test"), ("b", "b.test"), ("wild", "*.wild.test")] {
        ca.issue(&[name]).write(builder.dir(), file);
    }
    let gateway = builder.start().await;
    for name in ["first.test", "b.test", "x.wild.test"] {
        for (offered, spoken) in [
            (&["h2", "http/1.1"][..], Some("h2")),
            (&["http/1.1"], Some("http/1.1")),
            (&[], None),
        ] {
            // The handshake itself verifies that the certificate is for `name`.
            let io = ca.connect(gateway.addr(), name, offered).await.unwrap();
            assert_eq!(tls::negotiated(&io).as_deref(), spoken, "{name}");
            let text = if spoken == Some("h2") {
                let get = h2_client::get("https", name, "/");
                H2::over(io)
                    .await
                    .exchange(get, Bytes::new())
                    .await
                    .unwrap()
                    .text()
            } else {
                H1::over(io).exchange(&h1::get(name, "/")).await.unwrap().text()
            };
            assert_eq!(text, "a", "{name} {spoken:?}");
            assert_eq!(backend.last().header("x-forwarded-proto"), Some("https"));
        }
    }
    let unknown = ca.connect(gateway.addr(), "unknown.test", &["h2"]).await;
    let error = unknown.expect_err("the first certificate is for another name");
    assert!(
        error.to_string().to_lowercase().contains("not valid for name"),
        "{error}"
    );
}

#[tokio::test]
async fn plain_bytes_on_a_tls_port_harm_nobody() {
    let backend = HttpBackend::start("a").await;
    let ca = Ca::new();
    let builder = Gateway::builder(&format!(
        "listeners: [{{address: \"127.0.0.1:0\", tls: {{certificates: [{{certFile: a.crt, keyFile: a.key}}]}}}}]\n{}",
        web(backend.addr())
    ));
    ca.issue(&[WEB]).write(builder.dir(), "a");
    let gateway = builder.start().await;
    let mut plain = H1::connect(gateway.addr()).await.unwrap();
    let answer = plain.exchange(&h1::get(WEB, "/")).await;
    assert!(answer.is_err() || answer.unwrap().status == 400);
    let io = ca.connect(gateway.addr(), WEB, &[]).await.unwrap();
    assert_eq!(
        H1::over(io).exchange(&h1::get(WEB, "/")).await.unwrap().text(),
        "a"
    );
}

#[tokio::test]
async fn streams_of_one_connection_run_at_once() {
    let backend = HttpBackend::builder("")
        .answer(|seen| ok(full(seen.target)))
        .start()
        .await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let h2 = H2::connect(gateway.addr()).await;
    backend.hold();
    let mut open = Vec::new();
    for n in 0..20 {
        let mut send = h2.send.clone().ready().await.unwrap();
        let get = h2_client::get("http", WEB, &format!("/{n}"));
        open.push(send.send_request(get, true).unwrap().0);
    }
    wait_until("all are in flight", SOON, || backend.in_flight() == 20).await;
    backend.release();
    for (n, response) in open.into_iter().enumerate() {
        let response = collect(response.await.unwrap()).await.unwrap();
        assert_eq!(response.text(), format!("/{n}"));
    }
}

#[tokio::test]
async fn a_stream_too_old_sends_its_client_to_another_connection_and_goes_on() {
    let (feed, chunks) = mpsc::channel(1);
    let chunks = std::sync::Mutex::new(Some(chunks));
    let backend = HttpBackend::builder("")
        .stream(move |_| {
            let chunks = chunks.lock().ok().and_then(|mut chunks| chunks.take());
            async move { ok(streamed(chunks.expect("one request"))) }
        })
        .start()
        .await;
    let gateway = Gateway::start(&web_with(backend.addr(), "maxStreamAge: 1s")).await;
    let h2 = H2::connect(gateway.addr()).await;
    let mut send = h2.send.clone().ready().await.unwrap();
    let (response, _) = send.send_request(h2_client::get("http", WEB, "/"), true).unwrap();
    feed.send(Bytes::from_static(b"before")).await.unwrap();
    let mut response = response.await.unwrap();
    assert_eq!(response.body_mut().data().await.unwrap().unwrap(), "before");
    let refusal = wait_for("no more streams are taken", SOON, async || {
        h2.send.clone().ready().await.err()
    })
    .await;
    assert!(refusal.is_go_away(), "{refusal}");
    feed.send(Bytes::from_static(b", after")).await.unwrap();
    drop(feed);
    assert_eq!(collect(response).await.unwrap().text(), ", after");
}

#[tokio::test]
async fn h2_reaches_h1_and_h2c_backends_with_bodies() {
    let plain = HttpBackend::builder("")
        .answer(|seen| ok(full(seen.body)))
        .start()
        .await;
    let h2c = HttpBackend::builder("")
        .answer(|seen| ok(full(seen.body)))
        .h2c()
        .start()
        .await;
    for config in [web(plain.addr()), web_with(h2c.addr(), "protocol: h2c")] {
        let gateway = Gateway::start(&config).await;
        let h2 = H2::connect(gateway.addr()).await;
        let body = Bytes::from(vec![b'x'; 60_000]);
        let post = h2_client::with_method("POST", "http", WEB, "/up?q=1");
        let response = h2.exchange(post, body.clone()).await.unwrap();
        assert_eq!((response.status, response.body), (200, body));
        let missing = h2_client::get("http", "nowhere.example.com", "/");
        let missing = h2.exchange(missing, Bytes::new()).await.unwrap();
        assert_eq!(
            (missing.status, missing.header("x-sluice-reason")),
            (404, Some("no_route"))
        );
    }
    assert_eq!(plain.last().target, "/up?q=1");
}

#[tokio::test]
async fn an_authority_that_disagrees_with_host_is_refused() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let h2 = H2::connect(gateway.addr()).await;
    let mut request = h2_client::get("http", WEB, "/");
    request
        .headers_mut()
        .insert("host", "other.example.com".parse().unwrap());
    // A stream error is as good as a 400.
    if let Ok(response) = h2.exchange(request, Bytes::new()).await {
        assert_eq!(response.status, 400);
    }
    assert_eq!(backend.count(), 0);
    let fine = h2.exchange(h2_client::get("http", WEB, "/"), Bytes::new()).await;
    assert_eq!(fine.unwrap().text(), "a", "the connection lives on");
}

async fn grpc() -> (EchoServer, Gateway, EchoClient) {
    let server = EchoServer::start().await;
    let gateway = Gateway::start(&web_with(server.addr(), "protocol: h2c")).await;
    let client = EchoClient::connect(gateway.addr(), WEB).await;
    (server, gateway, client)
}

#[tokio::test]
async fn grpc_unary_with_metadata_and_status() {
    let (_server, _gateway, mut client) = grpc().await;
    for n in 0..10 {
        let response = client.unary(Note::new("hi", n), None).await.unwrap();
        assert_eq!(response.get_ref(), &Note::new("hi", n));
        assert_eq!(response.metadata().get("x-served-by").unwrap(), "echo");
    }
    let failed = client.unary(Note::new("fail", 0), None).await.unwrap_err();
    assert_eq!(failed.code(), tonic::Code::FailedPrecondition);
    assert_eq!(failed.message(), "asked to fail");
    assert_eq!(failed.metadata().get("x-detail").unwrap(), "in the trailers");
}

#[tokio::test]
async fn grpc_streams_from_server_and_from_client() {
    let (_server, _gateway, mut client) = grpc().await;
    let notes = client.count(Note::new("n", 1_000)).await.unwrap();
    assert_eq!(notes.len(), 1_000);
    assert_eq!(notes[999], Note::new("n", 999));
    let sum = client
        .sum((0..1_000).map(|n| Note::new("", n)).collect())
        .await
        .unwrap();
    assert_eq!(sum.number, 499_500);
}

#[tokio::test]
async fn grpc_both_ways_note_by_note() {
    let (_server, _gateway, mut client) = grpc().await;
    let (send, receive) = mpsc::channel(1);
    send.send(Note::new("ping", 0)).await.unwrap();
    let mut replies = within("the stream opens", SOON, client.chat(receive))
        .await
        .unwrap();
    for n in 0..50 {
        let reply = within("a reply before the next note", SOON, replies.message()).await;
        assert_eq!(reply.unwrap().unwrap(), Note::new("re: ping", n));
        send.send(Note::new("ping", n + 1)).await.unwrap();
    }
    drop(send);
    assert!(replies.message().await.unwrap().is_some());
    assert_eq!(replies.message().await.unwrap(), None, "a clean end");
}

#[tokio::test]
async fn grpc_deadlines_reach_the_server_and_end_the_call() {
    let (_server, _gateway, mut client) = grpc().await;
    let limit = Some(Duration::from_secs(30));
    let told = client.unary(Note::new("deadline", 0), limit).await.unwrap();
    assert!(!told.get_ref().text.is_empty(), "grpc-timeout is passed on");
    let start = Instant::now();
    let limit = Some(Duration::from_millis(300));
    let late = client.unary(Note::new("sleep", 0), limit).await.unwrap_err();
    assert!(
        matches!(
            late.code(),
            tonic::Code::DeadlineExceeded | tonic::Code::Cancelled
        ),
        "{late:?}"
    );
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    for n in 0..20 {
        let limit = Some(Duration::from_millis(20));
        client.unary(Note::new("sleep", 0), limit).await.unwrap_err();
        let next = client.unary(Note::new("hi", n), None).await;
        let next = next.unwrap_or_else(|e| panic!("the call after cancelled call {n}: {e:?}"));
        assert_eq!(next.get_ref().number, n);
    }
}

#[tokio::test]
async fn the_gateways_own_answers_to_grpc_are_grpc() {
    let (_server, gateway, _client) = grpc().await;
    let h2 = H2::connect(gateway.addr()).await;
    let mut request = h2_client::with_method("POST", "http", "nowhere.example.com", "/test.Echo/Unary");
    let headers = request.headers_mut();
    headers.insert("content-type", "application/grpc".parse().unwrap());
    headers.insert("te", "trailers".parse().unwrap());
    let response = h2.exchange(request, Bytes::new()).await.unwrap();
    assert_eq!(response.status, 200);
    assert_eq!(response.header("x-sluice-reason"), Some("no_route"));
    assert!(
        response
            .header("content-type")
            .unwrap()
            .starts_with("application/grpc")
    );
    let status = response.header("grpc-status").or_else(|| {
        let trailers = response.trailers.as_ref()?;
        trailers.get("grpc-status")?.to_str().ok()
    });
    assert_eq!(status, Some("12"), "404 is UNIMPLEMENTED in gRPC's own mapping");
}

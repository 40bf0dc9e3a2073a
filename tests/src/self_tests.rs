//! Tests of the harness: its clients against its backends, without a gateway between them.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;

use crate::backend::{HttpBackend, full, ok, streamed};
use crate::grpc::{EchoClient, EchoServer, Note};
use crate::h1::{self, Framing, H1};
use crate::h2_client::{self, H2};
use crate::load::Load;
use crate::metrics::Metrics;
use crate::raw_backend::{RawBackend, Refused, read_head};
use crate::tls::{self, Ca};
use crate::wait::{SOON, wait_until, within};

#[tokio::test]
async fn the_raw_client_keeps_a_connection_and_reads_every_framing() {
    let backend = HttpBackend::builder("a")
        .answer(|seen| match seen.target.as_str() {
            "/chunked" => {
                let (send, receive) = tokio::sync::mpsc::channel(2);
                send.try_send(Bytes::from_static(b"one")).expect("room");
                send.try_send(Bytes::from_static(b"two")).expect("room");
                ok(streamed(receive))
            }
            _ => ok(full(seen.body)),
        })
        .start()
        .await;
    let mut conn = H1::connect(backend.addr()).await.expect("accepts");
    let post = h1::request("POST", "a", "/", &[], b"hello");
    let echoed = conn.exchange(&post).await.expect("answers");
    assert_eq!(
        (echoed.text().as_str(), echoed.framing),
        ("hello", Framing::Length(5))
    );
    let chunked = conn.exchange(&h1::get("a", "/chunked")).await.expect("answers");
    assert_eq!(
        (chunked.text().as_str(), chunked.framing),
        ("onetwo", Framing::Chunked)
    );
    let head = conn
        .exchange(&h1::request("HEAD", "a", "/", &[], b""))
        .await
        .expect("answers");
    assert_eq!(head.framing, Framing::Empty);
    assert_eq!((backend.count(), backend.connections()), (3, 1));
}

#[tokio::test]
async fn the_gate_holds_requests_and_counts_them() {
    let backend = HttpBackend::start("a").await;
    backend.hold();
    let addr = backend.addr();
    let waiting: Vec<_> = (0..3)
        .map(|_| tokio::spawn(async move { h1::fetch(addr, &h1::get("a", "/")).await }))
        .collect();
    wait_until("three are held", SOON, || backend.in_flight() == 3).await;
    backend.release();
    for request in waiting {
        let response = request.await.expect("no panic").expect("answers");
        assert_eq!(response.text(), "a");
    }
    assert_eq!((backend.peak_in_flight(), backend.abandoned()), (3, 0));
}

#[tokio::test]
async fn h2_is_spoken_plain_and_over_tls() {
    let plain = HttpBackend::builder("plain").h2c().start().await;
    let client = H2::connect(plain.addr()).await;
    let response = client
        .exchange(h2_client::get("http", "a", "/x"), Bytes::from_static(b"body"))
        .await
        .expect("answers");
    assert_eq!(response.text(), "plain");
    let seen = plain.last();
    assert_eq!((seen.host.as_str(), seen.target.as_str()), ("a", "/x"));
    assert_eq!(seen.body.as_ref(), b"body");

    let ca = Ca::new();
    let acceptor = tls::acceptor(&ca.issue(&["a.test"]), &["h2"]);
    let secure = HttpBackend::builder("secure").h2c().tls(acceptor).start().await;
    let io = ca
        .connect(secure.addr(), "a.test", &["h2", "http/1.1"])
        .await
        .expect("a handshake");
    assert_eq!(tls::negotiated(&io).as_deref(), Some("h2"));
    let client = H2::over(io).await;
    let response = client
        .exchange(h2_client::get("https", "a.test", "/"), Bytes::new())
        .await
        .expect("answers");
    assert_eq!(response.text(), "secure");
    assert!(ca.connect(secure.addr(), "b.test", &["h2"]).await.is_err());
}

#[tokio::test]
async fn grpc_of_all_four_kinds() {
    let server = EchoServer::start().await;
    let mut client = EchoClient::connect(server.addr(), "echo.test").await;
    let one = client.unary(Note::new("hi", 7), None).await.expect("a note");
    assert_eq!(one.get_ref(), &Note::new("hi", 7));
    assert_eq!(client.count(Note::new("n", 3)).await.expect("notes").len(), 3);
    let sum = client
        .sum(vec![Note::new("", 2), Note::new("", 3)])
        .await
        .expect("a sum");
    assert_eq!(sum.number, 5);
    let (send, receive) = tokio::sync::mpsc::channel(1);
    let mut replies = client.chat(receive).await.expect("a stream");
    for n in 0..3 {
        send.send(Note::new("ping", n)).await.expect("open");
        let reply = replies.message().await.expect("no error").expect("a reply");
        assert_eq!(reply, Note::new("re: ping", n));
    }
    drop(send);
    assert_eq!(replies.message().await.expect("a clean end"), None);
    let failed = client.unary(Note::new("fail", 0), None).await.expect_err("fails");
    assert_eq!(failed.code(), tonic::Code::FailedPrecondition);
    assert!(failed.metadata().contains_key("x-detail"));
    for n in 0..20 {
        let limit = Some(Duration::from_millis(20));
        let late = client
            .unary(Note::new("sleep", 0), limit)
            .await
            .expect_err("is late");
        assert!(matches!(
            late.code(),
            tonic::Code::DeadlineExceeded | tonic::Code::Cancelled
        ));
        let next = client.unary(Note::new("hi", n), None).await.expect("a note");
        assert_eq!(next.get_ref().number, n, "the connection lives on");
    }
}

#[tokio::test]
async fn the_load_counts_every_failure() {
    let good = HttpBackend::start("good").await;
    let load = Load::get(good.addr(), 4, "a");
    load.advance(100).await;
    let report = load.stop().await;
    report.assert_clean();
    assert_eq!(report.bodies["good"], report.ok);
    assert_eq!(good.connections(), 4);

    let (refused, hangs_up) = (Refused::new(), RawBackend::hangs_up().await);
    for (what, addr) in [("refused", refused.addr()), ("hung up", hangs_up.addr())] {
        let load = Load::get(addr, 1, "a");
        load.advance(3).await;
        let report = load.stop().await;
        assert!(report.ok == 0 && report.failed >= 3, "{what}: {report:?}");
    }
    let half = RawBackend::answers_then_resets(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345").await;
    let load = Load::get(half.addr(), 1, "a");
    load.advance(1).await;
    assert!(load.stop().await.failed >= 1);
}

#[tokio::test]
async fn a_scripted_backend_sees_what_was_sent() {
    let backend = RawBackend::start(async |n, mut io: tokio::net::TcpStream| {
        let (head, _) = read_head(&mut io).await?;
        let body = format!("{n} {}", head.lines().next().unwrap_or_default());
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        io.write_all((head + &body).as_bytes()).await
    })
    .await;
    for n in 0..2 {
        let response = h1::fetch(backend.addr(), &h1::get("a", "/x"))
            .await
            .expect("answers");
        assert_eq!(response.text(), format!("{n} GET /x HTTP/1.1"));
    }
    let (backend, record) = RawBackend::recording().await;
    let mut conn = H1::connect(backend.addr()).await.expect("accepts");
    conn.exchange(b"GET / HTTP/1.1\r\n\r\n").await.expect("answers");
    within("the close is seen", SOON, async {
        let (mut io, _) = conn.into_parts();
        io.shutdown().await.expect("a live socket");
    })
    .await;
    assert!(record.lock().expect("no panic").starts_with(b"GET / "));
}

#[tokio::test]
async fn the_demo_certificate_is_good_for_localhost() {
    let tls = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/tls");
    let read = |name: &str| std::fs::read_to_string(tls.join(name)).expect("it is committed");
    let pair = tls::Pair {
        cert: read("demo-localhost.crt"),
        key: read("demo-localhost.key"),
    };
    let server = HttpBackend::builder("demo")
        .tls(tls::acceptor(&pair, &[]))
        .start()
        .await;
    for name in ["localhost", "hello.localhost"] {
        let tcp = tokio::net::TcpStream::connect(server.addr())
            .await
            .expect("accepts");
        let sni = rustls_pki_types::ServerName::try_from(name).expect("a name");
        let connector = tls::trusting(&pair.cert, &[]);
        let io = connector.connect(sni, tcp).await.expect("a handshake");
        let response = H1::over(io).exchange(&h1::get(name, "/")).await.expect("answers");
        assert_eq!(response.text(), "demo");
    }
}

#[test]
fn metrics_are_read() {
    let text = "# TYPE a counter\na{x=\"1\",y=\"q\\\"{},\"} 2\na{x=\"2\"} 3\nb 1.5\n";
    let metrics = Metrics::parse(text);
    assert_eq!(metrics.get("a", &[]), Some(5.0));
    assert_eq!(metrics.get("a", &[("y", "q\"{},")]), Some(2.0));
    assert_eq!(metrics.get("c", &[]), None);
    assert_eq!(metrics.label_names("a"), ["x", "y"]);
    assert!(metrics.has_family("b"));
}

//! Slow clients (Slowloris and slow readers): timeouts and minimum rates bound what they hold.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::BodyExt;
use sluice_tests::backend::{HttpBackend, full, ok};
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1};
use sluice_tests::h2_client::{self, H2};
use sluice_tests::h2_frames::{END_HEADERS, Frames, PREFACE, frame, head, kind, request};
use sluice_tests::load::Load;
use sluice_tests::process::{cpu_time, peak_resident_kib, resident_kib};
use sluice_tests::raw_backend::{RawBackend, read_head};
use sluice_tests::tls::Ca;
use sluice_tests::wait::{SOON, quiet, wait_for, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{WEB, web};

async fn closed(gateway: &Gateway, reason: &str, count: f64) {
    let labels = [("reason", reason)];
    gateway
        .wait_metric("sluice_connections_closed_total", &labels, SOON, |n| n == count)
        .await;
}

/// Sends `begin`, then a byte of `drip` at intervals, until the connection ends; returns all bytes received.
async fn dripping(addr: SocketAddr, begin: &[u8], drip: u8, every: Duration) -> String {
    let mut io = TcpStream::connect(addr).await.expect("the gateway accepts");
    io.set_nodelay(true).expect("a live socket");
    io.write_all(begin).await.expect("a live socket");
    let (mut read, mut write) = io.split();
    let sending = async {
        loop {
            quiet(every).await;
            if write.write_all(&[drip]).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let mut answer = Vec::new();
    let receiving = async {
        // A reset may follow the answer.
        while let Ok(1..) = read.read_buf(&mut answer).await {}
    };
    tokio::select! {
        () = sending => {}
        () = within("the connection ends", 2 * SOON, receiving) => {}
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_that_drip_in() {
    const CLIENTS: usize = 400;
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&format!("limits: {{headerTimeout: 2s}}\n{}", web(backend.addr()))).await;
    gateway.get(WEB, "/").await;
    let (memory, cpu) = (resident_kib(gateway.pid()), cpu_time(gateway.pid()));
    let begin = format!("GET / HTTP/1.1\r\nHost: {WEB}\r\nX-Slow: ");
    let every = Duration::from_millis(500);
    let answers =
        join_all((0..CLIENTS).map(|_| dripping(gateway.addr(), begin.as_bytes(), b'z', every))).await;
    for answer in &answers {
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer:?}");
    }
    closed(&gateway, "header_timeout", CLIENTS as f64).await;
    // Half a million wake-ups would be a busy loop; some thousand bytes cost nothing.
    let cost = cpu_time(gateway.pid()) - cpu;
    assert!(cost < Duration::from_secs(2), "{cost:?} for {CLIENTS} clients");
    // A connection that begins a head has a small buffer, a task and its answer.
    let grown = resident_kib(gateway.pid()).saturating_sub(memory);
    assert!(grown < 64 * CLIENTS as u64, "{grown} KiB for {CLIENTS} clients");

    let load = Load::get(gateway.addr(), 2, WEB);
    load.advance(10).await;
    let slow = (0..50).map(|_| dripping(gateway.addr(), begin.as_bytes(), b'z', every));
    join_all(slow).await;
    load.advance(10).await;
    load.stop().await.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_deadline_of_a_head_counts_on_http2_too() {
    let backend = HttpBackend::start("a").await;
    let ca = Ca::new();
    let builder = Gateway::builder(&format!(
        "limits: {{headerTimeout: 1s}}\nlisteners: [{{address: \"127.0.0.1:0\"}}, {{address: \"127.0.0.1:0\", tls: {{certificates: [{{certFile: a.crt, keyFile: a.key}}]}}}}]\n{}",
        web(backend.addr())
    ));
    ca.issue(&[WEB]).write(builder.dir(), "a");
    let gateway = builder.start().await;
    // TLS, and HTTP/2 by ALPN, and then nothing, or the preface and nothing.
    for begin in [&b""[..], PREFACE] {
        let mut io = ca.connect(gateway.listener(1), WEB, &["h2"]).await.unwrap();
        io.write_all(begin).await.unwrap();
        io.flush().await.unwrap();
        let mut rest = Vec::new();
        let _ = within("it is closed", SOON, io.read_to_end(&mut rest)).await;
    }
    closed(&gateway, "header_timeout", 2.0).await;
    // A head whose end does not come, and one cut in the middle of its frame, beside a stream under way.
    backend.hold();
    let whole = frame(kind::HEADERS, END_HEADERS, 3, &head("GET", WEB, &[]));
    for (n, part) in [
        frame(kind::HEADERS, 0, 3, &head("GET", WEB, &[])),
        whole[..whole.len() - 1].to_vec(),
    ]
    .into_iter()
    .enumerate()
    {
        let mut frames = Frames::connect(gateway.addr()).await.unwrap();
        frames.send(&request(1, "GET", WEB, &[], true)).await.unwrap();
        frames.send(&part).await.unwrap();
        within("it is closed", SOON, frames.until_end()).await;
        closed(&gateway, "header_timeout", 3.0 + n as f64).await;
    }
}

const DRIP: Duration = Duration::from_millis(200);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_drip_in() {
    const CLIENTS: usize = 50;
    let backend = HttpBackend::start("a").await;
    let limits = "limits: {bodyReadTimeout: 2s, minBodyRate: 1KiB}";
    let gateway = Gateway::start(&format!("{limits}\n{}", web(backend.addr()))).await;
    for framing in ["Content-Length: 1000000", "Transfer-Encoding: chunked"] {
        let begin = format!("POST / HTTP/1.1\r\nHost: {WEB}\r\n{framing}\r\n\r\n100000\r\n");
        let load = Load::get(gateway.addr(), 2, WEB);
        let slow = (0..CLIENTS).map(|_| dripping(gateway.addr(), begin.as_bytes(), b'z', DRIP));
        for answer in join_all(slow).await {
            assert!(answer.starts_with("HTTP/1.1 408 "), "{framing}: {answer:?}");
        }
        load.advance(10).await;
        load.stop().await.assert_clean();
    }
    closed(&gateway, "body_timeout", 2.0 * CLIENTS as f64).await;
    let rejected = [("reason", "request_timeout")];
    gateway
        .wait_metric("sluice_rejections_total", &rejected, SOON, |n| {
            n == 2.0 * CLIENTS as f64
        })
        .await;

    // A client above the minimum rate goes on beyond the timeout of the others.
    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    let begin = format!("POST / HTTP/1.1\r\nHost: {WEB}\r\nContent-Length: 20000\r\n\r\n");
    conn.send(begin.as_bytes()).await.unwrap();
    for _ in 0..20 {
        conn.send(&[b'z'; 1000]).await.unwrap();
        quiet(DRIP).await;
    }
    assert_eq!(conn.response_to(b"POST ").await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_drip_in_over_http2() {
    let backend = HttpBackend::start("a").await;
    let limits = "limits: {bodyReadTimeout: 2s, minBodyRate: 1KiB}";
    let gateway = Gateway::start(&format!("{limits}\n{}", web(backend.addr()))).await;
    let h2 = H2::connect(gateway.addr()).await;
    let mut send = h2.send.clone().ready().await.unwrap();
    let post = |length: Option<&str>| {
        let mut post = h2_client::with_method("POST", "http", WEB, "/");
        if let Some(length) = length {
            post.headers_mut()
                .insert("content-length", length.parse().unwrap());
        }
        post
    };
    let (slow, mut slow_body) = send.send_request(post(Some("1000000")), false).unwrap();
    let (stalled, _stalled_body) = send.send_request(post(Some("1000000")), false).unwrap();
    let (stream, mut stream_body) = send.send_request(post(None), false).unwrap();
    let dripping = async {
        loop {
            quiet(DRIP).await;
            stream_body.send_data(Bytes::from_static(b"z"), false).unwrap();
            if slow_body.send_data(Bytes::from_static(b"z"), false).is_err() {
                return;
            }
        }
    };
    let late = async {
        for response in [stalled, slow] {
            let response = within("an answer", SOON, response).await.unwrap();
            assert_eq!(response.status(), 408);
            assert_eq!(response.headers()["x-sluice-reason"], "request_timeout");
        }
    };
    tokio::join!(late, async {
        tokio::select! {
            () = dripping => {}
            () = quiet(SOON) => panic!("the slow body is not refused"),
        }
    });
    // A body without a length is a stream, which has no minimum rate.
    stream_body.send_data(Bytes::new(), true).unwrap();
    assert_eq!(within("an answer", SOON, stream).await.unwrap().status(), 200);
    assert_eq!(backend.count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_not_blamed_for_a_backend_that_does_not_read() {
    const SIZE: usize = 64 << 20;
    let backend = RawBackend::start(async |_, mut io: TcpStream| {
        let mut chunk = vec![0; 1 << 16];
        loop {
            let (_, early) = read_head(&mut io).await?;
            quiet(Duration::from_secs(4)).await;
            let mut left = SIZE - early.len();
            while left > 0 {
                left -= io.read(&mut chunk).await?;
            }
            io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                .await?;
        }
    })
    .await;
    let limits = "limits: {bodyReadTimeout: 1s, minBodyRate: 1MiB}";
    let gateway = Gateway::start(&format!("{limits}\n{}", web(backend.addr()))).await;
    let h2 = H2::connect(gateway.addr()).await;
    let mut post = h2_client::with_method("POST", "http", WEB, "/");
    post.headers_mut()
        .insert("content-length", SIZE.to_string().parse().unwrap());
    let upload = h2.exchange(post, Bytes::from(vec![b'z'; SIZE]));
    assert_eq!(within("the upload", 2 * SOON, upload).await.unwrap().status, 200);

    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    let begin = format!("POST / HTTP/1.1\r\nHost: {WEB}\r\nContent-Length: {SIZE}\r\n\r\n");
    conn.send(begin.as_bytes()).await.unwrap();
    conn.send(&vec![b'z'; SIZE]).await.unwrap();
    assert_eq!(conn.response_to(b"POST ").await.unwrap().status, 200);
}

/// A backend with an endless body, in pieces of 32 MiB.
async fn plenty() -> RawBackend {
    RawBackend::start(async |_, mut io: TcpStream| {
        let block = vec![b'x'; 1 << 20];
        loop {
            read_head(&mut io).await?;
            io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 33554432\r\n\r\n")
                .await?;
            for _ in 0..32 {
                io.write_all(&block).await?;
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_nobody_reads() {
    const CLIENTS: usize = 100;
    let (backend, good) = (plenty().await, HttpBackend::start("good").await);
    let services = format!(
        "{}  - {{name: good, endpoints: [\"{}\"]}}\n",
        web(backend.addr()),
        good.addr()
    );
    let gateway = Gateway::start(&format!("limits: {{writeTimeout: 3s}}\n{services}")).await;
    gateway.get("good.default.localhost", "/").await;
    let memory = resident_kib(gateway.pid());
    let load = Load::get(gateway.addr(), 2, "good.default.localhost");
    let mut h1_clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut conn = H1::connect(gateway.addr()).await.unwrap();
        conn.send(&h1::get(WEB, "/")).await.unwrap();
        h1_clients.push(conn);
    }
    let mut h2_clients = Vec::new();
    for _ in 0..4 {
        let mut frames = Frames::connect(gateway.addr()).await.unwrap();
        // Windows as large as they get: nothing but the socket holds the answers back.
        frames
            .send(&frame(kind::SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]))
            .await
            .unwrap();
        frames
            .send(&frame(kind::WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0, 0]))
            .await
            .unwrap();
        for n in 0..CLIENTS as u32 / 4 {
            frames
                .send(&request(n * 2 + 1, "GET", WEB, &[], true))
                .await
                .unwrap();
        }
        h2_clients.push(frames);
    }
    let asked = [("service", "web")];
    gateway
        .wait_metric("sluice_requests_in_flight", &asked, SOON, |n| n >= CLIENTS as f64)
        .await;
    let labels = [("service", "web")];
    gateway
        .wait_metric("sluice_requests_in_flight", &labels, 2 * SOON, |n| n == 0.0)
        .await;
    // 6.4 GB were asked for. Each answer is at most some pieces of 64 KiB on their way, half a MiB as measured.
    let grown = peak_resident_kib(gateway.pid()).saturating_sub(memory);
    assert!(grown < 2 * CLIENTS as u64 * 1024, "{grown} KiB");
    load.advance(10).await;
    load.stop().await.assert_clean();
    closed(&gateway, "write_timeout", (CLIENTS + 4) as f64).await;
    drop((h1_clients, h2_clients));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_opens_no_window_is_given_up() {
    let backend = plenty().await;
    let gateway = Gateway::start(&format!("limits: {{writeTimeout: 1s}}\n{}", web(backend.addr()))).await;
    let mut frames = Frames::connect(gateway.addr()).await.unwrap();
    frames.send(&request(1, "GET", WEB, &[], true)).await.unwrap();
    let reset = within("the stream is reset", SOON, frames.next_of(kind::RST_STREAM)).await;
    assert_eq!(reset.unwrap().stream, 1);
    let line = gateway
        .wait_access_log("the request", |e| e["status"] == 200)
        .await;
    assert_eq!(line["reason"], "client_gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_that_stand_still_do_not_stop_the_others_of_their_connection() {
    let stuck = RawBackend::start(async |_, io: TcpStream| {
        // Not one byte is read.
        io.set_nodelay(true)?;
        std::future::pending().await
    })
    .await;
    let good = HttpBackend::builder("")
        .stream(async |request| {
            let body = request.into_body().collect().await;
            ok(full(body.map_or(0, |b| b.to_bytes().len()).to_string()))
        })
        .start()
        .await;
    let services = format!(
        "{}  - {{name: good, endpoints: [\"{}\"]}}\n",
        web(stuck.addr()),
        good.addr()
    );
    let gateway = Gateway::start(&services).await;
    let h2 = H2::connect(gateway.addr()).await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut send = h2.send.clone().ready().await.unwrap();
        let post = h2_client::with_method("POST", "http", WEB, "/");
        let (response, mut body) = send.send_request(post, false).unwrap();
        // More than window and sockets take.
        body.send_data(Bytes::from(vec![b'z'; 16 << 20]), true).unwrap();
        held.push((response, body));
    }
    let post = h2_client::with_method("POST", "http", "good.default.localhost", "/");
    let upload = h2.exchange(post, Bytes::from(vec![b'z'; 4 << 20]));
    let answer = within("the ninth upload", SOON, upload).await.unwrap();
    assert_eq!((answer.status, answer.text()), (200, (4 << 20).to_string()));
}

#[tokio::test]
async fn a_connection_of_some_age_is_asked_to_end() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&format!(
        "limits: {{maxConnectionAge: 1s}}\n{}",
        web(backend.addr())
    ))
    .await;
    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    within("HTTP/1 says close", SOON, async {
        loop {
            let response = conn.exchange(&h1::get(WEB, "/")).await.expect("no request fails");
            assert_eq!(response.status, 200);
            if response.closes() {
                return;
            }
        }
    })
    .await;
    conn.closed().await.unwrap();
    closed(&gateway, "max_age", 1.0).await;

    let h2 = H2::connect(gateway.addr()).await;
    backend.hold();
    let mut send = h2.send.clone().ready().await.unwrap();
    let (under_way, _) = send.send_request(h2_client::get("http", WEB, "/"), true).unwrap();
    let refused = wait_for("HTTP/2 says GOAWAY", SOON, async || {
        h2.send.clone().ready().await.err()
    })
    .await;
    assert!(refused.is_go_away() && refused.is_remote(), "{refused}");
    backend.release();
    let response = within("what is under way", SOON, under_way).await.unwrap();
    assert_eq!(response.status(), 200);
    closed(&gateway, "max_age", 2.0).await;
}

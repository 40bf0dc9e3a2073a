//! Misbehaving backends and clients: their faults cost no other request anything.

use std::time::Duration;

use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1};
use sluice_tests::h2_client::{self, H2};
use sluice_tests::raw_backend::{RawBackend, drain, read_head};
use sluice_tests::wait::{SOON, wait_for, within};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::{WEB, web, web_with};

const UPGRADE: &[(&str, &str)] = &[("Upgrade", "websocket"), ("Connection", "Upgrade")];

#[tokio::test]
async fn a_retry_after_beyond_all_clocks_is_passed_on() {
    let backend = RawBackend::start(async |n, mut io: TcpStream| {
        let mut asked = if n == 0 { "1" } else { "18446744073709551615" };
        loop {
            read_head(&mut io).await?;
            let answer =
                format!("HTTP/1.1 429 Slow Down\r\nRetry-After: {asked}\r\nContent-Length: 0\r\n\r\n");
            io.write_all(answer.as_bytes()).await?;
            asked = "18446744073709551615";
        }
    })
    .await;
    let gateway = Gateway::start(&format!(
        "services:\n  - name: web\n    revisions:\n      - {{name: web-a, url: \"http://{}\"}}\n",
        backend.addr()
    ))
    .await;
    let answer = gateway.get(WEB, "/").await;
    assert_eq!(
        (answer.status, answer.header("retry-after")),
        (429, Some("18446744073709551615"))
    );
}

#[tokio::test]
async fn a_101_that_nobody_asked_for_is_an_upstream_error() {
    let backend =
        RawBackend::answers(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nwhatever").await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let answer = gateway.get(WEB, "/").await;
    assert_eq!((answer.status, answer.reason()), (502, Some("upstream_error")));
}

#[tokio::test]
async fn a_request_answered_with_garbage_is_not_sent_again() {
    let backend = RawBackend::answers_once(b"HTTP/1.1 abc\r\n\r\n").await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let answer = gateway.get(WEB, "/").await;
    assert_eq!((answer.status, answer.reason()), (502, Some("upstream_error")));
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn a_request_that_breaks_backends_is_sent_three_times_at_most() {
    let backend = RawBackend::start(async |_, mut io: TcpStream| read_head(&mut io).await.map(drop)).await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let answer = gateway.get(WEB, "/").await;
    assert_eq!((answer.status, answer.reason()), (502, Some("upstream_error")));
    assert_eq!(backend.connections(), 3);
}

/// A backend that answers every request with a head and the first byte of ten.
async fn unfinished() -> RawBackend {
    RawBackend::start(async |_, mut io: TcpStream| {
        read_head(&mut io).await?;
        io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\na")
            .await?;
        drain(&mut io).await.map(drop)
    })
    .await
}

async fn wait_idle(gateway: &Gateway) {
    wait_for("the slot to be free", SOON, async || {
        let held = gateway
            .metric("sluice_requests_in_flight", &[("revision", "web-a")])
            .await;
        (held == 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_upgrade_answered_without_one_keeps_to_the_timeouts() {
    for timer in ["total", "idle"] {
        let backend = unfinished().await;
        let key = if timer == "total" {
            "timeoutSeconds: 1"
        } else {
            "idleTimeoutSeconds: 1"
        };
        let gateway = Gateway::start(&web_with(backend.addr(), key)).await;
        let mut conn = H1::connect(gateway.addr()).await.unwrap();
        conn.send(&h1::request("GET", WEB, "/", UPGRADE, b""))
            .await
            .unwrap();
        assert_eq!(conn.head(false).await.unwrap().status, 200);
        assert_eq!(conn.exactly(1).await.unwrap(), b"a");
        conn.closed().await.unwrap();
        let line = gateway
            .wait_access_log("the request", |e| e["status"] == 200)
            .await;
        assert_eq!(
            (&line["reason"], &line["timer"]),
            (&"timeout".into(), &timer.into())
        );
        assert_eq!(line["bytes_out"], 1);
    }
}

#[tokio::test]
async fn a_client_that_leaves_after_a_refused_upgrade_frees_its_slot() {
    let backend = unfinished().await;
    let gateway = Gateway::start(&web_with(backend.addr(), "containerConcurrency: 1")).await;
    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    conn.send(&h1::request("GET", WEB, "/", UPGRADE, b""))
        .await
        .unwrap();
    assert_eq!(conn.head(false).await.unwrap().status, 200);
    drop(conn);
    wait_idle(&gateway).await;
}

#[tokio::test]
async fn an_upload_that_stalls_after_its_answer_does_not_keep_the_slot() {
    let backend =
        RawBackend::answers_once(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            .await;
    let gateway = Gateway::start(&web_with(backend.addr(), "containerConcurrency: 1")).await;
    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    let head = format!("POST / HTTP/1.1\r\nHost: {WEB}\r\nContent-Length: 100\r\n\r\nabc");
    assert_eq!(conn.exchange(head.as_bytes()).await.unwrap().text(), "ok");
    wait_idle(&gateway).await;
    conn.closed().await.unwrap();
    let line = gateway
        .wait_access_log("the request", |e| e["status"] == 200)
        .await;
    assert_eq!(line["reason"], "request_timeout");
}

#[tokio::test]
async fn a_tunnel_is_not_logged_as_late_for_outliving_the_request_timeouts() {
    let backend = RawBackend::start(async |_, mut io: TcpStream| {
        read_head(&mut io).await?;
        io.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        )
        .await?;
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        io.write_all(b"still here").await
    })
    .await;
    let keys = "timeoutSeconds: 1\nresponseStartTimeoutSeconds: 1";
    let gateway = Gateway::start(&web_with(backend.addr(), keys)).await;
    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    let request = h1::request("GET", WEB, "/", UPGRADE, b"");
    assert_eq!(conn.exchange(&request).await.unwrap().status, 101);
    assert_eq!(conn.exactly(10).await.unwrap(), b"still here");
    drop(conn);
    let line = gateway
        .wait_access_log("the tunnel", |e| e["status"] == 101)
        .await;
    assert!(line["timer"].is_null() && line["reason"].is_null(), "{line}");
}

#[tokio::test]
async fn lengths_that_http2_clients_take_for_broken_streams_are_settled() {
    for (answer, status, length) in [
        (
            &b"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n"[..],
            204,
            None,
        ),
        (
            b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
            200,
            Some("2"),
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok",
            502,
            Some("57"),
        ),
    ] {
        let backend = RawBackend::answers(answer).await;
        let gateway = Gateway::start(&web(backend.addr())).await;
        let seen = gateway.get(WEB, "/").await;
        let lengths: Vec<_> = seen
            .headers
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case("content-length"))
            .collect();
        assert_eq!((seen.status, seen.minor_version), (status, 1));
        assert_eq!(
            lengths.iter().map(|(_, v)| v.as_str()).collect::<Vec<_>>(),
            length.into_iter().collect::<Vec<_>>()
        );
    }
}

#[tokio::test]
async fn a_response_still_open_at_the_drains_deadline_is_cut_and_logged() {
    let backend = unfinished().await;
    let config = format!("drain: {{timeout: 1s}}\n{}", web(backend.addr()));
    let mut gateway = Gateway::start(&config).await;
    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    conn.send(&h1::get(WEB, "/")).await.unwrap();
    assert_eq!(conn.head(false).await.unwrap().status, 200);
    assert_eq!(conn.exactly(1).await.unwrap(), b"a");
    gateway.sigterm();
    // One second, and none of the time that responses and closes get afterwards.
    let status = gateway.wait_exit(Duration::from_secs(4)).await;
    assert!(status.success(), "{status}");
    let line = gateway
        .wait_access_log("the request", |e| e["status"] == 200)
        .await;
    assert_eq!(
        (&line["reason"], &line["bytes_out"]),
        (&"draining".into(), &1.into())
    );
}

/// A backend that answers at once and reads on until the end of the stream.
async fn answers_early() -> RawBackend {
    RawBackend::start(async |_, mut io: TcpStream| {
        read_head(&mut io).await?;
        io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .await?;
        drain(&mut io).await.map(drop)
    })
    .await
}

#[tokio::test]
async fn an_upload_that_goes_on_after_its_answer_does_not_hold_up_the_drain() {
    let backend = answers_early().await;
    let config = format!("drain: {{timeout: 1s}}\n{}", web(backend.addr()));
    let mut gateway = Gateway::start(&config).await;
    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    let head = format!("POST /late HTTP/1.1\r\nHost: {WEB}\r\nContent-Length: 100000\r\n\r\nabc");
    assert_eq!(conn.exchange(head.as_bytes()).await.unwrap().text(), "ok");
    gateway.sigterm();
    let dripping = tokio::spawn(async move {
        while conn.send(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    // One second, and nothing like the ten that an upload may go on.
    let status = gateway.wait_exit(Duration::from_secs(5)).await;
    assert!(status.success(), "{status}");
    let line = gateway
        .wait_access_log("the request", |e| e["path"] == "/late")
        .await;
    assert_eq!(
        (&line["status"], &line["reason"]),
        (&200.into(), &"draining".into())
    );
    dripping.await.unwrap();
}

/// A client that reads only once it has sent everything, and a backend that wants no more of it.
#[tokio::test]
async fn an_upload_that_nobody_wants_is_taken_while_its_answer_waits() {
    const ANSWER: usize = 120 * 1024;
    let backend = RawBackend::start(async |_, io: TcpStream| {
        let mut connection = h2::server::handshake(io).await.map_err(std::io::Error::other)?;
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let mut answer = respond
                .send_response(http::Response::new(()), false)
                .map_err(std::io::Error::other)?;
            answer
                .send_data(vec![b'a'; ANSWER].into(), true)
                .map_err(std::io::Error::other)?;
            // RFC 9113 8.1: once the answer is sent, the stream is reset with NO_ERROR.
            drop(request);
        }
        Ok(())
    })
    .await;
    let gateway = Gateway::start(&web_with(backend.addr(), "protocol: h2c")).await;
    // The answer does not fit into what the client takes and what the gateway buffers.
    let io = TcpStream::connect(gateway.addr()).await.unwrap();
    let (send, connection) = h2::client::Builder::new()
        .initial_window_size(1024)
        .handshake::<_, bytes::Bytes>(io)
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let post = h2_client::with_method("POST", "http", WEB, "/unwanted");
    let (response, mut upload) = send.ready().await.unwrap().send_request(post, false).unwrap();
    let response = within("an answer", SOON, response).await.unwrap();
    // Ten times what the gateway takes of a stream that it does not read.
    let piece = bytes::Bytes::from(vec![b'x'; 16 * 1024]);
    for _ in 0..40 {
        upload.reserve_capacity(piece.len());
        while upload.capacity() < piece.len() {
            let more = std::future::poll_fn(|cx| upload.poll_capacity(cx));
            within("room for the upload", SOON, more).await.unwrap().unwrap();
        }
        upload.send_data(piece.clone(), false).unwrap();
    }
    upload.send_data(bytes::Bytes::new(), true).unwrap();
    let answer = within("its body", SOON, h2_client::collect(response))
        .await
        .unwrap();
    assert_eq!((answer.status, answer.body.len()), (200, ANSWER));
    connection.abort();
}

/// Response queue poisoning: the answer to a request that was never made.
#[tokio::test]
async fn what_a_backend_says_before_it_is_asked_is_nobodys_answer() {
    let speak = std::sync::Arc::new(tokio::sync::Notify::new());
    let spoken = std::sync::Arc::new(tokio::sync::Notify::new());
    let (say, said) = (speak.clone(), spoken.clone());
    let backend = RawBackend::start(move |_, mut io: TcpStream| {
        let (say, said) = (say.clone(), said.clone());
        async move {
            let mut answered = 0;
            loop {
                tokio::select! {
                    head = read_head(&mut io) => drop(head?),
                    () = say.notified(), if answered > 0 => {
                        io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison").await?;
                        said.notify_one();
                        return drain(&mut io).await.map(drop);
                    }
                }
                answered += 1;
                io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood")
                    .await?;
            }
        }
    })
    .await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    for round in 0..20 {
        for path in ["/first", "/second"] {
            let path = format!("{path}/{round}");
            assert_eq!(gateway.get(WEB, &path).await.text(), "good", "{path}");
            // Logged means that the connection was given back.
            gateway
                .wait_access_log(&path, |e| e["path"] == path.as_str())
                .await;
            if path.starts_with("/first") {
                speak.notify_one();
                within("it speaks", SOON, spoken.notified()).await;
            }
        }
    }
    assert_eq!(backend.connections(), 21, "each that spoke is used no more");
}

async fn assert_cut_off(gateway: &Gateway) {
    wait_idle(gateway).await;
    let line = gateway
        .wait_access_log("the request", |e| e["status"] == 200)
        .await;
    assert_eq!(
        (&line["reason"], &line["path"]),
        (&"request_timeout".into(), &"/late".into())
    );
}

#[tokio::test]
async fn an_upload_that_drips_after_its_answer_does_not_keep_the_slot() {
    let backend = answers_early().await;
    let gateway = Gateway::start(&web_with(backend.addr(), "containerConcurrency: 1")).await;
    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    let head = format!("POST /late HTTP/1.1\r\nHost: {WEB}\r\nContent-Length: 100000\r\n\r\nabc");
    assert_eq!(conn.exchange(head.as_bytes()).await.unwrap().text(), "ok");
    let dripping = tokio::spawn(async move {
        while conn.send(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    assert_cut_off(&gateway).await;
    dripping.await.unwrap();
}

#[tokio::test]
async fn an_upload_that_floods_after_its_answer_is_cut_off() {
    let backend = answers_early().await;
    let gateway = Gateway::start(&web_with(backend.addr(), "containerConcurrency: 1")).await;
    let mut conn = H1::connect(gateway.addr()).await.unwrap();
    let length = 2u64 << 30;
    let head = format!("POST /late HTTP/1.1\r\nHost: {WEB}\r\nContent-Length: {length}\r\n\r\nabc");
    assert_eq!(conn.exchange(head.as_bytes()).await.unwrap().text(), "ok");
    let block = vec![b'x'; 1 << 20];
    let mut sent = 0u64;
    while sent < length && conn.send(&block).await.is_ok() {
        sent += block.len() as u64;
    }
    assert!(sent < length, "all of it was read");
    assert_cut_off(&gateway).await;
}

#[tokio::test]
async fn an_open_http2_upload_does_not_keep_the_slot_after_its_answer() {
    let backend = answers_early().await;
    let gateway = Gateway::start(&web_with(backend.addr(), "containerConcurrency: 1")).await;
    let h2 = H2::connect(gateway.addr()).await;
    let mut requests = h2.send.clone().ready().await.unwrap();
    let post = h2_client::with_method("POST", "http", WEB, "/late");
    let (response, mut upload) = requests.send_request(post, false).unwrap();
    upload
        .send_data(bytes::Bytes::from_static(b"abc"), false)
        .unwrap();
    let response = h2_client::collect(response.await.unwrap()).await.unwrap();
    assert_eq!((response.status, response.text().as_str()), (200, "ok"));
    assert_cut_off(&gateway).await;
    // The connection lives on.
    let again = h2
        .exchange(h2_client::get("http", WEB, "/"), bytes::Bytes::new())
        .await;
    assert_eq!(again.unwrap().status, 200);
}

async fn interim(count: usize) -> RawBackend {
    RawBackend::start(move |_, mut io: TcpStream| async move {
        read_head(&mut io).await?;
        for _ in 0..count {
            io.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n").await?;
        }
        io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .await?;
        drain(&mut io).await.map(drop)
    })
    .await
}

#[tokio::test]
async fn interim_responses_without_end_are_an_upstream_error() {
    for (count, status) in [(16, 200), (17, 502), (10_000, 502)] {
        let backend = interim(count).await;
        let gateway = Gateway::start(&web(backend.addr())).await;
        let answer = gateway.get(WEB, "/").await;
        assert_eq!(answer.status, status, "{count}");
        let upgrade = gateway.send(&h1::request("GET", WEB, "/", UPGRADE, b"")).await;
        assert_eq!(upgrade.status, status, "{count} to an upgrade");
        if status == 502 {
            assert_eq!(answer.reason(), Some("upstream_error"));
            assert_eq!(upgrade.reason(), Some("upstream_error"));
        }
    }
}

#[tokio::test]
async fn requests_held_for_a_429_are_seen_and_bounded() {
    let backend =
        RawBackend::answers(b"HTTP/1.1 429 Slow Down\r\nRetry-After: 3\r\nContent-Length: 0\r\n\r\n").await;
    let gateway = Gateway::start(&format!(
        "services:\n  - name: web\n    revisions:\n      - {{name: web-a, url: \"http://{}\", queue: {{depth: 2, timeout: 5s}}}}\n",
        backend.addr()
    ))
    .await;
    let addr = gateway.addr();
    let held: Vec<_> = (0..2)
        .map(|_| tokio::spawn(async move { h1::fetch(addr, &h1::get(WEB, "/")).await }))
        .collect();
    let labels = [("revision", "web-a")];
    gateway
        .wait_metric("sluice_queue_depth", &labels, SOON, |n| n == 2.0)
        .await;
    let start = std::time::Instant::now();
    assert_eq!(gateway.get(WEB, "/").await.status, 429);
    assert!(start.elapsed() < Duration::from_secs(2), "it was held");
    for request in held {
        assert_eq!(request.await.unwrap().unwrap().status, 429);
    }
    gateway
        .wait_metric("sluice_queue_depth", &labels, SOON, |n| n == 0.0)
        .await;
}

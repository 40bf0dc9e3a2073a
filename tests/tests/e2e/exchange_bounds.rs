//! Bounds of an exchange in unusual cases: a declined upgrade, a replayed body, a revision that is removed meanwhile.

use std::time::{Duration, Instant};

use bytes::Bytes;
use sluice_tests::backend::HttpBackend;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1};
use sluice_tests::h2_client::{self, H2};
use sluice_tests::raw_backend::{RawBackend, drain, read_head};
use sluice_tests::wait::{SOON, wait_until, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::{WEB, web, web_with};

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// A client that reads nothing of a declined upgrade's answer gives its slot back after `limits.writeTimeout`.
#[tokio::test]
async fn a_declined_upgrade_obeys_the_write_timeout() {
    const BODY: usize = 16 << 20;
    let backend = RawBackend::start(async |_, mut io: TcpStream| {
        let (head, _) = read_head(&mut io).await?;
        let body = if head.starts_with("GET /big") { BODY } else { 0 };
        io.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {body}\r\n\r\n").as_bytes())
            .await?;
        io.write_all(&vec![b'x'; body]).await?;
        drain(&mut io).await.map(drop)
    })
    .await;
    let gateway = Gateway::start(&format!(
        "limits: {{writeTimeout: 1s}}\n{}",
        web_with(backend.addr(), "containerConcurrency: 1")
    ))
    .await;
    let mut unread = TcpStream::connect(gateway.addr()).await.unwrap();
    unread
        .write_all(format!("GET /big HTTP/1.1\r\nHost: {WEB}\r\n{UPGRADE}\r\n").as_bytes())
        .await
        .unwrap();
    wait_until("the backend has it", SOON, || backend.connections() == 1).await;
    let start = Instant::now();
    let next = within("the next request", SOON, gateway.get(WEB, "/")).await;
    assert_eq!(next.status, 200);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let entry = gateway
        .wait_access_log("the upgrade", |e| e["path"] == "/big")
        .await;
    assert_eq!(entry["reason"], "client_gone", "{entry}");
    drop(unread);
}

/// A replayed body is counted once.
#[tokio::test]
async fn a_replayed_body_counts_once() {
    let leaves = RawBackend::start(async |_, mut io: TcpStream| {
        let (_, mut body) = read_head(&mut io).await?;
        while body.len() < 600 {
            io.read_buf(&mut body).await?;
        }
        Ok(())
    })
    .await;
    let stays = HttpBackend::start("stays").await;
    let config = |first, second| {
        format!(
            "limits: {{maxBodyBytes: 1000}}\nservices:\n  - name: web\n    revisions:\n      - {{name: web-a, endpoints: [\"{first}\", \"{second}\"]}}\n"
        )
    };
    let gateway = Gateway::start(&config(leaves.addr(), stays.addr())).await;
    let mut retried = false;
    for chunked in [false, true].repeat(16) {
        let body = "x".repeat(600);
        let framed = if chunked {
            format!("Transfer-Encoding: chunked\r\n\r\n258\r\n{body}\r\n0\r\n\r\n")
        } else {
            format!("Content-Length: 600\r\n\r\n{body}")
        };
        let request = format!("PUT / HTTP/1.1\r\nHost: {WEB}\r\nConnection: close\r\n{framed}");
        let answer = gateway.send(request.as_bytes()).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "stays"));
        assert_eq!(stays.last().body.len(), 600);
    }
    wait_until("all are logged", SOON, || gateway.access_log().len() == 32).await;
    for entry in gateway.access_log() {
        assert_eq!(entry["bytes_in"], 600, "{entry}");
        retried |= entry["attempts"] == 2;
    }
    assert!(retried, "{:?}", gateway.access_log());
}

/// Half-close, as of `docker attach` with its input closed: the backend goes on sending. There is no fixed time for
/// closing, as long as bytes move within the idle timeout.
#[tokio::test]
async fn a_backend_that_still_speaks_is_heard_after_its_client_is_done() {
    let backend = RawBackend::start(async |_, mut io: TcpStream| {
        read_head(&mut io).await?;
        io.write_all(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
            .await?;
        // Up to the client's end of stream.
        let heard = drain(&mut io).await?;
        for _ in 0..7 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            io.write_all(&[b'0' + u8::try_from(heard).unwrap_or(9)]).await?;
        }
        Ok(())
    })
    .await;
    let gateway = Gateway::start(&web_with(backend.addr(), "idleTimeoutSeconds: 3")).await;
    let mut io = TcpStream::connect(gateway.addr()).await.unwrap();
    let request = format!(
        "POST /attach HTTP/1.1\r\nHost: {WEB}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n"
    );
    io.write_all(request.as_bytes()).await.unwrap();
    let mut client = H1::over(io);
    assert_eq!(client.head(false).await.unwrap().status, 101);
    let (mut io, early) = client.into_parts();
    assert_eq!(early, b"");
    io.write_all(b"bye").await.unwrap();
    io.shutdown().await.unwrap();
    let mut heard = Vec::new();
    within("all of it", SOON, io.read_to_end(&mut heard))
        .await
        .unwrap();
    assert_eq!(heard, b"3333333");
}

/// A long stream does not keep the routing table of its generation alive.
#[tokio::test]
async fn tunnels_of_many_generations_keep_few_tables_alive() {
    let backend = RawBackend::start(async |_, mut io: TcpStream| {
        read_head(&mut io).await?;
        io.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        )
        .await?;
        drain(&mut io).await.map(drop)
    })
    .await;
    let mut generation = 0;
    let mut config = || {
        generation += 1;
        let other = format!("  - {{name: other-{generation}, endpoints: [\"127.0.0.1:9\"]}}\n");
        web(backend.addr()) + &other
    };
    let gateway = Gateway::start(&config()).await;
    let mut open = Vec::new();
    for _ in 0..200 {
        let mut io = H1::connect(gateway.addr()).await.unwrap();
        io.send(format!("GET / HTTP/1.1\r\nHost: {WEB}\r\n{UPGRADE}\r\n").as_bytes())
            .await
            .unwrap();
        assert_eq!(io.head(false).await.unwrap().status, 101);
        open.push(io);
        gateway.reload(&config()).await;
    }
    gateway
        .wait_metric("sluice_tables_alive", &[], SOON, |n| (1.0..=3.0).contains(&n))
        .await;
    drop(open);
}

/// A request whose revision is removed during an attempt is routed anew.
#[tokio::test]
async fn a_fail_over_onto_a_removed_revision_routes_anew() {
    let (go, going) = watch::channel(false);
    let breaks = RawBackend::start(move |_, mut io: TcpStream| {
        let mut going = going.clone();
        async move {
            read_head(&mut io).await?;
            let _ = going.wait_for(|go| *go).await;
            Ok(())
        }
    })
    .await;
    let new = HttpBackend::start("new").await;
    let gateway = Gateway::start(&web(breaks.addr())).await;
    let addr = gateway.addr();
    let request = tokio::spawn(async move { h1::fetch(addr, &h1::get(WEB, "/")).await });
    wait_until("it is under way", SOON, || breaks.connections() == 1).await;
    gateway.reload(&web(new.addr()).replace("web-a", "web-b")).await;
    go.send_replace(true);
    let answer = within("an answer", SOON, request).await.unwrap().unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "new"));
}

/// A waiting stream is charged with its window of 64 KiB, which the client may fill before anybody reads.
#[tokio::test]
async fn waiting_streams_are_charged_for_what_they_may_have_sent() {
    let backend = HttpBackend::start("web").await;
    let more = "containerConcurrency: 1\nqueue: {bytes: 200KiB}";
    let gateway = Gateway::start(&web_with(backend.addr(), more)).await;
    backend.hold();
    let addr = gateway.addr();
    let holder = tokio::spawn(async move { h1::fetch(addr, &h1::get(WEB, "/")).await });
    wait_until("the slot is taken", SOON, || backend.in_flight() == 1).await;
    let client = H2::connect(addr).await;
    let mut open = Vec::new();
    for waiting in 1..=3 {
        let mut send = client.send.clone().ready().await.unwrap();
        let request = h2_client::with_method("POST", "http", WEB, "/");
        open.push(send.send_request(request, false).unwrap());
        gateway
            .wait_metric("sluice_queue_depth", &[], SOON, |n| n == f64::from(waiting))
            .await;
    }
    let mut send = client.send.clone().ready().await.unwrap();
    let request = h2_client::with_method("POST", "http", WEB, "/");
    let (refused, _body) = send.send_request(request, false).unwrap();
    let refused = within("a refusal", SOON, refused).await.unwrap();
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.headers()["x-sluice-reason"], "queue_full");
    // A request without a body costs its head alone.
    let small = tokio::spawn(async move {
        let get = h2_client::get("http", WEB, "/");
        client.exchange(get, Bytes::new()).await.map(|r| r.status)
    });
    gateway
        .wait_metric("sluice_queue_depth", &[], SOON, |n| n == 4.0)
        .await;
    backend.release();
    assert_eq!(
        within("the first", SOON, holder).await.unwrap().unwrap().status,
        200
    );
    drop(open);
    assert_eq!(within("the small one", SOON, small).await.unwrap().unwrap(), 200);
}

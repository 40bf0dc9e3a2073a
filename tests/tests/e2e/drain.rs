//! Drain: idle connections are closed, open requests finish, and no connection holds up the exit in vain.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use sluice_tests::backend::HttpBackend;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1};
use sluice_tests::h2_frames::{Frames, frame, kind, request};
use sluice_tests::wait::{SOON, wait_until, within};

use crate::{WEB, web};

/// Far more than a second of idleness and a lingering read, far less than `drain.timeout`.
const AT_ONCE: Duration = Duration::from_secs(8);

async fn idle(gateway: &Gateway) -> H1 {
    let mut conn = H1::connect(gateway.addr()).await.expect("the gateway accepts");
    let answer = conn.exchange(&h1::get(WEB, "/")).await.expect("an answer");
    assert!(answer.status == 200 && !answer.closes());
    conn
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_are_closed_in_order_while_a_request_may_finish() {
    let backend = HttpBackend::start("a").await;
    let config = format!("drain: {{timeout: 300s}}\n{}", web(backend.addr()));
    let mut gateway = Gateway::start(&config).await;
    let mut rested = idle(&gateway).await;
    let mut in_time = idle(&gateway).await;
    backend.hold();
    let mut busy = H1::connect(gateway.addr()).await.unwrap();
    busy.send(&h1::get(WEB, "/")).await.unwrap();
    wait_until("it is in flight", SOON, || backend.in_flight() == 1).await;
    gateway.sigterm();
    // Requests within the second are served.
    in_time.send(&h1::get(WEB, "/")).await.unwrap();
    wait_until("it is in flight, too", SOON, || backend.in_flight() == 2).await;

    within("an end without reset", SOON, rested.closed())
        .await
        .unwrap();
    // A request that crosses the end on its way is read and thrown away: it must not be answered by a reset.
    rested.send(&h1::get(WEB, "/")).await.unwrap();
    rested.closed().await.expect("a lingering read");

    assert_eq!(backend.in_flight(), 2);
    backend.release();
    for conn in [&mut busy, &mut in_time] {
        let answer = conn.response_to(b"GET ").await.unwrap();
        assert!(answer.status == 200 && answer.closes());
    }
    drop((busy, in_time, rested));
    let start = Instant::now();
    assert_eq!(gateway.wait_exit(AT_ONCE).await.code(), Some(0));
    assert!(start.elapsed() < AT_ONCE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http2_client_that_hears_nothing_holds_nobody_up() {
    let backend = HttpBackend::start("a").await;
    let config = format!("drain: {{timeout: 300s}}\n{}", web(backend.addr()));
    let mut gateway = Gateway::start(&config).await;
    // The client never answers the PING that follows the GOAWAY.
    let mut deaf = Frames::connect(gateway.addr()).await.unwrap();
    deaf.send(&request(1, "GET", WEB, &[], true)).await.unwrap();
    within("an answer", SOON, deaf.next_of(kind::HEADERS))
        .await
        .unwrap();
    gateway.sigterm();
    let goaway = within("GOAWAY", SOON, deaf.next_of(kind::GOAWAY)).await.unwrap();
    assert_eq!(goaway.code(), Some(0));
    // A stream that was on its way is served.
    deaf.send(&request(3, "GET", WEB, &[], true)).await.unwrap();
    let answer = within("an answer", SOON, deaf.next_of(kind::HEADERS))
        .await
        .unwrap();
    assert_eq!(answer.stream, 3);
    assert_eq!(gateway.wait_exit(AT_ONCE).await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_http2_connection_is_told_before_it_is_closed() {
    let backend = HttpBackend::start("a").await;
    let config = format!("limits: {{idleTimeout: 1s}}\n{}", web(backend.addr()));
    let gateway = Gateway::start(&config).await;
    let mut frames = Frames::connect(gateway.addr()).await.unwrap();
    // A PING does not count as a request.
    frames.send(&frame(kind::PING, 0, 0, b"still me")).await.unwrap();
    let goaway = within("GOAWAY", SOON, frames.next_of(kind::GOAWAY))
        .await
        .unwrap();
    assert_eq!(goaway.code(), Some(0));
    within("the end", SOON, frames.until_end()).await;
    let labels = [("reason", "idle_timeout")];
    gateway
        .wait_metric("sluice_connections_closed_total", &labels, SOON, |n| n == 1.0)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_the_kernel_accepted_are_served() {
    const CLIENTS: usize = 40;
    let backend = HttpBackend::start("a").await;
    let mut gateway = Gateway::start(&web(backend.addr())).await;
    // A stopped process accepts nothing; the kernel still completes handshakes.
    gateway.signal(Signal::SIGSTOP);
    let mut queued = Vec::new();
    for _ in 0..CLIENTS {
        let mut conn = H1::connect(gateway.addr()).await.unwrap();
        conn.send(&h1::get(WEB, "/")).await.unwrap();
        queued.push(conn);
    }
    gateway.sigterm();
    gateway.signal(Signal::SIGCONT);
    let answers = join_all(queued.iter_mut().map(|conn| conn.response_to(b"GET "))).await;
    for answer in answers {
        let answer = answer.expect("no connection is reset");
        // A response before the signal is handled has no `Connection: close`; the connection is closed a moment later.
        assert_eq!(answer.status, 200);
    }
    drop(queued);
    assert_eq!(gateway.wait_exit(AT_ONCE).await.code(), Some(0));
}

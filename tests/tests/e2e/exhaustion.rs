//! Resource exhaustion: descriptors, log space, a backend's slots. Everything else goes on.

use std::net::{IpAddr, TcpStream};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use sluice_tests::backend::HttpBackend;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1};
use sluice_tests::load::Load;
use sluice_tests::process::{cpu_time, descriptors, resident_kib};
use sluice_tests::raw_backend::RawBackend;
use sluice_tests::wait::{SOON, quiet, wait_for, wait_until, within};

use crate::{WEB, web};

/// Whether one more request on this connection is served.
pub(crate) async fn answered(conn: &mut H1) -> bool {
    let answer = conn.exchange(&h1::get(WEB, "/")).await;
    answer.is_ok_and(|r| r.status == 200)
}

/// The CPU time of one second without new input.
async fn idle_cost(gateway: &Gateway) -> Duration {
    let before = cpu_time(gateway.pid());
    quiet(Duration::from_secs(1)).await;
    cpu_time(gateway.pid()) - before
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_get_no_descriptor_that_others_need() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::builder(&web(backend.addr()))
        .descriptors(256)
        .start()
        .await;
    let mut good = H1::connect(gateway.addr()).await.unwrap();
    assert!(answered(&mut good).await);
    let load = Load::get(gateway.addr(), 2, WEB);
    let mut many = Vec::new();
    for _ in 0..300 {
        many.push(H1::connect(gateway.addr()).await.unwrap());
    }
    let labels = [("reason", "descriptor_limit")];
    gateway
        .wait_metric("sluice_connections_closed_total", &labels, SOON, |n| n > 100.0)
        .await;
    gateway.wait_said("descriptors are short").await;
    assert!(descriptors(gateway.pid()) < 256);
    // Clients get half of the descriptors. Older connections go on; they and the admin server still get descriptors.
    assert!(answered(&mut good).await);
    load.advance(20).await;
    let cost = idle_cost(&gateway).await;
    load.stop().await.assert_clean();
    assert!(cost < Duration::from_secs(2), "{cost:?} in a second");
    let cost = idle_cost(&gateway).await;
    assert!(cost < Duration::from_millis(300), "a spin: {cost:?} in a second");
    drop(many);
    // Closing most of them takes a while, and the recovery is logged with the next accepted connection.
    wait_for("new ones are served again, and it is said", SOON, async || {
        let mut conn = H1::connect(gateway.addr()).await.ok()?;
        let said = gateway.stderr();
        let said = said.iter().any(|line| line.contains("descriptors suffice again"));
        (answered(&mut conn).await && said).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_descriptor_left_what_is_open_goes_on_and_the_rest_waits() {
    const DESCRIPTORS: u32 = 160;
    let backend = HttpBackend::start("a").await;
    let config = format!("limits: {{connectTimeout: 2s}}\n{}", web(backend.addr()));
    let gateway = Gateway::builder(&config).descriptors(DESCRIPTORS).start().await;
    // Each request that is held takes a descriptor here and one towards the backend, which is nearly all there are.
    backend.hold();
    let mut held = Vec::new();
    for _ in 0..70 {
        let mut conn = H1::connect(gateway.addr()).await.unwrap();
        conn.send(&h1::get(WEB, "/")).await.unwrap();
        held.push(conn);
    }
    wait_until("most are held", SOON, || backend.in_flight() >= 50).await;
    // Less than half of the descriptors are clients' so far, so it is the kernel that refuses more, as soon as callers of
    // the admin listener have what is left: how much that is depends on how many dials failed.
    let (mut callers, mut idle) = (Vec::new(), Vec::new());
    wait_until("the kernel refuses a client", SOON, || {
        if descriptors(gateway.pid()) < DESCRIPTORS as usize {
            callers.push(TcpStream::connect(gateway.admin()).unwrap());
        } else if idle.len() < 9 {
            idle.push(TcpStream::connect(gateway.addr()).unwrap());
        }
        let said = gateway.stderr();
        said.iter()
            .any(|line| line.contains("cannot accept, waiting listener="))
    })
    .await;
    let cost = idle_cost(&gateway).await;
    assert!(cost < Duration::from_millis(300), "a spin: {cost:?} in a second");
    backend.release();
    let answers = join_all(held.iter_mut().map(|conn| conn.response_to(b"GET "))).await;
    let mut served = 0;
    for answer in answers {
        let answer = answer.expect("an answer for each");
        // Requests that came too late to reach the backend get `overloaded`.
        match answer.status {
            200 => served += 1,
            _ => assert_eq!((answer.status, answer.reason()), (503, Some("overloaded"))),
        }
    }
    assert!(served >= 50, "{served} of 70");
    drop((held, idle, callers));
    wait_for("new ones are served again", SOON, async || {
        let mut conn = H1::connect(gateway.addr()).await.ok()?;
        answered(&mut conn).await.then_some(())
    })
    .await;
    gateway.wait_said("accepting again").await;
    assert!(gateway.metric("sluice_accept_pauses_total", &[]).await >= 1.0);
    let endpoints = gateway.admin_get("/api/revisions").await.text();
    assert!(
        !endpoints.contains("ejected"),
        "no endpoint is to blame: {endpoints}"
    );
}

async fn lines_are_dropped(gateway: &Gateway, at_least: f64) {
    let load = Load::get(gateway.addr(), 4, WEB);
    wait_for("lines are dropped and counted", 3 * SOON, async || {
        let dropped = gateway.metric("sluice_log_lines_dropped_total", &[]).await;
        (dropped >= at_least).then_some(())
    })
    .await;
    load.advance(100).await;
    load.stop().await.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_on_a_full_disk_costs_lines_and_nothing_else() {
    let backend = HttpBackend::start("a").await;
    let full = std::path::Path::new("/dev/full");
    let gateway = Gateway::builder(&web(backend.addr())).stdout(full).start().await;
    lines_are_dropped(&gateway, 100.0).await;
    let cost = idle_cost(&gateway).await;
    assert!(cost < Duration::from_millis(300), "a spin: {cost:?} in a second");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_nobody_reads_costs_lines_and_nothing_else() {
    let backend = HttpBackend::start("a").await;
    let config = web(backend.addr());
    let builder = Gateway::builder(&config);
    let pipe = builder.dir().join("log");
    mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    // Opened for reading and writing, so that `open` does not block and there is no end of file; never read.
    let unread = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&pipe)
        .unwrap();
    let mut gateway = builder.stdout(&pipe).start().await;
    let memory = resident_kib(gateway.pid());
    // Long paths, so that the pipe and the log buffer are full soon.
    let path = format!("/{}", "x".repeat(8_000));
    let long = Load::start(gateway.addr(), 4, h1::get(WEB, &path));
    wait_for("lines are dropped and counted", 3 * SOON, async || {
        let dropped = gateway.metric("sluice_log_lines_dropped_total", &[]).await;
        (dropped >= 100.0).then_some(())
    })
    .await;
    long.advance(100).await;
    long.stop().await.assert_clean();
    let grown = resident_kib(gateway.pid()).saturating_sub(memory);
    assert!(grown < 48 << 10, "{grown} KiB");
    gateway.sigterm();
    let status = gateway.wait_exit(Duration::from_secs(10)).await;
    assert!(status.success(), "{status}");
    drop(unread);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_never_answers_harms_its_own_requests_alone() {
    let (silent, good) = (RawBackend::silent().await, HttpBackend::start("good").await);
    let config = format!(
        r#"
services:
  - name: web
    revisions:
      - {{name: web-a, endpoints: ["{}"], responseStartTimeoutSeconds: 2, containerConcurrency: 20, queue: {{depth: 10, timeout: 1s}}}}
  - {{name: good, endpoints: ["{}"]}}
"#,
        silent.addr(),
        good.addr()
    );
    let gateway = Gateway::start(&config).await;
    let load = Load::get(gateway.addr(), 2, "good.default.localhost");
    let start = Instant::now();
    let asked = join_all((0..50).map(|_| gateway.get(WEB, "/"))).await;
    let took = start.elapsed();
    let count = |reason| asked.iter().filter(|r| r.reason() == Some(reason)).count();
    // 20 are in flight, 10 wait in the queue, and 20 find the queue full.
    let found = (count("timeout"), count("queue_timeout"), count("queue_full"));
    assert_eq!(found, (20, 10, 20));
    assert!(took < Duration::from_secs(12), "{took:?}");
    load.advance(20).await;
    load.stop().await.assert_clean();
    for reason in ["timeout", "queue_timeout", "queue_full"] {
        let labels = [("service", "web"), ("reason", reason)];
        let rejected = gateway.metric("sluice_rejections_total", &labels).await;
        assert!(rejected >= 10.0, "{reason}: {rejected}");
    }
    let line = gateway.wait_access_log("a timeout", |e| e["status"] == 504).await;
    assert_eq!(
        (&line["timer"], &line["revision"]),
        (&"start".into(), &"web-a".into())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_connections_of_one_address_leave_room_for_the_others() {
    const WANTED: usize = 10_000;
    const EACH: usize = 500;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    // Other tests run in this process, too.
    let many = WANTED.min(usize::try_from(hard).unwrap_or(usize::MAX) * 3 / 4);
    if many < WANTED {
        eprintln!("only {many} connections: the hard limit of descriptors is {hard}");
    }
    let backend = HttpBackend::start("a").await;
    let limits = format!("limits: {{maxConnectionsPerClient: {EACH}, headerTimeout: 60s, idleTimeout: 60s}}");
    let gateway = Gateway::start(&format!("{limits}\n{}", web(backend.addr()))).await;
    let elsewhere: IpAddr = "127.0.0.9".parse().unwrap();
    let mut good = H1::connect_from(elsewhere, gateway.addr()).await.unwrap();
    assert!(answered(&mut good).await);
    let memory = resident_kib(gateway.pid());
    let mut open = Vec::with_capacity(many);
    for n in 0..many {
        open.push(H1::connect(gateway.addr()).await.unwrap());
        if n % 1000 == 0 {
            assert!(answered(&mut good).await, "after {n}");
        }
    }
    let refused = [("reason", "client_limit")];
    gateway
        .wait_metric("sluice_connections_closed_total", &refused, SOON, |n| {
            n == (many - EACH) as f64
        })
        .await;
    let grown = resident_kib(gateway.pid()).saturating_sub(memory);
    assert!(grown < 32 << 10, "{grown} KiB for {EACH} connections");
    assert!(answered(&mut good).await);
    let mut new = H1::connect_from(elsewhere, gateway.addr()).await.unwrap();
    assert!(answered(&mut new).await, "a new one from elsewhere");
    drop(open);
    within("the address may come again", SOON, async {
        loop {
            let mut again = H1::connect(gateway.addr()).await.unwrap();
            if answered(&mut again).await {
                return;
            }
        }
    })
    .await;
}

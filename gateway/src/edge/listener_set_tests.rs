use std::net::TcpListener as StdListener;
use std::time::Duration;

use sluice_model::CertificateFiles;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::super::testing::*;
use super::super::{CloseReason, ConnectionProtocol};
use super::*;
use crate::edge::listener::bind;

fn at(address: SocketAddr) -> ListenerSettings {
    ListenerSettings { address, ..plain() }
}

#[tokio::test]
async fn a_taken_port_is_named_and_harms_no_other() {
    let taken = StdListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let mut fixture = EdgeFixture::start(settings(vec![plain()])).await;
    fixture.settings.listeners = vec![at(address), plain()];
    let errors = fixture.reload().await;
    assert_eq!(
        errors.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [format!("cannot listen on {address}: the port is taken")]
    );
    let mut client = fixture.connect().await;
    echo(&mut client, b"GET").await;
    assert_eq!(fixture.served().await.0.listener, 1, "as the settings count now");
    // The next call tries again.
    drop(taken);
    assert!(fixture.reload().await.is_empty());
    assert_eq!(fixture.address(0), address);
    echo(&mut TcpStream::connect(address).await.unwrap(), b"GET").await;
}

#[tokio::test]
async fn listeners_come_go_and_change_while_connections_live_on() {
    let mut fixture = EdgeFixture::start(settings(vec![plain()])).await;
    let first = fixture.address(0);
    let mut old = fixture.connect().await;
    echo(&mut old, b"one").await;
    assert_eq!(fixture.served().await.0.visibility, Visibility::External);

    // A second one of the same configured address, and the first changes its visibility in place.
    let internal = ListenerSettings {
        visibility: Visibility::Internal,
        ..plain()
    };
    fixture.settings.listeners = vec![internal, plain()];
    assert!(fixture.reload().await.is_empty());
    let second = fixture.address(1);
    assert_eq!(fixture.address(0), first);
    assert_ne!(second, first);
    echo(&mut fixture.connect().await, b"GET").await;
    assert_eq!(fixture.served().await.0.visibility, Visibility::Internal);
    echo(&mut TcpStream::connect(second).await.unwrap(), b"GET").await;
    assert_eq!(fixture.served().await.0.listener, 1);

    // The port of one that goes is free for one that comes.
    let wide = SocketAddr::from(([0, 0, 0, 0], first.port()));
    fixture.settings.listeners = vec![at(wide)];
    let errors = fixture.reload().await;
    assert!(errors.is_empty(), "{errors:?}");
    assert!(TcpStream::connect(second).await.is_err());
    echo(&mut TcpStream::connect(first).await.unwrap(), b"GET").await;
    assert_eq!(fixture.served().await.0.local, first, "not the wildcard");
    echo(&mut old, b"two").await;
}

#[tokio::test]
async fn bad_certificates_keep_a_listener_as_it_is() {
    let mut fixture = EdgeFixture::start(settings(vec![plain()])).await;
    let nowhere = CertificateFiles {
        cert_file: "/nonexistent/a.crt".into(),
        key_file: "/nonexistent/a.key".into(),
    };
    fixture.settings.listeners = vec![tls_listener(vec![nowhere.clone()]), tls_listener(vec![nowhere])];
    let errors = fixture.reload().await;
    assert_eq!(errors.len(), 2);
    assert!(
        errors[0].to_string().contains("/nonexistent/a.crt"),
        "{}",
        errors[0]
    );
    assert_eq!(fixture.edge.listeners().len(), 1, "a new one is not bound");
    echo(&mut fixture.connect().await, b"GET").await;
}

#[tokio::test]
async fn both_families_at_one_port_or_one_for_both() {
    let mut fixture = EdgeFixture::start(settings(vec![at("[::]:0".parse().unwrap())])).await;
    let port = fixture.address(0).port();
    let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    echo(&mut client, b"GET").await;
    let (info, _) = fixture.served().await;
    assert_eq!(info.client, client.local_addr().unwrap(), "not mapped");
    assert_eq!(info.local, client.peer_addr().unwrap());

    let mut client = TcpStream::connect(("::1", port)).await.unwrap();
    echo(&mut client, b"GET").await;
    assert!(fixture.served().await.0.client.is_ipv6());

    // A port of its own: freed before, bound for both families here.
    fixture.settings.listeners = Vec::new();
    assert!(fixture.reload().await.is_empty());
    let v4 = SocketAddr::from(([0, 0, 0, 0], port));
    let v6 = SocketAddr::new("::".parse().unwrap(), port);
    fixture.settings.listeners = vec![at(v6), at(v4)];
    let errors = fixture.reload().await;
    assert!(errors.is_empty(), "{errors:?}");
}

#[tokio::test]
async fn accepted_sockets_inherit_nodelay_and_keepalive() {
    let listener = bind(any_port(), false).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    drop(client);
    let accepted = socket2::SockRef::from(&accepted);
    assert!(accepted.tcp_nodelay().unwrap() && accepted.keepalive().unwrap());
}

#[tokio::test]
async fn over_the_total_is_closed_and_the_limit_follows_a_reload() {
    let mut settings = settings(vec![plain()]);
    settings.limits.max_connections = Some(1);
    let mut fixture = EdgeFixture::start(settings).await;
    let mut first = fixture.connect().await;
    echo(&mut first, b"GET").await;
    expect_close(&mut fixture.connect().await).await;
    fixture.closed(CloseReason::ConnectionLimit, 1).await;
    fixture.settings.limits.max_connections = Some(2);
    assert!(fixture.reload().await.is_empty());
    let mut second = fixture.connect().await;
    echo(&mut second, b"GET").await;
    echo(&mut first, b"still").await;
    assert_eq!(fixture.edge.open_connections(), 2);
}

#[tokio::test]
async fn a_panic_ends_its_connection_only() {
    let fixture = EdgeFixture::start(settings(vec![plain()])).await;
    let mut good = fixture.connect().await;
    echo(&mut good, b"GET").await;
    let mut bad = fixture.connect().await;
    bad.write_all(b"!").await.unwrap();
    expect_close(&mut bad).await;
    fixture.closed(CloseReason::Panicked, 1).await;
    echo(&mut good, b"GET").await;
    assert_eq!(fixture.edge.open_connections(), 1);
    assert_eq!(fixture.counts.open(ConnectionProtocol::Http1), 1);
}

#[tokio::test]
async fn the_way_out() {
    let mut fixture = EdgeFixture::start(settings(vec![plain()])).await;
    let phase = fixture.edge.phase();
    let mut open = fixture.connect().await;
    echo(&mut open, b"one").await;
    let mut silent = fixture.connect().await;
    let mut begun = fixture.connect().await;
    begun.write_all(b"PRI").await.unwrap();
    fixture.edge.drain();
    assert_eq!(*phase.borrow(), Drain::Draining);
    // A balancer that has not noticed yet is served.
    let mut late = fixture.connect().await;
    echo(&mut late, b"late").await;
    fixture.edge.stop_accepting().await;
    assert!(fixture.edge.listeners().is_empty());
    let _ = fixture.reload().await;
    assert!(fixture.edge.listeners().is_empty(), "for good");
    echo(&mut open, b"two").await;
    drop(late);
    fixture.closed(CloseReason::Served, 1).await;
    expect_close(&mut silent).await;
    fixture.closed(CloseReason::Drained, 1).await;
    assert_eq!(fixture.edge.open_connections(), 2);
    {
        let drained = fixture.edge.drained();
        tokio::pin!(drained);
        assert!(futures_util::poll!(drained.as_mut()).is_pending());
        fixture.edge.close();
        timeout(PATIENCE, drained).await.unwrap();
    }
    fixture.edge.drain();
    assert_eq!(*phase.borrow(), Drain::Closing, "never back");
    expect_close(&mut open).await;
    expect_close(&mut begun).await;
    assert_eq!(fixture.counts.closed(CloseReason::Drained), 2);
    assert_eq!(fixture.counts.open(ConnectionProtocol::Opening), 0);
}

/// On one thread nothing is accepted between the connects and the stop: all of it sits in the queue.
#[tokio::test]
async fn whom_the_kernel_accepted_is_served() {
    let fixture = EdgeFixture::start(settings(vec![plain()])).await;
    let address = fixture.address(0);
    let clients: Vec<_> = (0..50)
        .map(|_| std::net::TcpStream::connect(address).unwrap())
        .collect();
    fixture.edge.stop_accepting().await;
    assert!(std::net::TcpStream::connect(address).is_err());
    for client in clients {
        client.set_nonblocking(true).unwrap();
        let mut client = TcpStream::from_std(client).unwrap();
        echo(&mut client, b"GET").await;
    }
    timeout(PATIENCE, fixture.edge.drained()).await.unwrap();
    assert_eq!(fixture.counts.closed(CloseReason::Served), 50);
}

#[tokio::test]
async fn dropping_the_edge_stops_accepting_only() {
    let fixture = EdgeFixture::start(settings(vec![plain()])).await;
    let address = fixture.address(0);
    let mut client = fixture.connect().await;
    echo(&mut client, b"one").await;
    drop(fixture);
    let end = tokio::time::Instant::now() + PATIENCE;
    while TcpStream::connect(address).await.is_ok() {
        assert!(tokio::time::Instant::now() < end, "still accepting");
        tokio::task::yield_now().await;
    }
    echo(&mut client, b"two").await;
}

const CHILD: &str = "edge::listener_set::tests::descriptors_run_out_in_a_process_of_its_own";

/// The descriptor limit is the process's, so the test runs in a child process.
#[test]
fn running_out_of_descriptors_neither_spins_nor_loses_anybody() {
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([CHILD, "--exact", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && told.contains("1 passed"), "{told}");
}

#[tokio::test]
#[ignore = "run in a child process by the test above"]
async fn descriptors_run_out_in_a_process_of_its_own() {
    use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
    use nix::sys::time::TimeValLike;

    let fixture = EdgeFixture::start(settings(vec![plain(), plain()])).await;
    let mut open = fixture.connect().await;
    echo(&mut open, b"one").await;
    // Clients exist before the limit bites: only their acceptance needs descriptors.
    let clients: Vec<_> = (0..4)
        .map(|n| std::net::TcpStream::connect(fixture.address(n % 2)).unwrap())
        .collect();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 3, hard).unwrap();
    eventually(|| fixture.counts.exhausted() == 2, || "no episode".to_owned()).await;

    let cpu = || {
        let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
        (usage.user_time() + usage.system_time()).num_milliseconds()
    };
    let before = cpu();
    for _ in 0..20 {
        // What is open goes on.
        echo(&mut open, b"meanwhile").await;
        sleep(Duration::from_millis(20)).await;
    }
    let spent = cpu() - before;
    assert!(spent < 200, "{spent} ms of 400 ms spent waiting");
    assert_eq!(fixture.counts.exhausted(), 2, "once an episode");

    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    for client in clients {
        client.set_nonblocking(true).unwrap();
        let mut client = TcpStream::from_std(client).unwrap();
        echo(&mut client, b"GET").await;
        client.shutdown().await.unwrap();
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
    }
}

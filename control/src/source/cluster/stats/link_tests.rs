//! The WebSocket to an autoscaler, which is a real server here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use prost::Message as _;
use sluice_model::Load;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_tungstenite::accept_async;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::super::reports::WireStatMessages;
use super::*;

fn id() -> RevisionId {
    RevisionId::parse("d", "r").expect("a name")
}

/// Loads as a test sets them.
#[derive(Default)]
struct Loads(Mutex<Load>);

impl PodLoads for Loads {
    fn sample(&self) -> Vec<(RevisionId, Load)> {
        vec![(id(), *self.0.lock())]
    }

    fn sample_one(&self, revision: &RevisionId) -> Option<Load> {
        (*revision == id()).then(|| *self.0.lock())
    }
}

/// The next statistics on a connection.
async fn stats(socket: &mut WebSocketStream<TcpStream>) -> WireStatMessages {
    loop {
        match socket.next().await.expect("is open").expect("is readable") {
            Message::Binary(bytes) => return WireStatMessages::decode(&*bytes).expect("the message"),
            _ => continue,
        }
    }
}

#[test]
fn pauses_grow_to_two_seconds_and_stay_short_while_an_autoscaler_may_restart() {
    let all = |had_connection| -> Vec<u128> {
        (0..60)
            .map(|failures| pause(failures, had_connection).as_millis())
            .collect()
    };
    assert_eq!(all(false)[..8], [20, 50, 100, 250, 500, 1_000, 2_000, 2_000]);
    assert_eq!(pause(usize::MAX, false), MAX_PAUSE);
    let restarted = all(true);
    assert!(
        restarted[3..=43].iter().all(|pause| *pause == 250),
        "{restarted:?}"
    );
    assert_eq!(restarted[44..48], [500, 1_000, 2_000, 2_000]);
    assert!(restarted[..44].iter().sum::<u128>() >= 10_000);
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let polled = async {
        while !holds() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(
        timeout(Duration::from_secs(10), polled).await.is_ok(),
        "not in time: {what}"
    );
}

#[tokio::test]
async fn waiters_are_reported_at_once_and_again_to_an_autoscaler_that_restarted() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("bound").port();
    let (sender, mut accepted) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let socket = accept_async(stream).await.expect("a handshake");
            let _ = sender.send(socket);
        }
    });
    let delivered = Arc::new(AtomicBool::new(false));
    let is_delivered = || delivered.load(Ordering::Relaxed);
    let handle = StatsHandle::new(Arc::clone(&delivered));
    let loads = Arc::new(Loads::default());
    let options = StatsOptions {
        autoscaler: ("127.0.0.1".into(), port),
        pod_name: "me".into(),
    };
    assert_eq!(handle.connection(), None);
    let task = tokio::spawn(handle.clone().run(options, Arc::clone(&loads) as _));
    // Nobody uses anything: there is no connection to wait for. Then somebody waits.
    handle.activate(&RevisionId::parse("d", "unknown").expect("a name"));
    handle.activate(&id());
    let mut socket = accepted.recv().await.expect("connects");
    let first = stats(&mut socket).await;
    assert_eq!(first.messages.len(), 1);
    assert_eq!(
        (
            first.messages[0].namespace.as_str(),
            first.messages[0].name.as_str()
        ),
        ("d", "r")
    );
    let stat = first.messages[0].stat.as_ref().expect("a stat");
    assert_eq!(
        (
            stat.pod_name.as_str(),
            stat.average_concurrent_requests,
            stat.request_count
        ),
        ("me", 1.0, 1.0)
    );
    *loads.0.lock() = Load {
        average_concurrency: 3.0,
        requests: 3,
        queued: 3,
        ..Load::default()
    };
    let second = stats(&mut socket).await;
    assert_eq!(
        second.messages[0]
            .stat
            .as_ref()
            .map(|s| s.average_concurrent_requests),
        Some(2.0)
    );
    // The server answers pings as it reads.
    let (mut writer, mut reader) = socket.split();
    let reading = tokio::spawn(async move { while reader.next().await.is_some_and(|read| read.is_ok()) {} });
    until("a pong has come", is_delivered).await;
    let away = CloseFrame {
        code: CloseCode::Restart,
        reason: "".into(),
    };
    writer.send(Message::Close(Some(away))).await.expect("is sent");
    until("requests are counted by queue-proxies", || !is_delivered()).await;
    until("the end is counted", || {
        handle.connection().is_some_and(|(_, errors)| errors >= 1)
    })
    .await;
    // The successor hears at once of all that is in use.
    let mut socket = accepted.recv().await.expect("connects again");
    let again = stats(&mut socket).await;
    assert_eq!(
        again.messages[0]
            .stat
            .as_ref()
            .map(|s| s.average_concurrent_requests),
        Some(3.0)
    );
    reading.abort();
    task.abort();
}

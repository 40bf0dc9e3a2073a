use std::os::fd::AsRawFd;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

const LONG: Duration = Duration::from_secs(60);

async fn pair() -> (BackendIo, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
    (
        BackendIo::Tcp(ours.expect("connected")),
        theirs.expect("accepted").0,
    )
}

fn number(io: &BackendIo) -> i32 {
    let BackendIo::Tcp(stream) = io else { panic!("TCP") };
    stream.as_raw_fd()
}

/// Both sides are ours, so the end is seen as soon as it is there.
async fn is_closed(peer: &mut TcpStream) -> bool {
    matches!(peer.read(&mut [0]).await, Ok(0) | Err(_))
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[tokio::test]
async fn the_youngest_is_taken_first() {
    let idle = IdleConnections::default();
    assert!(idle.take(now(), LONG).is_none());
    let (first, _first_peer) = pair().await;
    let (second, _second_peer) = pair().await;
    let numbers = [number(&first), number(&second)];
    idle.put(first, now(), LONG);
    idle.put(second, now(), LONG);
    assert_eq!(idle.len(), 2);
    let taken = [(); 2].map(|()| idle.take(now(), LONG).expect("one idles"));
    assert_eq!([number(&taken[1]), number(&taken[0])], numbers);
    assert!(idle.take(now(), LONG).is_none());
}

#[tokio::test]
async fn what_the_peer_closed_or_spoke_on_is_passed_over() {
    let idle = IdleConnections::default();
    let (good, _peer) = pair().await;
    let wanted = number(&good);
    let (closed, peer) = pair().await;
    let (spoke, mut chatty) = pair().await;
    idle.put(good, now(), LONG);
    drop(peer);
    chatty
        .write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        .await
        .expect("sent");
    for io in [&closed, &spoke] {
        let BackendIo::Tcp(stream) = io else { panic!("TCP") };
        stream.readable().await.expect("readiness");
    }
    idle.put(closed, now(), LONG);
    idle.put(spoke, now(), LONG);
    let taken = idle.take(now(), LONG).expect("one is good");
    assert_eq!(number(&taken), wanted);
    assert_eq!(idle.len(), 0);
    assert!(is_closed(&mut chatty).await);
}

/// The bytes are in the socket, and the driver has had no turn to see them.
#[tokio::test]
async fn what_the_peer_said_a_moment_ago_is_passed_over() {
    let idle = IdleConnections::default();
    let (io, peer) = pair().await;
    idle.put(io, now(), LONG);
    // Nothing is awaited from here on. Over the loopback a write is done when the other side has it.
    let mut peer = peer.into_std().expect("a socket");
    std::io::Write::write_all(&mut peer, b"HTTP/1.1 200 OK\r\n\r\n").expect("sent");
    assert!(
        idle.take(now(), LONG).is_none(),
        "it would answer the next request"
    );
    assert_eq!(idle.len(), 0);
}

#[tokio::test]
async fn what_idled_too_long_is_closed_and_not_taken() {
    let idle = IdleConnections::default();
    let begin = now();
    let (old, mut old_peer) = pair().await;
    let (young, mut young_peer) = pair().await;
    idle.put(old, begin, LONG);
    idle.put(young, begin + Duration::from_secs(2), LONG);
    // A reload may have made the time shorter.
    assert!(
        idle.take(begin + Duration::from_secs(7), Duration::from_secs(5))
            .is_none()
    );
    assert!(is_closed(&mut young_peer).await);
    assert!(is_closed(&mut old_peer).await);
    let (never, mut peer) = pair().await;
    idle.put(never, begin, Duration::ZERO);
    assert!(is_closed(&mut peer).await);
}

#[tokio::test(start_paused = true)]
async fn one_sweep_closes_what_nobody_takes_and_ends_when_nothing_idles() {
    let idle = IdleConnections::default();
    let mut peers = Vec::new();
    for _ in 0..3 {
        let (io, peer) = pair().await;
        idle.put(io, now(), Duration::from_secs(4));
        peers.push(peer);
    }
    let shards = Arc::clone(idle.shards.get().expect("used"));
    assert!(shards.swept.load(Ordering::SeqCst));
    // Only the sweep can close them, and the clock moves only while everybody waits.
    for peer in &mut peers {
        assert!(is_closed(peer).await);
    }
    assert_eq!(idle.len(), 0);
    while shards.swept.load(Ordering::SeqCst) {
        tokio::task::yield_now().await;
    }
    let (io, mut peer) = pair().await;
    idle.put(io, now(), Duration::from_secs(4));
    assert!(is_closed(&mut peer).await, "another sweep begins");
}

#[tokio::test(start_paused = true)]
async fn the_sweep_closes_what_the_backend_closed() {
    let idle = IdleConnections::default();
    let (io, peer) = pair().await;
    let (other, _other_peer) = pair().await;
    idle.put(io, now(), LONG);
    idle.put(other, now(), LONG);
    drop(peer);
    let begin = now();
    while idle.len() > 1 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(now() < begin + LONG, "long before it idled for too long");
    assert!(idle.take(now(), LONG).is_some());
}

#[tokio::test]
async fn close_ends_what_idles_and_what_is_put_later() {
    let idle = IdleConnections::default();
    let (early, mut early_peer) = pair().await;
    idle.put(early, now(), LONG);
    idle.close();
    assert!(is_closed(&mut early_peer).await);
    let (late, mut late_peer) = pair().await;
    idle.put(late, now(), LONG);
    assert!(is_closed(&mut late_peer).await);
    assert!(idle.take(now(), LONG).is_none());
    let unused = IdleConnections::default();
    unused.close();
    let (late, mut late_peer) = pair().await;
    unused.put(late, now(), LONG);
    assert!(is_closed(&mut late_peer).await);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_owner_closes_what_idles() {
    let idle = IdleConnections::default();
    let (io, mut peer) = pair().await;
    idle.put(io, now(), LONG);
    let shards = Arc::downgrade(idle.shards.get().expect("used"));
    drop(idle);
    assert!(shards.upgrade().is_none(), "the sweep holds nothing");
    assert!(is_closed(&mut peer).await);
}

#[tokio::test]
async fn another_thread_takes_what_this_one_put() {
    let idle = Arc::new(IdleConnections::default());
    let (io, _peer) = pair().await;
    let wanted = number(&io);
    idle.put(io, now(), LONG);
    let elsewhere = Arc::clone(&idle);
    let taken = std::thread::spawn(move || elsewhere.take(Instant::now(), LONG).map(|io| number(&io)));
    assert_eq!(taken.join().expect("ended"), Some(wanted));
}

#[tokio::test]
async fn a_full_shard_takes_no_more() {
    let shard = Shard::default();
    let open = AtomicBool::new(false);
    for _ in 0..MAX_PER_SHARD {
        let (one, _other) = tokio::net::UnixStream::pair().expect("a pair");
        // Closed by its peer already: descriptors are scarce in tests, too.
        let one = BackendIo::Unix(one);
        shard.0.lock().push_back(Idle {
            io: one,
            since: now(),
            until: now() + LONG,
        });
    }
    let (io, mut peer) = pair().await;
    assert!(!shard.put(&open, io, now(), LONG));
    assert!(is_closed(&mut peer).await);
}

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};

use super::*;

async fn tcp_pair() -> (BackendIo, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
    (
        BackendIo::Tcp(ours.expect("connected")),
        theirs.expect("accepted").0,
    )
}

/// Waits until the driver knows of something to read, or of the end.
async fn seen(io: &BackendIo) {
    match io {
        BackendIo::Tcp(stream) => stream.readable().await,
        BackendIo::Unix(stream) => stream.readable().await,
        BackendIo::Tls(stream) => stream.get_ref().0.readable().await,
    }
    .expect("readiness");
}

/// Waits until the kernel knows, which is before the driver can.
fn arrived(io: &BackendIo) {
    let BackendIo::Tcp(stream) = io else { panic!("TCP") };
    let mut asked = [nix::poll::PollFd::new(
        std::os::fd::AsFd::as_fd(stream),
        nix::poll::PollFlags::POLLIN,
    )];
    nix::poll::poll(&mut asked, nix::poll::PollTimeout::NONE).expect("polled");
}

#[tokio::test]
async fn an_open_and_silent_connection_is_clean_by_both_looks() {
    let (mut tcp, _peer) = tcp_pair().await;
    let (ours, _theirs) = UnixStream::pair().expect("a pair");
    let mut unix = BackendIo::Unix(ours);
    for ask_kernel in [false, true] {
        assert!(tcp.is_idle_clean(ask_kernel));
        assert!(unix.is_idle_clean(ask_kernel));
    }
}

#[tokio::test]
async fn what_the_peer_closed_or_spoke_on_is_not_clean() {
    for ask_kernel in [false, true] {
        let (mut io, peer) = tcp_pair().await;
        drop(peer);
        seen(&io).await;
        assert!(!io.is_idle_clean(ask_kernel), "closed, {ask_kernel}");
        let (mut io, mut peer) = tcp_pair().await;
        peer.write_all(b"HTTP/1.1 408 \r\n\r\n").await.expect("sent");
        seen(&io).await;
        assert!(!io.is_idle_clean(ask_kernel), "spoke, {ask_kernel}");
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let mut io = BackendIo::Unix(ours);
        drop(theirs);
        seen(&io).await;
        assert!(!io.is_idle_clean(ask_kernel), "closed unix, {ask_kernel}");
    }
}

#[tokio::test]
async fn only_the_kernel_knows_of_an_end_that_the_driver_has_not_seen() {
    let (mut io, peer) = tcp_pair().await;
    // One thread, and nothing awaited from here on: the driver does not run.
    let peer = peer.into_std().expect("a socket");
    drop(peer);
    arrived(&io);
    assert!(io.is_idle_clean(false), "no system call, no news");
    assert!(!io.is_idle_clean(true));
}

/// tokio clears readiness on a short read: the next read does not ask the kernel in vain, and the
/// look at an idle connection is free.
#[tokio::test]
async fn a_short_read_leaves_nothing_to_ask_the_kernel_for() {
    let (mut io, mut peer) = tcp_pair().await;
    peer.write_all(b"answer").await.expect("sent");
    let mut buf = [0; 64];
    assert_eq!(io.read(&mut buf).await.expect("read"), 6);
    let asked = AtomicBool::new(false);
    let BackendIo::Tcp(stream) = &io else {
        panic!("TCP")
    };
    let tried = stream.try_io(Interest::READABLE, || {
        asked.store(true, Ordering::Relaxed);
        Ok(0)
    });
    assert!(is_silent(&tried));
    assert!(!asked.load(Ordering::Relaxed));
    assert!(io.is_idle_clean(false));
}

#[tokio::test]
async fn vectored_writes_go_out_as_one() {
    let (mut io, mut peer) = tcp_pair().await;
    assert!(io.is_write_vectored());
    let sent = io
        .write_vectored(&[IoSlice::new(b"head "), IoSlice::new(b"body")])
        .await
        .expect("written");
    assert_eq!(sent, 9);
    let mut buf = [0; 9];
    peer.read_exact(&mut buf).await.expect("read");
    assert_eq!(&buf, b"head body");
}

//! Pre-warmed connection: the one of the probe that found an endpoint ready, kept for the first request. It
//! saves a connect, and a server that serves one connection at a time is not kept busy by an idle one.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use socket2::SockRef;
use tokio::net::{TcpStream, UnixStream};

/// How long a connection is kept. The request that waited for the endpoint is on its way when the connection is
/// kept; one that no request took by then would block a server that serves one at a time.
const HOLD: Duration = Duration::from_millis(250);

/// A connection without TLS.
#[derive(Debug)]
pub(crate) enum PlainStream {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
}

impl PlainStream {
    /// Whether the peer has neither closed it nor, unless it `speaks_first`, sent anything. A system call: the
    /// runtime's readiness may be older.
    fn is_good(&self, speaks_first: bool) -> bool {
        match self.peek() {
            Ok(said) => said > 0 && speaks_first,
            Err(e) => e.kind() == std::io::ErrorKind::WouldBlock,
        }
    }

    /// Whether the peer has not closed it. A system call.
    pub(crate) fn is_open(&self) -> bool {
        match self.peek() {
            Ok(said) => said > 0,
            Err(e) => e.kind() == std::io::ErrorKind::WouldBlock,
        }
    }

    /// Waits until the connection is readable: the peer closed it, or sent bytes. Cancel-safe.
    pub(crate) async fn news(&self) {
        let heard = match self {
            Self::Tcp(stream) => stream.readable().await,
            Self::Unix(stream) => stream.readable().await,
        };
        // Fails only without a runtime; the caller peeks anyway.
        drop(heard);
    }

    fn peek(&self) -> std::io::Result<usize> {
        let mut byte = [std::mem::MaybeUninit::uninit()];
        match self {
            Self::Tcp(stream) => SockRef::from(stream).peek(&mut byte),
            Self::Unix(stream) => SockRef::from(stream).peek(&mut byte),
        }
    }
}

/// A slot for at most one connection, with a time limit.
#[derive(Debug, Default)]
pub(crate) struct PrewarmedSlot(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    connection: Option<PlainStream>,
    /// Counts the connections that were put in, so that a timer drops only its own.
    generation: u64,
}

impl PrewarmedSlot {
    /// Keeps a connection for [`HOLD`], then closes it. A connection that was kept before is closed now. Runs
    /// on the runtime of the connection.
    pub(crate) fn keep(&self, connection: PlainStream) {
        let generation = {
            let mut kept = self.0.lock();
            kept.generation += 1;
            kept.connection = Some(connection);
            kept.generation
        };
        let slot = Arc::downgrade(&self.0);
        drop(tokio::spawn(async move {
            tokio::time::sleep(HOLD).await;
            end(&slot, generation);
        }));
    }

    /// Takes the connection if it is still usable: the peer has neither closed it nor sent anything, unless it
    /// `speaks_first`, as an HTTP/2 server does.
    pub(crate) fn take(&self, speaks_first: bool) -> Option<PlainStream> {
        let connection = self.0.lock().connection.take()?;
        connection.is_good(speaks_first).then_some(connection)
    }

    /// Closes the connection, if there is one.
    pub(crate) fn close(&self) {
        let kept = self.0.lock().connection.take();
        drop(kept);
    }
}

fn end(slot: &Weak<Mutex<Kept>>, generation: u64) {
    if let Some(slot) = slot.upgrade() {
        let mut kept = slot.lock();
        if kept.generation == generation {
            kept.connection = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (PlainStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
        (
            PlainStream::Tcp(ours.expect("connected")),
            theirs.expect("accepted").0,
        )
    }

    #[tokio::test]
    async fn it_is_taken_once_and_the_next_one_replaces_it() {
        let slot = PrewarmedSlot::default();
        assert!(slot.take(false).is_none());
        let (first, mut peer) = pair().await;
        slot.keep(first);
        let (second, _second_peer) = pair().await;
        slot.keep(second);
        assert_eq!(
            peer.read(&mut [0]).await.expect("no reset"),
            0,
            "the first is closed"
        );
        assert!(slot.take(false).is_some());
        assert!(slot.take(false).is_none());
    }

    #[tokio::test]
    async fn what_the_peer_closed_or_spoke_on_is_not_used() {
        let slot = PrewarmedSlot::default();
        let (connection, peer) = pair().await;
        slot.keep(connection);
        drop(peer);
        assert!(slot.take(false).is_none());
        let (connection, mut peer) = pair().await;
        peer.write_all(b"220 hello\r\n").await.expect("sent");
        slot.keep(connection);
        assert!(slot.take(false).is_none());
        let (connection, mut peer) = pair().await;
        peer.write_all(b"SETTINGS").await.expect("sent");
        slot.keep(connection);
        assert!(slot.take(true).is_some());
        let (connection, peer) = pair().await;
        slot.keep(connection);
        drop(peer);
        assert!(slot.take(true).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_takes_is_closed() {
        let slot = PrewarmedSlot::default();
        let (connection, mut peer) = pair().await;
        slot.keep(connection);
        tokio::time::sleep(HOLD / 2).await;
        assert!(slot.0.lock().connection.is_some());
        assert_eq!(peer.read(&mut [0]).await.expect("no reset"), 0);
        assert!(slot.take(false).is_none());
    }
}

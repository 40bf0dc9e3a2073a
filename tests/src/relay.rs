//! A TCP relay whose connections a test cuts: one of them, or all until it opens again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

/// A running relay; dropping it closes its listener and its connections.
#[derive(Debug)]
pub struct Relay {
    addr: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    is_shut: AtomicBool,
    accepted: AtomicU64,
    /// What cuts each open connection when it is sent or dropped, in the order of arrival.
    open: Mutex<BTreeMap<u64, oneshot::Sender<()>>>,
}

impl State {
    fn open(&self) -> MutexGuard<'_, BTreeMap<u64, oneshot::Sender<()>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Relay {
    /// Starts one at an address, to another.
    ///
    /// # Panics
    /// When the address cannot be bound.
    pub async fn start(at: SocketAddr, to: SocketAddr) -> Self {
        let listener = TcpListener::bind(at).await.expect("a free port");
        let addr = listener.local_addr().expect("a bound socket");
        let state = Arc::<State>::default();
        let task = tokio::spawn(accept(listener, to, Arc::clone(&state)));
        Self { addr, state, task }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Connections accepted so far, without those that came while it was shut.
    pub fn accepted(&self) -> u64 {
        self.state.accepted.load(Ordering::SeqCst)
    }

    /// Connections that are open now.
    pub fn open(&self) -> usize {
        self.state.open().len()
    }

    /// Resets one connection, the one that is `nth`, modulo their number, of those that are open. Returns whether there
    /// is one.
    pub fn cut(&self, nth: usize) -> bool {
        let mut open = self.state.open();
        let Some(nth) = nth.checked_rem(open.len()) else {
            return false;
        };
        let key = open.keys().nth(nth).copied();
        key.and_then(|key| open.remove(&key)).is_some()
    }

    /// Resets all connections, and every new one until [`reopen`](Self::reopen).
    pub fn shut(&self) {
        let mut open = self.state.open();
        self.state.is_shut.store(true, Ordering::SeqCst);
        open.clear();
    }

    /// Relays again what comes.
    pub fn reopen(&self) {
        self.state.is_shut.store(false, Ordering::SeqCst);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, to: SocketAddr, state: Arc<State>) {
    let mut relays = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let (cut, is_cut) = oneshot::channel();
        {
            // Under the lock: none is accepted behind the back of `shut`.
            let mut open = state.open();
            if state.is_shut.load(Ordering::SeqCst) {
                reset(&client);
                continue;
            }
            let key = state.accepted.fetch_add(1, Ordering::SeqCst);
            open.insert(key, cut);
            relays.spawn(relay(client, to, is_cut, key, Arc::clone(&state)));
        }
        while relays.try_join_next().is_some() {}
    }
}

async fn relay(
    mut client: TcpStream,
    to: SocketAddr,
    is_cut: oneshot::Receiver<()>,
    key: u64,
    state: Arc<State>,
) {
    let both_ways = async {
        let mut server = TcpStream::connect(to).await?;
        server.set_nodelay(true)?;
        client.set_nodelay(true)?;
        copy_bidirectional(&mut client, &mut server).await
    };
    let ended_well = tokio::select! {
        copied = both_ways => copied.is_ok(),
        _ = is_cut => false,
    };
    if !ended_well {
        reset(&client);
    }
    state.open().remove(&key);
}

/// The end of the connection will be a reset.
fn reset(io: &TcpStream) {
    // A socket that is gone already needs none.
    let _: std::io::Result<()> = io.set_zero_linger();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::HttpBackend;
    use crate::h1::{self, H1};
    use crate::wait::{SOON, wait_until, within};

    #[tokio::test]
    async fn connections_are_cut_one_by_one_and_all_at_once() {
        let backend = HttpBackend::start("a").await;
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        let relay = Relay::start(local, backend.addr()).await;
        let get = h1::get("a.example.com", "/");
        let mut connections = Vec::new();
        for _ in 0..3 {
            let mut connection = H1::connect(relay.addr()).await.expect("accepted");
            assert_eq!(connection.exchange(&get).await.expect("relayed").text(), "a");
            connections.push(connection);
        }
        assert_eq!((relay.open(), relay.accepted()), (3, 3));
        assert!(relay.cut(4));
        assert!(connections.remove(1).exchange(&get).await.is_err());
        for connection in &mut connections {
            connection.exchange(&get).await.expect("the others go on");
        }

        relay.shut();
        for mut connection in connections {
            assert!(connection.exchange(&get).await.is_err());
        }
        assert!(h1::fetch(relay.addr(), &get).await.is_err());
        assert!(!relay.cut(0));
        relay.reopen();
        let answer = within("an answer", SOON, h1::fetch(relay.addr(), &get)).await;
        assert_eq!(answer.expect("relayed again").text(), "a");
        assert_eq!(relay.accepted(), 4);
        wait_until("no connection is open", SOON, || relay.open() == 0).await;
    }
}

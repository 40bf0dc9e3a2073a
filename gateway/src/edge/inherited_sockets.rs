//! Socket handover between processes of a binary upgrade: listening sockets are inherited by one and passed
//! on by the other.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use tokio::sync::OwnedMutexGuard;

use super::listener_set::{Edge, ListenerSet};

impl Edge {
    /// Takes listening sockets that another process bound, by configured address. [`apply`](Self::apply) uses
    /// them where it would bind; of several sockets of one address the first goes first. Unused sockets stay
    /// open until [`close_inherited`](Self::close_inherited).
    ///
    /// # Errors
    /// When a socket cannot be made non-blocking.
    pub fn inherit(&self, sockets: Vec<(SocketAddr, StdListener)>) -> io::Result<()> {
        for (_, socket) in &sockets {
            socket.set_nonblocking(true)?;
        }
        *self.inner.inherited.lock() = sockets;
        Ok(())
    }

    /// Closes inherited sockets that were not used, in this process alone.
    pub fn close_inherited(&self) {
        self.inner.inherited.lock().clear();
    }

    /// Makes listeners bind without accepting until [`start_accepting`](Self::start_accepting). Call it
    /// before the first [`apply`](Self::apply): an accept loop that runs cannot be paused.
    pub fn pause_accepting(&self) {
        self.inner.context.accepting.send_replace(false);
    }

    /// Starts every accept loop.
    pub fn start_accepting(&self) {
        self.inner.context.accepting.send_replace(true);
    }

    /// Locks the set of listeners until the guard is dropped: a reload waits at its listeners meanwhile.
    /// Cancel-safe.
    pub async fn freeze_listeners(&self) -> FrozenListeners {
        FrozenListeners {
            stopped: Arc::clone(&self.inner.stopped).lock_owned().await,
            inner: Arc::clone(&self.inner),
        }
    }
}

impl ListenerSet {
    pub(super) fn take_inherited(&self, address: SocketAddr) -> Option<StdListener> {
        let mut inherited = self.inherited.lock();
        let at = inherited.iter().position(|(of, _)| *of == address)?;
        Some(inherited.remove(at).1)
    }

    /// Whether an inherited socket has this address, so that nothing has to be bound.
    pub(super) fn is_inherited(&self, address: SocketAddr) -> bool {
        self.inherited.lock().iter().any(|(of, _)| *of == address)
    }
}

/// Guard of a set of listeners that does not change.
pub struct FrozenListeners {
    inner: Arc<ListenerSet>,
    stopped: OwnedMutexGuard<bool>,
}

impl FrozenListeners {
    /// Duplicates of every listening socket by configured address, in the order of the settings.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn sockets(&self) -> io::Result<Vec<(SocketAddr, OwnedFd)>> {
        let listening = self.inner.listening.lock();
        let mut all = Vec::with_capacity(listening.len());
        for listening in listening.iter() {
            // Absent only if the accept loop ended, which only a bug can cause here.
            if let Some(socket) = listening.socket.upgrade() {
                let index = listening.listener.config.load_full().index;
                all.push((index, listening.address, socket.as_fd().try_clone_to_owned()?));
            }
        }
        drop(listening);
        all.sort_by_key(|(index, ..)| *index);
        Ok(all
            .into_iter()
            .map(|(_, address, socket)| (address, socket))
            .collect())
    }

    /// Stops accepting for good, as [`Edge::stop_accepting`] does. A socket that another process has too
    /// stays open there, with the accept queue that both share.
    pub async fn stop_accepting(mut self) {
        *self.stopped = true;
        self.inner.stop_all().await;
    }
}

impl std::fmt::Debug for FrozenListeners {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrozenListeners").finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "inherited_sockets_tests.rs"]
mod tests;

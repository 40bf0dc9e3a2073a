//! RunningListener sockets that outlive a process: how one passes them on and another takes them.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use tokio::sync::OwnedMutexGuard;

use super::listener_set::{Edge, ListenerSet};

impl Edge {
    /// Takes sockets that another process bound, by configured address. [`apply`](Self::apply) uses them
    /// where it would bind; of several of one address the first comes first. What it has no use for stays
    /// here until [`close_inherited`](Self::close_inherited).
    ///
    /// # Errors
    /// When a socket cannot be used at all.
    pub fn inherit(&self, sockets: Vec<(SocketAddr, StdListener)>) -> io::Result<()> {
        for (_, socket) in &sockets {
            socket.set_nonblocking(true)?;
        }
        *self.inner.inherited.lock() = sockets;
        Ok(())
    }

    /// Closes what was inherited and is not used, as seen from this process alone.
    pub fn close_inherited(&self) {
        self.inner.inherited.lock().clear();
    }

    /// Makes listeners bind, but not accept until [`start_accepting`](Self::start_accepting). Call it before the first
    /// [`apply`](Self::apply): a listener that accepts goes on.
    pub fn pause_accepting(&self) {
        self.inner.context.accepting.send_replace(false);
    }

    /// Lets every listener accept.
    pub fn start_accepting(&self) {
        self.inner.context.accepting.send_replace(true);
    }

    /// Keeps the listeners as they are until the guard is gone: a reload meanwhile waits with its
    /// listeners, and no other. Cancel-safe.
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

    /// Whether nothing has to be bound for this address.
    pub(super) fn is_inherited(&self, address: SocketAddr) -> bool {
        self.inherited.lock().iter().any(|(of, _)| *of == address)
    }
}

/// An edge whose listeners do not change.
pub struct FrozenListeners {
    inner: Arc<ListenerSet>,
    stopped: OwnedMutexGuard<bool>,
}

impl FrozenListeners {
    /// Every listening socket by its configured address, in the order of the settings.
    ///
    /// # Errors
    /// When this process may have no more descriptors.
    pub fn sockets(&self) -> io::Result<Vec<(SocketAddr, OwnedFd)>> {
        let listening = self.inner.listening.lock();
        let mut all = Vec::with_capacity(listening.len());
        for listening in listening.iter() {
            // Without one its accept loop has ended, which only a bug can do here.
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

    /// Ends accepting for good, as [`Edge::stop_accepting`] does. A socket that another process has, too,
    /// stays open there, with the queue that both share.
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

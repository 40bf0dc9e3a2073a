//! Pre-binds new listeners before a config is accepted, so that a taken port rejects the config.

use std::io::ErrorKind;
use std::net::SocketAddr;

use sluice_model::Settings;
use tokio::net::TcpListener;

use super::listener::{ListenerBindError, bind};
use super::listener_set::{Edge, ListenerSet, v6_only};

/// A bound socket without an accept loop.
pub(super) struct PreboundSocket {
    address: SocketAddr,
    v6_only: bool,
    socket: TcpListener,
}

impl Edge {
    /// Binds the listeners that these settings add, for the next [`apply`](Self::apply) of them. Returns the
    /// addresses that cannot be bound, by index in the settings; then no socket is kept. A port still in use
    /// by a listener that these settings remove is left to `apply`. Must be called in a tokio runtime.
    pub async fn prebind(&self, settings: &Settings) -> Vec<(usize, ListenerBindError)> {
        let stopped = self.inner.stopped.lock().await;
        if *stopped {
            return Vec::new();
        }
        let mut prebound = Vec::new();
        let mut errors = Vec::new();
        // Configured and bound address of each running listener, until a wanted one matches it.
        let mut running = self.inner.addresses();
        let mut new = Vec::new();
        for (index, wanted) in settings.listeners.iter().enumerate() {
            match running.iter().position(|(address, _)| *address == wanted.address) {
                Some(at) => _ = running.swap_remove(at),
                None if self.inner.is_inherited(wanted.address) => {}
                None => new.push((index, wanted)),
            }
        }
        for (index, wanted) in new {
            let (address, v6_only) = (wanted.address, v6_only(wanted, settings));
            match bind(address, v6_only) {
                Ok(socket) => prebound.push(PreboundSocket {
                    address,
                    v6_only,
                    socket,
                }),
                Err(e) if e.source.kind() == ErrorKind::AddrInUse && frees_port(&running, address) => {}
                Err(e) => errors.push((index, e)),
            }
        }
        if errors.is_empty() {
            *self.inner.prebound.lock() = prebound;
        }
        errors
    }
}

/// Whether one of the listeners to be removed has this port.
fn frees_port(going: &[(SocketAddr, SocketAddr)], address: SocketAddr) -> bool {
    going.iter().any(|(_, bound)| bound.port() == address.port())
}

impl ListenerSet {
    /// The pre-bound socket of this address, or a newly bound one.
    pub(super) fn socket(
        &self,
        address: SocketAddr,
        v6_only: bool,
    ) -> Result<TcpListener, ListenerBindError> {
        let mut prebound = self.prebound.lock();
        let fits = |r: &PreboundSocket| r.address == address && r.v6_only == v6_only;
        match prebound.iter().position(fits) {
            Some(at) => Ok(prebound.swap_remove(at).socket),
            None => bind(address, v6_only),
        }
    }
}

//! One listener: its socket, its accept loop and the task of each of its connections.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use sluice_model::{Http2Settings, Limits, ProxyProtocol, Settings, Visibility};
use socket2::{Domain, Protocol as SocketProtocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, error, info, warn};

use super::connection::{ConnectionHandler, Drain, HttpVersion};
use super::connection_limits::{ConnectionGuard, ConnectionLimiter};
use super::metrics::{CloseReason, ConnectionGauge, ConnectionProtocol, ListenerMetrics};
use super::prepare::{Prepared, prepare};
use super::tls::TlsTerminator;

/// As much as the kernel allows (`net.core.somaxconn`): a burst waits there, not in retransmitted SYNs.
const BACKLOG: i32 = 65_535;
/// Between two tries while descriptors or memory are out.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(20);
/// Descriptors that clients never get, unless there are few: log, listeners, runtimes and backends.
const DESCRIPTOR_RESERVE: usize = 128;
/// How many times the accept queue is tried again on the way out while descriptors are out.
const EXHAUSTED_TRIES: usize = 50;

/// Why a listener cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {}", bind_error_text(.source))]
pub struct ListenerBindError {
    /// Where.
    pub address: SocketAddr,
    /// Why.
    pub source: io::Error,
}

/// Why an address cannot be bound, in words that say what to do.
pub(crate) fn bind_error_text(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::AddrInUse => "the port is taken".to_owned(),
        ErrorKind::PermissionDenied => "a port below 1024 needs the right to bind it".to_owned(),
        ErrorKind::AddrNotAvailable => "this machine has no such address".to_owned(),
        _ => error.to_string(),
    }
}

/// Binds and listens. `v6_only` leaves the same port of IPv4 to another listener. Must be called in a runtime.
///
/// # Errors
/// [`ListenerBindError`] names the address.
pub(super) fn bind(address: SocketAddr, v6_only: bool) -> Result<TcpListener, ListenerBindError> {
    let listen = || -> io::Result<TcpListener> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(SocketProtocol::TCP),
        )?;
        // Connections of a process before this one may still be in TIME_WAIT.
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(v6_only)?;
        }
        // Accepted sockets inherit these, which saves two system calls for each.
        socket.set_tcp_nodelay(true)?;
        let alive = TcpKeepalive::new()
            .with_time(Duration::from_secs(60))
            .with_interval(Duration::from_secs(15));
        socket.set_tcp_keepalive(&alive)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(StdListener::from(socket))
    };
    listen().map_err(|source| ListenerBindError { address, source })
}

/// Gives the settings in force.
pub type CurrentSettings = Arc<dyn Fn() -> Arc<Settings> + Send + Sync>;

/// What the connections of all listeners share.
pub(super) struct EdgeContext {
    pub(super) settings: CurrentSettings,
    pub(super) handler: Arc<dyn ConnectionHandler>,
    pub(super) limiter: Arc<ConnectionLimiter>,
    pub(super) drain: watch::Sender<Drain>,
    /// Whether listeners accept yet; once they do, they do for good.
    pub(super) accepting: watch::Sender<bool>,
}

/// What a connection finds where it comes in; a reload changes it for the connections that follow.
#[derive(Debug, Clone)]
pub(super) struct ListenerConfig {
    pub(super) index: usize,
    pub(super) visibility: Visibility,
    pub(super) proxy_protocol: Option<ProxyProtocol>,
    pub(super) tls: Option<Arc<TlsTerminator>>,
    pub(super) http2: Http2Settings,
}

/// One listener's part of its connections.
pub(super) struct Listener {
    pub(super) bound: SocketAddr,
    pub(super) config: ArcSwap<ListenerConfig>,
    pub(super) metrics: Arc<dyn ListenerMetrics>,
    pub(super) context: Arc<EdgeContext>,
}

impl Listener {
    /// Accepts until `stop` resolves or its sender is gone; then serves what the kernel has queued, and closes.
    /// Where the edge is not open yet, nothing is accepted: what is queued is another process's to serve.
    pub(super) async fn run(self: Arc<Self>, socket: Arc<TcpListener>, mut stop: oneshot::Receiver<()>) {
        let mut accepting = self.context.accepting.subscribe();
        tokio::select! {
            biased;
            // Its sender lives in `self`. First: an open listener empties its queue on the way out.
            _ = accepting.wait_for(|accepting| *accepting) => {}
            _ = &mut stop => return,
        }
        drop(accepting);
        let mut exhausted = false;
        loop {
            let accepted = tokio::select! {
                biased;
                _ = &mut stop => break,
                accepted = socket.accept() => accepted,
            };
            match accepted {
                Ok((connection, peer)) => {
                    if exhausted {
                        info!(listener = %self.bound, "accepting again");
                        exhausted = false;
                    }
                    self.start_task(connection, peer);
                }
                Err(e) if took_connection_along(&e) => debug!(listener = %self.bound, error = %e, "accept"),
                Err(e) => {
                    if !exhausted {
                        warn!(listener = %self.bound, error = %e, "cannot accept, waiting");
                        self.metrics.exhausted();
                        exhausted = true;
                    }
                    tokio::select! {
                        _ = &mut stop => break,
                        () = sleep(EXHAUSTED_PAUSE) => {}
                    }
                }
            }
        }
        self.empty_accept_queue(socket).await;
    }

    /// Serves the clients whose connection the kernel has completed: closing now would reset them.
    async fn empty_accept_queue(&self, socket: Arc<TcpListener>) {
        let mut tries = 0;
        loop {
            // Past tokio, which may not know yet that there are any.
            let accepted = SockRef::from(&*socket).accept().and_then(|(connection, peer)| {
                connection.set_nonblocking(true)?;
                let peer = peer.as_socket().ok_or(ErrorKind::InvalidInput)?;
                Ok((TcpStream::from_std(connection.into())?, peer))
            });
            match accepted {
                Ok((connection, peer)) => self.start_task(connection, peer),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if took_connection_along(&e) => {}
                Err(e) if tries == EXHAUSTED_TRIES => {
                    warn!(listener = %self.bound, error = %e, "closing with connections unaccepted");
                    return;
                }
                Err(_) => {
                    tries += 1;
                    sleep(EXHAUSTED_PAUSE).await;
                }
            }
        }
    }

    /// Starts the connection's task, or drops it where there are too many.
    fn start_task(&self, socket: TcpStream, peer: SocketAddr) {
        let limits = (self.context.settings)().limits.clone();
        let limiter = &self.context.limiter;
        let share = descriptor_share();
        let scarce = share.filter(|share| limits.max_connections.is_none_or(|most| *share < most));
        let Some(guard) = limiter.acquire(scarce.or(limits.max_connections)) else {
            if scarce.is_none() {
                self.metrics.closed(CloseReason::ConnectionLimit);
                return;
            }
            if limiter.note_descriptors_short(true, share.unwrap_or(0)) {
                warn!(listener = %self.bound, connections = share, "descriptors are short, closing new connections");
            }
            self.metrics.closed(CloseReason::DescriptorLimit);
            return;
        };
        if limiter.note_descriptors_short(false, share.unwrap_or(usize::MAX)) {
            info!(listener = %self.bound, "descriptors suffice again");
        }
        let task = ConnectionTask {
            bound: self.bound,
            config: self.config.load_full(),
            metrics: Arc::clone(&self.metrics),
            context: Arc::clone(&self.context),
            limits,
        };
        tokio::spawn(task.run(socket, peer, guard));
    }
}

/// How many connections of clients the descriptors are enough for: those that are open must still reach their
/// backends (a descriptor each), and an operator the admin listener, when all the others are taken.
fn descriptor_share() -> Option<usize> {
    // Asked each time, which costs a tenth of a microsecond: an operator may change it (prlimit).
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    let soft = usize::try_from(soft).ok()?;
    Some(soft - (soft / 4).max(DESCRIPTOR_RESERVE).min(soft / 2))
}

/// Whether a failed accept took a connection off the queue with it; anything else fails again at once.
fn took_connection_along(error: &io::Error) -> bool {
    // As accept(2) lists them for TCP: errors that were already pending on the new socket.
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(
            Errno::ECONNABORTED
                | Errno::EINTR
                | Errno::EPROTO
                | Errno::EPERM
                | Errno::ENETDOWN
                | Errno::ENOPROTOOPT
                | Errno::EHOSTDOWN
                | Errno::ENONET
                | Errno::EHOSTUNREACH
                | Errno::ENETUNREACH
                | Errno::EOPNOTSUPP
                | Errno::ETIMEDOUT
                | Errno::ECONNRESET
        )
    )
}

/// One connection from accept to close.
struct ConnectionTask {
    bound: SocketAddr,
    config: Arc<ListenerConfig>,
    metrics: Arc<dyn ListenerMetrics>,
    context: Arc<EdgeContext>,
    limits: Limits,
}

impl ConnectionTask {
    async fn run(self, socket: TcpStream, peer: SocketAddr, guard: ConnectionGuard) {
        let mut gauge = ConnectionGauge::open(Arc::clone(&self.metrics));
        // The connection's state is dropped with the future; nothing that is context is left half changed.
        let served = AssertUnwindSafe(self.serve(socket, peer, &mut gauge)).catch_unwind();
        let reason = served.await.unwrap_or_else(|_| {
            error!(listener = %self.bound, %peer, "a connection's task panicked");
            CloseReason::Panicked
        });
        debug!(listener = %self.bound, %peer, %reason, "closed");
        drop(gauge);
        self.metrics.closed(reason);
        // Last: who waits for the last connection finds it counted.
        drop(guard);
    }

    async fn serve(&self, socket: TcpStream, peer: SocketAddr, gauge: &mut ConnectionGauge) -> CloseReason {
        // One deadline for all that comes before HTTP: bytes trickling in do not move it.
        let deadline = Instant::now() + self.limits.header_timeout;
        let mut drain = self.context.drain.subscribe();
        let mut early = drain.clone();
        // Boxed, so that the handshake's state does not stay in the task for the connection's life.
        let prepared = Box::pin(prepare(
            socket,
            peer,
            self.bound,
            &self.config,
            &self.context.limiter,
            &self.limits,
            &mut early,
        ));
        let prepared = tokio::select! {
            biased;
            prepared = timeout_at(deadline, prepared) => prepared,
            _ = drain.wait_for(|phase| *phase == Drain::Closing) => return CloseReason::Drained,
        };
        let Prepared { connection, client } = match prepared {
            Ok(Ok(prepared)) => prepared,
            Ok(Err(reason)) => return reason,
            Err(_) => return CloseReason::HeaderTimeout,
        };
        gauge.set_protocol(match connection.http_version {
            HttpVersion::Http1 => ConnectionProtocol::Http1,
            HttpVersion::Http2 => ConnectionProtocol::Http2,
        });
        let reason = self.context.handler.serve(connection, drain).await;
        drop(client);
        reason
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_took_a_connection_with_it_is_tried_again_at_once() {
        let judged = |errno: Errno| took_connection_along(&io::Error::from(errno));
        for errno in [
            Errno::ECONNABORTED,
            Errno::EINTR,
            Errno::EPROTO,
            Errno::ENETUNREACH,
        ] {
            assert!(judged(errno), "{errno}");
        }
        for errno in [
            Errno::EMFILE,
            Errno::ENFILE,
            Errno::ENOBUFS,
            Errno::ENOMEM,
            Errno::EINVAL,
            Errno::EBADF,
        ] {
            assert!(!judged(errno), "{errno}");
        }
    }
}

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

/// The listen backlog, as long as the kernel allows (`net.core.somaxconn`): a burst waits there, not in
/// retransmitted SYNs.
const BACKLOG: i32 = 65_535;
/// Pause between two tries to accept while descriptors or memory are out.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(20);
/// File descriptors that clients' connections never get, unless the limit is small: for logs, listeners,
/// runtimes and backends.
const DESCRIPTOR_RESERVE: usize = 128;
/// How many times the accept queue is tried again when the listener closes while descriptors are out.
const EXHAUSTED_TRIES: usize = 50;

/// Why a listener cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {}", bind_error_text(.source))]
pub struct ListenerBindError {
    /// The configured address.
    pub address: SocketAddr,
    /// Why.
    pub source: io::Error,
}

/// The text of a bind error, with a hint of what to do.
pub(crate) fn bind_error_text(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::AddrInUse => "the port is taken".to_owned(),
        ErrorKind::PermissionDenied => "a port below 1024 needs the right to bind it".to_owned(),
        ErrorKind::AddrNotAvailable => "this machine has no such address".to_owned(),
        _ => error.to_string(),
    }
}

/// Binds a listening socket. `v6_only` leaves the same port of IPv4 to another listener. Must be called in a
/// tokio runtime.
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
        // SO_REUSEADDR: connections of an earlier process may still be in TIME_WAIT.
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(v6_only)?;
        }
        // Accepted sockets inherit these options, which saves two system calls for each connection.
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

/// Returns the settings in force.
pub type CurrentSettings = Arc<dyn Fn() -> Arc<Settings> + Send + Sync>;

/// State that the connections of all listeners share.
pub(super) struct EdgeContext {
    pub(super) settings: CurrentSettings,
    pub(super) handler: Arc<dyn ConnectionHandler>,
    pub(super) limiter: Arc<ConnectionLimiter>,
    pub(super) drain: watch::Sender<Drain>,
    /// Whether the accept loops run; once they do, they run for good.
    pub(super) accepting: watch::Sender<bool>,
}

/// A listener's configuration; a reload replaces it for the connections that follow.
#[derive(Debug, Clone)]
pub(super) struct ListenerConfig {
    pub(super) index: usize,
    pub(super) visibility: Visibility,
    pub(super) proxy_protocol: Option<ProxyProtocol>,
    pub(super) tls: Option<Arc<TlsTerminator>>,
    pub(super) http2: Http2Settings,
    pub(super) activator: Option<Arc<str>>,
}

/// State that the connections of one listener share.
pub(super) struct Listener {
    pub(super) bound: SocketAddr,
    pub(super) config: ArcSwap<ListenerConfig>,
    pub(super) metrics: Arc<dyn ListenerMetrics>,
    pub(super) context: Arc<EdgeContext>,
}

impl Listener {
    /// The accept loop. Runs until `stop` resolves or its sender is dropped, then serves the connections in
    /// the accept queue and closes the socket. While the edge does not accept yet, nothing is accepted: the
    /// queue is another process's to serve.
    pub(super) async fn run(self: Arc<Self>, socket: Arc<TcpListener>, mut stop: oneshot::Receiver<()>) {
        let mut accepting = self.context.accepting.subscribe();
        tokio::select! {
            biased;
            // Cannot fail: the sender lives in `self`. Checked before `stop`: a listener that accepts empties
            // its queue when it closes.
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

    /// Serves the connections in the accept queue: closing the socket would reset them.
    async fn empty_accept_queue(&self, socket: Arc<TcpListener>) {
        let mut tries = 0;
        loop {
            // accept(2) past tokio, whose driver may not know yet that there are any.
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

    /// Spawns the connection's task, or closes the connection where a limit is reached.
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

/// How many client connections the file descriptor limit allows: those that are open must still reach their
/// backends (one descriptor each), and an operator the admin listener, when the share is used up.
fn descriptor_share() -> Option<usize> {
    // getrlimit at each accept costs 0.1 µs; an operator may change the limit of a running process (prlimit).
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    let soft = usize::try_from(soft).ok()?;
    Some(soft - (soft / 4).max(DESCRIPTOR_RESERVE).min(soft / 2))
}

/// Whether a failed accept(2) took a connection off the queue; after any other error accept fails again at
/// once.
fn took_connection_along(error: &io::Error) -> bool {
    // The list of accept(2) for TCP: errors that were already pending on the new socket.
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

/// The task of one connection, from accept to close.
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
        // Unwind-safe: the connection's state is dropped with the future, and shared state is never left half
        // changed.
        let served = AssertUnwindSafe(self.serve(socket, peer, &mut gauge)).catch_unwind();
        let reason = served.await.unwrap_or_else(|_| {
            error!(listener = %self.bound, %peer, "a connection's task panicked");
            CloseReason::Panicked
        });
        debug!(listener = %self.bound, %peer, %reason, "closed");
        drop(gauge);
        self.metrics.closed(reason);
        // Dropped last: whoever waits for the last connection's end finds the connection in the metrics.
        drop(guard);
    }

    async fn serve(&self, socket: TcpStream, peer: SocketAddr, gauge: &mut ConnectionGauge) -> CloseReason {
        // One deadline for PROXY header, handshake and first bytes together: a trickle of bytes does not
        // extend it.
        let deadline = Instant::now() + self.limits.header_timeout;
        let mut drain = self.context.drain.subscribe();
        let mut early = drain.clone();
        // Boxed, so that the connection's task keeps no room for the handshake's state.
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

//! The set of listeners: follows the settings, and drains.

use std::fmt;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use sluice_model::{Delta, ListenerSettings, Settings, Visibility};
use tokio::net::TcpListener;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep;
use tracing::{info, warn};

use super::certificates::CertificateError;
use super::connection::{ConnectionHandler, Drain};
use super::expiry;
use super::listener::{CurrentSettings, EdgeContext, Listener, ListenerBindError, ListenerConfig};
use super::metrics::EdgeMetrics;
use super::prebind::PreboundSocket;
use super::service_certificates::{CertificateChange, ServiceCertificates};
use super::tls::{FILES_CHECKED_EVERY, Reload, TlsTerminator};

/// Why a listener differs from the settings.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    /// The listener could not be bound.
    #[error(transparent)]
    Bind(#[from] ListenerBindError),
    /// Certificates were refused. A listener that is running keeps the certificates it has.
    #[error("listener {address}: {}", List(errors))]
    Tls {
        /// The configured address.
        address: SocketAddr,
        /// Every certificate that was refused.
        errors: Vec<CertificateError>,
    },
}

struct List<'a>(&'a [CertificateError]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if i == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

/// A bound listener.
#[derive(Debug, Clone)]
pub struct ListenerStatus {
    /// The configured address.
    pub address: SocketAddr,
    /// The bound address; differs from the configured one where the configured port is 0.
    pub bound: SocketAddr,
    /// Which routes the listener may serve.
    pub visibility: Visibility,
    /// The TLS terminator, which has the certificates; `None` for a plain listener.
    pub tls: Option<Arc<TlsTerminator>>,
}

/// All listeners of the process, with their connections.
///
/// Dropping the edge stops the accept loops; open connections are served to their end.
pub struct Edge {
    pub(super) inner: Arc<ListenerSet>,
    watcher: JoinHandle<()>,
}

pub(super) struct ListenerSet {
    pub(super) context: Arc<EdgeContext>,
    metrics: Arc<dyn EdgeMetrics>,
    /// Serialises changes of the set; the value is `true` once the set is closed for good.
    pub(super) stopped: Arc<tokio::sync::Mutex<bool>>,
    pub(super) listening: Mutex<Vec<RunningListener>>,
    /// Sockets bound by another process, by configured address: taken in place of binding.
    pub(super) inherited: Mutex<Vec<(SocketAddr, StdListener)>>,
    /// Sockets bound ahead of the next change.
    pub(super) prebound: Mutex<Vec<PreboundSocket>>,
    /// Wakes the check of certificate files before its interval is over.
    files_changed: Notify,
    /// The certificates that services bring.
    certificates: Arc<ServiceCertificates>,
}

/// A bound listener with its accept loop. Dropping it makes the accept loop end in its own time.
pub(super) struct RunningListener {
    pub(super) address: SocketAddr,
    pub(super) listener: Arc<Listener>,
    /// The socket; the accept loop owns it.
    pub(super) socket: Weak<TcpListener>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl RunningListener {
    /// Resolves when the socket is closed and the connections it had queued are being served.
    async fn stop(self) {
        drop(self.stop);
        if self.task.await.is_err() {
            warn!(listener = %self.address, "the accept loop panicked");
        }
    }
}

impl Edge {
    /// An edge without listeners; [`apply`](Self::apply) binds them. `settings` is called for the limits of
    /// each connection. `drain` holds the drain phase, which the edge advances and connections watch. Must be
    /// called in a tokio runtime.
    pub fn new(
        settings: CurrentSettings,
        handler: Arc<dyn ConnectionHandler>,
        metrics: Arc<dyn EdgeMetrics>,
        drain: watch::Sender<Drain>,
    ) -> Self {
        let context = EdgeContext {
            settings,
            handler,
            limiter: Arc::default(),
            drain,
            accepting: watch::Sender::new(true),
        };
        let inner = Arc::new(ListenerSet {
            context: Arc::new(context),
            metrics,
            stopped: Arc::default(),
            listening: Mutex::default(),
            inherited: Mutex::default(),
            prebound: Mutex::default(),
            files_changed: Notify::new(),
            certificates: Arc::default(),
        });
        let watcher = tokio::spawn(watch_files(Arc::clone(&inner)));
        Self { inner, watcher }
    }

    /// Reconciles the listeners with the settings: binds new ones, closes removed ones as
    /// [`stop_accepting`](Self::stop_accepting) does, and changes the others in place for connections to
    /// come.
    ///
    /// A listener that fails is returned as an error and affects no other listener; the next call tries
    /// again. Removed listeners close first, so that their ports are free. Certificates are read on the
    /// blocking pool. Not atomic under cancellation: when the future is dropped half way, the next call
    /// completes the change.
    pub async fn apply(&self, settings: &Settings) -> Vec<ListenerError> {
        let stopped = self.inner.stopped.lock().await;
        if *stopped {
            return Vec::new();
        }
        let (kept, gone) = self.inner.match_running(&settings.listeners);
        for listening in gone {
            info!(listener = %listening.listener.bound, "listener closed");
            listening.stop().await;
        }
        let mut errors = Vec::new();
        for (index, wanted) in settings.listeners.iter().enumerate() {
            let old = kept[index].as_ref().map(|listener| listener.config.load_full());
            let running = old.as_ref().and_then(|config| config.tls.clone());
            let tls = match terminator(wanted, running, &self.inner.certificates).await {
                Ok((tls, refused)) => {
                    if !refused.is_empty() {
                        errors.push(ListenerError::Tls {
                            address: wanted.address,
                            errors: refused,
                        });
                    }
                    tls
                }
                Err(refused) => {
                    errors.push(ListenerError::Tls {
                        address: wanted.address,
                        errors: refused,
                    });
                    // A plain listener stays plain, a TLS listener keeps its certificates.
                    match &old {
                        Some(config) => config.tls.clone(),
                        None => continue,
                    }
                }
            };
            if let Some(tls) = &tls {
                expiry::warn(wanted.address, &tls.certificates(), crate::observe::wall_clock());
            }
            let config = Arc::new(ListenerConfig {
                index,
                visibility: wanted.visibility,
                proxy_protocol: wanted.proxy_protocol.clone(),
                tls,
                http2: wanted.http2,
                activator: wanted.activator.clone(),
            });
            match &kept[index] {
                Some(listener) => listener.config.store(config),
                None => match self
                    .inner
                    .listen(wanted.address, v6_only(wanted, settings), config)
                {
                    Ok(()) => {}
                    Err(e) => errors.push(e.into()),
                },
            }
        }
        self.inner.prebound.lock().clear();
        errors
    }

    /// Offers the certificates that new and changed services bring to the next handshakes, beside all that is offered
    /// now. To be called before the table that routes to the services is published; then the change is to be
    /// completed. Blocks, up to a millisecond for each new certificate.
    pub fn offer_certificates(&self, delta: &Delta) -> CertificateChange {
        self.inner.certificates.offer(delta)
    }

    /// Checks the certificate files now instead of at the next interval. For a watcher that saw one of the
    /// files change. Never blocks.
    pub fn recheck_files(&self) {
        self.inner.files_changed.notify_one();
    }

    /// The bound listeners, in the order of the settings.
    pub fn listeners(&self) -> Vec<ListenerStatus> {
        let listening = self.inner.listening.lock();
        let mut all: Vec<_> = listening
            .iter()
            .map(|l| (l.address, l.listener.bound, l.listener.config.load_full()))
            .collect();
        drop(listening);
        all.sort_by_key(|(_, _, config)| config.index);
        all.into_iter()
            .map(|(address, bound, config)| ListenerStatus {
                address,
                bound,
                visibility: config.visibility,
                tls: config.tls.clone(),
            })
            .collect()
    }

    /// Starts the drain: open connections end as soon as they can, new ones are still accepted.
    pub fn drain(&self) {
        self.advance(Drain::Draining);
    }

    /// Ends the drain: open connections end now, and those whose protocol is not known yet are closed.
    pub fn close(&self) {
        self.advance(Drain::Closing);
    }

    fn advance(&self, to: Drain) {
        self.inner.context.drain.send_if_modified(|phase| {
            let further = *phase < to;
            *phase = to.max(*phase);
            further
        });
    }

    /// The drain phase, to be watched.
    pub fn phase(&self) -> watch::Receiver<Drain> {
        self.inner.context.drain.subscribe()
    }

    /// Closes every listener for good; resolves when all are closed. Connections in the accept queues are
    /// served, not reset.
    pub async fn stop_accepting(&self) {
        let mut stopped = self.inner.stopped.lock().await;
        *stopped = true;
        self.inner.stop_all().await;
    }

    /// The number of open connections, those not yet ready for HTTP included.
    pub fn open_connections(&self) -> usize {
        self.inner.context.limiter.open()
    }

    /// Resolves when no connection is open. Meaningful after [`stop_accepting`](Self::stop_accepting). Cancel-safe.
    pub async fn drained(&self) {
        self.inner.context.limiter.drained().await;
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.watcher.abort();
        self.inner.listening.lock().clear();
    }
}

impl fmt::Debug for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Edge")
            .field("listeners", &self.listeners())
            .field("open_connections", &self.open_connections())
            .finish_non_exhaustive()
    }
}

impl ListenerSet {
    /// The configured and the bound address of every listener.
    pub(super) fn addresses(&self) -> Vec<(SocketAddr, SocketAddr)> {
        let listening = self.listening.lock();
        listening.iter().map(|l| (l.address, l.listener.bound)).collect()
    }

    /// Matches wanted listeners with running ones by configured address. Returns the running listener of each
    /// wanted one, and the listeners that nothing wants any more, taken out of the set.
    fn match_running(
        &self,
        wanted: &[ListenerSettings],
    ) -> (Vec<Option<Arc<Listener>>>, Vec<RunningListener>) {
        let mut listening = self.listening.lock();
        let mut unclaimed = std::mem::take(&mut *listening);
        let kept = wanted
            .iter()
            .map(|wanted| {
                // Several may have the same configured address: each port 0 is another port.
                let at = unclaimed.iter().position(|l| l.address == wanted.address)?;
                listening.push(unclaimed.remove(at));
                listening.last().map(|l| Arc::clone(&l.listener))
            })
            .collect();
        (kept, unclaimed)
    }

    /// Stops every accept loop; resolves when all loops have ended.
    pub(super) async fn stop_all(&self) {
        let all = std::mem::take(&mut *self.listening.lock());
        // Awaited one after another, once all loops were signalled to stop.
        let mut tasks = Vec::with_capacity(all.len());
        for listening in all {
            drop(listening.stop);
            tasks.push(listening.task);
        }
        for task in tasks {
            if task.await.is_err() {
                warn!("an accept loop panicked");
            }
        }
    }

    fn listen(
        &self,
        address: SocketAddr,
        v6_only: bool,
        config: Arc<ListenerConfig>,
    ) -> Result<(), ListenerBindError> {
        let error = |source| ListenerBindError { address, source };
        let socket = match self.take_inherited(address) {
            Some(socket) => TcpListener::from_std(socket).map_err(error)?,
            None => self.socket(address, v6_only)?,
        };
        let bound = socket.local_addr().map_err(error)?;
        let socket = Arc::new(socket);
        let listener = Arc::new(Listener {
            bound,
            config: ArcSwap::new(config),
            metrics: self.metrics.listener(bound),
            context: Arc::clone(&self.context),
        });
        let (stop, stopped) = oneshot::channel();
        let weak = Arc::downgrade(&socket);
        let task = tokio::spawn(Arc::clone(&listener).run(socket, stopped));
        info!(listener = %bound, "listening");
        self.listening.lock().push(RunningListener {
            address,
            listener,
            socket: weak,
            stop,
            task,
        });
        Ok(())
    }
}

/// Whether a listener takes IPv6 clients only. `[::]` takes IPv4 clients too, unless the settings have an
/// IPv4 listener of the same port.
pub(super) fn v6_only(wanted: &ListenerSettings, settings: &Settings) -> bool {
    let port = wanted.address.port();
    let mut others = settings.listeners.iter().map(|l| l.address);
    port != 0 && others.any(|other| other.is_ipv4() && other.port() == port)
}

type LoadedTerminator = (Option<Arc<TlsTerminator>>, Vec<CertificateError>);

/// Loads a listener's TLS terminator, the running one's where there is one. Returns it with the certificates
/// that were refused although it goes on.
async fn terminator(
    wanted: &ListenerSettings,
    old: Option<Arc<TlsTerminator>>,
    services: &Arc<ServiceCertificates>,
) -> Result<LoadedTerminator, Vec<CertificateError>> {
    let Some(settings) = wanted.tls.clone() else {
        return Ok((None, Vec::new()));
    };
    let (visibility, services) = (wanted.visibility, Arc::clone(services));
    let load = spawn_blocking(move || match old {
        Some(tls) => {
            let Reload { errors, .. } = tls.reload(&settings, visibility);
            Ok((Some(tls), errors))
        }
        None => TlsTerminator::beside(services, &settings, visibility)
            .map(|tls| (Some(Arc::new(tls)), Vec::new())),
    });
    match load.await {
        Ok(loaded) => loaded,
        // A cancelled task: the runtime shuts down. A panic is a bug and goes on as one.
        Err(e) => match e.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Vec::new()),
        },
    }
}

/// Polls the certificate files and reloads those that changed, every few seconds and when it is notified.
async fn watch_files(inner: Arc<ListenerSet>) {
    loop {
        tokio::select! {
            () = sleep(FILES_CHECKED_EVERY) => {}
            () = inner.files_changed.notified() => {}
        }
        // Not while the listeners change: a terminator must not be loaded by two tasks at once.
        let changing = inner.stopped.lock().await;
        let configs: Vec<_> = inner
            .listening
            .lock()
            .iter()
            .map(|l| (l.listener.bound, l.listener.config.load_full()))
            .collect();
        for (bound, config) in configs {
            let Some(tls) = config.tls.clone() else { continue };
            // Listing thousands of certificates takes milliseconds.
            let check = move || (tls.refresh(), tls.certificates());
            let Ok((reload, served)) = spawn_blocking(check).await else {
                continue;
            };
            for error in &reload.errors {
                warn!(listener = %bound, %error, "the certificate from before stays");
            }
            if reload.changed && reload.errors.is_empty() {
                info!(listener = %bound, "certificates changed");
            }
            expiry::warn(bound, &served, crate::observe::wall_clock());
        }
        drop(changing);
    }
}

#[cfg(test)]
#[path = "listener_set_tests.rs"]
mod tests;

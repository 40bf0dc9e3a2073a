//! The main loop and the shutdown: drain on a signal, or after a hand-over to a new process.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sluice_control::autoscale::AutoscaleHandle;
use sluice_control::scale::ScaleHandle;
use sluice_control::source::ReloadHandle;
use sluice_control::state::StateHandle;
use sluice_gateway::admin::{GracefulShutdown, SocketFile, UpgradeError, Upgraded};
use sluice_gateway::edge::Edge;
use sluice_gateway::registry::{Reader, Registry};
use sluice_gateway::traces::ExporterHandle;
use sluice_model::DrainSettings;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};

use super::admin_state::GatewayState;
use super::signals::{SignalAction, Signals};
use super::upgrade::{Frame, Handoff, Notifier, Predecessor, SHUTTING_DOWN, Successor, UpgradeRequest};

/// Time for connections to close after the drain's deadline.
const CLOSING: Duration = Duration::from_secs(6);

/// Time for the last traces to reach their collector.
const LAST_TRACES: Duration = Duration::from_secs(5);

/// Time for the last documents to reach the disk.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// Time for the last frames to a new process, and for the last responses of the admin API.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// A serving gateway, with everything that its shutdown needs.
pub(super) struct Running {
    pub(super) signals: Signals,
    pub(super) reload: ReloadHandle,
    /// The task that follows the configuration.
    pub(super) reconciler: AbortHandle,
    pub(super) rollouts: AbortHandle,
    pub(super) edge: Arc<Edge>,
    pub(super) registry: Arc<Registry>,
    pub(super) scale: ScaleHandle,
    pub(super) autoscale: AutoscaleHandle,
    /// The state directory, where there is one.
    pub(super) kept: Option<StateHandle>,
    pub(super) reader: Reader,
    pub(super) state: Arc<GatewayState>,
    pub(super) notify: Arc<Notifier>,
    /// Shuts down the admin and the health server.
    pub(super) server_shutdown: GracefulShutdown,
    /// The tasks of the admin and the health server: they end after the graceful shutdown.
    pub(super) servers: JoinSet<()>,
    /// Sends traces, where there are any.
    pub(super) exporter: Option<ExporterHandle>,
    /// The file of the admin server's Unix socket: this process's to remove, unless another one serves on it.
    pub(super) socket_file: Option<SocketFile>,
    pub(super) handoff: Handoff,
    pub(super) upgrade_requests: mpsc::Receiver<UpgradeRequest>,
    /// The old process, where this process is the new one of an upgrade; it may still drain.
    pub(super) predecessor: Option<Predecessor>,
}

/// How the main loop ended.
enum End {
    Stopped,
    HandedOver(Box<Successor>, UpgradeRequest),
}

impl Running {
    /// Serves until a stop is requested or until another process serves; then drains. Returns when this process
    /// may exit.
    pub(super) async fn run(mut self) {
        let end = self.until_ended().await;
        self.upgrade_requests.close();
        while let Ok(request) = self.upgrade_requests.try_recv() {
            request.answer(Err(UpgradeError::NotNow(SHUTTING_DOWN)));
        }
        let at_once = match end {
            End::Stopped => {
                self.notify.stopping();
                let settings = self.reader.load().settings().drain;
                let signals = &mut self.signals;
                let data_plane = (&*self.edge, &*self.registry);
                tokio::select! {
                    () = drain(data_plane, settings, self.predecessor.as_ref()) => false,
                    () = stop_requested(signals) => {
                        tracing::warn!("stopping at once");
                        true
                    }
                }
            }
            End::HandedOver(handed, request) => {
                self.socket_file = None;
                self.drain_after_handover(*handed, request).await
            }
        };
        if self.kept.is_some() {
            self.autoscale.save().await;
        }
        self.close_state().await;
        self.scale.shutdown().await;
        // After the last request, and before the servers end: their metrics tell what was lost.
        if let Some(exporter) = self.exporter.take() {
            let within = if at_once { LAST_ANSWERS } else { LAST_TRACES };
            exporter.shutdown(within).await;
        }
        // The response to the request for the upgrade that ended this process may still be unsent.
        self.server_shutdown.stop_accepting().await;
        let last_words = async { while self.servers.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(LAST_ANSWERS, last_words).await;
        if let Some(file) = &self.socket_file {
            file.remove();
        }
        tracing::info!("gone");
    }

    /// Gives the state directory back when everything queued is written: the new process of an upgrade waits for it.
    async fn close_state(&mut self) {
        let Some(kept) = self.kept.take() else { return };
        let closing = tokio::spawn(async move { kept.close().await });
        if tokio::time::timeout(LAST_WRITES, closing).await.is_err() {
            // It goes on beside the drain: the new process of an upgrade waits for the directory.
            tracing::warn!("state: the disk is too slow, something learned last may be lost");
        }
    }

    async fn until_ended(&mut self) -> End {
        loop {
            let request = tokio::select! {
                ask = self.signals.next() => match ask {
                    SignalAction::Reload => {
                        self.reload();
                        continue;
                    }
                    SignalAction::Upgrade => UpgradeRequest::by_signal(),
                    SignalAction::Stop => return End::Stopped,
                },
                // Requests come from the admin API.
                Some(request) = self.upgrade_requests.recv() => request,
            };
            if let Some(end) = self.upgrade(request).await {
                return end;
            }
        }
    }

    fn reload(&self) {
        tracing::info!("reload asked for");
        self.notify.reloading();
        self.reload.reload();
    }

    /// Tries to hand over to a new process. `None`: this process goes on.
    async fn upgrade(&mut self, request: UpgradeRequest) -> Option<End> {
        tracing::info!("upgrade: starting {}", self.handoff.program.path().display());
        let (cancel, cancelled) = oneshot::channel();
        let mut cancel = Some(cancel);
        let attempt = self.handoff.hand_over(request.limit, cancelled);
        tokio::pin!(attempt);
        let outcome = loop {
            tokio::select! {
                outcome = attempt.as_mut() => break outcome,
                ask = self.signals.next() => match ask {
                    SignalAction::Reload => {
                        tracing::info!("reload asked for");
                        self.notify.reloading();
                        self.reload.reload();
                    }
                    SignalAction::Upgrade => tracing::warn!("upgrade: one is under way"),
                    SignalAction::Stop => if let Some(cancel) = cancel.take() {
                        // The upgrade may have succeeded at this moment, which ends this process, too.
                        let _ = cancel.send(());
                    },
                },
                Some(other) = self.upgrade_requests.recv() => {
                    other.answer(Err(UpgradeError::NotNow("an upgrade is under way")));
                }
            }
        };
        match outcome {
            Ok(handed) => Some(End::HandedOver(Box::new(handed), request)),
            Err(error) => {
                tracing::error!("upgrade: not upgraded, this process goes on: {error}");
                request.answer(Err(UpgradeError::Failed(error.to_string())));
                cancel.is_none().then_some(End::Stopped)
            }
        }
    }

    /// After a hand-over: closes all listening sockets and drains. Returns whether a stop at once was requested.
    async fn drain_after_handover(&mut self, handed: Successor, request: UpgradeRequest) -> bool {
        let Successor {
            pid,
            build,
            edge,
            sender,
            receiver,
            child,
        } = handed;
        // The new process is not ended by this one any more; should it end, the runtime reaps it.
        drop(child);
        // The configuration is followed by the new process.
        self.rollouts.abort();
        self.reconciler.abort();
        self.state.handed_over.store(true, Ordering::SeqCst);
        // systemd accepts MAINPID from the main process alone, so before any message of the new process.
        self.notify.main_pid(pid);
        edge.stop_accepting().await;
        self.server_shutdown.stop_accepting().await;
        self.handoff.servers.clear();
        // The new process may be gone already; there is no way back, and open requests are finished all the same.
        let _ = sender.send(&Frame::Released, Vec::new()).await;
        tracing::info!(
            open = self.edge.open_connections(),
            "upgrade: process {pid} (version {build}) serves; finishing what is open here"
        );
        request.answer(Ok(Upgraded { pid, version: build }));
        let settings = DrainSettings {
            delay: Duration::ZERO,
            ..self.reader.load().settings().drain
        };
        // Before the autoscaler is ended, which knows what was learned; written while the drain begins.
        if self.kept.is_some() {
            self.autoscale.save().await;
        }
        let follow = tokio::spawn(self.handoff.scaling.follow(sender, receiver));
        self.close_state().await;
        let signals = &mut self.signals;
        let data_plane = (&*self.edge, &*self.registry);
        let at_once = tokio::select! {
            () = drain(data_plane, settings, self.predecessor.as_ref()) => false,
            // The first stop requests the drain that is under way already.
            () = async { stop_requested(signals).await; stop_requested(signals).await } => {
                tracing::warn!("stopping at once");
                true
            }
        };
        // Responses of platforms to calls under way are waited for, and passed on to the new process.
        self.scale.shutdown().await;
        let _ = tokio::time::timeout(LAST_ANSWERS, follow).await;
        at_once
    }
}

async fn stop_requested(signals: &mut Signals) {
    while signals.next().await != SignalAction::Stop {}
}

/// Drain: stops accepting, waits for open requests, and closes the rest at the deadline.
async fn drain(
    (edge, registry): (&Edge, &Registry),
    settings: DrainSettings,
    predecessor: Option<&Predecessor>,
) {
    tracing::info!(open = edge.open_connections(), "draining");
    edge.drain();
    tokio::time::sleep(settings.delay).await;
    edge.stop_accepting().await;
    let drained = async {
        edge.drained().await;
        // The old process still has clients' connections, and its requests run on instances of this process.
        if let Some(predecessor) = predecessor {
            predecessor.gone().await;
        }
    };
    if tokio::time::timeout(settings.timeout, drained).await.is_err() {
        tracing::warn!(
            open = edge.open_connections(),
            "the drain's deadline is over: closing what is open"
        );
        registry.close_all();
        edge.close();
        // Time for responses to waiters and for Close frames to WebSockets.
        let _ = tokio::time::timeout(CLOSING, edge.drained()).await;
    }
}

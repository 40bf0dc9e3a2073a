//! From serving to gone: by a signal, or by handing over to a new process.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sluice_control::scale::ScaleHandle;
use sluice_control::source::ReloadHandle;
use sluice_gateway::admin::{GracefulShutdown, UpgradeError, Upgraded};
use sluice_gateway::edge::Edge;
use sluice_gateway::registry::{Reader, Registry};
use sluice_model::DrainSettings;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};

use super::admin_state::GatewayState;
use super::signals::{SignalAction, Signals};
use super::upgrade::{Frame, Handoff, Notifier, Predecessor, SHUTTING_DOWN, Successor, UpgradeRequest};

/// How long connections may take to end once they are told to.
const CLOSING: Duration = Duration::from_secs(6);

/// How long the last words to a new process, or to whoever asks the admin, may take.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// A gateway that serves, and all that its end needs.
pub(super) struct Running {
    pub(super) signals: Signals,
    pub(super) reload: ReloadHandle,
    /// Follows the configuration.
    pub(super) reconciler: AbortHandle,
    pub(super) edge: Arc<Edge>,
    pub(super) registry: Arc<Registry>,
    pub(super) scale: ScaleHandle,
    pub(super) reader: Reader,
    pub(super) state: Arc<GatewayState>,
    pub(super) notify: Arc<Notifier>,
    /// Gives admin and health away.
    pub(super) server_shutdown: GracefulShutdown,
    /// Admin and health: end when they were told to leave and have said their last word.
    pub(super) servers: JoinSet<()>,
    pub(super) handoff: Handoff,
    pub(super) upgrade_requests: mpsc::Receiver<UpgradeRequest>,
    /// Still drains, where this process was upgraded to.
    pub(super) predecessor: Option<Predecessor>,
}

/// Why it no longer serves.
enum End {
    Stopped,
    HandedOver(Box<Successor>, UpgradeRequest),
}

impl Running {
    /// Serves until told to stop or until another process serves; then drains. Returns when this process
    /// may exit.
    pub(super) async fn run(mut self) {
        let end = self.until_ended().await;
        self.upgrade_requests.close();
        while let Ok(request) = self.upgrade_requests.try_recv() {
            request.answer(Err(UpgradeError::NotNow(SHUTTING_DOWN)));
        }
        match end {
            End::Stopped => {
                self.notify.stopping();
                let settings = self.reader.load().settings().drain;
                let signals = &mut self.signals;
                let data_plane = (&*self.edge, &*self.registry);
                tokio::select! {
                    () = drain(data_plane, settings, self.predecessor.as_ref()) => {}
                    () = stop_requested(signals) => tracing::warn!("stopping at once"),
                }
            }
            End::HandedOver(handed, request) => self.drain_after_handover(*handed, request).await,
        }
        self.scale.shutdown().await;
        // Whoever asked for the upgrade that this is the end of may still be without an answer.
        self.server_shutdown.stop_accepting().await;
        let last_words = async { while self.servers.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(LAST_ANSWERS, last_words).await;
        tracing::info!("gone");
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
                // Whoever asks is a part of this process.
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

    /// Tries to hand over. `None`: this process goes on.
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
                        // It may have succeeded at this moment, which is as good.
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

    /// Another process serves: gives it all addresses, finishes what is open, and nothing else.
    async fn drain_after_handover(&mut self, handed: Successor, request: UpgradeRequest) {
        let Successor {
            pid,
            build,
            edge,
            sender,
            receiver,
            child,
        } = handed;
        // Not ours to end any more; should it end, the runtime reaps it.
        drop(child);
        // What the files say is the other one's to follow.
        self.reconciler.abort();
        self.state.handed_over.store(true, Ordering::SeqCst);
        // systemd believes this of its main process alone, so before anything the new one says of itself.
        self.notify.main_pid(pid);
        edge.stop_accepting().await;
        self.server_shutdown.stop_accepting().await;
        self.handoff.servers.clear();
        // It may be gone already; there is no way back, and what is open here is finished all the same.
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
        let follow = tokio::spawn(self.handoff.scaling.follow(sender, receiver));
        let signals = &mut self.signals;
        let data_plane = (&*self.edge, &*self.registry);
        tokio::select! {
            () = drain(data_plane, settings, self.predecessor.as_ref()) => {}
            // The first one asks for what is being done already.
            () = async { stop_requested(signals).await; stop_requested(signals).await } => {
                tracing::warn!("stopping at once");
            }
        }
        // What platforms still owe an answer for is waited for, and passed on.
        self.scale.shutdown().await;
        let _ = tokio::time::timeout(LAST_ANSWERS, follow).await;
    }
}

async fn stop_requested(signals: &mut Signals) {
    while signals.next().await != SignalAction::Stop {}
}

/// The way out: nothing new, what is open finishes, the rest is closed at the deadline.
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
        // Its connections are this service's, too, and its requests run on instances that this process owns.
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
        // Waiters get their answer, WebSockets their Close.
        let _ = tokio::time::timeout(CLOSING, edge.drained()).await;
    }
}

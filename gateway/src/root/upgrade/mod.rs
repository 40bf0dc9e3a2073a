//! The upgrade in place: the binary now on disk takes over from the running process.
//!
//! The old process (O) starts the new one (N) with one end of a socket pair as its standard input:
//!
//! ```text
//! O ── Hello, Sockets* ──▶ N   who I am; every listening socket, by configured address
//! O ◀─ Welcome ─────────── N   I understand you; now it reads its configuration, builds, binds
//! O ◀─ Prepared ────────── N   I could serve (or Failed: why not)
//! O ── Scaling* ─────────▶ N   what scaling knows: see `scaling`
//! O ── Take ─────────────▶ N   serve
//! O ◀─ Serving ─────────── N   a Snapshot is served, every listener accepts
//! O ── Released ─────────▶ N   I no longer accept; you are the service's main process
//! O ◀─ Scaling* ─────────▶ N   as long as O drains
//! ```
//!
//! Until `Serving` is read, O serves as before; whatever goes wrong, it ends N and goes on. N accepts
//! nothing before `Take`. From `Serving` on N is the gateway, whatever becomes of O.
//!
//! **Invariant:** a listening socket is closed by nobody before somebody else accepts from it: its queue
//! is one for both processes, so no connection is refused or reset.

mod new;
mod notify;
mod old;
mod program;
mod scaling;
mod wire;

use std::time::Duration;

use sluice_gateway::admin::{UpgradeError, Upgraded};
use tokio::sync::{mpsc, oneshot};

pub(super) use new::{Predecessor, Takeover, inherited_socket};
pub(super) use notify::Notifier;
pub(super) use old::{Handoff, Successor};
pub(super) use program::Program;
pub(super) use scaling::{HandoffSender, Table};
pub(super) use wire::{Frame, SocketKind, SocketName};

/// Upgrades that may wait for their refusal.
const MAX_PENDING: usize = 8;

/// Why there is no upgrade of a process that drains.
pub(super) const SHUTTING_DOWN: &str = "this process is on its way out";

/// An upgrade that somebody asked for.
pub(super) struct UpgradeRequest {
    /// How long the new process may take to get ready.
    pub(super) limit: Duration,
    reply: Option<oneshot::Sender<Result<Upgraded, UpgradeError>>>,
}

impl UpgradeRequest {
    /// By a signal: the log is the only answer.
    pub(super) fn by_signal() -> Self {
        Self {
            limit: sluice_gateway::admin::DEFAULT_UPGRADE_LIMIT,
            reply: None,
        }
    }

    pub(super) fn answer(self, answer: Result<Upgraded, UpgradeError>) {
        if let Some(reply) = self.reply {
            // Whoever asked may not wait any more.
            let _ = reply.send(answer);
        }
    }
}

/// Asks the main loop.
#[derive(Debug, Clone)]
pub(super) struct UpgradeRequester(mpsc::Sender<UpgradeRequest>);

/// The way from whoever asks to the main loop. While nothing is received, nothing is begun.
pub(super) fn upgrade_requests() -> (UpgradeRequester, mpsc::Receiver<UpgradeRequest>) {
    let (sender, receiver) = mpsc::channel(MAX_PENDING);
    (UpgradeRequester(sender), receiver)
}

impl UpgradeRequester {
    /// See [`AdminState::upgrade`](sluice_gateway::admin::AdminState::upgrade).
    pub(super) async fn ask(&self, limit: Duration) -> Result<Upgraded, UpgradeError> {
        let leaving = || UpgradeError::NotNow(SHUTTING_DOWN);
        let (reply, answer) = oneshot::channel();
        let asked = UpgradeRequest {
            limit,
            reply: Some(reply),
        };
        // Both fail when the main loop has ended.
        self.0.send(asked).await.map_err(|_| leaving())?;
        answer.await.unwrap_or_else(|_| Err(leaving()))
    }
}

//! Upgrade in place: the binary now on disk takes over from the running process.
//!
//! The old process (O) starts the new one (N) with one end of a socket pair as its standard input:
//!
//! ```text
//! O ── Hello, Sockets* ──▶ N   O's version and pid; every listening socket, by configured address
//! O ◀─ Welcome ─────────── N   the versions match; N reads its configuration, builds and binds
//! O ◀─ Prepared ────────── N   N is ready to serve (or Failed, with the reason)
//! O ── Scaling* ─────────▶ N   the state of scaling: see `scaling`
//! O ── Take ─────────────▶ N   the request to serve
//! O ◀─ Serving ─────────── N   the acknowledgement: a Snapshot is served, every listener accepts
//! O ── Released ─────────▶ N   O no longer accepts; N is the service's main process
//! O ◀─ Scaling* ─────────▶ N   as long as O drains
//! ```
//!
//! Until O reads `Serving`, O serves as before; on any error O ends N and goes on. N accepts
//! nothing before `Take`. From `Serving` on N is the gateway, whatever happens to O.
//!
//! **Invariant:** no process closes a listening socket before the other one accepts from it: both processes share
//! one accept queue, so no connection is refused or reset.

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

/// Bound on requests for an upgrade that wait in the main loop's channel.
const MAX_PENDING: usize = 8;

/// The error of an upgrade while this process drains.
pub(super) const SHUTTING_DOWN: &str = "this process is on its way out";

/// A request for an upgrade.
pub(super) struct UpgradeRequest {
    /// How long the new process may take to get ready.
    pub(super) limit: Duration,
    reply: Option<oneshot::Sender<Result<Upgraded, UpgradeError>>>,
}

impl UpgradeRequest {
    /// A request by a signal: the outcome is only logged.
    pub(super) fn by_signal() -> Self {
        Self {
            limit: sluice_gateway::admin::DEFAULT_UPGRADE_LIMIT,
            reply: None,
        }
    }

    pub(super) fn answer(self, answer: Result<Upgraded, UpgradeError>) {
        if let Some(reply) = self.reply {
            // The requester may not wait any more.
            let _ = reply.send(answer);
        }
    }
}

/// Sends requests for an upgrade to the main loop.
#[derive(Debug, Clone)]
pub(super) struct UpgradeRequester(mpsc::Sender<UpgradeRequest>);

/// The channel of requests to the main loop. No upgrade begins before a request is received.
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

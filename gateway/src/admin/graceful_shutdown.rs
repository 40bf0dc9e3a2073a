//! Graceful shutdown of the admin and health servers, so that another process can serve on their sockets.

use std::convert::Infallible;

use tokio::sync::{mpsc, watch};

/// Begins the graceful shutdown of the servers that hold a [`ShutdownSignal`] of it.
#[derive(Debug)]
pub struct GracefulShutdown {
    request: watch::Sender<bool>,
    accepting: mpsc::Receiver<Infallible>,
}

/// A server's side of a [`GracefulShutdown`]; each server has a clone.
#[derive(Debug, Clone)]
pub struct ShutdownSignal {
    request: watch::Receiver<bool>,
    accepting: mpsc::Sender<Infallible>,
}

/// Both sides.
pub fn graceful_shutdown() -> (GracefulShutdown, ShutdownSignal) {
    let (sender, request) = watch::channel(false);
    let (token, accepting) = mpsc::channel(1);
    let shutdown = GracefulShutdown {
        request: sender,
        accepting,
    };
    let signal = ShutdownSignal {
        request,
        accepting: token,
    };
    (shutdown, signal)
}

impl GracefulShutdown {
    /// Resolves when no server accepts any more and the listening sockets are closed here. Open connections
    /// end with the response under way. Cancel-safe.
    pub async fn stop_accepting(&mut self) {
        self.request.send_replace(true);
        // Nothing is ever sent: the channel ends when the last server has dropped its sender.
        let _ = self.accepting.recv().await;
    }
}

impl ShutdownSignal {
    /// The request, for each connection, and the token that a server drops when it has stopped accepting.
    pub(super) fn split(self) -> (ShutdownRequest, mpsc::Sender<Infallible>) {
        (ShutdownRequest(self.request), self.accepting)
    }
}

/// The request to shut down, as a connection waits for it.
#[derive(Debug, Clone)]
pub(super) struct ShutdownRequest(watch::Receiver<bool>);

impl ShutdownRequest {
    /// Resolves when the shutdown was requested; never, when the [`GracefulShutdown`] was dropped without
    /// that. Cancel-safe.
    pub(super) async fn requested(&mut self) {
        if self.0.wait_for(|requested| *requested).await.is_err() {
            std::future::pending().await
        }
    }
}

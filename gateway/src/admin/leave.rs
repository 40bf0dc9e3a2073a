//! How a process gives its admin and health addresses to another one.

use std::convert::Infallible;

use tokio::sync::{mpsc, watch};

/// Makes servers stop accepting and end their conversations.
#[derive(Debug)]
pub struct Leaver {
    told: watch::Sender<bool>,
    accepting: mpsc::Receiver<Infallible>,
}

/// A server's side of a [`Leaver`]; each server has a clone.
#[derive(Debug, Clone)]
pub struct Leave {
    told: watch::Receiver<bool>,
    accepting: mpsc::Sender<Infallible>,
}

/// Both sides.
pub fn leave() -> (Leaver, Leave) {
    let (tell, told) = watch::channel(false);
    let (sender, accepting) = mpsc::channel(1);
    let leaver = Leaver {
        told: tell,
        accepting,
    };
    let leave = Leave {
        told,
        accepting: sender,
    };
    (leaver, leave)
}

impl Leaver {
    /// Ends accepting; resolves when no server accepts any more and the sockets are closed. Conversations
    /// end with the answer they are at. Cancel-safe.
    pub async fn leave(&mut self) {
        self.told.send_replace(true);
        // Nothing is ever said: it ends when the last server has let go.
        let _ = self.accepting.recv().await;
    }
}

impl Leave {
    /// What a conversation waits for; and accepting goes on as long as the rest is kept.
    pub(super) fn split(self) -> (Told, mpsc::Sender<Infallible>) {
        (Told(self.told), self.accepting)
    }
}

/// When to leave.
#[derive(Debug, Clone)]
pub(super) struct Told(watch::Receiver<bool>);

impl Told {
    /// Resolves when it is time to leave; never, when there is nobody left to say so. Cancel-safe.
    pub(super) async fn leaving(&mut self) {
        if self.0.wait_for(|told| *told).await.is_err() {
            std::future::pending().await
        }
    }
}

//! The older process: it gives out no slot by itself any more.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::desk::{Desk, DeskMessage};
use crate::registry::Registry;
use crate::throttle::{LeaseMessage, PeerId, RevisionThrottler, clock};

/// Messages sent together.
pub(super) const BATCH: usize = 256;

/// The older process's throttlers, all of them flipped. Ends in [`take_back`](Self::take_back) or
/// [`abandon`](Self::abandon), or with the process.
#[derive(Debug)]
pub struct Guest {
    desks: Vec<Arc<RevisionThrottler>>,
    outbox: mpsc::UnboundedReceiver<(u32, LeaseMessage)>,
}

impl Guest {
    /// Flips every throttler and says what they have. Whoever arrives from now on waits. The table
    /// must not change after it: a revision that appears would have a throttler of its own.
    pub fn flip(registry: &Registry) -> (Self, Vec<Desk>) {
        let (sender, outbox) = mpsc::unbounded_channel();
        let mut desks = Vec::new();
        let mut said = Vec::new();
        let all = registry.all_live();
        // Waking one takes longer than flipping it, and lets nobody wait.
        for live in &all {
            live.throttler();
        }
        for (number, live) in (0..).zip(all) {
            let throttler = Arc::clone(live.throttler());
            let sender = sender.clone();
            // A send fails only when the newer process is gone; this process learns of that soon.
            let newer = Box::new(move |message| _ = sender.send((number, message)));
            let endpoints = throttler.flip(newer, clock());
            said.push(Desk::new(&live, &endpoints));
            desks.push(throttler);
        }
        (Self { desks, outbox }, said)
    }

    /// The next messages for the host; empty when there will be none. Ask only once the host has
    /// acknowledged: what it leases cannot be taken back. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Vec<DeskMessage> {
        let mut batch = Vec::new();
        self.outbox.recv_many(&mut batch, BATCH).await;
        batch.into_iter().map(DeskMessage::new).collect()
    }

    /// The host says something.
    pub fn hear(&self, message: DeskMessage) {
        let (desk, message) = message.into_parts();
        // A desk that does not exist would be the host's mistake: nobody waits there.
        if let Some(desk) = self.desks.get(desk as usize) {
            desk.hear(PeerId::NEWER, message, clock());
        }
    }

    /// The newer process did not come to serve: this one gives slots out again, and whoever came
    /// meanwhile gets one.
    pub fn take_back(self) {
        for desk in &self.desks {
            desk.flip_back(clock());
        }
    }

    /// The newer process is gone after it took over: what is in flight goes on, everybody else is
    /// told that this process is draining.
    pub fn abandon(self) {
        for desk in &self.desks {
            desk.abandon(clock());
        }
    }
}

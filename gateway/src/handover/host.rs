//! The newer process: its slots are for both.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::desk::{Desk, DeskMessage};
use super::guest::BATCH;
use crate::registry::{LiveRevision, Registry};
use crate::throttle::{LeaseMessage, Outlet, PeerId, Rejection, clock};

/// What the older process holds of this one's endpoints, and what its requests wait for. Dropping
/// it gives everything back: the older process is gone then, and whatever it had in flight with it.
#[derive(Debug)]
pub struct Host {
    desks: Vec<HostDesk>,
    sender: mpsc::UnboundedSender<(u32, LeaseMessage)>,
    outbox: mpsc::UnboundedReceiver<(u32, LeaseMessage)>,
}

/// The newer process's side of a desk.
#[derive(Debug)]
struct HostDesk {
    /// `None`: this process does not serve the revision.
    live: Option<Arc<LiveRevision>>,
    /// Whether its throttler knows of the older process.
    is_open: bool,
}

impl Host {
    /// Counts what the older process has in flight. Before this process admits anything.
    pub fn inherit(registry: &Registry, desks: &[Desk]) -> Self {
        let (sender, outbox) = mpsc::unbounded_channel();
        let mut host = Self {
            desks: Vec::new(),
            sender,
            outbox,
        };
        for (number, desk) in (0..).zip(desks) {
            let older = || host.outlet(number);
            let inherited = desk.inherited().map(|left| registry.inherit(&left, &older));
            let (live, is_open) = inherited.unwrap_or_default();
            host.desks.push(HostDesk { live, is_open });
        }
        host
    }

    /// The older process says something.
    pub fn hear(&mut self, message: DeskMessage) {
        let (number, message) = message.into_parts();
        let now = clock();
        let Some(desk) = self.desks.get(number as usize) else {
            return;
        };
        let Some(live) = desk.live.clone() else {
            if matches!(&message, LeaseMessage::Ask(ask) if ask.waiting > 0) {
                _ = self
                    .sender
                    .send((number, LeaseMessage::Refuse(Rejection::Removed)));
            }
            return;
        };
        if !desk.is_open {
            live.throttler().adopt(&[], false, self.outlet(number), now);
            self.desks[number as usize].is_open = true;
        }
        live.throttler().hear(PeerId::OLDER, message, now);
    }

    /// The next messages for the older process; pending while there are none. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Vec<DeskMessage> {
        let mut batch = Vec::new();
        self.outbox.recv_many(&mut batch, BATCH).await;
        batch.into_iter().map(DeskMessage::new).collect()
    }

    /// Slots that the older process holds.
    pub fn held(&self) -> usize {
        let open = self.desks.iter().filter(|desk| desk.is_open);
        let lives = open.filter_map(|desk| desk.live.as_ref());
        lives
            .map(|live| live.throttler().slots_of(PeerId::OLDER) as usize)
            .sum()
    }

    fn outlet(&self, number: u32) -> Outlet {
        let sender = self.sender.clone();
        // A send fails only when the Host is dropped: the older process is gone.
        Box::new(move |message| _ = sender.send((number, message)))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for desk in self.desks.iter().filter(|desk| desk.is_open) {
            if let Some(live) = &desk.live {
                live.throttler().peer_gone(PeerId::OLDER, clock());
            }
        }
    }
}

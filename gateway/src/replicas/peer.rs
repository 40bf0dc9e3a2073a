//! The other replicas as the exchange knows them, and words on their way to them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sluice_model::RevisionId;
use tokio::sync::Notify;

use super::word::{Announcement, Word};
use crate::throttle::PeerId;

/// How long slots are leased for, from one renewal to the next.
pub(super) const LEASE: Duration = Duration::from_secs(5);

/// How long before the end of its lease a holder stops to send requests on it.
const MARGIN: Duration = Duration::from_secs(1);

pub(super) type SharedSender = Arc<dyn Fn(Vec<u8>) + Send + Sync>;

/// Words to be sent, in order.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    pub(super) posts: Mutex<Vec<Post>>,
    pub(super) notify: Notify,
}

/// A word for a connection. One of an earlier connection is dropped.
#[derive(Debug)]
pub(super) struct Post {
    pub(super) peer: PeerId,
    pub(super) session: u64,
    pub(super) word: Word,
}

impl Outbox {
    pub(super) fn post(&self, peer: PeerId, session: u64, word: Word) {
        self.posts.lock().push(Post { peer, session, word });
        self.notify.notify_one();
    }
}

/// Another replica.
pub(super) struct Peer {
    pub(super) id: PeerId,
    /// Whether its Pod is listed.
    pub(super) is_listed: bool,
    pub(super) serves: bool,
    /// Its process has said that it ends.
    pub(super) has_left: bool,
    pub(super) incarnation: Option<u64>,
    pub(super) session: u64,
    pub(super) link: Option<Link>,
    /// When what it held is free: its Pod is gone, and its leases are at their end.
    pub(super) gone_at: Option<Instant>,
    /// When the last lease ends that was renewed for it.
    pub(super) leased_until: Option<Instant>,
    /// When the last renewal was asked for that it has granted, in its present life.
    pub(super) renewed: Option<Instant>,
    pub(super) pinged: Instant,
    pub(super) has_lapsed: bool,
    /// Since when it is connected, or not.
    pub(super) since: Instant,
}

/// A connection.
pub(super) struct Link {
    pub(super) sender: SharedSender,
    /// The view that it announced last.
    pub(super) heard: Option<Announcement>,
    /// The last of its numbers that it was answered.
    pub(super) answered: u64,
    pub(super) round: Option<Round>,
}

/// An announcement whose end has not arrived.
pub(super) struct Round {
    pub(super) announced: Announcement,
    /// What has been said to be held.
    pub(super) mentioned: HashSet<RevisionId>,
}

impl Peer {
    /// Whether it may own slots, or hold some: it is there, or was and its leases are not over. One that is not listed, by
    /// mistake or not yet any more, and connects again is there.
    pub(super) fn is_participant(&self) -> bool {
        !self.has_left && (self.is_listed || self.gone_at.is_some() || self.link.is_some())
    }

    /// Until when its leases may be used.
    pub(super) fn usable(&self) -> Option<Instant> {
        self.renewed.map(|renewed| renewed + (LEASE - MARGIN))
    }
}

//! The state machine behind [`Replicas`](super::Replicas): views, connections and leases of all revisions. Time is passed in.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use sluice_model::{Replica, RevisionId, stable_hash};

use super::peer::{LEASE, Link, Outbox, Peer, Round, SharedSender};
use super::word::{About, Announcement, Word};
use crate::throttle::{Deal, LeaseMessage, Outlet, PeerId, RevisionThrottler};

/// The interval of renewals.
const RENEWAL: Duration = Duration::from_secs(1);

/// Messages about revisions that are not known here yet; beyond these the oldest are forgotten. A replica that is connected
/// says all again when the revision comes.
const MAX_STRANGERS: usize = 10_000;

/// Bytes of words in one message, unless one alone has more: the connection takes a mebibyte.
const MESSAGE: usize = 256 * 1024;

/// A wait for other replicas that is worth a warning.
const LONG: Duration = Duration::from_secs(5);

/// One replica, as this one sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// Its name.
    pub name: Arc<str>,
    /// Whether it owns slots.
    pub serves: bool,
    /// Whether there is a connection to it.
    pub is_connected: bool,
    /// For how long there has been one, or none.
    pub since: Duration,
    /// Whether it acts by the view of this replica.
    pub agrees: bool,
    /// Slots of this replica's endpoints that it holds. Without a connection they are lost until it is back or gone.
    pub holds: u32,
}

pub(super) struct Exchange {
    me: Arc<str>,
    outbox: Arc<Outbox>,
    base: Option<Instant>,
    view: u64,
    deal: Arc<Deal>,
    number: u64,
    is_settled: bool,
    peers: BTreeMap<Arc<str>, Peer>,
    next_peer: u32,
    /// When the wait for other replicas began that is under way, unless a warning was logged.
    waits_since: Option<Instant>,
    /// Whether any replica is listed; if not, since when, unless a warning was logged.
    is_listed: bool,
    unlisted_since: Option<Instant>,
    revisions: HashMap<RevisionId, Vec<Weak<RevisionThrottler>>>,
    /// Throttlers that began while there was a connection, with the replicas that have not said what they hold since.
    joining: HashMap<(RevisionId, PeerId), Joining>,
    epoch: u64,
    /// What replicas hold of revisions that are not known here (yet).
    strangers: Vec<(RevisionId, PeerId, LeaseMessage)>,
}

/// Until a replica answers, what it says of the revision was said to a throttler before this one.
struct Joining {
    epoch: u64,
    is_answered: bool,
}

impl Exchange {
    pub(super) fn new(outbox: Arc<Outbox>) -> Self {
        Self {
            me: "".into(),
            outbox,
            base: None,
            view: 0,
            deal: Arc::default(),
            number: 0,
            is_settled: false,
            peers: BTreeMap::new(),
            next_peer: 0,
            waits_since: None,
            is_listed: true,
            unlisted_since: None,
            revisions: HashMap::new(),
            joining: HashMap::new(),
            epoch: 0,
            strangers: Vec::new(),
        }
    }

    /// Shares the slots of a throttler. Every replica that is connected is asked what it holds: it has said so to a throttler of
    /// this name that is gone, or to none. Numbers of leases begin anew on both sides.
    pub(super) fn join(&mut self, throttler: &Arc<RevisionThrottler>, now: Instant) {
        throttler.share(&self.deal, now);
        let revision = throttler.id().clone();
        for peer in self.peers.values().filter(|peer| peer.link.is_some()) {
            self.epoch += 1;
            let epoch = self.epoch;
            let is_answered = false;
            let joining = Joining { epoch, is_answered };
            self.joining.insert((revision.clone(), peer.id), joining);
            let greeting = LeaseMessage::Join { epoch };
            throttler.meet(
                peer.id,
                self.outlet(peer, &revision),
                Some(greeting),
                peer.usable(),
                now,
            );
        }
        // What a replica that is connected has said before counts if it does not answer.
        let joining = &self.joining;
        let is_known = |(of, from, _): &mut (RevisionId, PeerId, LeaseMessage)| {
            *of == revision && !joining.contains_key(&(of.clone(), *from))
        };
        for (_, peer, message) in self.strangers.extract_if(.., is_known) {
            throttler.hear(peer, message, now);
        }
        let named = self.revisions.entry(revision.clone()).or_default();
        let this = Arc::downgrade(throttler);
        named.retain(|known| known.strong_count() > 0 && !known.ptr_eq(&this));
        named.push(this);
        self.settle_joined(&revision, now);
    }

    /// Owns what is new to a revision, if every replica has said what it holds and acts by the same view.
    fn settle_joined(&self, revision: &RevisionId, now: Instant) {
        if self.is_settled && !self.joining.keys().any(|(joining, _)| joining == revision) {
            let named = self.revisions.get(revision).into_iter().flatten();
            for throttler in named.filter_map(Weak::upgrade) {
                throttler.settle_deal(now);
            }
        }
    }

    /// A replica answers no more: what it had said of revisions that joined is what is known of it.
    fn give_up_joining(&mut self, peer: PeerId, now: Instant) {
        let given_up = self.joining.extract_if(|(_, of), _| *of == peer);
        let revisions: Vec<RevisionId> = given_up.map(|((revision, _), _)| revision).collect();
        for revision in revisions {
            if let Some(throttler) = self.newest(&revision) {
                let strangers = self
                    .strangers
                    .extract_if(.., |(of, from, _)| (&*of, *from) == (&revision, peer));
                for (_, _, message) in strangers {
                    throttler.hear(peer, message, now);
                }
            }
            self.settle_joined(&revision, now);
        }
    }

    /// The throttler of a revision that takes part, also one that was removed and has slots in use.
    pub(super) fn newest(&self, revision: &RevisionId) -> Option<Arc<RevisionThrottler>> {
        let mut named = self.revisions.get(revision)?.iter().rev();
        named.find_map(Weak::upgrade)
    }

    /// Every replica there is.
    pub(super) fn replicas(&mut self, me: &str, all: &[Replica], now: Instant) {
        if *self.me != *me {
            self.me = me.into();
        }
        // Without the Service that lists them replicas know of none: each is on its own, with a limit of its own.
        let alone = [Replica {
            name: me.into(),
            serves: true,
        }];
        let was_listed = std::mem::replace(&mut self.is_listed, !all.is_empty());
        if was_listed && !self.is_listed {
            self.unlisted_since = Some(now);
        }
        let all = if self.is_listed { all } else { &alone };
        for peer in self.peers.values_mut() {
            peer.is_listed = false;
            peer.serves = false;
        }
        for replica in all.iter().filter(|replica| *replica.name != *me) {
            let peer = self.peer(&replica.name, now);
            peer.is_listed = true;
            peer.serves = replica.serves;
            peer.gone_at = None;
        }
        for peer in self.peers.values_mut().filter(|peer| !peer.is_listed) {
            let ends = peer.leased_until.map_or(now, |until| until.max(now));
            peer.gone_at.get_or_insert(ends);
        }
        let mut owners: Vec<_> = all.iter().filter(|replica| replica.serves).collect();
        owners.sort();
        owners.dedup();
        let names: Vec<&str> = owners.iter().map(|replica| &*replica.name).collect();
        let view = stable_hash(names.join("\n").as_bytes());
        if view != self.view || self.number == 0 {
            let owners = names.iter().map(|name| {
                let peer = self
                    .peers
                    .get(*name)
                    .filter(|_| **name != *me)
                    .map(|peer| peer.id);
                (stable_hash(name.as_bytes()), peer)
            });
            self.deal = Arc::new(Deal::new(owners.collect()));
            self.view = view;
            self.number += 1;
            self.is_settled = false;
            self.waits_since = Some(now);
            for throttler in self.throttlers() {
                throttler.share(&self.deal, now);
            }
            for name in self.linked() {
                self.announce(&name, now);
            }
        }
        self.bury(now);
        self.settle(now);
    }

    pub(super) fn connected(&mut self, name: &str, incarnation: u64, sender: SharedSender, now: Instant) {
        let throttlers = self.throttlers();
        let peer = self.peer(name, now);
        let id = peer.id;
        let was_other = peer
            .incarnation
            .replace(incarnation)
            .is_some_and(|before| before != incarnation);
        peer.session += 1;
        peer.since = now;
        // Both sides take the connection for made at different moments: only an answered ping renews a lease.
        peer.pinged = now;
        if was_other {
            peer.renewed = None;
        }
        peer.has_lapsed = peer.usable().is_none_or(|until| until <= now);
        peer.has_left = false;
        peer.leased_until = Some(now + LEASE);
        peer.link = Some(Link {
            sender,
            heard: None,
            answered: 0,
            round: None,
        });
        if !peer.is_listed {
            // Listed soon, or left over: it is forgotten with its leases.
            peer.gone_at = None;
        }
        if was_other {
            self.strangers.retain(|(_, peer, _)| *peer != id);
        }
        self.ping(name, now);
        for throttler in &throttlers {
            if was_other {
                throttler.peer_gone(id, now);
            }
            let peer = &self.peers[name];
            let usable = peer.usable().filter(|until| *until > now);
            throttler.meet(id, self.outlet(peer, throttler.id()), None, usable, now);
        }
        self.announce(name, now);
        self.give_up_joining(id, now);
    }

    /// Asks a replica to renew the leases that it has given.
    fn ping(&mut self, name: &str, now: Instant) {
        let base = *self.base.get_or_insert(now);
        if let Some(peer) = self.peers.get(name) {
            let at = now.saturating_duration_since(base).as_millis();
            let at = u64::try_from(at).unwrap_or(u64::MAX);
            self.outbox.post(peer.id, peer.session, Word::Ping(at));
        }
    }

    pub(super) fn disconnected(&mut self, name: &str, now: Instant) {
        let throttlers = self.throttlers();
        let Some(peer) = self.peers.get_mut(name).filter(|peer| peer.link.is_some()) else {
            return;
        };
        peer.link = None;
        peer.since = now;
        if !peer.is_listed {
            let ends = peer.leased_until.map_or(now, |until| until.max(now));
            peer.gone_at.get_or_insert(ends);
        }
        let id = peer.id;
        for throttler in throttlers {
            throttler.part(id, now);
        }
        self.give_up_joining(id, now);
    }

    /// Takes one word of a replica. A throttler that it is for has joined before, if there is one.
    ///
    /// # Errors
    /// It makes no sense here.
    pub(super) fn heard(&mut self, name: &str, word: Word, now: Instant) -> Result<(), String> {
        let base = *self.base.get_or_insert(now);
        let Some(peer) = self.peers.get_mut(name) else {
            return Ok(());
        };
        let (id, session) = (peer.id, peer.session);
        let Some(link) = &mut peer.link else { return Ok(()) };
        match word {
            Word::Announce(announced) => {
                link.round = Some(Round {
                    announced,
                    mentioned: HashSet::new(),
                });
            }
            Word::Announced => {
                let Some(round) = link.round.take() else {
                    return Err("the end of an announcement without its beginning".to_owned());
                };
                let announced = round.announced;
                link.heard = Some(announced);
                let answers = announced.number > link.answered;
                let agrees = announced.view == self.view && announced.seen == self.number;
                if agrees {
                    self.strangers
                        .retain(|(revision, from, _)| *from != id || round.mentioned.contains(revision));
                    for throttler in self.throttlers() {
                        let joins = self.joining.contains_key(&(throttler.id().clone(), id));
                        if !joins && !round.mentioned.contains(throttler.id()) {
                            throttler.held_nothing(id, now);
                        }
                    }
                }
                if answers {
                    self.announce(name, now);
                }
                self.settle(now);
            }
            Word::About(about) => {
                let revision = about.revision()?;
                let message = about.into_message();
                if let (LeaseMessage::Holding { .. }, Some(round)) = (&message, &mut link.round) {
                    round.mentioned.insert(revision.clone());
                    if round.announced.view != self.view || round.announced.seen != self.number {
                        // By another view: it is said again by the one that both have.
                        return Ok(());
                    }
                }
                self.heard_about(name, (id, session), revision, message, now);
            }
            Word::Leave => {
                peer.has_left = true;
                for throttler in self.throttlers() {
                    throttler.peer_gone(id, now);
                }
                self.give_up_joining(id, now);
                self.settle(now);
            }
            Word::Ping(at) => {
                peer.leased_until = Some(now + LEASE);
                self.outbox.post(id, session, Word::Pong(at));
            }
            Word::Pong(at) => {
                let asked = base.checked_add(Duration::from_millis(at)).unwrap_or(base);
                peer.renewed = peer.renewed.max(Some(asked.min(now)));
                let usable = peer.usable().filter(|until| *until > now);
                peer.has_lapsed = usable.is_none();
                for throttler in self.throttlers() {
                    throttler.renew(id, usable, now);
                }
            }
        }
        Ok(())
    }

    fn heard_about(
        &mut self,
        name: &str,
        (id, session): (PeerId, u64),
        revision: RevisionId,
        message: LeaseMessage,
        now: Instant,
    ) {
        let throttler = self.newest(&revision);
        let at = (revision, id);
        let joining = self.joining.get_mut(&at);
        match (&message, joining) {
            (LeaseMessage::Join { epoch }, _) => {
                self.strangers.retain(|(of, from, _)| (of, *from) != (&at.0, id));
                let answer = LeaseMessage::Joined { epoch: *epoch };
                if let Some(throttler) = throttler {
                    let peer = &self.peers[name];
                    let usable = peer.usable().filter(|until| *until > now);
                    throttler.meet(id, self.outlet(peer, &at.0), Some(answer), usable, now);
                } else {
                    let nothing = LeaseMessage::Holding {
                        received: 0,
                        slots: Vec::new(),
                    };
                    for message in [answer, nothing] {
                        let word = Word::About(About::new(&at.0, message));
                        self.outbox.post(id, session, word);
                    }
                }
            }
            (LeaseMessage::Joined { epoch }, Some(joining)) => {
                joining.is_answered |= joining.epoch == *epoch;
            }
            // Said before the replica had heard of this throttler: it says all again, unless the connection ends before.
            (_, Some(joining)) if !joining.is_answered => {
                if matches!(
                    message,
                    LeaseMessage::Holding { .. } | LeaseMessage::Return { .. }
                ) {
                    self.hear_of_stranger(at.0, id, session, message);
                }
            }
            (LeaseMessage::Holding { .. }, Some(_)) => {
                if let Some(throttler) = throttler {
                    throttler.hear(id, message, now);
                }
                self.joining.remove(&at);
                self.strangers.retain(|(of, from, _)| (of, *from) != (&at.0, id));
                self.settle_joined(&at.0, now);
            }
            _ => match throttler {
                Some(throttler) => throttler.hear(id, message, now),
                None => self.hear_of_stranger(at.0, id, session, message),
            },
        }
    }

    /// Renews leases, and ends those that are over.
    pub(super) fn tick(&mut self, now: Instant) {
        let (mut lapsed, mut renewed) = (Vec::new(), Vec::new());
        for (name, peer) in &mut self.peers {
            if peer.link.is_some() && now.saturating_duration_since(peer.pinged) >= RENEWAL {
                peer.pinged = now;
                renewed.push(Arc::clone(name));
            }
            if !peer.has_lapsed && peer.usable().is_none_or(|until| until <= now) {
                peer.has_lapsed = true;
                lapsed.push(peer.id);
            }
        }
        let renews = !renewed.is_empty();
        for name in renewed {
            self.ping(&name, now);
        }
        for throttler in self.throttlers() {
            for peer in &lapsed {
                throttler.renew(*peer, None, now);
            }
            if renews {
                throttler.ask_again(now);
            }
        }
        self.bury(now);
        self.settle(now);
        self.warn(now);
        self.revisions.retain(|_, named| {
            named.retain(|throttler| throttler.strong_count() > 0);
            !named.is_empty()
        });
    }

    /// Tells every replica that this process ends.
    pub(super) fn leave(&mut self) -> bool {
        let linked = self.peers.values().filter(|peer| peer.link.is_some());
        let told = linked.map(|peer| self.outbox.post(peer.id, peer.session, Word::Leave));
        told.count() > 0
    }

    /// Messages for connections, as they are to be sent.
    pub(super) fn take_messages(&mut self) -> Vec<(SharedSender, Vec<u8>)> {
        let posts = std::mem::take(&mut *self.outbox.posts.lock());
        let mut words: BTreeMap<PeerId, Vec<Word>> = BTreeMap::new();
        let sessions: HashMap<PeerId, u64> =
            self.peers.values().map(|peer| (peer.id, peer.session)).collect();
        for post in posts {
            if sessions.get(&post.peer) == Some(&post.session) {
                words.entry(post.peer).or_default().push(post.word);
            }
        }
        let mut messages = Vec::new();
        for peer in self.peers.values() {
            let (Some(link), Some(words)) = (&peer.link, words.remove(&peer.id)) else {
                continue;
            };
            let mut message = Vec::new();
            for word in words {
                let encoded = match serde_json::to_vec(&word) {
                    Ok(encoded) => encoded,
                    Err(error) => {
                        tracing::error!("internal error: leases cannot be encoded: {error}");
                        continue;
                    }
                };
                if !message.is_empty() && message.len() + encoded.len() > MESSAGE {
                    message.push(b']');
                    messages.push((Arc::clone(&link.sender), std::mem::take(&mut message)));
                }
                message.push(if message.is_empty() { b'[' } else { b',' });
                message.extend(encoded);
            }
            message.push(b']');
            messages.push((Arc::clone(&link.sender), message));
        }
        messages
    }

    pub(super) fn status(&self, now: Instant) -> Vec<ReplicaStatus> {
        let throttlers = self.throttlers();
        let peers = self.peers.iter().map(|(name, peer)| ReplicaStatus {
            name: Arc::clone(name),
            serves: peer.serves,
            is_connected: peer.link.is_some(),
            since: now.saturating_duration_since(peer.since),
            agrees: peer.link.as_ref().is_some_and(|link| self.agrees(link)),
            holds: throttlers
                .iter()
                .map(|throttler| throttler.slots_of(peer.id))
                .sum(),
        });
        peers.collect()
    }

    /// Announces the view to a replica, and what is held of its endpoints.
    fn announce(&mut self, name: &str, now: Instant) {
        let throttlers = self.throttlers();
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        let Some(link) = &mut peer.link else { return };
        // Nothing is announced before the replicas are listed: there is no view.
        if self.number == 0 {
            return;
        }
        let seen = link.heard.map_or(0, |heard| heard.number);
        link.answered = seen;
        let announcement = Announcement {
            view: self.view,
            number: self.number,
            seen,
        };
        let (id, session) = (peer.id, peer.session);
        self.outbox.post(id, session, Word::Announce(announcement));
        for throttler in throttlers {
            throttler.tell_holding(id, now);
        }
        self.outbox.post(id, session, Word::Announced);
    }

    /// Owns what is new once every other replica acts by the same view.
    fn settle(&mut self, now: Instant) {
        if self.is_settled || self.number == 0 {
            return;
        }
        let mut participants = self.peers.values().filter(|peer| peer.is_participant());
        let all = participants.all(|peer| peer.link.as_ref().is_some_and(|link| self.agrees(link)));
        if all {
            self.is_settled = true;
            let revisions: Vec<_> = self.revisions.keys().cloned().collect();
            for revision in revisions {
                self.settle_joined(&revision, now);
            }
        }
    }

    /// Logs which replicas are waited for, once for each wait that is long.
    fn warn(&mut self, now: Instant) {
        let is_long = |since: &Instant| now.saturating_duration_since(*since) >= LONG;
        if !self.is_listed && !self.revisions.is_empty() && self.unlisted_since.as_ref().is_some_and(is_long)
        {
            self.unlisted_since = None;
            tracing::warn!(
                "no replica is listed by the Service sluice-peers: each one keeps concurrency limits by itself alone"
            );
        }
        if self.is_settled || self.revisions.is_empty() || !self.waits_since.as_ref().is_some_and(is_long) {
            return;
        }
        self.waits_since = None;
        let missing = self.peers.iter().filter(|(_, peer)| {
            peer.is_participant() && !peer.link.as_ref().is_some_and(|link| self.agrees(link))
        });
        let missing: Vec<&str> = missing.map(|(name, _)| &**name).collect();
        tracing::warn!(
            replicas = missing.join(", "),
            "slots of revisions with a concurrency limit wait for replicas that cannot be reached, until they are back or their Pods are gone"
        );
    }

    /// Frees what replicas held that are gone.
    fn bury(&mut self, now: Instant) {
        let is_due = |peer: &Peer| peer.gone_at.is_some_and(|at| at <= now) && peer.link.is_none();
        let due: Vec<Arc<str>> = self
            .peers
            .iter()
            .filter(|(_, peer)| is_due(peer))
            .map(|(name, _)| Arc::clone(name))
            .collect();
        for name in due {
            let Some(peer) = self.peers.remove(&name) else {
                continue;
            };
            self.strangers.retain(|(_, from, _)| *from != peer.id);
            for throttler in self.throttlers() {
                throttler.peer_gone(peer.id, now);
            }
            self.give_up_joining(peer.id, now);
        }
    }

    fn hear_of_stranger(&mut self, revision: RevisionId, peer: PeerId, session: u64, message: LeaseMessage) {
        match message {
            LeaseMessage::Holding { .. } => {
                self.strangers
                    .retain(|(known, from, _)| (known, *from) != (&revision, peer));
                self.strangers.push((revision, peer, message));
            }
            LeaseMessage::Return { .. } => {
                let is_known = |(known, from, _): &(RevisionId, PeerId, LeaseMessage)| {
                    *known == revision && *from == peer
                };
                if self.strangers.iter().any(is_known) {
                    self.strangers.push((revision, peer, message));
                }
            }
            // A slot that nobody can use here.
            LeaseMessage::Lease {
                endpoint,
                slots,
                number,
            } => {
                let message = LeaseMessage::Return {
                    endpoint,
                    slots,
                    received: number,
                };
                let about = About::new(&revision, message);
                self.outbox.post(peer, session, Word::About(about));
            }
            _ => {}
        }
        if self.strangers.len() > MAX_STRANGERS {
            self.strangers.remove(0);
        }
    }

    fn agrees(&self, link: &Link) -> bool {
        link.heard
            .is_some_and(|heard| heard.view == self.view && heard.seen == self.number)
    }

    fn outlet(&self, peer: &Peer, revision: &RevisionId) -> Outlet {
        let (outbox, revision) = (Arc::clone(&self.outbox), revision.clone());
        let (id, session) = (peer.id, peer.session);
        Box::new(move |message| outbox.post(id, session, Word::About(About::new(&revision, message))))
    }

    fn peer(&mut self, name: &str, now: Instant) -> &mut Peer {
        let next = &mut self.next_peer;
        self.peers.entry(name.into()).or_insert_with(|| {
            let id = PeerId(*next);
            *next += 1;
            Peer {
                id,
                is_listed: false,
                serves: false,
                has_left: false,
                incarnation: None,
                session: 0,
                link: None,
                gone_at: None,
                leased_until: None,
                renewed: None,
                pinged: now,
                has_lapsed: false,
                since: now,
            }
        })
    }

    fn linked(&self) -> Vec<Arc<str>> {
        let linked = self.peers.iter().filter(|(_, peer)| peer.link.is_some());
        linked.map(|(name, _)| Arc::clone(name)).collect()
    }

    fn throttlers(&self) -> Vec<Arc<RevisionThrottler>> {
        self.revisions
            .values()
            .flatten()
            .filter_map(Weak::upgrade)
            .collect()
    }
}

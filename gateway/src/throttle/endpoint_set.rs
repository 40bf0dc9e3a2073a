//! Load balancer over the endpoints of one revision: which ones are open, and which one takes a request.
//!
//! Of a revision with tiers only the endpoints of the serving tier are open: the last tier with a ready one.
//!
//! Every lookup of a request, a probe or a change of addresses is indexed: none of them visits all endpoints.
//! Only the choice of victims and of an endpoint for a retry does.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::actions::Signal;
use super::endpoint::{EndpointPhase, EndpointState};
use super::lease::{EndpointId, Owner, Ownership, PeerId};
use super::outlier::OutlierDetector;

/// Numbers of endpoints by phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) starting: u32,
    pub(crate) ready: u32,
    pub(crate) ejected: u32,
    pub(crate) draining: u32,
    pub(crate) gone: u32,
}

impl Counts {
    fn of(&mut self, phase: EndpointPhase) -> &mut u32 {
        match phase {
            EndpointPhase::Starting => &mut self.starting,
            EndpointPhase::Ready => &mut self.ready,
            EndpointPhase::Ejected { .. } => &mut self.ejected,
            EndpointPhase::Draining => &mut self.draining,
            EndpointPhase::Gone => &mut self.gone,
        }
    }

    /// Endpoints that serve or may yet.
    pub(crate) fn live(self) -> u32 {
        self.starting + self.ready + self.ejected
    }
}

/// The endpoints of one tier.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct TierRecord {
    pub(super) counts: Counts,
    /// Number of instances that are being started.
    coming: u32,
    /// Kept only where there is more than one tier.
    in_flight: u32,
    /// Slots that other processes hold.
    pub(super) lent: u32,
    /// Requests that one endpoint may hold.
    pub(super) limit: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct EndpointRecord {
    pub(crate) state: Arc<EndpointState>,
    pub(crate) phase: EndpointPhase,
    pub(crate) in_flight: u32,
    /// Readiness epoch: changes whenever the endpoint is proven ready again.
    pub(crate) readiness_epoch: u64,
    pub(crate) was_ready: bool,
    /// Sequence number of its last ejection, to find the least recent one.
    ejected_at: u64,
    outlier: OutlierDetector,
    /// The index of its tier.
    pub(crate) tier: u8,
    /// The limit of its tier.
    limit: Option<u32>,
    /// Index in `EndpointSet::open` plus one; 0 when not in it.
    open: u32,
    /// The process that its slots belong to.
    pub(crate) owner: Owner,
    /// Slots that its owner leases to this process.
    pub(crate) leased: u32,
    /// Slots that this process leases to others.
    pub(crate) lent: u32,
    /// The fewest leased slots that were free at once since the last look: they can be returned.
    pub(crate) least_idle: u32,
    /// The owner wants its slots back: each is returned as soon as it is free.
    pub(crate) is_revoked: bool,
    /// The lease has ended: what is in flight goes on, nothing else begins.
    pub(crate) has_lapsed: bool,
    /// Slots in use of removed endpoints with the same address: requests that are in flight on the same server.
    pub(super) ghosts_busy: u32,
    /// The endpoint that has the address of this removed one.
    pub(super) heir: Option<u32>,
}

impl EndpointRecord {
    /// Changes the outlier detector and keeps its lock-free mirror up to date.
    pub(crate) fn with_outlier<R>(&mut self, change: impl FnOnce(&mut OutlierDetector) -> R) -> R {
        let result = change(&mut self.outlier);
        self.state
            .troubled
            .store(!self.outlier.is_spotless(), Ordering::Relaxed);
        result
    }

    /// The signal that a retired instance has nothing in flight any more.
    pub(crate) fn drained(&self) -> Option<Signal> {
        let tier = self.tier;
        self.state
            .instance
            .map(|instance| Signal::Drained { tier, instance })
    }

    /// Slots in use, by this process or by others.
    pub(crate) fn busy(&self) -> u32 {
        self.in_flight + self.lent
    }

    /// Leased slots that are free.
    pub(crate) fn idle(&self) -> u32 {
        match self.owner {
            Owner::Peer(_) => self.leased.saturating_sub(self.busy()),
            Owner::Me | Owner::Pending => 0,
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.phase == EndpointPhase::Ready
            && match self.owner {
                Owner::Me => self
                    .limit
                    .is_none_or(|limit| self.busy() + self.ghosts_busy < limit),
                Owner::Pending => false,
                Owner::Peer(_) => !self.has_lapsed && self.busy() < self.leased,
            }
    }

    pub(crate) fn is_live(&self) -> bool {
        !matches!(self.phase, EndpointPhase::Draining | EndpointPhase::Gone)
    }

    /// Requests that it may hold.
    pub(crate) fn limit(&self) -> Option<u32> {
        self.limit
    }

    /// Whether its slots are this process's.
    #[inline]
    pub(crate) fn is_mine(&self) -> bool {
        matches!(self.owner, Owner::Me)
    }

    /// Whether it may be full.
    #[inline]
    fn is_limited(&self) -> bool {
        self.limit.is_some() || !self.is_mine()
    }

    /// Whether it is an instance that is being started. A configured address is always "starting" until a
    /// server listens there, so it does not count; nor does an instance that was ready and refuses connections
    /// now: it may be gone without a report.
    fn is_coming(&self) -> bool {
        self.phase == EndpointPhase::Starting && self.state.instance.is_some() && !self.was_ready
    }
}

/// All endpoints. `open` holds exactly those that may take a request now, so that a free slot is found in
/// constant time whenever one exists.
#[derive(Debug)]
pub(crate) struct EndpointSet {
    pub(super) records: Vec<Option<EndpointRecord>>,
    vacant: Vec<u32>,
    /// Index of each endpoint by its key; removed endpoints stay in it until their last request has ended.
    by_key: HashMap<u64, u32>,
    pub(super) open: Vec<u32>,
    /// Ejected endpoints by the end, and by the beginning, of the ejection.
    by_end: BTreeSet<(Instant, u32)>,
    by_age: BTreeSet<(u64, u32)>,
    /// Changes whenever a configured address comes or goes.
    configured_version: u64,
    /// At least one.
    pub(super) tiers: Vec<TierRecord>,
    /// The tier whose endpoints are open.
    serving: u8,
    /// The service is paused: no endpoint is open.
    pub(super) held: bool,
    /// Which process the slots of an endpoint belong to.
    pub(super) ownership: Ownership,
    /// Removed configured endpoints with slots in use.
    pub(super) ghosts: BTreeMap<EndpointId, u32>,
    /// Endpoints that take no more requests while other processes hold slots of them.
    pub(super) revocations: Vec<u32>,
    /// Endpoints with leased slots that are free.
    pub(super) idle: BTreeSet<u32>,
    /// Leased slots of endpoints that are gone.
    pub(super) abandoned: Vec<(PeerId, EndpointId, u32)>,
    /// Other owners of live endpoints, if nothing has changed since they were asked for.
    pub(super) live_owners: Option<BTreeSet<PeerId>>,
    /// Replicas whose leases have ended.
    pub(super) lapsed: BTreeSet<PeerId>,
    counts: Counts,
    in_flight: u32,
    pub(super) lent: u32,
    next_epoch: u64,
    random: u64,
    /// Number of endpoints visited: tests assert the cost of events by it.
    #[cfg(test)]
    pub(super) looks: std::cell::Cell<u64>,
}

impl EndpointSet {
    /// An empty set with a tier for each of these limits, of which there is at least one.
    pub(crate) fn new(limits: &[Option<u32>], seed: u64) -> Self {
        let tiers = limits.iter().map(|&limit| TierRecord {
            limit,
            ..TierRecord::default()
        });
        Self {
            records: Vec::new(),
            vacant: Vec::new(),
            by_key: HashMap::new(),
            open: Vec::new(),
            by_end: BTreeSet::new(),
            by_age: BTreeSet::new(),
            configured_version: 0,
            tiers: tiers.collect(),
            serving: 0,
            held: false,
            ownership: Ownership::default(),
            ghosts: BTreeMap::new(),
            revocations: Vec::new(),
            idle: BTreeSet::new(),
            abandoned: Vec::new(),
            live_owners: None,
            lapsed: BTreeSet::new(),
            counts: Counts::default(),
            in_flight: 0,
            lent: 0,
            next_epoch: 0,
            random: seed,
            #[cfg(test)]
            looks: std::cell::Cell::default(),
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// The endpoints of one tier by phase.
    pub(crate) fn counts_of(&self, tier: usize) -> Counts {
        self.tiers[tier].counts
    }

    /// In-flight requests of one tier, draining and removed endpoints too.
    pub(crate) fn in_flight_of(&self, tier: usize) -> u32 {
        if self.tiers.len() == 1 {
            self.in_flight
        } else {
            self.tiers[tier].in_flight
        }
    }

    /// Whether a tier rests: a later one has a ready endpoint.
    pub(crate) fn rests(&self, tier: usize) -> bool {
        self.tiers[tier + 1..].iter().any(|later| later.counts.ready > 0)
    }

    /// In-flight requests over all endpoints, draining and removed ones too.
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Slots that other processes hold, over all endpoints.
    pub(crate) fn lent(&self) -> u32 {
        self.lent
    }

    /// Slots of one tier that other processes hold.
    pub(crate) fn lent_of(&self, tier: usize) -> u32 {
        self.tiers[tier].lent
    }

    pub(crate) fn has_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// The end of the ejection that ends first.
    pub(crate) fn eject_due(&self) -> Option<Instant> {
        self.by_end.first().map(|(until, _)| *until)
    }

    /// An endpoint whose ejection is over.
    pub(crate) fn ejected_until(&self, now: Instant) -> Option<u32> {
        self.by_end
            .first()
            .filter(|(until, _)| *until <= now)
            .map(|(_, i)| *i)
    }

    /// The endpoint whose ejection began first, except `except`.
    pub(crate) fn least_recently_ejected(&self, except: Option<u32>) -> Option<u32> {
        let mut ejected = self.by_age.iter().map(|(_, i)| *i);
        ejected.find(|i| Some(*i) != except)
    }

    /// Whether an instance of a tier is being started.
    pub(crate) fn is_one_coming(&self, tier: usize) -> bool {
        self.tiers[tier].coming > 0
    }

    /// Whether any instance is being started.
    pub(crate) fn is_any_coming(&self) -> bool {
        self.tiers.iter().any(|tier| tier.coming > 0)
    }

    /// Changes whenever a configured address comes or goes.
    pub(crate) fn configured_version(&self) -> u64 {
        self.configured_version
    }

    pub(crate) fn limit(&self, tier: usize) -> Option<u32> {
        self.tiers[tier].limit
    }

    pub(crate) fn set_limit(&mut self, tier: usize, limit: Option<u32>) {
        self.tiers[tier].limit = limit;
        for record in self.records.iter_mut().flatten() {
            if usize::from(record.tier) == tier {
                record.limit = limit;
            }
        }
        // Slots without a limit are every replica's.
        self.set_ownership(self.ownership.clone());
        self.refresh_all();
    }

    /// Stops or resumes giving slots out (while the service is paused).
    pub(crate) fn hold(&mut self, held: bool) {
        self.held = held;
        self.refresh_all();
    }

    pub(super) fn refresh_all(&mut self) {
        for i in 0..self.records.len() {
            if self.records[i].is_some() {
                self.refresh(index(i));
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &EndpointRecord)> {
        self.records
            .iter()
            .enumerate()
            .filter_map(|(i, record)| Some((index(i), record.as_ref()?)))
            .inspect(|_| self.look())
    }

    pub(crate) fn find(&self, key: u64) -> Option<u32> {
        self.by_key.get(&key).copied()
    }

    /// An endpoint whose index is known to be valid: a permit or a lookup returned it.
    pub(crate) fn record(&self, i: u32) -> &EndpointRecord {
        self.look();
        self.records[i as usize].as_ref().expect("the index is valid")
    }

    pub(crate) fn record_mut(&mut self, i: u32) -> &mut EndpointRecord {
        self.look();
        self.records[i as usize].as_mut().expect("the index is valid")
    }

    pub(crate) fn insert(&mut self, state: Arc<EndpointState>, phase: EndpointPhase) -> u32 {
        let tier = usize::from(state.tier);
        let record = EndpointRecord {
            tier: state.tier,
            limit: self.tiers[tier].limit,
            phase,
            in_flight: 0,
            readiness_epoch: 0,
            was_ready: phase == EndpointPhase::Ready,
            ejected_at: 0,
            outlier: OutlierDetector::default(),
            open: 0,
            owner: self.ownership.owner(state.hash, self.tiers[tier].limit),
            leased: 0,
            lent: 0,
            least_idle: 0,
            is_revoked: false,
            has_lapsed: false,
            ghosts_busy: 0,
            heir: None,
            state,
        };
        if !record.is_live() {
            record.state.close_connections();
        }
        if phase == EndpointPhase::Ready {
            // No probe has to prove it.
            record.state.mark_answered();
        }
        let (key, fixed, coming) = (
            record.state.key,
            record.state.instance.is_none(),
            record.is_coming(),
        );
        let i = if let Some(i) = self.vacant.pop() {
            self.records[i as usize] = Some(record);
            i
        } else {
            self.records.push(Some(record));
            index(self.records.len() - 1)
        };
        self.by_key.insert(key, i);
        self.live_owners = None;
        self.inherit_lapse(i);
        self.inherit_ghost(i);
        self.configured_version += u64::from(fixed);
        self.tiers[tier].coming += u32::from(coming);
        *self.tiers[tier].counts.of(phase) += 1;
        *self.counts.of(phase) += 1;
        self.new_readiness_epoch(i);
        self.refresh(i);
        self.choose_serving();
        i
    }

    /// Moves an endpoint to another phase; one that is gone and idle is dropped from the set.
    pub(crate) fn set_phase(&mut self, i: u32, phase: EndpointPhase) {
        let record = self.record_mut(i);
        let tier = usize::from(record.tier);
        let was_coming = record.is_coming();
        let before = std::mem::replace(&mut record.phase, phase);
        record.was_ready |= phase == EndpointPhase::Ready;
        if phase != before {
            record.state.wake_probe();
        }
        if !record.is_live() {
            // Neither phase is ever followed by one that takes requests.
            record.state.close_connections();
        }
        let (coming, ejected_at) = (record.is_coming(), record.ejected_at);
        let goes = phase == EndpointPhase::Gone && before != EndpointPhase::Gone;
        let fixed_goes = goes && record.state.instance.is_none();
        if let EndpointPhase::Ejected { until, .. } = before {
            self.by_end.remove(&(until, i));
            self.by_age.remove(&(ejected_at, i));
        }
        if let EndpointPhase::Ejected { until, .. } = phase {
            self.by_end.insert((until, i));
            self.by_age.insert((ejected_at, i));
        }
        self.configured_version += u64::from(fixed_goes);
        if before == EndpointPhase::Ready && phase != EndpointPhase::Ready && self.record(i).lent > 0 {
            self.revocations.push(i);
        }
        if goes {
            self.leave_ghost(i);
        }
        self.live_owners = None;
        let tier = &mut self.tiers[tier];
        tier.coming -= u32::from(was_coming);
        tier.coming += u32::from(coming);
        for counts in [&mut self.counts, &mut tier.counts] {
            *counts.of(before) -= 1;
            *counts.of(phase) += 1;
        }
        self.refresh(i);
        self.vacate(i);
        self.choose_serving();
    }

    /// Opens the endpoints of the last tier with a ready one, and closes those of the tier that served before.
    fn choose_serving(&mut self) {
        if self.tiers.len() == 1 {
            return;
        }
        let ready = self.tiers.iter().rposition(|tier| tier.counts.ready > 0);
        let serving = ready.and_then(|tier| u8::try_from(tier).ok());
        if let Some(serving) = serving.filter(|serving| *serving != self.serving) {
            self.serving = serving;
            self.refresh_all();
        }
    }

    /// Begins a readiness epoch: requests that failed on the endpoint may try it again.
    pub(crate) fn new_readiness_epoch(&mut self, i: u32) {
        self.next_epoch += 1;
        self.record_mut(i).readiness_epoch = self.next_epoch;
    }

    /// Ejects a ready endpoint.
    pub(crate) fn eject(&mut self, i: u32, until: Instant, by_probe: bool) {
        self.next_epoch += 1;
        self.record_mut(i).ejected_at = self.next_epoch;
        self.set_phase(i, EndpointPhase::Ejected { until, by_probe });
    }

    /// Takes a slot of an endpoint that [`pick`](Self::pick) chose.
    pub(crate) fn acquire(&mut self, i: u32) {
        debug_assert!(self.record(i).has_room(), "above the limit");
        self.occupy(i);
    }

    fn occupy(&mut self, i: u32) {
        let tiered = self.tiers.len() > 1;
        let record = self.record_mut(i);
        record.in_flight += 1;
        if !record.is_mine() {
            record.least_idle = record.least_idle.min(record.idle());
        }
        let (limited, tier) = (record.is_limited(), usize::from(record.tier));
        if limited {
            self.refresh(i);
        }
        self.in_flight += 1;
        if tiered {
            self.tiers[tier].in_flight += 1;
        }
    }

    /// Gives a slot back.
    pub(crate) fn release(&mut self, i: u32) {
        let tiered = self.tiers.len() > 1;
        let record = self.record_mut(i);
        record.in_flight -= 1;
        let is_gone = record.phase == EndpointPhase::Gone;
        let (limited, tier) = (record.is_limited(), usize::from(record.tier));
        self.in_flight -= 1;
        if tiered {
            self.tiers[tier].in_flight -= 1;
        }
        if limited {
            self.refresh(i);
        }
        if is_gone {
            self.freed(i, 1);
            self.vacate(i);
        }
    }

    /// Inserts an endpoint into `open` or removes it, by phase and limit.
    pub(super) fn refresh(&mut self, i: u32) {
        let (serving, held) = (self.serving, self.held);
        let record = self.record_mut(i);
        let is_mine = record.is_mine();
        let want = record.has_room() && record.tier == serving && !held;
        match (record.open, want) {
            (0, true) => {
                self.open.push(i);
                let at = index(self.open.len());
                self.record_mut(i).open = at;
            }
            (at, false) if at > 0 => {
                record.open = 0;
                self.open.swap_remove(at as usize - 1);
                if let Some(&moved) = self.open.get(at as usize - 1) {
                    self.record_mut(moved).open = at;
                }
            }
            _ => {}
        }
        if !is_mine {
            self.note_idle(i);
        }
    }

    pub(super) fn vacate(&mut self, i: u32) {
        let record = self.record(i);
        if record.phase == EndpointPhase::Gone && record.busy() == 0 {
            let tier = usize::from(record.tier);
            let (key, id) = (record.state.key, record.id());
            let (owner, leased) = (record.owner, record.leased);
            self.by_key.remove(&key);
            if let (Owner::Peer(peer), 1..) = (owner, leased) {
                self.abandoned.push((peer, id.clone(), leased));
            }
            self.idle.remove(&i);
            self.lay_ghost(i, &id);
            self.records[i as usize] = None;
            self.vacant.push(i);
            self.counts.gone -= 1;
            self.tiers[tier].counts.gone -= 1;
        }
    }

    /// splitmix64; the seed is passed in, so that a simulation replays.
    pub(super) fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    #[cfg(test)]
    fn look(&self) {
        self.looks.set(self.looks.get() + 1);
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self)] // The same name as where it counts.
    fn look(&self) {}

    /// Asserts that redundant state agrees.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        let looks = self.looks.get();
        let mut counts = Counts::default();
        let mut open = 0;
        let (mut in_flight, mut lent) = (0, 0);
        let mut tiers = vec![TierRecord::default(); self.tiers.len()];
        let mut known = 0;
        let last = self.tiers.iter().rposition(|tier| tier.counts.ready > 0);
        assert!(
            last.is_none_or(|last| last == usize::from(self.serving)),
            "another tier serves"
        );
        for (i, record) in self.iter() {
            *counts.of(record.phase) += 1;
            in_flight += record.in_flight;
            let tier = usize::from(record.tier);
            assert_eq!(record.limit, self.tiers[tier].limit);
            let may = !self.held && record.has_room() && record.tier == self.serving;
            *tiers[tier].counts.of(record.phase) += 1;
            tiers[tier].coming += u32::from(record.is_coming());
            tiers[tier].in_flight += record.in_flight;
            assert_eq!(record.open > 0, may, "open list of {record:?}");
            if may {
                assert_eq!(self.open[record.open as usize - 1], i);
                open += 1;
            }
            assert!(record.phase != EndpointPhase::Gone || record.busy() > 0);
            tiers[tier].lent += record.lent;
            lent += record.lent;
            if record.phase == EndpointPhase::Gone && record.state.instance.is_none() {
                let heir = record
                    .heir
                    .map(|heir| self.records[heir as usize].as_ref().expect("is there"));
                assert!(heir.is_none_or(|heir| heir.ghosts_busy >= record.busy()));
                assert!(self.ghosts.contains_key(&record.id()));
            }
            assert_eq!(self.find(record.state.key), Some(i));
            if let EndpointPhase::Ejected { until, .. } = record.phase {
                assert!(self.by_end.contains(&(until, i)) && self.by_age.contains(&(record.ejected_at, i)));
            }
            known += 1;
        }
        assert_eq!(known, self.by_key.len());
        for (tier, counted) in tiers.iter().enumerate() {
            let kept = &self.tiers[tier];
            assert_eq!((counted.counts, counted.coming), (kept.counts, kept.coming));
            assert_eq!(counted.in_flight, self.in_flight_of(tier));
            assert_eq!(counted.lent, kept.lent);
        }
        let ejected = (self.by_end.len(), self.by_age.len());
        assert_eq!(ejected, (counts.ejected as usize, counts.ejected as usize));
        assert_eq!(open, self.open.len());
        assert_eq!(counts, self.counts);
        assert_eq!((in_flight, lent), (self.in_flight, self.lent));
        self.looks.set(looks);
    }
}

/// A tier as a bit of a set.
pub(crate) fn bit(tier: usize) -> u8 {
    1 << tier
}

/// A slab index; a revision has fewer than four billion endpoints.
pub(super) fn index(i: usize) -> u32 {
    u32::try_from(i).expect("fewer endpoints than u32 can count")
}

/// Scales 32 random bits to `0..n` (`n` > 0) without a division.
pub(super) fn below(bits: u64, n: usize) -> usize {
    usize::try_from((bits * n as u64) >> 32).unwrap_or(0)
}

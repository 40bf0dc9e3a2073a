//! Accounting for the gateway-wide queue bound: usage by service, and fair-share eviction when the bound is
//! reached.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sluice_model::{QueueTotals, ServiceId};

/// Identifies a queue for as long as the queue exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct QueueKey(pub(super) u64);

/// Queue usage: number of waiters and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct QueueUsage {
    pub(crate) depth: usize,
    pub(crate) bytes: u64,
}

impl QueueUsage {
    /// The usage of one waiter.
    pub(crate) fn one(bytes: u64) -> Self {
        Self { depth: 1, bytes }
    }

    pub(crate) fn is_nothing(self) -> bool {
        self == Self::default()
    }

    fn of(self, bound: Bound) -> u64 {
        match bound {
            Bound::Depth => self.depth as u64,
            Bound::Bytes => self.bytes,
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            depth: self.depth.saturating_add(other.depth),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            depth: self.depth.saturating_sub(other.depth),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }
}

/// A request for queue space: one place and these bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct SpaceRequest<'a> {
    pub(super) service: &'a ServiceId,
    pub(super) bytes: u64,
    /// Space that evicted waiters left to this arrival; already accounted to its service.
    pub(super) reservation: QueueUsage,
}

/// Decision on a [`SpaceRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SpaceDecision {
    Fits,
    /// The youngest waiter of this queue has to be evicted first.
    Evict(QueueKey),
    Refused,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bound {
    Depth,
    Bytes,
}

/// A space request compared with the bounds and with its service's fair share.
enum ShareCheck {
    Fits,
    /// The bound is reached, and the service is below its fair share of it, which is the second value.
    Below(Bound, u64),
    Above,
}

#[derive(Debug, Default)]
struct ServiceUsage {
    /// Usage of the service's queues, plus space reserved for its arrivals.
    held: QueueUsage,
    queues: BTreeMap<QueueKey, QueueUsage>,
}

/// Usage of each service. Only services with usage are in it, so the number of services and the bound itself
/// bound its size.
#[derive(Debug)]
pub(super) struct QueueAccounting {
    totals: QueueTotals,
    used: QueueUsage,
    services: HashMap<ServiceId, ServiceUsage>,
    /// Services ordered by usage: a full gateway with ten thousand services that wait finds its longest queue
    /// without visiting all of them.
    by_depth: BTreeSet<(u64, ServiceId)>,
    by_bytes: BTreeSet<(u64, ServiceId)>,
}

impl QueueAccounting {
    pub(super) fn new(totals: QueueTotals) -> Self {
        Self {
            totals,
            used: QueueUsage::default(),
            services: HashMap::new(),
            by_depth: BTreeSet::new(),
            by_bytes: BTreeSet::new(),
        }
    }

    pub(super) fn set_totals(&mut self, totals: QueueTotals) {
        self.totals = totals;
    }

    pub(super) fn used(&self) -> QueueUsage {
        self.used
    }

    #[cfg(test)]
    pub(super) fn services(&self) -> usize {
        let ranked = (self.by_depth.len(), self.by_bytes.len());
        assert_eq!(ranked, (self.services.len(), self.services.len()));
        self.services.len()
    }

    /// Accounts `more` to a service: in one of its queues, or as a reservation for an arrival.
    pub(super) fn add(&mut self, service: &ServiceId, queue: Option<QueueKey>, more: QueueUsage) {
        self.used = self.used.plus(more);
        self.change(service, |share| {
            share.held = share.held.plus(more);
            if let Some(key) = queue {
                let held = share.queues.entry(key).or_default();
                *held = held.plus(more);
            }
        });
    }

    /// Reverts an [`add`](Self::add).
    pub(super) fn remove(&mut self, service: &ServiceId, queue: Option<QueueKey>, less: QueueUsage) {
        self.used = self.used.minus(less);
        self.change(service, |share| {
            share.held = share.held.minus(less);
            if let Some(key) = queue
                && let Some(held) = share.queues.get_mut(&key)
            {
                *held = held.minus(less);
                if held.depth == 0 {
                    share.queues.remove(&key);
                }
            }
        });
    }

    /// Moves a queue's usage to another service.
    pub(super) fn transfer(&mut self, queue: QueueKey, from: &ServiceId, to: &ServiceId) {
        let share = self.services.get(from);
        if let Some(&held) = share.and_then(|share| share.queues.get(&queue)) {
            self.remove(from, Some(queue), held);
            self.add(to, Some(queue), held);
        }
    }

    /// Admits an arrival to the queue, or names the queue to evict from: the longest one of the service with
    /// the highest usage of the exhausted bound.
    pub(super) fn decide(&self, want: SpaceRequest<'_>) -> SpaceDecision {
        match self.check_share(want) {
            ShareCheck::Fits => SpaceDecision::Fits,
            ShareCheck::Above => SpaceDecision::Refused,
            ShareCheck::Below(bound, share) => self
                .longest(bound, share)
                .map_or(SpaceDecision::Refused, SpaceDecision::Evict),
        }
    }

    /// Whether an eviction from this service for this arrival is still needed and fair. Time passes between the
    /// decision and its execution.
    pub(super) fn may_evict_from(&self, service: &ServiceId, want: SpaceRequest<'_>) -> bool {
        match self.check_share(want) {
            ShareCheck::Below(bound, share) => self.held(service).of(bound) > share,
            ShareCheck::Fits | ShareCheck::Above => false,
        }
    }

    fn held(&self, service: &ServiceId) -> QueueUsage {
        self.services.get(service).map(|s| s.held).unwrap_or_default()
    }

    fn check_share(&self, want: SpaceRequest<'_>) -> ShareCheck {
        let need = QueueUsage::one(want.bytes);
        let own = self.held(want.service).minus(want.reservation);
        let newcomer = !self.services.contains_key(want.service);
        let sharing = (self.services.len() + usize::from(newcomer)) as u64;
        let mut short = None;
        for bound in [Bound::Depth, Bound::Bytes] {
            let (need, reservation) = (need.of(bound), want.reservation.of(bound));
            let used = self.used.of(bound).saturating_sub(reservation);
            // Reserved space may be taken even while usage exceeds lowered totals: usage does not grow by it,
            // and no waiter is evicted because of a reload.
            if need <= reservation || used.saturating_add(need) <= self.total(bound) {
                continue;
            }
            // Shares are rounded down to whole places: an eviction never lifts a service above its share, so no
            // two services can evict each other's waiters in turns.
            let share = self.total(bound) / sharing;
            if own.of(bound).saturating_add(need) > share {
                return ShareCheck::Above;
            }
            short = short.or(Some(ShareCheck::Below(bound, share)));
        }
        short.unwrap_or(ShareCheck::Fits)
    }

    /// Evicts only from services above their share. There always is one, unless its usage is already reserved
    /// for arrivals that are on their way in.
    fn longest(&self, bound: Bound, share: u64) -> Option<QueueKey> {
        let ranked = self.ranked(bound).iter().rev();
        let above = ranked.take_while(|(held, _)| *held > share);
        above
            .filter_map(|(_, service)| self.services.get(service)?.longest(bound))
            .next()
    }

    fn total(&self, bound: Bound) -> u64 {
        match bound {
            Bound::Depth => self.totals.depth as u64,
            Bound::Bytes => self.totals.bytes,
        }
    }

    fn ranked(&self, bound: Bound) -> &BTreeSet<(u64, ServiceId)> {
        match bound {
            Bound::Depth => &self.by_depth,
            Bound::Bytes => &self.by_bytes,
        }
    }

    /// Changes a service's usage and its ranks together.
    fn change(&mut self, service: &ServiceId, change: impl FnOnce(&mut ServiceUsage)) {
        let share = self.services.entry(service.clone()).or_default();
        let before = share.held;
        change(share);
        let after = share.held;
        if after.depth == 0 {
            self.services.remove(service);
        }
        for bound in [Bound::Depth, Bound::Bytes] {
            let ranks = match bound {
                Bound::Depth => &mut self.by_depth,
                Bound::Bytes => &mut self.by_bytes,
            };
            if before.depth > 0 {
                ranks.remove(&(before.of(bound), service.clone()));
            }
            if after.depth > 0 {
                ranks.insert((after.of(bound), service.clone()));
            }
        }
    }
}

impl ServiceUsage {
    fn longest(&self, bound: Bound) -> Option<QueueKey> {
        let queues = self.queues.iter().map(|(key, held)| (held.of(bound), *key));
        queues.filter(|(held, _)| *held > 0).max().map(|(_, key)| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> ServiceId {
        ServiceId::parse("default", name).expect("a name")
    }

    fn empty(depth: usize, bytes: u64) -> QueueAccounting {
        QueueAccounting::new(QueueTotals { depth, bytes })
    }

    fn fill(accounting: &mut QueueAccounting, name: &str, queue: u64, waiters: usize, bytes: u64) {
        for _ in 0..waiters {
            accounting.add(&service(name), Some(QueueKey(queue)), QueueUsage::one(bytes));
        }
    }

    fn ask(accounting: &QueueAccounting, name: &str, bytes: u64) -> SpaceDecision {
        accounting.decide(SpaceRequest {
            service: &service(name),
            bytes,
            reservation: QueueUsage::default(),
        })
    }

    #[test]
    fn below_its_share_a_service_evicts_and_at_its_share_it_is_refused() {
        let mut accounting = empty(10, 1_000);
        fill(&mut accounting, "flood", 1, 10, 1);
        assert_eq!(ask(&accounting, "flood", 1), SpaceDecision::Refused);
        for had in 0..5 {
            assert_eq!(
                ask(&accounting, "quiet", 1),
                SpaceDecision::Evict(QueueKey(1)),
                "{had}"
            );
            accounting.remove(&service("flood"), Some(QueueKey(1)), QueueUsage::one(1));
            assert_eq!(ask(&accounting, "quiet", 1), SpaceDecision::Fits);
            fill(&mut accounting, "quiet", 2, 1, 1);
        }
        assert_eq!(ask(&accounting, "quiet", 1), SpaceDecision::Refused);
        assert_eq!(ask(&accounting, "flood", 1), SpaceDecision::Refused);
        // A third service makes the shares smaller: three each, and one place beyond them.
        assert!(matches!(ask(&accounting, "third", 1), SpaceDecision::Evict(_)));
    }

    #[test]
    fn bytes_are_shared_like_places() {
        let mut accounting = empty(100, 1_000);
        fill(&mut accounting, "many", 1, 20, 5);
        fill(&mut accounting, "big", 2, 3, 300);
        assert_eq!(ask(&accounting, "quiet", 333), SpaceDecision::Evict(QueueKey(2)));
        assert_eq!(
            ask(&accounting, "quiet", 334),
            SpaceDecision::Refused,
            "more than a third"
        );
        assert_eq!(ask(&accounting, "quiet", 0), SpaceDecision::Fits);
        assert_eq!(ask(&accounting, "quiet", u64::MAX), SpaceDecision::Refused);
    }

    #[test]
    fn the_share_is_a_services_and_its_longest_queue_gives_way() {
        let mut accounting = empty(12, 1_000);
        fill(&mut accounting, "one", 1, 5, 1);
        fill(&mut accounting, "two", 2, 3, 1);
        fill(&mut accounting, "two", 3, 4, 1);
        assert_eq!(ask(&accounting, "quiet", 1), SpaceDecision::Evict(QueueKey(3)));
        assert_eq!(ask(&accounting, "two", 1), SpaceDecision::Refused);
        accounting.transfer(QueueKey(3), &service("two"), &service("one"));
        assert_eq!(ask(&accounting, "quiet", 1), SpaceDecision::Evict(QueueKey(1)));
        assert_eq!(accounting.services(), 2);
    }

    #[test]
    fn more_services_than_places_evict_nobody() {
        let mut accounting = empty(2, 1_000);
        fill(&mut accounting, "a", 1, 1, 1);
        fill(&mut accounting, "b", 2, 1, 1);
        assert_eq!(ask(&accounting, "c", 1), SpaceDecision::Refused);
        assert_eq!(ask(&empty(0, 0), "c", 0), SpaceDecision::Refused);
    }

    #[test]
    fn room_that_was_made_belongs_to_its_arrival_even_above_lowered_totals() {
        let mut accounting = empty(4, 100);
        fill(&mut accounting, "flood", 1, 4, 25);
        accounting.set_totals(QueueTotals { depth: 2, bytes: 50 });
        assert_eq!(ask(&accounting, "quiet", 25), SpaceDecision::Evict(QueueKey(1)));
        accounting.remove(&service("flood"), Some(QueueKey(1)), QueueUsage::one(25));
        accounting.add(&service("quiet"), None, QueueUsage::one(25));
        assert_eq!(ask(&accounting, "other", 1), SpaceDecision::Refused);
        let quiet = service("quiet");
        let want = |bytes| SpaceRequest {
            service: &quiet,
            bytes,
            reservation: QueueUsage::one(25),
        };
        assert_eq!(accounting.decide(want(25)), SpaceDecision::Fits);
        assert_eq!(accounting.decide(want(26)), SpaceDecision::Refused);
        assert!(!accounting.may_evict_from(&service("flood"), want(25)));
    }

    #[test]
    fn who_holds_nothing_is_not_in_it() {
        let mut accounting = empty(4, 100);
        fill(&mut accounting, "a", 1, 2, 0);
        fill(&mut accounting, "b", 2, 1, 7);
        assert_eq!(
            (accounting.services(), accounting.used()),
            (2, QueueUsage { depth: 3, bytes: 7 })
        );
        accounting.remove(&service("b"), Some(QueueKey(2)), QueueUsage::one(7));
        accounting.remove(
            &service("a"),
            Some(QueueKey(1)),
            QueueUsage { depth: 2, bytes: 0 },
        );
        assert_eq!(
            (accounting.services(), accounting.used()),
            (0, QueueUsage::default())
        );
    }
}

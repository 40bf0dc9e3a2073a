//! The storm's own account of who holds how much, by plain sums, and what has to hold after every step.

use super::*;

/// How an arrival stands to the bounds, by plain sums.
#[derive(Debug, PartialEq)]
pub(super) enum Standing {
    Fits,
    Below { bytes: bool, share: u64 },
    Above,
}

impl World {
    /// What a service holds: its waiters, and the room made for its arrivals.
    pub(super) fn held(&self, service: usize) -> Held {
        let sides = self.sides.iter().filter(|s| s.service == service).map(queue);
        let rooms = self.limbo.iter().filter(|l| l.came.service == service);
        sum(sides.chain(rooms.map(|l| l.crowded.room.held())))
    }

    pub(super) fn used(&self) -> Held {
        sum((0..self.services).map(|s| self.held(s)))
    }

    /// `loose` is room of a service's that is in no limbo at the moment of asking.
    pub(super) fn standing(
        &self,
        service: usize,
        bytes: u64,
        room: Held,
        loose: Option<(usize, Held)>,
    ) -> Standing {
        let held = |s: usize| {
            let loose = loose.filter(|(of, _)| *of == s).map(|(_, held)| held);
            sum([self.held(s), loose.unwrap_or_default()].into_iter())
        };
        let used = sum((0..self.services).map(held));
        let waits = |s: &usize| *s == service || held(*s).depth > 0;
        let sharing = (0..self.services).filter(waits).count() as u64;
        let mut standing = Standing::Fits;
        for (is_bytes, need, total) in [
            (false, 1, self.totals.depth as u64),
            (true, bytes, self.totals.bytes),
        ] {
            let room = of(room, is_bytes);
            if room >= need || of(used, is_bytes) - room + need <= total {
                continue;
            }
            let share = total / sharing;
            if of(held(service), is_bytes).saturating_sub(room) + need > share {
                return Standing::Above;
            }
            if standing == Standing::Fits {
                standing = Standing::Below {
                    bytes: is_bytes,
                    share,
                };
            }
        }
        standing
    }

    /// The most that a service above its share holds, of those that have a queue.
    pub(super) fn most(&self, bytes: bool, share: u64) -> Option<u64> {
        let queues = self.sides.iter().filter(|s| of(queue(s), bytes) > 0);
        let held = queues.map(|s| of(self.held(s.service), bytes));
        held.filter(|held| *held > share).max()
    }

    pub(super) fn longest_queue(&self, service: usize, bytes: bool) -> Option<u64> {
        let sides = self.sides.iter().filter(|s| s.service == service);
        sides.map(|s| of(queue(s), bytes)).max()
    }

    pub(super) fn check(&self) {
        let used = self.used();
        let booked = self.budget.used();
        assert_eq!((booked.depth, booked.bytes), (used.depth, used.bytes));
        let most = self.totals.depth.max(self.used_before.depth);
        assert!(used.depth <= most, "too many wait: {} of {most}", used.depth);
        let most = self.totals.bytes.max(self.used_before.bytes);
        assert!(used.bytes <= most, "too many bytes: {} of {most}", used.bytes);
        let waiting = (0..self.services).filter(|s| self.held(*s).depth > 0);
        assert_eq!(self.budget.services(), waiting.count());
        let mut here: BTreeSet<u64> = self.limbo.iter().map(|l| l.came.id).collect();
        for side in &self.sides {
            assert_eq!(side.core.queue.len(), side.waiting.len());
            here.extend(side.waiting.values().map(|(id, _)| *id));
        }
        assert_eq!(here, self.unresolved, "somebody was forgotten");
    }
}

pub(super) fn queue(side: &Side) -> Held {
    sum(side.waiting.values().map(|(_, bytes)| Held::one(*bytes)))
}

fn sum(held: impl Iterator<Item = Held>) -> Held {
    held.fold(Held::default(), |a, b| Held {
        depth: a.depth + b.depth,
        bytes: a.bytes + b.bytes,
    })
}

pub(super) fn of(held: Held, bytes: bool) -> u64 {
    if bytes { held.bytes } else { held.depth as u64 }
}

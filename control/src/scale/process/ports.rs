//! Port allocation for local instances.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::RangeInclusive;

/// A round-robin allocator over a range of ports: a port that was just released, or found taken by another program, is not
/// the next one tried.
#[derive(Debug)]
pub(super) struct Ports {
    range: RangeInclusive<u16>,
    next: u16,
    in_use: BTreeSet<u16>,
}

impl Ports {
    /// An allocator that begins at a random port: gateways that share a range on one machine do not collide at its start.
    pub(super) fn new(range: RangeInclusive<u16>, rng: &mut fastrand::Rng) -> Self {
        let next = if range.is_empty() {
            0
        } else {
            rng.u16(range.clone())
        };
        Self {
            range,
            next,
            in_use: BTreeSet::new(),
        }
    }

    /// Changes the range. Allocated ports stay allocated.
    pub(super) fn set_range(&mut self, range: RangeInclusive<u16>, rng: &mut fastrand::Rng) {
        if range != self.range {
            let in_use = std::mem::take(&mut self.in_use);
            *self = Self {
                in_use,
                ..Self::new(range, rng)
            };
        }
    }

    pub(super) fn range(&self) -> &RangeInclusive<u16> {
        &self.range
    }

    /// Allocates the next port that is neither allocated nor in use by another program; `None` when there is none.
    pub(super) fn take(&mut self, is_free: impl Fn(u16) -> bool) -> Option<u16> {
        let (first, last) = (*self.range.start(), *self.range.end());
        for _ in self.range.clone() {
            let port = self.next;
            self.next = if port >= last { first } else { port + 1 };
            if !self.in_use.contains(&port) && is_free(port) {
                self.in_use.insert(port);
                return Some(port);
            }
        }
        None
    }

    /// Marks a port as allocated, by an older gateway.
    pub(super) fn occupy(&mut self, port: u16) {
        self.in_use.insert(port);
    }

    /// Releases a port.
    pub(super) fn release(&mut self, port: u16) {
        self.in_use.remove(&port);
    }
}

/// Whether no program listens on the port now. Another program may bind it before the instance does; then the instance fails
/// with that message, and another port is tried.
pub(super) fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_is_given_out_once_and_in_turn() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut ports = Ports::new(10..=13, &mut rng);
        let mut taken: Vec<u16> = (0..3).filter_map(|_| ports.take(|port| port != 12)).collect();
        taken.sort_unstable();
        assert_eq!(taken, [10, 11, 13]);
        assert_eq!(ports.take(|port| port != 12), None);
        ports.release(11);
        assert_eq!(
            ports.take(|_| true),
            Some(12).filter(|_| ports.next == 13).or(Some(11))
        );
        ports.set_range(20..=20, &mut rng);
        assert_eq!(ports.take(|_| true), Some(20));
        assert_eq!(ports.take(|_| true), None);
    }

    #[test]
    fn the_range_may_end_at_the_last_port() {
        let mut ports = Ports::new(u16::MAX..=u16::MAX, &mut fastrand::Rng::with_seed(1));
        assert_eq!(ports.take(|_| true), Some(u16::MAX));
        assert_eq!(ports.take(|_| true), None);
    }

    #[test]
    fn a_port_that_somebody_listens_on_is_not_free() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(!is_free(port));
        let mut ports = Ports::new(port..=port, &mut fastrand::Rng::with_seed(1));
        assert_eq!(ports.take(is_free), None);
    }
}

//! Which port an instance gets.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::RangeInclusive;

/// Hands out ports of a range in turn, so that one that was just given back, or was taken by
/// somebody else a moment ago, is not the next one tried.
#[derive(Debug)]
pub(super) struct Ports {
    range: RangeInclusive<u16>,
    next: u16,
    in_use: BTreeSet<u16>,
}

impl Ports {
    /// Begins at a random place: several gateways on one machine share a range without meeting
    /// at its start.
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

    /// From now on takes ports from another range; what was given out stays given out.
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

    /// The next port that is neither given out nor taken by somebody else.
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

    /// It was given out by another gateway.
    pub(super) fn occupy(&mut self, port: u16) {
        self.in_use.insert(port);
    }

    pub(super) fn give_back(&mut self, port: u16) {
        self.in_use.remove(&port);
    }
}

/// Whether nobody listens there now. Between this and the instance's own bind somebody may come;
/// then the instance says so and another port is tried.
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
        ports.give_back(11);
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

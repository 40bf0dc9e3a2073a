//! How often something may happen: a supply that time and work fill up.

use std::time::{Duration, Instant};

/// The time in which an empty supply is full again.
const REFILL: Duration = Duration::from_secs(10);

/// A supply of at most `most`, full at first. It comes back within ten seconds, or sooner by [`earn`](Self::earn).
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    left: u32,
    most: u32,
    /// Up to when time was paid out.
    paid: Instant,
}

impl Allowance {
    /// A full supply.
    pub fn new(most: u32, now: Instant) -> Self {
        Self {
            left: most,
            most,
            paid: now,
        }
    }

    /// Takes one; false when there is none left. `now` is asked only when the supply is empty.
    pub fn spend(&mut self, now: impl FnOnce() -> Instant) -> bool {
        if self.left == 0 {
            self.refill(now());
        }
        let some = self.left > 0;
        self.left = self.left.saturating_sub(1);
        some
    }

    /// Puts some back.
    pub fn earn(&mut self, some: u32) {
        self.left = self.left.saturating_add(some).min(self.most);
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.paid);
        let due = u128::from(self.most) * passed.as_micros() / REFILL.as_micros();
        if due > 0 {
            self.earn(u32::try_from(due).unwrap_or(u32::MAX));
            self.paid = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_what_time_and_work_bring_back() {
        let start = Instant::now();
        let mut supply = Allowance::new(100, start);
        assert!((0..100).all(|_| supply.spend(|| start)));
        assert!(!supply.spend(|| start));
        let later = start + Duration::from_secs(1);
        assert_eq!((0..100).filter(|_| supply.spend(|| later)).count(), 10);
        supply.earn(3);
        assert_eq!((0..100).filter(|_| supply.spend(|| later)).count(), 3);
        supply.earn(u32::MAX);
        assert_eq!((0..200).filter(|_| supply.spend(|| later)).count(), 100);
        let much_later = later + Duration::from_secs(1_000_000);
        assert_eq!((0..200).filter(|_| supply.spend(|| much_later)).count(), 100);
    }

    #[test]
    fn steps_too_small_for_one_lose_no_time() {
        let start = Instant::now();
        let mut supply = Allowance::new(10, start);
        while supply.spend(|| start) {}
        let got = (1..=100)
            .filter(|n| supply.spend(|| start + Duration::from_millis(100) * *n))
            .count();
        assert_eq!(got, 10, "ten in ten seconds, asked a hundred times");
    }

    #[test]
    fn a_supply_of_none_gives_none() {
        let start = Instant::now();
        let mut supply = Allowance::new(0, start);
        assert!(!supply.spend(|| start + Duration::from_secs(100)));
    }
}

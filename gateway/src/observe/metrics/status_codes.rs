//! Counters by status code.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::stripes::Stripes;

type Class = Box<[AtomicU64; 100]>;

/// One counter per status 100 to 999 and one for 0, "no answer"; striped by thread, as every request counts.
#[derive(Debug, Default)]
pub(super) struct StatusCodes(Stripes<Stripe>);

/// A class of statuses takes memory with its first request: a revision usually sees one or two classes.
#[derive(Debug, Default)]
struct Stripe {
    none: AtomicU64,
    classes: [OnceLock<Class>; 9],
}

impl StatusCodes {
    /// Counts one; a number that is no status counts as "no answer".
    pub(super) fn add(&self, code: u16) {
        let stripe = self.0.mine();
        let (class, rest) = (usize::from(code / 100), usize::from(code % 100));
        let counter = match class.checked_sub(1).and_then(|i| stripe.classes.get(i)) {
            Some(class) => &class.get_or_init(|| Box::new([const { AtomicU64::new(0) }; 100]))[rest],
            None => &stripe.none,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Calls `each` with every code that occurred and its count.
    pub(super) fn for_each(&self, mut each: impl FnMut(u16, u64)) {
        let none = self.0.iter().map(|stripe| stripe.none.load(Ordering::Relaxed));
        let none: u64 = none.sum();
        if none > 0 {
            each(0, none);
        }
        for hundreds in 1..=9u16 {
            let mut sums = [0; 100];
            let classes = self
                .0
                .iter()
                .map(|stripe| &stripe.classes[usize::from(hundreds) - 1]);
            for class in classes.filter_map(OnceLock::get) {
                for (sum, counter) in sums.iter_mut().zip(class.iter()) {
                    *sum += counter.load(Ordering::Relaxed);
                }
            }
            for (rest, sum) in (0u16..).zip(sums) {
                if sum > 0 {
                    each(hundreds * 100 + rest, sum);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_its_place() {
        let codes = StatusCodes::default();
        for code in [0, 99, 100, 200, 200, 499, 999, 1000, u16::MAX] {
            codes.add(code);
        }
        let mut seen = Vec::new();
        codes.for_each(|code, count| seen.push((code, count)));
        assert_eq!(seen, [(0, 4), (100, 1), (200, 2), (499, 1), (999, 1)]);
    }
    #[test]
    fn threads_add_up() {
        let codes = StatusCodes::default();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..1_000).for_each(|n| codes.add(if n % 10 == 0 { 503 } else { 200 })));
            }
        });
        let mut seen = Vec::new();
        codes.for_each(|code, count| seen.push((code, count)));
        assert_eq!(seen, [(200, 7_200), (503, 800)]);
    }
}

//! Counters by status code.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

type Class = Box<[AtomicU64; 100]>;

/// One counter per status 100 to 999 and one for 0, "no answer". A class of statuses takes memory
/// once it occurs: a revision usually sees one or two.
#[derive(Debug, Default)]
pub(super) struct Codes {
    none: AtomicU64,
    classes: [OnceLock<Class>; 9],
}

impl Codes {
    /// Counts one; a number that is no status counts as "no answer".
    pub(super) fn add(&self, code: u16) {
        let (class, rest) = (usize::from(code / 100), usize::from(code % 100));
        let counter = match class.checked_sub(1).and_then(|i| self.classes.get(i)) {
            Some(class) => &class.get_or_init(|| Box::new([const { AtomicU64::new(0) }; 100]))[rest],
            None => &self.none,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Calls `each` with every code that occurred and its count.
    pub(super) fn for_each(&self, mut each: impl FnMut(u16, u64)) {
        let mut visit = |code, counter: &AtomicU64| match counter.load(Ordering::Relaxed) {
            0 => {}
            count => each(code, count),
        };
        visit(0, &self.none);
        for (hundreds, class) in (1u16..).zip(&self.classes) {
            for (rest, counter) in (0u16..).zip(class.get().into_iter().flat_map(|c| c.iter())) {
                visit(hundreds * 100 + rest, counter);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_its_place() {
        let codes = Codes::default();
        for code in [0, 99, 100, 200, 200, 499, 999, 1000, u16::MAX] {
            codes.add(code);
        }
        let mut seen = Vec::new();
        codes.for_each(|code, count| seen.push((code, count)));
        assert_eq!(seen, [(0, 4), (100, 1), (200, 2), (499, 1), (999, 1)]);
    }
}

//! Hash-consing: equal values share one `Arc`, with a bounded memory of values.

use std::collections::VecDeque;
use std::sync::Arc;

/// Values that are remembered. Far more than a configuration has that repeats itself; one that does not is
/// looked through in vain this often.
const REMEMBERED: usize = 32;

/// Gives equal values one `Arc`, as far as it remembers them. What it gives has the same content with it and
/// without: it only saves memory.
#[derive(Debug)]
pub(crate) struct Shared<T>(VecDeque<Arc<T>>);

// By hand: a derived one would ask the same of what is shared.
impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T: PartialEq> Shared<T> {
    pub(crate) fn one(&mut self, value: T) -> Arc<T> {
        if let Some(known) = self.0.iter().find(|known| ***known == value) {
            return Arc::clone(known);
        }
        if self.0.len() == REMEMBERED {
            self.0.pop_back();
        }
        self.0.push_front(Arc::new(value));
        Arc::clone(&self.0[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_and_old_ones_are_forgotten() {
        let mut shared = Shared::default();
        let first = shared.one(0);
        assert!(Arc::ptr_eq(&first, &shared.one(0)));
        for n in 1..=REMEMBERED {
            assert_eq!(*shared.one(n), n);
        }
        let again = shared.one(0);
        assert_eq!(again, first);
        assert!(!Arc::ptr_eq(&first, &again));
    }
}

//! The bound on the rate of all probes together.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// 8,000 probes a second: four starting instances each get their probe every 2 ms with half of it
/// to spare, and a thousand are still probed eight times a second each.
const INTERVAL: Duration = Duration::from_micros(125);

/// Hands out start times, first come first served, at least [`INTERVAL`] apart.
///
/// It paces starts rather than limiting how many run at once: probes that hang until their timeout
/// must not slow down the others.
#[derive(Debug, Default)]
pub(crate) struct Pacer {
    next: Mutex<Option<Instant>>,
}

impl Pacer {
    /// When the next probe may start.
    pub(crate) fn reserve(&self, now: Instant) -> Instant {
        let mut next = self.next.lock();
        let at = next.map_or(now, |next| next.max(now));
        *next = Some(at + INTERVAL);
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_spread_and_idle_time_is_not_saved_up() {
        let pacer = Pacer::default();
        let t0 = Instant::now();
        assert_eq!(pacer.reserve(t0), t0);
        assert_eq!(pacer.reserve(t0), t0 + INTERVAL);
        assert_eq!(pacer.reserve(t0), t0 + 2 * INTERVAL);
        let later = t0 + Duration::from_secs(1);
        assert_eq!(pacer.reserve(later), later);
        assert_eq!(pacer.reserve(later), later + INTERVAL);
    }
}

//! How slowly a body may come.

use std::time::Duration;

/// Patience with a sender: waiting uses it up, bytes restore it.
///
/// With a rate, a second of waiting costs a second and a byte restores its share of one, so a sender below the
/// rate runs out of patience in the end however regularly its bytes come. Without, any byte restores all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    left: Duration,
    most: Duration,
    /// Bytes a second.
    rate: Option<u64>,
}

impl Pace {
    /// Full patience; `rate` is in bytes a second.
    pub fn new(patience: Duration, rate: Option<u64>) -> Self {
        Self {
            left: patience,
            most: patience,
            rate: rate.filter(|rate| *rate > 0),
        }
    }

    /// How much longer to wait for the next byte.
    pub fn patience(&self) -> Duration {
        self.left
    }

    /// Bytes came after so much waiting.
    pub fn moved(&mut self, waited: Duration, bytes: u64) {
        let earned = match self.rate {
            None => self.most,
            Some(rate) => Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate),
        };
        self.left = self
            .left
            .saturating_sub(waited)
            .saturating_add(earned)
            .min(self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_sender_below_the_rate_runs_out_and_one_at_it_does_not() {
        let mut slow = Pace::new(S * 10, Some(100));
        let mut seconds = 0;
        while slow.patience() > S {
            slow.moved(S, 10);
            seconds += 1;
        }
        assert_eq!(seconds, 10, "nine tenths of a second go each second");
        let mut steady = Pace::new(S * 10, Some(100));
        for _ in 0..1000 {
            steady.moved(S, 100);
        }
        assert_eq!(steady.patience(), S * 10);
    }

    #[test]
    fn a_fast_start_buys_no_more_than_the_full_patience() {
        let mut pace = Pace::new(S * 10, Some(100));
        pace.moved(Duration::ZERO, u64::MAX);
        assert_eq!(pace.patience(), S * 10);
    }

    #[test]
    fn without_a_rate_any_byte_will_do() {
        for rate in [None, Some(0)] {
            let mut pace = Pace::new(S * 10, rate);
            pace.moved(S * 9, 1);
            assert_eq!(pace.patience(), S * 10);
        }
    }
}

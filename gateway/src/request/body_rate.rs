//! Minimum data rate of a request body.

use std::time::Duration;

use crate::token_bucket::TokenBucket;

/// Enforces read timeout and minimum rate of a request body: a token bucket of time, in nanoseconds. Waiting for the
/// client takes from it, bytes put back into it.
///
/// With a rate, a byte puts back the time that it may take by the rate: a sender below the rate empties the bucket in the
/// end, however regularly its bytes come. Without a rate, any byte fills the bucket: a plain read timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyRate {
    left: TokenBucket,
    /// Bytes a second.
    rate: Option<u64>,
}

impl BodyRate {
    /// With all of `timeout` left; `rate` is in bytes a second, 0 is none.
    pub fn new(timeout: Duration, rate: Option<u64>) -> Self {
        let timeout = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        Self {
            left: TokenBucket::without_refill(timeout),
            rate: rate.filter(|rate| *rate > 0),
        }
    }

    /// How much longer to wait for the next byte.
    pub fn time_left(&self) -> Duration {
        Duration::from_nanos(self.left.tokens())
    }

    /// Bytes came after so much waiting.
    pub fn received(&mut self, waited: Duration, bytes: u64) {
        self.left
            .drain(u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX));
        self.left.deposit(match self.rate {
            None => u64::MAX,
            Some(rate) => bytes.saturating_mul(1_000_000_000) / rate,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_sender_below_the_rate_runs_out_and_one_at_it_does_not() {
        let mut slow = BodyRate::new(S * 10, Some(100));
        let mut seconds = 0;
        while slow.time_left() > S {
            slow.received(S, 10);
            seconds += 1;
        }
        assert_eq!(seconds, 10, "nine tenths of a second go each second");
        let mut steady = BodyRate::new(S * 10, Some(100));
        for _ in 0..1000 {
            steady.received(S, 100);
        }
        assert_eq!(steady.time_left(), S * 10);
    }

    #[test]
    fn a_fast_start_buys_no_more_than_the_whole_timeout() {
        let mut rate = BodyRate::new(S * 10, Some(100));
        rate.received(Duration::ZERO, u64::MAX);
        assert_eq!(rate.time_left(), S * 10);
    }

    #[test]
    fn without_a_rate_any_byte_will_do() {
        for rate in [None, Some(0)] {
            let mut rate = BodyRate::new(S * 10, rate);
            rate.received(S * 9, 1);
            assert_eq!(rate.time_left(), S * 10);
        }
    }
}

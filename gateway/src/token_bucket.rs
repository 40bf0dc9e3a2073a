//! Token bucket: the one rate limiter, for log lines, probes, HTTP/2 frames and slow request bodies.
//!
//! Pure: the caller passes the time in. Integers only, so that no token is lost or made by rounding. What a token
//! stands for (a line, a probe, a frame, a nanosecond) is the caller's.

use std::time::{Duration, Instant};

/// A bucket of at most `capacity` tokens, full at first.
///
/// Time refills it at an even rate, unless it was made [`without_refill`](Self::without_refill); deposits refill it, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TokenBucket {
    tokens: u64,
    capacity: u64,
    refill: Option<Refill>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Refill {
    /// Nanoseconds in which an empty bucket becomes full.
    period: u64,
    /// Time up to here was turned into tokens. In the future while tokens are reserved that are still to come.
    until: Instant,
}

impl TokenBucket {
    /// A full bucket that time refills: from empty to full in `period`, which is rounded down to nanoseconds that fit
    /// 64 bits (584 years).
    pub(crate) fn new(capacity: u64, period: Duration, now: Instant) -> Self {
        let period = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX);
        Self {
            tokens: capacity,
            capacity,
            refill: Some(Refill { period, until: now }),
        }
    }

    /// A full bucket that only deposits refill.
    pub(crate) fn without_refill(capacity: u64) -> Self {
        Self {
            tokens: capacity,
            capacity,
            refill: None,
        }
    }

    /// Tokens in the bucket, without what time has brought since the last refill.
    pub(crate) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Takes one token; `false` when there is none. Reads the clock only when the bucket is empty: most takes on a warm
    /// path need no time.
    pub(crate) fn try_take(&mut self, now: impl FnOnce() -> Instant) -> bool {
        if self.tokens == 0 {
            self.refill(now());
        }
        let some = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        some
    }

    /// Takes one token, if need be one that is still to come, and returns when it is there: `now`, or later. Reservations
    /// queue up without a bound; each is one token's time after the one before it.
    ///
    /// A bucket that nothing refills, or that holds nothing, has every token at once.
    pub(crate) fn reserve(&mut self, now: Instant) -> Instant {
        if self.try_take(|| now) {
            return now;
        }
        match &mut self.refill {
            Some(refill) if self.capacity > 0 => {
                refill.until += Duration::from_nanos(refill.period.div_ceil(self.capacity));
                refill.until.max(now)
            }
            _ => now,
        }
    }

    /// Takes so many tokens, or as many as there are.
    pub(crate) fn drain(&mut self, tokens: u64) {
        self.tokens = self.tokens.saturating_sub(tokens);
    }

    /// Puts tokens in; what is beyond the capacity is lost.
    pub(crate) fn deposit(&mut self, tokens: u64) {
        self.tokens = self.tokens.saturating_add(tokens).min(self.capacity);
    }

    /// Turns the time since the last refill into tokens. Time for less than one token counts with the next refill.
    fn refill(&mut self, now: Instant) {
        let Some(refill) = &mut self.refill else {
            return;
        };
        let (capacity, period) = (u128::from(self.capacity), u128::from(refill.period));
        // Time beyond the period brings nothing, and the product stays within 128 bits.
        let passed = now.saturating_duration_since(refill.until).as_nanos().min(period);
        let due = (capacity * passed).checked_div(period).unwrap_or(capacity);
        if due >= u128::from(self.capacity - self.tokens) {
            // Full: time beyond that is not saved up.
            self.tokens = self.capacity;
            refill.until = refill.until.max(now);
        } else if due > 0 {
            self.tokens += u64::try_from(due).expect("less than what is missing");
            // Rounded up: a bucket may be a nanosecond late, never early.
            let spent = (due * period).div_ceil(capacity);
            refill.until += Duration::from_nanos(u64::try_from(spent).expect("no more than the period"));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn taken(bucket: &mut TokenBucket, tries: usize, now: Instant) -> usize {
        (0..tries).filter(|_| bucket.try_take(|| now)).count()
    }

    #[test]
    fn a_burst_is_taken_at_once_then_what_time_and_deposits_bring() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(100, S * 10, start);
        assert_eq!(taken(&mut bucket, 200, start), 100);
        assert_eq!(taken(&mut bucket, 200, start + S), 10);
        bucket.deposit(3);
        assert_eq!(taken(&mut bucket, 200, start + S), 3);
        bucket.deposit(u64::MAX);
        assert_eq!(taken(&mut bucket, 200, start + S), 100);
        let much_later = start + S * 1_000_000;
        assert_eq!(
            taken(&mut bucket, 200, much_later),
            100,
            "rest adds up to one burst"
        );
    }

    #[test]
    fn a_take_from_a_bucket_that_is_not_empty_reads_no_clock() {
        let mut bucket = TokenBucket::new(2, S, Instant::now());
        assert!(bucket.try_take(|| unreachable!()) && bucket.try_take(|| unreachable!()));
    }

    #[test]
    fn steps_too_small_for_a_token_lose_no_time() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(10, S * 10, start);
        assert_eq!(taken(&mut bucket, 10, start), 10);
        let asked = (1..=1_000).map(|n| start + S / 100 * n);
        let got = asked.filter(|now| bucket.try_take(|| *now)).count();
        assert_eq!(got, 10, "ten in ten seconds, asked a thousand times");
    }

    #[test]
    fn reservations_are_spread_and_rest_is_not_saved_up() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(1, S, start);
        let got = [(); 3].map(|()| bucket.reserve(start) - start);
        assert_eq!(got, [Duration::ZERO, S, S * 2]);
        let later = start + S * 60;
        assert_eq!(bucket.reserve(later), later);
        assert_eq!(bucket.reserve(later), later + S);
        assert!(!bucket.try_take(|| later + S), "that token is reserved");
        assert!(bucket.try_take(|| later + S * 2));
    }

    #[test]
    fn without_refill_only_deposits_count() {
        let later = Instant::now() + S * 1_000;
        let mut bucket = TokenBucket::without_refill(5);
        bucket.drain(3);
        assert_eq!(bucket.tokens(), 2);
        bucket.drain(3);
        assert!(!bucket.try_take(|| later));
        bucket.deposit(u64::MAX);
        assert_eq!(bucket.tokens(), 5);
    }

    #[test]
    fn a_bucket_of_nothing_gives_nothing() {
        let start = Instant::now();
        for period in [Duration::ZERO, S, Duration::MAX] {
            let mut bucket = TokenBucket::new(0, period, start);
            bucket.deposit(7);
            assert!(!bucket.try_take(|| start + S * 1_000));
            assert_eq!(bucket.reserve(start), start);
        }
        assert!(TokenBucket::new(1, Duration::ZERO, start).try_take(|| start));
    }

    proptest! {
        /// From the start to any point of time, no more is taken than a burst and the refill of that time.
        #[test]
        fn never_more_than_burst_and_rate(
            capacity in 1_u64..2_000,
            period in 1_u64..100_000_000_000,
            steps in prop::collection::vec((0_u64..2_000_000_000, 0_usize..50), 1..100),
        ) {
            let start = Instant::now();
            let mut bucket = TokenBucket::new(capacity, Duration::from_nanos(period), start);
            let (mut passed, mut got) = (0_u64, 0_u64);
            for (nanos, tries) in steps {
                passed += nanos;
                let now = start + Duration::from_nanos(passed);
                got += taken(&mut bucket, tries, now) as u64;
                let most = u128::from(capacity) + u128::from(passed) * u128::from(capacity) / u128::from(period);
                prop_assert!(u128::from(got) <= most, "{got} of {most}");
                prop_assert!(bucket.tokens() <= capacity);
            }
        }

        /// Reservations come in order, none before it is asked for, and at no higher a rate than the bucket's.
        #[test]
        fn reservations_keep_the_rate(
            capacity in 1_u64..10,
            period in 1_u64..10_000_000_000,
            steps in prop::collection::vec(0_u64..3_000_000_000, 1..100),
        ) {
            let start = Instant::now();
            let mut bucket = TokenBucket::new(capacity, Duration::from_nanos(period), start);
            let (mut now, mut last) = (start, start);
            for (n, nanos) in (0_u32..).zip(steps) {
                now += Duration::from_nanos(nanos);
                let at = bucket.reserve(now);
                prop_assert!(at >= now && at >= last);
                let beyond = u64::from(n + 1).saturating_sub(capacity);
                let least = u128::from(beyond) * u128::from(period) / u128::from(capacity);
                prop_assert!((at - start).as_nanos() >= least, "the {n}th came too early");
                last = at;
            }
        }
    }
}

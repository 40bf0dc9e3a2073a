//! Load meter: the exact time integral of a revision's concurrency.

use std::time::Instant;

/// Integrates requests × time between samples. The owner passes the concurrency in.
#[derive(Debug)]
pub(crate) struct LoadMeter {
    since: Instant,
    last: Instant,
    /// Requests × nanoseconds.
    area: u128,
    requests: u64,
}

impl LoadMeter {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            since: now,
            last: now,
            area: 0,
            requests: 0,
        }
    }

    /// Integrates the time since the last call, during which `held` requests were held. Called before every
    /// change of that number. A clock reading older than the last one, as two threads may bring them, counts as
    /// the last one.
    pub(crate) fn advance(&mut self, held: u64, now: Instant) {
        let elapsed = now.saturating_duration_since(self.last);
        if !elapsed.is_zero() {
            self.area += u128::from(held) * elapsed.as_nanos();
            self.last = now;
        }
    }

    /// Backdates the start of the present sample to `since`, from when on nothing was held.
    pub(crate) fn idle_since(&mut self, since: Instant) {
        self.since = since.min(self.last);
    }

    pub(crate) fn arrived(&mut self) {
        self.requests += 1;
    }

    /// Average of held requests and number of arrivals since the last [`reset`](Self::reset).
    pub(crate) fn read(&self, held: u64) -> (f64, u64) {
        let span = self.last.saturating_duration_since(self.since).as_nanos();
        #[allow(clippy::cast_precision_loss)] // 53 bits are plenty for an average.
        let average = if span == 0 {
            held as f64
        } else {
            self.area as f64 / span as f64
        };
        (average, self.requests)
    }

    pub(crate) fn reset(&mut self) {
        self.since = self.last;
        self.area = 0;
        self.requests = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn integrates_over_time_not_over_events() {
        let t0 = Instant::now();
        let at = |ms| t0 + Duration::from_millis(ms);
        let mut meter = LoadMeter::new(t0);
        meter.arrived();
        meter.advance(0, at(100));
        meter.advance(4, at(200));
        meter.advance(1, at(400));
        // 0×100 + 4×100 + 1×200 over 400 ms.
        assert_eq!(meter.read(1), (1.5, 1));
        meter.reset();
        assert_eq!(meter.read(3), (3.0, 0));
        meter.advance(2, at(300));
        assert_eq!(meter.read(2), (2.0, 0), "an older reading changes nothing");
        let mut late = LoadMeter::new(at(300));
        late.idle_since(t0);
        late.advance(4, at(400));
        assert_eq!(late.read(4), (1.0, 0));
    }
}

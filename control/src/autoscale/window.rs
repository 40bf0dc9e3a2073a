//! Averages over a window of seconds: a ring of one-second buckets.

use std::time::Duration;

/// Buckets hold whole millionths: sums are exact, so that an empty window averages to exactly 0 after any additions and
/// removals. Knative rounds its averages to the same six places.
const SCALE: f64 = 1e6;

/// The weight that a whole window of the exponential average adds up to.
const EXPONENTIAL_MASS: f64 = 0.9999;

/// The least weight of the newest second in the exponential average.
const EXPONENTIAL_FLOOR: f64 = 0.2;

/// A ring of one bucket for each second of a window.
#[derive(Debug, Clone)]
pub struct TimedBuckets {
    /// The value of second `s` is at `s % len`, in millionths.
    buckets: Vec<u64>,
    total: u64,
    written: Option<Written>,
}

/// The seconds first and last written to since the ring was empty.
#[derive(Debug, Clone, Copy)]
struct Written {
    first: u64,
    last: u64,
}

impl TimedBuckets {
    /// An empty ring over `window`, rounded up to whole seconds, at least one.
    pub fn new(window: Duration) -> Self {
        Self {
            buckets: vec![0; seconds(window)],
            total: 0,
            written: None,
        }
    }

    /// Adds a value to the second of `at`. A second older than the window is ignored.
    pub fn record(&mut self, at: Duration, value: f64) {
        let second = at.as_secs();
        let len = self.len();
        let written = match self.written {
            Some(w) if second <= w.last => {
                if second + len <= w.last {
                    return;
                }
                Written {
                    first: w.first.min(second),
                    last: w.last,
                }
            }
            Some(w) if second - w.last < len => {
                for passed in w.last + 1..=second {
                    let old = std::mem::take(self.bucket_mut(passed));
                    self.total -= old;
                }
                Written { last: second, ..w }
            }
            _ => {
                self.clear();
                Written {
                    first: second,
                    last: second,
                }
            }
        };
        self.written = Some(written);
        let value = millionths(value);
        *self.bucket_mut(second) += value;
        self.total += value;
    }

    /// The mean of the recorded seconds at `now`. Seconds after the last record are not zeros, they only shorten the window. 0
    /// once all records are older than the window.
    pub fn average(&self, now: Duration) -> f64 {
        let Some(w) = self.written else { return 0.0 };
        let len = self.len();
        let passed = now.as_secs().saturating_sub(w.last);
        if passed >= len {
            return 0.0;
        }
        let stale: u64 = (w.last + 1..=w.last + passed).map(|s| self.bucket(s)).sum();
        let span = (w.last - w.first + 1).min(len - passed);
        units(self.total - stale) / to_f64(span)
    }

    /// The exponentially weighted mean at `now`, Knative's `weighted-exponential`. Not normalised: the weights of a window that
    /// is not full add up to less than 1.
    pub fn weighted_average(&self, now: Duration) -> f64 {
        self.weighted(now, exponential_coefficient(self.buckets.len()))
    }

    fn weighted(&self, now: Duration, coefficient: f64) -> f64 {
        let Some(w) = self.written else { return 0.0 };
        let len = self.len();
        let now = now.as_secs().max(w.last);
        if now - w.last >= len {
            return 0.0;
        }
        let oldest = (now + 1).saturating_sub(len).max(w.first);
        let mut weight = coefficient * (1.0 - coefficient).powi((now - w.last) as i32);
        let mut sum = 0.0;
        for second in (oldest..=w.last).rev() {
            sum += units(self.bucket(second)) * weight;
            weight *= 1.0 - coefficient;
        }
        sum
    }

    /// Whether nothing was recorded within the window before `now`.
    pub fn is_empty(&self, now: Duration) -> bool {
        self.written
            .is_none_or(|w| now.as_secs().saturating_sub(w.last) > self.len())
    }

    /// Changes the window and keeps the newest seconds that fit.
    pub fn resize(&mut self, window: Duration, now: Duration) {
        let old_len = self.len();
        let new_len = seconds(window);
        if new_len == self.buckets.len() {
            return;
        }
        let mut resized = Self::new(window);
        if let Some(w) = self.written
            && now.as_secs().saturating_sub(w.last) < old_len
        {
            let kept = old_len.min(resized.len());
            let first = w.first.max((w.last + 1).saturating_sub(kept));
            for second in first..=w.last {
                let value = self.bucket(second);
                *resized.bucket_mut(second) = value;
                resized.total += value;
            }
            resized.written = Some(Written { first, last: w.last });
        }
        *self = resized;
    }

    /// Clears the ring.
    pub fn clear(&mut self) {
        self.buckets.fill(0);
        self.total = 0;
        self.written = None;
    }

    fn len(&self) -> u64 {
        self.buckets.len() as u64
    }

    fn bucket(&self, second: u64) -> u64 {
        self.buckets[(second % self.len()) as usize]
    }

    fn bucket_mut(&mut self, second: u64) -> &mut u64 {
        let at = (second % self.len()) as usize;
        &mut self.buckets[at]
    }
}

fn seconds(window: Duration) -> usize {
    let whole = window.as_secs() + u64::from(window.subsec_nanos() > 0);
    usize::try_from(whole.max(1)).unwrap_or(usize::MAX)
}

/// The bound of one value: above any real load, and keeps the sums of an hour within 64 bits.
const MOST: f64 = 1e9;

/// A negative value or NaN counts as nothing.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn millionths(value: f64) -> u64 {
    let counted = if value > 0.0 { value.min(MOST) } else { 0.0 };
    (counted * SCALE).round() as u64
}

fn units(millionths: u64) -> f64 {
    to_f64(millionths) / SCALE
}

#[allow(clippy::cast_precision_loss)]
fn to_f64(n: u64) -> f64 {
    n as f64
}

fn exponential_coefficient(buckets: usize) -> f64 {
    let nth_root = (1.0 - EXPONENTIAL_MASS).powf(1.0 / to_f64(buckets as u64));
    (1.0 - nth_root).max(EXPONENTIAL_FLOOR)
}

#[cfg(test)]
#[path = "window_tests.rs"]
mod tests;

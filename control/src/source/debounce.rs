//! When a burst of events is over.

use std::time::Duration;

use tokio::time::Instant;

/// Nothing new for this long ends a burst: an editor's write, rename and chmod are one change.
const QUIET: Duration = Duration::from_millis(20);

/// Nothing else for this long after a file was completed, and that is probably all there is.
const COMPLETE_WAIT: Duration = Duration::from_millis(2);

/// A burst counts at the latest after this, so that a storm of events starves nobody.
const MAX_WAIT: Duration = Duration::from_millis(200);

/// A file that is open for writing counts at the latest after this as it is: whoever writes it may
/// never close it.
const MAX_WAIT_WRITING: Duration = Duration::from_secs(2);

/// A burst under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Debounce {
    first: Instant,
    last: Instant,
}

impl Debounce {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            first: now,
            last: now,
        }
    }

    pub(super) fn extend(&mut self, now: Instant) {
        self.last = now;
    }

    /// When to look already: a file was completed, and nothing else happened so far.
    pub(super) fn complete_deadline(&self) -> Instant {
        self.last + COMPLETE_WAIT
    }

    /// When to stop waiting. While a file is open for writing quiet proves nothing: it may have
    /// been cut off and not yet written, or written by half.
    pub(super) fn deadline(&self, being_written: bool) -> Instant {
        if being_written {
            self.first + MAX_WAIT_WRITING
        } else {
            (self.first + MAX_WAIT).min(self.last + QUIET)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_period_ends_a_burst_and_so_does_the_maximum() {
        let start = Instant::now();
        let ms = |n| start + Duration::from_millis(n);
        let mut debounce = Debounce::new(start);
        assert_eq!(debounce.deadline(false), ms(20));
        debounce.extend(ms(15));
        assert_eq!(debounce.deadline(false), ms(35));
        assert_eq!(debounce.deadline(true), ms(2_000));
        debounce.extend(ms(195));
        assert_eq!(debounce.deadline(false), ms(200));
    }
}

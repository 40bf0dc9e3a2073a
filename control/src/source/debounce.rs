//! Debounces file events: deadlines for when a burst of events counts as one change.

use std::time::Duration;

use tokio::time::Instant;

/// Quiet period that ends a burst: an editor's write, rename and chmod are one change.
const QUIET: Duration = Duration::from_millis(20);

/// Shorter quiet period after the completion of a single file, which is probably the whole change.
const COMPLETE_WAIT: Duration = Duration::from_millis(2);

/// Longest time that a burst is held back, so that a storm of events cannot postpone a change for ever.
const MAX_WAIT: Duration = Duration::from_millis(200);

/// Longest time that a burst is held back while a file is open for writing. The file is then read as it is, because its
/// writer may never close the file.
const MAX_WAIT_WRITING: Duration = Duration::from_secs(2);

/// The debounce of one burst of events: the times of its first and last event.
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

    /// The early deadline, for a burst in which one file was completed and nothing else happened.
    pub(super) fn complete_deadline(&self) -> Instant {
        self.last + COMPLETE_WAIT
    }

    /// The deadline of the burst. While a file is open for writing a quiet period proves nothing: the file may be
    /// truncated and not yet written, or half written.
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

//! Deadlines of one request: pure, polled in place by the forwarding engine.

use std::time::{Duration, Instant};

use sluice_model::RevisionTimeouts;

use crate::observe::Timer;

/// The deadlines of one request, and which of them passed first.
#[derive(Debug, Default)]
pub struct Clocks {
    total: Option<Instant>,
    start: Option<Instant>,
    idle: Option<Duration>,
    last_byte: Option<Instant>,
    age: Option<Duration>,
    /// When the stream reaches its maximum age.
    old: Option<Instant>,
    fired: Option<Timer>,
}

impl Clocks {
    /// Sets the deadlines of the whole request and of the response's start, counted from `started`; `own` is
    /// a timeout that the client named.
    pub fn arm(&mut self, timeouts: &RevisionTimeouts, own: Option<Duration>, started: Instant) {
        let total = [timeouts.total, own].into_iter().flatten().min();
        self.total = total.map(|t| started + t);
        self.start = timeouts.response_start.map(|t| started + t);
        self.idle = timeouts.idle;
        self.age = timeouts.max_stream_age;
    }

    /// The deadline while no response head has come.
    pub fn deadline(&self) -> Option<Instant> {
        [self.total, self.start].into_iter().flatten().min()
    }

    /// Starts the idle timeout: a connection to the backend is open.
    pub fn connected(&mut self, now: Instant) {
        self.last_byte = Some(now);
    }

    /// Records the response head: the start deadline is met, and a stream's age begins.
    pub fn head_received(&mut self, now: Instant) {
        self.start = None;
        self.last_byte = Some(now);
        self.old = self.age.map(|age| now + age);
    }

    /// Restarts the idle timeout: bytes moved. `now` is called only where there is an idle timeout.
    pub fn touch(&mut self, now: impl FnOnce() -> Instant) {
        if self.idle.is_some() {
            self.last_byte = Some(now());
        }
    }

    /// Disarms all deadlines. A deadline that has passed stays recorded.
    pub fn stop(&mut self) {
        (self.total, self.start, self.idle, self.old) = (None, None, None, None);
    }

    /// The next deadline, and its timer.
    pub fn next(&self) -> Option<(Instant, Timer)> {
        let idle = self
            .idle
            .zip(self.last_byte)
            .map(|(idle, at)| (at + idle, Timer::Idle));
        let all = [
            self.start.map(|at| (at, Timer::Start)),
            self.total.map(|at| (at, Timer::Total)),
            idle,
            self.old.map(|at| (at, Timer::Age)),
        ];
        all.into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// Disarms the age limit once the stream was asked to end for it.
    pub fn age_noted(&mut self) {
        self.old = None;
    }

    /// The timer that fired, if one did.
    pub fn fired(&self) -> Option<Timer> {
        self.fired
    }

    /// Records a timer as fired. The first one stays.
    pub fn fire(&mut self, timer: Timer) {
        self.fired.get_or_insert(timer);
    }

    /// The timer of a missed [`deadline`](Self::deadline).
    pub fn missed(&self, now: Instant) -> Timer {
        match self.total {
            Some(total) if total <= now => Timer::Total,
            _ => Timer::Start,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn clocks(timeouts: RevisionTimeouts, own: Option<Duration>, now: Instant) -> Clocks {
        let mut clocks = Clocks::default();
        clocks.arm(&timeouts, own, now);
        clocks
    }

    #[test]
    fn the_earliest_deadline_rings() {
        let now = Instant::now();
        let mut clocks = clocks(
            RevisionTimeouts {
                total: Some(S * 10),
                response_start: Some(S * 3),
                idle: Some(S * 5),
                max_stream_age: Some(S),
            },
            Some(S * 8),
            now,
        );
        assert_eq!(clocks.next(), Some((now + S * 3, Timer::Start)));
        assert_eq!(clocks.deadline(), Some(now + S * 3));
        clocks.head_received(now + S);
        assert_eq!(clocks.next(), Some((now + S * 2, Timer::Age)));
        clocks.age_noted();
        assert_eq!(clocks.next(), Some((now + S * 6, Timer::Idle)));
        clocks.touch(|| now + S * 4);
        assert_eq!(clocks.next(), Some((now + S * 8, Timer::Total)));
        clocks.fire(Timer::Total);
        clocks.stop();
        assert_eq!((clocks.next(), clocks.fired()), (None, Some(Timer::Total)));
    }

    #[test]
    fn what_is_not_configured_never_rings() {
        let now = Instant::now();
        let mut clocks = clocks(sluice_model::test_util::no_timeouts(), None, now);
        clocks.connected(now);
        clocks.head_received(now);
        clocks.touch(|| unreachable!("nobody asks for the time"));
        assert_eq!((clocks.next(), clocks.deadline()), (None, None));
    }
}

//! The clocks of one request, shared between the adapter that serves it and the task that waits
//! for it.
//!
//! pingora-proxy has one read timeout for head and body alike, and cannot tell a slow start from
//! a quiet stream. So a request's own future watches these clocks beside the proxying and, when
//! one rings, breaks the upstream connection: before the head that surfaces as an error the
//! adapter answers with 504, after it the client's stream is reset. This needs an upstream
//! connection that carries one request at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sluice_model::RevisionTimeouts;
use tokio::sync::Notify;

use crate::observe::Timer;

/// Something that can be broken from outside: an upstream connection.
pub trait Breakable: Send + Sync {
    /// Ends it at once, both ways.
    fn break_now(&self);
}

/// The clocks of one request.
#[derive(Default)]
pub struct RequestTimers {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    total: Option<Instant>,
    start: Option<Instant>,
    idle: Option<Duration>,
    last_byte: Option<Instant>,
    fired: Option<Timer>,
    cut: bool,
    upstream: Option<Arc<dyn Breakable>>,
}

impl State {
    fn next(&self) -> Option<(Instant, Timer)> {
        let idle = self
            .idle
            .zip(self.last_byte)
            .map(|(idle, at)| (at + idle, Timer::Idle));
        let candidates = [
            self.start.map(|at| (at, Timer::Start)),
            self.total.map(|at| (at, Timer::Total)),
            idle,
        ];
        candidates.into_iter().flatten().min_by_key(|(at, _)| *at)
    }
}

impl RequestTimers {
    /// Sets total and response-start clocks, counted from `started`; `own` is a deadline the
    /// client named.
    pub fn arm(&self, timeouts: &RevisionTimeouts, own: Option<Duration>, started: Instant) {
        let mut state = self.state.lock();
        let total = [timeouts.total, own].into_iter().flatten().min();
        state.total = total.map(|t| started + t);
        state.start = timeouts.response_start.map(|t| started + t);
        state.idle = timeouts.idle;
        drop(state);
        self.changed.notify_one();
    }

    /// The earliest moment at which the request is over while no head has come.
    pub fn deadline(&self) -> Option<Instant> {
        let state = self.state.lock();
        [state.total, state.start].into_iter().flatten().min()
    }

    /// Names the connection to break when a clock rings; breaks it now if one has rung already.
    pub fn upstream(&self, upstream: Option<Arc<dyn Breakable>>, now: Instant) {
        let mut state = self.state.lock();
        state.upstream = upstream;
        if state.idle.is_some() {
            state.last_byte = Some(now);
        }
        if (state.fired.is_some() || state.cut)
            && let Some(upstream) = &state.upstream
        {
            upstream.break_now();
        }
        drop(state);
        self.changed.notify_one();
    }

    /// The response head came: its clock stops.
    pub fn head_received(&self) {
        self.state.lock().start = None;
    }

    /// The exchange is over as far as clocks go: the answer is complete, or what follows has
    /// bounds of its own. A clock that has rung stays rung.
    pub fn stop(&self) {
        let mut state = self.state.lock();
        (state.total, state.start, state.idle) = (None, None, None);
        state.upstream = None;
        drop(state);
        self.changed.notify_one();
    }

    /// Breaks the upstream connection, and any to come, though no clock rang: the gateway ends.
    pub fn cut(&self) {
        let mut state = self.state.lock();
        state.cut = true;
        if let Some(upstream) = state.upstream.take() {
            upstream.break_now();
        }
    }

    /// Whether it was [`cut`](Self::cut).
    pub fn was_cut(&self) -> bool {
        self.state.lock().cut
    }

    /// Bytes went either way.
    pub fn touch(&self, now: Instant) {
        let mut state = self.state.lock();
        if state.idle.is_some() {
            state.last_byte = Some(now);
        }
    }

    /// The clock that rang, if one did.
    pub fn fired(&self) -> Option<Timer> {
        self.state.lock().fired
    }

    /// Marks a clock as having rung, for the adapter that noticed a deadline by itself.
    pub fn fire(&self, timer: Timer) {
        let mut state = self.state.lock();
        state.fired.get_or_insert(timer);
        if let Some(upstream) = state.upstream.take() {
            upstream.break_now();
        }
    }

    /// Which clock a missed [`deadline`](Self::deadline) belongs to.
    pub fn missed(&self, now: Instant) -> Timer {
        let state = self.state.lock();
        match state.total {
            Some(total) if total <= now => Timer::Total,
            _ => Timer::Start,
        }
    }

    /// Waits for clocks and breaks the upstream connection when one rings. Never returns after
    /// that; polled beside the request's future and dropped with it.
    pub async fn watch(&self) -> std::convert::Infallible {
        loop {
            let next = self.state.lock().next();
            let Some((at, _)) = next else {
                self.changed.notified().await;
                continue;
            };
            tokio::select! {
                () = tokio::time::sleep_until(at.into()) => {}
                () = self.changed.notified() => continue,
            }
            if self.ring(tokio::time::Instant::now().into_std()) {
                return std::future::pending().await;
            }
        }
    }

    /// Fires the earliest clock if its time has come: it may have been stopped or pushed on.
    fn ring(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        let Some((_, timer)) = state.next().filter(|(at, _)| *at <= now) else {
            return false;
        };
        state.fired = Some(timer);
        if let Some(upstream) = state.upstream.take() {
            upstream.break_now();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[derive(Default)]
    struct Fuse(AtomicBool);

    impl Breakable for Fuse {
        fn break_now(&self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    fn timeouts(total: u64, start: u64, idle: u64) -> RevisionTimeouts {
        let some = |s| (s > 0).then(|| Duration::from_secs(s));
        RevisionTimeouts {
            total: some(total),
            response_start: some(start),
            idle: some(idle),
            max_stream_age: None,
        }
    }

    async fn rings(timers: &RequestTimers, within: u64) -> Option<Timer> {
        let _ = tokio::time::timeout(Duration::from_secs(within), timers.watch()).await;
        timers.fired()
    }

    fn now() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    #[tokio::test(start_paused = true)]
    async fn the_start_clock_stops_at_the_head_and_the_total_one_does_not() {
        let timers = RequestTimers::default();
        timers.arm(&timeouts(10, 2, 0), None, now());
        timers.head_received();
        assert_eq!(rings(&timers, 5).await, None);
        assert_eq!(rings(&timers, 6).await, Some(Timer::Total));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_head_breaks_the_upstream_connection() {
        let timers = RequestTimers::default();
        let fuse = Arc::new(Fuse::default());
        timers.arm(&timeouts(0, 2, 0), None, now());
        timers.upstream(Some(fuse.clone()), now());
        assert_eq!(rings(&timers, 3).await, Some(Timer::Start));
        assert!(fuse.0.load(Ordering::SeqCst));
    }

    #[tokio::test(start_paused = true)]
    async fn stopped_clocks_do_not_ring() {
        let timers = RequestTimers::default();
        let fuse = Arc::new(Fuse::default());
        timers.arm(&timeouts(2, 2, 2), None, now());
        timers.upstream(Some(fuse.clone()), now());
        timers.stop();
        timers.touch(now());
        assert_eq!(rings(&timers, 10).await, None);
        assert!(!fuse.0.load(Ordering::SeqCst));
    }

    #[tokio::test(start_paused = true)]
    async fn idle_counts_from_the_last_byte() {
        let timers = RequestTimers::default();
        timers.arm(&timeouts(0, 0, 2), None, now());
        timers.upstream(None, now());
        assert_eq!(rings(&timers, 1).await, None);
        timers.touch(now());
        assert_eq!(rings(&timers, 1).await, None);
        assert_eq!(rings(&timers, 2).await, Some(Timer::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_made_after_the_ring_is_broken_at_once() {
        let timers = RequestTimers::default();
        timers.arm(&timeouts(1, 0, 0), Some(Duration::from_secs(2)), now());
        assert_eq!(rings(&timers, 3).await, Some(Timer::Total));
        let fuse = Arc::new(Fuse::default());
        timers.upstream(Some(fuse.clone()), now());
        assert!(fuse.0.load(Ordering::SeqCst));
    }
}

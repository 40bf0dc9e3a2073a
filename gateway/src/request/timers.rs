//! The clocks of one request, shared between the adapter that serves it and the task that waits
//! for it.
//!
//! pingora-proxy has one read timeout for head and body alike, and cannot tell a slow start from
//! a quiet stream. So a request's own future watches these clocks beside the proxying and, when
//! one rings, breaks the upstream connection: before the head that surfaces as an error the
//! adapter answers with 504, after it the client's stream is reset. This needs an upstream
//! connection that carries one request at a time.
//!
//! A stream that is too old, or whose instance's time is over, is asked to end first where its
//! protocol has words for that, and broken off a grace later.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sluice_model::RevisionTimeouts;
use tokio::sync::Notify;

use super::Pace;
use crate::observe::Timer;
use crate::throttle::EndpointState;

/// Something that can be broken from outside: an upstream connection.
pub trait Breakable: Send + Sync {
    /// Ends it at once, both ways.
    fn break_now(&self);

    /// Whether it takes no byte now: who sends towards it cannot be blamed for being slow.
    fn is_blocked(&self) -> bool;
}

/// The clocks of one request.
#[derive(Default)]
pub struct RequestTimers {
    state: Mutex<State>,
    changed: Notify,
    asked: Notify,
    rang: Notify,
    /// Between asking a stream to end and breaking it off.
    grace: Duration,
}

/// Why a stream is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    /// It is older than its revision allows.
    Age,
    /// The instance that serves it has to go.
    Instance,
}

#[derive(Default)]
struct State {
    total: Option<Instant>,
    start: Option<Instant>,
    idle: Option<Duration>,
    age: Option<Duration>,
    /// When it gets too old.
    old: Option<Instant>,
    /// The answer is complete: when the request is given up, whatever its client still sends.
    last: Option<Instant>,
    /// It was asked to end: when it is broken off, and what for.
    over: Option<(Instant, Over)>,
    last_byte: Option<Instant>,
    fired: Option<Timer>,
    body: Option<BodyClock>,
    body_late: bool,
    cut: bool,
    /// The response head came.
    answering: bool,
    /// It was broken off because its instance has to go.
    evicted: bool,
    upstream: Option<Arc<dyn Breakable>>,
    endpoint: Option<Arc<EndpointState>>,
}

/// The clock of a request body that an HTTP/2 client announced.
struct BodyClock {
    pace: Pace,
    /// Since when bytes are waited for; `None` while there is no upstream connection to take them.
    since: Option<Instant>,
}

impl State {
    fn body_due(&self) -> Option<Instant> {
        let body = self.body.as_ref()?;
        Some(body.since? + body.pace.patience())
    }

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

impl State {
    fn wake(&self) -> Option<Instant> {
        let next = self.next().map(|(at, _)| at);
        let over = self.over.map(|(at, _)| at);
        let all = [next, self.old, over, self.last, self.body_due()];
        all.into_iter().flatten().min()
    }

    /// The endpoint whose end matters: that of a stream which was not yet asked to end.
    fn watched(&self) -> Option<Arc<EndpointState>> {
        self.endpoint.clone().filter(|_| self.over.is_none())
    }
}

impl RequestTimers {
    /// Clocks of a request whose client can be told that a stream should end, and how long that
    /// may take; zero where it cannot.
    pub fn with_grace(grace: Duration) -> Self {
        Self {
            grace,
            ..Self::default()
        }
    }

    /// Sets total and response-start clocks, counted from `started`; `own` is a deadline the
    /// client named.
    pub fn arm(&self, timeouts: &RevisionTimeouts, own: Option<Duration>, started: Instant) {
        let mut state = self.state.lock();
        let total = [timeouts.total, own].into_iter().flatten().min();
        state.total = total.map(|t| started + t);
        state.start = timeouts.response_start.map(|t| started + t);
        state.idle = timeouts.idle;
        state.age = timeouts.max_stream_age;
        drop(state);
        self.changed.notify_one();
    }

    /// The earliest moment at which the request is over while no head has come.
    pub fn deadline(&self) -> Option<Instant> {
        let state = self.state.lock();
        [state.total, state.start].into_iter().flatten().min()
    }

    /// Names the connection to break when a clock rings, and the endpoint it leads to; breaks it
    /// now if a clock has rung already.
    pub fn upstream(
        &self,
        upstream: Option<Arc<dyn Breakable>>,
        endpoint: Option<&Arc<EndpointState>>,
        now: Instant,
    ) {
        let mut state = self.state.lock();
        if upstream.is_some() {
            (state.over, state.evicted) = (None, false);
        }
        state.upstream = upstream;
        state.endpoint = endpoint.cloned();
        if state.idle.is_some() {
            state.last_byte = Some(now);
        }
        let connected = state.upstream.is_some();
        if let Some(body) = &mut state.body {
            body.since = connected.then_some(now);
        }
        if (state.fired.is_some() || state.body_late || state.cut)
            && let Some(upstream) = &state.upstream
        {
            upstream.break_now();
        }
        drop(state);
        self.changed.notify_one();
    }

    /// A body is to come at this pace, from when there is an upstream connection to take it.
    pub fn expect_body(&self, pace: Pace) {
        self.state.lock().body = Some(BodyClock { pace, since: None });
    }

    /// Bytes of the body came.
    pub fn body_moved(&self, now: Instant, bytes: usize) {
        let mut state = self.state.lock();
        if let Some(BodyClock { pace, since }) = &mut state.body {
            let waited = since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
            pace.moved(waited, bytes as u64);
            *since = since.map(|_| now);
        }
    }

    /// The body is whole.
    pub fn body_done(&self) {
        self.state.lock().body = None;
    }

    /// Whether the upstream connection was broken because the body stalled or came too slowly.
    pub fn body_late(&self) -> bool {
        self.state.lock().body_late
    }

    /// The response head came: its clock stops, and a stream's begins.
    pub fn head_received(&self, now: Instant) {
        let mut state = self.state.lock();
        state.answering = true;
        state.start = None;
        state.old = state.age.map(|age| now + age);
        let news = state.old.is_some();
        drop(state);
        if news {
            self.changed.notify_one();
        }
    }

    /// The exchange is over as far as clocks go: the answer is complete, or what follows has
    /// bounds of its own. A clock that has rung stays rung.
    pub fn stop(&self) {
        let mut state = self.state.lock();
        (state.total, state.start, state.idle) = (None, None, None);
        (state.old, state.over) = (None, None);
        (state.upstream, state.endpoint, state.body) = (None, None, None);
        drop(state);
        self.changed.notify_one();
    }

    /// As [`stop`](Self::stop), for an answer that is complete before its request is: after `rest`
    /// [`watch`](Self::watch) returns.
    pub fn answered(&self, rest: Duration, now: Instant) {
        self.stop();
        self.state.lock().last = Some(now + rest);
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

    /// Whether it was broken off because its instance has to go.
    pub fn was_evicted(&self) -> bool {
        self.state.lock().evicted
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

    /// Resolves when the stream should end: it is too old, or its instance has to go; once. Needs
    /// [`watch`](Self::watch) to be polled. Cancel-safe.
    pub async fn asked_to_end(&self) {
        self.asked.notified().await;
    }

    /// Resolves when the upstream connection was broken for good; once. Needs [`watch`](Self::watch)
    /// to be polled. Cancel-safe.
    pub async fn rang(&self) {
        self.rang.notified().await;
    }

    /// Waits for clocks and breaks the upstream connection when one rings. Polled beside the
    /// request's future and dropped with it. Returns only when the request was
    /// [`answered`](Self::answered) and its time is over: then it is to be dropped.
    pub async fn watch(&self) {
        loop {
            let (at, endpoint) = {
                let state = self.state.lock();
                (state.wake(), state.watched())
            };
            let time = async {
                match at {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let over = async {
                match &endpoint {
                    Some(endpoint) => endpoint.ended().await,
                    None => std::future::pending().await,
                }
            };
            let evicted = tokio::select! {
                () = time => false,
                () = self.changed.notified() => continue,
                () = over => true,
            };
            let now = tokio::time::Instant::now().into_std();
            if self.state.lock().last.is_some_and(|at| at <= now) {
                return;
            }
            if evicted {
                self.ask(Over::Instance, now);
            } else if self.state.lock().old.take_if(|at| *at <= now).is_some() {
                self.ask(Over::Age, now);
            }
            if self.ring(now) || self.ring_body(now) {
                return std::future::pending().await;
            }
        }
    }

    /// Ends the request if its body is due, unless the upstream takes nothing of it.
    fn ring_body(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        if state.body_due().is_none_or(|due| due > now) {
            return false;
        }
        let blocked = state
            .upstream
            .as_ref()
            .is_some_and(|upstream| upstream.is_blocked());
        if let Some(body) = &mut state.body
            && blocked
        {
            body.since = Some(now);
            return false;
        }
        state.body_late = true;
        if let Some(upstream) = state.upstream.take() {
            upstream.break_now();
        }
        self.rang.notify_one();
        true
    }

    fn ask(&self, why: Over, now: Instant) {
        let mut state = self.state.lock();
        if state.over.is_none() && state.upstream.is_some() {
            state.over = Some((now + self.grace, why));
            self.asked.notify_one();
        }
    }

    /// Fires the earliest clock if its time has come: it may have been stopped or pushed on.
    fn ring(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        let mut evicted = false;
        if let Some((_, timer)) = state.next().filter(|(at, _)| *at <= now) {
            state.fired = Some(timer);
        } else if let Some((_, why)) = state.over.take_if(|(at, _)| *at <= now) {
            match why {
                Over::Age => state.fired = Some(Timer::Age),
                Over::Instance => {
                    state.evicted = true;
                    state.endpoint = None;
                    evicted = true;
                }
            }
        } else {
            return false;
        }
        if let Some(upstream) = state.upstream.take() {
            upstream.break_now();
        }
        // Whoever lost its instance may still get another.
        if !evicted || state.answering {
            self.rang.notify_one();
        }
        !evicted
    }
}

#[cfg(test)]
#[path = "timers_tests.rs"]
mod tests;

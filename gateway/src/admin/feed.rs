//! The feed: one task that samples the history every 10 s, and once a second tells those who follow `/api/events`
//! what has changed.
//!
//! While nobody follows, nothing but the history is computed. All followers share one channel: a bounded ring of
//! changes. A follower that is too slow for it misses changes, and gets a new snapshot in their place (coalescing);
//! one that does not take an event for [`PATIENCE`] is dropped. What a follower holds is one event at most.

use std::convert::Infallible;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use parking_lot::Mutex;
use serde_json::Value;
use sluice_model::RevisionId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::AdminState;
use super::graceful_shutdown::ShutdownRequest;
use super::view::{self, Rates, View};
use crate::observe::{History, STEP, wall_clock};

/// Followers at once.
const MAX_FOLLOWERS: usize = 16;

/// Changes that a follower may be behind.
const BEHIND: usize = 8;

/// The interval between changes.
const TICK: Duration = Duration::from_secs(1);

/// How long a follower may take to read an event.
const PATIENCE: Duration = Duration::from_secs(30);

/// A comment after this time without a change: proxies close silent connections.
const SILENCE: Duration = Duration::from_secs(15);

/// The age at which a stream ends. The browser follows again by itself.
const MAX_AGE: Duration = Duration::from_secs(3_600);

/// A handle of the feed.
#[derive(Clone)]
pub(super) struct Feed {
    history: Arc<Mutex<History>>,
    orders: mpsc::Sender<Order>,
    places: Arc<Semaphore>,
}

/// A request for a snapshot, and for the changes that follow it.
type Order = oneshot::Sender<(Bytes, broadcast::Receiver<Bytes>)>;

/// The task behind the handles.
pub(super) struct FeedTask {
    state: Arc<dyn AdminState>,
    history: Arc<Mutex<History>>,
    orders: mpsc::Receiver<Order>,
    changes: broadcast::Sender<Bytes>,
    watched: Watched,
}

/// Finished requests of a revision so far, and how many of them failed; see [`Metrics::finished`].
type Finished = (Option<RevisionId>, u64, u64);

/// What followers know. Empty while there are none.
#[derive(Default)]
struct Watched {
    view: View,
    /// The number of the last decision told.
    decision: u64,
    /// The last step of the history told.
    step: Option<u64>,
    /// Counts of requests and errors at the last tick, for rates.
    finished: Option<(Instant, Vec<Finished>)>,
    rates: Option<Rates>,
}

/// The feed of this gateway, and its task.
pub(super) fn feed(state: Arc<dyn AdminState>) -> (Feed, FeedTask) {
    let (orders, received) = mpsc::channel(MAX_FOLLOWERS);
    let (changes, _) = broadcast::channel(BEHIND);
    let history = Arc::new(Mutex::new(History::default()));
    let feed = Feed {
        history: Arc::clone(&history),
        orders,
        places: Arc::new(Semaphore::new(MAX_FOLLOWERS)),
    };
    let task = FeedTask {
        state,
        history,
        orders: received,
        changes,
        watched: Watched::default(),
    };
    (feed, task)
}

impl Feed {
    /// `/api/history`: the hour of a revision, or of the whole gateway. `None` for a revision without traffic.
    pub(super) fn hour(&self, revision: Option<&RevisionId>) -> Option<Value> {
        view::hour(&self.history.lock(), revision)
    }

    /// A new follower's stream, which ends at `shutdown`; `None` when there are as many as there may be.
    pub(super) fn follow(&self, shutdown: ShutdownRequest) -> Option<EventStream> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let (sender, events) = mpsc::channel(1);
        tokio::spawn(follow(self.orders.clone(), sender, shutdown, place));
        Some(EventStream { events })
    }
}

impl FeedTask {
    /// Runs until dropped.
    pub(super) async fn run(mut self) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let order = tokio::select! {
                order = self.orders.recv() => order,
                _ = tick.tick() => None,
            };
            let is_tick = order.is_none();
            self = self.turn(is_tick).await;
            if let Some(order) = order {
                self.answer(order).await;
            }
        }
    }

    /// Samples and tells what is due, on a blocking thread: sampling takes time in proportion to the number of revisions in
    /// use, telling to that of all revisions.
    async fn turn(mut self, is_tick: bool) -> Self {
        let step = wall_clock()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs()
            / STEP.as_secs();
        // The step that has ended.
        let ended = step.saturating_sub(1);
        let is_due = self.history.lock().last().is_none_or(|last| last < ended);
        let is_watched = self.changes.receiver_count() > 0 || !is_tick;
        if !is_watched {
            self.watched = Watched::default();
        }
        if !is_due && !is_watched {
            return self;
        }
        let (state, history) = (Arc::clone(&self.state), Arc::clone(&self.history));
        let mut watched = mem::take(&mut self.watched);
        let done = tokio::task::spawn_blocking(move || {
            if is_due {
                let present = |revisions: &[RevisionId]| state.present(revisions);
                state.metrics().record(&mut history.lock(), ended, present);
            }
            let change = is_watched.then(|| watched.turn(&*state, &history.lock(), is_tick));
            (watched, change.flatten())
        });
        match done.await {
            Ok((watched, change)) => {
                self.watched = watched;
                if let Some(change) = change.filter(|_| self.changes.receiver_count() > 0) {
                    // The last follower may have gone just now.
                    let _ = self.changes.send(event("change", &change));
                }
            }
            Err(error) if error.is_panic() => tracing::error!(%error, "the dashboard's feed hit a bug"),
            // The runtime is going away.
            Err(_) => {}
        }
        self
    }

    /// Gives a follower the snapshot of the last turn, and all changes after it.
    async fn answer(&mut self, order: Order) {
        let changes = self.changes.subscribe();
        let decisions = self.state.decisions(0);
        let decisions: Vec<_> = decisions
            .into_iter()
            .filter(|one| one.number <= self.watched.decision)
            .collect();
        let snapshot = self
            .watched
            .view
            .snapshot(wall_clock(), &self.history.lock(), &decisions);
        let _ = order.send((event("snapshot", &snapshot), changes));
    }
}

impl Watched {
    /// Looks at the gateway, and returns what has changed. Rates are those between ticks.
    fn turn(&mut self, state: &dyn AdminState, history: &History, is_tick: bool) -> Option<Value> {
        let now = Instant::now();
        if is_tick || self.finished.is_none() {
            let finished = state.metrics().finished();
            self.rates = self
                .finished
                .as_ref()
                .and_then(|(at, before)| rates(before, &finished, now - *at));
            self.finished = Some((now, finished));
        }
        let view = View::of(state, history, self.rates.as_ref());
        let mut change = view.since(&self.view);
        self.view = view;
        let decisions = state.decisions(self.decision);
        if let Some(last) = decisions.last() {
            self.decision = last.number;
            change.insert(
                "decisions".to_owned(),
                decisions.iter().map(view::decision).collect(),
            );
        }
        if history.last() != self.step {
            self.step = history.last();
            change.insert("history".to_owned(), view::step(history));
        }
        if change.is_empty() {
            return None;
        }
        change.insert("at".to_owned(), view::seconds(wall_clock()));
        Some(Value::Object(change))
    }
}

/// Requests and errors a second, of those that had any.
fn rates(
    before: &[(Option<RevisionId>, u64, u64)],
    now: &[(Option<RevisionId>, u64, u64)],
    over: Duration,
) -> Option<Rates> {
    if over.is_zero() {
        return None;
    }
    let mut rates = Rates::new();
    let mut add = |all: &[(Option<RevisionId>, u64, u64)], sign: f64| {
        for (id, requests, errors) in all {
            let rate = rates.entry(id.clone()).or_insert((0.0, 0.0));
            // Exact up to 2^53 requests.
            rate.0 += sign * *requests as f64 / over.as_secs_f64();
            rate.1 += sign * *errors as f64 / over.as_secs_f64();
        }
    };
    add(now, 1.0);
    add(before, -1.0);
    // A revision that went has counted less than nothing.
    rates.retain(|_, rate| rate.0 > 0.0);
    Some(rates)
}

/// An event of the stream (WHATWG HTML 9.2.6). JSON in one line has no line break to escape.
fn event(name: &str, data: &Value) -> Bytes {
    format!("event: {name}\ndata: {data}\n\n").into()
}

/// Passes events on until the stream is dropped, is too slow or too old, or the server shuts down.
async fn follow(
    orders: mpsc::Sender<Order>,
    events: mpsc::Sender<Bytes>,
    mut shutdown: ShutdownRequest,
    _place: OwnedSemaphorePermit,
) {
    let age = sleep_until(Instant::now() + MAX_AGE);
    let pass_on = async {
        'snapshot: loop {
            let (order, answer) = oneshot::channel();
            if orders.send(order).await.is_err() {
                return;
            }
            let Ok((snapshot, mut changes)) = answer.await else {
                return;
            };
            let mut next = snapshot;
            loop {
                if !matches!(timeout(PATIENCE, events.send(next)).await, Ok(Ok(()))) {
                    return;
                }
                next = match timeout(SILENCE, changes.recv()).await {
                    Ok(Ok(change)) => change,
                    Ok(Err(broadcast::error::RecvError::Lagged(_))) => continue 'snapshot,
                    Ok(Err(broadcast::error::RecvError::Closed)) => return,
                    Err(_) => Bytes::from_static(b": still here\n\n"),
                };
            }
        }
    };
    tokio::select! {
        () = pass_on => {}
        () = age => {}
        () = shutdown.requested() => {}
        () = events.closed() => {}
    }
}

/// The body of `/api/events`. Dropping it ends the follower.
#[derive(Debug)]
pub(super) struct EventStream {
    events: mpsc::Receiver<Bytes>,
}

impl Body for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.events
            .poll_recv(cx)
            .map(|event| event.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[cfg(test)]
#[path = "feed_tests.rs"]
mod tests;

//! The shell's timer: one task while somebody waits, and none otherwise.

use std::time::Duration;

use parking_lot::MutexGuard;

use super::*;

/// How long the timer task outlives the last waiter: a queue that fills and empties all the time
/// keeps its task.
const TIMER_LINGER: Duration = Duration::from_secs(1);

impl RevisionThrottler {
    /// Sees to it that the timer wakes in time; there is one only while somebody waits.
    pub(super) fn arm(self: &Arc<Self>, mut shared: MutexGuard<'_, Shared>) {
        let Some(next) = shared.core.next_timer() else {
            return;
        };
        match shared.armed {
            Some(armed) if armed <= next => {}
            Some(_) => {
                shared.armed = Some(next);
                drop(shared);
                self.timer.notify_one();
            }
            None => {
                shared.armed = Some(next);
                drop(shared);
                let timer = run_timer(Arc::downgrade(self), Arc::clone(&self.timer), next);
                drop(self.env.runtime.spawn(timer));
            }
        }
    }

    /// The timer fired: when it has to fire next, or `None` when it may end.
    fn tick(self: &Arc<Self>, lingered: bool) -> Option<Instant> {
        let now = clock();
        let mut shared = self.shared.lock();
        let fx = shared.core.expire(now);
        shared.post();
        self.demand(&fx.signals);
        let next = match shared.core.next_timer() {
            None if lingered => None,
            None => Some(now + TIMER_LINGER),
            next => next,
        };
        shared.armed = next;
        drop(shared);
        self.carry_out(fx);
        next
    }
}

/// Ends when nobody has waited for a while, or with the throttler.
async fn run_timer(throttler: Weak<RevisionThrottler>, news: Arc<Notify>, first: Instant) {
    let mut next = first;
    let mut idle = false;
    loop {
        let woken = tokio::select! {
            () = tokio::time::sleep_until(next.into()) => false,
            () = news.notified() => true,
        };
        let Some(throttler) = throttler.upgrade() else {
            return;
        };
        let waiting = throttler.shared.lock().core.has_waiters();
        let Some(at) = throttler.tick(idle && !waiting && !woken) else {
            return;
        };
        idle = !waiting;
        next = at;
    }
}

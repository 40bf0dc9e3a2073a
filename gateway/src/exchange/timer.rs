//! Timer coalescing: one entry of the runtime's timer for many deadlines.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use crate::throttle::clock;

/// A timer whose deadline moves with every request.
///
/// Deadlines nearly always move to a later point, so the entry in the runtime's timer wheel stays
/// where it is and is moved only when the entry expires, or for an earlier deadline. Registering
/// and removing an entry for each request would cost more than the rest of the request's clocks.
#[derive(Debug)]
pub(crate) struct DeadlineTimer {
    sleep: Option<Pin<Box<Sleep>>>,
    armed: bool,
}

impl DeadlineTimer {
    /// A timer without an entry in the runtime's timer.
    pub(crate) const fn new() -> Self {
        Self {
            sleep: None,
            armed: false,
        }
    }

    /// Resolves when `deadline` has passed. Cancel-safe; another call may have another deadline.
    pub(crate) fn poll_at(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(Duration::ZERO)));
        let target = tokio::time::Instant::from_std(deadline);
        if !self.armed || target < sleep.deadline() {
            sleep.as_mut().reset(target);
            self.armed = true;
        }
        loop {
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if deadline <= clock() {
                self.armed = false;
                return Poll::Ready(());
            }
            sleep.as_mut().reset(target);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn deadlines_move_both_ways() {
        let mut timer = DeadlineTimer::new();
        let start = clock();
        let s = Duration::from_secs(1);
        for (deadline, later) in [(s * 10, s * 20), (s * 25, s * 22)] {
            let first = futures_util::poll!(poll_fn(|cx| timer.poll_at(cx, start + deadline)));
            assert!(first.is_pending());
            poll_fn(|cx| timer.poll_at(cx, start + later)).await;
            assert_eq!(clock() - start, later);
        }
    }
}

//! A deadline that costs nothing while bytes flow.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// Measures how long somebody has been waiting. The timer is made at the first wait and kept.
#[derive(Debug, Default)]
pub(super) struct WaitTimer {
    sleep: Option<Pin<Box<Sleep>>>,
    armed: bool,
}

impl WaitTimer {
    /// Bytes moved: the next wait starts anew. Does not touch the timer; should it fire meanwhile,
    /// it costs one spurious poll.
    pub(super) fn moved(&mut self) {
        self.armed = false;
    }

    /// Nothing moved. Ready once that has been so for `patience`, counted from the first call since
    /// [`moved`](Self::moved).
    pub(super) fn poll_expired(&mut self, cx: &mut Context<'_>, patience: Duration) -> Poll<()> {
        if !self.armed {
            self.armed = true;
            let deadline = Instant::now() + patience;
            match &mut self.sleep {
                Some(sleep) => sleep.as_mut().reset(deadline),
                none => *none = Some(Box::pin(sleep_until(deadline))),
            }
        }
        self.sleep
            .as_mut()
            .map_or(Poll::Pending, |sleep| sleep.as_mut().poll(cx))
    }
}

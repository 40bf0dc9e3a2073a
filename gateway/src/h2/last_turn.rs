//! Write batching by a yield: a connection's task runs after the streams that are ready.

use std::task::{Context, Poll};

/// Lets a task that was woken run behind the tasks that are ready already, once for each wake.
///
/// An HTTP/2 connection is written by one task, which each stream wakes when it has frames to send. The
/// runtime runs a task that was woken last first, so that every response would leave in a system call
/// (and a TLS record) of its own; behind the other streams the connection's task finds their frames too.
#[derive(Debug, Default)]
pub(crate) struct LastTurn {
    yielded: bool,
}

impl LastTurn {
    /// Pending at every other call, with the task woken at once.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.yielded = !self.yielded;
        if self.yielded {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_turn_is_put_off_once_and_never_lost() {
        let wakes = Arc::new(Wakes(AtomicUsize::new(0)));
        let waker = Arc::clone(&wakes).into();
        let mut cx = Context::from_waker(&waker);
        let mut turn = LastTurn::default();
        for nth in 1..4 {
            assert!(turn.poll(&mut cx).is_pending());
            assert_eq!(wakes.0.load(Ordering::Relaxed), nth, "it comes back by itself");
            assert!(turn.poll(&mut cx).is_ready());
        }
    }
}

//! The timeline of a start, for the timing phases of requests that waited for it.

use std::time::Instant;

use sluice_model::LaunchStep;

/// When a start reached each of its points. A point that is `None` was not reached, or is unknown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StartTimeline {
    /// The start was decided and ordered.
    pub ordered: Option<Instant>,
    /// The instance ran, or the platform had agreed.
    pub started: Option<Instant>,
    /// A probe had proven the endpoint ready.
    pub ready: Option<Instant>,
}

/// The timeline of the present or last start of a revision. Instances bring timelines of their own; configured
/// addresses, and waiters of a start that failed, have only this one.
#[derive(Debug, Default)]
pub(crate) struct CurrentStart {
    timeline: StartTimeline,
    /// An endpoint became ready, or the start failed: the next order begins another start.
    over: bool,
}

impl CurrentStart {
    pub(crate) fn step(&mut self, step: LaunchStep, now: Instant) {
        match step {
            LaunchStep::Ordered => {
                self.forget_if_over();
                self.timeline.ordered.get_or_insert(now);
            }
            LaunchStep::Started if !self.over => _ = self.timeline.started.get_or_insert(now),
            LaunchStep::Started => {}
        }
    }

    pub(crate) fn end(&mut self) {
        self.over = true;
    }

    /// Clears the timeline of a start that is over, because another one is demanded.
    pub(crate) fn forget_if_over(&mut self) {
        if self.over {
            *self = Self::default();
        }
    }

    pub(crate) fn timeline(&self) -> StartTimeline {
        self.timeline
    }

    /// The timeline of the start that is under way; empty while none is.
    pub(crate) fn present(&self) -> StartTimeline {
        if self.over {
            StartTimeline::default()
        } else {
            self.timeline
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_start_is_timed_once_and_the_next_one_anew() {
        let t = |ms| Instant::now() + Duration::from_millis(ms);
        let (a, b, c) = (t(0), t(1), t(2));
        let mut current_start = CurrentStart::default();
        current_start.step(LaunchStep::Ordered, a);
        // A repeated call is about the same start.
        current_start.step(LaunchStep::Ordered, b);
        current_start.step(LaunchStep::Started, b);
        current_start.step(LaunchStep::Started, c);
        let first = current_start.timeline();
        assert_eq!((first.ordered, first.started), (Some(a), Some(b)));
        current_start.forget_if_over();
        assert_eq!(current_start.timeline(), first, "it is not over");
        current_start.end();
        current_start.step(LaunchStep::Started, c);
        assert_eq!(
            current_start.timeline(),
            first,
            "waiters that failed with it may still ask"
        );
        current_start.step(LaunchStep::Ordered, c);
        let second = current_start.timeline();
        assert_eq!((second.ordered, second.started), (Some(c), None));
    }
}

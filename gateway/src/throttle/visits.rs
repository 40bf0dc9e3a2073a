//! Visits: requests for a page that were answered with a waiting page instead of being held.
//!
//! A visit is no waiter: it has no place in the queue and no timer. The core keeps two instants instead, which its
//! load tells the autoscaler: until when a browser is expected back while a start is under way, and until when the
//! started instance is kept for the browser once the instance is ready.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_model::ActivationFailure;

use super::actions::Actions;
use super::core::{Activation, Core};

/// How much longer than `start_timeout` a browser counts as expected, so that the control plane's report of the
/// timeout comes first.
const GRACE: Duration = Duration::from_secs(1);

/// The state of a revision without a ready endpoint.
#[derive(Debug, Clone)]
pub struct ColdState {
    /// How far the start is.
    pub phase: ColdPhase,
    /// The time since the start was demanded; since the beginning of the back-off it stands still at zero.
    pub elapsed: Duration,
    /// What starts took lately: a moving average; `None` before the first one.
    pub expected: Option<Duration>,
}

/// How far a start is.
#[derive(Debug, Clone)]
pub enum ColdPhase {
    /// The start is demanded, and not yet ordered.
    Queued,
    /// Instances are being started, or a platform is being asked for them.
    Starting,
    /// An instance runs and is not ready yet.
    Booting,
    /// The last start failed, and its back-off lasts.
    Failed {
        /// The control plane's report.
        failure: Arc<ActivationFailure>,
        /// The rest of the back-off.
        retry_after: Duration,
    },
}

/// What waiting pages expect of a revision.
#[derive(Debug, Default)]
pub(crate) struct Visits {
    /// How long the instance is to be kept once it is ready, and until when a browser is expected before that.
    expected: Option<(Duration, Instant)>,
    keep_until: Option<Instant>,
}

impl Visits {
    /// Whether a browser is expected back while something starts.
    pub(crate) fn is_expected(&self, now: Instant) -> bool {
        self.expected.is_some_and(|(_, until)| now < until)
    }

    /// The rest of the time for which an instance is kept.
    pub(crate) fn keep_left(&self, now: Instant) -> Duration {
        self.keep_until
            .map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }

    fn expect(&mut self, keep: Duration, until: Instant) {
        let before = self.expected.map_or(Duration::ZERO, |(keep, _)| keep);
        self.expected = Some((keep.max(before), until));
    }

    /// An endpoint became ready: from now on it is kept.
    pub(crate) fn ready(&mut self, now: Instant) {
        if let Some((keep, until)) = self.expected.take()
            && now < until
        {
            let before = self.keep_until.unwrap_or(now);
            self.keep_until = Some(before.max(now + keep));
        }
    }

    /// The start failed, or the revision admits nobody any more: whoever comes back demands another start, if that is
    /// possible then.
    pub(crate) fn forget(&mut self) {
        self.expected = None;
    }
}

impl<W> Core<W> {
    /// As [`RevisionThrottler::visit`](super::RevisionThrottler::visit).
    pub(crate) fn visit(&mut self, keep: Duration, now: Instant) -> (Option<ColdState>, Actions<W>) {
        let mut actions = self.begin(now);
        if self.closed.is_some() || !self.is_cold() {
            return (None, actions);
        }
        if !self.is_backing_off(now) {
            actions.wake_probes |= !self.visits.is_expected(now) && self.endpoints.counts().starting > 0;
            let until = now + self.limits.start_timeout.saturating_add(GRACE);
            self.visits.expect(keep, until);
            self.start_wanted_tiers(now, &mut actions);
        }
        (self.cold_state(now), actions)
    }

    fn is_backing_off(&self, now: Instant) -> bool {
        self.failed_start(now).is_some()
    }

    /// The progress of the start that requests wait for; `None` unless nothing is ready and a start helps.
    pub(crate) fn cold_state(&self, now: Instant) -> Option<ColdState> {
        if !self.is_cold() {
            return None;
        }
        let tier = self.starting_tier(now);
        let expected = tier.start_estimate;
        if let Some((failure, until)) = self.failed_start(now) {
            return Some(ColdState {
                phase: ColdPhase::Failed {
                    failure: Arc::clone(failure),
                    retry_after: until.duration_since(now),
                },
                elapsed: Duration::ZERO,
                expected,
            });
        }
        let timeline = tier.current_start.present();
        let phase = match (timeline.ordered, timeline.started) {
            _ if self.endpoints.is_any_coming() => ColdPhase::Booting,
            (_, Some(_)) => ColdPhase::Booting,
            (Some(_), None) => ColdPhase::Starting,
            (None, None) => ColdPhase::Queued,
        };
        let since = match &tier.activation {
            Activation::Outstanding { since, .. } => Some(*since),
            Activation::Idle | Activation::Failed { .. } => timeline.ordered.or(timeline.started),
        };
        Some(ColdState {
            phase,
            elapsed: since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since)),
            expected,
        })
    }
}

#[cfg(test)]
#[path = "visits_tests.rs"]
mod tests;

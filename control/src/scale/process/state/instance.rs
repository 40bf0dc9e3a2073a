//! One instance in its revision's state.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::plan::{RevisionPlan, ScalerSpec};

/// How far its life has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Starting {
        since: Instant,
        deadline: Instant,
    },
    Ready {
        since: Instant,
    },
    /// Finishes what it has.
    Retired {
        deadline: Instant,
    },
    /// What it still had at that deadline was asked to end.
    Ending {
        deadline: Instant,
    },
    Stopping,
}

/// One instance.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) phase: Phase,
    pub(super) plan: Arc<RevisionPlan>,
    /// The data plane knows it, and may use it before we hear that it is ready.
    pub(super) added: bool,
    /// It is stopping because it was not ready in time.
    pub(super) timed_out: bool,
}

impl Instance {
    /// By which plan and when it was started, if that is as far as it came.
    pub(super) fn into_start(self) -> Option<(Arc<RevisionPlan>, Instant)> {
        match self.phase {
            Phase::Starting { since, .. } => Some((self.plan, since)),
            Phase::Ready { .. } | Phase::Retired { .. } | Phase::Ending { .. } | Phase::Stopping => None,
        }
    }

    /// Counts toward what is wanted.
    pub(super) fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Starting { .. } | Phase::Ready { .. })
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Ready { .. })
    }

    pub(super) fn is_starting(&self) -> bool {
        matches!(self.phase, Phase::Starting { .. })
    }

    /// Gets nothing new.
    pub(super) fn is_retired(&self) -> bool {
        matches!(self.phase, Phase::Retired { .. } | Phase::Ending { .. })
    }

    /// When its phase is over whatever happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Starting { deadline, .. } | Phase::Retired { deadline } | Phase::Ending { deadline } => {
                Some(deadline)
            }
            Phase::Ready { .. } | Phase::Stopping => None,
        }
    }

    pub(super) fn grace(&self) -> Duration {
        match &self.plan.scaler {
            ScalerSpec::Process(process) => process.stop_grace_period,
            ScalerSpec::Webhook(_) => Duration::ZERO,
        }
    }
}

/// Whether an instance started by one plan is as good as one started by the other.
pub(super) fn same_launch(a: &RevisionPlan, b: &RevisionPlan) -> bool {
    a.scaler == b.scaler && a.service == b.service
}

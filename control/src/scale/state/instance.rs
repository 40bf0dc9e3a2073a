//! One instance in its revision's state.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::plan::{RevisionPlan, ScalerSpec};

/// How far its life has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Starting { since: Instant, deadline: Instant },
    Ready { since: Instant },
    Retired { deadline: Instant },
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
            Phase::Ready { .. } | Phase::Retired { .. } | Phase::Stopping => None,
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

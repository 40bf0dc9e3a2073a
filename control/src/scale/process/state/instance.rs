//! The state of one instance.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::plan::{RevisionPlan, ScalerSpec};

/// The phase of an instance's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Starting {
        since: Instant,
        deadline: Instant,
    },
    Ready {
        since: Instant,
    },
    /// Draining: finishes the requests in flight.
    Retired {
        deadline: Instant,
    },
    /// Past the drain timeout: requests in flight are being ended.
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
    /// The data plane has the endpoint, and may use it before the readiness event arrives here.
    pub(super) added: bool,
    /// The instance is stopping because it was not ready in time.
    pub(super) timed_out: bool,
}

impl Instance {
    /// The plan and the instant of the start, if the instance was never ready.
    pub(super) fn into_start(self) -> Option<(Arc<RevisionPlan>, Instant)> {
        match self.phase {
            Phase::Starting { since, .. } => Some((self.plan, since)),
            Phase::Ready { .. } | Phase::Retired { .. } | Phase::Ending { .. } | Phase::Stopping => None,
        }
    }

    /// Whether the instance counts toward the desired number.
    pub(super) fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Starting { .. } | Phase::Ready { .. })
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Ready { .. })
    }

    pub(super) fn is_starting(&self) -> bool {
        matches!(self.phase, Phase::Starting { .. })
    }

    /// Whether the instance gets no new requests.
    pub(super) fn is_retired(&self) -> bool {
        matches!(self.phase, Phase::Retired { .. } | Phase::Ending { .. })
    }

    /// The deadline of the phase.
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

/// Whether two plans start the same instances.
pub(super) fn same_launch(a: &RevisionPlan, b: &RevisionPlan) -> bool {
    a.scaler == b.scaler && a.service == b.service
}

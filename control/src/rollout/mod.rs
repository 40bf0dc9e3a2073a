//! Rollouts: how the share of `latestRevision` targets moves from one revision to a newer one.
//!
//! ```text
//! counters ──> OutcomeSource ──> judge (sequential test) ──┐
//! ready endpoints, time ───────────────────────────────────┴─> engine::tick ──> Rollout ──> HistoryHandle::edit
//! ```
//!
//! The engine is a state machine without clock and I/O: `Rollout::tick` gets what was seen since the last tick, and says what
//! happened. [`command`] has what operators do. [`run`] is the async shell: it looks once a second at rollouts that are open, and
//! sleeps while none is.
//!
//! **Invariants:** a rollout begins at a share of 0 and ends at 0 or 100 %. The share grows only while the newer revision has
//! ready capacity for the greater share. Time passes only while a gateway runs.

pub mod command;
pub mod engine;
mod evidence;
mod judge;
mod policy;
pub mod run;
mod seen;
mod sequential;
pub mod simulate;
mod steps;

pub use engine::{Event, Rules};
pub use evidence::{Evidence, Tally};
pub use policy::{JudgePolicy, RolloutPolicy, Steps};
pub use run::{FloorSink, RolloutStatuses, RolloutTask, Surroundings};
pub use seen::{Seen, Side};

pub use steps::Pace;

use serde::{Deserialize, Serialize};

/// A rollout from the settled revision to a newer one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// The newer revision.
    pub candidate: String,
    /// How far it is.
    pub state: RolloutState,
    /// The candidate's part of the share, in hundredths of a percent.
    pub share: u32,
    /// The candidate was ready once: tags of `latestRevision` lead to it.
    pub ready: bool,
    /// When the state changed last, in seconds since 1970.
    pub since: u64,
    /// Why it failed or was aborted; what it waits for while it is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it began, in seconds since 1970.
    #[serde(default)]
    pub started: u64,
    /// The steps that were begun: 0 while the candidate has no share.
    #[serde(default)]
    pub step: u32,
    /// Milliseconds of the present step; time does not pass while no gateway runs.
    #[serde(default)]
    pub spent: u64,
    /// Steps that ended after ten times their length, without enough requests or without a clear judgement.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unjudged: u32,
    /// The most ready instances that the settled revision had: those that all of the traffic needs.
    #[serde(default)]
    pub fleet: u32,
    /// Milliseconds since the first of consecutive failures of the candidate's starts; 0 while it starts well.
    #[serde(default, skip_serializing_if = "is_none")]
    pub failing: u64,
    /// What this gateway saw in a row.
    #[serde(skip)]
    pub watch: Watch,
    /// The steps of `duration`, once they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pace: Option<Pace>,
    /// What both revisions did over the same time.
    #[serde(default, skip_serializing_if = "Evidence::is_empty")]
    pub evidence: Evidence,
}

/// Milliseconds for which something lasted without a break. A restart begins anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Watch {
    /// The settled revision had the instances that it wants.
    pub steady: u64,
    /// The settled revision had fewer than it should have.
    pub short: u64,
    /// The candidate had a ready instance.
    pub up: u64,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn is_none(millis: &u64) -> bool {
    *millis == 0
}

/// The whole of the share, in hundredths of a percent.
pub const WHOLE: u32 = 10_000;

impl Rollout {
    /// A rollout that begins now, in seconds since 1970.
    pub fn new(candidate: &str, now: u64) -> Self {
        Self {
            candidate: candidate.to_owned(),
            state: RolloutState::Running,
            share: 0,
            ready: false,
            since: now,
            reason: None,
            started: now,
            step: 0,
            spent: 0,
            unjudged: 0,
            fleet: 0,
            failing: 0,
            watch: Watch::default(),
            pace: None,
            evidence: Evidence::default(),
        }
    }

    /// Ends or interrupts the rollout.
    fn enter(&mut self, state: RolloutState, now: u64, reason: Option<String>) {
        self.state = state;
        self.since = now;
        self.reason = reason;
        match state {
            RolloutState::Completed => self.share = WHOLE,
            RolloutState::Failed | RolloutState::Aborted => self.share = 0,
            RolloutState::Running | RolloutState::Paused => {}
        }
    }

    /// The share in percent, with up to two decimals.
    pub fn percent(&self) -> f64 {
        f64::from(self.share) / 100.0
    }
}

/// The state of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RolloutState {
    /// The share moves, or waits for the gate.
    Running,
    /// An operator stopped it where it is.
    Paused,
    /// The newer revision has all of the share.
    Completed,
    /// It was judged worse: the settled revision has all of the share.
    Failed,
    /// An operator ended it: the settled revision has all of the share.
    Aborted,
}

impl RolloutState {
    /// Whether the rollout goes on, now or after a `resume`.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }

    /// The name in the API and in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
        }
    }
}

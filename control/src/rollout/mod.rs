//! Rollouts: how the share of `latestRevision` targets moves from one revision to a newer one.

use serde::{Deserialize, Serialize};

/// The rules of a service's rollouts.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RolloutPolicy {}

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
    /// Why it failed or was aborted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
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
}

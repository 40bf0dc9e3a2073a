//! The history of a service: a document of the state directory.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sluice_model::ServiceId;

use crate::rollout::Rollout;

/// The history of one service.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceHistory {
    /// Revisions made from the templates of a manifest, the oldest first, the present one included. Empty for a service
    /// whose revisions are all listed by files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub revisions: Vec<KeptRevision>,
    /// The revision that has the share of `latestRevision` targets, apart from a rollout; `None` before the first
    /// publication.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settled: Option<String>,
    /// The rollout from [`settled`](Self::settled) to a newer revision; after its end the last one, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// What an operator overrode.
    #[serde(rename = "override", skip_serializing_if = "Option::is_none")]
    pub over: Option<Override>,
}

/// A revision that was made from the template of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeptRevision {
    /// The name.
    pub name: String,
    /// The number in names of revisions without a name of their own: the `00001` of `{service}-00001`.
    pub generation: u32,
    /// The template (`spec.template` of the manifest).
    pub template: serde_json::Value,
    /// When the revision was published first, in seconds since 1970; 0 before that.
    pub created: u64,
    /// When a share or a tag led to the revision for the last time, in seconds since 1970, unless one does now.
    pub last_active: u64,
    /// A share or a tag led to the revision when that was looked at last.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub active: bool,
}

/// What an operator said by command. It ends when the files change the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Override {
    /// The service as the files declared it, as a digest: another one ends the override.
    pub declared: u64,
    /// When the command was given, in seconds since 1970.
    pub since: u64,
    /// `rollback`: the revision that gets the share of all `latestRevision` targets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<String>,
    /// `pause`: requests are held.
    #[serde(default)]
    pub paused: bool,
}

/// The histories of services that have one; most have none.
pub type Histories = HashMap<ServiceId, Arc<ServiceHistory>>;

impl ServiceHistory {
    /// Whether nothing is worth keeping: what the next publication of the same files would say anyway.
    pub fn is_trivial(&self) -> bool {
        *self == Self::default()
    }

    /// The revision that an override pins, if the override is of the files with this digest.
    pub fn pinned(&self, declared: u64) -> Option<&str> {
        self.in_force(declared)?.pinned.as_deref()
    }

    /// Whether an override of the files with this digest pauses the service.
    pub fn is_paused(&self, declared: u64) -> bool {
        self.in_force(declared).is_some_and(|over| over.paused)
    }

    /// The override, if it is of the files with this digest.
    pub fn in_force(&self, declared: u64) -> Option<&Override> {
        self.over.as_ref().filter(|over| over.declared == declared)
    }
}

//! What replicas say to each other: a message is a list of words, in JSON.

use serde::{Deserialize, Serialize};
use sluice_model::RevisionId;

use crate::lease::Said;
use crate::throttle::LeaseMessage;

/// One word.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Word {
    /// The replica acts by this view from now on. What it holds of the other one's endpoints follows.
    Announce(Announcement),
    /// The end of what the replica holds.
    Announced,
    /// About a revision.
    About(About),
    /// The holder's time, in milliseconds: its leases are to be renewed.
    Ping(u64),
    /// They are.
    Pong(u64),
    /// The replica's process ends, and with it whatever it has in flight.
    Leave,
}

/// The words of a message. Those that a later version has added are passed over: the replicas of a rolling update have to get
/// along.
///
/// # Errors
/// It is no list.
pub(super) fn read(message: &[u8]) -> Result<Vec<Word>, String> {
    if let Ok(words) = serde_json::from_slice(message) {
        return Ok(words);
    }
    let all: Vec<serde_json::Value> =
        serde_json::from_slice(message).map_err(|e| format!("no words of leases: {e}"))?;
    let known = all
        .into_iter()
        .filter_map(|word| match serde_json::from_value(word) {
            Ok(word) => Some(word),
            Err(error) => {
                tracing::debug!(%error, "a replica says something that this version does not know");
                None
            }
        });
    Ok(known.collect())
}

/// A view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Announcement {
    /// The hash of the names of the replicas that own slots.
    pub(super) view: u64,
    /// The number of this view in the process that announces it.
    pub(super) number: u64,
    /// The last number that the process has received from the other one.
    pub(super) seen: u64,
}

/// A message about one revision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct About {
    namespace: String,
    revision: String,
    said: Said,
}

impl About {
    pub(super) fn new(revision: &RevisionId, message: LeaseMessage) -> Self {
        Self {
            namespace: revision.namespace().to_owned(),
            revision: revision.name().to_owned(),
            said: message.into(),
        }
    }

    /// # Errors
    /// The name is none.
    pub(super) fn revision(&self) -> Result<RevisionId, String> {
        RevisionId::parse(&self.namespace, &self.revision)
            .map_err(|e| format!("a revision {}/{}: {e}", self.namespace, self.revision))
    }

    /// Whether it is of use only to a revision that is awake: somebody waits for slots, or holds some.
    pub(super) fn wakes(&self) -> bool {
        match &self.said {
            Said::Ask { waiting, .. } => *waiting > 0,
            Said::Holding { slots, .. } => !slots.is_empty(),
            _ => false,
        }
    }

    pub(super) fn into_message(self) -> LeaseMessage {
        self.said.into()
    }
}

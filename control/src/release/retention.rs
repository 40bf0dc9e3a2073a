//! Which revisions of manifests are kept: Knative's garbage collector of revisions, as a function, and the task that calls it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sluice_model::{Retention, RevisionId};
use tokio::time::{MissedTickBehavior, interval};

use super::edits::{HistoryHandle, Release};
use super::history::{KeptRevision, ServiceHistory};

/// The interval of looks at histories.
const TICK: Duration = Duration::from_secs(60);

/// Collects revisions of manifests once a minute.
pub struct RetentionTask {
    /// Where histories are read and changed.
    pub histories: HistoryHandle,
    /// The rules, as they are now.
    pub retention: Box<dyn Fn() -> Retention + Send + Sync>,
    /// Whether a revision has requests or waiters.
    pub busy: Arc<dyn Fn(&RevisionId) -> bool + Send + Sync>,
    /// The wall clock, in seconds since 1970.
    pub wall: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl fmt::Debug for RetentionTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetentionTask").finish_non_exhaustive()
    }
}

impl RetentionTask {
    /// Runs until the future is dropped, which leaves every history as it was published last.
    pub async fn run(self) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tick.tick().await;
            self.look().await;
        }
    }

    async fn look(&self) {
        let (retention, now) = ((self.retention)(), (self.wall)());
        for (service, release) in self.histories.releases() {
            if tend(&release, &*self.busy, &retention, now).is_none() {
                continue;
            }
            let busy = Arc::clone(&self.busy);
            // Of what is published at that moment.
            let edit = move |release: &Release| {
                let next = tend(release, &*busy, &retention, now);
                Ok(next.unwrap_or_else(|| (*release.history).clone()))
            };
            if let Err(error) = self.histories.edit(&service, edit).await {
                tracing::warn!(%service, "revisions are not collected: {error}");
            }
        }
    }
}

/// The bound of the templates of one history, in bytes: a document of the state directory has at most 16 MiB.
const MAX_BYTES: usize = 12 << 20;

/// The history of a release at this time, in seconds since 1970, without the revisions that are not kept any longer. Notes, too,
/// since when nothing leads to a revision. `None`: nothing is to be changed.
///
/// Never collected are the latest revision, what a share, a tag, a rollout or an override leads to, and what is `busy`, which
/// says whether a revision has requests or waiters.
pub fn tend(
    release: &Release,
    busy: impl Fn(&RevisionId) -> bool,
    retention: &Retention,
    now: u64,
) -> Option<ServiceHistory> {
    let history = &release.history;
    if history.revisions.is_empty() {
        return None;
    }
    let flags = history
        .revisions
        .iter()
        .map(|kept| is_active(release, &kept.name, &busy));
    let flags: Vec<bool> = flags.collect();
    let is_other = history
        .revisions
        .iter()
        .zip(&flags)
        .any(|(kept, active)| kept.active != *active);
    let free = flags.iter().filter(|active| !**active).count();
    let is_small = history.revisions.iter().map(size).sum::<usize>() <= MAX_BYTES;
    // The usual case costs no copy.
    if !is_other && is_small && free <= retention.min_non_active {
        return None;
    }
    let mut next: ServiceHistory = (**history).clone();
    for (kept, active) in next.revisions.iter_mut().zip(flags) {
        if kept.active && !active {
            kept.last_active = now;
        }
        kept.active = active;
    }
    collect(&mut next.revisions, retention, now);
    (next != **history).then_some(next)
}

fn is_active(release: &Release, name: &str, busy: &impl Fn(&RevisionId) -> bool) -> bool {
    let history: &Arc<ServiceHistory> = &release.history;
    let is_named = |id: &&RevisionId| id.name() == name;
    let rollout = history.rollout.as_ref().filter(|rollout| rollout.state.is_open());
    let over = history.over.as_ref();
    release
        .revisions
        .last()
        .is_some_and(|latest| latest.name() == name)
        || release.reached.iter().any(|id| id.name() == name)
        || history.settled.as_deref() == Some(name)
        || rollout.is_some_and(|rollout| rollout.candidate == name)
        || over.is_some_and(|over| over.pinned.as_deref() == Some(name))
        || release.revisions.iter().find(is_named).is_some_and(busy)
}

/// Removes revisions: the oldest first of those that nothing leads to.
fn collect(revisions: &mut Vec<KeptRevision>, retention: &Retention, now: u64) {
    // Numbers are not given twice: the greatest one says which is next.
    let greatest = revisions.iter().map(|kept| kept.generation).max();
    let is_free =
        |kept: &KeptRevision| !kept.active && Some(kept.generation) != greatest && !is_kept_by_hand(kept);
    let mut free: Vec<(u64, u32, String)> = revisions
        .iter()
        .filter(|kept| is_free(kept))
        .map(|kept| {
            (
                kept.last_active.max(kept.created),
                kept.generation,
                kept.name.clone(),
            )
        })
        .collect();
    free.sort();
    let Retention {
        since_create,
        since_last_active,
        min_non_active: min,
        max_non_active: max,
    } = *retention;
    let is_stale = |kept: &KeptRevision| {
        let is_over = |limit: Option<Duration>, since: u64| {
            limit.is_none_or(|limit| now.saturating_sub(since) >= limit.as_secs())
        };
        let counts = since_create.is_some() || since_last_active.is_some();
        counts && is_over(since_create, kept.created) && is_over(since_last_active, kept.last_active)
    };
    let mut left = free.len();
    let find = |revisions: &[KeptRevision], name: &str| revisions.iter().position(|kept| kept.name == name);
    let remove = |revisions: &mut Vec<KeptRevision>, name: &str| {
        find(revisions, name).map_or(0, |nth| size(&revisions.remove(nth)))
    };
    // First those that are stale, then the oldest of too many.
    free.retain(|(_, _, name)| {
        let is_gone = left > min && find(revisions, name).is_some_and(|nth| is_stale(&revisions[nth]));
        if is_gone {
            left -= 1;
            remove(revisions, name);
        }
        !is_gone
    });
    let mut bytes: usize = revisions.iter().map(size).sum();
    for (_, _, name) in free {
        if max.is_none_or(|max| left <= max) && bytes <= MAX_BYTES {
            break;
        }
        left -= 1;
        bytes -= remove(revisions, &name);
    }
}

/// The annotation that keeps a revision whatever its age.
const NO_GC: &str = "serving.knative.dev/no-gc";

fn is_kept_by_hand(kept: &KeptRevision) -> bool {
    kept.template["metadata"]["annotations"][NO_GC] == "true"
}

/// Bytes of a revision in its document, about.
fn size(kept: &KeptRevision) -> usize {
    fn of(value: &serde_json::Value) -> usize {
        match value {
            serde_json::Value::String(text) => text.len() + 3,
            serde_json::Value::Array(items) => items.iter().map(of).sum::<usize>() + 2,
            serde_json::Value::Object(entries) => {
                entries
                    .iter()
                    .map(|(key, value)| key.len() + of(value) + 4)
                    .sum::<usize>()
                    + 2
            }
            _ => 8,
        }
    }
    128 + kept.name.len() + of(&kept.template)
}

#[cfg(test)]
#[path = "retention_tests.rs"]
mod tests;

//! The reconciler's side of histories: edits come in, releases and documents go out.

use super::edits::{Edit, Edits};
use super::history::Histories;
use super::records::{record, restore};
use crate::index::ReleaseChange;
use crate::state::StateHandle;

/// What the reconciler records histories with.
pub struct Recorder {
    edits: Edits,
    state: Option<StateHandle>,
    /// The state directory is another process's, whose last documents are awaited.
    is_awaiting: bool,
    /// The wall clock, in seconds since 1970.
    wall: Box<dyn Fn() -> u64 + Send + Sync>,
}

/// A change of histories that comes from elsewhere than files.
pub(crate) enum HistoryChange {
    /// A rollout or a command.
    Edit(Box<Edit>),
    /// The older process of an upgrade left these.
    Restored(Histories),
}

impl Recorder {
    /// A recorder of these edits. `state`: where histories outlive the process; `wall` returns seconds since 1970.
    pub fn new(
        edits: Edits,
        state: Option<StateHandle>,
        wall: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Self {
        Self {
            is_awaiting: state.as_ref().is_some_and(|state| !state.is_open()),
            edits,
            state,
            wall: Box::new(wall),
        }
    }

    pub(crate) fn now(&self) -> u64 {
        (self.wall)()
    }

    /// Waits for the next change. While an older process has the state directory edits wait: it may still write. Cancel-safe.
    pub(crate) async fn changed(&mut self) -> HistoryChange {
        loop {
            if let Some(state) = self.state.as_ref().filter(|_| self.is_awaiting) {
                state.opened().await;
                self.is_awaiting = false;
                match state.documents().map(|documents| restore(&documents)) {
                    Some(Ok(histories)) => return HistoryChange::Restored(histories),
                    Some(Err(error)) => tracing::error!("state: {error}"),
                    None => {}
                }
            }
            match self.edits.queue.recv().await {
                Some(edit) => return HistoryChange::Edit(Box::new(edit)),
                // Every handle is gone.
                None => std::future::pending::<()>().await,
            }
        }
    }

    /// Shows the releases, and writes histories to the state directory.
    pub(crate) fn record(&self, changes: Vec<ReleaseChange>) {
        // An older process may still write: what it leaves is restored, and recorded with what is new.
        if let Some(state) = self.state.as_ref().filter(|_| !self.is_awaiting) {
            record(state, &changes);
        }
        let releases = changes.into_iter().map(|change| (change.service, change.release));
        self.edits.shared.set(releases);
    }
}

// By hand: the clock, a closure, has no text.
impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder")
            .field("edits", &self.edits)
            .field("is_awaiting", &self.is_awaiting)
            .finish_non_exhaustive()
    }
}

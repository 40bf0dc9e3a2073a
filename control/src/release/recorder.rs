//! The reconciler's side of histories: edits come in, releases and documents go out.

use tokio::sync::oneshot;

use super::edits::{Edits, Request};
use super::history::Histories;
use super::records::record;
use crate::index::ReleaseChange;
use crate::state::StateHandle;

/// What the reconciler records histories with.
pub struct Recorder {
    edits: Edits,
    state: Option<StateHandle>,
    /// The wall clock, in seconds since 1970.
    wall: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl Recorder {
    /// A recorder of these edits. `state`: where histories outlive the process; `wall` returns seconds since 1970.
    pub fn new(
        edits: Edits,
        state: Option<StateHandle>,
        wall: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Self {
        Self {
            edits,
            state,
            wall: Box::new(wall),
        }
    }

    pub(crate) fn now(&self) -> u64 {
        (self.wall)()
    }

    /// Waits for the next request; while another process is about to take over they wait. Cancel-safe.
    pub(crate) async fn request(&mut self) -> Request {
        loop {
            let mut frozen = self.edits.shared.frozen.subscribe();
            // The sender lives as long as this recorder.
            let _ = frozen.wait_for(|frozen| !frozen).await;
            match self.edits.queue.recv().await {
                // Who asked has given up: to carry it out later would surprise whoever tried again.
                Some(Request::Edit(edit)) if edit.done.is_closed() => {}
                Some(request) => return request,
                // Every handle is gone.
                None => std::future::pending::<()>().await,
            }
        }
    }

    /// Stops all requests, and tells the histories as they are.
    pub(crate) fn freeze(&self, histories: Histories, to: oneshot::Sender<Histories>) {
        // Before they are told: whoever thaws does so afterwards.
        if !to.is_closed() {
            self.edits.shared.frozen.send_replace(true);
        }
        // Nobody may wait for them any more.
        let _ = to.send(histories);
    }

    /// Shows the releases, and writes histories to the state directory: once it is this process's.
    pub(crate) fn record(&self, changes: Vec<ReleaseChange>) {
        if let Some(state) = &self.state {
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
            .finish_non_exhaustive()
    }
}

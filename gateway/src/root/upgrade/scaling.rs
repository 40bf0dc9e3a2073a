//! The scaling's part of an upgrade, in both processes. **This is where the two halves meet**: the
//! sequence in `old` and `new` calls these and knows nothing else of scaling.
//!
//! ```text
//! O                                   N
//! ◀─────────────── Prepared ───────── built and bound, scales nothing yet
//! Giving::hand_over ── Scaling* ────▶ Taking::heard, once for each
//! ──────────────────── Take ────────▶ Taking::take_over, before anything is started
//! ◀─────────────── Serving ────────── from here on only N scales
//! Giving::follow ◀──── Scaling* ────▶ Taking::follow, until O is gone
//! ```
//!
//! Whatever goes wrong before `Serving` ends in `Giving::take_back`, and N is ended.

use std::os::fd::OwnedFd;

use bytes::Bytes;

use super::wire::{Channel, Frame, Receiver, Sender, WireError};

/// The old process's side.
#[derive(Debug, Default)]
pub(crate) struct Giving {}

impl Giving {
    /// Stops scaling and says what there is to know, as any number of [`Frame::Scaling`] with their
    /// descriptors. May be dropped half way; [`Self::take_back`] follows then.
    pub(crate) async fn hand_over(&mut self, channel: &mut Channel) -> Result<(), WireError> {
        // Nothing changes hands: instances stay with the process that started them until it is gone.
        channel.send(&Frame::Scaling(Bytes::new()), Vec::new()).await
    }

    /// The new process did not acknowledge: everything is as before.
    pub(crate) async fn take_back(&mut self) {}

    /// The new process scales. Runs beside the drain, until this process ends.
    pub(crate) async fn follow(self, sender: Sender, mut receiver: Receiver) {
        while receiver.recv().await.is_ok() {}
        drop(sender);
    }
}

/// The new process's side.
#[derive(Debug, Default)]
pub(crate) struct Taking {}

impl Taking {
    /// One part of what the old process hands over.
    pub(crate) fn heard(&mut self, _state: Bytes, _descriptors: Vec<OwnedFd>) -> Result<(), String> {
        Ok(())
    }

    /// Runs as long as the old process lives. Returns when it is gone.
    pub(crate) async fn follow(self, sender: Sender, mut receiver: Receiver) {
        while receiver.recv().await.is_ok() {}
        drop(sender);
    }
}

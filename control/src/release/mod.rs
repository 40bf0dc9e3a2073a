//! Releases: what a service is besides what files say. Which revisions it had so far, which of them has the traffic of
//! `latestRevision` targets, and what an operator overrode.
//!
//! ```text
//! text ── compile ──> CompiledService + Declared ──┐
//!                                                  ├── apply ──> CompiledService ── publish
//! state.directory, rollout, commands ──> ServiceHistory
//! ```
//!
//! A compiled service has the traffic that files declare. The history of the service decides at publication what a target
//! `latestRevision` means; so a change of the history (a step of a rollout, a rollback) is published without the files,
//! even while they have a mistake.
//!
//! **Invariants:** publishing the same files and history again gives the same service and history. A revision that some
//! share or tag leads to is never left out.

mod commands;
mod declared;
mod difference;
mod edits;
mod history;
mod recorder;
mod records;
mod retention;

pub use commands::{Command, Done, without_override};
pub(crate) use declared::{Declared, DeclaredTarget, split_at_once};
pub use difference::differences;
pub use edits::{Edit, EditError, Edits, HistoryHandle, Release};
pub(crate) use edits::{HistoryEdit, Request};
pub use history::{Histories, KeptRevision, Override, ServiceHistory};
pub use recorder::Recorder;
pub use records::restore;
pub use retention::{RetentionTask, tend};

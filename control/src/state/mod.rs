//! What outlives the process: named documents in a directory.
//!
//! ```text
//! directory/
//!   version                          "1": the format of the directory
//!   lock                             locked while a gateway uses it, with its process id
//!   forecast.default.greeter.json    a document: what a forecast learned
//!   revisions.default.greeter.json   another: the history of a service
//! ```
//!
//! [`Store`] writes documents at once, [`Documents`] reads them; [`StateHandle`] queues writes for one [`StateWriter`], so that
//! nobody waits for the disk. A document is written beside its place, synced and renamed into it: after a crash it is the old one or the new
//! one, whole.

mod store;
mod writer;

pub use store::{Documents, StateError, Store};
pub use writer::{StateHandle, StateWriter};

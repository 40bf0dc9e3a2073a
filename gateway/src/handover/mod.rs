//! Two processes of an upgrade share their endpoints: the data plane's part.
//!
//! The older process is the [`Guest`]: it flips its throttlers, says what it has in flight, and from then on sends requests
//! only on slots that the newer one leases to it. The newer one is the [`Host`]: it counts what the guest holds, so that no
//! endpoint ever holds more than its limit, both together, and no revision goes to zero while the older process has a request
//! of it. The leases themselves are the throttlers' (`throttle/lease.rs`).
//!
//! Neither knows how messages get across; the order of those in one direction has to be kept.

mod desk;
mod guest;
mod host;

#[cfg(test)]
mod sim_tests;
#[cfg(test)]
mod tests;

pub use desk::{Desk, DeskMessage};
pub use guest::Guest;
pub use host::Host;

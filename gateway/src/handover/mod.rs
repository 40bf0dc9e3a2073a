//! Two processes of an upgrade share their endpoints: the data plane's part.
//!
//! The older process is the [`Guest`]: it flips its throttlers, says what it has in flight, and
//! from then on asks the newer one for every slot. The newer one is the [`Host`]: it counts what
//! the guest has as its own, so that no endpoint ever holds more than its limit, both together, and
//! no revision goes to zero while the older process has a request of it.
//!
//! Neither knows how messages get across; the order of those in one direction has to be kept.

mod guest;
mod host;
mod wire;

#[cfg(test)]
mod sim_tests;
#[cfg(test)]
mod tests;

pub use guest::Guest;
pub use host::Host;
pub use wire::{Desk, ToGuest, ToHost};

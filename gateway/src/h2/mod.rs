//! What the gateway watches on an HTTP/2 connection beside Pingora and the `h2` crate.
//!
//! They answer a PING, a SETTINGS or a reset for as long as a client sends them. [`FrameGuard`] goes over the
//! frame heads of the bytes both ways, without I/O or a clock of its own, and says when frames that carry no
//! work outnumber what the work done explains. `LastTurn` lets one write carry the frames of many streams.

mod allowance;
mod frames;
mod guard;
mod last_turn;

pub use allowance::Allowance;
pub use frames::{FrameHeader, FrameScanner};
pub use guard::{Flood, FrameGuard, FrameLimits, OutboundEvent, StreamRefusal};
pub(crate) use last_turn::LastTurn;

//! HTTP/2 flood protection and write batching, beside the `h2` crate.
//!
//! The `h2` crate answers PING, SETTINGS and resets for as long as a client sends them. [`FrameGuard`] scans
//! the frame headers of the bytes in both directions, without I/O or a clock of its own, and reports a flood
//! when frames that carry no work outnumber what the work done explains. `LastTurn` lets one write carry the
//! frames of many streams.

mod frames;
mod guard;
mod last_turn;

pub use frames::{FrameHeader, FrameScanner};
pub use guard::{Flood, FrameGuard, FrameLimits, OutboundEvent, StreamRefusal};
pub(crate) use last_turn::LastTurn;

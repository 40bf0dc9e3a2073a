//! The HTTP/1 codec of both sides, sans-IO: parses and validates heads and chunks, and encodes them.
//!
//! [`scan`] finds the end of a request head, [`judge`] validates the head for routing and framing, and
//! [`RequestHead`] gives access to its parts; [`scan_response`], [`judge_response`] and [`ResponseHead`] do
//! the same for a backend's response. [`ChunkDecoder`] removes chunk framing, [`encode`] writes heads and
//! chunks.
//!
//! **Invariant:** no I/O, no clock, no allocation for ordinary messages, and no other module of this crate is
//! named here. Every parser behind the gateway reads a head that passes in the same way.

mod chunk;
mod date;
pub mod encode;
mod fault;
mod head;
mod judge;
mod limits;
mod rejected_head;
mod response;
mod scan;
mod syntax;
mod target;

pub use chunk::{ChunkDecoder, ChunkFault, ChunkRun};
pub use date::HttpDate;
pub use fault::{FieldFault, HeadFault, ResponseFault};
pub use head::{HeadInfo, RequestFraming, RequestHead, Upgrade, Version};
pub use judge::judge;
pub use limits::{ChunkLimits, HeadLimits, ResponseLimits};
pub use rejected_head::RejectedHead;
pub use response::{ResponseFraming, ResponseHead, ResponseInfo, ResponseTo, judge_response, scan_response};
pub use scan::{Scan, scan};
pub use syntax::{ConnectionOptions, FieldLines, Span};
pub use target::{TargetFault, judge_target};

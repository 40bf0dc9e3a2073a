//! The HTTP/1 codec of both sides, sans-IO: bytes in, verdicts and bytes out.
//!
//! [`scan`] finds where a request's head ends, [`judge`] says whether it can be routed and framed
//! safely, [`RequestHead`] reads it; [`scan_response`], [`judge_response`] and [`ResponseHead`] do the
//! same for what a backend answers. [`ChunkDecoder`] takes chunk framing off, [`encode`] writes heads
//! and chunks.
//!
//! **Invariant:** no I/O, no clock, no allocation for what is ordinary, and no other module of this
//! crate is named here. What one side lets through, every parser behind it reads the same way.

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

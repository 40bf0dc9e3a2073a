//! HTTP/1 before Pingora: heads are read whole and judged, bodies are handed out exactly.
//!
//! Pingora's parser forgives what a gateway must not (bare LF, two Content-Length fields, spaces in
//! the target), knows no deadline for a whole head and reads past a message's end. So the keep-alive
//! loop is ours: [`GuardedStream::next_head`] reads and judges one head, and the stream then replays
//! that head and its body, and not one byte more, to whoever reads it.
//!
//! **Invariant:** [`scan`], [`judge`] and [`ChunkDecoder`] are pure: no I/O, no clock.

mod body;
mod chunk;
mod context;
mod fault;
mod frames;
mod glimpse;
mod head;
mod judge;
mod limits;
mod pingora;
mod scan;
mod stream;
mod timer;
mod write;

pub use body::BodyFault;
pub use chunk::{ChunkDecoder, ChunkFault, ChunkLimits};
pub use context::ConnectionContext;
pub use fault::{HeadError, HeadFault};
pub use glimpse::Glimpse;
pub use head::{Fields, Framing, Head, HeadInfo, Upgrade, Version};
pub use judge::judge;
pub use limits::{GuardLimits, HeadLimits};
pub use scan::{Scan, scan};
pub use stream::GuardedStream;

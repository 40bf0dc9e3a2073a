//! HTTP/1 before Pingora: heads are read whole and judged, bodies are handed out exactly.
//!
//! Pingora's parser forgives what a gateway must not (bare LF, two Content-Length fields, spaces in
//! the target), knows no deadline for a whole head and reads past a message's end. So the keep-alive
//! loop is ours: [`GuardedStream::next_head`] reads and judges one head, and the stream then replays
//! that head and its body, and not one byte more, to whoever reads it.
//!
//! What is pure lives in [`crate::http1`].

mod body;
mod context;
mod fault;
mod frames;
mod head;
mod limits;
mod pingora;
mod stream;
mod timer;
mod write;

pub use crate::http1::{
    ChunkDecoder, ChunkFault, ChunkLimits, FieldFault, Framing, Glimpse, HeadFault, HeadInfo, HeadLimits,
    Scan, Version, judge, scan,
};
pub use body::BodyFault;
pub use context::ConnectionContext;
pub use fault::HeadError;
pub use head::{Head, Offer};
pub use limits::GuardLimits;
pub use stream::GuardedStream;

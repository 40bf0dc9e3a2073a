//! HTTP/1 messages over a byte stream: pooled read buffers, a reader of bodies and a writer of messages.
//!
//! The layer between the sans-IO codec ([`crate::http1`]) and the two sides of an exchange: the client's
//! connection and the backend's use the same reader and the same writer.

mod buffer;
mod prefixed;
mod reader;
mod writer;

pub(crate) use buffer::{BLOCK, Buffer};
pub(crate) use prefixed::PrefixedIo;
pub(crate) use reader::{BodyReader, ReadFault};
pub(crate) use writer::{BodyFraming, HeadSink, MessageWriter};

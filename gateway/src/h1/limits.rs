//! What of the settings counts here.

use std::time::Duration;

use sluice_model::Limits;

use super::chunk::ChunkLimits;
use crate::request::Pace;

/// The longest target that the `http` crate behind us can hold.
const MAX_TARGET: usize = u16::MAX as usize - 1;

/// Bounds of one request head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLimits {
    /// The head's bytes, request line and empty line included.
    pub max_bytes: usize,
    /// The head's fields.
    pub max_headers: usize,
    /// The request target's bytes.
    pub max_uri_bytes: usize,
}

impl From<&Limits> for HeadLimits {
    fn from(limits: &Limits) -> Self {
        Self {
            max_bytes: limits.max_header_bytes,
            max_headers: limits.max_headers,
            max_uri_bytes: limits.max_uri_bytes.min(MAX_TARGET),
        }
    }
}

/// Bounds of what follows a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuardLimits {
    /// A body's bytes without its chunk framing; `None`: no limit.
    pub max_body_bytes: Option<u64>,
    /// How slowly a body that somebody waits for may come.
    pub body_pace: Pace,
    /// For a whole head of HTTP/2, its CONTINUATION frames included.
    pub head_timeout: Duration,
    /// For how long a client may accept no byte of what is written.
    pub write_timeout: Duration,
    /// Bounds of chunk framing.
    pub chunk: ChunkLimits,
}

impl From<&Limits> for GuardLimits {
    fn from(limits: &Limits) -> Self {
        Self {
            max_body_bytes: limits.max_body_bytes,
            body_pace: Pace::new(limits.body_read_timeout, limits.min_body_rate),
            head_timeout: limits.header_timeout,
            write_timeout: limits.write_timeout,
            chunk: ChunkLimits::from(limits),
        }
    }
}

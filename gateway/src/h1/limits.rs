//! What of the settings counts here.

use std::time::Duration;

use sluice_model::Limits;

use crate::http1::ChunkLimits;
use crate::request::Pace;

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

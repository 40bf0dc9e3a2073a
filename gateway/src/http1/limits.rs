//! Size limits of heads and of chunk framing.

use sluice_model::Limits;

/// The longest target that the `http` crate can hold, in bytes.
const MAX_TARGET: usize = u16::MAX as usize - 1;

/// The longest head whose parts fit a [`Span`](super::Span), in bytes.
const MAX_HEAD: usize = 1 << 30;

/// Upper bound of a trailer section, in bytes: few clients and backends get trailers at all.
const MAX_TRAILER_BYTES: usize = 16 * 1024;

/// Upper bound of all chunk extensions of one body, in bytes: the gateway ignores them.
const MAX_EXTENSION_BYTES: usize = 16 * 1024;

/// Size limits of one request head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLimits {
    /// The head's bytes, request line and empty line included. At most 1 GiB count.
    pub max_bytes: usize,
    /// The head's fields.
    pub max_headers: usize,
    /// The request target's bytes.
    pub max_uri_bytes: usize,
}

impl HeadLimits {
    /// The limit on the head's bytes that positions can hold.
    pub(super) fn bytes(&self) -> usize {
        self.max_bytes.min(MAX_HEAD)
    }
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

/// Size limits of one response head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResponseLimits {
    /// The head's bytes, status line and empty line included. At most 1 GiB count.
    pub max_bytes: usize,
    /// The head's fields.
    pub max_fields: usize,
}

impl ResponseLimits {
    /// The limit on the head's bytes that positions can hold.
    pub(super) fn bytes(&self) -> usize {
        self.max_bytes.min(MAX_HEAD)
    }
}

impl Default for ResponseLimits {
    /// 64 KiB and 256 fields: backends are rarely hostile, but one that is must not fill memory.
    fn default() -> Self {
        Self {
            max_bytes: 64 * 1024,
            max_fields: 256,
        }
    }
}

/// Size limits of chunk framing, per body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkLimits {
    /// Bytes of all chunk extensions together.
    pub max_extension_bytes: usize,
    /// Bytes of the trailer section.
    pub max_trailer_bytes: usize,
    /// Fields of the trailer section.
    pub max_trailers: usize,
}

impl From<&Limits> for ChunkLimits {
    fn from(limits: &Limits) -> Self {
        Self {
            max_extension_bytes: MAX_EXTENSION_BYTES,
            max_trailer_bytes: limits.max_header_bytes.min(MAX_TRAILER_BYTES),
            max_trailers: limits.max_headers,
        }
    }
}

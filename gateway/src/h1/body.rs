//! How much of what comes belongs to the current body.

use std::io;

use thiserror::Error;

use super::limits::GuardLimits;
use crate::edge::CloseReason;
use crate::http1::{ChunkDecoder, ChunkFault, Framing};
use crate::observe::Reason;

/// Why a request's body, or the connection under it, ends before its time. The connection ends, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BodyFault {
    /// More bytes than the limit.
    #[error("the request body is longer than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// Chunk framing that is not served.
    #[error(transparent)]
    Chunk(#[from] ChunkFault),
    /// Somebody waited for body bytes, and none came, or too few for too long.
    #[error("the request body did not come in time")]
    ReadTimeout,
    /// The client accepted no byte of what was written.
    #[error("the client did not read the response in time")]
    WriteTimeout,
    /// The client left in the middle of the body.
    #[error("the client left in the middle of the request body")]
    ClientGone,
}

impl BodyFault {
    /// The contract's reason.
    pub fn reason(&self) -> Reason {
        match self {
            Self::TooLarge { .. } => Reason::BodyTooLarge,
            Self::Chunk(_) => Reason::BadRequest,
            Self::ReadTimeout => Reason::RequestTimeout,
            Self::WriteTimeout | Self::ClientGone => Reason::ClientGone,
        }
    }

    /// What it means for the count of closed connections, if anything of its own.
    pub(super) fn closes_for(&self) -> Option<CloseReason> {
        match self {
            Self::ReadTimeout => Some(CloseReason::BodyTimeout),
            Self::WriteTimeout => Some(CloseReason::WriteTimeout),
            Self::TooLarge { .. } | Self::Chunk(_) | Self::ClientGone => None,
        }
    }

    /// The status to answer with where the response head is not sent yet; 499 is for the log alone.
    pub fn status(&self) -> u16 {
        match self {
            Self::TooLarge { .. } => 413,
            Self::Chunk(_) => 400,
            Self::ReadTimeout => 408,
            Self::WriteTimeout | Self::ClientGone => 499,
        }
    }
}

impl From<BodyFault> for io::Error {
    fn from(fault: BodyFault) -> Self {
        let kind = match fault {
            BodyFault::TooLarge { .. } | BodyFault::Chunk(_) => io::ErrorKind::InvalidData,
            BodyFault::ReadTimeout | BodyFault::WriteTimeout => io::ErrorKind::TimedOut,
            BodyFault::ClientGone => io::ErrorKind::UnexpectedEof,
        };
        Self::new(kind, fault)
    }
}

/// The rest of one body.
#[derive(Debug)]
pub(super) enum BodyGuard {
    Length(u64),
    Chunked {
        // Boxed: most requests have no chunked body, and an idle connection should stay small.
        decoder: Box<ChunkDecoder>,
        limit: Option<u64>,
    },
}

impl BodyGuard {
    /// No body, or one that is over.
    pub(super) const DONE: Self = Self::Length(0);

    pub(super) fn new(framing: Framing, limits: &GuardLimits) -> Self {
        match framing {
            Framing::None => Self::DONE,
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked {
                decoder: Box::new(ChunkDecoder::new(limits.chunk)),
                limit: limits.max_body_bytes,
            },
        }
    }

    pub(super) fn complete(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked { decoder, .. } => decoder.complete(),
        }
    }

    /// How much of `room` may be read at once. A chunked body's end is only known once read, so it
    /// may be read past: the caller keeps what [`accept`](Self::accept) leaves.
    pub(super) fn ceiling(&self, room: usize) -> usize {
        match self {
            Self::Length(left) => usize::try_from(*left).map_or(room, |left| left.min(room)),
            Self::Chunked { .. } => room,
        }
    }

    /// Takes the next bytes; says how many of them belong to the body.
    pub(super) fn accept(&mut self, data: &[u8]) -> Result<usize, BodyFault> {
        match self {
            Self::Length(left) => {
                let taken = usize::try_from(*left).map_or(data.len(), |left| left.min(data.len()));
                *left -= taken as u64;
                Ok(taken)
            }
            Self::Chunked { decoder, limit } => {
                let taken = decoder.advance(data)?;
                match *limit {
                    Some(limit) if decoder.payload() > limit => Err(BodyFault::TooLarge { limit }),
                    _ => Ok(taken),
                }
            }
        }
    }
}

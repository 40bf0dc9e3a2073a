//! Where a chunked body ends.

use sluice_model::Limits;
use thiserror::Error;

/// Trailers are thrown away by what reads the body after us, so they get no more room than this.
const MAX_TRAILER_BYTES: usize = 16 * 1024;

/// Chunk extensions carry nothing that anybody reads, one body's together.
const MAX_EXTENSION_BYTES: usize = 16 * 1024;

/// Hexadecimal digits of a chunk's size: as many as 64 bits have.
const MAX_SIZE_DIGITS: u8 = 16;

/// Bounds of chunk framing, per body.
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

/// What is wrong with chunk framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ChunkFault {
    /// A chunk size that does not begin with a hexadecimal digit, or goes on with this byte.
    #[error("a chunk size has the byte {0:#04x}")]
    BadSize(u8),
    /// A chunk size of more than 16 digits.
    #[error("a chunk size is too long")]
    SizeTooLong,
    /// A control byte in a chunk extension.
    #[error("a chunk extension has the byte {0:#04x}")]
    BadExtension(u8),
    /// More chunk extensions than the limit.
    #[error("the chunk extensions are too long")]
    ExtensionsTooLong,
    /// A chunk or its size line does not end with CRLF.
    #[error("a chunk does not end with CRLF")]
    MissingCrlf,
    /// A byte that a trailer cannot have where it stands.
    #[error("a trailer has the byte {0:#04x}")]
    BadTrailer(u8),
    /// More trailers than the limit, in bytes or fields.
    #[error("the trailers are too large")]
    TrailersTooLarge,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size { digits: u8, value: u64 },
    Extension { value: u64 },
    SizeLf { value: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
    Complete,
}

/// Follows chunk framing through raw bytes in whatever pieces they come. Holds no byte of them.
#[derive(Debug, Clone)]
pub struct ChunkDecoder {
    state: State,
    limits: ChunkLimits,
    payload: u64,
    extension_bytes: usize,
    trailer_bytes: usize,
    trailers: usize,
}

impl ChunkDecoder {
    /// At the beginning of a body.
    pub fn new(limits: ChunkLimits) -> Self {
        Self {
            state: State::Size { digits: 0, value: 0 },
            limits,
            payload: 0,
            extension_bytes: 0,
            trailer_bytes: 0,
            trailers: 0,
        }
    }

    /// Whether the body is over, trailers included.
    pub fn complete(&self) -> bool {
        self.state == State::Complete
    }

    /// The body's bytes so far, without framing.
    pub fn payload(&self) -> u64 {
        self.payload
    }

    /// Takes the next raw bytes; says how many of them belong to the body. Fewer than given only
    /// when the body is over: the rest is the next request's.
    ///
    /// # Errors
    /// [`ChunkFault`]; the decoder is of no use afterwards.
    pub fn advance(&mut self, data: &[u8]) -> Result<usize, ChunkFault> {
        let mut at = 0;
        while let Some(&byte) = data.get(at) {
            if let State::Data { left } = self.state {
                let here = usize::try_from(left).map_or(data.len() - at, |left| left.min(data.len() - at));
                at += here;
                self.payload = self.payload.saturating_add(here as u64);
                let left = left - here as u64;
                self.state = if left == 0 {
                    State::DataCr
                } else {
                    State::Data { left }
                };
                continue;
            }
            if self.complete() {
                break;
            }
            self.state = self.step(byte)?;
            at += 1;
        }
        Ok(at)
    }

    fn step(&mut self, byte: u8) -> Result<State, ChunkFault> {
        if matches!(
            self.state,
            State::TrailerStart | State::TrailerName | State::TrailerValue
        ) {
            self.trailer_bytes += 1;
            if self.trailer_bytes > self.limits.max_trailer_bytes {
                return Err(ChunkFault::TrailersTooLarge);
            }
        }
        match (self.state, byte) {
            (State::Size { digits, value }, byte) => match char::from(byte).to_digit(16) {
                Some(_) if digits == MAX_SIZE_DIGITS => Err(ChunkFault::SizeTooLong),
                Some(digit) => Ok(State::Size {
                    digits: digits + 1,
                    value: value << 4 | u64::from(digit),
                }),
                None if digits == 0 => Err(ChunkFault::BadSize(byte)),
                None if byte == b';' => self.extension(value),
                None if byte == b'\r' => Ok(State::SizeLf { value }),
                // Whitespace before the extension is tolerated by some and refused by others.
                None => Err(ChunkFault::BadSize(byte)),
            },
            (State::Extension { value }, b'\r') => Ok(State::SizeLf { value }),
            (State::Extension { value }, b'\t' | 0x20..=0x7e | 0x80..) => self.extension(value),
            (State::Extension { .. }, byte) => Err(ChunkFault::BadExtension(byte)),
            (State::SizeLf { value: 0 }, b'\n') => Ok(State::TrailerStart),
            (State::SizeLf { value }, b'\n') => Ok(State::Data { left: value }),
            (State::DataCr, b'\r') => Ok(State::DataLf),
            (State::DataLf, b'\n') => Ok(State::Size { digits: 0, value: 0 }),
            (State::SizeLf { .. } | State::DataCr | State::DataLf, _) => Err(ChunkFault::MissingCrlf),
            (State::TrailerStart, b'\r') => Ok(State::EndLf),
            (State::TrailerStart, byte) if super::judge::is_token_byte(byte) => {
                self.trailers += 1;
                if self.trailers > self.limits.max_trailers {
                    return Err(ChunkFault::TrailersTooLarge);
                }
                Ok(State::TrailerName)
            }
            (State::TrailerName, b':') => Ok(State::TrailerValue),
            (State::TrailerName, byte) if super::judge::is_token_byte(byte) => Ok(State::TrailerName),
            (State::TrailerValue, b'\r') => Ok(State::TrailerLf),
            (State::TrailerValue, byte) if super::judge::is_value_byte(byte) => Ok(State::TrailerValue),
            (State::TrailerLf, b'\n') => Ok(State::TrailerStart),
            (State::EndLf, b'\n') => Ok(State::Complete),
            // Data and Complete never come here: `advance` handles both.
            (_, byte) => Err(ChunkFault::BadTrailer(byte)),
        }
    }

    fn extension(&mut self, value: u64) -> Result<State, ChunkFault> {
        self.extension_bytes += 1;
        if self.extension_bytes > self.limits.max_extension_bytes {
            return Err(ChunkFault::ExtensionsTooLong);
        }
        Ok(State::Extension { value })
    }
}

#[cfg(test)]
#[path = "chunk_tests.rs"]
mod tests;

//! Decoder of chunk framing (RFC 9112, 7.1).

use thiserror::Error;

use super::limits::ChunkLimits;
use super::syntax::{FieldLines, is_token_byte, is_value_byte};

/// Hexadecimal digits of a chunk's size: as many as 64 bits take.
const MAX_SIZE_DIGITS: u8 = 16;

/// Faults of chunk framing.
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
    /// A byte that is not allowed at its place in a trailer.
    #[error("a trailer has the byte {0:#04x}")]
    BadTrailer(u8),
    /// More trailers than the limit, in bytes or fields.
    #[error("the trailers are too large")]
    TrailersTooLarge,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChunkState {
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

/// The next raw bytes of a chunked body: framing, then payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChunkRun {
    /// Bytes of framing, to be dropped.
    pub skip: usize,
    /// Bytes of payload behind them.
    pub data: usize,
}

/// An incremental decoder of chunk framing, over raw bytes in any pieces. Holds no byte except, where they
/// are kept, the trailers.
#[derive(Debug, Clone)]
pub struct ChunkDecoder {
    state: ChunkState,
    limits: ChunkLimits,
    payload: u64,
    extension_bytes: usize,
    trailer_bytes: usize,
    trailers: usize,
    /// The lines of the trailer section; `None` where trailers are not kept.
    section: Option<Vec<u8>>,
}

impl ChunkDecoder {
    /// A decoder for a body whose trailers are checked and dropped.
    pub fn new(limits: ChunkLimits) -> Self {
        Self {
            state: ChunkState::Size { digits: 0, value: 0 },
            limits,
            payload: 0,
            extension_bytes: 0,
            trailer_bytes: 0,
            trailers: 0,
            section: None,
        }
    }

    /// A decoder for a body whose trailers are kept for [`trailers`](Self::trailers).
    pub fn keeping_trailers(limits: ChunkLimits) -> Self {
        Self {
            section: Some(Vec::new()),
            ..Self::new(limits)
        }
    }

    /// Whether the body is complete, trailers included.
    pub fn complete(&self) -> bool {
        self.state == ChunkState::Complete
    }

    /// Payload bytes so far.
    pub fn payload(&self) -> u64 {
        self.payload
    }

    /// The fields of the trailer section once the body is [`complete`](Self::complete), names as they were
    /// sent; none before, and none where they are not kept. Their meaning is not checked: fields of framing
    /// or routing may be among them (RFC 9110, 6.5.1).
    pub fn trailers(&self) -> FieldLines<'_> {
        match &self.section {
            Some(lines) if self.complete() => FieldLines::over(lines),
            _ => FieldLines::default(),
        }
    }

    /// Decodes raw bytes up to the end of the first run of payload; call again with the rest. Bytes behind
    /// the body are not consumed: both numbers are 0 then, and the body is [`complete`](Self::complete).
    ///
    /// # Errors
    /// [`ChunkFault`]; the decoder is of no use afterwards.
    #[inline]
    pub fn decode(&mut self, data: &[u8]) -> Result<ChunkRun, ChunkFault> {
        let mut skip = 0;
        while let Some(&byte) = data.get(skip) {
            match self.state {
                ChunkState::Data { left } => {
                    let here = data.len() - skip;
                    let here = usize::try_from(left).map_or(here, |left| left.min(here));
                    self.payload = self.payload.saturating_add(here as u64);
                    self.state = match left - here as u64 {
                        0 => ChunkState::DataCr,
                        left => ChunkState::Data { left },
                    };
                    return Ok(ChunkRun { skip, data: here });
                }
                ChunkState::Complete => break,
                _ => self.state = self.step(byte)?,
            }
            skip += 1;
        }
        Ok(ChunkRun { skip, data: 0 })
    }

    /// Decodes raw bytes and returns how many of them belong to the body. Fewer than given only when the body
    /// is complete: the rest is the next message's.
    ///
    /// # Errors
    /// [`ChunkFault`]; the decoder is of no use afterwards.
    pub fn advance(&mut self, data: &[u8]) -> Result<usize, ChunkFault> {
        let mut at = 0;
        while at < data.len() && !self.complete() {
            let piece = self.decode(&data[at..])?;
            at += piece.skip + piece.data;
        }
        Ok(at)
    }

    fn step(&mut self, byte: u8) -> Result<ChunkState, ChunkFault> {
        if matches!(
            self.state,
            ChunkState::TrailerStart | ChunkState::TrailerName | ChunkState::TrailerValue
        ) {
            self.trailer_bytes += 1;
            if self.trailer_bytes > self.limits.max_trailer_bytes {
                return Err(ChunkFault::TrailersTooLarge);
            }
        }
        let state = self.next_state(byte)?;
        if let Some(section) = &mut self.section
            && (matches!(
                state,
                ChunkState::TrailerName | ChunkState::TrailerValue | ChunkState::TrailerLf
            ) || self.state == ChunkState::TrailerLf)
        {
            section.push(byte);
        }
        Ok(state)
    }

    fn next_state(&mut self, byte: u8) -> Result<ChunkState, ChunkFault> {
        match (self.state, byte) {
            (ChunkState::Size { digits, value }, byte) => match char::from(byte).to_digit(16) {
                Some(_) if digits == MAX_SIZE_DIGITS => Err(ChunkFault::SizeTooLong),
                Some(digit) => Ok(ChunkState::Size {
                    digits: digits + 1,
                    value: value << 4 | u64::from(digit),
                }),
                None if digits == 0 => Err(ChunkFault::BadSize(byte)),
                None if byte == b';' => self.extension(value),
                None if byte == b'\r' => Ok(ChunkState::SizeLf { value }),
                // Whitespace before the extension is rejected: some parsers tolerate it and some do not.
                None => Err(ChunkFault::BadSize(byte)),
            },
            (ChunkState::Extension { value }, b'\r') => Ok(ChunkState::SizeLf { value }),
            (ChunkState::Extension { value }, b'\t' | 0x20..=0x7e | 0x80..) => self.extension(value),
            (ChunkState::Extension { .. }, byte) => Err(ChunkFault::BadExtension(byte)),
            (ChunkState::SizeLf { value: 0 }, b'\n') => Ok(ChunkState::TrailerStart),
            (ChunkState::SizeLf { value }, b'\n') => Ok(ChunkState::Data { left: value }),
            (ChunkState::DataCr, b'\r') => Ok(ChunkState::DataLf),
            (ChunkState::DataLf, b'\n') => Ok(ChunkState::Size { digits: 0, value: 0 }),
            (ChunkState::SizeLf { .. } | ChunkState::DataCr | ChunkState::DataLf, _) => {
                Err(ChunkFault::MissingCrlf)
            }
            (ChunkState::TrailerStart, b'\r') => Ok(ChunkState::EndLf),
            (ChunkState::TrailerStart, byte) if is_token_byte(byte) => {
                self.trailers += 1;
                if self.trailers > self.limits.max_trailers {
                    return Err(ChunkFault::TrailersTooLarge);
                }
                Ok(ChunkState::TrailerName)
            }
            (ChunkState::TrailerName, b':') => Ok(ChunkState::TrailerValue),
            (ChunkState::TrailerName, byte) if is_token_byte(byte) => Ok(ChunkState::TrailerName),
            (ChunkState::TrailerValue, b'\r') => Ok(ChunkState::TrailerLf),
            (ChunkState::TrailerValue, byte) if is_value_byte(byte) => Ok(ChunkState::TrailerValue),
            (ChunkState::TrailerLf, b'\n') => Ok(ChunkState::TrailerStart),
            (ChunkState::EndLf, b'\n') => Ok(ChunkState::Complete),
            // Data and Complete cannot occur here: `decode` handles both.
            (_, byte) => Err(ChunkFault::BadTrailer(byte)),
        }
    }

    fn extension(&mut self, value: u64) -> Result<ChunkState, ChunkFault> {
        self.extension_bytes += 1;
        if self.extension_bytes > self.limits.max_extension_bytes {
            return Err(ChunkFault::ExtensionsTooLong);
        }
        Ok(ChunkState::Extension { value })
    }
}

#[cfg(test)]
#[path = "chunk_tests.rs"]
mod tests;

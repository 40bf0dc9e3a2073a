//! The part of flate2 that pingora-core uses, on miniz_oxide.
//!
//! pingora-core asks flate2 for zlib-ng, whose build needs cmake, which a machine with Rust and a
//! C compiler may not have. Sluice does not use pingora's compression module; this keeps it
//! working all the same.

#![forbid(unsafe_code)]

/// How hard to compress, 0 to 9.
#[derive(Debug, Clone, Copy)]
pub struct Compression(u32);

impl Compression {
    /// Level 0 (store) to 9 (best).
    pub const fn new(level: u32) -> Self {
        Self(level)
    }
}

/// Gzip streams that are written to.
pub mod write {
    use std::io::{self, Write};

    use miniz_oxide::deflate::core::{CompressorOxide, create_comp_flags_from_zip_params};
    use miniz_oxide::deflate::stream::deflate;
    use miniz_oxide::inflate::stream::{InflateState, inflate};
    use miniz_oxide::{DataFormat, MZError, MZFlush, MZStatus};

    use crate::Compression;

    const CHUNK: usize = 4096;
    /// Magic, deflate, no flags, no time, no extra flags, unknown system (RFC 1952).
    const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

    /// Compresses what is written to it.
    pub struct GzEncoder<W> {
        inner: W,
        state: Box<CompressorOxide>,
        crc: crc32fast::Hasher,
        /// Uncompressed bytes, modulo 2^32, as the trailer wants them.
        length: u32,
        started: bool,
        finished: bool,
    }

    impl GzEncoder<Vec<u8>> {
        /// An encoder that appends to `inner`.
        pub fn new(inner: Vec<u8>, level: Compression) -> Self {
            let level = i32::try_from(level.0.min(9)).unwrap_or(6);
            let flags = create_comp_flags_from_zip_params(level, -15, 0);
            let (state, crc) = (Box::new(CompressorOxide::new(flags)), crc32fast::Hasher::new());
            Self {
                inner,
                state,
                crc,
                length: 0,
                started: false,
                finished: false,
            }
        }

        /// What was produced so far.
        pub fn get_ref(&self) -> &Vec<u8> {
            &self.inner
        }

        /// What was produced so far; may be taken away.
        pub fn get_mut(&mut self) -> &mut Vec<u8> {
            &mut self.inner
        }

        /// Ends the stream; writing the trailer once.
        pub fn try_finish(&mut self) -> io::Result<()> {
            if !self.finished {
                self.run(&[], MZFlush::Finish)?;
                self.finished = true;
                self.inner
                    .extend_from_slice(&self.crc.clone().finalize().to_le_bytes());
                self.inner.extend_from_slice(&self.length.to_le_bytes());
            }
            Ok(())
        }

        fn run(&mut self, mut input: &[u8], flush: MZFlush) -> io::Result<()> {
            if !self.started {
                self.started = true;
                self.inner.extend_from_slice(&HEADER);
            }
            let mut out = [0; CHUNK];
            loop {
                let step = deflate(&mut self.state, input, &mut out, flush);
                self.inner.extend_from_slice(&out[..step.bytes_written]);
                input = &input[step.bytes_consumed..];
                match step.status {
                    Ok(MZStatus::StreamEnd) => return Ok(()),
                    Ok(_) if input.is_empty() && step.bytes_written < CHUNK && flush != MZFlush::Finish => {
                        return Ok(());
                    }
                    Ok(_) => {}
                    Err(MZError::Buf) if flush != MZFlush::Finish => return Ok(()),
                    Err(e) => return Err(io::Error::other(format!("deflate: {e:?}"))),
                }
            }
        }
    }

    impl Write for GzEncoder<Vec<u8>> {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            if !buf.is_empty() {
                self.crc.update(buf);
                self.length = self.length.wrapping_add(buf.len() as u32);
                self.run(buf, MZFlush::None)?;
            }
            Ok(buf.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            self.run(&[], MZFlush::Sync)
        }
    }

    /// Decompresses what is written to it.
    pub struct GzDecoder<W> {
        inner: W,
        state: Box<InflateState>,
        crc: crc32fast::Hasher,
        length: u32,
        /// Header bytes until they are complete, then trailer bytes.
        pending: Vec<u8>,
        stage: Stage,
    }

    #[derive(PartialEq)]
    enum Stage {
        Header,
        Body,
        Trailer,
        Done,
    }

    /// No header Sluice meets is near this; a name or comment without end must not grow memory.
    const MAX_HEADER: usize = 64 * 1024;

    impl GzDecoder<Vec<u8>> {
        /// A decoder that appends to `inner`.
        pub fn new(inner: Vec<u8>) -> Self {
            let (state, crc) = (InflateState::new_boxed(DataFormat::Raw), crc32fast::Hasher::new());
            Self {
                inner,
                state,
                crc,
                length: 0,
                pending: Vec::new(),
                stage: Stage::Header,
            }
        }

        /// What was produced so far.
        pub fn get_ref(&self) -> &Vec<u8> {
            &self.inner
        }

        /// What was produced so far; may be taken away.
        pub fn get_mut(&mut self) -> &mut Vec<u8> {
            &mut self.inner
        }

        /// Checks that the stream came to its end.
        pub fn try_finish(&mut self) -> io::Result<()> {
            if self.stage == Stage::Done {
                Ok(())
            } else {
                Err(bad("gzip stream ends early"))
            }
        }

        fn body<'a>(&mut self, mut input: &'a [u8]) -> io::Result<&'a [u8]> {
            let mut out = [0; CHUNK];
            loop {
                let step = inflate(&mut self.state, input, &mut out, MZFlush::None);
                self.crc.update(&out[..step.bytes_written]);
                self.length = self.length.wrapping_add(step.bytes_written as u32);
                self.inner.extend_from_slice(&out[..step.bytes_written]);
                input = &input[step.bytes_consumed..];
                match step.status {
                    Ok(MZStatus::StreamEnd) => {
                        self.stage = Stage::Trailer;
                        return Ok(input);
                    }
                    Ok(_) if input.is_empty() && step.bytes_written < CHUNK => return Ok(input),
                    Ok(_) => {}
                    Err(MZError::Buf) => return Ok(input),
                    Err(e) => return Err(bad(&format!("inflate: {e:?}"))),
                }
            }
        }
    }

    impl Write for GzDecoder<Vec<u8>> {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            let mut input = buf;
            if self.stage == Stage::Header {
                self.pending.extend_from_slice(input);
                let Some(len) = header_len(&self.pending)? else {
                    return Ok(buf.len());
                };
                input = &input[input.len() - (self.pending.len() - len)..];
                self.pending.clear();
                self.stage = Stage::Body;
            }
            if self.stage == Stage::Body {
                input = self.body(input)?;
            }
            if self.stage == Stage::Trailer {
                let take = input.len().min(8 - self.pending.len());
                self.pending.extend_from_slice(&input[..take]);
                if self.pending.len() == 8 {
                    self.stage = Stage::Done;
                    let mut expected = self.crc.clone().finalize().to_le_bytes().to_vec();
                    expected.extend_from_slice(&self.length.to_le_bytes());
                    if self.pending != expected {
                        return Err(bad("gzip checksum differs"));
                    }
                }
            }
            Ok(buf.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn bad(what: &str) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, what)
    }

    /// The length of the header (RFC 1952 section 2.3), or `None` while it is incomplete.
    fn header_len(data: &[u8]) -> io::Result<Option<usize>> {
        if data.len() > MAX_HEADER {
            return Err(bad("gzip header too long"));
        }
        let Some(fixed) = data.get(..10) else {
            return Ok(None);
        };
        if fixed[..3] != HEADER[..3] {
            return Err(bad("not gzip"));
        }
        let (flags, mut at) = (fixed[3], 10);
        if flags & 4 != 0 {
            let Some(len) = data.get(at..at + 2) else {
                return Ok(None);
            };
            at += 2 + usize::from(u16::from_le_bytes([len[0], len[1]]));
        }
        for flag in [8, 16] {
            if flags & flag != 0 {
                let Some(end) = data.get(at..).and_then(|rest| rest.iter().position(|&b| b == 0)) else {
                    return Ok(None);
                };
                at += end + 1;
            }
        }
        if flags & 2 != 0 {
            at += 2;
        }
        Ok((data.len() >= at).then_some(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_goes_in_comes_out_in_any_chunks() {
        let text: Vec<u8> = (0..200_000u32).flat_map(|i| (i % 251).to_le_bytes()).collect();
        for chunk in [1, 7, 4096, text.len()] {
            let mut encoder = write::GzEncoder::new(Vec::new(), Compression::new(6));
            for part in text.chunks(chunk.max(500)) {
                encoder.write_all(part).expect("compresses");
                encoder.flush().expect("flushes");
            }
            encoder.try_finish().expect("finishes");
            let mut decoder = write::GzDecoder::new(Vec::new());
            for part in encoder.get_ref().chunks(chunk) {
                decoder.write_all(part).expect("decompresses");
            }
            decoder.try_finish().expect("is complete");
            assert!(*decoder.get_ref() == text);
        }
    }

    #[test]
    fn damage_is_noticed() {
        let mut encoder = write::GzEncoder::new(Vec::new(), Compression::new(6));
        encoder.write_all(b"hello").expect("compresses");
        encoder.try_finish().expect("finishes");
        let mut bytes = encoder.get_ref().clone();
        let last = bytes.len() - 5;
        bytes[last] ^= 1;
        assert!(write::GzDecoder::new(Vec::new()).write_all(&bytes).is_err());
        assert!(
            write::GzDecoder::new(Vec::new())
                .write_all(b"plain text, no gzip")
                .is_err()
        );
    }
}

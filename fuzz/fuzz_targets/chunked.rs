//! Fuzzes the chunked decoder: however the input is cut, the body ends at the same place or fails with the same
//! fault; and the end equals that of a simple decoder by RFC 9112, 7.1.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_fuzz::{choice, ends};
use sluice_gateway::http1::{ChunkDecoder, ChunkFault, ChunkLimits};

const ROOMY: ChunkLimits = ChunkLimits {
    max_extension_bytes: 16 << 10,
    max_trailer_bytes: 16 << 10,
    max_trailers: 128,
};

const TIGHT: ChunkLimits = ChunkLimits {
    max_extension_bytes: 8,
    max_trailer_bytes: 32,
    max_trailers: 2,
};

/// The bytes of the body, the bytes of payload among them, and whether the body is complete.
type Read = Result<(usize, u64, bool), ChunkFault>;

fuzz_target!(|data: &[u8]| {
    let mut data = data;
    let choices = choice(&mut data);
    let limits = if choices & 1 == 0 { ROOMY } else { TIGHT };
    let whole = decode(data, limits, 0);
    assert_eq!(whole, decode(data, limits, choices >> 1));
    let Ok((used, payload, complete)) = whole else {
        return;
    };
    assert!(used <= data.len() && payload <= used as u64);
    assert!(complete || used == data.len());
    if complete {
        assert_eq!(plainly(data), Some((used, payload)));
    }
});

fn decode(data: &[u8], limits: ChunkLimits, step: u8) -> Read {
    let mut decoder = ChunkDecoder::new(limits);
    let mut at = 0;
    for end in ends(data.len(), step) {
        at += decoder.advance(&data[at..end])?;
        if at < end {
            assert!(decoder.complete(), "left bytes of an unfinished body");
            break;
        }
    }
    Ok((at, decoder.payload(), decoder.complete()))
}

/// The reference decoder: decodes the whole body at once, by splitting it.
fn plainly(data: &[u8]) -> Option<(usize, u64)> {
    let (mut at, mut payload) = (0, 0);
    loop {
        let line = line(data, at)?;
        at += line.len() + 2;
        let digits = line.split(|&b| b == b';').next()?;
        let size = usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        if size == 0 {
            break;
        }
        payload += size as u64;
        at += size;
        if data.get(at..at + 2)? != b"\r\n" {
            return None;
        }
        at += 2;
    }
    loop {
        let line = line(data, at)?;
        at += line.len() + 2;
        if line.is_empty() {
            return Some((at, payload));
        }
    }
}

fn line(data: &[u8], at: usize) -> Option<&[u8]> {
    let rest = data.get(at..)?;
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    Some(&rest[..end])
}

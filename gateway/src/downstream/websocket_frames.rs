//! WebSocket frame tracker: finds frame boundaries, so that a Close can be inserted between two frames.

/// A Close frame of 1001 (going away), as a server sends it: unmasked (RFC 6455 5.5.1, 7.4.1).
pub(super) const CLOSE_TO_CLIENT: [u8; 4] = [0x88, 0x02, 0x03, 0xe9];

/// A Close frame of 1001 as a client sends it: masked, here with the mask 0, which the RFC does not forbid.
pub(super) const CLOSE_TO_SERVER: [u8; 8] = [0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe9];

/// Tracks the frames of one direction, over bytes in any pieces.
#[derive(Debug, Default)]
pub struct WebSocketFrameTracker {
    header: [u8; 14],
    filled: usize,
    payload: u64,
    closed: bool,
}

impl WebSocketFrameTracker {
    /// Whether the bytes so far end with a whole frame.
    pub fn at_boundary(&self) -> bool {
        self.filled == 0 && self.payload == 0
    }

    /// Whether a Close frame passed.
    pub fn closed(&self) -> bool {
        self.closed
    }

    /// The number of these bytes that complete the current frame; 0 at a boundary, all of them when the frame
    /// ends later.
    pub fn rest_of_frame(&mut self, bytes: &[u8]) -> usize {
        if self.at_boundary() {
            return 0;
        }
        for at in 0..bytes.len() {
            self.step(bytes[at]);
            if self.at_boundary() {
                return at + 1;
            }
            if self.filled == 0 {
                // Inside a payload: skips the part of it in these bytes.
                let skip = self.payload.min((bytes.len() - at - 1) as u64);
                self.payload -= skip;
                let end = at + 1 + usize::try_from(skip).unwrap_or(usize::MAX);
                if self.payload == 0 || end >= bytes.len() {
                    return end;
                }
            }
        }
        bytes.len()
    }

    /// Advances over bytes that passed.
    pub fn advance(&mut self, mut bytes: &[u8]) {
        while let Some((&first, rest)) = bytes.split_first() {
            if self.filled == 0 && self.payload > 0 {
                let skip = self.payload.min(bytes.len() as u64);
                self.payload -= skip;
                bytes = &bytes[usize::try_from(skip).unwrap_or(bytes.len())..];
                continue;
            }
            self.step(first);
            bytes = rest;
        }
    }

    fn step(&mut self, byte: u8) {
        if self.filled == 0 && self.payload > 0 {
            self.payload -= 1;
            return;
        }
        self.header[self.filled] = byte;
        self.filled += 1;
        if self.filled < 2 {
            return;
        }
        let masked = if self.header[1] & 0x80 == 0 { 0 } else { 4 };
        let extended = match self.header[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if self.filled == 2 + extended + masked {
            self.payload = match extended {
                0 => u64::from(self.header[1] & 0x7f),
                n => self.header[2..2 + n]
                    .iter()
                    .fold(0, |len, &b| len << 8 | u64::from(b)),
            };
            self.closed |= self.header[0] & 0x0f == 8;
            self.filled = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(opcode: u8, payload: usize, masked: bool) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut out = vec![0x80 | opcode];
        match payload {
            0..126 => out.push(mask | payload as u8),
            126..65_536 => {
                out.push(mask | 126);
                out.extend((payload as u16).to_be_bytes());
            }
            _ => {
                out.push(mask | 127);
                out.extend((payload as u64).to_be_bytes());
            }
        }
        out.extend(std::iter::repeat_n(0x55, if masked { 4 } else { 0 }));
        out.extend(std::iter::repeat_n(0xaa, payload));
        out
    }

    proptest! {
        #[test]
        fn boundaries_are_found_in_any_pieces(
            frames in prop::collection::vec((1u8..3, 0usize..70_000, any::<bool>()), 1..5),
            piece in 1usize..5_000,
        ) {
            let bytes: Vec<Vec<u8>> = frames.iter().map(|&(o, p, m)| frame(o, p, m)).collect();
            let ends: Vec<usize> = bytes.iter().scan(0, |at, f| { *at += f.len(); Some(*at) }).collect();
            let all = bytes.concat();
            let mut tracker = WebSocketFrameTracker::default();
            let mut at = 0;
            for part in all.chunks(piece) {
                tracker.advance(part);
                at += part.len();
                prop_assert_eq!(tracker.at_boundary(), ends.contains(&at));
            }
        }

        #[test]
        fn the_rest_of_a_frame_is_what_is_missing(payload in 0usize..3_000, cut in 1usize..3_000, piece in 1usize..500) {
            let bytes = frame(2, payload, false);
            let cut = cut.min(bytes.len() - 1);
            let mut tracker = WebSocketFrameTracker::default();
            tracker.advance(&bytes[..cut]);
            let mut all = bytes[cut..].to_vec();
            all.extend(frame(1, 5, false));
            let mut taken = 0;
            while !tracker.at_boundary() {
                let part = &all[taken..(taken + piece).min(all.len())];
                taken += tracker.rest_of_frame(part);
            }
            prop_assert_eq!(taken, bytes.len() - cut);
        }
    }

    #[test]
    fn a_close_is_noticed() {
        let mut tracker = WebSocketFrameTracker::default();
        tracker.advance(&frame(1, 3, true));
        assert!(!tracker.closed());
        tracker.advance(&CLOSE_TO_SERVER);
        assert!(tracker.closed() && tracker.at_boundary());
        let mut tracker = WebSocketFrameTracker::default();
        tracker.advance(&CLOSE_TO_CLIENT);
        assert!(tracker.closed() && tracker.at_boundary());
    }
}

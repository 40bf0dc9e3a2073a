//! Incremental scanner of HTTP/2 frame headers in a byte stream.

/// A parsed frame header (RFC 9113, 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// The payload's length in bytes.
    pub len: u32,
    /// The type.
    pub kind: u8,
    /// The flags.
    pub flags: u8,
    /// The stream; 0 is the connection.
    pub stream: u32,
}

impl FrameHeader {
    /// Size of a frame header, in bytes.
    pub const SIZE: usize = 9;

    fn read(bytes: [u8; Self::SIZE]) -> Self {
        let [a, b, c, kind, flags, s0, s1, s2, s3] = bytes;
        Self {
            len: u32::from_be_bytes([0, a, b, c]),
            kind,
            flags,
            // The first bit is reserved and has to be ignored.
            stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]),
        }
    }

    /// Whether a flag is set.
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Scanner state of one direction of a connection. Allocates nothing.
#[derive(Debug, Clone, Default)]
pub struct FrameScanner {
    head: [u8; FrameHeader::SIZE],
    /// Bytes of `head` received so far.
    have: usize,
    /// Payload bytes still to come.
    left: usize,
}

impl FrameScanner {
    /// Scans the next bytes. `each` is called for every complete frame header, with as much of the payload as
    /// follows in the same bytes.
    ///
    /// # Errors
    /// The first error of `each`; the rest of these bytes is skipped.
    pub fn advance<E>(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(FrameHeader, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut outcome = Ok(());
        loop {
            let skipped = self.left.min(bytes.len());
            self.left -= skipped;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return outcome;
            }
            let part = (FrameHeader::SIZE - self.have).min(bytes.len());
            self.head[self.have..self.have + part].copy_from_slice(&bytes[..part]);
            self.have += part;
            bytes = &bytes[part..];
            if self.have < FrameHeader::SIZE {
                return outcome;
            }
            self.have = 0;
            let head = FrameHeader::read(self.head);
            self.left = usize::try_from(head.len).unwrap_or(usize::MAX);
            if outcome.is_ok() {
                outcome = each(head, &bytes[..self.left.min(bytes.len())]);
            }
        }
    }

    /// Whether the bytes so far end with a whole frame.
    pub fn between_frames(&self) -> bool {
        self.have == 0 && self.left == 0
    }

    /// Whether payload of the last head is still to come.
    pub fn in_payload(&self) -> bool {
        self.left > 0
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    fn wire(frames: &[(u8, u8, u32, usize)]) -> Vec<u8> {
        let mut out = Vec::new();
        for &(kind, flags, stream, len) in frames {
            out.extend_from_slice(&u32::try_from(len).unwrap().to_be_bytes()[1..]);
            out.extend_from_slice(&[kind, flags]);
            out.extend_from_slice(&stream.to_be_bytes());
            out.extend(std::iter::repeat_n(0xaa, len));
        }
        out
    }

    fn scanned(pieces: &[&[u8]]) -> (Vec<FrameHeader>, FrameScanner) {
        let (mut scan, mut heads) = (FrameScanner::default(), Vec::new());
        for piece in pieces {
            let done: Result<(), Infallible> = scan.advance(piece, |head, payload| {
                assert!(payload.len() <= head.len as usize);
                heads.push(head);
                Ok(())
            });
            done.unwrap();
        }
        (heads, scan)
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same_frames(
            frames in prop::collection::vec((any::<u8>(), any::<u8>(), 0..0x8000_0000_u32, 0..600_usize), 0..20),
            cuts in prop::collection::vec(1..50_usize, 0..400),
        ) {
            let bytes = wire(&frames);
            let (mut pieces, mut rest) = (Vec::new(), bytes.as_slice());
            for cut in cuts {
                let (piece, more) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = more;
            }
            pieces.push(rest);
            let (heads, scan) = scanned(&pieces);
            let seen: Vec<_> = heads.iter().map(|h| (h.kind, h.flags, h.stream, h.len as usize)).collect();
            prop_assert_eq!(seen, frames);
            prop_assert!(scan.between_frames());
        }
    }

    #[test]
    fn it_knows_where_in_a_frame_it_is() {
        let bytes = wire(&[(0, 1, 1, 4)]);
        for end in 0..=bytes.len() {
            let (heads, scan) = scanned(&[&bytes[..end]]);
            assert_eq!(heads.len(), usize::from(end >= 9));
            assert_eq!(scan.between_frames(), end == 0 || end == bytes.len());
            assert_eq!(scan.in_payload(), (9..13).contains(&end));
        }
    }
}

//! HTTP/2 frames, as far as client and backend here need them: only the end of a stream is decoded.

/// The connection preface of a client.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;

pub(super) const END_STREAM: u8 = 1;
/// The ACK flag of SETTINGS and PING.
pub(super) const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 32;

/// The initial flow-control window of a connection.
pub(super) const INITIAL_WINDOW: i64 = 65_535;
/// The number of read bytes after which a WINDOW_UPDATE is sent.
const CREDIT: usize = 16 << 10;

const HEAD: usize = 9;

/// A complete frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame<'a> {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Parses the first frame of the buffer.
    pub(super) fn parse(buf: &'a [u8]) -> Option<Self> {
        let &[a, b, c, kind, flags, s0, s1, s2, s3, ..] = buf else {
            return None;
        };
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        Some(Self {
            kind,
            flags,
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & 0x7fff_ffff,
            payload: buf.get(HEAD..HEAD + length)?,
        })
    }

    pub(super) fn size(&self) -> usize {
        HEAD + self.payload.len()
    }

    pub(super) fn ends_stream(&self) -> bool {
        self.flags & END_STREAM != 0 && matches!(self.kind, DATA | HEADERS)
    }

    /// The increment of a WINDOW_UPDATE for the connection.
    pub(super) fn window(&self) -> i64 {
        match (self.stream, self.payload) {
            (0, &[a, b, c, d]) => i64::from(u32::from_be_bytes([a, b, c, d])),
            _ => 0,
        }
    }

    /// Whether the block of a HEADERS frame begins with `:status: 200` in its only common encoding.
    pub(super) fn is_200(&self) -> bool {
        let mut block = self.payload;
        if self.flags & PADDED != 0 {
            block = block.get(1..).unwrap_or_default();
        }
        if self.flags & PRIORITY != 0 {
            block = block.get(5..).unwrap_or_default();
        }
        // Size updates of the dynamic table come first; common sizes take up to three bytes.
        while let [first, rest @ ..] = block
            && first >> 5 == 1
        {
            block = rest;
            if first & 31 == 31 {
                let end = block.iter().position(|b| b & 128 == 0).unwrap_or(0);
                block = block.get(end + 1..).unwrap_or_default();
            }
        }
        block.first() == Some(&0x88)
    }

    /// Writes the acknowledgement of a SETTINGS or PING frame, if one is due.
    pub(super) fn acknowledge(&self, out: &mut Vec<u8>) {
        if self.flags & ACK == 0 {
            match self.kind {
                SETTINGS => frame(out, SETTINGS, ACK, 0, &[]),
                PING => frame(out, PING, ACK, 0, self.payload),
                _ => {}
            }
        }
    }
}

pub(super) fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = (payload.len() as u32).to_be_bytes();
    out.extend_from_slice(&length[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

pub(super) fn headers(out: &mut Vec<u8>, flags: u8, stream: u32, block: &[u8]) {
    frame(out, HEADERS, END_HEADERS | flags, stream, block);
}

/// Returns the read bytes to the connection's window once they are many.
pub(super) fn credit(out: &mut Vec<u8>, read: &mut usize) {
    if *read >= CREDIT {
        frame(out, WINDOW_UPDATE, 0, 0, &(*read as u32).to_be_bytes());
        *read = 0;
    }
}

/// Writes an HPACK string without Huffman coding.
pub(super) fn string(block: &mut Vec<u8>, text: &str) {
    let length = u8::try_from(text.len()).ok().filter(|&n| n < 127);
    block.push(length.expect("names and values here are short"));
    block.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_as_it_was_written() {
        let mut out = Vec::new();
        headers(&mut out, END_STREAM, 7, &[0x88, 1, 2]);
        let read = Frame::parse(&out).expect("whole");
        assert_eq!((read.kind, read.stream, read.size()), (HEADERS, 7, out.len()));
        assert!(read.ends_stream() && read.is_200());
        assert!(Frame::parse(&out[..out.len() - 1]).is_none());
    }

    #[test]
    fn a_status_is_found_behind_changes_of_the_table() {
        let block = |payload| Frame {
            kind: HEADERS,
            flags: 0,
            stream: 1,
            payload,
        };
        assert!(block(&[0x20, 0x3f, 0xe1, 0x1f, 0x88]).is_200());
        assert!(!block(&[0x20, 0x8d]).is_200());
        assert!(!block(&[0x3f]).is_200());
        assert!(!block(&[]).is_200());
    }

    #[test]
    fn windows_are_given_back_in_large_pieces() {
        let (mut out, mut read) = (Vec::new(), CREDIT - 1);
        credit(&mut out, &mut read);
        assert!(out.is_empty());
        read += 1;
        credit(&mut out, &mut read);
        assert_eq!(
            (read, Frame::parse(&out).map(|f| f.window())),
            (0, Some(CREDIT as i64))
        );
    }
}

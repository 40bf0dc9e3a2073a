//! Replay buffer: the beginning of a request body, kept so that another attempt can send the body again.

/// Most bytes that are kept; a longer body is sent once.
const MAX_BYTES: usize = 64 * 1024;

/// The replay buffer of one request body.
#[derive(Debug, Default)]
pub(crate) struct ReplayBuffer {
    kept: Vec<u8>,
    /// Bytes of `kept` that the current attempt has sent.
    sent: usize,
    overflowed: bool,
    /// Whether the client's body was read to its end.
    whole: bool,
}

impl ReplayBuffer {
    /// Kept bytes that the current attempt has not sent.
    pub(crate) fn unsent(&self) -> &[u8] {
        &self.kept[self.sent..]
    }

    /// Counts bytes of [`unsent`](Self::unsent) as sent.
    pub(crate) fn consume(&mut self, n: usize) {
        self.sent += n;
    }

    /// Records bytes that came from the client and were sent at once.
    pub(crate) fn sent(&mut self, bytes: &[u8]) {
        if self.overflowed {
            return;
        }
        if self.kept.len() + bytes.len() > MAX_BYTES {
            self.overflowed = true;
            self.kept = Vec::new();
            self.sent = 0;
            return;
        }
        self.kept.extend_from_slice(bytes);
        self.sent = self.kept.len();
    }

    /// Records the end of the client's body.
    pub(crate) fn end(&mut self) {
        self.whole = true;
    }

    /// Whether the client's body ended: what is not kept was sent.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole
    }

    /// Whether another attempt can send the same body.
    pub(crate) fn is_possible(&self) -> bool {
        !self.overflowed
    }

    /// Begins another attempt.
    pub(crate) fn rewind(&mut self) {
        debug_assert!(self.is_possible(), "what was sent is gone");
        self.sent = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_gets_what_the_one_before_it_sent() {
        let mut replay = ReplayBuffer::default();
        replay.sent(b"abc");
        assert_eq!(replay.unsent(), b"");
        replay.rewind();
        assert_eq!(replay.unsent(), b"abc");
        replay.consume(2);
        assert_eq!(replay.unsent(), b"c");
        replay.consume(1);
        replay.sent(b"def");
        replay.rewind();
        assert_eq!(replay.unsent(), b"abcdef");
    }

    #[test]
    fn a_long_body_is_not_kept() {
        let mut replay = ReplayBuffer::default();
        replay.sent(&[0; MAX_BYTES]);
        assert!(replay.is_possible());
        replay.sent(b"x");
        assert!(!replay.is_possible());
        assert_eq!((replay.unsent(), replay.kept.capacity()), (&b""[..], 0));
    }
}

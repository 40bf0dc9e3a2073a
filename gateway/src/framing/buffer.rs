//! Read buffers over pooled blocks, one pool per thread.
//!
//! An idle connection holds no block: most connections of a gateway are idle at any moment, and a block for
//! each is what makes them expensive. A warm request takes a block from its thread's pool and returns it
//! without calling the allocator.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::thread::LocalKey;

use tokio::io::{AsyncRead, ReadBuf};

/// Size of a block, in bytes. One read takes a head and a body of ten kilobytes in one piece.
pub(crate) const BLOCK: usize = 16 * 1024;

/// Blocks of each size that a thread's pool keeps: 1 MiB and 64 KiB. Further blocks are freed.
const POOLED_BLOCKS: usize = 64;

/// Size of a small block, in bytes, into which a head is copied for as long as its request runs: otherwise
/// each of thousands of requests that wait for their backends would hold a whole block.
const SMALL_BLOCK: usize = 1024;

thread_local! {
    static BLOCKS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    static SMALL_BLOCKS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

fn take_block(pool: &'static LocalKey<RefCell<Vec<Box<[u8]>>>>, size: usize) -> Box<[u8]> {
    pool.with_borrow_mut(Vec::pop)
        // Zeroed once in the block's life, so that reading into a block needs no unsafe code.
        .unwrap_or_else(|| vec![0; size].into_boxed_slice())
}

fn recycle_block(block: Box<[u8]>) {
    let pool = match block.len() {
        BLOCK => &BLOCKS,
        SMALL_BLOCK => &SMALL_BLOCKS,
        _ => return,
    };
    pool.with_borrow_mut(|blocks| {
        if blocks.len() < POOLED_BLOCKS {
            blocks.push(block);
        }
    });
}

/// A byte queue: filled at its end from a stream, consumed from its front.
#[derive(Default)]
pub(crate) struct Buffer {
    block: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// The bytes that were read and not consumed.
    pub(crate) fn data(&self) -> &[u8] {
        &self.block[self.start..self.end]
    }

    /// Whether every byte was consumed.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Consumes the first `n` bytes of [`data`](Self::data).
    pub(crate) fn consume(&mut self, n: usize) {
        debug_assert!(n <= self.end - self.start, "more than there is");
        self.start = (self.start + n).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Returns the block to the pool if every byte was consumed.
    pub(crate) fn release(&mut self) {
        if self.is_empty() && !self.block.is_empty() {
            recycle_block(std::mem::take(&mut self.block));
        }
    }

    /// Shrinks to fit: copies the bytes into a block of exactly their size, for a request that is about to
    /// wait.
    pub(crate) fn shrink(&mut self) {
        if !matches!(self.block.len(), BLOCK | SMALL_BLOCK) {
            return;
        }
        let tight: Box<[u8]> = self.data().into();
        recycle_block(std::mem::replace(&mut self.block, tight));
        (self.start, self.end) = (0, self.block.len());
    }

    /// Bytes of memory the buffer holds.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.block.len()
    }

    /// Splits the first `n` bytes off. Few bytes are copied into a small block, and the rest stays; many keep
    /// the block, and the rest is copied to another one.
    pub(crate) fn split_to(&mut self, n: usize) -> Self {
        if n <= SMALL_BLOCK {
            let mut block = take_block(&SMALL_BLOCKS, SMALL_BLOCK);
            block[..n].copy_from_slice(&self.data()[..n]);
            self.consume(n);
            self.release();
            return Self {
                block,
                start: 0,
                end: n,
            };
        }
        let rest = &self.data()[n..];
        let mut after = Self::default();
        if !rest.is_empty() {
            after.append(rest);
        }
        let mut front = std::mem::replace(self, after);
        front.end = front.start + n;
        front
    }

    /// Appends a copy of `bytes`.
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        self.make_room(bytes.len());
        self.block[self.end..self.end + bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// Reads once from `io`; 0 is the end of the stream. Reads only as much as keeps [`data`](Self::data)
    /// within `most` bytes, which must be more than there are. A buffer that is empty while the stream is
    /// pending holds no block.
    pub(crate) fn poll_fill<R: AsyncRead + Unpin + ?Sized>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut R,
        most: usize,
    ) -> Poll<io::Result<usize>> {
        debug_assert!(most > self.end - self.start, "no room for a byte");
        self.make_room(1);
        let room = (most - (self.end - self.start)).min(self.block.len() - self.end);
        let mut part = ReadBuf::new(&mut self.block[self.end..self.end + room]);
        let polled = Pin::new(io).poll_read(cx, &mut part);
        let read = part.filled().len();
        if polled.is_pending() {
            self.release();
        }
        ready!(polled)?;
        self.end += read;
        Poll::Ready(Ok(read))
    }

    /// Makes room for `n` more bytes: by moving bytes to the front, or by a larger block.
    fn make_room(&mut self, n: usize) {
        if self.block.is_empty() && n <= BLOCK {
            self.block = take_block(&BLOCKS, BLOCK);
        }
        if self.block.len() - self.end >= n {
            return;
        }
        let len = self.end - self.start;
        if self.block.len() - len >= n {
            self.block.copy_within(self.start..self.end, 0);
        } else {
            let mut larger = vec![0; (2 * self.block.len()).max(len + n)].into_boxed_slice();
            larger[..len].copy_from_slice(&self.block[self.start..self.end]);
            recycle_block(std::mem::replace(&mut self.block, larger));
        }
        (self.start, self.end) = (0, len);
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        recycle_block(std::mem::take(&mut self.block));
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer")
            .field("len", &(self.end - self.start))
            .field("block", &self.block.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn fill(buffer: &mut Buffer, mut bytes: &[u8], most: usize) -> usize {
        let mut cx = Context::from_waker(Waker::noop());
        match buffer.poll_fill(&mut cx, &mut bytes, most) {
            Poll::Ready(read) => read.expect("a slice does not fail"),
            Poll::Pending => panic!("a slice never waits"),
        }
    }

    #[test]
    fn bytes_come_out_in_the_order_they_went_in() {
        let mut buffer = Buffer::default();
        assert_eq!(fill(&mut buffer, b"abcdef", 4), 4, "no more than asked for");
        buffer.consume(2);
        assert_eq!(fill(&mut buffer, b"ef", 100), 2);
        assert_eq!(buffer.data(), b"cdef");
        let front = buffer.split_to(3);
        assert_eq!((front.data(), buffer.data()), (&b"cde"[..], &b"f"[..]));
    }

    #[test]
    fn a_full_block_grows_and_an_empty_one_goes_back() {
        let mut buffer = Buffer::default();
        let large = vec![7; 3 * BLOCK];
        let mut at = 0;
        while at < large.len() {
            at += fill(&mut buffer, &large[at..], usize::MAX);
        }
        assert_eq!(buffer.data(), large);
        buffer.consume(large.len());
        buffer.release();
        assert_eq!(buffer.capacity(), 0);
    }

    #[test]
    fn what_waits_is_kept_in_no_more_than_its_size() {
        let mut buffer = Buffer::default();
        fill(&mut buffer, b"GET / HTTP/1.1\r\n", usize::MAX);
        buffer.shrink();
        assert_eq!((buffer.capacity(), buffer.data().len()), (16, 16));
        fill(&mut buffer, b"more", usize::MAX);
        assert_eq!(buffer.data(), b"GET / HTTP/1.1\r\nmore");
    }

    #[test]
    fn a_stream_that_has_nothing_costs_no_block() {
        let (_ours, mut theirs) = tokio::io::duplex(8);
        let mut buffer = Buffer::default();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(buffer.poll_fill(&mut cx, &mut theirs, 100).is_pending());
        assert_eq!(buffer.capacity(), 0);
    }
}

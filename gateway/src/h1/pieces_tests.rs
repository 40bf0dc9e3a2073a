//! The stream over a connection whose every read and write is known.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pingora_core::protocols::Shutdown;
use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::tests::{CHUNKED, LENGTH, PLAIN, guard, message, next};
use crate::edge::Wire;

/// Gives what it has piece by piece, takes `take` bytes at most, and remembers each write.
#[derive(Debug, Default)]
struct Pieces {
    input: VecDeque<Vec<u8>>,
    take: usize,
    writes: Arc<std::sync::Mutex<Vec<Vec<u8>>>>,
}

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(mut piece) = self.input.pop_front() else {
            return Poll::Ready(Ok(()));
        };
        if piece.is_empty() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let taken = piece.len().min(out.remaining());
        out.put_slice(&piece[..taken]);
        piece.drain(..taken);
        if !piece.is_empty() {
            self.input.push_front(piece);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pieces {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(data)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut all: Vec<u8> = data.iter().flat_map(|slice| slice.to_vec()).collect();
        all.truncate(self.take);
        let written = all.len();
        self.writes.lock().unwrap().push(all);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_head_goes_out_with_its_body() {
    for (take, expected) in [
        (usize::MAX, vec![&b"head body"[..], b"more"]),
        (4, vec![b"head", b" bod", b"y", b"more"]),
        (7, vec![b"head bo", b"dy", b"more"]),
    ] {
        let io = Pieces {
            input: [PLAIN.as_bytes().to_vec()].into(),
            take,
            ..Pieces::default()
        };
        let writes = Arc::clone(&io.writes);
        let (mut stream, _peer) = guard(Box::new(io), Wire::Http1).await;
        next(&mut stream).await.unwrap().unwrap();
        message(&mut stream, 4096).await.unwrap();
        stream.write_all(b"head").await.unwrap();
        assert!(writes.lock().unwrap().is_empty());
        stream.write_all(b" body").await.unwrap();
        stream.write_all(b"more").await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!(*writes.lock().unwrap(), expected);
        assert_eq!(stream.bytes_out(), 13);
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_head_alone_goes_out_with_a_flush_or_the_end() {
    for end in [false, true] {
        let io = Pieces {
            input: [PLAIN.as_bytes().to_vec()].into(),
            take: 3,
            ..Pieces::default()
        };
        let writes = Arc::clone(&io.writes);
        let (mut stream, _peer) = guard(Box::new(io), Wire::Http1).await;
        next(&mut stream).await.unwrap().unwrap();
        stream.write_all(b"head").await.unwrap();
        if end {
            Shutdown::shutdown(&mut stream).await;
        } else {
            stream.flush().await.unwrap();
        }
        assert_eq!(writes.lock().unwrap().concat(), b"head");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_pieces_yield_the_same_messages(
        order in proptest::collection::vec(0..3usize, 1..6),
        pieces in proptest::collection::vec(0..40usize, 1..10),
        room in 1..50usize,
    ) {
        let requests: Vec<&str> = order.iter().map(|&n| [PLAIN, LENGTH, CHUNKED][n]).collect();
        let bytes = requests.concat().into_bytes();
        let mut input = VecDeque::new();
        let (mut at, mut piece) = (0, pieces.iter().chain(&[1]).cycle());
        while at < bytes.len() {
            let end = (at + piece.next().copied().unwrap_or(1)).min(bytes.len());
            // An empty piece is a read that has to wait.
            input.push_back(bytes[at..end].to_vec());
            at = end;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let read: Vec<Vec<u8>> = runtime.block_on(async {
            let (mut stream, _peer) = guard(Box::new(Pieces { input, ..Pieces::default() }), Wire::Http1).await;
            let mut read = Vec::new();
            while let Some(_head) = next(&mut stream).await.unwrap() {
                read.push(message(&mut stream, room).await.unwrap());
            }
            read
        });
        prop_assert_eq!(read, requests.iter().map(|r| r.as_bytes().to_vec()).collect::<Vec<_>>());
    }
}

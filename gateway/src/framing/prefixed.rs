//! A stream with bytes put back in front.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream that yields bytes already read ahead of those of the inner stream.
#[derive(Debug)]
pub(crate) struct PrefixedIo<S> {
    early: Box<[u8]>,
    at: usize,
    io: S,
}

impl<S> PrefixedIo<S> {
    /// Yields `early`, then what `io` yields.
    pub(crate) fn new(early: Box<[u8]>, io: S) -> Self {
        Self { early, at: 0, io }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for PrefixedIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.at < self.early.len() {
            let take = (self.early.len() - self.at).min(buf.remaining());
            buf.put_slice(&self.early[self.at..self.at + take]);
            self.at += take;
            if self.at == self.early.len() {
                self.early = Box::default();
                self.at = 0;
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PrefixedIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

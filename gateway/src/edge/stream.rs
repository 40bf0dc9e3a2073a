//! A TCP socket as an async stream, shared with the watch for the client's close.

use std::io::{self, ErrorKind, IoSlice};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// Size of a read before the protocol is known, in bytes.
const FIRST_BYTES: usize = 4096;

/// A TCP stream that yields bytes already read (by PROXY parsing or protocol detection) before those of the
/// socket.
///
/// The socket is shared because [`CloseWatch`](super::CloseWatch) must see a FIN while TLS and HTTP own the
/// stream. There is one reader and one writer at a time.
#[derive(Debug)]
pub struct SocketStream {
    socket: Arc<TcpStream>,
    replay: Bytes,
}

impl SocketStream {
    /// A stream that yields `replay` and then what the socket yields.
    pub fn new(socket: Arc<TcpStream>, replay: Bytes) -> Self {
        Self { socket, replay }
    }
}

impl Drop for SocketStream {
    fn drop(&mut self) {
        // A close watch still holds the socket: shutdown ends the connection all the same, and the wait with
        // it.
        if Arc::strong_count(&self.socket) > 1 {
            let _ = SockRef::from(&*self.socket).shutdown(Shutdown::Both);
        }
    }
}

/// Reads more of a connection's first bytes into `seen`; 0 is the end of the stream.
///
/// Allocates nothing until bytes arrive, so that a silent connection costs no buffer. Cancel-safe.
pub(super) async fn read_more(socket: &TcpStream, seen: &mut BytesMut) -> io::Result<usize> {
    loop {
        socket.readable().await?;
        seen.reserve(FIRST_BYTES);
        match socket.try_read_buf(seen) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
}

/// One read. A short read also clears tokio's readiness: the socket is empty, and another read would cost a
/// system call for an EAGAIN at the end of every request.
///
/// Readiness is cleared by the outer `try_io`, which took it before the read: bytes that arrive in between
/// set it anew, so no wake-up is lost.
fn read_some(socket: &TcpStream, buf: &mut ReadBuf<'_>) -> io::Result<()> {
    let room = buf.remaining();
    let mut done = Err(ErrorKind::WouldBlock.into());
    let cleared = socket.try_io(Interest::READABLE, || {
        done = socket.try_read_buf(buf);
        match done {
            Ok(n) if n == 0 || n == room => Ok(()),
            _ => Err(io::Error::from(ErrorKind::WouldBlock)),
        }
    });
    drop(cleared);
    done.map(|_| ())
}

impl AsyncRead for SocketStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if !self.replay.is_empty() {
            let n = self.replay.len().min(buf.remaining());
            buf.put_slice(&self.replay[..n]);
            self.replay.advance(n);
            if self.replay.is_empty() {
                // Replaced, because an empty `Bytes` still holds its allocation.
                self.replay = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        loop {
            ready!(self.socket.poll_read_ready(cx))?;
            match read_some(&self.socket, buf) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }
}

impl AsyncWrite for SocketStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_write_ready(cx))?;
            match self.socket.try_write(buf) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_write_ready(cx))?;
            match self.socket.try_write_vectored(bufs) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = SockRef::from(&*self.socket).shutdown(Shutdown::Write);
        Poll::Ready(match done {
            // The peer has closed already: nothing is left to shut down.
            Err(e) if e.kind() == ErrorKind::NotConnected => Ok(()),
            done => done,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::super::CloseWatch;
    use super::*;

    async fn pair() -> (TcpStream, Arc<TcpStream>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, server) = tokio::join!(client, listener.accept());
        (client.unwrap(), Arc::new(server.unwrap().0))
    }

    #[tokio::test]
    async fn replays_first_bytes_then_reads_the_socket_in_any_buffer_size() {
        let (mut client, server) = pair().await;
        let mut stream = SocketStream::new(server, Bytes::from_static(b"abc"));
        client.write_all(b"defgh").await.unwrap();
        client.shutdown().await.unwrap();
        let mut got = Vec::new();
        let mut two = [0; 2];
        loop {
            let n = stream.read(&mut two).await.unwrap();
            if n == 0 {
                break;
            }
            got.extend_from_slice(&two[..n]);
        }
        assert_eq!(got, b"abcdefgh");
        assert_eq!(stream.replay, Bytes::new());
    }

    #[tokio::test]
    async fn short_reads_lose_no_wake_up() {
        let (client, server) = pair().await;
        let mut stream = SocketStream::new(server, Bytes::new());
        let (mut read, mut write) = client.into_split();
        let echo = tokio::spawn(async move {
            let mut buf = [0; 64];
            loop {
                let n = stream.read(&mut buf).await.unwrap();
                if n == 0 {
                    return stream.shutdown().await.unwrap();
                }
                stream.write_all(&buf[..n]).await.unwrap();
            }
        });
        let turns = async {
            for i in 0..2000_u32 {
                write.write_all(&i.to_be_bytes()).await.unwrap();
                assert_eq!(read.read_u32().await.unwrap(), i);
            }
            write.shutdown().await.unwrap();
            assert_eq!(read.read(&mut [0; 1]).await.unwrap(), 0);
        };
        timeout(Duration::from_secs(20), turns).await.unwrap();
        echo.await.unwrap();
    }

    #[tokio::test]
    async fn writes_vectored_and_bulk() {
        let (mut client, server) = pair().await;
        let mut stream = SocketStream::new(server, Bytes::new());
        let n = stream
            .write_vectored(&[IoSlice::new(b"ab"), IoSlice::new(b"cd")])
            .await
            .unwrap();
        assert_eq!(n, 4);
        let bulk = vec![7_u8; 8 << 20];
        let writer = tokio::spawn(async move {
            stream.write_all(&bulk).await.unwrap();
            stream.shutdown().await.unwrap();
        });
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        writer.await.unwrap();
        assert_eq!(got.len(), 4 + (8 << 20));
        assert_eq!(&got[..5], b"abcd\x07");
    }

    #[tokio::test]
    async fn close_watch_sees_a_fin_behind_unread_bytes_and_nothing_before() {
        let (mut client, server) = pair().await;
        let watch = CloseWatch::new(&server);
        client.write_all(&[b'x'; 5000]).await.unwrap();
        server.readable().await.unwrap();
        {
            let closed = watch.closed();
            tokio::pin!(closed);
            assert!(futures_util::poll!(closed.as_mut()).is_pending());
            client.shutdown().await.unwrap();
            timeout(Duration::from_secs(5), closed).await.unwrap();
        }
        let mut stream = SocketStream::new(server, Bytes::new());
        let mut got = Vec::new();
        stream.read_to_end(&mut got).await.unwrap();
        assert_eq!(got.len(), 5000);
    }

    #[tokio::test]
    async fn close_watch_neither_keeps_the_socket_nor_waits_for_a_closed_one() {
        let (mut client, server) = pair().await;
        let watch = CloseWatch::new(&server);
        let stream = SocketStream::new(server, Bytes::new());
        let waiting = watch.closed();
        tokio::pin!(waiting);
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        drop(stream);
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
        timeout(Duration::from_secs(5), waiting).await.unwrap();
        watch.closed().await;
    }

    #[tokio::test]
    async fn close_watch_sees_a_reset() {
        let (client, server) = pair().await;
        let watch = CloseWatch::new(&server);
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        timeout(Duration::from_secs(5), watch.closed()).await.unwrap();
    }
}

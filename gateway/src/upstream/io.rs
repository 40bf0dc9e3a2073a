//! A connection to a backend as an enum over its transports: no dynamic dispatch, no buffer of its own.

use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use super::prewarmed::PlainStream;

/// Most reads of one idle TLS connection before it counts as not silent: session tickets are usually two, and
/// a record of 16 KiB takes several reads.
const MAX_IDLE_READS: usize = 16;

/// A connection to a backend.
///
/// Dropping the value closes the connection. Reads and writes are cancel-safe, as those of the inner streams
/// are. A read that fills less than the buffer clears tokio's readiness, so waiting for more costs no
/// `EAGAIN`.
#[derive(Debug)]
pub(crate) enum BackendIo {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
    /// TLS over TCP; boxed, because the state is a kilobyte and rare.
    Tls(Box<TlsStream<TcpStream>>),
}

impl BackendIo {
    /// Liveness check of an idle connection: still open, and no byte from the backend. Never waits.
    ///
    /// Without `ask_kernel` only tokio's readiness counts, which costs no system call while nothing is ready,
    /// but may miss a FIN that is already in the socket. With `ask_kernel` the socket is peeked at. TLS
    /// messages of the session itself (tickets) are processed and do not count as bytes from the backend.
    pub(crate) fn is_idle_clean(&mut self, ask_kernel: bool) -> bool {
        match self {
            Self::Tcp(stream) => {
                let peeked = look(
                    ask_kernel,
                    || peek(&SockRef::from(&*stream)),
                    |peek| stream.try_io(Interest::READABLE, peek),
                );
                is_silent(&peeked)
            }
            Self::Unix(stream) => {
                let peeked = look(
                    ask_kernel,
                    || peek(&SockRef::from(&*stream)),
                    |peek| stream.try_io(Interest::READABLE, peek),
                );
                is_silent(&peeked)
            }
            Self::Tls(stream) => {
                let (tcp, session) = stream.get_mut();
                for _ in 0..MAX_IDLE_READS {
                    let read = look(
                        ask_kernel,
                        || session.read_tls(&mut Socket(SockRef::from(&*tcp))),
                        |read| tcp.try_io(Interest::READABLE, read),
                    );
                    if is_silent(&read) {
                        // Bytes that came with the last response may still be buffered in the session.
                        return session.process_new_packets().is_ok_and(|state| {
                            state.plaintext_bytes_to_read() == 0 && !state.peer_has_closed()
                        });
                    }
                    match (read, session.process_new_packets()) {
                        (Ok(1..), Ok(state))
                            if state.plaintext_bytes_to_read() == 0 && !state.peer_has_closed() => {}
                        _ => return false,
                    }
                }
                false
            }
        }
    }
}

impl From<PlainStream> for BackendIo {
    fn from(plain: PlainStream) -> Self {
        match plain {
            PlainStream::Tcp(stream) => Self::Tcp(stream),
            PlainStream::Unix(stream) => Self::Unix(stream),
        }
    }
}

/// Reads by a system call, or by way of tokio's readiness, which skips the read while nothing is ready, and
/// which a read that would block clears.
fn look<F: FnOnce() -> io::Result<usize>>(
    ask_kernel: bool,
    read: F,
    if_ready: impl FnOnce(F) -> io::Result<usize>,
) -> io::Result<usize> {
    if ask_kernel { read() } else { if_ready(read) }
}

fn peek(socket: &SockRef<'_>) -> io::Result<usize> {
    socket.peek(&mut [MaybeUninit::uninit()])
}

fn is_silent(read: &io::Result<usize>) -> bool {
    matches!(read, Err(e) if e.kind() == io::ErrorKind::WouldBlock)
}

/// A non-blocking reader of the socket itself, past tokio.
struct Socket<'a>(SockRef<'a>);

impl Read for Socket<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(buf)
    }
}

impl AsyncRead for BackendIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for BackendIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
#[path = "io_tests.rs"]
mod tests;

//! WebSocket over HTTP/2 (RFC 8441): the handshake key that HTTP/1.1 needs, and a stream as a byte stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use data_encoding::BASE64;
use h2::{RecvStream, SendStream};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The largest piece of DATA sent at once, in bytes.
pub(super) const PIECE: usize = 16 * 1024;

/// The GUID of the handshake (RFC 6455 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A `Sec-WebSocket-Key`: HTTP/2 clients send none, and HTTP/1.1 backends need one.
#[derive(Debug)]
pub(super) struct WebSocketKey([u8; 24]);

impl WebSocketKey {
    /// Generates a key. A key is no secret: it shows that the backend processed this handshake.
    pub(super) fn generate() -> Self {
        Self::of(fastrand::u128(..).to_be_bytes())
    }

    fn of(nonce: [u8; 16]) -> Self {
        let mut key = [0; 24];
        BASE64.encode_mut(&nonce, &mut key);
        Self(key)
    }

    /// The field's value.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether a `Sec-WebSocket-Accept` matches the key (RFC 6455 4.2.2).
    pub(super) fn is_accepted_by(&self, accept: &[u8]) -> bool {
        let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[&self.0, GUID].concat());
        let mut expected = [0; 28];
        BASE64.encode_mut(hash.as_ref(), &mut expected);
        accept == expected
    }
}

/// An HTTP/2 stream as a byte stream: DATA is read and written under flow control, END_STREAM is the end, and
/// dropping the stream before its end resets it.
#[derive(Debug)]
pub(super) struct StreamIo {
    recv: Option<RecvStream>,
    /// Received and not yet consumed.
    chunk: Bytes,
    send: Option<SendStream<Bytes>>,
    ended: bool,
}

impl StreamIo {
    /// A byte stream over a stream whose response head was sent, with the bytes already received.
    pub(super) fn new(recv: Option<RecvStream>, chunk: Bytes, send: Option<SendStream<Bytes>>) -> Self {
        Self {
            recv,
            chunk,
            send,
            ended: false,
        }
    }
}

impl Drop for StreamIo {
    fn drop(&mut self) {
        // RFC 8441 5: a broken connection is signalled as CANCEL.
        if let Some(send) = self.send.as_mut().filter(|_| !self.ended) {
            send.send_reset(h2::Reason::CANCEL);
        }
    }
}

fn reset() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

impl AsyncRead for StreamIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(recv) = &mut this.recv else {
            return Poll::Ready(Ok(()));
        };
        while this.chunk.is_empty() {
            match ready!(recv.poll_data(cx)) {
                Some(Ok(chunk)) => this.chunk = chunk,
                Some(Err(_)) => return Poll::Ready(Err(reset())),
                None => return Poll::Ready(Ok(())),
            }
        }
        let n = this.chunk.len().min(out.remaining());
        out.put_slice(&this.chunk[..n]);
        this.chunk.advance(n);
        // Fails only for a stream that is gone.
        let _ = recv.flow_control().release_capacity(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for StreamIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let Some(send) = this.send.as_mut().filter(|_| !this.ended) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let want = data.len().min(PIECE);
        send.reserve_capacity(want);
        while send.capacity() == 0 && want > 0 {
            if !matches!(ready!(send.poll_capacity(cx)), Some(Ok(_))) {
                return Poll::Ready(Err(reset()));
            }
        }
        let n = send.capacity().min(want);
        let sent = send.send_data(Bytes::copy_from_slice(&data[..n]), false);
        Poll::Ready(sent.map(|()| n).map_err(|_| reset()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's task writes.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(send) = this.send.as_mut().filter(|_| !this.ended) else {
            return Poll::Ready(Ok(()));
        };
        this.ended = true;
        Poll::Ready(send.send_data(Bytes::new(), true).map_err(|_| reset()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6455 1.3.
    #[test]
    fn the_handshake_of_the_rfc() {
        let key = WebSocketKey::of(*b"the sample nonce");
        assert_eq!(key.as_bytes(), b"dGhlIHNhbXBsZSBub25jZQ==");
        assert!(key.is_accepted_by(b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert!(!key.is_accepted_by(b"s3pPLMBiTxaQ9kYGzzhZRbK+xOp="));
        assert!(!key.is_accepted_by(b""));
    }
}

//! One connection between two replicas: frames of bytes with their length before each, as a 32-bit number in network byte
//! order. An empty frame is a keep-alive.

use std::fmt;
use std::io;
use std::sync::Arc;

use bytes::{Buf as _, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::source::cluster::peers::{DEAD, PING};

/// The longest frame, in bytes.
pub(super) const MAX_FRAME: usize = 1024 * 1024;

/// The most bytes that wait to be sent: a replica that takes them more slowly than they come is better met anew, which
/// begins with what is so now.
pub(super) const MAX_QUEUED: usize = 16 * 1024 * 1024;

/// The bytes that one read asks for, and that a buffer keeps once it is empty.
const CHUNK: usize = 16 * 1024;

/// The bytes of a length.
const LENGTH: usize = size_of::<u32>();

/// The queue of what is to be sent on one connection.
#[derive(Default)]
pub(super) struct Outbox {
    inner: Mutex<Queue>,
    /// Something is queued.
    queued: Notify,
    /// The end was asked for.
    ended: Notify,
}

#[derive(Default)]
struct Queue {
    /// Frames, one after the other: what was queued while the one before was written is written at once.
    frames: Vec<u8>,
    /// The bytes that were taken from the queue and are not written yet.
    writing: usize,
    /// Why the connection has ended, or is about to.
    end: Option<&'static str>,
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = self.inner.lock();
        let queued = queue.frames.len() + queue.writing;
        f.debug_struct("Outbox")
            .field("queued", &queued)
            .field("end", &queue.end)
            .finish()
    }
}

impl Outbox {
    /// Queues a message. Once the connection has ended nothing happens; where this message is too much, it ends.
    pub(super) fn push(&self, message: &[u8]) {
        debug_assert!(!message.is_empty(), "an empty frame is a keep-alive");
        let mut queue = self.inner.lock();
        if queue.end.is_some() {
            return;
        }
        let Some(length) = u32::try_from(message.len())
            .ok()
            .filter(|_| message.len() <= MAX_FRAME)
        else {
            drop(queue);
            return self.end("a message is longer than a frame may be");
        };
        if queue.frames.len() + queue.writing + LENGTH + message.len() > MAX_QUEUED {
            drop(queue);
            return self.end("too much waits to be sent");
        }
        queue.frames.extend_from_slice(&length.to_be_bytes());
        queue.frames.extend_from_slice(message);
        drop(queue);
        self.queued.notify_one();
    }

    /// Asks the connection to end; what is queued is dropped.
    pub(super) fn end(&self, why: &'static str) {
        let mut queue = self.inner.lock();
        queue.end.get_or_insert(why);
        queue.frames = Vec::new();
        drop(queue);
        self.ended.notify_one();
    }

    /// Waits until the end is asked for.
    async fn ended(&self) -> io::Error {
        loop {
            if let Some(why) = self.inner.lock().end {
                return io::Error::other(why);
            }
            self.ended.notified().await;
        }
    }

    /// Waits for frames and takes all of them, for the buffer whose frames are written.
    async fn take(&self, written: Vec<u8>) -> Vec<u8> {
        let mut empty = if written.capacity() > 4 * CHUNK {
            Vec::new()
        } else {
            written
        };
        empty.clear();
        loop {
            {
                let mut queue = self.inner.lock();
                if !queue.frames.is_empty() {
                    queue.writing = queue.frames.len();
                    return std::mem::replace(&mut queue.frames, empty);
                }
            }
            self.queued.notified().await;
        }
    }

    fn wrote(&self, bytes: usize) {
        let mut queue = self.inner.lock();
        queue.writing = queue.writing.saturating_sub(bytes);
    }
}

/// Carries frames in both directions until the connection ends: by itself, by silence, by an error of `receive`, or by the
/// outbox.
///
/// # Errors
/// Why it has ended.
pub(super) async fn carry(
    stream: impl AsyncRead + AsyncWrite,
    outbox: &Arc<Outbox>,
    receive: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let (reader, writer) = split(stream);
    tokio::select! {
        // A connection that is to be ended delivers nothing more.
        biased;
        why = outbox.ended() => Err(why),
        ended = read(reader, receive) => ended,
        ended = write(writer, outbox) => ended,
    }
}

async fn read(
    mut reader: impl AsyncRead + Unpin,
    mut receive: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        while let Some(head) = buffer.first_chunk::<LENGTH>() {
            let length = usize::try_from(u32::from_be_bytes(*head)).unwrap_or(usize::MAX);
            if length > MAX_FRAME {
                let message = format!("a frame of {length} bytes, more than {MAX_FRAME}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            let Some(frame) = buffer.get(LENGTH..LENGTH + length) else {
                break;
            };
            if !frame.is_empty() {
                receive(frame)?;
            }
            buffer.advance(LENGTH + length);
        }
        if buffer.is_empty() && buffer.capacity() > 4 * CHUNK {
            buffer = BytesMut::new();
        }
        buffer.reserve(CHUNK);
        // Of a long frame each part shows that the other side lives.
        if timeout(DEAD, reader.read_buf(&mut buffer)).await?? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

async fn write(mut writer: impl AsyncWrite + Unpin, outbox: &Outbox) -> io::Result<()> {
    let mut frames = Vec::new();
    loop {
        frames = match timeout(PING, outbox.take(frames)).await {
            Ok(frames) => frames,
            Err(_) => vec![0; LENGTH],
        };
        let mut rest = frames.as_slice();
        while !rest.is_empty() {
            let written = timeout(DEAD, writer.write(rest)).await??;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            outbox.wrote(written);
            rest = rest.get(written..).unwrap_or_default();
        }
        timeout(DEAD, writer.flush()).await??;
    }
}

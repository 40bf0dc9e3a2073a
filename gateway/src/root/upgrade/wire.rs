//! The protocol between the old and the new process of an upgrade: frames and descriptors over a
//! Unix stream socket pair.
//!
//! A frame is its length (4 bytes, of the body alone), its kind (1 byte), the number of descriptors
//! that belong to it (1 byte), and the body. Either process may be the newer binary, so these six
//! bytes and `version` in [`Hello`] and [`Welcome`] stay as they are for ever; all else may change
//! with [`VERSION`], and a process refuses the upgrade with a version that it does not know.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sluice_model::AdminAddress;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

/// The version of the protocol: grows with every change that an older binary would misread.
pub(crate) const VERSION: u32 = 1;

/// The longest body, in bytes: the scaling's state of some 100,000 revisions.
const MAX_BODY: usize = 64 << 20;

/// The most descriptors of one frame; the kernel takes 253 at once.
pub(crate) const MAX_DESCRIPTORS: usize = 64;

/// The most descriptors of one read, as the kernel bounds it.
const MAX_READ_DESCRIPTORS: usize = 253;

/// Bytes read at once.
const CHUNK: usize = 64 << 10;

/// Frames that may wait to be written before [`Sender::send`] waits.
const BACKLOG: usize = 256;

const HEADER: usize = 6;

/// What a listening socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SocketKind {
    /// A listener of the data plane.
    Listener,
    /// `/healthz` and `/readyz` alone.
    Health,
    /// The admin API.
    Admin,
}

/// The key of a listening socket in both processes: its purpose and configured address. Several sockets
/// of one name (port 0) are distinguished by their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SocketName {
    pub(crate) kind: SocketKind,
    /// As configured, not as bound. Only the admin socket may be a Unix socket.
    #[serde(with = "as_text")]
    pub(crate) address: AdminAddress,
}

/// An address as text, which is also how serde writes a `SocketAddr`.
mod as_text {
    use serde::{Deserialize, Deserializer, Serializer, de};
    use sluice_model::AdminAddress;

    pub(super) fn serialize<S: Serializer>(address: &AdminAddress, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(address)
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<AdminAddress, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

/// The first frame; from the old process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// [`VERSION`] of the old process.
    pub(crate) version: u32,
    /// The old binary's version, for people.
    #[serde(default)]
    pub(crate) build: String,
    #[serde(default)]
    pub(crate) pid: u32,
    /// How many sockets follow in [`Frame::Sockets`].
    #[serde(default)]
    pub(crate) sockets: usize,
}

/// The response to [`Hello`]; from the new process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Welcome {
    /// [`VERSION`] of the new process.
    pub(crate) version: u32,
    /// The new binary's version, for people.
    #[serde(default)]
    pub(crate) build: String,
}

/// A message, in the order of an upgrade; O is the old process, N the new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// O: its version and pid.
    Hello(Hello),
    /// O: names of listening sockets, one descriptor each.
    Sockets(Vec<SocketName>),
    /// N: its version.
    Welcome(Welcome),
    /// N: everything is built and bound; N is ready to serve.
    Prepared,
    /// N: the reason why N cannot take over. O serves on.
    Failed(String),
    /// Either: a message of the scaling, opaque here. Before `Serving` the hand-over of the scaling, afterwards
    /// the messages between both processes' throttlers and scalers.
    Scaling(Bytes),
    /// O: the scaling is handed over in full, N shall serve. From here on O no longer cancels the upgrade, except
    /// by the timeout.
    Take,
    /// N: a Snapshot is served and every listener accepts. The acknowledgement.
    Serving,
    /// O: O no longer accepts, and N is the service's main process.
    Released,
}

impl Frame {
    /// The frame's name, for the log.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "Hello",
            Self::Sockets(_) => "Sockets",
            Self::Welcome(_) => "Welcome",
            Self::Prepared => "Prepared",
            Self::Failed(_) => "Failed",
            Self::Scaling(_) => "Scaling",
            Self::Take => "Take",
            Self::Serving => "Serving",
            Self::Released => "Released",
        }
    }

    fn encode(&self) -> Result<(u8, Bytes), WireError> {
        let body = |value: Result<Vec<u8>, serde_json::Error>| {
            value.map(Bytes::from).map_err(|e| WireError::Malformed {
                frame: self.name(),
                why: e.to_string(),
            })
        };
        Ok(match self {
            Self::Hello(hello) => (1, body(serde_json::to_vec(hello))?),
            Self::Sockets(names) => (2, body(serde_json::to_vec(names))?),
            Self::Welcome(welcome) => (3, body(serde_json::to_vec(welcome))?),
            Self::Prepared => (4, Bytes::new()),
            Self::Failed(why) => (5, Bytes::copy_from_slice(why.as_bytes())),
            Self::Scaling(blob) => (6, blob.clone()),
            Self::Take => (7, Bytes::new()),
            Self::Serving => (8, Bytes::new()),
            Self::Released => (9, Bytes::new()),
        })
    }

    fn decode(kind: u8, body: Bytes) -> Result<Self, WireError> {
        fn json<T: DeserializeOwned>(frame: &'static str, body: &[u8]) -> Result<T, WireError> {
            serde_json::from_slice(body).map_err(|e| WireError::Malformed {
                frame,
                why: e.to_string(),
            })
        }
        Ok(match kind {
            1 => Self::Hello(json("Hello", &body)?),
            2 => Self::Sockets(json("Sockets", &body)?),
            3 => Self::Welcome(json("Welcome", &body)?),
            4 => Self::Prepared,
            5 => Self::Failed(String::from_utf8_lossy(&body).into_owned()),
            6 => Self::Scaling(body),
            7 => Self::Take,
            8 => Self::Serving,
            9 => Self::Released,
            kind => return Err(WireError::Unknown { kind }),
        })
    }
}

/// A frame with the descriptors that came with it.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) frame: Frame,
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// Errors of the connection to the other process.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("the connection to the other process failed: {0}")]
    Io(#[from] io::Error),
    #[error("the other process is gone")]
    Closed,
    #[error("the other process was cut off in the middle of a message")]
    Cut,
    #[error("a message of {0} bytes is longer than the {MAX_BODY} allowed")]
    TooLong(usize),
    #[error("a message with {announced} descriptors came with {came}")]
    Descriptors { announced: usize, came: usize },
    #[error("a {frame} message was not understood: {why}")]
    Malformed { frame: &'static str, why: String },
    #[error("a message of the unknown kind {kind}")]
    Unknown { kind: u8 },
}

/// One end of the connection, both directions.
#[derive(Debug)]
pub(crate) struct Channel {
    sender: Sender,
    receiver: Receiver,
}

impl Channel {
    /// Takes over a connected stream; must run inside a runtime.
    ///
    /// # Errors
    /// When the stream cannot be registered with the runtime.
    pub(crate) fn new(stream: std::os::unix::net::UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let (read, write) = UnixStream::from_std(stream)?.into_split();
        let (queue, outgoing) = mpsc::channel(BACKLOG);
        tokio::spawn(write_frames(write, outgoing));
        Ok(Self {
            sender: Sender { queue },
            receiver: Receiver {
                socket: read,
                input: BytesMut::new(),
                descriptors: VecDeque::new(),
            },
        })
    }

    /// See [`Sender::send`].
    pub(crate) async fn send(&self, frame: &Frame, descriptors: Vec<OwnedFd>) -> Result<(), WireError> {
        self.sender.send(frame, descriptors).await
    }

    /// See [`Sender::flush`].
    pub(crate) async fn flush(&self) {
        self.sender.flush().await;
    }

    /// See [`Receiver::recv`].
    pub(crate) async fn recv(&mut self) -> Result<Message, WireError> {
        self.receiver.recv().await
    }

    /// Splits the connection into its halves.
    pub(crate) fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }
}

/// The sending half. Clones share the connection; frames of one clone stay in order. When the last
/// clone is dropped and its frames are written, the other process reads the end of the stream.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    queue: mpsc::Sender<Outgoing>,
}

#[derive(Debug)]
enum Outgoing {
    Frame { bytes: Bytes, descriptors: Vec<OwnedFd> },
    Flush(oneshot::Sender<()>),
}

impl Sender {
    /// Queues a frame. Waits only while [`BACKLOG`] frames are unwritten. Cancel-safe: a frame is sent whole or
    /// not at all. The descriptors are closed here once they are sent.
    ///
    /// # Errors
    /// [`WireError::Closed`] when the other process is gone; when it exits later, `recv` returns the error.
    pub(crate) async fn send(&self, frame: &Frame, descriptors: Vec<OwnedFd>) -> Result<(), WireError> {
        let (kind, body) = frame.encode()?;
        if body.len() > MAX_BODY {
            return Err(WireError::TooLong(body.len()));
        }
        if descriptors.len() > MAX_DESCRIPTORS {
            return Err(WireError::Descriptors {
                announced: descriptors.len(),
                came: MAX_DESCRIPTORS,
            });
        }
        let mut bytes = BytesMut::with_capacity(HEADER + body.len());
        bytes.put_u32(u32::try_from(body.len()).expect("MAX_BODY fits"));
        bytes.put_u8(kind);
        bytes.put_u8(u8::try_from(descriptors.len()).expect("MAX_DESCRIPTORS fits"));
        bytes.extend_from_slice(&body);
        let outgoing = Outgoing::Frame {
            bytes: bytes.freeze(),
            descriptors,
        };
        self.queue.send(outgoing).await.map_err(|_| WireError::Closed)
    }

    /// Resolves when every frame sent before is written, or cannot be written any more.
    pub(crate) async fn flush(&self) {
        let (done, written) = oneshot::channel();
        if self.queue.send(Outgoing::Flush(done)).await.is_ok() {
            let _ = written.await;
        }
    }
}

/// The writing task. Ends with the last [`Sender`], or when the other process is gone. Dropping the half then
/// ends the stream for the other process.
async fn write_frames(socket: OwnedWriteHalf, mut outgoing: mpsc::Receiver<Outgoing>) {
    while let Some(next) = outgoing.recv().await {
        match next {
            Outgoing::Frame { bytes, descriptors } => {
                if let Err(error) = write(socket.as_ref(), &bytes, &descriptors).await {
                    tracing::debug!(%error, "the other process of the upgrade does not listen");
                    return;
                }
            }
            Outgoing::Flush(done) => drop(done.send(())),
        }
    }
}

async fn write(socket: &UnixStream, mut bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<()> {
    let mut descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    while !bytes.is_empty() {
        socket.writable().await?;
        match socket.try_io(Interest::WRITABLE, || send(socket, bytes, &descriptors)) {
            Ok(n) => {
                bytes.advance(n);
                // Descriptors are sent with the first byte.
                descriptors.clear();
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn send(socket: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?)
}

/// The receiving half.
#[derive(Debug)]
pub(crate) struct Receiver {
    socket: OwnedReadHalf,
    input: BytesMut,
    /// Descriptors received for frames that are not complete yet. Bounded: one read's worth per frame.
    descriptors: VecDeque<OwnedFd>,
}

impl Receiver {
    /// The next frame. Cancel-safe.
    ///
    /// # Errors
    /// [`WireError::Closed`] at the end of the stream; every other error ends the connection, too.
    pub(crate) async fn recv(&mut self) -> Result<Message, WireError> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(message);
            }
            self.socket.readable().await?;
            match self.read() {
                Ok(0) if self.input.is_empty() => return Err(WireError::Closed),
                Ok(0) => return Err(WireError::Cut),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                // The other process exited with unread frames.
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Err(WireError::Closed),
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn read(&mut self) -> io::Result<usize> {
        let socket: &UnixStream = self.socket.as_ref();
        let before = self.input.len();
        self.input.resize(before + CHUNK, 0);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_READ_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let input = &mut self.input[before..];
        let received = socket.try_io(Interest::READABLE, || {
            let mut into = [IoSliceMut::new(input)];
            Ok(recvmsg(socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)?)
        });
        let came = received.as_ref().map_or(0, |r| r.bytes);
        self.input.truncate(before + came);
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        if received?.flags.contains(ReturnFlags::CTRUNC) {
            return Err(io::Error::other(
                "descriptors were lost: this process may have no more",
            ));
        }
        Ok(came)
    }

    fn take(&mut self) -> Result<Option<Message>, WireError> {
        let Some((header, rest)) = self.input.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let [a, b, c, d, kind, announced] = *header;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        let announced = usize::from(announced);
        if length > MAX_BODY {
            return Err(WireError::TooLong(length));
        }
        if rest.len() < length {
            return Ok(None);
        }
        self.input.advance(HEADER);
        let body = self.input.split_to(length).freeze();
        let came = self.descriptors.len();
        if came < announced {
            return Err(WireError::Descriptors { announced, came });
        }
        let descriptors = self.descriptors.drain(..announced).collect();
        Frame::decode(kind, body).map(|frame| Some(Message { frame, descriptors }))
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;

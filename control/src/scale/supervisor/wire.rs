//! The protocol between gateway and supervisor: length-prefixed JSON over a Unix socket pair.
//!
//! The supervisor may be older than the gateway, because an upgrade passes the socket on. So the first message of each side
//! is `Hello`, and an unknown command is answered by `Refused`, never fatal.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// The protocol version; grows with every change that an older peer would misread. Since 2 several gateways may attach.
pub(crate) const VERSION: u32 = 2;

/// The first version that understands [`Command::Attach`].
pub(crate) const ATTACHES: u32 = 2;

/// The bound of descriptors in one write, and of received descriptors that no message has taken yet.
const MAX_FDS: usize = 4;

/// The bound of a message, in bytes: the kernel takes about 2 MiB of arguments and environment, and JSON escapes at worst
/// double them.
const MAX_FRAME: usize = 4 << 20;

const PREFIX: usize = size_of::<u32>();

/// A message from the gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Command {
    /// The first message.
    Hello { version: u32 },
    /// Starts an instance; answered by `Started` or `StartFailed`.
    Start(Box<Start>),
    /// SIGTERM to the instance's group now, SIGKILL after `grace_ms`; zero kills at once. May be
    /// repeated with a shorter grace. An unknown instance is ignored: it has just exited.
    Stop { instance: u64, grace_ms: u64 },
    /// Asks for all running instances, after a take-over. Answered by `Listing`.
    List,
    /// Attaches the next gateway by the socket that comes with the message: that socket gets all events from now on, and its
    /// commands count. The present socket only shows that its gateway lives; its commands are answered by
    /// [`Event::Outranked`].
    Attach,
    /// Closes the socket of the next gateway, whose upgrade failed; commands of the present socket count again. Answered by
    /// `Listing`, because events went to the other socket meanwhile.
    Reclaim,
}

/// One instance to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) instance: u64,
    /// Program and arguments, expanded. Never empty.
    pub(crate) command: Vec<String>,
    /// On top of the supervisor's own environment, unless `clear_env`.
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) cwd: PathBuf,
    pub(crate) clear_env: bool,
    /// The grace period when the gateway is gone, bounded by the supervisor.
    pub(crate) grace_ms: u64,
    pub(crate) label: Label,
}

/// The identity of an instance for a gateway that takes over; opaque to the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Label {
    pub(crate) namespace: String,
    pub(crate) revision: String,
    pub(crate) port: u16,
}

/// The pipe that a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// A message from the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Event {
    /// The first message.
    Hello { version: u32 },
    /// The instance runs, and leads the process group of this id.
    Started { instance: u64, pid: i32 },
    /// The instance could not be started; no other event follows for it.
    StartFailed { instance: u64, error: String },
    /// One line of output, or a piece of a very long one. `dropped` lines before it were lost to back-pressure.
    Output {
        instance: u64,
        stream: Stream,
        line: String,
        dropped: u64,
    },
    /// The instance and its whole group are gone; no other event follows for it. `dropped` lines were lost after the last
    /// one sent.
    Exited {
        instance: u64,
        status: String,
        last_stderr: Option<String>,
        dropped: u64,
    },
    /// All running instances.
    Listing { instances: Vec<Listed> },
    /// A command was not understood or failed.
    Refused { error: String },
    /// A command was not executed, because a newer gateway is attached.
    Outranked,
}

/// One running instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Listed {
    pub(crate) instance: u64,
    pub(crate) pid: i32,
    pub(crate) label: Label,
}

/// An event of a [`Link`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LinkEvent {
    /// A message arrived; see [`decode`].
    Message(Vec<u8>),
    /// Some outgoing bytes were written: there may be room again.
    Wrote,
    /// The peer closed the socket.
    Closed,
}

/// One end of the socket, with a buffer for each direction. Reads and writes make progress together, so that two ends with
/// full buffers cannot deadlock.
#[derive(Debug)]
pub(crate) struct Link {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// The bytes of `output` that are written already.
    written: usize,
    /// Descriptors to send with the next write: never later than their message.
    outgoing: VecDeque<OwnedFd>,
    /// Received descriptors that no message has taken yet.
    incoming: VecDeque<OwnedFd>,
    /// Back-pressure: reads nothing while more bytes than this are unwritten, so that a peer that never reads cannot fill
    /// memory. Only one of two peers may have a bound, or they deadlock.
    pause_above: usize,
}

impl Link {
    /// A link over a connected stream; must run inside a runtime.
    ///
    /// # Errors
    /// When the stream cannot be registered with the runtime.
    pub(crate) fn new(stream: std::os::unix::net::UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: UnixStream::from_std(stream)?,
            input: Vec::new(),
            output: Vec::new(),
            written: 0,
            outgoing: VecDeque::new(),
            incoming: VecDeque::new(),
            pause_above: usize::MAX,
        })
    }

    /// Reads nothing while more than `bytes` wait to be written.
    pub(crate) fn pause_above(mut self, bytes: usize) -> Self {
        self.pause_above = bytes;
        self
    }

    /// The number of bytes not yet written.
    pub(crate) fn backlog(&self) -> usize {
        self.output.len() - self.written
    }

    /// Appends a message to the outgoing buffer, which [`Self::next`] writes.
    ///
    /// # Errors
    /// `InvalidInput` when it is longer than the protocol allows.
    pub(crate) fn push(&mut self, message: &impl Serialize) -> io::Result<()> {
        let body = serde_json::to_vec(message)?;
        if body.len() > MAX_FRAME {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} bytes are more than a message may have", body.len()),
            ));
        }
        let length = u32::try_from(body.len()).expect("MAX_FRAME fits");
        self.output.extend_from_slice(&length.to_be_bytes());
        self.output.extend_from_slice(&body);
        Ok(())
    }

    /// As [`push`](Self::push), with a descriptor that comes with the message.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn push_with(&mut self, message: &impl Serialize, fd: OwnedFd) -> io::Result<()> {
        self.push(message)?;
        self.outgoing.push_back(fd);
        Ok(())
    }

    /// The oldest descriptor that came in and was not taken yet.
    pub(crate) fn take_fd(&mut self) -> Option<OwnedFd> {
        self.incoming.pop_front()
    }

    /// Waits for the next event on the socket, and writes outgoing bytes meanwhile. Cancel safe.
    ///
    /// # Errors
    /// When the socket fails, or the peer announces a message longer than the protocol allows.
    pub(crate) async fn next(&mut self) -> io::Result<LinkEvent> {
        loop {
            if let Some(frame) = self.take_frame()? {
                return Ok(LinkEvent::Message(frame));
            }
            let reads = self.backlog() <= self.pause_above;
            let interest = match (reads, self.backlog() > 0) {
                (true, true) => Interest::READABLE | Interest::WRITABLE,
                (true, false) => Interest::READABLE,
                (false, _) => Interest::WRITABLE,
            };
            let ready = self.stream.ready(interest).await?;
            if reads && ready.is_readable() && !self.read_some()? {
                return Ok(LinkEvent::Closed);
            }
            if ready.is_writable() && self.write_some()? {
                return Ok(LinkEvent::Wrote);
            }
        }
    }

    /// True if anything was written.
    fn write_some(&mut self) -> io::Result<bool> {
        let before = self.backlog();
        while self.backlog() > 0 {
            match self.try_send() {
                Ok(n) => self.written += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if self.backlog() == 0 {
            self.output.clear();
            self.written = 0;
            // One large command should not stay in memory for ever.
            self.output.shrink_to(64 << 10);
        }
        Ok(self.backlog() < before)
    }

    fn try_send(&mut self) -> io::Result<usize> {
        let bytes = &self.output[self.written..];
        if self.outgoing.is_empty() {
            return self.stream.try_write(bytes);
        }
        let count = self.outgoing.len().min(MAX_FDS);
        let sent = {
            let fds: Vec<_> = self.outgoing.iter().take(count).map(AsFd::as_fd).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let fits = control.push(SendAncillaryMessage::ScmRights(&fds));
            debug_assert!(fits, "there is room for MAX_FDS");
            self.stream.try_io(Interest::WRITABLE, || {
                let bytes = [IoSlice::new(bytes)];
                Ok(sendmsg(&self.stream, &bytes, &mut control, SendFlags::NOSIGNAL)?)
            })?
        };
        self.outgoing.drain(..count);
        Ok(sent)
    }

    fn try_receive(&mut self, chunk: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = self.stream.try_io(Interest::READABLE, || {
            let mut bytes = [IoSliceMut::new(chunk)];
            // Not inherited by processes that are started here.
            let flags = RecvFlags::CMSG_CLOEXEC;
            Ok(recvmsg(&self.stream, &mut bytes, &mut control, flags)?)
        })?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.incoming.extend(fds);
            }
        }
        // Surplus descriptors are closed: a peer cannot fill the table of this process.
        let surplus = self.incoming.len().saturating_sub(MAX_FDS);
        self.incoming.drain(..surplus);
        Ok(received.bytes)
    }

    /// False at the end of the stream.
    fn read_some(&mut self) -> io::Result<bool> {
        let mut chunk = [0; 16 << 10];
        match self.try_receive(&mut chunk) {
            Ok(0) => Ok(false),
            Ok(n) => {
                self.input.extend_from_slice(&chunk[..n]);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn take_frame(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some((prefix, rest)) = self.input.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*prefix) as usize;
        if length > MAX_FRAME {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a message of {length} bytes was announced"),
            ));
        }
        if rest.len() < length {
            return Ok(None);
        }
        let frame = rest[..length].to_vec();
        self.input.drain(..PREFIX + length);
        self.input.shrink_to(64 << 10);
        Ok(Some(frame))
    }
}

/// Decodes a message.
///
/// # Errors
/// serde's message, for the peer or the log.
pub(crate) fn decode<T: DeserializeOwned>(frame: &[u8]) -> Result<T, String> {
    serde_json::from_slice(frame).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Link, Link) {
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        (Link::new(a).unwrap(), Link::new(b).unwrap())
    }

    async fn message(link: &mut Link) -> Option<Vec<u8>> {
        loop {
            match link.next().await.unwrap() {
                LinkEvent::Message(frame) => return Some(frame),
                LinkEvent::Wrote => {}
                LinkEvent::Closed => return None,
            }
        }
    }

    #[tokio::test]
    async fn messages_arrive_whole_and_in_order_and_then_the_end() {
        let (mut a, mut b) = pair();
        let long = "x".repeat(1 << 20);
        for version in 0..3 {
            a.push(&Event::Hello { version }).unwrap();
        }
        a.push(&Event::Refused { error: long.clone() }).unwrap();
        let writer = tokio::spawn(async move {
            assert_eq!(message(&mut a).await, None);
        });
        for version in 0..3 {
            let frame = message(&mut b).await.unwrap();
            assert_eq!(decode::<Event>(&frame), Ok(Event::Hello { version }));
        }
        let frame = message(&mut b).await.unwrap();
        assert_eq!(decode::<Event>(&frame), Ok(Event::Refused { error: long }));
        drop(b);
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn two_ends_that_both_talk_much_do_not_block_each_other() {
        let (mut a, b) = pair();
        let mut b = b.pause_above(64 << 10);
        let text = "x".repeat(10_000);
        for _ in 0..200 {
            a.push(&Event::Refused { error: text.clone() }).unwrap();
            b.push(&Event::Refused { error: text.clone() }).unwrap();
        }
        let one = async {
            for _ in 0..200 {
                assert!(message(&mut a).await.is_some());
            }
            a.push(&Command::List).unwrap();
            message(&mut a).await
        };
        let other = async {
            for _ in 0..201 {
                assert!(message(&mut b).await.is_some());
            }
            drop(b);
        };
        let (end, ()) = tokio::join!(one, other);
        assert_eq!(end, None);
    }

    /// Whoever stops filling a long backlog must hear that it has become short.
    #[tokio::test]
    async fn progress_in_writing_is_told() {
        let (mut a, mut b) = pair();
        a.push(&Event::Refused {
            error: "x".repeat(2 << 20),
        })
        .unwrap();
        let reading = tokio::spawn(async move { message(&mut b).await.map(|frame| frame.len()) });
        while a.backlog() > 0 {
            assert_eq!(a.next().await.unwrap(), LinkEvent::Wrote);
        }
        assert!(reading.await.unwrap().is_some());
    }

    #[tokio::test]
    async fn an_absurd_length_is_an_error_not_an_allocation() {
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut link = Link::new(b).unwrap();
        io::Write::write_all(&mut &a, &u32::MAX.to_be_bytes()).unwrap();
        assert_eq!(link.next().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}

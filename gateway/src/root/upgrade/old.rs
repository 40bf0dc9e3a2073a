//! The old process's side of an upgrade: starts the new process and hands over, or goes on if that fails.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sluice_gateway::edge::{Edge, FrozenListeners};
use tokio::process::Child;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::program::Program;
use super::scaling::{HandoffError, HandoffSender};
use super::wire::{
    Channel, Frame, Hello, MAX_DESCRIPTORS, Receiver, Sender, SocketKind, SocketName, VERSION, WireError,
};

/// Timeout between `Prepared` and `Serving`, which takes milliseconds. Scaling is frozen meanwhile, so a new
/// process that hangs there is not waited for long.
const HAND_OVER: Duration = Duration::from_secs(10);

/// Time between SIGTERM and SIGKILL to a new process that failed.
const GRACE: Duration = Duration::from_secs(2);

/// Timeout for the last frames of a process that exited, or for the exit of a process that sent `Failed`.
const LAST_FRAMES: Duration = Duration::from_secs(1);

/// Errors of a hand-over; the old process goes on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandOverError {
    /// This process has pid 1: its exit would end the container.
    #[error("this process is the first of its container, which ends with it: start a new container instead")]
    FirstProcess,
    /// The new process cannot be started.
    #[error("cannot start {path}: {source}")]
    Start {
        /// The binary.
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The scaling's state cannot be handed over.
    #[error("cannot hand over the scaling: {0}")]
    Scaling(sluice_control::scale::HandoverError),
    /// The listening sockets cannot be handed over.
    #[error("cannot hand over the listening sockets: {0}")]
    Sockets(std::io::Error),
    /// The new process sent `Failed`, with this reason.
    #[error("the new process cannot take over: {0}")]
    Refused(String),
    /// The new process crashed, or is not a sluice that can be upgraded to.
    #[error("the new process ended before it {before}: {how}")]
    Ended {
        /// The step that the new process did not reach.
        before: &'static str,
        /// The exit status.
        how: String,
    },
    /// The new process hangs, or needs longer.
    #[error("the new process was not {what} within {limit:?}")]
    Slow {
        /// The state that the new process did not reach.
        what: &'static str,
        /// The timeout.
        limit: Duration,
    },
    /// The new binary speaks another version of the hand-over.
    #[error(
        "the new binary ({build}) speaks version {theirs} of the hand-over and this one version {VERSION}: restart instead"
    )]
    Version {
        /// The new binary's version.
        build: String,
        /// The new binary's version of the hand-over.
        theirs: u32,
    },
    /// The new process sent an unexpected frame.
    #[error("the new process was not understood: {0}")]
    Strange(String),
    /// A stop was requested during the upgrade.
    #[error("this process was told to stop meanwhile")]
    Cancelled,
}

/// Everything that this process can hand over to a new one.
pub(crate) struct Handoff {
    pub(crate) program: Program,
    pub(crate) edge: Arc<Edge>,
    /// Admin and health.
    pub(crate) servers: Vec<(SocketName, OwnedFd)>,
    pub(crate) scaling: HandoffSender,
}

/// The new process, once it serves. The old one still accepts, until [`FrozenListeners::stop_accepting`].
pub(crate) struct Successor {
    pub(crate) pid: u32,
    /// The new binary's version.
    pub(crate) build: String,
    pub(crate) edge: FrozenListeners,
    pub(crate) sender: Sender,
    pub(crate) receiver: Receiver,
    /// Not killed when dropped.
    pub(crate) child: Child,
}

impl Handoff {
    /// Starts the binary now on disk and hands over to it. The new process may take `limit` to get ready. On an
    /// error the new process is gone, and nothing has changed. `cancelled` ends the hand-over until the new process
    /// is ready; dropping the future kills the new process, but leaves scaling frozen or not, as it is.
    pub(crate) async fn hand_over(
        &mut self,
        limit: Duration,
        cancelled: oneshot::Receiver<()>,
    ) -> Result<Successor, HandOverError> {
        if std::process::id() == 1 {
            return Err(HandOverError::FirstProcess);
        }
        // No reload from here on: it would bind the addresses that the new process, with the same files, binds.
        let edge = self.edge.freeze_listeners().await;
        let mut sockets = Vec::new();
        for (address, socket) in edge.sockets().map_err(HandOverError::Sockets)? {
            let kind = SocketKind::Listener;
            let address = address.into();
            sockets.push((SocketName { kind, address }, socket));
        }
        for (name, socket) in &self.servers {
            sockets.push((name.clone(), socket.try_clone().map_err(HandOverError::Sockets)?));
        }
        let mut new = Candidate::start(&self.program)?;
        let mut frozen = false;
        let ready = tokio::select! {
            ready = timeout(limit, greet(&mut new, sockets)) => match ready {
                Ok(greeted) => greeted,
                Err(_) => Err(HandOverError::Slow { what: "ready", limit }),
            },
            () = asked_for(cancelled) => Err(HandOverError::Cancelled),
        };
        // Not cancellable: after `Take` the new process accepts, and ending it would break its connections.
        let outcome = match ready {
            Ok(build) => hand_out(&mut new, &mut self.scaling, &mut frozen)
                .await
                .map(|()| build),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(build) => {
                let (child, channel) = new.accept();
                let (sender, receiver) = channel.split();
                Ok(Successor {
                    pid: child.id().unwrap_or_default(),
                    build,
                    edge,
                    sender,
                    receiver,
                    child,
                })
            }
            Err(error) => {
                // In this order: the new process may hold slots until it is gone.
                new.end().await;
                if frozen {
                    self.scaling.take_back().await;
                }
                Err(error)
            }
        }
    }
}

async fn asked_for(cancelled: oneshot::Receiver<()>) {
    if cancelled.await.is_err() {
        std::future::pending().await
    }
}

/// The hand-over from `Prepared` to the acknowledgement.
async fn hand_out(
    new: &mut Candidate,
    scaling: &mut HandoffSender,
    frozen: &mut bool,
) -> Result<(), HandOverError> {
    tracing::info!("upgrade: process {} is ready, handing over to it", new.pid());
    let taken = async {
        *frozen = true;
        match scaling.hand_over(&mut new.channel).await {
            Ok(()) => {}
            Err(HandoffError::Scale(error)) => return Err(HandOverError::Scaling(error)),
            Err(HandoffError::Wire(error)) => return Err(new.explain(error, "took over").await),
        }
        new.send(&Frame::Take, Vec::new(), "took over").await?;
        new.await_frame(Frame::Serving, "took over").await
    };
    timeout(HAND_OVER, taken)
        .await
        .map_err(|_| HandOverError::Slow {
            what: "serving",
            limit: HAND_OVER,
        })??;
    Ok(())
}

/// The hand-over up to [`Frame::Prepared`]. Returns the new binary's version.
async fn greet(
    new: &mut Candidate,
    mut sockets: Vec<(SocketName, OwnedFd)>,
) -> Result<String, HandOverError> {
    const BEFORE: &str = "was ready";
    let hello = Hello {
        version: VERSION,
        build: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        sockets: sockets.len(),
    };
    new.send(&Frame::Hello(hello), Vec::new(), BEFORE).await?;
    while !sockets.is_empty() {
        let some = sockets.drain(..sockets.len().min(MAX_DESCRIPTORS));
        let (names, descriptors) = some.unzip();
        new.send(&Frame::Sockets(names), descriptors, BEFORE).await?;
    }
    let welcome = match new.next(BEFORE).await? {
        Frame::Welcome(welcome) => welcome,
        frame => return Err(unexpected(&frame)),
    };
    if welcome.version != VERSION {
        return Err(HandOverError::Version {
            build: welcome.build,
            theirs: welcome.version,
        });
    }
    new.await_frame(Frame::Prepared, BEFORE).await?;
    Ok(welcome.build)
}

fn unexpected(frame: &Frame) -> HandOverError {
    HandOverError::Strange(format!("{} is out of turn", frame.name()))
}

/// The new process before the acknowledgement: a child that is killed when dropped.
struct Candidate {
    child: KillOnDrop,
    channel: Channel,
}

/// Kills the process when dropped.
struct KillOnDrop(Option<Child>);

impl KillOnDrop {
    fn child(&mut self) -> &mut Child {
        self.0.as_mut().expect("taken only together with this")
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.start_kill();
        }
    }
}

impl Candidate {
    fn start(program: &Program) -> Result<Self, HandOverError> {
        let error = |source| HandOverError::Start {
            path: program.path().display().to_string(),
            source,
        };
        let (ours, theirs) = UnixStream::pair().map_err(error)?;
        let channel = Channel::new(ours).map_err(error)?;
        let child = KillOnDrop(Some(program.start(theirs).map_err(error)?));
        Ok(Self { child, channel })
    }

    /// The process id; 0 when the process has ended.
    fn pid(&self) -> u32 {
        self.child.0.as_ref().and_then(Child::id).unwrap_or_default()
    }

    async fn send(
        &mut self,
        frame: &Frame,
        descriptors: Vec<OwnedFd>,
        before: &'static str,
    ) -> Result<(), HandOverError> {
        match self.channel.send(frame, descriptors).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.explain(error, before).await),
        }
    }

    /// Waits for this frame; any other is an error.
    async fn await_frame(&mut self, wanted: Frame, before: &'static str) -> Result<(), HandOverError> {
        match self.next(before).await? {
            frame if frame == wanted => Ok(()),
            frame => Err(unexpected(&frame)),
        }
    }

    /// The next frame; `Failed` is returned as an error.
    async fn next(&mut self, before: &'static str) -> Result<Frame, HandOverError> {
        let child = self.child.child();
        let said = tokio::select! {
            biased;
            said = self.channel.recv() => said,
            _ = child.wait() => {
                // Frames sent before the exit come first. With a timeout: descendants may hold the socket open.
                let last = timeout(LAST_FRAMES, self.channel.recv()).await;
                last.unwrap_or(Err(WireError::Closed))
            }
        };
        match said {
            Ok(message) => match message.frame {
                Frame::Failed(why) => Err(HandOverError::Refused(why)),
                frame => Ok(frame),
            },
            Err(error) => Err(self.explain(error, before).await),
        }
    }

    /// Turns an error of the socket into the cause: most often the exit of the new process, with its status.
    async fn explain(&mut self, error: WireError, before: &'static str) -> HandOverError {
        match error {
            WireError::Closed | WireError::Cut | WireError::Io(_) => {
                // `Failed` may still be unread where it was the write that failed.
                while let Ok(Ok(message)) = timeout(LAST_FRAMES, self.channel.recv()).await {
                    if let Frame::Failed(why) = message.frame {
                        return HandOverError::Refused(why);
                    }
                }
                let how = match timeout(LAST_FRAMES, self.child.child().wait()).await {
                    Ok(Ok(status)) => status.to_string(),
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => {
                        "it runs, but does not listen: is it a sluice that can be upgraded to?".to_owned()
                    }
                };
                HandOverError::Ended { before, how }
            }
            error => HandOverError::Strange(error.to_string()),
        }
    }

    /// The new process serves: from now on it is not killed when dropped.
    fn accept(mut self) -> (Child, Channel) {
        let child = self.child.0.take().expect("taken only together with this");
        (child, self.channel)
    }

    /// Ends a new process that failed: SIGTERM, then SIGKILL after [`GRACE`].
    async fn end(mut self) {
        let child = self.child.child();
        // A process without an id was reaped, and the number may be another process's.
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if timeout(GRACE, child.wait()).await.is_err() {
            let _ = child.kill().await;
        }
    }
}

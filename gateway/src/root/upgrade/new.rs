//! The new process's side of an upgrade: inherits sockets and state, gets ready, and serves on `Take`.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::dup2_stdin;
use sluice_control::autoscale::Inherited;
use sluice_control::release::Histories;
use sluice_control::scale::{HandedOver, ScaleHandle};
use sluice_gateway::registry::Registry;
use sluice_model::AdminAddress;
use tokio::sync::watch;

use super::notify::Notifier;
use super::program::VARIABLE;
use super::scaling::HandoffReceiver;
use super::wire::{Channel, Frame, Hello, Receiver, Sender, SocketKind, SocketName, VERSION, Welcome};

/// The socket to the old process of an upgrade; `None` when this process was not started by an upgrade. Standard
/// input is `/dev/null` afterwards.
///
/// # Errors
/// When there is a socket that cannot be used.
pub(crate) fn inherited_socket() -> io::Result<Option<UnixStream>> {
    let Some(from) = std::env::var(VARIABLE)
        .ok()
        .and_then(|pid| pid.parse::<i32>().ok())
    else {
        return Ok(None);
    };
    let stdin = io::stdin();
    // The variable alone does not count: instances of an upgraded gateway inherit it, but not the socket.
    if !getsockopt(&stdin.as_fd(), PeerCredentials).is_ok_and(|peer| peer.pid() == from) {
        return Ok(None);
    }
    let socket = stdin.as_fd().try_clone_to_owned()?;
    dup2_stdin(File::open("/dev/null")?)?;
    Ok(Some(socket.into()))
}

/// The take-over from an old process, before this process serves.
pub(crate) struct Takeover {
    channel: Channel,
    old: Hello,
    sockets: Vec<(SocketName, OwnedFd)>,
    scaling: HandoffReceiver,
}

impl Takeover {
    /// Receives `Hello` and all sockets. Must run inside a runtime.
    ///
    /// # Errors
    /// Why this process cannot take over; the old process was sent the same reason.
    pub(crate) async fn greet(socket: UnixStream) -> Result<Self, String> {
        let mut channel = Channel::new(socket).map_err(|e| format!("cannot be spoken to: {e}"))?;
        match receive_hello(&mut channel).await {
            Ok((old, sockets)) => Ok(Self {
                channel,
                old,
                sockets,
                scaling: HandoffReceiver::default(),
            }),
            Err(why) => {
                refuse(&channel, &why).await;
                Err(why)
            }
        }
    }

    /// The old process's id.
    pub(crate) fn old_pid(&self) -> u32 {
        self.old.pid
    }

    /// Takes the inherited socket of this configured address, if there is one.
    pub(crate) fn take(&mut self, kind: SocketKind, address: AdminAddress) -> Option<OwnedFd> {
        let wanted = SocketName { kind, address };
        let at = self.sockets.iter().position(|(name, _)| *name == wanted)?;
        Some(self.sockets.remove(at).1)
    }

    /// Takes all inherited sockets of listeners, in their order, by configured address.
    pub(crate) fn take_listeners(&mut self) -> Vec<(SocketAddr, TcpListener)> {
        let (listeners, rest) = std::mem::take(&mut self.sockets)
            .into_iter()
            .partition(|(name, _)| name.kind == SocketKind::Listener);
        self.sockets = rest;
        let listeners: Vec<(SocketName, OwnedFd)> = listeners;
        let listeners = listeners
            .into_iter()
            .filter_map(|(name, socket)| match name.address {
                AdminAddress::Tcp(address) => Some((address, TcpListener::from(socket))),
                AdminAddress::Unix(_) => None,
            });
        listeners.collect()
    }

    /// Sends `Failed` with the reason; this process should exit then.
    pub(crate) async fn refuse(self, why: &str) {
        refuse(&self.channel, why).await;
    }

    /// Sends `Prepared` and waits for `Take`. Inherited sockets that were not taken are closed.
    ///
    /// # Errors
    /// When the old process is gone, or sent an unexpected frame: this process must not serve.
    pub(crate) async fn prepared(&mut self) -> Result<(), String> {
        self.sockets.clear();
        let told = self.channel.send(&Frame::Prepared, Vec::new()).await;
        told.map_err(|e| e.to_string())?;
        loop {
            let message = self.channel.recv().await.map_err(|e| e.to_string())?;
            match message.frame {
                Frame::Scaling(said) => self.scaling.receive(&said, message.descriptors)?,
                Frame::Take => return Ok(()),
                frame => return Err(format!("{} is out of turn", frame.name())),
            }
        }
    }

    /// See [`HandoffReceiver::take_over`].
    pub(crate) fn take_over(
        &mut self,
        registry: &Registry,
        scale: &ScaleHandle,
    ) -> (Option<HandedOver>, Inherited, Option<Histories>) {
        self.scaling.take_over(registry, scale)
    }

    /// Sends the acknowledgement: every listener accepts. From here on this process is the gateway, whatever
    /// happens to the old one: an old process that gave up meanwhile kills this one.
    pub(crate) async fn serving(self, notify: std::sync::Arc<Notifier>) -> Predecessor {
        let _ = self.channel.send(&Frame::Serving, Vec::new()).await;
        let (gone, watch) = watch::channel(false);
        let (sender, receiver) = self.channel.split();
        let old = self.old.pid;
        let scaling = self.scaling;
        tokio::spawn(async move {
            follow(old, sender, receiver, scaling, &notify).await;
            tracing::info!("upgrade: process {old} is gone");
            gone.send_replace(true);
        });
        Predecessor { gone: watch }
    }
}

async fn receive_hello(channel: &mut Channel) -> Result<(Hello, Vec<(SocketName, OwnedFd)>), String> {
    let say = |e: super::wire::WireError| e.to_string();
    let old = match channel.recv().await.map_err(say)?.frame {
        Frame::Hello(old) => old,
        frame => return Err(format!("{} is out of turn", frame.name())),
    };
    if old.version != VERSION {
        return Err(format!(
            "the running gateway ({}) speaks version {} of the hand-over and the new one version {VERSION}: restart instead",
            old.build, old.version
        ));
    }
    let mut sockets = Vec::new();
    while sockets.len() < old.sockets {
        let message = channel.recv().await.map_err(say)?;
        match message.frame {
            Frame::Sockets(names) if !names.is_empty() && names.len() == message.descriptors.len() => {
                sockets.extend(names.into_iter().zip(message.descriptors));
            }
            frame => return Err(format!("{} is out of turn", frame.name())),
        }
    }
    let welcome = Welcome {
        version: VERSION,
        build: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let told = channel.send(&Frame::Welcome(welcome), Vec::new()).await;
    told.map_err(say)?;
    Ok((old, sockets))
}

async fn refuse(channel: &Channel, why: &str) {
    // The old process may be gone; then the reason is only logged here.
    let _ = channel.send(&Frame::Failed(why.to_owned()), Vec::new()).await;
    channel.flush().await;
}

async fn follow(
    old: u32,
    sender: Sender,
    mut receiver: Receiver,
    scaling: HandoffReceiver,
    notify: &Notifier,
) {
    let released = receiver.recv().await;
    // Not before `Released`: until then systemd accepts messages of the old process alone.
    notify.ready();
    match released {
        Ok(message) if message.frame == Frame::Released => {
            tracing::info!("upgrade: process {old} no longer accepts");
            scaling.follow(sender, receiver).await;
        }
        Ok(message) => tracing::warn!(
            "upgrade: process {old} is not understood: {} is out of turn",
            message.frame.name()
        ),
        Err(error) => tracing::warn!(%error, "upgrade: process {old} did not say farewell"),
    }
}

/// The old process, which drains.
#[derive(Debug, Clone)]
pub(crate) struct Predecessor {
    gone: watch::Receiver<bool>,
}

impl Predecessor {
    /// Resolves when the old process is gone. Cancel-safe.
    pub(crate) async fn gone(&self) {
        // An error means that this process's runtime ends, and all waiting with it.
        let _ = self.gone.clone().wait_for(|gone| *gone).await;
    }
}

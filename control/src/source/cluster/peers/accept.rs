//! The side that listens, which every replica does: those that do not lead refuse acknowledgements, and those with a
//! higher name are dialled by the others that share slots.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::Sender;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::certificate::PeerTls;
use super::mesh::Mesh;
use super::wire::{self, Message, VERSION};
use super::{DEAD, PING, PeerEvent};
use crate::source::cluster::acks::Served;
use crate::source::cluster::lease::Leader;

/// Connections at once: more than there are replicas, and few for whoever floods.
const CONNECTIONS: usize = 256;

/// The pause before a failed bind or accept is tried again: during an upgrade the port is the old process's.
const RETRY: Duration = Duration::from_secs(1);

/// What connections are accepted with.
#[derive(Debug, Clone)]
pub(super) struct Accept {
    /// The name of this replica.
    pub(super) me: String,
    pub(super) leader: watch::Receiver<Leader>,
    pub(super) tls: watch::Receiver<Option<PeerTls>>,
    pub(super) events: Sender<PeerEvent>,
    /// What those are met with that share slots.
    pub(super) mesh: Mesh,
}

impl Accept {
    /// Listens on this address until the future is dropped, and all connections with it.
    pub(super) async fn run(self, address: SocketAddr) {
        let mut is_broken = false;
        let listener = loop {
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(error) => {
                    if !std::mem::replace(&mut is_broken, true) {
                        tracing::warn!(%address, %error, "other replicas cannot be listened for; it is tried again");
                    }
                    sleep(RETRY).await;
                }
            }
        };
        self.serve(listener).await;
    }

    /// Serves the connections of this listener.
    pub(super) async fn serve(self, listener: TcpListener) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        let ids = AtomicU64::new(0);
        let mut connections = JoinSet::new();
        loop {
            let permit = tokio::select! {
                permit = Arc::clone(&permits).acquire_owned() => permit,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            };
            let stream = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            };
            let Ok((stream, from)) = stream else {
                sleep(RETRY).await;
                continue;
            };
            let (accept, id) = (self.clone(), ids.fetch_add(1, Ordering::Relaxed));
            connections.spawn(async move {
                let _permit = permit;
                if let Err(error) = accept.connection(stream, id).await {
                    tracing::debug!(%from, %error, "the connection of a replica has ended");
                }
            });
        }
    }

    async fn connection(mut self, stream: TcpStream, id: u64) -> io::Result<()> {
        let Some(tls) = self.tls.borrow().clone() else {
            return Err(io::Error::other("there is no certificate yet"));
        };
        stream.set_nodelay(true)?;
        let mut buffer = Vec::new();
        let (mut stream, first) = timeout(DEAD, async {
            let mut stream = TlsAcceptor::from(tls.server).accept(stream).await?;
            let first = wire::read(&mut stream, &mut buffer).await?;
            io::Result::Ok((stream, first))
        })
        .await??;
        let (replica, recipe) = match first {
            Message::Hello { replica, recipe, .. } => (replica, recipe),
            Message::Meet {
                replica, incarnation, ..
            } => return self.mesh.accepted(stream, replica, &incarnation).await,
            _ => {
                return Err(io::Error::other(
                    "another message where a Hello or a Meet belongs",
                ));
            }
        };
        let leader = self.leader.borrow_and_update().clone();
        if leader != Leader::Me {
            let leader = match leader {
                Leader::Other(name) => Some(name),
                Leader::Me | Leader::Nobody => None,
            };
            return wire::write(&mut stream, &Message::Refused { leader }).await;
        }
        let welcome = Message::Welcome {
            version: VERSION,
            leader: self.me.clone(),
        };
        wire::write(&mut stream, &welcome).await?;
        tracing::info!(replica, "a replica acknowledges to this one");
        let joined = PeerEvent::Joined {
            connection: id,
            replica: replica.clone(),
            recipe,
        };
        // The writer of statuses goes away with the runtime only.
        let _ = self.events.send(joined).await;
        let (reader, writer) = split(stream);
        let mut leader = self.leader.clone();
        let ended = tokio::select! {
            ended = self.read(reader, buffer, id, &replica) => ended,
            ended = ping(writer) => ended,
            _ = leader.changed() => Err(io::Error::other("another replica leads")),
        };
        tracing::info!(replica, why = ?ended.as_ref().err().map(ToString::to_string), "a replica acknowledges no more");
        let left = PeerEvent::Left {
            connection: id,
            replica,
        };
        let _ = self.events.send(left).await;
        ended
    }

    async fn read(
        &self,
        mut reader: impl AsyncRead + Unpin,
        mut buffer: Vec<u8>,
        connection: u64,
        replica: &str,
    ) -> io::Result<()> {
        loop {
            let message = timeout(DEAD, wire::read(&mut reader, &mut buffer)).await??;
            let Message::Served { acks, gone } = message else {
                continue;
            };
            let acks = acks.into_iter().map(Served::try_from).collect::<Result<_, _>>()?;
            let event = PeerEvent::Acknowledged {
                connection,
                replica: replica.to_owned(),
                acks,
                gone,
            };
            if self.events.send(event).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// Sends keep-alives until that fails.
pub(super) async fn ping(mut writer: impl AsyncWrite + Unpin) -> io::Result<()> {
    loop {
        timeout(DEAD, wire::write(&mut writer, &Message::Ping)).await??;
        sleep(PING).await;
    }
}

//! The side of a replica that does not lead: it keeps one connection to the leader, and tells what it serves.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, split};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use super::certificate::{PeerTls, SERVER_NAME};
use super::members::Members;
use super::table::{ServedTable, Telling};
use super::wire::{self, MAX_ACKS, Message, VERSION};
use super::{DEAD, MAX_PAUSE, MIN_PAUSE, PING, jitter};
use crate::source::cluster::acks::RECIPE;
use crate::source::cluster::lease::Leader;

/// What is told, and to whom.
#[derive(Debug)]
pub(super) struct Report {
    /// The name of this replica.
    pub(super) me: String,
    pub(super) leader: watch::Receiver<Leader>,
    pub(super) members: watch::Receiver<Option<Members>>,
    pub(super) tls: watch::Receiver<Option<PeerTls>>,
    pub(super) table: Arc<ServedTable>,
}

/// Where the leader is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    leader: String,
    address: SocketAddr,
}

impl Report {
    /// Tells whoever leads, until the future is dropped.
    pub(super) async fn run(mut self) {
        let mut pause = MIN_PAUSE;
        loop {
            let (target, tls) = (self.target(), self.tls.borrow_and_update().clone());
            let wait = match (target, tls) {
                (Some(target), Some(tls)) => {
                    let mut was_welcome = false;
                    tokio::select! {
                        ended = self.tell(&target, tls, &mut was_welcome) => {
                            let why = ended.err().map(|e| e.to_string());
                            tracing::debug!(leader = target.leader, ?why, "the leader cannot be told what is served");
                        }
                        () = self.has_moved(&target) => {}
                    }
                    if was_welcome {
                        pause = MIN_PAUSE;
                    }
                    let now = pause;
                    pause = (pause * 2).min(MAX_PAUSE);
                    Some(jitter(now))
                }
                _ => None,
            };
            match wait {
                Some(wait) => sleep(wait).await,
                None => {
                    let changed = tokio::select! {
                        changed = self.leader.changed() => changed,
                        changed = self.members.changed() => changed,
                        changed = self.tls.changed() => changed,
                    };
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }

    fn target(&mut self) -> Option<Target> {
        let leader = match &*self.leader.borrow_and_update() {
            Leader::Other(name) => name.clone(),
            Leader::Me | Leader::Nobody => return None,
        };
        let members = self.members.borrow_and_update();
        let address = members.as_ref()?.address(&leader)?;
        Some(Target { leader, address })
    }

    /// Ends when another replica leads. A leader that is missing among the replicas for a moment is kept.
    async fn has_moved(&self, target: &Target) {
        let mut leader = self.leader.clone();
        let is_other = |now: &Leader| !matches!(now, Leader::Other(name) if *name == target.leader);
        if leader.wait_for(is_other).await.is_err() {
            std::future::pending().await
        }
    }

    async fn tell(&self, target: &Target, tls: PeerTls, was_welcome: &mut bool) -> io::Result<()> {
        let mut buffer = Vec::new();
        let stream = timeout(DEAD, async {
            let stream = TcpStream::connect(target.address).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;
            let mut stream = TlsConnector::from(tls.client).connect(name, stream).await?;
            let hello = Message::Hello {
                version: VERSION,
                replica: self.me.clone(),
                recipe: RECIPE,
            };
            wire::write(&mut stream, &hello).await?;
            match wire::read(&mut stream, &mut buffer).await? {
                Message::Welcome { .. } => io::Result::Ok(stream),
                Message::Refused { leader } => {
                    let message = format!("it does not lead, but {leader:?}");
                    Err(io::Error::other(message))
                }
                _ => Err(io::Error::other("another message where a Welcome belongs")),
            }
        })
        .await??;
        *was_welcome = true;
        tracing::info!(leader = target.leader, "this replica acknowledges to the leader");
        let (reader, writer) = split(stream);
        let telling = self.table.begin();
        tokio::select! {
            ended = listen(reader, buffer) => ended,
            ended = speak(writer, &telling) => ended,
        }
    }
}

async fn listen(mut reader: impl AsyncRead + Unpin, mut buffer: Vec<u8>) -> io::Result<()> {
    loop {
        // Keep-alives, and what later versions may say.
        timeout(DEAD, wire::read(&mut reader, &mut buffer)).await??;
    }
}

async fn speak(mut writer: impl AsyncWrite + Unpin, telling: &Telling<'_>) -> io::Result<()> {
    loop {
        let message = match timeout(PING, telling.next(MAX_ACKS)).await {
            Ok((served, gone)) => Message::Served {
                acks: served.into_iter().map(Into::into).collect(),
                gone,
            },
            Err(_) => Message::Ping,
        };
        timeout(DEAD, wire::write(&mut writer, &message)).await??;
    }
}

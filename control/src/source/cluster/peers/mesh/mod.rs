//! The mesh: a connection between every two replicas, which carries what their data planes tell each other of slots.
//!
//! Of two replicas the one whose name is lower dials. Connections are there only while the data plane wants them: while a
//! revision has a concurrency limit.

mod hub;
mod link;
#[cfg(test)]
pub(super) mod tests;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::pki_types::ServerName;
use sluice_model::ReplicaSink;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use super::certificate::{PeerTls, SERVER_NAME};
use super::wire::{self, Message, VERSION};
use super::{DEAD, MAX_PAUSE, MIN_PAUSE, Members, jitter};
use hub::Hub;

/// How long a replica that meets this one waits until this one wants connections too: less than it waits for an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The longest name of a Pod.
const MAX_NAME: usize = 253;

/// What both sides of a connection meet with.
#[derive(Debug, Clone)]
pub(super) struct Mesh {
    me: String,
    /// Another number for each process.
    incarnation: u64,
    hub: Arc<Hub>,
    /// Whether the data plane wants connections.
    wanted: watch::Receiver<bool>,
}

impl Mesh {
    /// A mesh of this sink, and the task that follows what the sink wants.
    pub(super) fn new(me: String, sink: Arc<dyn ReplicaSink>) -> (Self, impl Future<Output = ()> + Send) {
        let (woken, mut wake) = watch::channel(());
        sink.on_wanted(Box::new(move || woken.send_replace(())));
        let (wants, wanted) = watch::channel(sink.is_wanted());
        let hub = Arc::new(Hub::new(me.clone(), sink));
        let mesh = Self {
            me,
            incarnation: incarnation(),
            hub: Arc::clone(&hub),
            wanted,
        };
        // The sink is asked here alone, so that an answer never overtakes a later one.
        let follow = async move {
            loop {
                let now = hub.sink().is_wanted();
                wants.send_if_modified(|known| std::mem::replace(known, now) != now);
                if wake.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        (mesh, follow)
    }

    /// Tells the sink who is there, and dials those whose names are higher, until the future is dropped.
    pub(super) async fn run(
        self,
        mut members: watch::Receiver<Option<Members>>,
        tls: watch::Receiver<Option<PeerTls>>,
    ) {
        let mut dialling: HashMap<String, AbortHandle> = HashMap::new();
        let mut tasks = JoinSet::new();
        loop {
            let listed = members.borrow_and_update().clone();
            if let Some(listed) = listed {
                self.hub.list(&listed);
                let higher = listed.all().map(|(name, ..)| name);
                let higher: BTreeSet<&String> = higher.filter(|name| **name > self.me).collect();
                dialling.retain(|name, task| {
                    let is_there = higher.contains(name);
                    if !is_there {
                        task.abort();
                    }
                    // One that has panicked is started again.
                    is_there && !task.is_finished()
                });
                for name in higher {
                    dialling.entry(name.clone()).or_insert_with(|| {
                        let dial = Dial {
                            mesh: self.clone(),
                            replica: name.clone(),
                            members: members.clone(),
                            tls: tls.clone(),
                        };
                        tasks.spawn(dial.run())
                    });
                }
            }
            tokio::select! {
                changed = members.changed() => if changed.is_err() {
                    std::future::pending::<()>().await;
                },
                Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            }
        }
    }

    /// Answers a replica that has dialled, and carries messages until the connection ends.
    pub(super) async fn accepted(
        mut self,
        mut stream: impl AsyncRead + AsyncWrite + Unpin,
        replica: String,
        incarnation: &str,
    ) -> io::Result<()> {
        if !is_plausible(&replica) || replica >= self.me {
            return Err(io::Error::other(format!("'{replica}' is none that dials")));
        }
        let incarnation = wire::number(incarnation)?;
        let is_wanted = async { self.wanted.wait_for(|wanted| *wanted).await.is_ok() };
        if timeout(PATIENCE, is_wanted).await != Ok(true) {
            return Err(io::Error::other("nothing is to be told"));
        }
        let met = Message::Met {
            version: VERSION,
            replica: self.me.clone(),
            incarnation: format!("{:016x}", self.incarnation),
        };
        timeout(DEAD, wire::write(&mut stream, &met)).await??;
        self.carry(stream, replica, incarnation).await
    }

    async fn carry(
        mut self,
        stream: impl AsyncRead + AsyncWrite,
        replica: String,
        incarnation: u64,
    ) -> io::Result<()> {
        tracing::info!(replica, "this replica and another one share slots");
        let joined = self.hub.join(replica.clone(), incarnation);
        let ended = tokio::select! {
            biased;
            _ = self.wanted.wait_for(|wanted| !wanted) => Err(io::Error::other("nothing is to be told any more")),
            ended = link::carry(stream, &joined.outbox, |message| joined.receive(message)) => ended,
        };
        drop(joined);
        tracing::info!(replica, why = ?ended.as_ref().err().map(ToString::to_string), "two replicas share slots no more");
        ended
    }
}

/// A connection to one replica, made again whenever it ends.
struct Dial {
    mesh: Mesh,
    replica: String,
    members: watch::Receiver<Option<Members>>,
    tls: watch::Receiver<Option<PeerTls>>,
}

impl Dial {
    async fn run(mut self) {
        let mut pause = MIN_PAUSE;
        loop {
            let Ok((address, tls)) = self.target().await else {
                return;
            };
            let mesh = self.mesh.clone();
            let met = tokio::select! {
                met = self.meet(address, tls) => Some(met),
                () = self.has_moved(address) => None,
            };
            let ended = match met {
                Some(Ok((stream, incarnation))) => {
                    pause = MIN_PAUSE;
                    mesh.carry(stream, self.replica.clone(), incarnation).await
                }
                Some(Err(error)) => Err(error),
                // At once, at its new address.
                None => {
                    pause = MIN_PAUSE;
                    continue;
                }
            };
            let why = ended.err().map(|e| e.to_string());
            tracing::debug!(replica = self.replica, %address, ?why, "another replica is not met");
            tokio::select! {
                () = sleep(jitter(pause)) => pause = (pause * 2).min(MAX_PAUSE),
                () = self.has_moved(address) => pause = MIN_PAUSE,
            }
        }
    }

    /// Waits until connections are wanted and can be made.
    async fn target(&mut self) -> Result<(SocketAddr, PeerTls), watch::error::RecvError> {
        loop {
            self.mesh.wanted.wait_for(|wanted| *wanted).await?;
            let address = self.address();
            let tls = self.tls.borrow_and_update().clone();
            if let (Some(address), Some(tls)) = (address, tls) {
                return Ok((address, tls));
            }
            tokio::select! {
                changed = self.members.changed() => changed?,
                changed = self.tls.changed() => changed?,
            }
        }
    }

    fn address(&mut self) -> Option<SocketAddr> {
        let members = self.members.borrow_and_update();
        members.as_ref()?.address(&self.replica)
    }

    /// Ends when the replica is at another address.
    async fn has_moved(&self, from: SocketAddr) {
        let mut members = self.members.clone();
        let is_elsewhere = |now: &Option<Members>| {
            let now = now.as_ref().and_then(|now| now.address(&self.replica));
            now.is_some_and(|now| now != from)
        };
        if members.wait_for(is_elsewhere).await.is_err() {
            std::future::pending().await
        }
    }

    async fn meet(
        &self,
        address: SocketAddr,
        tls: PeerTls,
    ) -> io::Result<(impl AsyncRead + AsyncWrite + use<>, u64)> {
        timeout(DEAD, async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;
            let mut stream = TlsConnector::from(tls.client).connect(name, stream).await?;
            let meet = Message::Meet {
                version: VERSION,
                replica: self.mesh.me.clone(),
                incarnation: format!("{:016x}", self.mesh.incarnation),
            };
            wire::write(&mut stream, &meet).await?;
            match wire::read(&mut stream, &mut Vec::new()).await? {
                // The address may be another Pod's by now.
                Message::Met { replica, .. } if replica != self.replica => {
                    Err(io::Error::other(format!("it is '{replica}'")))
                }
                Message::Met { incarnation, .. } => Ok((stream, wire::number(&incarnation)?)),
                _ => Err(io::Error::other("another message where a Met belongs")),
            }
        })
        .await?
    }
}

/// Whether this may be the name of a Pod.
fn is_plausible(name: &str) -> bool {
    let is_of_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(is_of_name)
}

fn incarnation() -> u64 {
    let mut bytes = [0; 8];
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => u64::from_be_bytes(bytes),
        Err(_) => fastrand::u64(..),
    }
}

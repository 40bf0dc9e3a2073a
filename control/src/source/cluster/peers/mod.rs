//! Connections between replicas: each one tells the leader what it serves, by TLS that both sides authenticate with the
//! certificate of the Secret `sluice-peer`.
//!
//! ```text
//! published ──> ServedTable ── report ── port 9902 ──> accept ── PeerEvent ──> status
//! ReplicaSink <── mesh ── port 9902 ── mesh ──> ReplicaSink
//! ```
//!
//! The first message of a connection says what it is for.

mod accept;
mod certificate;
mod members;
mod mesh;
mod report;
mod table;
#[cfg(test)]
mod tests;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use sluice_model::{Replica, ReplicaSink};
use tokio::sync::mpsc::{self, channel};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::ClusterOptions;
use super::acks::Served;
use super::lease::Leader;
pub(super) use certificate::EXPIRES;
pub(super) use members::Members;
pub(super) use table::ServedTable;

/// The interval of keep-alive messages, of both sides.
const PING: Duration = Duration::from_secs(1);

/// A connection on which nothing was received for this long is dead.
const DEAD: Duration = Duration::from_secs(4);

/// The pause after a first failure, and the longest one. Doubling, with a spread of half.
const MIN_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// The pause, up to half of it less.
fn jitter(pause: Duration) -> Duration {
    pause / 2 + pause.mul_f64(fastrand::f64() / 2.0)
}

/// Events that wait for the writer of statuses. Beyond these the connections wait.
const EVENTS: usize = 256;

/// What other replicas told the leader.
#[derive(Debug)]
pub(super) enum PeerEvent {
    /// A replica has connected. What it acknowledged before is void.
    Joined {
        connection: u64,
        replica: String,
        recipe: u32,
    },
    /// A replica serves these versions now, and the ones with these uids no more.
    Acknowledged {
        connection: u64,
        replica: String,
        acks: Vec<Served>,
        gone: Vec<String>,
    },
    /// A connection has ended.
    Left { connection: u64, replica: String },
}

/// The other replicas, for the writer of statuses.
#[derive(Debug)]
pub(super) struct Peers {
    /// `None` until they are listed.
    pub(super) members: watch::Receiver<Option<Members>>,
    pub(super) events: mpsc::Receiver<PeerEvent>,
    pub(super) table: Arc<ServedTable>,
    /// Keeps the channel open where nobody else sends.
    _members: Arc<watch::Sender<Option<Members>>>,
}

impl Peers {
    /// Starts to meet the other replicas. Outside of a Pod there are none.
    pub(super) fn start(
        client: &Client,
        options: &ClusterOptions,
        leader: &watch::Receiver<Leader>,
        table: &Arc<ServedTable>,
        sink: Arc<dyn ReplicaSink>,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let (sender, events) = channel(EVENTS);
        let (members, listed) = watch::channel(None);
        let members = Arc::new(members);
        if let Some(address) = options.peers {
            tasks.spawn(members::follow(
                client.clone(),
                options.namespace.clone(),
                Arc::clone(&members),
            ));
            let (keep, tls) = certificate::keep(client.clone(), &options.namespace, leader.clone());
            tasks.spawn(keep);
            let (mesh, wanted) = mesh::Mesh::new(options.identity.clone(), sink);
            tasks.spawn(wanted);
            let accept = accept::Accept {
                me: options.identity.clone(),
                leader: leader.clone(),
                tls: tls.clone(),
                events: sender,
                mesh: mesh.clone(),
            };
            tasks.spawn(accept.run(address));
            let report = report::Report {
                me: options.identity.clone(),
                leader: leader.clone(),
                members: listed.clone(),
                tls: tls.clone(),
                table: Arc::clone(table),
            };
            tasks.spawn(report.run());
            tasks.spawn(mesh.run(listed.clone(), tls));
        } else {
            members.send_replace(Some(Members::default()));
            let alone = Replica {
                name: options.identity.as_str().into(),
                serves: true,
            };
            sink.replicas(&options.identity, &[alone]);
        }
        Self {
            members: listed,
            events,
            table: Arc::clone(table),
            _members: members,
        }
    }
}

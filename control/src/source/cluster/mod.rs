//! The cluster source: Knative's Ingresses of our class, watched on the Kubernetes API and joined with the objects that
//! they name.
//!
//! ```text
//! watch ── Update ──> store ── resolve ──> IngressObject ── index ──> published ── outcome ──> queue ──> status
//!                                                            acknowledgements ── peers ──> ┘
//! ```
//!
//! Nothing is reported before every kind was listed, and a list that is read again replaces a kind at once: half a
//! cluster is never seen. While the API server is away, what is known is served.

mod acks;
mod activator;
mod endpoints;
mod hash;
mod hosts;
mod lease;
mod objects;
mod outage;
mod peers;
mod pods;
mod queue;
mod resolve;
mod revisions;
mod secrets;
mod seen;
mod settings;
mod shortcut;
pub mod stats;
mod status;
mod store;
#[cfg(test)]
mod store_tests;
mod uses;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use sluice_model::{
    BackendTls, DEFAULT_STREAMS_PER_CONNECTION, Protocol, ReplicaSink, RevisionSettings, RevisionTimeouts,
};
use tokio::sync::mpsc::{Receiver, UnboundedSender, channel, unbounded_channel};
use tokio::task::JoinSet;

use super::{Change, Event, Source, SourceError};
use crate::config::DEFAULT_QUEUE;
use crate::ingress::IngressOutcome;
use crate::object_name::ObjectName;
use acks::Served;
use peers::{Peers, ServedTable};
use resolve::Policy;
use seen::SeenStatuses;
use store::{AnyUpdate, Store};

/// The class of the Ingresses that are ours.
pub const INGRESS_CLASS: &str = "sluice.ingress.networking.knative.dev";

/// Updates that wait for the reconciler. Beyond these the watches wait, and with them the API server.
const UPDATES: usize = 4_096;

/// The statuses of Ingresses as the API server has them, shared with the writer.
type Statuses = Arc<SeenStatuses>;

/// Settings of the cluster source.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// The namespace that the gateway runs in.
    pub namespace: String,
    /// The name of this replica, unique in the namespace: that of its Pod.
    pub identity: String,
    /// The cluster's domain, `cluster.local` as a rule.
    pub cluster_domain: String,
    /// The address that other replicas reach this one by; `None` outside of a Pod, where there are none.
    pub peers: Option<SocketAddr>,
    /// The namespace of Knative Serving, in which the ConfigMaps are.
    pub knative_namespace: String,
    /// Whether this replica stands behind `activator-service`: revisions that no Ingress names are served as well, to
    /// requests that name them.
    pub is_activator: bool,
}

/// The settings of the revisions of Ingresses: no limit but that of the queue, since the timeouts of a Service are its
/// own (Knative's `timeout` conformance test).
fn settings() -> RevisionSettings {
    RevisionSettings {
        protocol: Protocol::Http1,
        max_streams_per_connection: DEFAULT_STREAMS_PER_CONNECTION,
        tls: BackendTls::default(),
        upgrades: None,
        readiness: None,
        start_timeout: Duration::from_secs(600),
        container_concurrency: None,
        timeouts: RevisionTimeouts {
            total: None,
            response_start: None,
            idle: None,
            max_stream_age: None,
        },
        queue: DEFAULT_QUEUE,
        request_headers: BTreeMap::new(),
        needs: Vec::new(),
    }
}

/// Connects to the API server: by the file, if one is given, else by `$KUBECONFIG`, `~/.kube/config` or the credentials
/// of the Pod.
///
/// # Errors
/// What is wrong with the configuration, in one line. An API server that does not answer is no error here.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client, String> {
    let config = match kubeconfig {
        Some(path) => {
            let read = Kubeconfig::read_from(path).map_err(|e| format!("{}: {e}", path.display()))?;
            let options = KubeConfigOptions::default();
            let config = Config::from_custom_kubeconfig(read, &options).await;
            config.map_err(|e| format!("{}: {e}", path.display()))?
        }
        None => Config::infer().await.map_err(|e| e.to_string())?,
    };
    Client::try_from(config).map_err(|e| e.to_string())
}

/// A [`Source`] of the Ingresses of a cluster.
#[derive(Debug)]
pub struct ClusterSource {
    updates: Receiver<AnyUpdate>,
    store: Store,
    outcomes: UnboundedSender<(IngressOutcome, Served)>,
    /// What this replica serves, for the others.
    table: Arc<ServedTable>,
    wanted_secrets: tokio::sync::watch::Sender<BTreeSet<ObjectName>>,
    /// The tasks that watch and write; dropped with the source.
    _tasks: JoinSet<()>,
}

impl ClusterSource {
    /// Starts to watch, on the current runtime. When `leaving` resolves, this replica hands the writing of statuses over; it
    /// goes on watching. `replicas` is what replicas share slots by: messages between them are carried while it wants that.
    pub fn start(
        client: Client,
        options: ClusterOptions,
        replicas: Arc<dyn ReplicaSink>,
        leaving: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        let (sender, updates) = channel(UPDATES);
        let (outcomes, written) = unbounded_channel();
        let statuses = Statuses::default();
        let policy = Policy {
            cluster_domain: options.cluster_domain.clone(),
            own_service: format!(
                "sluice-internal.{}.svc.{}",
                options.namespace, options.cluster_domain
            ),
            settings: Arc::new(settings()),
        };
        let store = Store::new(
            INGRESS_CLASS.to_owned(),
            policy,
            Arc::clone(&statuses),
            options.is_activator,
        );
        let mut tasks = JoinSet::new();
        let (wanted_secrets, wanted) = tokio::sync::watch::channel(BTreeSet::new());
        tasks.spawn(watch::follow_secrets(client.clone(), wanted, sender.clone()));
        tasks.spawn(watch::watch_all(
            client.clone(),
            options.knative_namespace.clone(),
            sender,
        ));
        let (election, leader) = lease::elect(client.clone(), &options, leaving);
        tasks.spawn(election);
        let table = Arc::<ServedTable>::default();
        let peers = Peers::start(&client, &options, &leader, &table, replicas, &mut tasks);
        tasks.spawn(status::write(client, options, statuses, leader, written, peers));
        Self {
            updates,
            store,
            outcomes,
            table,
            wanted_secrets,
            _tasks: tasks,
        }
    }

    fn take(&mut self) {
        while let Ok(update) = self.updates.try_recv() {
            self.store.update(update);
        }
        for warning in self.store.take_warnings() {
            tracing::warn!("{warning}");
        }
        if let Some(wanted) = self.store.take_wanted_secrets() {
            self.wanted_secrets.send_replace(wanted);
        }
    }
}

impl Source for ClusterSource {
    async fn changed(&mut self) -> Change {
        loop {
            match self.updates.recv().await {
                Some(update) => self.store.update(update),
                // The watches never end; only a runtime that goes away ends them.
                None => std::future::pending().await,
            }
            self.take();
            if self.store.is_listed() {
                return Change::Event;
            }
        }
    }

    fn refresh(&mut self) -> Result<Vec<Event>, Vec<SourceError>> {
        self.take();
        let events = self.store.events();
        // What an Ingress names by way of another one is known once it is resolved.
        self.take();
        Ok(events)
    }

    fn published(&mut self, outcomes: Vec<IngressOutcome>) {
        let of_ingresses = outcomes
            .into_iter()
            .filter(|outcome| !activator::is_revision(&outcome.object));
        for outcome in of_ingresses {
            let served = Served::of(&outcome);
            self.table.serve(&outcome, served.clone());
            // The writer goes away with the runtime only.
            let _ = self.outcomes.send((outcome, served));
        }
    }
}

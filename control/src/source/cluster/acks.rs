//! Acknowledgements: what each replica serves of each Ingress, and whether all of them serve the same. Pure.
//!
//! The leader's own version of an Ingress is the one to be acknowledged. Replicas that are ready count, and no others: a
//! replica that is not ready, or is gone, gets no requests and keeps nobody waiting.
//!
//! **Invariant:** [`Verdict::Served`] is never said while a ready replica has not acknowledged exactly this uid,
//! generation and hash on its present connection.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use ring::digest::{Context, SHA256};
use sluice_model::{Backend, EndpointTarget, Protocol, RevisionSpec, Service};
use tokio::time::Instant;

use crate::ingress::IngressOutcome;
use crate::object_name::ObjectName;

/// The time after which a replica that has not acknowledged is named.
pub(super) const LATE: Duration = Duration::from_secs(5);

/// The number of the recipe of [`Served::hash`]. Another recipe gets another number: during a rolling update hashes of
/// different recipes are not compared, uid and generation are.
pub(super) const RECIPE: u32 = 1;

/// A version of an Ingress that a replica serves: what it acknowledges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Served {
    pub(super) uid: Arc<str>,
    pub(super) generation: i64,
    /// The first 64 bits of a SHA-256 of what is served: the version of the specification (`K-Network-Hash`), the
    /// revisions with their protocols, limits and external names, and whether requests go to their Pods, the certificates
    /// with their keys, and the kind of problem.
    ///
    /// Addresses of endpoints are not in it: replicas see them come and go at different moments, and all the time.
    /// Whether there are any is: without one, an Ingress that was never complete has a problem.
    pub(super) hash: u64,
}

impl Served {
    /// The version that this replica serves since the publication of this outcome.
    pub(super) fn of(outcome: &IngressOutcome) -> Self {
        let mut hash = Fields(Context::new(&SHA256));
        if let Some(service) = &outcome.object.service {
            hash.service(service);
        }
        if let Some(problem) = &outcome.problem {
            hash.field(problem.kind.reason().as_bytes());
        }
        Self {
            uid: Arc::clone(&outcome.object.uid),
            generation: outcome.object.generation,
            hash: hash.finish(),
        }
    }
}

/// A hash of fields, each with its length before it.
struct Fields(Context);

impl Fields {
    fn field(&mut self, bytes: &[u8]) {
        self.0
            .update(&u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
        self.0.update(bytes);
    }

    fn service(&mut self, service: &Service) {
        for revision in &service.revisions {
            self.revision(revision);
        }
        if let Some(extras) = &service.ingress {
            self.field(extras.network_hash.as_bytes());
            for certificate in &extras.certificates {
                self.field(certificate.name.as_bytes());
                self.field(&certificate.pem.chain);
                self.field(&certificate.pem.key);
            }
        }
    }

    fn revision(&mut self, revision: &RevisionSpec) {
        self.field(revision.id.name().as_bytes());
        self.field(match revision.settings.protocol {
            Protocol::Http1 => b"http/1.1".as_slice(),
            Protocol::H2c => b"h2c",
            Protocol::H2 => b"h2",
        });
        let concurrency = revision.settings.container_concurrency.unwrap_or_default();
        self.field(concurrency.to_string().as_bytes());
        match &revision.backend {
            // The Pods themselves are addresses.
            Backend::Pods(_) => self.field(b"pods"),
            Backend::Static { targets, .. } => {
                self.field(b"static");
                for target in targets {
                    if let EndpointTarget::Dns { host, port } = target {
                        self.field(format!("{host}:{port}").as_bytes());
                    }
                }
            }
            // Of files alone.
            Backend::Url(_) | Backend::Managed | Backend::Tiers(_) => {}
        }
    }

    fn finish(self) -> u64 {
        let digest = self.0.finish();
        let first = digest.as_ref().first_chunk().copied();
        u64::from_be_bytes(first.unwrap_or_default())
    }
}

/// Whether all replicas serve what this one serves.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Every ready replica has acknowledged.
    Served,
    /// A ready replica has not acknowledged.
    Waiting {
        /// Those that have not for [`LATE`], in the order of their names.
        late: Vec<String>,
        /// When the next one will be late.
        until: Option<Instant>,
    },
}

/// An Ingress, as the leader serves it.
#[derive(Debug)]
struct Object {
    served: Served,
    since: Instant,
}

/// Another replica.
#[derive(Debug, Default)]
struct Replica {
    /// Since when it is ready; `None` when it is not.
    ready: Option<Instant>,
    connection: Option<Connection>,
}

#[derive(Debug)]
struct Connection {
    id: u64,
    compares_hashes: bool,
    acks: HashMap<Arc<str>, Served>,
}

/// Who has acknowledged what.
#[derive(Debug, Default)]
pub(super) struct AckBook {
    objects: HashMap<ObjectName, Object>,
    by_uid: HashMap<Arc<str>, ObjectName>,
    replicas: BTreeMap<String, Replica>,
    /// Since when this replica leads and knows the other ones.
    since: Option<Instant>,
}

impl AckBook {
    /// This replica leads, and the list of replicas is known.
    pub(super) fn begin(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// This replica does not lead any more, or not for the moment. Connections end by themselves.
    pub(super) fn end(&mut self) {
        self.since = None;
    }

    /// Records what this replica serves of an Ingress.
    pub(super) fn serve(&mut self, name: &ObjectName, served: Served, now: Instant) {
        match self.objects.get_mut(name) {
            Some(object) if object.served == served => {}
            known => {
                if let Some(known) = known {
                    self.by_uid.remove(&known.served.uid);
                }
                self.by_uid.insert(Arc::clone(&served.uid), name.clone());
                self.objects.insert(name.clone(), Object { served, since: now });
            }
        }
    }

    /// Forgets an Ingress.
    pub(super) fn forget(&mut self, name: &ObjectName) {
        if let Some(object) = self.objects.remove(name) {
            self.by_uid.remove(&object.served.uid);
        }
    }

    /// Records which other replicas are ready now.
    pub(super) fn ready(&mut self, names: &BTreeSet<String>, now: Instant) {
        for (name, replica) in &mut self.replicas {
            replica.ready = replica.ready.filter(|_| names.contains(name));
        }
        for name in names {
            let replica = self.replicas.entry(name.clone()).or_default();
            replica.ready.get_or_insert(now);
        }
        self.prune();
    }

    /// Records a new connection of a replica, which begins with nothing acknowledged and replaces an older one.
    pub(super) fn joined(&mut self, connection: u64, replica: &str, recipe: u32) {
        self.replicas.entry(replica.to_owned()).or_default().connection = Some(Connection {
            id: connection,
            compares_hashes: recipe == RECIPE,
            acks: HashMap::new(),
        });
    }

    /// Records acknowledgements, and what a replica does not serve any more. Returns the Ingresses that they are about.
    pub(super) fn acknowledged(
        &mut self,
        connection: u64,
        replica: &str,
        acks: Vec<Served>,
        gone: &[String],
    ) -> Vec<ObjectName> {
        let known = self.replicas.get_mut(replica);
        let known = known.and_then(|replica| replica.connection.as_mut());
        let Some(known) = known.filter(|known| known.id == connection) else {
            return Vec::new();
        };
        for uid in gone {
            known.acks.remove(uid.as_str());
        }
        let mut touched = Vec::new();
        for ack in acks {
            touched.extend(self.by_uid.get(&ack.uid).cloned());
            known.acks.insert(Arc::clone(&ack.uid), ack);
        }
        touched
    }

    /// Records the end of a connection: nothing is acknowledged any more by a replica that may be another process now.
    pub(super) fn left(&mut self, connection: u64, replica: &str) {
        if let Some(replica) = self.replicas.get_mut(replica) {
            _ = replica.connection.take_if(|known| known.id == connection);
        }
        self.prune();
    }

    fn prune(&mut self) {
        let is_known = |replica: &Replica| replica.ready.is_some() || replica.connection.is_some();
        self.replicas.retain(|_, replica| is_known(replica));
    }

    /// Whether all ready replicas serve what this one serves of this Ingress.
    pub(super) fn verdict(&self, name: &ObjectName, now: Instant) -> Verdict {
        let (mut late, mut until, mut is_served) = (Vec::new(), None, true);
        let (Some(object), Some(since)) = (self.objects.get(name), self.since) else {
            return Verdict::Waiting { late, until };
        };
        for (name, replica) in &self.replicas {
            let Some(ready) = replica.ready else { continue };
            let ack = replica.connection.as_ref().and_then(|connection| {
                let ack = connection.acks.get(&object.served.uid)?;
                Some((ack, connection.compares_hashes))
            });
            if let Some((ack, compares_hashes)) = ack {
                let is_same = ack.hash == object.served.hash || !compares_hashes;
                if ack.generation == object.served.generation && is_same {
                    continue;
                }
                if ack.generation > object.served.generation {
                    // This replica is the one behind, and will see the newer one.
                    is_served = false;
                    continue;
                }
            }
            is_served = false;
            let at = object.since.max(ready).max(since) + LATE;
            if at <= now {
                late.push(name.clone());
            } else {
                until = Some(until.map_or(at, |until: Instant| until.min(at)));
            }
        }
        match is_served {
            true => Verdict::Served,
            false => Verdict::Waiting { late, until },
        }
    }
}

#[cfg(test)]
#[path = "acks_tests.rs"]
mod tests;

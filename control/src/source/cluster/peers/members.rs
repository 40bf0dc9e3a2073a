//! The replicas of this gateway: the endpoints of the Service `sluice-peers`, which has those that are not ready too.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use serde::Deserialize;
use tokio::sync::mpsc::channel;
use tokio::sync::watch;

use crate::source::cluster::objects::{metadata, resource};
use crate::source::cluster::store::Update;
use crate::source::cluster::watch::follow_in;

/// The slices of the Service.
const OURS: &str = "kubernetes.io/service-name=sluice-peers";

/// Updates that wait.
const UPDATES: usize = 64;

/// The replicas by the names of their Pods, this one among them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::source::cluster) struct Members {
    replicas: BTreeMap<String, Member>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    address: SocketAddr,
    is_ready: bool,
    /// The uids of the Pods of this name: several for a moment, when the name appears again.
    uids: BTreeSet<Arc<str>>,
}

impl Members {
    /// The other replicas that are ready, and not being stopped: those that get new requests.
    pub(in crate::source::cluster) fn others_ready(&self, me: &str) -> BTreeSet<String> {
        let ready = self.replicas.iter().filter(|(_, member)| member.is_ready);
        let names = ready.map(|(name, _)| name).filter(|name| *name != me);
        names.cloned().collect()
    }

    /// One replica, which is ready.
    #[cfg(test)]
    pub(super) fn of(name: &str, address: SocketAddr) -> Self {
        Self::default().with(name, "u", address, true)
    }

    /// This one too, whose name several Pods have.
    #[cfg(test)]
    pub(super) fn with_uids(mut self, name: &str, uids: &[&str], address: SocketAddr) -> Self {
        let member = Member {
            address,
            is_ready: true,
            uids: uids.iter().map(|uid| Arc::from(*uid)).collect(),
        };
        self.replicas.insert(name.to_owned(), member);
        self
    }

    /// This one too.
    #[cfg(test)]
    pub(super) fn with(mut self, name: &str, uid: &str, address: SocketAddr, is_ready: bool) -> Self {
        let member = Member {
            address,
            is_ready,
            uids: [uid.into()].into(),
        };
        self.replicas.insert(name.to_owned(), member);
        self
    }

    /// All replicas, this one among them: the name, the uids of the Pods, and whether it is ready and not being stopped.
    pub(super) fn all(&self) -> impl Iterator<Item = (&String, &BTreeSet<Arc<str>>, bool)> {
        let all = self.replicas.iter();
        all.map(|(name, member)| (name, &member.uids, member.is_ready))
    }

    /// The address that a replica listens on for others.
    pub(super) fn address(&self, replica: &str) -> Option<SocketAddr> {
        self.replicas.get(replica).map(|member| member.address)
    }
}

/// An EndpointSlice, cut down.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct EndpointSlice {
    #[serde(deserialize_with = "metadata")]
    metadata: ObjectMeta,
    endpoints: Option<Vec<Endpoint>>,
    ports: Option<Vec<Port>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Endpoint {
    addresses: Option<Vec<String>>,
    conditions: Option<Conditions>,
    target_ref: Option<Target>,
}

/// `serving` is the readiness of the Pod; `ready` is true of all endpoints of a Service that publishes those that are not.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct Conditions {
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Target {
    kind: String,
    name: String,
    uid: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Port {
    port: Option<u16>,
}

resource!(
    EndpointSlice,
    "discovery.k8s.io",
    "v1",
    "EndpointSlice",
    "endpointslices"
);

/// Follows the replicas until the receivers are gone.
pub(super) async fn follow(client: Client, namespace: String, members: Arc<watch::Sender<Option<Members>>>) {
    let (sender, mut updates) = channel(UPDATES);
    let api = Api::<EndpointSlice>::namespaced(client, &namespace);
    let config = watcher::Config::default().labels(OURS);
    let read = async {
        let mut slices = BTreeMap::new();
        while let Some(update) = updates.recv().await {
            let update: Update<EndpointSlice> = update;
            take(&mut slices, update);
            let now = Some(joined(&slices));
            members.send_if_modified(|known| {
                let has_changed = *known != now;
                *known = now;
                has_changed
            });
        }
    };
    tokio::join!(follow_in(api, config, sender, std::convert::identity), read);
}

fn take(slices: &mut BTreeMap<String, Members>, update: Update<EndpointSlice>) {
    let name = |slice: &EndpointSlice| slice.metadata.name.clone().unwrap_or_default();
    match update {
        Update::Apply(slice) => _ = slices.insert(name(&slice), cut(slice)),
        Update::Delete(slice) => _ = slices.remove(&name(&slice)),
        Update::List(all) => *slices = all.into_iter().map(|slice| (name(&slice), cut(slice))).collect(),
    }
}

fn cut(slice: EndpointSlice) -> Members {
    let port = slice.ports.into_iter().flatten().find_map(|port| port.port);
    let mut replicas = BTreeMap::new();
    for endpoint in slice.endpoints.into_iter().flatten() {
        let conditions = endpoint.conditions.unwrap_or_default();
        let address = endpoint.addresses.into_iter().flatten().next();
        let address: Option<IpAddr> = address.and_then(|address| address.parse().ok());
        let (Some(target), Some(address), Some(port)) = (endpoint.target_ref, address, port) else {
            continue;
        };
        if target.kind == "Pod" {
            let member = Member {
                address: SocketAddr::new(address, port),
                is_ready: conditions.serving.unwrap_or(true) && !conditions.terminating.unwrap_or(false),
                uids: [target.uid.into()].into(),
            };
            replicas.insert(target.name, member);
        }
    }
    Members { replicas }
}

/// All slices together. With two address families a Pod is in two slices, which do not change at the same moment: it is
/// ready where one says so.
fn joined(slices: &BTreeMap<String, Members>) -> Members {
    let mut replicas = BTreeMap::<String, Member>::new();
    for (name, member) in slices.values().flat_map(|slice| &slice.replicas) {
        let known = replicas.entry(name.clone()).or_insert_with(|| member.clone());
        known.is_ready |= member.is_ready;
        known.uids.extend(member.uids.iter().cloned());
    }
    Members { replicas }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(name: &str, endpoints: &str) -> EndpointSlice {
        let json = format!(
            r#"{{"metadata":{{"name":"{name}"}},"ports":[{{"port":9902}}],"endpoints":{endpoints}}}"#
        );
        serde_json::from_str(&json).expect("a slice")
    }

    fn pod(name: &str, ip: &str, conditions: &str) -> String {
        format!(
            r#"{{"addresses":["{ip}"],"conditions":{{"ready":true,{conditions}}},"targetRef":{{"kind":"Pod","name":"{name}"}}}}"#
        )
    }

    #[test]
    fn ready_are_those_that_serve_and_are_not_being_stopped() {
        let mut slices = BTreeMap::new();
        let all = [
            pod("me", "10.0.0.1", r#""serving":true,"terminating":false"#),
            pod("ready", "10.0.0.2", r#""serving":true"#),
            pod("young", "10.0.0.3", r#""serving":false"#),
            pod("old", "10.0.0.4", r#""serving":true,"terminating":true"#),
        ];
        let all = format!("[{}]", all.join(","));
        take(&mut slices, Update::List(vec![slice("a", &all)]));
        let members = joined(&slices);
        assert_eq!(members.others_ready("me"), BTreeSet::from(["ready".to_owned()]));
        assert_eq!(members.address("young"), "10.0.0.3:9902".parse().ok());
        assert_eq!(members.address("other"), None);

        // Of the other family, and later.
        let six = format!("[{}]", pod("young", "fd00::3", r#""serving":true"#));
        take(&mut slices, Update::Apply(slice("b", &six)));
        assert_eq!(joined(&slices).others_ready("me").len(), 2);
        take(&mut slices, Update::Delete(slice("a", "null")));
        assert_eq!(joined(&slices).address("young"), "[fd00::3]:9902".parse().ok());
        take(&mut slices, Update::List(vec![]));
        assert_eq!(joined(&slices), Members::default());
    }
}

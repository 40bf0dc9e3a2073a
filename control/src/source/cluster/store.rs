//! The store of cluster objects: joins Ingresses with the objects that they name. Pure: updates in, resolved Ingresses
//! out, each only when something that it depends on has changed.
//!
//! **Invariant:** any order of updates that ends in the same objects gives the same resolved Ingresses, but for the last
//! good versions that objects with a problem keep.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::activator::{self, Revisions};
use super::endpoints::Endpoints;
use super::objects::{
    CLASS, ConfigMap, EndpointSlice, Ingress, IngressSpec, OF_REVISION, Pod, Revision, SERVICE_TYPE, Secret,
    Service, ServiceSpec,
};
use super::pods::FaultyPods;
use super::resolve::{self, BackendName, Policy, Resolved, resolve};
use super::revisions::KnownRevisions;
use super::secrets::Secrets;
use super::settings::Settings;
use super::uses::{Users, Uses};
use super::{Statuses, shortcut};
use crate::ingress::{IngressObject, IngressProblem, ProblemKind};
use crate::object_name::ObjectName;
use crate::source::{Content, Event, ObjectKey};

/// A change of the objects of one kind.
#[derive(Debug)]
pub(super) enum Update<K> {
    /// The object exists with this content.
    Apply(K),
    /// The object was deleted.
    Delete(K),
    /// A whole list: what is not in it was deleted.
    List(Vec<K>),
}

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Ingress,
    Service,
    Slice,
    Secret,
    Revision,
    Pod,
    Shared,
    Network,
}

impl Kind {
    const ALL: usize = Self::Network as usize + 1;
}

/// A change of any objects.
#[derive(Debug)]
pub(super) enum AnyUpdate {
    /// All objects of the first list of this kind were applied, one by one.
    Listed(Kind),
    Ingress(Update<Ingress>),
    Service(Update<Service>),
    Slice(Update<EndpointSlice>),
    Secret(Update<Secret>),
    /// A Secret that was asked for by name; `None`: there is none.
    NamedSecret(ObjectName, Option<Secret>),
    Revision(Update<Revision>),
    Pod(Update<Pod>),
    /// The ConfigMap `config-sluice`.
    Shared(Update<ConfigMap>),
    /// The ConfigMap `config-network`.
    Network(Update<ConfigMap>),
}

/// A specification with the name of its Ingress.
type Named = (ObjectName, Arc<IngressSpec>);

/// The objects that Ingresses name, cut down.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub(super) services: HashMap<ObjectName, ServiceSpec>,
    pub(super) secrets: Secrets,
    pub(super) revisions: KnownRevisions,
    /// The specifications with rules inside the cluster, by host in its canonical form; of
    /// several Ingresses with one host the oldest first.
    internal: HashMap<Arc<str>, Vec<(ObjectKey, Named)>>,
    /// Pods that cannot become ready.
    pub(super) faulty: FaultyPods,
    /// The private Services of revisions: their endpoints are the Pods, whoever is on the path of others.
    pub(super) private: HashMap<ObjectName, ObjectName>,
    pub(super) endpoints: Endpoints,
}

impl Objects {
    /// The Ingress that has this host inside the cluster.
    pub(super) fn internal(&self, host: &str) -> Option<&Named> {
        Some(&self.internal.get(host)?.first()?.1)
    }
}

/// An Ingress of our class.
#[derive(Debug)]
struct Known {
    key: ObjectKey,
    uid: Arc<str>,
    generation: i64,
    spec: Arc<IngressSpec>,
    /// The last specification that was complete: all that it names was there and ready once.
    good: Option<Arc<IngressSpec>>,
    /// The object that was sent last.
    sent: Option<Arc<IngressObject>>,
    uses: Uses,
}

/// All objects, and which Ingresses name which of the others.
#[derive(Debug)]
pub(super) struct Store {
    class: String,
    policy: Policy,
    objects: Objects,
    ingresses: HashMap<ObjectName, Known>,
    statuses: Statuses,
    users_of_service: Users<ObjectName>,
    users_of_secret: Users<ObjectName>,
    users_of_revision: Users<ObjectName>,
    /// By the host that they rewrite to, in its canonical form.
    users_of_host: Users<Arc<str>>,
    /// The revision of each private Service.
    revision_of: HashMap<ObjectName, ObjectName>,
    dirty: BTreeSet<ObjectName>,
    settings: Settings,
    /// Keys of objects that are gone.
    deleted: Vec<ObjectKey>,
    /// Revisions that an activator's requests name; `None` where no activator is stood for.
    activator: Option<Revisions>,
    /// The kinds whose first list has come.
    listed: [bool; Kind::ALL],
    has_started: bool,
}

impl Store {
    /// A store of the Ingresses of this class; with `activator` of all revisions, too.
    pub(super) fn new(class: String, policy: Policy, statuses: Statuses, activator: bool) -> Self {
        Self {
            class,
            policy,
            objects: Objects::default(),
            ingresses: HashMap::new(),
            statuses,
            users_of_service: Users::default(),
            users_of_secret: Users::default(),
            users_of_revision: Users::default(),
            users_of_host: Users::default(),
            revision_of: HashMap::new(),
            dirty: BTreeSet::new(),
            settings: Settings::default(),
            deleted: Vec::new(),
            activator: activator.then(Revisions::default),
            listed: [false; Kind::ALL],
            has_started: false,
        }
    }

    /// Records a change.
    pub(super) fn update(&mut self, update: AnyUpdate) {
        match update {
            AnyUpdate::Listed(kind) => self.listed(kind),
            AnyUpdate::Ingress(update) => self.ingress(update),
            AnyUpdate::Service(update) => self.service(update),
            AnyUpdate::Slice(update) => {
                if matches!(update, Update::List(_)) {
                    self.listed(Kind::Slice);
                }
                for service in self.objects.endpoints.update(update) {
                    self.service_changed(&service);
                }
            }
            AnyUpdate::Secret(update) => {
                let is_list = matches!(update, Update::List(_));
                for name in self.objects.secrets.update(update) {
                    self.secret_changed(&name);
                }
                if is_list {
                    self.listed(Kind::Secret);
                }
            }
            AnyUpdate::NamedSecret(name, secret) => {
                if self.objects.secrets.found(&name, secret) {
                    self.secret_changed(&name);
                }
            }
            AnyUpdate::Revision(update) => self.revision(update),
            AnyUpdate::Shared(update) => {
                if matches!(update, Update::List(_)) {
                    self.listed(Kind::Shared);
                }
                self.settings.shared(update);
            }
            AnyUpdate::Network(update) => {
                if matches!(update, Update::List(_)) {
                    self.listed(Kind::Network);
                }
                self.settings.network(update);
            }
            AnyUpdate::Pod(update) => {
                if matches!(update, Update::List(_)) {
                    self.listed(Kind::Pod);
                }
                for revision in self.objects.faulty.update(update) {
                    self.revision_changed(&revision);
                }
            }
        }
    }

    fn listed(&mut self, kind: Kind) {
        self.listed[kind as usize] = true;
        if kind == Kind::Secret {
            self.objects.secrets.listed();
        }
    }

    fn revision_changed(&mut self, revision: &ObjectName) {
        self.dirty.extend(self.users_of_revision.of(revision).cloned());
        if let Some(activator) = &mut self.activator {
            activator.touch(revision);
        }
    }

    /// Whether every kind was listed, and at first each Secret that was asked for by name is known: before, half a
    /// cluster would be seen.
    pub(super) fn is_listed(&self) -> bool {
        self.listed.iter().all(|listed| *listed) && (self.has_started || !self.objects.secrets.awaits_any())
    }

    /// The Secrets to be followed by name, if they are other ones than at the last call.
    pub(super) fn take_wanted_secrets(&mut self) -> Option<BTreeSet<ObjectName>> {
        self.objects.secrets.take_wanted()
    }

    /// What Knative's network settings ask for in vain, since the last call.
    pub(super) fn take_warnings(&mut self) -> Vec<String> {
        self.settings.take_warnings()
    }

    fn secret_changed(&mut self, name: &ObjectName) {
        self.dirty.extend(self.users_of_secret.of(name).cloned());
    }

    /// The changes since the last call; the first time, all Ingresses as a full list. Nothing before every kind was
    /// listed.
    pub(super) fn events(&mut self) -> Vec<Event> {
        if !self.is_listed() {
            return Vec::new();
        }
        let is_first = !std::mem::replace(&mut self.has_started, true);
        let mut events = Vec::new();
        events.extend(self.settings.take().map(Event::Settings));
        events.extend(is_first.then_some(Event::Init));
        events.extend(self.deleted.drain(..).map(Event::Delete));
        for name in std::mem::take(&mut self.dirty) {
            let Some(known) = self.ingresses.get_mut(&name) else {
                continue;
            };
            if known
                .uses
                .secrets
                .iter()
                .any(|secret| self.objects.secrets.is_awaited(secret))
            {
                // What is served goes on until the answer is there: an Ingress is not without a certificate for a moment.
                self.dirty.insert(name);
                continue;
            }
            let object = next(&name, known, &self.objects, &self.policy);
            if known.sent.as_deref() != Some(&object) {
                let object = Arc::new(object);
                if let Some(activator) = &mut self.activator {
                    activator.served(&served(known.sent.as_deref()), &served(Some(&object)));
                }
                known.sent = Some(Arc::clone(&object));
                events.push(Event::Apply(known.key.clone(), Content::Ingress(object)));
            }
            self.link(&name);
        }
        if let Some(activator) = &mut self.activator {
            events.extend(activator.events(&self.objects));
        }
        events.extend(is_first.then_some(Event::InitDone));
        events
    }

    fn ingress(&mut self, update: Update<Ingress>) {
        match update {
            Update::Apply(ingress) => self.apply_ingress(ingress),
            Update::Delete(ingress) => self.forget_ingress(&ObjectName::of(&ingress)),
            Update::List(all) => {
                self.listed(Kind::Ingress);
                let names: HashSet<ObjectName> = all.iter().map(ObjectName::of).collect();
                let gone = self.ingresses.keys().filter(|name| !names.contains(*name));
                for name in gone.cloned().collect::<Vec<_>>() {
                    self.forget_ingress(&name);
                }
                all.into_iter().for_each(|ingress| self.apply_ingress(ingress));
            }
        }
    }

    fn apply_ingress(&mut self, ingress: Ingress) {
        let name = ObjectName::of(&ingress);
        let meta = ingress.metadata;
        let class = meta.annotations.as_ref().and_then(|all| all.get(CLASS));
        if class != Some(&self.class) || meta.deletion_timestamp.is_some() {
            return self.forget_ingress(&name);
        }
        let uid = Arc::<str>::from(meta.uid.unwrap_or_default());
        if self.ingresses.get(&name).is_some_and(|known| known.uid != uid) {
            // Deleted and created again between two looks: another object, which is younger.
            self.forget_ingress(&name);
        }
        self.statuses.observe(&name, ingress.status);
        let generation = meta.generation.unwrap_or_default();
        let created = meta.creation_timestamp.map_or(0, |time| time.0.as_second());
        let is_new = !self.ingresses.contains_key(&name);
        let known = self.ingresses.entry(name.clone()).or_insert_with(|| Known {
            key: ObjectKey::of_ingress(created, name.namespace(), name.name()),
            uid,
            generation,
            spec: Arc::default(),
            good: None,
            sent: None,
            uses: Uses::default(),
        });
        if !is_new && known.generation == generation && *known.spec == ingress.spec {
            return;
        }
        known.generation = generation;
        let mut spec = ingress.spec;
        spec.shrink();
        let spec = Arc::new(spec);
        let before = std::mem::replace(&mut known.spec, Arc::clone(&spec));
        let key = known.key.clone();
        if before != spec {
            self.unlist(&key, &before);
            for host in shortcut::internal_hosts(&spec, &self.policy.cluster_domain) {
                let listed = self.objects.internal.entry(Arc::clone(&host)).or_default();
                listed.retain(|(known, _)| *known != key);
                // One as a rule, and no room for more before there are.
                listed.reserve_exact(1);
                let at = listed.partition_point(|(known, _)| *known < key);
                listed.insert(at, (key.clone(), (name.clone(), Arc::clone(&spec))));
                self.dirty.extend(self.users_of_host.of(&host).cloned());
            }
        }
        self.link(&name);
        self.dirty.insert(name);
    }

    /// Removes the hosts that an Ingress has inside the cluster.
    fn unlist(&mut self, key: &ObjectKey, spec: &IngressSpec) {
        for host in shortcut::internal_hosts(spec, &self.policy.cluster_domain) {
            if let Some(listed) = self.objects.internal.get_mut(&host) {
                listed.retain(|(known, _)| known != key);
                if listed.is_empty() {
                    self.objects.internal.remove(&host);
                }
            }
            self.dirty.extend(self.users_of_host.of(&host).cloned());
        }
    }

    /// Records which objects an Ingress names now.
    fn link(&mut self, name: &ObjectName) {
        let Some(known) = self.ingresses.get_mut(name) else {
            return;
        };
        let mut specs: Vec<Arc<IngressSpec>> = known.good.iter().chain([&known.spec]).cloned().collect();
        // What a path leads to by way of our own Service is resolved with it.
        let domain = &self.policy.cluster_domain;
        let hosts = shortcut::rewritten_hosts(&known.spec);
        let inner = hosts.filter_map(|host| self.objects.internal(shortcut::canonical(host, domain)));
        let inner: Vec<_> = inner.map(|(_, spec)| Arc::clone(spec)).collect();
        specs.extend(inner);
        let now = Uses::of(name.namespace(), &specs, domain);
        let before = std::mem::take(&mut known.uses);
        self.used(name, &before, &now);
        if let Some(known) = self.ingresses.get_mut(name) {
            known.uses = now;
        }
    }

    /// Records that an Ingress uses other objects now.
    fn used(&mut self, user: &ObjectName, before: &Uses, now: &Uses) {
        self.users_of_service
            .replace(user, &before.services, &now.services);
        self.users_of_revision
            .replace(user, &before.revisions, &now.revisions);
        self.users_of_host.replace(user, &before.hosts, &now.hosts);
        // Their use decides which are asked for by name.
        for secret in self.users_of_secret.replace(user, &before.secrets, &now.secrets) {
            let is_used = self.users_of_secret.has(secret);
            self.objects.secrets.set_used(secret, is_used);
        }
    }

    fn forget_ingress(&mut self, name: &ObjectName) {
        self.statuses.lock().remove(name);
        if let Some(known) = self.ingresses.remove(name) {
            self.used(name, &known.uses, &Uses::default());
            self.unlist(&known.key, &known.spec);
            self.dirty.remove(name);
            if let Some(activator) = &mut self.activator {
                activator.served(&served(known.sent.as_deref()), &HashSet::new());
            }
            if known.sent.is_some() {
                self.deleted.push(known.key);
            }
        }
    }

    fn service(&mut self, update: Update<Service>) {
        match update {
            Update::Apply(service) => self.apply_service(service),
            Update::Delete(service) => {
                let name = ObjectName::of(&service);
                self.forget_service(&name);
            }
            Update::List(all) => {
                self.listed(Kind::Service);
                let names: HashSet<ObjectName> = all.iter().map(ObjectName::of).collect();
                let gone = self.objects.services.keys().filter(|name| !names.contains(*name));
                for name in gone.cloned().collect::<Vec<_>>() {
                    self.forget_service(&name);
                }
                all.into_iter().for_each(|service| self.apply_service(service));
            }
        }
    }

    fn apply_service(&mut self, service: Service) {
        let name = ObjectName::of(&service);
        if let Some(revision) = private_service_of(&service)
            && self.objects.private.get(&revision) != Some(&name)
        {
            self.objects.private.insert(revision.clone(), name.clone());
            self.revision_of.insert(name.clone(), revision);
            self.service_changed(&name);
        }
        if self.objects.services.get(&name) != Some(&service.spec) {
            self.objects.services.insert(name.clone(), service.spec);
            self.service_changed(&name);
        }
    }

    fn forget_service(&mut self, name: &ObjectName) {
        if self.objects.services.remove(name).is_some() {
            self.service_changed(name);
        }
        if let Some(revision) = self.revision_of.remove(name)
            && self.objects.private.get(&revision) == Some(name)
        {
            self.objects.private.remove(&revision);
            self.revision_changed(&revision);
        }
    }

    fn service_changed(&mut self, name: &ObjectName) {
        self.dirty.extend(self.users_of_service.of(name).cloned());
        if let Some(revision) = self.revision_of.get(name).cloned() {
            self.revision_changed(&revision);
        }
    }

    fn revision(&mut self, update: Update<Revision>) {
        match update {
            Update::Apply(revision) => self.apply_revision(revision),
            Update::Delete(revision) => self.forget_revision(&ObjectName::of(&revision)),
            Update::List(all) => {
                self.listed(Kind::Revision);
                let names: HashSet<ObjectName> = all.iter().map(ObjectName::of).collect();
                let gone = self.objects.revisions.names();
                let gone = gone.filter(|name| !names.contains(*name));
                for name in gone.cloned().collect::<Vec<_>>() {
                    self.forget_revision(&name);
                }
                all.into_iter().for_each(|revision| self.apply_revision(revision));
            }
        }
    }

    fn apply_revision(&mut self, revision: Revision) {
        let name = ObjectName::of(&revision);
        if self.objects.revisions.apply(revision, &self.policy.settings) {
            self.revision_changed(&name);
        }
    }

    fn forget_revision(&mut self, name: &ObjectName) {
        if self.objects.revisions.forget(name) {
            self.revision_changed(name);
        }
    }
}

/// The revisions that a sent object is served with.
fn served(sent: Option<&IngressObject>) -> HashSet<ObjectName> {
    let service = sent.and_then(|sent| sent.service.as_deref());
    service.map(activator::revisions_of).unwrap_or_default()
}

/// The object to be served: the newest specification, or the last good one while the newest one has a problem or
/// names a Service that is not ready yet. Watches of different kinds are not ordered among each other: an Ingress may
/// come before the endpoints of its new Service.
fn next(name: &ObjectName, known: &mut Known, objects: &Objects, policy: &Policy) -> IngressObject {
    let is_good = known.good.as_ref() == Some(&known.spec);
    let (service, problem) = match resolve(name, &known.spec, objects, policy) {
        Ok(Resolved { service, not_ready }) => {
            let good = known.good.as_ref().filter(|_| !is_good);
            let before = good.map(|good| resolve::backends(good)).unwrap_or_default();
            let new = not_ready.difference(&before).next();
            match (is_good, new, good) {
                (true, _, _) => (Some(service), None),
                (false, None, _) => {
                    known.good = Some(Arc::clone(&known.spec));
                    (Some(service), None)
                }
                (false, Some(missing), Some(good)) => {
                    let last = resolve(name, good, objects, policy).ok().map(|last| last.service);
                    (last.or(Some(service)), Some(not_ready_yet(name, missing)))
                }
                (false, Some(missing), None) => (Some(service), Some(not_ready_yet(name, missing))),
            }
        }
        Err(problem) => {
            let good = known.good.as_ref().filter(|_| !is_good);
            let last = good.and_then(|good| resolve(name, good, objects, policy).ok());
            (last.map(|last| last.service), Some(problem))
        }
    };
    let sent = known.sent.as_ref().and_then(|sent| sent.service.as_ref());
    let service = match (service, sent) {
        // Not even the last good one can be resolved: what was served goes on.
        (None, sent) => sent.cloned(),
        (Some(service), Some(sent)) if **sent == service => Some(Arc::clone(sent)),
        (Some(service), _) => Some(Arc::new(service)),
    };
    IngressObject {
        name: name.clone(),
        uid: Arc::clone(&known.uid),
        generation: known.generation,
        service,
        problem,
    }
}

fn not_ready_yet(ingress: &ObjectName, (service, port): &BackendName) -> IngressProblem {
    let message = format!(
        "Service {}/{service} has no ready endpoint for port {port}",
        ingress.namespace()
    );
    IngressProblem::new(ProblemKind::NotReady, message)
}

/// The revision whose Pods a Service selects, if it is the private one that Knative keeps for each revision.
fn private_service_of(service: &Service) -> Option<ObjectName> {
    let labels = service.metadata.labels.as_ref()?;
    if labels.get(SERVICE_TYPE)? != "Private" {
        return None;
    }
    Some(ObjectName::new(
        service.metadata.namespace.as_deref()?,
        labels.get(OF_REVISION)?,
    ))
}

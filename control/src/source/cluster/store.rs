//! The store of cluster objects: joins Ingresses with the objects that they name. Pure: updates in, resolved Ingresses
//! out, each only when something that it depends on has changed.
//!
//! **Invariant:** any order of updates that ends in the same objects gives the same resolved Ingresses, but for the last
//! good versions that objects with a problem keep.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use sluice_model::RevisionOwner;

use super::activator::{self, Revisions};
use super::endpoints::Endpoints;
use super::objects::{
    CLASS, ConfigMap, EndpointSlice, Ingress, IngressSpec, OF_CONFIGURATION, OF_REVISION, OF_SERVICE, Pod,
    Revision, RevisionObject, SERVICE_TYPE, Secret, Service, ServiceSpec,
};
use super::pods::{FaultyPods, refusal};
use super::resolve::{self, BackendName, Policy, Resolved, resolve};
use super::secrets::Secrets;
use super::settings::Settings;
use super::{Statuses, shortcut};
use crate::ingress::{IngressObject, IngressProblem, ProblemKind};
use crate::source::{Content, Event, ObjectKey};

/// Namespace and name of an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Name {
    pub(super) fn of(object: &impl kube::Resource) -> Self {
        let meta = object.meta();
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }
}

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
    NamedSecret(Name, Option<Secret>),
    Revision(Update<Revision>),
    Pod(Update<Pod>),
    /// The ConfigMap `config-sluice`.
    Shared(Update<ConfigMap>),
    /// The ConfigMap `config-network`.
    Network(Update<ConfigMap>),
}

/// A specification with the name of its Ingress.
type Named = (Name, Arc<IngressSpec>);

/// The objects that Ingresses name, cut down.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub(super) services: HashMap<Name, ServiceSpec>,
    pub(super) secrets: Secrets,
    pub(super) revisions: HashMap<Name, RevisionObject>,
    /// The specifications with rules inside the cluster, by host; of several Ingresses with one host the oldest first.
    internal: HashMap<String, Vec<(ObjectKey, Named)>>,
    /// Pods that cannot become ready.
    pub(super) faulty: FaultyPods,
    /// The private Services of revisions: their endpoints are the Pods, whoever is on the path of others.
    pub(super) private: HashMap<Name, Name>,
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
    uid: String,
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
    ingresses: HashMap<Name, Known>,
    statuses: Statuses,
    users_of_service: HashMap<Name, HashSet<Name>>,
    users_of_secret: HashMap<Name, HashSet<Name>>,
    users_of_revision: HashMap<Name, HashSet<Name>>,
    /// By the host that they rewrite to.
    users_of_host: HashMap<String, HashSet<Name>>,
    /// The revision of each private Service.
    revision_of: HashMap<Name, Name>,
    dirty: BTreeSet<Name>,
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
            users_of_service: HashMap::new(),
            users_of_secret: HashMap::new(),
            users_of_revision: HashMap::new(),
            users_of_host: HashMap::new(),
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

    fn revision_changed(&mut self, revision: &Name) {
        let users = self.users_of_revision.get(revision);
        self.dirty.extend(users.into_iter().flatten().cloned());
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
    pub(super) fn take_wanted_secrets(&mut self) -> Option<BTreeSet<Name>> {
        self.objects.secrets.take_wanted()
    }

    /// What Knative's network settings ask for in vain, since the last call.
    pub(super) fn take_warnings(&mut self) -> Vec<String> {
        self.settings.take_warnings()
    }

    fn secret_changed(&mut self, name: &Name) {
        let users = self.users_of_secret.get(name);
        self.dirty.extend(users.into_iter().flatten().cloned());
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
            events.extend(activator.events(&self.objects, &self.policy));
        }
        events.extend(is_first.then_some(Event::InitDone));
        events
    }

    fn ingress(&mut self, update: Update<Ingress>) {
        match update {
            Update::Apply(ingress) => self.apply_ingress(ingress),
            Update::Delete(ingress) => self.forget_ingress(&Name::of(&ingress)),
            Update::List(all) => {
                self.listed(Kind::Ingress);
                let names: HashSet<Name> = all.iter().map(Name::of).collect();
                let gone = self.ingresses.keys().filter(|name| !names.contains(*name));
                for name in gone.cloned().collect::<Vec<_>>() {
                    self.forget_ingress(&name);
                }
                all.into_iter().for_each(|ingress| self.apply_ingress(ingress));
            }
        }
    }

    fn apply_ingress(&mut self, ingress: Ingress) {
        let name = Name::of(&ingress);
        let meta = ingress.metadata;
        let class = meta.annotations.as_ref().and_then(|all| all.get(CLASS));
        if class != Some(&self.class) || meta.deletion_timestamp.is_some() {
            return self.forget_ingress(&name);
        }
        let uid = meta.uid.unwrap_or_default();
        if self.ingresses.get(&name).is_some_and(|known| known.uid != uid) {
            // Deleted and created again between two looks: another object, which is younger.
            self.forget_ingress(&name);
        }
        self.statuses.observe(&name, ingress.status);
        let generation = meta.generation.unwrap_or_default();
        let created = meta.creation_timestamp.map_or(0, |time| time.0.as_second());
        let is_new = !self.ingresses.contains_key(&name);
        let known = self.ingresses.entry(name.clone()).or_insert_with(|| Known {
            key: ObjectKey::of_ingress(created, &name.namespace, &name.name),
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
                let listed = self.objects.internal.entry(host.clone()).or_default();
                listed.retain(|(known, _)| *known != key);
                // One as a rule, and no room for more before there are.
                listed.reserve_exact(1);
                let at = listed.partition_point(|(known, _)| *known < key);
                listed.insert(at, (key.clone(), (name.clone(), Arc::clone(&spec))));
                let users = self.users_of_host.get(&host);
                self.dirty.extend(users.into_iter().flatten().cloned());
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
            let users = self.users_of_host.get(&host);
            self.dirty.extend(users.into_iter().flatten().cloned());
        }
    }

    /// Records which objects an Ingress names now.
    fn link(&mut self, name: &Name) {
        let Some(known) = self.ingresses.get_mut(name) else {
            return;
        };
        let mut specs: Vec<Arc<IngressSpec>> = known.good.iter().chain([&known.spec]).cloned().collect();
        // What a path leads to by way of our own Service is resolved with it.
        let hosts = shortcut::rewritten_hosts(&known.spec);
        let inner = hosts.filter_map(|host| self.objects.internal(&host));
        let inner: Vec<_> = inner.map(|(_, spec)| Arc::clone(spec)).collect();
        specs.extend(inner);
        let now = Uses::of(&name.namespace, specs.into_iter());
        let before = std::mem::take(&mut known.uses);
        relink(&mut self.users_of_service, name, &before.services, &now.services);
        let secrets = &mut self.objects.secrets;
        relink_secrets(
            &mut self.users_of_secret,
            secrets,
            name,
            &before.secrets,
            &now.secrets,
        );
        relink(
            &mut self.users_of_revision,
            name,
            &before.revisions,
            &now.revisions,
        );
        relink(&mut self.users_of_host, name, &before.hosts, &now.hosts);
        known.uses = now;
    }

    fn forget_ingress(&mut self, name: &Name) {
        self.statuses.lock().remove(name);
        if let Some(known) = self.ingresses.remove(name) {
            let (users, none) = (&mut self.users_of_service, HashSet::new());
            relink(users, name, &known.uses.services, &none);
            let secrets = &mut self.objects.secrets;
            relink_secrets(
                &mut self.users_of_secret,
                secrets,
                name,
                &known.uses.secrets,
                &none,
            );
            relink(&mut self.users_of_revision, name, &known.uses.revisions, &none);
            relink(&mut self.users_of_host, name, &known.uses.hosts, &HashSet::new());
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
                let name = Name::of(&service);
                self.forget_service(&name);
            }
            Update::List(all) => {
                self.listed(Kind::Service);
                let names: HashSet<Name> = all.iter().map(Name::of).collect();
                let gone = self.objects.services.keys().filter(|name| !names.contains(*name));
                for name in gone.cloned().collect::<Vec<_>>() {
                    self.forget_service(&name);
                }
                all.into_iter().for_each(|service| self.apply_service(service));
            }
        }
    }

    fn apply_service(&mut self, service: Service) {
        let name = Name::of(&service);
        if let Some(revision) = private_service_of(&service)
            && self.objects.private.get(&revision) != Some(&name)
        {
            self.objects.private.insert(revision.clone(), name.clone());
            self.revision_of.insert(name.clone(), revision);
            self.service_changed(&name);
        }
        if self.objects.services.get(&name) != Some(&service.spec) {
            let mut spec = service.spec;
            spec.ports.shrink_to_fit();
            spec.ip_families.shrink_to_fit();
            self.objects.services.insert(name.clone(), spec);
            self.service_changed(&name);
        }
    }

    fn forget_service(&mut self, name: &Name) {
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

    fn service_changed(&mut self, name: &Name) {
        let users = self.users_of_service.get(name);
        self.dirty.extend(users.into_iter().flatten().cloned());
        if let Some(revision) = self.revision_of.get(name).cloned() {
            self.revision_changed(&revision);
        }
    }

    fn revision(&mut self, update: Update<Revision>) {
        match update {
            Update::Apply(revision) => self.set_revision(Name::of(&revision), Some(cut(revision))),
            Update::Delete(revision) => self.set_revision(Name::of(&revision), None),
            Update::List(all) => {
                self.listed(Kind::Revision);
                let names: HashSet<Name> = all.iter().map(Name::of).collect();
                let gone = self
                    .objects
                    .revisions
                    .keys()
                    .filter(|name| !names.contains(*name));
                for name in gone.cloned().collect::<Vec<_>>() {
                    self.set_revision(name, None);
                }
                for revision in all {
                    self.set_revision(Name::of(&revision), Some(cut(revision)));
                }
            }
        }
    }

    fn set_revision(&mut self, name: Name, spec: Option<RevisionObject>) {
        if self.objects.revisions.get(&name) == spec.as_ref() {
            return;
        }
        self.revision_changed(&name);
        match spec {
            Some(spec) => _ = self.objects.revisions.insert(name, spec),
            None => _ = self.objects.revisions.remove(&name),
        }
    }
}

/// What routing needs of a Revision.
fn cut(revision: Revision) -> RevisionObject {
    let labels = revision.metadata.labels.unwrap_or_default();
    let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
    let owner = RevisionOwner {
        service: label(OF_SERVICE),
        configuration: label(OF_CONFIGURATION),
    };
    RevisionObject {
        owner: Arc::new(owner),
        refusal: refusal(&revision.status.conditions),
        ..revision.spec
    }
}

/// The revisions that a sent object is served with.
fn served(sent: Option<&IngressObject>) -> HashSet<Name> {
    let service = sent.and_then(|sent| sent.service.as_deref());
    service.map(activator::revisions_of).unwrap_or_default()
}

/// The objects that an Ingress names, in its newest specification and in the last good one.
#[derive(Debug, Default)]
struct Uses {
    services: HashSet<Name>,
    secrets: HashSet<Name>,
    revisions: HashSet<Name>,
    /// Hosts that requests are rewritten to.
    hosts: HashSet<String>,
}

impl Uses {
    fn of(namespace: &str, specs: impl Iterator<Item = Arc<IngressSpec>>) -> Self {
        let mut uses = Self::default();
        for spec in specs {
            let named = resolve::backends(&spec).into_iter();
            uses.services.extend(named.map(|(name, _)| Name {
                namespace: namespace.to_owned(),
                name,
            }));
            // Of another namespace it would be an instruction of one tenant to read another's.
            let own = resolve::secrets(&spec).into_iter();
            uses.secrets
                .extend(own.filter(|secret| secret.namespace == namespace));
            uses.revisions.extend(resolve::revisions(&spec));
            uses.hosts.extend(shortcut::rewritten_hosts(&spec));
        }
        uses
    }
}

/// [`relink`] for Secrets, whose use decides which are asked for by name.
fn relink_secrets(
    users: &mut HashMap<Name, HashSet<Name>>,
    secrets: &mut Secrets,
    user: &Name,
    before: &HashSet<Name>,
    now: &HashSet<Name>,
) {
    relink(users, user, before, now);
    for name in before.symmetric_difference(now) {
        secrets.set_used(name, users.contains_key(name));
    }
}

/// Replaces the uses of one Ingress in an index of users.
fn relink<K: Clone + Eq + Hash>(
    users: &mut HashMap<K, HashSet<Name>>,
    user: &Name,
    before: &HashSet<K>,
    now: &HashSet<K>,
) {
    for gone in before.difference(now) {
        if let Some(of) = users.get_mut(gone) {
            of.remove(user);
            if of.is_empty() {
                users.remove(gone);
            }
        }
    }
    for new in now.difference(before) {
        users.entry(new.clone()).or_default().insert(user.clone());
    }
}

/// The object to be served: the newest specification, or the last good one while the newest one has a problem or
/// names a Service that is not ready yet. Watches of different kinds are not ordered among each other: an Ingress may
/// come before the endpoints of its new Service.
fn next(name: &Name, known: &mut Known, objects: &Objects, policy: &Policy) -> IngressObject {
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
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        uid: known.uid.clone(),
        generation: known.generation,
        service,
        problem,
    }
}

fn not_ready_yet(ingress: &Name, (service, port): &BackendName) -> IngressProblem {
    let message = format!(
        "Service {}/{service} has no ready endpoint for port {port}",
        ingress.namespace
    );
    IngressProblem::new(ProblemKind::NotReady, message)
}

/// The revision whose Pods a Service selects, if it is the private one that Knative keeps for each revision.
fn private_service_of(service: &Service) -> Option<Name> {
    let labels = service.metadata.labels.as_ref()?;
    if labels.get(SERVICE_TYPE)? != "Private" {
        return None;
    }
    Some(Name {
        namespace: service.metadata.namespace.clone()?,
        name: labels.get(OF_REVISION)?.clone(),
    })
}

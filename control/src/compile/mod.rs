//! The compiler: drafts of services into services and scaling plans. Pure: equal input gives equal output.
//!
//! Checks across objects are made here (names, hosts, traffic targets, scales with their defaults), on drafts with mistakes,
//! too, so that all mistakes of all files are reported at once.

mod hosts;
mod manifests;
mod needs;
mod policy;
mod sharing;
mod targets;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use sluice_model::{
    Backend, HostClaim, RevisionId, RevisionSettings, RevisionSpec, Route, Rule, Service, ServiceId,
    Settings, Snapshot, Visibility,
};

use crate::config::{
    ConfigurationDraft, Context, Diagnostic, Diagnostics, Draft, Env, Located, NodeRef, ServiceDraft,
    SourceFile,
};
use crate::index::{Index, Policy};
use crate::plan::{AutoscalePolicy, Plan, RevisionPlan};
use crate::release::{Declared, Histories, split_at_once};
use crate::source::{Event, ObjectKey};

pub(crate) use sharing::Shared;

/// The bound of all files together, in bytes. Each file has a bound of its own.
const MAX_TOTAL_BYTES: usize = 256 << 20;

/// A configuration that may be served.
#[derive(Debug)]
pub struct Compiled {
    /// The routing table and settings; not yet published.
    pub snapshot: Snapshot,
    /// The scaling plans of all revisions.
    pub plan: Plan,
    /// Warnings, which do not reject the configuration.
    pub warnings: Diagnostics,
    /// Files that the configuration names, for a check by the data plane.
    pub files: Vec<FileReference>,
    /// The positions of listeners, in the order of the settings, for errors when binding.
    pub listeners: Vec<ListenerReference>,
}

/// The position of a listener in the configuration.
#[derive(Debug, Clone)]
pub struct ListenerReference {
    node: Option<NodeRef>,
}

impl ListenerReference {
    pub(crate) fn new(node: Option<NodeRef>) -> Self {
        Self { node }
    }

    /// An error at the listener's address; `None` for the default listener, which has no position.
    pub fn error(&self, message: impl Into<String>) -> Option<Diagnostic> {
        Some(self.node.as_ref()?.error(message))
    }
}

/// A file that the configuration names, with the position of its name.
#[derive(Debug, Clone)]
pub struct FileReference {
    /// Absolute.
    pub file: PathBuf,
    node: NodeRef,
}

impl FileReference {
    pub(crate) fn new(named: &Located<PathBuf>) -> Self {
        Self {
            file: named.value.clone(),
            node: named.node.clone(),
        }
    }

    /// An error at the position of the file's name.
    pub fn error(&self, message: impl Into<String>) -> Diagnostic {
        self.node.error(message)
    }
}

impl Compiled {
    /// Whether Snapshot and Plan have equal content. Generations are not compared.
    pub fn is_same_as(&self, snapshot: &Snapshot, plan: &Plan) -> bool {
        self.plan == *plan && self.snapshot.same_content(snapshot)
    }

    /// The counts of services, revisions, hosts and listeners.
    pub fn summary(&self) -> Summary {
        Summary {
            services: self.snapshot.service_count(),
            revisions: self.snapshot.revision_count(),
            hosts: self.snapshot.table().len(),
            listeners: self.snapshot.settings().listeners.len(),
        }
    }
}

/// Counts for people: `3 services, 5 revisions, 12 hosts, 2 listeners`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// Services.
    pub services: usize,
    /// Revisions.
    pub revisions: usize,
    /// Hosts: derived, custom and those of tags.
    pub hosts: usize,
    /// Listeners, without admin and health.
    pub listeners: usize,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let many = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        write!(
            f,
            "{}, {}, {}, {}",
            many(self.services, "service"),
            many(self.revisions, "revision"),
            many(self.hosts, "host"),
            many(self.listeners, "listener")
        )
    }
}

/// Decodes and compiles files, all or nothing. `env` returns the value of a variable.
///
/// # Errors
/// All mistakes of all files, with the warnings.
pub fn load(files: &[SourceFile], env: Env<'_>) -> Result<Compiled, Diagnostics> {
    load_with(files, env, |_| Histories::default())
}

/// [`load`] with the histories of services, which `histories` returns for the settings.
///
/// # Errors
/// All mistakes of all files, with the warnings.
pub fn load_with(
    files: &[SourceFile],
    env: Env<'_>,
    histories: impl FnOnce(&Settings) -> Histories,
) -> Result<Compiled, Diagnostics> {
    let mut diagnostics = Diagnostics::default();
    let mut bytes = 0;
    let mut index = Index::new(Policy::AllOrNothing);
    let mut events = vec![Event::Init];
    for (nth, file) in files.iter().enumerate() {
        bytes += file.text.len();
        if bytes > MAX_TOTAL_BYTES {
            let message = format!("all files together are larger than {} MiB", MAX_TOTAL_BYTES >> 20);
            diagnostics.push(Diagnostic::about_file(&file.path, message));
            break;
        }
        let key = ObjectKey::new(nth, &file.path);
        events.push(Event::Apply(key, file.text.as_str().into()));
    }
    events.push(Event::InitDone);
    index.apply(events, env);
    let histories = histories(index.settings());
    if !histories.is_empty() {
        index.set_histories(histories, env);
    }
    let found = index.diagnostics();
    if found.errors() + diagnostics.errors() > 0 {
        diagnostics.append(found);
        return Err(diagnostics);
    }
    let built = index.propose().map(|step| {
        let empty = Snapshot::empty(Arc::clone(&step.delta.settings));
        (empty.edit(&step.delta, |_| ()), step)
    });
    // The checks above leave no reason for a failure.
    let Some((Ok(snapshot), step)) = built else {
        let file = files.first().map(|file| file.path.clone()).unwrap_or_default();
        diagnostics.push(Diagnostic::about_file(
            file,
            "the configuration contradicts itself",
        ));
        return Err(diagnostics);
    };
    let mut plan = Plan {
        revisions: BTreeMap::new(),
        processes: step.plan.processes.clone(),
        drain: step.plan.drain,
    };
    plan.edit(&step.plan);
    Ok(Compiled {
        snapshot,
        plan,
        warnings: found,
        files: index.files(),
        listeners: index.listeners(),
    })
}

/// A compiled service with the scaling plans of its revisions.
#[derive(Debug, Clone)]
pub(crate) struct CompiledService {
    pub(crate) service: Arc<Service>,
    pub(crate) plans: Box<[(RevisionId, Arc<RevisionPlan>)]>,
    /// A digest of the service as the files have it.
    pub(crate) digest: u64,
    /// What files declare, where it takes a history to say what is published.
    pub(crate) declared: Option<Arc<Declared>>,
}

/// Compiles a group of services, in the order of their files. No service outside the group may claim the same names and
/// hosts. Mistakes go to `cx`; the result of a service that cannot be built is `None`.
///
/// Pure: a service compiles to the same result in any group that has all services with a common claim. `top_level` has the
/// top-level settings, `shared` makes equal settings one value.
pub(crate) fn compile(
    top_level: &Draft,
    mut services: Vec<ServiceDraft>,
    configurations: Vec<ConfigurationDraft>,
    shared: &mut Shared<RevisionSettings>,
    cx: &mut Context,
) -> Vec<Option<CompiledService>> {
    manifests::join_routes(&mut services, configurations, cx);
    manifests::resolve(&mut services, top_level, cx);
    let catalog = Catalog::new(&services, cx);
    let hosts = hosts::claim(&services, &top_level.settings.domain, &catalog, cx);
    let targets = targets::resolve(&services, &catalog, cx);
    let policies = policy::policies(&services, top_level, cx);
    let needs = needs::resolve(&services, &catalog, &targets, cx);
    warn_unserved(top_level, &services, cx);
    let parts = services
        .into_iter()
        .zip(hosts)
        .zip(policies.into_iter().zip(needs))
        .enumerate();
    parts
        .map(|(index, ((service, hosts), (policies, needs)))| {
            let scaling = policies.into_iter().zip(needs).collect();
            build(service, hosts, scaling, index, &catalog, &targets[index], shared)
        })
        .collect()
}

/// The claims of a service: names that it wants for itself alone, and names that it looks up. Services without a common claim
/// do not affect each other. `claim` receives each of the claims.
pub(crate) fn name_claims(domain: &str, service: &ServiceDraft, claim: &mut impl FnMut(NameClaim<'_>)) {
    let namespace = service.namespace.as_deref();
    if let (Some(namespace), Some(name)) = (namespace, &service.name) {
        claim(NameClaim::Service(namespace, &name.value));
    }
    if let Some(namespace) = namespace {
        for revision in &service.revisions {
            match (&revision.name, &service.name) {
                (Some(name), _) => claim(NameClaim::Revision(namespace, &name.value)),
                (None, Some(name)) if service.shorthand => {
                    claim(NameClaim::Revision(namespace, &format!("{}-00001", name.value)));
                }
                _ => {}
            }
        }
        for (namespace, name) in needs::named(service) {
            claim(NameClaim::Revision(namespace, name));
            claim(NameClaim::Service(namespace, name));
        }
        if service.route.is_some() {
            for name in manifests::candidates(service) {
                claim(NameClaim::Configuration(namespace, name));
            }
        }
        // The error about a revision of another service names its owner.
        for name in targets::named(service) {
            claim(NameClaim::Revision(namespace, name));
        }
    }
    hosts::possible(domain, service, &mut |host| claim(NameClaim::Host(host)));
}

/// The claims of a Configuration: its name, which a Route may look up, and the name of its template.
pub(crate) fn configuration_claims(
    configuration: &ConfigurationDraft,
    claim: &mut impl FnMut(NameClaim<'_>),
) {
    let namespace = &configuration.namespace;
    claim(NameClaim::Configuration(namespace, &configuration.name.value));
    let given = configuration
        .present
        .as_ref()
        .and_then(|present| present.given.as_ref());
    if let Some(given) = given {
        claim(NameClaim::Revision(namespace, &given.value));
    }
}

/// A name that only one service may have.
#[derive(Debug, Hash)]
pub(crate) enum NameClaim<'n> {
    /// Namespace and name of a Configuration, which one Route may lead to.
    Configuration(&'n str, &'n str),
    /// Namespace and name.
    Service(&'n str, &'n str),
    /// Namespace and name.
    Revision(&'n str, &'n str),
    /// A host, or a wildcard.
    Host(&'n str),
}

/// The ids of services and revisions, and the owners of revisions.
struct Catalog {
    /// The id by service; `None` for a name that is invalid or taken.
    services: Vec<Option<ServiceId>>,
    /// The id by service and revision; `None` for an invalid name.
    revisions: Vec<Vec<Option<RevisionId>>>,
    /// The service of each revision.
    owners: HashMap<RevisionId, usize>,
}

impl Catalog {
    fn new(services: &[ServiceDraft], cx: &mut Context) -> Self {
        let mut catalog = Self {
            services: Vec::new(),
            revisions: Vec::new(),
            owners: HashMap::new(),
        };
        let mut taken: HashMap<ServiceId, &NodeRef> = HashMap::new();
        let mut named: HashMap<RevisionId, NodeRef> = HashMap::new();
        for (index, service) in services.iter().enumerate() {
            let (id, fresh) = claim_name(service, &mut taken, cx);
            catalog.services.push(id);
            let ids = service
                .revisions
                .iter()
                .map(|revision| {
                    let (id, node) = revision_id(service, revision.name.as_ref(), cx)?;
                    // Names of a repeated service were reported with that service.
                    if fresh && let Some(first) = named.get(&id) {
                        let message = format!("revision name '{}' is taken in this namespace", id.name());
                        let hint = "revision names are unique in a namespace, across services";
                        let diagnostic = node.error(message).hint(hint);
                        cx.report(diagnostic.related(first.location(), "it is taken here"));
                    } else if fresh {
                        named.insert(id.clone(), node);
                        catalog.owners.insert(id.clone(), index);
                    }
                    Some(id)
                })
                .collect();
            catalog.revisions.push(ids);
        }
        catalog
    }
}

/// The service's id, and whether the id is free.
fn claim_name<'d>(
    service: &'d ServiceDraft,
    taken: &mut HashMap<ServiceId, &'d NodeRef>,
    cx: &mut Context,
) -> (Option<ServiceId>, bool) {
    let (Some(name), Some(namespace)) = (&service.name, &service.namespace) else {
        return (None, true);
    };
    let Ok(id) = ServiceId::parse(namespace, &name.value) else {
        return (None, true);
    };
    if let Some(first) = taken.get(&id) {
        let message = format!(
            "service '{}' is there already, in namespace '{namespace}'",
            name.value
        );
        let diagnostic = name.node.error(message).hint("rename one, or merge them");
        cx.report(diagnostic.related(first.location(), "the other one"));
        return (None, false);
    }
    taken.insert(id.clone(), &name.node);
    (Some(id), true)
}

/// A revision's id and the position of its name. A shorthand's name is its service's with a number.
fn revision_id(
    service: &ServiceDraft,
    name: Option<&Located<String>>,
    cx: &mut Context,
) -> Option<(RevisionId, NodeRef)> {
    let namespace = service.namespace.as_ref()?;
    if let Some(name) = name {
        return Some((RevisionId::parse(namespace, &name.value).ok()?, name.node.clone()));
    }
    if !service.shorthand {
        return None;
    }
    let name = service.name.as_ref()?;
    match RevisionId::parse(namespace, &format!("{}-00001", name.value)) {
        Ok(id) => Some((id, name.node.clone())),
        Err(e) => {
            let message = format!("its revision '{}-00001' has no valid name: {e}", name.value);
            cx.report(name.node.error(message).hint("shorten the service's name"));
            None
        }
    }
}

/// Warns about internal services without an internal listener.
fn warn_unserved(top_level: &Draft, services: &[ServiceDraft], cx: &mut Context) {
    if serves_internal(top_level) {
        return;
    }
    for service in services {
        if service.visibility == Visibility::Internal {
            let diagnostic = service.node.error("no listener serves this internal service");
            let hint = "add a listener with visibility: internal";
            cx.report(diagnostic.hint(hint).warning());
        }
    }
}

/// Whether an internal service has, or may have, a listener.
pub(crate) fn serves_internal(top_level: &Draft) -> bool {
    let mut listeners = top_level.settings.listeners.iter();
    !top_level.listeners_sound || listeners.any(|l| l.visibility == Visibility::Internal)
}

/// Builds a service from its checked parts; `None` after a mistake.
fn build(
    service: ServiceDraft,
    mut hosts: Vec<HostClaim>,
    scaling: Vec<(Vec<Option<AutoscalePolicy>>, Vec<RevisionId>)>,
    index: usize,
    catalog: &Catalog,
    targets: &targets::ServiceTargets,
    shared: &mut Shared<RevisionSettings>,
) -> Option<CompiledService> {
    let id = catalog.services[index].as_ref()?;
    let ids = &catalog.revisions[index];
    let declared = declared(&service, targets);
    let digest = service.digest();
    let last = ids.len().saturating_sub(1);
    let id_of = |revision: usize| ids.get(revision)?.as_ref();
    let mut plans = Vec::new();
    let mut revisions = Vec::with_capacity(ids.len());
    let drafts = service.revisions.into_iter().zip(scaling).enumerate();
    for (nth, (revision, (policies, needs))) in drafts {
        let revision_id = ids[nth].as_ref()?;
        for (tier, ((scaler, _), policy)) in revision.scalers().into_iter().zip(policies).enumerate() {
            let (Some(scaler), Some(policy)) = (scaler, policy) else {
                continue;
            };
            let plan = RevisionPlan {
                scaler: scaler.clone(),
                policy,
                start_timeout: revision.start_timeout,
                service: id.name().to_owned(),
                reachable: targets.reaches(nth),
                needs: needs.clone(),
            };
            let scaled = revision.tiers.get(tier);
            let scaled = scaled.map_or_else(|| revision_id.clone(), |tier| revision_id.of_tier(&tier.name));
            plans.push((scaled, Arc::new(plan)));
        }
        let settings = RevisionSettings {
            protocol: revision.protocol,
            max_streams_per_connection: revision.max_streams_per_connection,
            tls: revision.tls,
            upgrades: revision.upgrades,
            readiness: revision.readiness,
            start_timeout: revision.start_timeout,
            container_concurrency: revision.container_concurrency,
            timeouts: revision.timeouts,
            queue: revision.queue,
            request_headers: revision.request_headers,
            needs,
        };
        let mut backend = revision.backend?;
        if let Backend::Static { targets, .. } = &mut backend {
            // Collected in place, in an allocation of the larger drafts.
            targets.shrink_to_fit();
        }
        revisions.push(Arc::new(RevisionSpec {
            id: revision_id.clone(),
            service: id.clone(),
            backend,
            settings: shared.one(settings),
        }));
    }
    // Most of the memory of large tables is these lists.
    hosts.shrink_to_fit();
    let mut routes = Vec::with_capacity(service.routes.len());
    for (route, own) in service.routes.into_iter().zip(&targets.routes) {
        routes.push(Route {
            matches: route.matches,
            rewrite_host: route.rewrite_host,
            rewrite_path: route.rewrite_path,
            append_headers: match route.append_headers.is_empty() {
                // Of nothing at all, for which a list would be allocated.
                true => Arc::default(),
                false => route.append_headers.into_iter().collect(),
            },
            cold: route.cold.map(|cold| Arc::new(cold.answer(id.name()))),
            split: split_at_once(own, last, id_of)?,
        });
    }
    let service = Service {
        id: id.clone(),
        sticky: service.sticky.map(Box::new),
        cold: service.cold.map(|cold| Arc::new(cold.answer(id.name()))),
        no_wake: service.no_wake.map(Arc::new),
        paused: false,
        hosts,
        revisions,
        main: Rule {
            visibility: service.visibility,
            http_option: service.http_option,
            routes,
            split: split_at_once(&targets.own, last, id_of)?,
        },
        further: Box::default(),
        ingress: None,
    };
    let service = Arc::new(service);
    let plans = plans.into();
    Some(CompiledService {
        service,
        plans,
        digest,
        declared,
    })
}

/// What a service declares, where its history matters: `None` for most services, whose one revision has all there is.
fn declared(service: &ServiceDraft, targets: &targets::ServiceTargets) -> Option<Arc<Declared>> {
    let mut all = targets.routes.iter().flatten().chain(&targets.own);
    let has_choice = service.revisions.len() > 1 && all.any(|target| target.is_latest);
    let made = service.manifest.as_ref().map(|manifest| manifest.made.clone());
    // With one revision a rollout remembers which one had all there is, for the next one.
    if !has_choice && made.is_none() && service.rollout.is_none() {
        return None;
    }
    Some(Arc::new(Declared {
        made,
        rollout: service.rollout.clone(),
        own: targets.own.clone(),
        routes: targets.routes.clone(),
    }))
}

#[cfg(test)]
mod foresight_tests;
#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod manifest_route_tests;
#[cfg(test)]
mod manifest_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tiers_tests;

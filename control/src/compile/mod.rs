//! Drafts into what is served and how it is scaled. Pure: equal input gives equal output.
//!
//! Everything that involves more than one object is checked here (names, hosts, traffic targets,
//! scales with their defaults), on drafts with mistakes too, so that all mistakes of all files are
//! told at once.

mod hosts;
mod policy;
mod sharing;
mod targets;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use sluice_model::{
    Backend, HostPattern, RevisionId, RevisionSettings, RevisionSpec, Route, Service, ServiceId, Snapshot,
    Tag, Visibility,
};

use crate::config::{
    Context, Diagnostic, Diagnostics, Draft, Env, Located, NodeRef, ServiceDraft, SourceFile,
};
use crate::index::{Index, Policy};
use crate::plan::{AutoscalePolicy, Plan, RevisionPlan};
use crate::source::{Event, ObjectKey};

pub(crate) use sharing::Shared;

/// All files together. Each is bounded by itself as well.
const MAX_TOTAL_BYTES: usize = 256 << 20;

/// A configuration that may be served.
#[derive(Debug)]
pub struct Compiled {
    /// What requests are routed by; not yet published.
    pub snapshot: Snapshot,
    /// How revisions are scaled.
    pub plan: Plan,
    /// What to know, but not to reject it for.
    pub warnings: Diagnostics,
    /// Files that it names, for whoever can read files to check.
    pub files: Vec<FileReference>,
    /// Its listeners, in the order of the settings, for whoever binds them.
    pub listeners: Vec<ListenerReference>,
}

/// A listener that a configuration has.
#[derive(Debug, Clone)]
pub struct ListenerReference {
    node: Option<NodeRef>,
}

impl ListenerReference {
    pub(crate) fn new(node: Option<NodeRef>) -> Self {
        Self { node }
    }

    /// An error where its address stands; `None` for the one that is there by default.
    pub fn error(&self, message: impl Into<String>) -> Option<Diagnostic> {
        Some(self.node.as_ref()?.error(message))
    }
}

/// A file that a configuration names.
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

    /// An error where the file is named.
    pub fn error(&self, message: impl Into<String>) -> Diagnostic {
        self.node.error(message)
    }
}

impl Compiled {
    /// Whether this is what a published Snapshot and its Plan already say, so that nothing needs
    /// to be published. Generations are not compared.
    pub fn is_same_as(&self, snapshot: &Snapshot, plan: &Plan) -> bool {
        self.plan == *plan && self.snapshot.same_content(snapshot)
    }

    /// How much there is of it.
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

/// Reads and compiles files, all or nothing. `env` gives the value of a variable.
///
/// # Errors
/// All mistakes of all files, and warnings with them.
pub fn load(files: &[SourceFile], env: Env<'_>) -> Result<Compiled, Diagnostics> {
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
    let told = index.diagnostics();
    if told.errors() + diagnostics.errors() > 0 {
        diagnostics.append(told);
        return Err(diagnostics);
    }
    let built = index.propose().map(|step| {
        let empty = Snapshot::empty(Arc::clone(&step.delta.settings));
        (empty.edit(&step.delta, |_| ()), step)
    });
    // Every reason why building fails was looked for above.
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
        warnings: told,
        files: index.files(),
        listeners: index.listeners(),
    })
}

/// A service compiled, with how its revisions are scaled.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub(crate) service: Arc<Service>,
    pub(crate) plans: Vec<(RevisionId, Arc<RevisionPlan>)>,
}

/// Compiles services that may claim the same names and hosts; all others do not. In the order of
/// their files. What is wrong goes to `cx`, and `None` stands for a service that cannot be built.
///
/// Pure, and the whole of it: a service has the same outcome in any group that has all services which
/// want what it wants. `ground` is what holds for all of them, `shared` what makes equal settings one.
pub(crate) fn compile(
    ground: &Draft,
    services: Vec<ServiceDraft>,
    shared: &mut Shared<RevisionSettings>,
    cx: &mut Context,
) -> Vec<Option<Piece>> {
    let catalog = Catalog::new(&services, cx);
    let hosts = hosts::claim(&services, &ground.settings.domain, &catalog, cx);
    let targets = targets::resolve(&services, &catalog, cx);
    let policies = policy::policies(&services, &ground.autoscaling, cx);
    warn_unserved(ground, &services, cx);
    let parts = services.into_iter().zip(hosts).zip(policies).enumerate();
    parts
        .map(|(index, ((service, hosts), policies))| {
            build(service, hosts, policies, index, &catalog, &targets[index], shared)
        })
        .collect()
}

/// What a service wants for itself alone, and what it looks up: services that share none of these have
/// nothing to do with each other. `want` gets a kind and the parts of a name.
pub(crate) fn wants(domain: &str, service: &ServiceDraft, want: &mut impl FnMut(Want<'_>)) {
    let namespace = service.namespace.as_deref();
    if let (Some(namespace), Some(name)) = (namespace, &service.name) {
        want(Want::Service(namespace, &name.value));
    }
    if let Some(namespace) = namespace {
        for revision in &service.revisions {
            match (&revision.name, &service.name) {
                (Some(name), _) => want(Want::Revision(namespace, &name.value)),
                (None, Some(name)) if service.shorthand => {
                    want(Want::Revision(namespace, &format!("{}-00001", name.value)));
                }
                _ => {}
            }
        }
        // Whose a revision is, is told where it is not the service's own.
        for name in targets::named(service) {
            want(Want::Revision(namespace, name));
        }
    }
    hosts::possible(domain, service, &mut |host| want(Want::Host(host)));
}

/// A name that only one service may have.
#[derive(Debug, Hash)]
pub(crate) enum Want<'n> {
    /// Namespace and name.
    Service(&'n str, &'n str),
    /// Namespace and name.
    Revision(&'n str, &'n str),
    /// A host, or a wildcard.
    Host(&'n str),
}

/// Names of everything, found once.
struct Catalog {
    /// By service: its id, unless its name is a mistake or was taken before.
    services: Vec<Option<ServiceId>>,
    /// By service and revision; a name is `None` after a mistake.
    revisions: Vec<Vec<Option<RevisionId>>>,
    /// Which service a revision belongs to.
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
                    // What a repeated service repeats was told with its name.
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

/// The service's id, and whether nobody has it yet.
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

/// A revision's id and where its name comes from; a shorthand's is its service's and a number.
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

/// Services that no listener serves: probably not what was meant, but nothing to refuse.
fn warn_unserved(ground: &Draft, services: &[ServiceDraft], cx: &mut Context) {
    if serves_internal(ground) {
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
pub(crate) fn serves_internal(ground: &Draft) -> bool {
    let mut listeners = ground.settings.listeners.iter();
    !ground.listeners_sound || listeners.any(|l| l.visibility == Visibility::Internal)
}

/// Puts the parts together; everything was checked.
fn build(
    service: ServiceDraft,
    mut hosts: Vec<(HostPattern, Option<Tag>)>,
    policies: Vec<Option<AutoscalePolicy>>,
    index: usize,
    catalog: &Catalog,
    targets: &targets::ServiceTargets,
    shared: &mut Shared<RevisionSettings>,
) -> Option<Piece> {
    let id = catalog.services[index].as_ref()?;
    let ids = &catalog.revisions[index];
    let mut plans = Vec::new();
    let mut revisions = Vec::with_capacity(ids.len());
    let drafts = service.revisions.into_iter().zip(policies).enumerate();
    for (nth, (revision, policy)) in drafts {
        let revision_id = ids[nth].as_ref()?;
        if let (Some(scaler), Some(policy)) = (revision.scaler, policy) {
            let plan = RevisionPlan {
                scaler,
                policy,
                start_timeout: revision.start_timeout,
                service: id.name().to_owned(),
                reachable: targets.reaches(nth),
            };
            plans.push((revision_id.clone(), Arc::new(plan)));
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
        };
        let mut backend = revision.backend?;
        if let Backend::Static { targets, .. } = &mut backend {
            // Collected where drafts were, which are larger.
            targets.shrink_to_fit();
        }
        revisions.push(Arc::new(RevisionSpec {
            id: revision_id.clone(),
            service: id.clone(),
            backend,
            settings: shared.one(settings),
        }));
    }
    // Large tables consist of these.
    hosts.shrink_to_fit();
    let mut routes = Vec::with_capacity(service.routes.len());
    for (route, own) in service.routes.into_iter().zip(&targets.routes) {
        routes.push(Route {
            matches: route.matches,
            rewrite_host: route.rewrite_host,
            rewrite_path: route.rewrite_path,
            append_headers: route.append_headers,
            split: targets::split(own, ids)?,
        });
    }
    let service = Service {
        id: id.clone(),
        visibility: service.visibility,
        http_option: service.http_option,
        sticky: service.sticky,
        hosts,
        revisions,
        routes,
        split: targets::split(&targets.own, ids)?,
    };
    let service = Arc::new(service);
    Some(Piece { service, plans })
}

#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod tests;

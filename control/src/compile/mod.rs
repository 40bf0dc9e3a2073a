//! A draft into what is served and how it is scaled. Pure: equal input gives equal output.
//!
//! Everything that involves more than one object is checked here (names, hosts, traffic targets,
//! scales with their defaults), on drafts with mistakes too, so that all mistakes of all files are
//! told at once.

mod hosts;
mod policy;
mod targets;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sluice_model::{
    HostPattern, RevisionId, RevisionSpec, Route, Service, ServiceId, Snapshot, SnapshotBuilder, Tag,
    Visibility,
};

use crate::config::{self, Context, Diagnostic, Diagnostics, Draft, Parsed, ServiceDraft, SourceFile, Spot};
use crate::plan::{Plan, RevisionPlan};

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
    spot: Option<Spot>,
}

impl ListenerReference {
    /// An error where its address stands; `None` for the one that is there by default.
    pub fn error(&self, message: impl Into<String>) -> Option<Diagnostic> {
        Some(self.spot.as_ref()?.error(message))
    }
}

/// A file that a configuration names.
#[derive(Debug, Clone)]
pub struct FileReference {
    /// Absolute.
    pub file: PathBuf,
    spot: Spot,
}

impl FileReference {
    /// An error where the file is named.
    pub fn error(&self, message: impl Into<String>) -> Diagnostic {
        self.spot.error(message)
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

/// Reads and compiles files. `env` gives the value of a variable.
///
/// # Errors
/// All mistakes of all files, and warnings with them.
pub fn load(files: &[SourceFile], env: &dyn Fn(&str) -> Option<String>) -> Result<Compiled, Diagnostics> {
    compile(config::parse(files, env))
}

/// Checks what was read and compiles it.
///
/// # Errors
/// All mistakes, those from reading included, and warnings with them.
pub fn compile(parsed: Parsed) -> Result<Compiled, Diagnostics> {
    let Parsed {
        draft,
        diagnostics,
        files,
    } = parsed;
    let mut cx = Context { diagnostics };
    let catalog = Catalog::new(&draft, &mut cx);
    let hosts = hosts::claim(&draft, &catalog, &mut cx);
    let targets = targets::resolve(&draft, &catalog, &mut cx);
    let policies = policy::policies(&draft, &mut cx);
    warn_unserved(&draft, &mut cx);

    let mut diagnostics = cx.diagnostics;
    let mut rank: HashMap<&Path, usize> = HashMap::new();
    for (i, file) in files.iter().enumerate() {
        rank.entry(file).or_insert(i);
    }
    diagnostics.settle(|file| rank.get(file).copied().unwrap_or(usize::MAX));
    if diagnostics.errors() > 0 {
        return Err(diagnostics);
    }
    match build(draft, &catalog, hosts, &targets, policies) {
        Some((snapshot, plan, files, listeners)) => Ok(Compiled {
            snapshot,
            plan,
            warnings: diagnostics,
            files,
            listeners,
        }),
        // Every reason why building fails was looked for above; should one have been missed, the
        // last good Snapshot keeps serving.
        None => {
            let file = files.into_iter().next().unwrap_or_default();
            diagnostics.push(Diagnostic::about_file(
                file,
                "the configuration contradicts itself",
            ));
            Err(diagnostics)
        }
    }
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
    fn new(draft: &Draft, cx: &mut Context) -> Self {
        let mut catalog = Self {
            services: Vec::new(),
            revisions: Vec::new(),
            owners: HashMap::new(),
        };
        let mut taken: HashMap<ServiceId, &Spot> = HashMap::new();
        let mut named: HashMap<RevisionId, Spot> = HashMap::new();
        for (index, service) in draft.services.iter().enumerate() {
            let (id, fresh) = claim_name(service, &mut taken, cx);
            catalog.services.push(id);
            let ids = service
                .revisions
                .iter()
                .map(|revision| {
                    let (id, spot) = revision_id(service, revision.name.as_ref(), cx)?;
                    // What a repeated service repeats was told with its name.
                    if fresh && let Some(first) = named.get(&id) {
                        let message = format!("revision name '{}' is taken in this namespace", id.name());
                        let hint = "revision names are unique in a namespace, across services";
                        let diagnostic = spot.error(message).hint(hint);
                        cx.report(diagnostic.related(first.place(), "it is taken here"));
                    } else if fresh {
                        named.insert(id.clone(), spot);
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
    taken: &mut HashMap<ServiceId, &'d Spot>,
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
        let diagnostic = name.spot.error(message).hint("rename one, or merge them");
        cx.report(diagnostic.related(first.place(), "the other one"));
        return (None, false);
    }
    taken.insert(id.clone(), &name.spot);
    (Some(id), true)
}

/// A revision's id and where its name comes from; a shorthand's is its service's and a number.
fn revision_id(
    service: &ServiceDraft,
    name: Option<&config::At<String>>,
    cx: &mut Context,
) -> Option<(RevisionId, Spot)> {
    let namespace = service.namespace.as_ref()?;
    if let Some(name) = name {
        return Some((RevisionId::parse(namespace, &name.value).ok()?, name.spot.clone()));
    }
    if !service.shorthand {
        return None;
    }
    let name = service.name.as_ref()?;
    match RevisionId::parse(namespace, &format!("{}-00001", name.value)) {
        Ok(id) => Some((id, name.spot.clone())),
        Err(e) => {
            let message = format!("its revision '{}-00001' has no valid name: {e}", name.value);
            cx.report(name.spot.error(message).hint("shorten the service's name"));
            None
        }
    }
}

/// Services that no listener serves: probably not what was meant, but nothing to refuse.
fn warn_unserved(draft: &Draft, cx: &mut Context) {
    let listeners = &draft.settings.listeners;
    let internal = listeners.iter().any(|l| l.visibility == Visibility::Internal);
    if internal || !draft.listeners_sound {
        return;
    }
    for service in &draft.services {
        if service.visibility == Visibility::Internal {
            let diagnostic = service.spot.error("no listener serves this internal service");
            let hint = "add a listener with visibility: internal";
            cx.report(diagnostic.hint(hint).warning());
        }
    }
}

type Built = (Snapshot, Plan, Vec<FileReference>, Vec<ListenerReference>);

/// Puts the parts together; everything was checked.
fn build(
    draft: Draft,
    catalog: &Catalog,
    hosts: Vec<Vec<(HostPattern, Option<Tag>)>>,
    targets: &[targets::ServiceTargets],
    policies: Vec<Vec<Option<crate::plan::AutoscalePolicy>>>,
) -> Option<Built> {
    let named = draft.services.iter().flat_map(|s| &s.revisions);
    let named = named.flat_map(|r| r.tls_files.iter().cloned());
    let files: Vec<_> = draft.files.into_iter().chain(named).collect();
    let files = files.into_iter().map(|f| FileReference {
        file: f.value,
        spot: f.spot,
    });
    let files = files.collect();
    let listeners = draft.listeners.into_iter();
    let listeners = listeners.map(|spot| ListenerReference { spot }).collect();
    let drain = draft.settings.drain.timeout;
    let mut plans = BTreeMap::new();
    let mut builder = SnapshotBuilder::new(draft.settings);
    let services = draft.services.into_iter().zip(hosts).zip(policies);
    for (index, ((service, hosts), policies)) in services.enumerate() {
        let id = catalog.services[index].as_ref()?;
        let ids = &catalog.revisions[index];
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
                    reachable: targets[index].reaches(nth),
                };
                plans.insert(revision_id.clone(), plan);
            }
            revisions.push(Arc::new(RevisionSpec {
                id: revision_id.clone(),
                service: id.clone(),
                backend: revision.backend?,
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
            }));
        }
        let mut routes = Vec::with_capacity(service.routes.len());
        for (route, own) in service.routes.into_iter().zip(&targets[index].routes) {
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
            split: targets::split(&targets[index].own, ids)?,
        };
        builder.service(service).ok()?;
    }
    let plan = Plan {
        revisions: plans,
        processes: draft.processes,
        drain,
    };
    Some((builder.build(), plan, files, listeners))
}

#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod tests;

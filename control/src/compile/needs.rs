//! Resolves the names that revisions need, and refuses cycles.

use std::collections::{BTreeMap, BTreeSet};

use sluice_model::RevisionId;

use super::Catalog;
use super::targets::ServiceTargets;
use crate::config::{Context, Located, NeedName, NodeRef, ServiceDraft, did_you_mean};

/// The names that a service's revisions need, with their namespaces.
pub(super) fn named(service: &ServiceDraft) -> impl Iterator<Item = (&str, &str)> {
    let own = service.namespace.as_deref();
    let needs = service.revisions.iter().flat_map(|revision| &revision.needs);
    needs.filter_map(move |need| {
        let namespace = need.value.namespace.as_deref().or(own)?;
        Some((namespace, need.value.name.as_str()))
    })
}

/// One need of a revision, with the place of its name.
struct Edge<'d> {
    to: RevisionId,
    node: &'d NodeRef,
}

/// The revisions that each revision needs, by service and revision, without duplicates. Unknown names and cycles are
/// reported.
pub(super) fn resolve(
    services: &[ServiceDraft],
    catalog: &Catalog,
    targets: &[ServiceTargets],
    cx: &mut Context,
) -> Vec<Vec<Vec<RevisionId>>> {
    let mut edges: BTreeMap<RevisionId, Vec<Edge<'_>>> = BTreeMap::new();
    let mut resolved = Vec::with_capacity(services.len());
    for (index, service) in services.iter().enumerate() {
        let mut of_service = Vec::with_capacity(service.revisions.len());
        for (nth, revision) in service.revisions.iter().enumerate() {
            let mut needs = Vec::new();
            for need in &revision.needs {
                for to in find(need, service, services, catalog, targets, cx) {
                    if let Some(from) = &catalog.revisions[index][nth] {
                        let node = &need.node;
                        let edge = Edge { to: to.clone(), node };
                        edges.entry(from.clone()).or_default().push(edge);
                    }
                    if !needs.contains(&to) {
                        needs.push(to);
                    }
                }
            }
            of_service.push(needs);
        }
        resolved.push(of_service);
    }
    report_cycles(&edges, cx);
    resolved
}

/// The revision of this name, or those of the service of this name that its traffic goes to.
fn find(
    need: &Located<NeedName>,
    service: &ServiceDraft,
    services: &[ServiceDraft],
    catalog: &Catalog,
    targets: &[ServiceTargets],
    cx: &mut Context,
) -> Vec<RevisionId> {
    let Some(namespace) = need.value.namespace.as_deref().or(service.namespace.as_deref()) else {
        return Vec::new();
    };
    let name = need.value.name.as_str();
    if let Ok(id) = RevisionId::parse(namespace, name)
        && catalog.owners.contains_key(&id)
    {
        return vec![id];
    }
    let is_named = |index: &usize| {
        let id = catalog.services[*index].as_ref();
        id.is_some_and(|id| id.namespace() == namespace && id.name() == name)
    };
    if let Some(index) = (0..services.len()).find(is_named) {
        let revisions = catalog.revisions[index].iter().enumerate();
        let served = revisions.filter(|(nth, _)| targets[index].has_share(*nth));
        return served.filter_map(|(_, id)| id.clone()).collect();
    }
    // Among names that are mistakes this may be the one that was meant.
    let sound = services
        .iter()
        .all(|service| service.all_named && service.name.is_some());
    if sound {
        let message = format!("nothing is named '{namespace}/{name}'");
        let known = known(services, catalog);
        let full = format!("{namespace}/{name}");
        let hint = match did_you_mean(&full, known.iter().map(String::as_str)) {
            Some(meant) => format!("did you mean '{meant}'?"),
            None => "needs are namespace/name of a revision or a service".to_owned(),
        };
        cx.report(need.node.error(message).hint(hint));
    }
    Vec::new()
}

/// The names of all services and revisions.
fn known(services: &[ServiceDraft], catalog: &Catalog) -> BTreeSet<String> {
    let of_services = (0..services.len()).filter_map(|index| catalog.services[index].as_ref());
    let of_services = of_services.map(ToString::to_string);
    of_services
        .chain(catalog.owners.keys().map(ToString::to_string))
        .collect()
}

/// Reports each cycle once: at the need that closes it, with all of its revisions.
fn report_cycles(edges: &BTreeMap<RevisionId, Vec<Edge<'_>>>, cx: &mut Context) {
    let mut done: BTreeSet<&RevisionId> = BTreeSet::new();
    for start in edges.keys() {
        // Depth first; the path has each revision with the index of its next need.
        let mut path: Vec<(&RevisionId, usize)> = vec![(start, 0)];
        while let Some((at, next)) = path.last_mut() {
            let edge = edges
                .get(*at)
                .and_then(|needs| needs.get(*next))
                .filter(|_| !done.contains(*at));
            let Some(edge) = edge else {
                done.insert(*at);
                path.pop();
                continue;
            };
            *next += 1;
            match path.iter().position(|(id, _)| **id == edge.to) {
                Some(first) => {
                    let mut names: Vec<String> = path[first..].iter().map(|(id, _)| id.to_string()).collect();
                    names.push(edge.to.to_string());
                    let message = format!("a cycle of needs: {}", names.join(" → "));
                    let hint = "each of them would wait for the others: leave one of these needs out";
                    let mut diagnostic = edge.node.error(message).hint(hint);
                    for (id, nth) in &path[first..path.len() - 1] {
                        if let Some(edge) = edges.get(*id).and_then(|needs| needs.get(nth - 1)) {
                            diagnostic =
                                diagnostic.related(edge.node.location(), format!("{id} needs {}", edge.to));
                        }
                    }
                    cx.report(diagnostic);
                }
                None if !done.contains(&edge.to) => path.push((&edge.to, 0)),
                None => {}
            }
        }
    }
}

//! Resolves traffic targets to revisions.

use sluice_model::{Percent, RevisionId};

use super::Catalog;
use crate::config::{Context, Located, ServiceDraft, Target, TargetRevision, Traffic, did_you_mean};
use crate::release::DeclaredTarget;

/// The resolved targets of a service.
pub(super) struct ServiceTargets {
    pub(super) own: Vec<DeclaredTarget>,
    /// By route.
    pub(super) routes: Vec<Vec<DeclaredTarget>>,
}

impl ServiceTargets {
    /// Whether the service's own traffic gives a revision a share.
    pub(super) fn has_share(&self, revision: usize) -> bool {
        let mut own = self.own.iter();
        own.any(|t| t.revision == revision && t.percent.hundredths() > 0)
    }

    /// Whether any share or tag leads to a revision.
    pub(super) fn reaches(&self, revision: usize) -> bool {
        let all = self.routes.iter().flatten().chain(&self.own);
        let mut here = all.filter(|t| t.revision == revision);
        here.any(|t| t.percent.hundredths() > 0 || t.tag.is_some())
    }
}

/// Resolves the traffic of all services. Unresolved targets are reported and left out.
pub(super) fn resolve(services: &[ServiceDraft], catalog: &Catalog, cx: &mut Context) -> Vec<ServiceTargets> {
    let all = services.iter().enumerate();
    all.map(|(index, service)| {
        let own = match &service.traffic {
            Some(traffic) => resolve_traffic(services, catalog, index, traffic, cx),
            None => latest_gets_all(service),
        };
        let routes = service.routes.iter().map(|route| match &route.traffic {
            Some(traffic) => resolve_traffic(services, catalog, index, traffic, cx),
            // The service's own, without its tags: those have hosts, and routes have none.
            None => own.iter().map(DeclaredTarget::without_tag).collect(),
        });
        let routes = routes.collect();
        ServiceTargets { own, routes }
    })
    .collect()
}

/// The names of revisions that a service's traffic goes to.
pub(super) fn named(service: &ServiceDraft) -> impl Iterator<Item = &str> {
    let routes = service.routes.iter().filter_map(|route| route.traffic.as_ref());
    let targets = service.traffic.iter().chain(routes);
    let targets = targets.flat_map(|traffic| &traffic.targets);
    targets.filter_map(|target| match &target.revision {
        TargetRevision::Named { name, .. } => Some(name.value.as_str()),
        TargetRevision::Latest | TargetRevision::Configuration(_) => None,
    })
}

fn latest_gets_all(service: &ServiceDraft) -> Vec<DeclaredTarget> {
    let whole = Percent::from_hundredths(Percent::WHOLE);
    let latest = service.revisions.len().checked_sub(1);
    let target = latest.zip(whole).map(|(revision, percent)| DeclaredTarget {
        revision,
        is_latest: true,
        percent,
        tag: None,
    });
    target.into_iter().collect()
}

fn resolve_traffic(
    services: &[ServiceDraft],
    catalog: &Catalog,
    index: usize,
    traffic: &Traffic,
    cx: &mut Context,
) -> Vec<DeclaredTarget> {
    let service = &services[index];
    let targets = traffic.targets.iter();
    let resolved = targets.filter_map(|target: &Target| {
        let latest = service.revisions.len().checked_sub(1);
        let mut is_latest = true;
        let revision = match &target.revision {
            TargetRevision::Latest => latest?,
            TargetRevision::Configuration(name) => {
                check_configuration(service, name, cx);
                latest?
            }
            TargetRevision::Named {
                name,
                latest: claims_latest,
            } => {
                is_latest = false;
                let found = find(services, catalog, index, name, cx)?;
                if *claims_latest && Some(found) != latest && service.all_named {
                    let message = format!("'{}' is not the latest revision, the last one listed", name.value);
                    let hint = "keep either revisionName or latestRevision: true";
                    cx.report(name.node.error(message).hint(hint));
                }
                found
            }
        };
        Some(DeclaredTarget {
            revision,
            is_latest,
            percent: target.percent,
            tag: target.tag.as_ref().map(|t| t.value.clone()),
        })
    });
    resolved.collect()
}

fn check_configuration(service: &ServiceDraft, name: &Located<String>, cx: &mut Context) {
    if let Some(own) = &service.name
        && own.value != name.value
    {
        let message = format!("the configuration '{}' is not this service's", name.value);
        let hint = format!("write configurationName: {}, or latestRevision: true", own.value);
        cx.report(name.node.error(message).hint(hint));
    }
}

/// The revision of this name in the service.
fn find(
    services: &[ServiceDraft],
    catalog: &Catalog,
    index: usize,
    name: &Located<String>,
    cx: &mut Context,
) -> Option<usize> {
    let ids = &catalog.revisions[index];
    let mut found = ids.iter().enumerate();
    let found = found.find(|(_, id)| id.as_ref().is_some_and(|id| id.name() == name.value));
    if let Some((nth, _)) = found {
        return Some(nth);
    }
    let service = &services[index];
    // Among revisions whose names are mistakes this may be the one that was meant.
    if !service.all_named || ids.iter().any(Option::is_none) {
        return None;
    }
    let names = ids.iter().flatten().map(RevisionId::name);
    let owner = service
        .namespace
        .as_ref()
        .and_then(|namespace| RevisionId::parse(namespace, &name.value).ok())
        .and_then(|id| catalog.owners.get(&id))
        .and_then(|owner| services[*owner].name.as_ref());
    let hint = match (owner, did_you_mean(&name.value, names.clone())) {
        (Some(owner), _) => format!(
            "it belongs to service '{}'; traffic goes to a service's own revisions",
            owner.value
        ),
        (None, Some(meant)) => format!("did you mean '{meant}'?"),
        // A manifest whose history is not kept.
        (None, None)
            if service.revisions.iter().any(|one| one.container.is_some()) && service.manifest.is_none() =>
        {
            "earlier revisions are kept where state.directory is set".to_owned()
        }
        (None, None) => format!("this service has {}", names.collect::<Vec<_>>().join(", ")),
    };
    let message = format!("no revision of this service is named '{}'", name.value);
    cx.report(name.node.error(message).hint(hint));
    None
}

//! Compiling Ingresses that share names: their services are resolved already, what is left is who has which host.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use sluice_model::{HostPattern, RevisionId, Service};

use super::read::CompiledObject;
use crate::compile::CompiledService;
use crate::config::{Diagnostic, Diagnostics};
use crate::ingress::IngressObject;
use crate::source::ObjectKey;

/// Compiles a group of Ingresses, in the order of their keys: a host belongs to the first one, and the others are
/// served without it. No Ingress has an error here that would keep an older version of it: that is decided by the
/// source, which can resolve the older version's endpoints anew.
pub(super) fn compile(objects: Vec<(&ObjectKey, Arc<IngressObject>)>) -> Vec<CompiledObject> {
    let mut owners: HashMap<HostPattern, Arc<IngressObject>> = HashMap::new();
    let mut revisions: HashSet<RevisionId> = HashSet::new();
    let mut compiled = Vec::with_capacity(objects.len());
    for (key, object) in objects {
        let mut diagnostics = Diagnostics::default();
        if let Some(problem) = &object.problem {
            diagnostics.push(Diagnostic::about_file(key.path(), problem.to_string()).warning());
        }
        let Some(service) = &object.service else {
            compiled.push(CompiledObject {
                diagnostics,
                services: Some(Vec::new()),
                conflict: None,
            });
            continue;
        };
        let lost = service.hosts.iter().filter_map(|claim| {
            let owner = owners.get(&claim.pattern)?;
            Some(format!(
                "host {} belongs to Ingress {}",
                claim.pattern, owner.name
            ))
        });
        let lost: Vec<String> = lost.collect();
        let conflict = (!lost.is_empty()).then(|| lost.join(", "));
        if let Some(conflict) = &conflict {
            diagnostics.push(Diagnostic::about_file(key.path(), conflict.clone()).warning());
        }
        let mut service = Arc::clone(service);
        if conflict.is_some() {
            let hosts = &mut Arc::make_mut(&mut service).hosts;
            hosts.retain(|claim| !owners.contains_key(&claim.pattern));
        }
        for slot in 0..service.revisions.len() {
            if revisions.contains(&service.revisions[slot].id) {
                rename(Arc::make_mut(&mut service), slot);
            }
        }
        let hosts = service.hosts.iter().map(|claim| claim.pattern.clone());
        owners.extend(hosts.map(|host| (host, Arc::clone(&object))));
        revisions.extend(service.revisions.iter().map(|spec| spec.id.clone()));
        compiled.push(CompiledObject {
            diagnostics,
            services: Some(vec![CompiledService {
                service,
                plans: Box::default(),
                digest: 0,
                declared: None,
            }]),
            conflict,
        });
    }
    compiled
}

/// Names a revision after its Ingress as well: another Ingress sends to the same Service, and names of revisions are
/// unique.
fn rename(service: &mut Service, slot: usize) {
    let spec = Arc::make_mut(&mut service.revisions[slot]);
    let name = format!("{}~{}", spec.id.name().replace('~', "."), service.id.name());
    // Both parts were names before.
    let Ok(id) = RevisionId::of_object(spec.id.namespace(), &name) else {
        return;
    };
    spec.id = id.clone();
    let rules = std::iter::once(&mut service.main).chain(&mut service.further);
    for rule in rules {
        let splits =
            std::iter::once(&mut rule.split).chain(rule.routes.iter_mut().map(|route| &mut route.split));
        splits.for_each(|split| split.rename(slot, &id));
    }
}

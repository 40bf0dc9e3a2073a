//! Compiling Ingresses that share names: their services are resolved already, what is left is who has which host.

use std::collections::HashMap;
use std::sync::Arc;

use sluice_model::{Backend, HostPattern, RevisionId, RevisionSpec, Service};

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
    let mut revisions: HashMap<RevisionId, Arc<RevisionSpec>> = HashMap::new();
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
            match revisions.get(&service.revisions[slot].id) {
                Some(known) if is_same_revision(known, &service.revisions[slot]) => {
                    Arc::make_mut(&mut service).revisions[slot] = Arc::clone(known);
                }
                Some(_) => rename(Arc::make_mut(&mut service), slot),
                None => {}
            }
        }
        let hosts = service.hosts.iter().map(|claim| claim.pattern.clone());
        owners.extend(hosts.map(|host| (host, Arc::clone(&object))));
        for spec in &service.revisions {
            let known = revisions.entry(spec.id.clone());
            known.or_insert_with(|| Arc::clone(spec));
        }
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

/// Whether two Ingresses send to one revision in the same way, as those of a Knative Service and of its DomainMapping do. It is
/// one revision of both services then: with a live state for each its concurrency limit would hold twice. The second one's
/// endpoints are the first one's, which come from the same objects.
fn is_same_revision(known: &RevisionSpec, other: &RevisionSpec) -> bool {
    let is_same_kind = matches!(
        (&known.backend, &other.backend),
        (Backend::Pods(_), Backend::Pods(_)) | (Backend::Static { .. }, Backend::Static { .. })
    );
    is_same_kind && known.settings == other.settings
}

/// Names a revision after its Ingress as well: another Ingress sends to the same Service in another way.
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

#[cfg(test)]
mod tests {
    use sluice_model::{
        HostClaim, HttpOption, Percent, Pods, Protocol, Rule, ServiceId, TrafficSplit, TrafficTarget,
        Visibility, test_util,
    };

    use super::*;
    use crate::ingress::ObjectName;

    fn object(name: &str, revision: &str, protocol: Protocol) -> (ObjectKey, Arc<IngressObject>) {
        let id = ServiceId::parse("d", name).expect("a name");
        let revision = RevisionId::parse("d", revision).expect("a name");
        let mut settings = test_util::revision_settings();
        settings.protocol = protocol;
        let spec = RevisionSpec {
            id: revision.clone(),
            service: id.clone(),
            backend: Backend::Pods(Box::<Pods>::default()),
            settings: Arc::new(settings),
        };
        let target = TrafficTarget {
            revision,
            slot: 0,
            percent: Percent::from_hundredths(Percent::WHOLE).expect("a share"),
            tag: None,
            append_headers: Arc::default(),
        };
        let service = Service {
            id,
            sticky: None,
            cold: None,
            no_wake: None,
            paused: false,
            hosts: vec![HostClaim {
                pattern: HostPattern::parse(&format!("{name}.example")).expect("a host"),
                rule: 0,
                tag: None,
            }],
            revisions: vec![Arc::new(spec)],
            main: Rule {
                visibility: Visibility::External,
                http_option: HttpOption::Enabled,
                routes: vec![],
                split: TrafficSplit::new(vec![target]).expect("adds up"),
            },
            further: Box::default(),
            ingress: None,
        };
        let object = IngressObject {
            name: ObjectName::new("d", name),
            uid: name.into(),
            generation: 1,
            service: Some(Arc::new(service)),
            problem: None,
        };
        (ObjectKey::of_ingress(0, "d", name), Arc::new(object))
    }

    /// The service of each Ingress.
    fn compiled(objects: &[(ObjectKey, Arc<IngressObject>)]) -> Vec<Arc<Service>> {
        let objects = objects.iter().map(|(key, object)| (key, Arc::clone(object)));
        let compiled = compile(objects.collect());
        let services = compiled
            .into_iter()
            .filter_map(|object| object.services)
            .flatten();
        services.map(|compiled| compiled.service).collect()
    }

    #[test]
    fn two_ingresses_that_send_to_a_revision_alike_share_it() {
        let objects = [
            object("hello", "hello-00001", Protocol::Http1),
            object("mapped", "hello-00001", Protocol::Http1),
        ];
        let [hello, mapped] = &compiled(&objects)[..] else {
            panic!("two services")
        };
        assert!(Arc::ptr_eq(&hello.revisions[0], &mapped.revisions[0]));
        assert_eq!(mapped.main.split.targets()[0].revision, hello.revisions[0].id);
        assert_eq!(mapped.revisions[0].service, hello.id);
        // The other one has it when the first is gone.
        let [mapped] = &compiled(&objects[1..])[..] else {
            panic!("one service")
        };
        assert_eq!(mapped.revisions[0].service, mapped.id);
    }

    #[test]
    fn two_ingresses_that_send_by_other_protocols_have_a_revision_each() {
        let objects = [
            object("hello", "hello-00001", Protocol::Http1),
            object("mapped", "hello-00001", Protocol::H2c),
        ];
        let [hello, mapped] = &compiled(&objects)[..] else {
            panic!("two services")
        };
        assert_eq!(hello.revisions[0].id.name(), "hello-00001");
        assert_eq!(mapped.revisions[0].id.name(), "hello-00001~mapped");
        assert_eq!(mapped.main.split.targets()[0].revision, mapped.revisions[0].id);
    }
}

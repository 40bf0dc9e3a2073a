//! Revisions that no Ingress of ours names, served to an activator's requests alone. Pure.
//!
//! Behind `activator-service` a gateway gets requests for any revision of the cluster: of Services with another ingress,
//! and older ones that no Route leads to any more. A revision that an Ingress names is served with that Ingress, so that
//! one queue holds all its requests.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use sluice_model::{
    Backend, HttpOption, IngressExtras, Percent, RevisionId, RevisionSpec, Rule, Service, ServiceId,
    TrafficSplit, TrafficTarget, Visibility,
};

use super::resolve::pods;
use super::store::Objects;
use crate::ingress::IngressObject;
use crate::object_name::ObjectName;
use crate::source::{Content, Event, ObjectKey};

/// The revisions that are served with an Ingress, and those that are served without one.
#[derive(Debug, Default)]
pub(super) struct Revisions {
    /// The number of Ingresses that each revision is served with.
    with_ingress: HashMap<ObjectName, usize>,
    /// The services that were sent last.
    alone: HashMap<ObjectName, Arc<IngressObject>>,
    dirty: HashSet<ObjectName>,
}

impl Revisions {
    /// Records that something about a revision may have changed.
    pub(super) fn touch(&mut self, revision: &ObjectName) {
        self.dirty.insert(revision.clone());
    }

    /// Records the revisions that an Ingress is served with now, and was before.
    pub(super) fn served(&mut self, before: &HashSet<ObjectName>, now: &HashSet<ObjectName>) {
        for revision in now.difference(before) {
            *self.with_ingress.entry(revision.clone()).or_default() += 1;
            self.touch(revision);
        }
        for revision in before.difference(now) {
            if let Some(count) = self.with_ingress.get_mut(revision) {
                *count -= 1;
                if *count == 0 {
                    self.with_ingress.remove(revision);
                }
            }
            self.touch(revision);
        }
    }

    /// The changes since the last call.
    pub(super) fn events(&mut self, objects: &Objects) -> Vec<Event> {
        let mut events = Vec::new();
        for revision in std::mem::take(&mut self.dirty) {
            let is_alone = !self.with_ingress.contains_key(&revision);
            let service = is_alone.then(|| service(&revision, objects)).flatten();
            let key = || ObjectKey::of_revision(revision.namespace(), revision.name());
            match service {
                None => {
                    if self.alone.remove(&revision).is_some() {
                        events.push(Event::Delete(key()));
                    }
                }
                Some(service) => {
                    let sent = self.alone.get(&revision).and_then(|sent| sent.service.as_deref());
                    if sent == Some(&service) {
                        continue;
                    }
                    let object = Arc::new(object(&revision, service));
                    events.push(Event::Apply(key(), Content::Ingress(Arc::clone(&object))));
                    self.alone.insert(revision, object);
                }
            }
        }
        events
    }
}

/// The names of the revisions that a service has.
pub(super) fn revisions_of(service: &Service) -> HashSet<ObjectName> {
    let ids = service.revisions.iter().map(|spec| &spec.id);
    ids.map(|id| ObjectName::new(id.namespace(), id.name())).collect()
}

/// Whether an object stands for a revision, which has no status that a gateway writes.
pub(super) fn is_revision(object: &IngressObject) -> bool {
    object.uid.is_empty()
}

fn object(revision: &ObjectName, service: Service) -> IngressObject {
    IngressObject {
        name: revision.clone(),
        uid: "".into(),
        generation: 0,
        service: Some(Arc::new(service)),
        problem: None,
    }
}

/// A service without hosts: requests that name the revision find it, and no others.
fn service(revision: &ObjectName, objects: &Objects) -> Option<Service> {
    let (pods, mut settings, protocol) = pods(revision, objects)?;
    if settings.protocol != protocol {
        Arc::make_mut(&mut settings).protocol = protocol;
    }
    let id = RevisionId::of_object(revision.namespace(), revision.name()).ok()?;
    // No Ingress has such a name.
    let service =
        ServiceId::of_object(revision.namespace(), &format!("{}~activator", revision.name())).ok()?;
    let all = TrafficTarget {
        revision: id.clone(),
        slot: 0,
        percent: Percent::from_hundredths(Percent::WHOLE)?,
        tag: None,
        append_headers: Arc::default(),
    };
    Some(Service {
        id: service.clone(),
        sticky: None,
        cold: None,
        no_wake: None,
        paused: false,
        hosts: Vec::new(),
        revisions: vec![Arc::new(RevisionSpec {
            id,
            service,
            backend: Backend::Pods(Box::new(pods)),
            settings,
        })],
        main: Rule {
            visibility: Visibility::Internal,
            http_option: HttpOption::Enabled,
            routes: Vec::new(),
            split: TrafficSplit::new(vec![all]).ok()?,
        },
        further: Box::default(),
        ingress: Some(Box::new(IngressExtras {
            network_hash: String::new(),
            certificates: Vec::new(),
        })),
    })
}

//! The claim table: which objects claim which name or host.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use sluice_model::{HostPattern, Service};

use super::UnitId;
use super::read::ObjectDraft;
use crate::compile::{CompiledService, NameClaim, configuration_claims, name_claims};

/// Objects by the hashes of their claims. On a hash collision two objects are compiled together needlessly, with no
/// other effect.
#[derive(Debug, Default)]
pub(super) struct Claimants {
    /// The first claimant of each claim: in a valid configuration the only one.
    one: HashMap<u64, UnitId>,
    /// The other claimants.
    more: HashMap<u64, BTreeSet<UnitId>>,
}

impl Claimants {
    /// Adds a claim, and adds the objects that have the same claim to `touched`.
    pub(super) fn add(&mut self, claim: u64, id: UnitId, touched: &mut BTreeSet<UnitId>) {
        touched.extend(self.who(claim).filter(|other| *other != id));
        match self.one.entry(claim) {
            Entry::Vacant(free) => _ = free.insert(id),
            Entry::Occupied(taken) if *taken.get() == id => {}
            Entry::Occupied(_) => _ = self.more.entry(claim).or_default().insert(id),
        }
    }

    /// Removes a claim, and adds the objects that still have the same claim to `touched`.
    pub(super) fn remove(&mut self, claim: u64, id: UnitId, touched: &mut BTreeSet<UnitId>) {
        if let Entry::Occupied(mut others) = self.more.entry(claim) {
            let others_of = others.get_mut();
            if !others_of.remove(&id)
                && self.one.get(&claim) == Some(&id)
                && let Some(next) = others_of.pop_first()
            {
                self.one.insert(claim, next);
            }
            if others_of.is_empty() {
                others.remove();
            }
        } else if self.one.get(&claim) == Some(&id) {
            self.one.remove(&claim);
        }
        touched.extend(self.who(claim));
    }

    pub(super) fn is_shared(&self, claim: u64) -> bool {
        self.more.contains_key(&claim)
    }

    /// All objects with this claim.
    pub(super) fn who(&self, claim: u64) -> impl Iterator<Item = UnitId> {
        let one = self.one.get(&claim).copied();
        let more = self.more.get(&claim);
        one.into_iter().chain(more.into_iter().flatten().copied())
    }
}

/// Hashes of the claims of an object, without duplicates.
pub(super) fn of(domain: &str, draft: &ObjectDraft) -> Vec<u64> {
    let mut hashes = Vec::new();
    match draft {
        ObjectDraft::File(draft) => {
            for service in &draft.services {
                name_claims(domain, service, &mut |claim| hashes.push(hash(&claim)));
            }
            for configuration in &draft.configurations {
                configuration_claims(configuration, &mut |claim| hashes.push(hash(&claim)));
            }
        }
        ObjectDraft::Ingress(ingress) => {
            if let Some(service) = &ingress.service {
                each(service, |claim| hashes.push(hash(&claim)));
            }
        }
    }
    hashes.sort_unstable();
    hashes.dedup();
    hashes
}

/// Calls `have` with each claim of a compiled service.
pub(super) fn each_of(compiled: &CompiledService, have: impl FnMut(NameClaim<'_>)) {
    each(&compiled.service, have);
}

fn each(service: &Service, mut have: impl FnMut(NameClaim<'_>)) {
    have(NameClaim::Service(service.id.namespace(), service.id.name()));
    for spec in &service.revisions {
        have(NameClaim::Revision(spec.id.namespace(), spec.id.name()));
    }
    for claim in &service.hosts {
        have(NameClaim::Host(&claim.pattern.to_string()));
    }
}

/// Whether a compiled service has this claim, compared by name and not by hash.
pub(super) fn has(compiled: &CompiledService, claim: &NameClaim<'_>) -> bool {
    let service = &compiled.service;
    match *claim {
        NameClaim::Service(namespace, name) => {
            (service.id.namespace(), service.id.name()) == (namespace, name)
        }
        NameClaim::Revision(namespace, name) => {
            let mut ids = service.revisions.iter().map(|spec| &spec.id);
            ids.any(|id| (id.namespace(), id.name()) == (namespace, name))
        }
        // Nothing but files has Configurations.
        NameClaim::Configuration(..) => false,
        NameClaim::Host(host) => service.hosts.iter().any(|claim| match &claim.pattern {
            HostPattern::Exact(exact) => exact.as_str() == host,
            HostPattern::Wildcard(suffix) => host.strip_prefix("*.") == Some(suffix.as_str()),
            HostPattern::Any => host == "*",
        }),
    }
}

pub(super) fn hash(claim: &NameClaim<'_>) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(claim)
}

//! Who wants which name or host.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use sluice_model::HostPattern;

use super::UnitId;
use crate::compile::{Piece, Want, wants};
use crate::config::FileDraft;

/// Owners of names and hosts, by their hashes: two that have one hash by chance are compiled together
/// for nothing, and that is all.
#[derive(Debug, Default)]
pub(super) struct Wants {
    /// One of those who want it: in a sound configuration the only one.
    one: HashMap<u64, UnitId>,
    /// The others.
    more: HashMap<u64, BTreeSet<UnitId>>,
}

impl Wants {
    /// Adds one; those who want the same already are touched.
    pub(super) fn add(&mut self, want: u64, id: UnitId, touched: &mut BTreeSet<UnitId>) {
        touched.extend(self.who(want).filter(|other| *other != id));
        match self.one.entry(want) {
            Entry::Vacant(free) => _ = free.insert(id),
            Entry::Occupied(taken) if *taken.get() == id => {}
            Entry::Occupied(_) => _ = self.more.entry(want).or_default().insert(id),
        }
    }

    /// Removes one; those who want the same still are touched.
    pub(super) fn remove(&mut self, want: u64, id: UnitId, touched: &mut BTreeSet<UnitId>) {
        if let Entry::Occupied(mut others) = self.more.entry(want) {
            let others_of = others.get_mut();
            if !others_of.remove(&id)
                && self.one.get(&want) == Some(&id)
                && let Some(next) = others_of.pop_first()
            {
                self.one.insert(want, next);
            }
            if others_of.is_empty() {
                others.remove();
            }
        } else if self.one.get(&want) == Some(&id) {
            self.one.remove(&want);
        }
        touched.extend(self.who(want));
    }

    pub(super) fn is_shared(&self, want: u64) -> bool {
        self.more.contains_key(&want)
    }

    /// All who want it.
    pub(super) fn who(&self, want: u64) -> impl Iterator<Item = UnitId> {
        let one = self.one.get(&want).copied();
        let more = self.more.get(&want);
        one.into_iter().chain(more.into_iter().flatten().copied())
    }
}

/// Hashes of what an object wants, each once.
pub(super) fn of(domain: &str, draft: &FileDraft) -> Vec<u64> {
    let mut hashes = Vec::new();
    for service in &draft.services {
        wants(domain, service, &mut |want| hashes.push(hash(&want)));
    }
    hashes.sort_unstable();
    hashes.dedup();
    hashes
}

/// What a compiled service has for itself alone.
pub(super) fn each_of(piece: &Piece, mut have: impl FnMut(Want<'_>)) {
    let service = &piece.service;
    have(Want::Service(service.id.namespace(), service.id.name()));
    for spec in &service.revisions {
        have(Want::Revision(spec.id.namespace(), spec.id.name()));
    }
    for (pattern, _) in &service.hosts {
        have(Want::Host(&pattern.to_string()));
    }
}

/// Whether a compiled service has this, and not only something of the same hash.
pub(super) fn has(piece: &Piece, want: &Want<'_>) -> bool {
    let service = &piece.service;
    match *want {
        Want::Service(namespace, name) => (service.id.namespace(), service.id.name()) == (namespace, name),
        Want::Revision(namespace, name) => {
            let mut ids = service.revisions.iter().map(|spec| &spec.id);
            ids.any(|id| (id.namespace(), id.name()) == (namespace, name))
        }
        Want::Host(host) => service.hosts.iter().any(|(pattern, _)| match pattern {
            HostPattern::Exact(exact) => exact.as_str() == host,
            HostPattern::Wildcard(suffix) => host.strip_prefix("*.") == Some(suffix.as_str()),
        }),
    }
}

pub(super) fn hash(want: &Want<'_>) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(want)
}

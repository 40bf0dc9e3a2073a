//! Who wants which name or host.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use super::UnitId;
use crate::compile::wants;
use crate::config::FileDraft;

/// Owners of names and hosts, by their hashes: two that have one hash by chance are compiled together
/// for nothing, and that is all.
#[derive(Debug, Default)]
pub(super) struct Wants(HashMap<u64, Who>);

#[derive(Debug)]
enum Who {
    One(UnitId),
    /// At least two.
    Several(BTreeSet<UnitId>),
}

impl Wants {
    /// Adds one; those who want the same already are touched.
    pub(super) fn add(&mut self, want: u64, id: UnitId, touched: &mut BTreeSet<UnitId>) {
        match self.0.entry(want) {
            Entry::Vacant(free) => _ = free.insert(Who::One(id)),
            Entry::Occupied(mut taken) => match taken.get_mut() {
                Who::One(other) if *other == id => {}
                Who::One(other) => {
                    touched.insert(*other);
                    let both = BTreeSet::from([*other, id]);
                    taken.insert(Who::Several(both));
                }
                Who::Several(others) => {
                    touched.extend(others.iter().copied());
                    others.insert(id);
                }
            },
        }
    }

    /// Removes one; those who want the same still are touched.
    pub(super) fn remove(&mut self, want: u64, id: UnitId, touched: &mut BTreeSet<UnitId>) {
        let Entry::Occupied(mut taken) = self.0.entry(want) else {
            return;
        };
        match taken.get_mut() {
            Who::One(_) => _ = taken.remove(),
            Who::Several(others) => {
                others.remove(&id);
                touched.extend(others.iter().copied());
                if let (1, Some(last)) = (others.len(), others.first().copied()) {
                    taken.insert(Who::One(last));
                }
            }
        }
    }

    pub(super) fn is_shared(&self, want: u64) -> bool {
        matches!(self.0.get(&want), Some(Who::Several(_)))
    }

    /// All who want it.
    pub(super) fn who(&self, want: u64) -> impl Iterator<Item = UnitId> {
        let (one, several) = match self.0.get(&want) {
            Some(Who::One(one)) => (Some(*one), None),
            Some(Who::Several(several)) => (None, Some(several)),
            None => (None, None),
        };
        one.into_iter().chain(several.into_iter().flatten().copied())
    }
}

/// Hashes of what an object wants, each once.
pub(super) fn of(domain: &str, draft: &FileDraft) -> Vec<u64> {
    let hasher = BuildHasherDefault::<DefaultHasher>::default();
    let mut hashes = Vec::new();
    for service in &draft.services {
        wants(domain, service, &mut |want| hashes.push(hasher.hash_one(want)));
    }
    hashes.sort_unstable();
    hashes.dedup();
    hashes
}

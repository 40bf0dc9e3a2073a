//! Names → entries: a persistent map by id.

use std::sync::Arc;

use crate::name::{RevisionId, ServiceId};
use crate::shards::{Seed, Shards};
use crate::table::Entry;

/// What has a name of two parts.
pub(crate) trait Named {
    type Id: Ord;

    fn id(&self) -> &Self::Id;
}

impl<L> Named for Entry<L> {
    type Id = ServiceId;

    fn id(&self) -> &ServiceId {
        &self.service.id
    }
}

/// A revision, as one of its service's.
#[derive(Debug, Clone)]
pub(crate) struct Slotted<L> {
    pub(crate) entry: Entry<L>,
    pub(crate) slot: usize,
}

impl<L> Named for Slotted<L> {
    type Id = RevisionId;

    fn id(&self) -> &RevisionId {
        &self.entry.service.revisions[self.slot].id
    }
}

/// The parts of an id, for its hash.
pub(crate) trait Parts {
    fn parts(&self) -> (&str, &str);
}

impl Parts for ServiceId {
    fn parts(&self) -> (&str, &str) {
        (self.namespace(), self.name())
    }
}

impl Parts for RevisionId {
    fn parts(&self) -> (&str, &str) {
        (self.namespace(), self.name())
    }
}

/// A persistent map. Cloning shares everything, and a change copies one leaf: its values in the
/// order of their ids.
#[derive(Debug, Clone)]
pub(crate) struct ById<V> {
    seed: Seed,
    leaves: Shards<Arc<Vec<V>>>,
    len: usize,
}

impl<V: Named + Clone> Default for ById<V> {
    fn default() -> Self {
        Self {
            seed: Seed::of_process(),
            leaves: Shards::default(),
            len: 0,
        }
    }
}

impl<V: Named + Clone> ById<V>
where
    V::Id: Parts,
{
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn get(&self, id: &V::Id) -> Option<&V> {
        let leaf = self.leaves.get(self.hash(id));
        let at = leaf.binary_search_by(|value| value.id().cmp(id)).ok()?;
        leaf.get(at)
    }

    /// Adds a value, in place of the one with its id.
    pub(crate) fn insert(&mut self, value: V) -> Option<V> {
        let hash = self.hash(value.id());
        let leaf = Arc::make_mut(self.leaves.get_mut(hash));
        match leaf.binary_search_by(|other| other.id().cmp(value.id())) {
            Ok(at) => Some(std::mem::replace(&mut leaf[at], value)),
            Err(at) => {
                leaf.insert(at, value);
                self.len += 1;
                None
            }
        }
    }

    pub(crate) fn remove(&mut self, id: &V::Id) -> Option<V> {
        self.get(id)?;
        let hash = self.hash(id);
        let leaf = Arc::make_mut(self.leaves.get_mut(hash));
        let at = leaf.binary_search_by(|value| value.id().cmp(id)).ok()?;
        self.len -= 1;
        Some(leaf.remove(at))
    }

    /// All values, in no particular order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &V> {
        self.leaves.iter().flat_map(|leaf| leaf.iter())
    }

    fn hash(&self, id: &V::Id) -> u64 {
        let (namespace, name) = id.parts();
        self.seed.hash(namespace.as_bytes()) ^ self.seed.hash(name.as_bytes()).rotate_left(23)
    }
}

//! A persistent map from ids to entries.

use std::sync::Arc;

use crate::name::{RevisionId, ServiceId};
use crate::shards::{Seed, Shards, by_leaf};
use crate::table::Entry;

/// A value with a name of two parts.
pub(crate) trait Named {
    type Id: Eq;

    fn id(&self) -> &Self::Id;
}

impl<L> Named for Entry<L> {
    type Id = ServiceId;

    fn id(&self) -> &ServiceId {
        &self.service.id
    }
}

/// A revision, as a slot of its service.
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

/// A revision that several services list: its places in all of them but the one that is found first.
#[derive(Debug, Clone)]
pub(crate) struct Further<L>(pub(crate) Vec<Slotted<L>>);

impl<L> Named for Further<L> {
    type Id = RevisionId;

    fn id(&self) -> &RevisionId {
        self.0[0].id()
    }
}

/// The two parts of an id, for its hash.
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

/// A persistent map by id. A clone shares everything, and a change copies one leaf: the values in the order of the
/// hashes of their ids.
///
/// The hashes stand beside the values, so that a search reads one array and only the id of the result: ids are behind
/// two pointers, and following these at each step of a search was half of the time of building a large table.
#[derive(Debug, Clone)]
pub(crate) struct ById<V> {
    seed: Seed,
    leaves: Shards<Arc<Vec<Hashed<V>>>>,
    len: usize,
}

#[derive(Debug, Clone)]
struct Hashed<V> {
    hash: u32,
    value: V,
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
        let hash = self.hash(id);
        let leaf = self.leaves.get(hash);
        Some(&leaf[find(leaf, hash, id).ok()?].value)
    }

    /// Makes room for many values that are inserted next: a leaf that grows step by step leaves free memory behind.
    pub(crate) fn reserve<'i>(&mut self, ids: impl Iterator<Item = &'i V::Id>)
    where
        V::Id: 'i,
    {
        let leaves: Vec<_> = by_leaf(ids.map(|id| self.hash(id))).collect();
        for (hash, more) in leaves.into_iter().filter(|(_, more)| *more > 0) {
            Arc::make_mut(self.leaves.get_mut(hash)).reserve_exact(more);
        }
    }

    /// Adds a value, and returns the value that had the same id before.
    pub(crate) fn insert(&mut self, value: V) -> Option<V> {
        let hash = self.hash(value.id());
        let leaf = Arc::make_mut(self.leaves.get_mut(hash));
        match find(leaf, hash, value.id()) {
            Ok(at) => Some(std::mem::replace(&mut leaf[at].value, value)),
            Err(at) => {
                let hash = short(hash);
                leaf.insert(at, Hashed { hash, value });
                self.len += 1;
                None
            }
        }
    }

    pub(crate) fn remove(&mut self, id: &V::Id) -> Option<V> {
        let hash = self.hash(id);
        let at = find(self.leaves.get(hash), hash, id).ok()?;
        let leaf = Arc::make_mut(self.leaves.get_mut(hash));
        self.len -= 1;
        Some(leaf.remove(at).value)
    }

    /// All values, in no particular order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &V> {
        self.leaves
            .iter()
            .flat_map(|leaf| leaf.iter().map(|hashed| &hashed.value))
    }

    fn hash(&self, id: &V::Id) -> u64 {
        let (namespace, name) = id.parts();
        self.seed.hash(namespace.as_bytes()) ^ self.seed.hash(name.as_bytes()).rotate_left(23)
    }
}

/// The part of a hash that orders a leaf: the other end than the part that chooses the leaf.
fn short(hash: u64) -> u32 {
    hash as u32
}

/// The index of a value in a leaf, or the index where the value would go.
fn find<V: Named>(leaf: &[Hashed<V>], hash: u64, id: &V::Id) -> Result<usize, usize> {
    let hash = short(hash);
    let first = leaf.partition_point(|hashed| hashed.hash < hash);
    let alike = leaf[first..].iter().take_while(|hashed| hashed.hash == hash);
    let at = alike.enumerate().find(|(_, hashed)| hashed.value.id() == id);
    at.map(|(nth, _)| first + nth).ok_or(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq)]
    struct Value(ServiceId, u32);

    impl Named for Value {
        type Id = ServiceId;

        fn id(&self) -> &ServiceId {
            &self.0
        }
    }

    fn value(name: &str, says: u32) -> Value {
        Value(ServiceId::parse("default", name).expect("a name"), says)
    }

    #[test]
    fn ids_of_one_hash_are_told_apart() {
        let leaf: Vec<_> = ["a", "b", "c"].map(|name| value(name, 0)).into();
        let leaf: Vec<_> = leaf.into_iter().map(|value| Hashed { hash: 7, value }).collect();
        for (at, hashed) in leaf.iter().enumerate() {
            assert_eq!(find(&leaf, 7, hashed.value.id()), Ok(at));
        }
        assert_eq!(find(&leaf, 7, value("d", 0).id()), Err(0));
        assert_eq!(find(&leaf, 8, leaf[0].value.id()), Err(3));
        assert_eq!(find(&leaf, 6, leaf[0].value.id()), Err(0));
    }

    #[test]
    fn a_copy_keeps_what_the_other_one_replaces_and_removes() {
        let mut first = ById::default();
        for nth in 0..5_000 {
            assert_eq!(first.insert(value(&format!("s-{nth}"), nth)), None);
        }
        let mut next = first.clone();
        assert_eq!(next.insert(value("s-7", 70)), Some(value("s-7", 7)));
        assert_eq!(next.remove(value("s-8", 0).id()), Some(value("s-8", 8)));
        assert_eq!(next.remove(value("s-8", 0).id()), None);
        assert_eq!((first.len(), next.len()), (5_000, 4_999));
        for nth in 0..5_000 {
            let here = value(&format!("s-{nth}"), nth);
            assert_eq!(first.get(here.id()), Some(&here));
            let there = match nth {
                7 => Some(value("s-7", 70)),
                8 => None,
                _ => Some(here.clone()),
            };
            assert_eq!(next.get(here.id()), there.as_ref());
        }
        assert_eq!(next.iter().count(), 4_999);
    }
}

//! A leaf of the host table: an open-addressing hash table with one cache line for each host.

use std::sync::Arc;

use crate::route::{Service, Visibility};
use crate::table::Entry;

/// The longest host that a slot holds inline. With 39 bytes a slot is 64 bytes; derived hosts are rarely longer.
const INLINE: usize = 39;

/// The largest index of a rule.
pub(crate) const MAX_RULE: u32 = (Gist::ROUTES >> Gist::RULE_SHIFT) - 1;

/// The flags of a rule that [`RouteTable::find`](crate::RouteTable::find) reads before the service: they are
/// stored beside the host, so that a lookup reads that cache line and no other. The lower bits are the index of the
/// rule and that of the tagged target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Gist(u32);

impl Gist {
    /// The rule is for internal listeners.
    const INTERNAL: u32 = 1 << 31;
    /// The rule has routes.
    const ROUTES: u32 = 1 << 30;
    /// Above this many bits, which are the index of the tagged target, is the index of the rule.
    const RULE_SHIFT: u32 = 16;
    /// The index that stands for no tag.
    const UNTAGGED: u32 = (1 << Self::RULE_SHIFT) - 1;

    fn of(service: &Service, rule: u16, tagged: Option<usize>) -> Self {
        let tagged = tagged.and_then(|index| u32::try_from(index).ok());
        let index = u32::from(rule).min(MAX_RULE);
        let rule = service.rule(index as usize);
        let internal = rule.visibility == Visibility::Internal;
        let routes = !rule.routes.is_empty();
        let flags = u32::from(internal) * Self::INTERNAL + u32::from(routes) * Self::ROUTES;
        let tagged = tagged.unwrap_or(Self::UNTAGGED).min(Self::UNTAGGED);
        Self(flags | index << Self::RULE_SHIFT | tagged)
    }
}

/// The text of a host, inline if it is short.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Text {
    /// Padded with zeros, which no host contains.
    Short([u8; INLINE]),
    Long(Arc<str>),
}

impl Text {
    fn of(host: &str) -> Self {
        let bytes = host.as_bytes();
        let mut short = [0; INLINE];
        match short.get_mut(..bytes.len()) {
            Some(start) => {
                start.copy_from_slice(bytes);
                Self::Short(short)
            }
            None => Self::Long(host.into()),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Short(bytes) => {
                let end = bytes.iter().position(|b| *b == 0).unwrap_or(INLINE);
                &bytes[..end]
            }
            Self::Long(text) => text.as_bytes(),
        }
    }

    fn is(&self, host: &[u8]) -> bool {
        match self {
            Self::Short(bytes) => bytes
                .split_at_checked(host.len())
                .is_some_and(|(text, rest)| text == host && rest.first().is_none_or(|b| *b == 0)),
            Self::Long(text) => text.as_bytes() == host,
        }
    }
}

/// A slot: a host and its entry.
#[derive(Debug, Clone)]
#[repr(align(64))]
struct Slot<L> {
    hash: u32,
    gist: Gist,
    text: Text,
    /// The entry; `None` in a free slot.
    entry: Option<Entry<L>>,
}

impl<L> Default for Slot<L> {
    fn default() -> Self {
        Self {
            hash: 0,
            gist: Gist(Gist::UNTAGGED),
            text: Text::Short([0; INLINE]),
            entry: None,
        }
    }
}

/// The result of a lookup.
#[derive(Debug)]
pub(crate) struct Claim<'t, L> {
    pub(crate) entry: &'t Entry<L>,
    gist: Gist,
}

impl<L> Claim<'_, L> {
    /// The index of the tagged target, for a tag's host.
    pub(crate) fn tagged(&self) -> Option<usize> {
        let index = self.gist.0 & Gist::UNTAGGED;
        (index != Gist::UNTAGGED).then_some(index as usize)
    }

    /// The index of the rule.
    pub(crate) fn rule(&self) -> usize {
        (self.gist.0 >> Gist::RULE_SHIFT & MAX_RULE) as usize
    }

    /// The visibility of the rule.
    pub(crate) fn visibility(&self) -> Visibility {
        match self.gist.0 & Gist::INTERNAL {
            0 => Visibility::External,
            _ => Visibility::Internal,
        }
    }

    /// Whether the rule has routes.
    pub(crate) fn has_routes(&self) -> bool {
        self.gist.0 & Gist::ROUTES != 0
    }
}

/// A hash table of the hosts whose hashes begin alike. Copy-on-write: a clone shares the slots until one of both is
/// changed.
///
/// The number of slots is not a power of two, which would leave a third of the memory of a large table free: the hash selects a
/// slot by a multiplication (fast range).
///
/// **Invariant:** a slot is free, and of eight and more slots about a quarter; a host stands at or after the slot of its hash, with no
/// free slot in between (linear probing).
#[derive(Debug, Clone)]
pub(crate) struct HostLeaf<L> {
    slots: Arc<[Slot<L>]>,
    taken: u32,
}

impl<L> Default for HostLeaf<L> {
    fn default() -> Self {
        Self {
            slots: Arc::from([]),
            taken: 0,
        }
    }
}

impl<L> HostLeaf<L> {
    pub(crate) fn len(&self) -> usize {
        self.taken as usize
    }

    pub(crate) fn get(&self, hash: u64, host: &str) -> Option<Claim<'_, L>> {
        let slot = &self.slots[self.find(hash, host.as_bytes()).ok()?];
        Some(Claim {
            entry: slot.entry.as_ref()?,
            gist: slot.gist,
        })
    }

    /// The slot of a host, or the free slot where the host would go; `Err(0)` of an empty leaf is no slot.
    fn find(&self, hash: u64, host: &[u8]) -> Result<usize, usize> {
        if self.slots.is_empty() {
            return Err(0);
        }
        let short = hash as u32;
        let mut at = home(short, self.slots.len());
        loop {
            let slot = &self.slots[at];
            if slot.entry.is_none() {
                return Err(at);
            }
            if slot.hash == short && slot.text.is(host) {
                return Ok(at);
            }
            at = after(at, self.slots.len());
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], Claim<'_, L>)> {
        self.slots.iter().filter_map(|slot| {
            let claim = Claim {
                entry: slot.entry.as_ref()?,
                gist: slot.gist,
            };
            Some((slot.text.as_bytes(), claim))
        })
    }
}

impl<L: Clone> HostLeaf<L> {
    /// Adds a host. Returns `false`, and changes nothing, if the host is in the table already.
    pub(crate) fn insert(
        &mut self,
        hash: u64,
        host: &str,
        entry: Entry<L>,
        rule: u16,
        tagged: Option<usize>,
    ) -> bool {
        if self.find(hash, host.as_bytes()).is_ok() {
            return false;
        }
        if self.slots.len() * 3 / 4 <= self.len() {
            // Five eighths are taken then: a leaf grows by a fifth.
            self.resize(self.len() * 8 / 5 + 1);
        }
        let (Ok(at) | Err(at)) = self.find(hash, host.as_bytes());
        Arc::make_mut(&mut self.slots)[at] = Slot {
            hash: hash as u32,
            gist: Gist::of(&entry.service, rule, tagged),
            text: Text::of(host),
            entry: Some(entry),
        };
        self.taken += 1;
        true
    }

    /// Removes a host, if the leaf has the host.
    pub(crate) fn remove(&mut self, hash: u64, host: &str) {
        let Ok(mut free) = self.find(hash, host.as_bytes()) else {
            return;
        };
        let slots = Arc::make_mut(&mut self.slots);
        let size = slots.len();
        // Backward-shift deletion: hosts that stand further on because this slot was taken move up, so that there are
        // no tombstones.
        let mut at = free;
        loop {
            at = after(at, size);
            if slots[at].entry.is_none() {
                break;
            }
            let home = home(slots[at].hash, size);
            if distance(home, at, size) >= distance(free, at, size) {
                slots.swap(free, at);
                free = at;
            }
        }
        slots[free] = Slot::default();
        self.taken -= 1;
    }

    /// Makes room for more hosts at once, where they would grow the leaf several times.
    pub(crate) fn reserve(&mut self, more: usize) {
        let all = self.len() + more;
        if self.slots.len() * 3 / 4 < all {
            self.resize(all * 3 / 2 + 1);
        }
    }

    fn resize(&mut self, size: usize) {
        let size = size.max(4);
        let mut slots: Vec<Slot<L>> = Vec::new();
        slots.resize_with(size, Slot::default);
        let mut place = |slot: Slot<L>| {
            let mut at = home(slot.hash, size);
            while slots[at].entry.is_some() {
                at = after(at, size);
            }
            slots[at] = slot;
        };
        match Arc::get_mut(&mut self.slots) {
            // A table under construction: no other table shares these slots, and counting the references of entries
            // would miss the cache.
            Some(own) => {
                let taken = own.iter_mut().filter(|slot| slot.entry.is_some());
                taken.for_each(|slot| place(std::mem::take(slot)));
            }
            None => {
                let taken = self.slots.iter().filter(|slot| slot.entry.is_some());
                taken.cloned().for_each(place);
            }
        }
        self.slots = slots.into();
    }
}

/// The slot of a hash among `size` slots.
fn home(hash: u32, size: usize) -> usize {
    ((u64::from(hash) * size as u64) >> 32) as usize
}

/// The slot after `at`; after the last one comes the first.
fn after(at: usize, size: usize) -> usize {
    if at + 1 == size { 0 } else { at + 1 }
}

/// The number of steps from one slot to another.
fn distance(from: usize, to: usize, size: usize) -> usize {
    if to >= from { to - from } else { to + size - from }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_one_cache_line() {
        assert_eq!(size_of::<Slot<Arc<u8>>>(), 64);
    }

    #[test]
    fn texts_of_any_length_are_told_apart() {
        let host = "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz";
        for len in 0..host.len() {
            let text = Text::of(&host[..len]);
            assert_eq!(text.as_bytes(), &host.as_bytes()[..len]);
            for other in 0..host.len() {
                assert_eq!(text.is(&host.as_bytes()[..other]), len == other, "{len} {other}");
            }
        }
    }
}

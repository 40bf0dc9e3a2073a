//! One leaf of a table of hosts: open addressing, one cache line for each host.

use std::sync::Arc;

use crate::table::Entry;

/// Text that a slot holds itself. With it a slot is 64 bytes; derived hosts rarely have more.
const INLINE: usize = 39;

/// No tag.
const UNTAGGED: u32 = u32::MAX;

/// A host's text.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Text {
    /// Filled up with zeros, which no host contains.
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

/// Where a host leads.
#[derive(Debug, Clone)]
#[repr(align(64))]
struct Slot<L> {
    hash: u32,
    /// The index of the tagged target.
    tagged: u32,
    text: Text,
    /// `None` where the slot is free.
    entry: Option<Entry<L>>,
}

impl<L> Default for Slot<L> {
    fn default() -> Self {
        Self {
            hash: 0,
            tagged: UNTAGGED,
            text: Text::Short([0; INLINE]),
            entry: None,
        }
    }
}

/// What a host leads to.
#[derive(Debug)]
pub(crate) struct Claim<'t, L> {
    pub(crate) entry: &'t Entry<L>,
    /// The index of the tagged target, for a tag's host.
    pub(crate) tagged: Option<usize>,
}

/// Hosts whose hashes begin alike. Cloning shares the slots until one of both is changed.
///
/// **Invariant:** a power of two of slots, at most three quarters of them taken; a host stands at or
/// after the place its hash names, with no free slot in between.
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
            tagged: (slot.tagged != UNTAGGED).then_some(slot.tagged as usize),
        })
    }

    /// The slot of a host, or the free one where it would go; `Err(0)` of an empty leaf is no slot.
    fn find(&self, hash: u64, host: &[u8]) -> Result<usize, usize> {
        if self.slots.is_empty() {
            return Err(0);
        }
        let short = hash as u32;
        let mask = self.slots.len() - 1;
        let mut at = short as usize & mask;
        loop {
            let slot = &self.slots[at];
            if slot.entry.is_none() {
                return Err(at);
            }
            if slot.hash == short && slot.text.is(host) {
                return Ok(at);
            }
            at = (at + 1) & mask;
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], Claim<'_, L>)> {
        self.slots.iter().filter_map(|slot| {
            let claim = Claim {
                entry: slot.entry.as_ref()?,
                tagged: (slot.tagged != UNTAGGED).then_some(slot.tagged as usize),
            };
            Some((slot.text.as_bytes(), claim))
        })
    }
}

impl<L: Clone> HostLeaf<L> {
    /// Adds a host; one that is there already keeps its claim, and `false` says so.
    pub(crate) fn insert(&mut self, hash: u64, host: &str, entry: Entry<L>, tagged: Option<usize>) -> bool {
        if self.find(hash, host.as_bytes()).is_ok() {
            return false;
        }
        if self.slots.len() * 3 / 4 <= self.len() {
            self.grow();
        }
        let (Ok(at) | Err(at)) = self.find(hash, host.as_bytes());
        Arc::make_mut(&mut self.slots)[at] = Slot {
            hash: hash as u32,
            tagged: tagged.map_or(UNTAGGED, |index| index as u32),
            text: Text::of(host),
            entry: Some(entry),
        };
        self.taken += 1;
        true
    }

    /// Removes a host, if it is there.
    pub(crate) fn remove(&mut self, hash: u64, host: &str) {
        let Ok(mut free) = self.find(hash, host.as_bytes()) else {
            return;
        };
        let slots = Arc::make_mut(&mut self.slots);
        let mask = slots.len() - 1;
        // Those that stand further on because this one was taken move up: no tombstones.
        let mut at = free;
        loop {
            at = (at + 1) & mask;
            if slots[at].entry.is_none() {
                break;
            }
            let home = slots[at].hash as usize & mask;
            let moved_by = at.wrapping_sub(home) & mask;
            if moved_by >= at.wrapping_sub(free) & mask {
                slots.swap(free, at);
                free = at;
            }
        }
        slots[free] = Slot::default();
        self.taken -= 1;
    }

    fn grow(&mut self) {
        let size = (self.slots.len() * 2).max(4);
        let mut slots: Vec<Slot<L>> = Vec::new();
        slots.resize_with(size, Slot::default);
        for slot in self.slots.iter().filter(|slot| slot.entry.is_some()) {
            let mut at = slot.hash as usize & (size - 1);
            while slots[at].entry.is_some() {
                at = (at + 1) & (size - 1);
            }
            slots[at] = slot.clone();
        }
        self.slots = slots.into();
    }
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

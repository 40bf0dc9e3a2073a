//! The change filter: which objects have other content than the index knows.

use std::collections::HashSet;

use super::Index;
use super::read::NewContent;
use crate::source::{Event, ObjectKey};

/// The objects of a list that is being read again (a relist).
#[derive(Debug, Default)]
pub(super) struct Listed {
    keys: HashSet<ObjectKey>,
    /// The index was empty when the list began: every object in the index is from the list.
    is_all: bool,
}

impl Listed {
    fn new(is_all: bool) -> Self {
        Self {
            keys: HashSet::new(),
            is_all,
        }
    }

    fn insert(&mut self, key: &ObjectKey) {
        if !self.is_all {
            self.keys.insert(key.clone());
        }
    }

    fn has(&self, key: &ObjectKey) -> bool {
        self.is_all || self.keys.contains(key)
    }
}

impl Index {
    /// The changed objects, in the order of their keys; the content is `None` for a deleted object.
    pub(super) fn changes(
        &mut self,
        events: impl IntoIterator<Item = Event>,
    ) -> Vec<(ObjectKey, NewContent)> {
        let mut changes: Vec<(ObjectKey, NewContent)> = Vec::new();
        for event in events {
            match event {
                Event::Init => self.listed = Some(Listed::new(self.by_key.is_empty())),
                Event::Apply(key, content) => {
                    if let Some(listed) = &mut self.listed {
                        listed.insert(&key);
                    }
                    changes.push((key, Some(content)));
                }
                Event::Delete(key) => changes.push((key, None)),
                Event::Touched | Event::Settings(_) => {}
                Event::InitDone => {
                    let listed = self.listed.take().unwrap_or_default();
                    let gone = self.by_key.keys().filter(|key| !listed.has(key));
                    changes.extend(gone.map(|key| (key.clone(), None)));
                }
            }
        }
        // Keeps the last event of each object; sources send objects in order for the most part.
        if !changes.is_sorted_by(|(a, _), (b, _)| a < b) {
            changes.reverse();
            changes.sort_by(|(a, _), (b, _)| a.cmp(b));
            changes.dedup_by(|(later, _), (kept, _)| later == kept);
        }
        changes.retain(|(key, content)| {
            let known = self.by_key.get(key).and_then(|id| self.unit(*id));
            known.map(|unit| &unit.content) != content.as_ref()
        });
        changes
    }
}

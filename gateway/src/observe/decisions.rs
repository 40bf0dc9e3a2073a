//! The last scale decisions, for the dashboard: a bounded ring.

use std::collections::VecDeque;
use std::time::SystemTime;

use parking_lot::Mutex;
use sluice_model::RevisionId;

/// Decisions that are kept.
const KEPT: usize = 100;

/// One scale decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Counts from 1.
    pub number: u64,
    /// When it was made.
    pub at: SystemTime,
    /// Of which revision.
    pub revision: RevisionId,
    /// The decision with its reason, in one line.
    pub text: String,
}

/// The last decisions of all revisions together.
#[derive(Debug, Default)]
pub struct RecentDecisions(Mutex<VecDeque<Decision>>);

impl RecentDecisions {
    /// Adds a decision. One that repeats the last one of its revision is not news, and left out.
    pub fn add(&self, at: SystemTime, revision: &RevisionId, text: &str) {
        let mut all = self.0.lock();
        let last = all.iter().rev().find(|one| one.revision == *revision);
        if last.is_some_and(|last| last.text == text) {
            return;
        }
        let number = all.back().map_or(0, |last| last.number) + 1;
        if all.len() == KEPT {
            all.pop_front();
        }
        all.push_back(Decision {
            number,
            at,
            revision: revision.clone(),
            text: text.to_owned(),
        });
    }

    /// Those after this number, the oldest first; 0 for all.
    pub fn after(&self, number: u64) -> Vec<Decision> {
        let all = self.0.lock();
        all.iter().filter(|one| one.number > number).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn the_last_hundred_are_kept_and_repetitions_are_not() {
        let decisions = RecentDecisions::default();
        let id = |name: &str| RevisionId::parse("default", name).unwrap();
        let add = |name, text: &str| decisions.add(UNIX_EPOCH, &id(name), text);
        add("a", "0 → 1");
        add("b", "0 → 1");
        add("a", "0 → 1");
        add("a", "1 → 2");
        add("a", "0 → 1");
        let texts = |after| -> Vec<_> {
            let all = decisions.after(after).into_iter();
            all.map(|d| (d.number, d.revision.name().to_owned(), d.text))
                .collect()
        };
        let want = |n, name: &str, text: &str| (n, name.to_owned(), text.to_owned());
        assert_eq!(
            texts(0),
            [
                want(1, "a", "0 → 1"),
                want(2, "b", "0 → 1"),
                want(3, "a", "1 → 2"),
                want(4, "a", "0 → 1")
            ]
        );
        for n in 0..500 {
            add("a", &n.to_string());
        }
        assert_eq!(texts(0).len(), KEPT);
        assert_eq!(texts(503), [want(504, "a", "499")]);
    }
}

//! Needs: revisions that are started, and ready, before the ones that need them, and are held above zero while those run.
//!
//! The graph of needs has no cycle: the compiler refuses one.

use std::collections::{BTreeMap, BTreeSet};

use sluice_model::RevisionId;

/// Who needs what, and who of them runs. A dependent is a revision, or one of its tiers; a need is a revision.
#[derive(Debug, Default)]
pub(super) struct Needs {
    needs: BTreeMap<RevisionId, Vec<RevisionId>>,
    dependents: BTreeMap<RevisionId, BTreeSet<RevisionId>>,
    /// The dependents that run, by what they need.
    running: BTreeMap<RevisionId, BTreeSet<RevisionId>>,
}

impl Needs {
    /// Records what a revision needs from now on. Returns the revisions that are not held for it any more, each with
    /// whether another revision holds it; [`runs`](Self::runs) is to follow.
    pub(super) fn plan(&mut self, dependent: &RevisionId, needs: &[RevisionId]) -> Vec<(RevisionId, bool)> {
        let old = self.needs.remove(dependent).unwrap_or_default();
        if !needs.is_empty() {
            self.needs.insert(dependent.clone(), needs.to_vec());
        }
        let mut changed = Vec::new();
        for need in &old {
            remove(&mut self.dependents, need, dependent);
            if !needs.contains(need) && remove(&mut self.running, need, dependent) {
                changed.push((need.clone(), self.is_held(need)));
            }
        }
        for need in needs {
            let dependents = self.dependents.entry(need.clone()).or_default();
            dependents.insert(dependent.clone());
        }
        changed
    }

    /// Records whether a revision runs, or is about to. Returns the revisions that are held above zero from now on
    /// (`true`), or no more.
    pub(super) fn runs(&mut self, dependent: &RevisionId, runs: bool) -> Vec<(RevisionId, bool)> {
        let mut changed = Vec::new();
        for need in self.needs.get(dependent).into_iter().flatten() {
            let held = self.running.contains_key(need);
            if runs {
                let running = self.running.entry(need.clone()).or_default();
                running.insert(dependent.clone());
            } else {
                remove(&mut self.running, need, dependent);
            }
            if held != self.running.contains_key(need) {
                changed.push((need.clone(), runs));
            }
        }
        changed
    }

    /// Revisions that need this one.
    pub(super) fn dependents(&self, need: &RevisionId) -> Vec<RevisionId> {
        self.dependents.get(need).into_iter().flatten().cloned().collect()
    }

    /// Revisions that are held above zero.
    pub(super) fn held(&self) -> impl Iterator<Item = &RevisionId> {
        self.running.keys()
    }

    /// Revisions that need this one, and run.
    pub(super) fn running(&self, need: &RevisionId) -> Vec<RevisionId> {
        self.running.get(need).into_iter().flatten().cloned().collect()
    }

    fn is_held(&self, need: &RevisionId) -> bool {
        self.running.contains_key(need)
    }
}

/// Removes a dependent; `true` if it was there.
fn remove(
    from: &mut BTreeMap<RevisionId, BTreeSet<RevisionId>>,
    need: &RevisionId,
    dependent: &RevisionId,
) -> bool {
    let Some(dependents) = from.get_mut(need) else {
        return false;
    };
    let was_there = dependents.remove(dependent);
    if dependents.is_empty() {
        from.remove(need);
    }
    was_there
}

/// The gate before a revision's first instance: what it needs has to be ready. Further instances pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum NeedsGate {
    #[default]
    Closed,
    /// The data plane was asked, and something is being started.
    Asked,
    Open,
}

impl NeedsGate {
    /// Whether an instance may be started now. Needs are to be asked for when this returns `Err`.
    pub(super) fn pass(&mut self, needs: &[RevisionId], runs: bool) -> Result<bool, Vec<RevisionId>> {
        if needs.is_empty() || runs {
            return Ok(true);
        }
        match self {
            Self::Open => Ok(true),
            Self::Asked => Ok(false),
            Self::Closed => {
                *self = Self::Asked;
                Err(needs.to_vec())
            }
        }
    }

    /// Whether something that is needed is being started.
    pub(super) fn is_asked(self) -> bool {
        self == Self::Asked
    }
}

/// The detail of a failure whose cause is a revision that is needed.
pub(super) fn of_need(need: &RevisionId, detail: &str) -> String {
    format!("{need}, which it needs: {detail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> RevisionId {
        RevisionId::parse("default", name).expect("a name")
    }

    #[test]
    fn a_need_is_held_from_the_first_dependent_to_the_last() {
        let (a, b, db) = (id("a"), id("b"), id("db"));
        let mut needs = Needs::default();
        for dependent in [&a, &b] {
            assert!(needs.plan(dependent, std::slice::from_ref(&db)).is_empty());
        }
        assert_eq!(needs.dependents(&db), [a.clone(), b.clone()]);
        assert_eq!(needs.runs(&a, true), [(db.clone(), true)]);
        assert!(needs.runs(&a, true).is_empty());
        assert!(needs.runs(&b, true).is_empty());
        assert_eq!(needs.running(&db), [a.clone(), b.clone()]);
        assert!(needs.runs(&a, false).is_empty());
        assert_eq!(needs.runs(&b, false), [(db.clone(), false)]);
        assert!(needs.runs(&b, false).is_empty());
        assert_eq!(needs.held().count(), 0);
    }

    #[test]
    fn what_is_needed_no_more_is_let_go() {
        let (a, db, cache) = (id("a"), id("db"), id("cache"));
        let mut needs = Needs::default();
        needs.plan(&a, std::slice::from_ref(&db));
        needs.runs(&a, true);
        assert_eq!(
            needs.plan(&a, std::slice::from_ref(&cache)),
            [(db.clone(), false)]
        );
        assert_eq!(needs.runs(&a, true), [(cache.clone(), true)]);
        assert_eq!(needs.plan(&a, &[]), [(cache.clone(), false)]);
        assert!(needs.dependents(&db).is_empty() && needs.dependents(&cache).is_empty());
    }

    #[test]
    fn the_gate_asks_once_and_only_before_the_first_instance() {
        let needs = [id("db")];
        let mut gate = NeedsGate::default();
        assert_eq!(gate.pass(&[], false), Ok(true));
        assert_eq!(gate.pass(&needs, true), Ok(true));
        assert_eq!(gate.pass(&needs, false), Err(needs.to_vec()));
        assert_eq!(gate.pass(&needs, false), Ok(false));
        assert!(gate.is_asked());
        gate = NeedsGate::Open;
        assert_eq!(gate.pass(&needs, false), Ok(true));
    }
}

use sluice_model::ServiceId;

use super::*;
use crate::rollout::{Rollout, RolloutState};

const DIGEST: u64 = 1;

fn percent(hundredths: u32) -> Percent {
    Percent::from_hundredths(hundredths).unwrap()
}

/// A service with revisions `r0`, `r1`, …
fn compiled(revisions: usize) -> CompiledService {
    use std::fmt::Write;
    let mut text = "services:\n- name: a\n  revisions:\n".to_owned();
    for n in 0..revisions {
        writeln!(text, "  - {{name: r{n}, endpoints: [127.0.0.1:9000]}}").unwrap();
    }
    let file = crate::config::SourceFile {
        path: "a.yaml".into(),
        text,
    };
    let loaded = crate::compile::load(&[file], &|_| None).unwrap();
    let id = ServiceId::parse("default", "a").unwrap();
    let service = loaded
        .snapshot
        .services()
        .into_iter()
        .find(|service| service.id == id)
        .unwrap();
    CompiledService {
        service: Arc::clone(service),
        plans: Box::default(),
        digest: DIGEST,
        declared: None,
    }
}

fn latest(hundredths: u32, tag: Option<&str>, revision: usize) -> DeclaredTarget {
    DeclaredTarget {
        revision,
        is_latest: true,
        percent: percent(hundredths),
        tag: tag.map(|tag| Tag::parse(tag).unwrap()),
    }
}

fn gated(own: Vec<DeclaredTarget>) -> Declared {
    Declared {
        rollout: Some(Arc::default()),
        own,
        ..Declared::default()
    }
}

fn rollout(candidate: &str, state: RolloutState, share: u32, ready: bool) -> Rollout {
    Rollout {
        state,
        share,
        ready,
        ..Rollout::new(candidate, 0)
    }
}

fn settled(revision: &str, rollout: Option<Rollout>) -> ServiceHistory {
    ServiceHistory {
        settled: Some(revision.to_owned()),
        rollout,
        ..ServiceHistory::default()
    }
}

/// The targets as `revision percent tag`.
fn targets(declared: &Declared, compiled: &CompiledService, history: &ServiceHistory) -> Vec<String> {
    let applied = declared.apply(compiled, history).unwrap();
    let targets = applied.service.main.split.targets().iter();
    let shown = targets.map(|target| {
        let tag = target.tag.as_ref().map_or("-", Tag::as_str);
        format!("{} {} {tag}", target.revision.name(), target.percent)
    });
    shown.collect()
}

#[test]
fn the_share_of_latest_is_divided_between_settled_and_candidate() {
    let service = compiled(2);
    let declared = gated(vec![
        latest(8_000, Some("new"), 1),
        DeclaredTarget {
            revision: 0,
            is_latest: false,
            percent: percent(2_000),
            tag: None,
        },
    ]);
    let at = |history: &ServiceHistory| targets(&declared, &service, history);
    // Not seen ready: nothing moves, the tag neither.
    assert_eq!(at(&settled("r0", None)), ["r0 100 new"]);
    let running = |share, ready| settled("r0", Some(rollout("r1", RolloutState::Running, share, ready)));
    assert_eq!(at(&running(0, false)), ["r0 100 new"]);
    assert_eq!(at(&running(0, true)), ["r0 100 -", "r1 0 new"]);
    assert_eq!(at(&running(2_500, true)), ["r0 80 -", "r1 20 new"]);
    assert_eq!(at(&running(10_000, true)), ["r0 20 -", "r1 80 new"]);
    assert_eq!(at(&settled("r1", None)), ["r1 80 new", "r0 20 -"]);
    let failed = settled("r0", Some(rollout("r1", RolloutState::Failed, 0, true)));
    assert_eq!(at(&failed), ["r0 100 -", "r1 0 new"]);
    // Without a gate the latest has it at once.
    let free = Declared {
        rollout: None,
        ..declared.clone()
    };
    assert_eq!(
        targets(&free, &service, &running(0, false)),
        ["r1 80 new", "r0 20 -"]
    );
}

#[test]
fn a_rollback_outweighs_a_rollout_while_files_stay() {
    let service = compiled(3);
    let declared = gated(vec![latest(10_000, None, 2)]);
    let mut history = settled("r1", Some(rollout("r2", RolloutState::Running, 5_000, true)));
    history.over = Some(crate::release::Override {
        declared: DIGEST,
        since: 0,
        pinned: Some("r0".to_owned()),
        paused: false,
    });
    assert_eq!(targets(&declared, &service, &history), ["r0 100 -"]);
    let is_paused = |history: &ServiceHistory| declared.apply(&service, history).unwrap().service.paused;
    assert!(!is_paused(&history));
    history.over.as_mut().unwrap().paused = true;
    assert!(is_paused(&history));
    let names = ["r0", "r1", "r2"];
    assert!(declared.advance(DIGEST, &names, &history, None).over.is_some());
    assert!(
        declared
            .advance(DIGEST + 1, &names, &history, None)
            .over
            .is_none()
    );
}

#[test]
fn a_pause_is_published_while_files_stay() {
    let service = compiled(1);
    let declared = Declared::of_published(&service.service);
    let mut history = ServiceHistory {
        over: Some(crate::release::Override {
            declared: DIGEST,
            since: 0,
            pinned: None,
            paused: true,
        }),
        ..ServiceHistory::default()
    };
    let is_paused = |history: &ServiceHistory| declared.apply(&service, history).unwrap().service.paused;
    assert!(is_paused(&history));
    history = declared.advance(DIGEST + 1, &["r0"], &history, None);
    assert!(!is_paused(&history) && history.is_trivial());
}

/// Rolled back from `r1` to `r0`, and then there is `r2`, which must not be rolled out from `r1`.
#[test]
fn a_newer_revision_is_rolled_out_from_the_one_that_a_rollback_chose() {
    let declared = gated(vec![latest(10_000, None, 1)]);
    let over = Some(crate::release::Override {
        declared: DIGEST,
        since: 0,
        pinned: Some("r0".to_owned()),
        paused: false,
    });
    let completed = settled("r1", Some(rollout("r1", RolloutState::Completed, 10_000, true)));
    let rolled_back = ServiceHistory { over, ..completed };
    let newer = declared.advance(DIGEST + 1, &["r0", "r1", "r2"], &rolled_back, None);
    assert_eq!((newer.settled.as_deref(), newer.over), (Some("r0"), None));
    // Without a newer one the files are followed again.
    let same = declared.advance(DIGEST + 1, &["r0", "r1"], &rolled_back, None);
    assert_eq!((same.settled.as_deref(), same.over), (Some("r1"), None));
    // The one that was chosen is listed no more.
    let gone = declared.advance(DIGEST + 1, &["r1", "r2"], &rolled_back, None);
    assert_eq!(gone.settled.as_deref(), Some("r1"));
}

#[test]
fn histories_follow_the_revisions_that_files_list() {
    let declared = gated(vec![latest(10_000, None, 0)]);
    let empty = ServiceHistory::default();
    let advance = |names: &[&str], history: &ServiceHistory| declared.advance(DIGEST, names, history, None);
    let first = advance(&["r0"], &empty);
    assert_eq!(first, settled("r0", None));
    // A second one takes nothing by itself.
    assert_eq!(advance(&["r0", "r1"], &first), first);
    // Without the settled one the latest has all.
    assert_eq!(advance(&["r1"], &first), settled("r1", None));
    // A rollout to a revision that is gone is over.
    let running = settled("r0", Some(rollout("r1", RolloutState::Running, 100, true)));
    assert_eq!(advance(&["r0"], &running), first);
    let free = Declared::default();
    assert!(free.advance(DIGEST, &["r0", "r1"], &running, None).is_trivial());
}

#[test]
fn the_first_rollout_begins_at_what_has_the_traffic() {
    let declared = gated(vec![latest(10_000, None, 1)]);
    let empty = ServiceHistory::default();
    // `rollout:` and the new revision came in one change.
    let first = declared.advance(DIGEST, &["r0", "r1"], &empty, Some("r0"));
    assert_eq!(first, settled("r0", None));
    let replaced = declared.advance(DIGEST, &["r1"], &empty, Some("r0"));
    assert_eq!(replaced, settled("r1", None));
}

#[test]
fn a_revision_that_failed_inherits_nothing() {
    let declared = gated(vec![latest(10_000, None, 2)]);
    let failed = settled("r1", Some(rollout("r2", RolloutState::Failed, 0, true)));
    let without = declared.advance(DIGEST, &["r0", "r2"], &failed, None);
    assert_eq!(without, settled("r0", failed.rollout.clone()));
    // There is nothing else.
    assert_eq!(
        declared.advance(DIGEST, &["r2"], &failed, None),
        settled("r2", None)
    );
}

#[test]
fn a_rollback_is_the_base_of_a_newer_revision_and_of_nothing_else() {
    let declared = gated(vec![latest(10_000, None, 2)]);
    let names = ["r0", "r1", "r2"];
    let pinned = |rollout: Option<Rollout>, settled_at: &str| {
        let mut history = settled(settled_at, rollout);
        history.over = Some(crate::release::Override {
            declared: DIGEST,
            since: 0,
            pinned: Some("r0".to_owned()),
            paused: false,
        });
        history
    };
    let changed = |history: &ServiceHistory| declared.advance(DIGEST + 1, &names, history, None).settled;
    // Settled on the latest: another limit of it ends the rollback.
    assert_eq!(changed(&pinned(None, "r2")).as_deref(), Some("r2"));
    // The latest failed before: it is none that is new.
    let failed = rollout("r2", RolloutState::Failed, 0, true);
    assert_eq!(changed(&pinned(Some(failed), "r1")).as_deref(), Some("r1"));
    // The latest is new.
    assert_eq!(changed(&pinned(None, "r1")).as_deref(), Some("r0"));
}

#[test]
fn who_takes_part_in_a_rollout_is_reached() {
    let service = compiled(3);
    let declared = gated(vec![latest(10_000, None, 2)]);
    let reached = |history| {
        let release = declared.release(&service, Arc::new(history));
        let names = release.reached.iter().map(|id| id.name().to_owned());
        names.collect::<Vec<_>>()
    };
    // The candidate has to become ready before it gets anything.
    assert_eq!(reached(settled("r1", None)), ["r1", "r2"]);
    let ended = |state| settled("r1", Some(rollout("r2", state, 0, true)));
    assert_eq!(reached(ended(RolloutState::Aborted)), ["r1"]);
    assert_eq!(reached(ended(RolloutState::Paused)), ["r1", "r2"]);
    assert_eq!(reached(settled("r2", None)), ["r2"]);
}

/// What has no history declares what it has, so that a command can begin one.
#[test]
fn a_published_service_declares_its_traffic() {
    let service = compiled(1);
    let declared = Declared::of_published(&service.service);
    assert_eq!(
        targets(&declared, &service, &ServiceHistory::default()),
        ["r0 100 -"]
    );
    let release = declared.release(&service, Arc::default());
    assert_eq!((release.follows_latest, release.is_manifest), (10_000, false));
}

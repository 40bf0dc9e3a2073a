use std::sync::Arc;

use sluice_model::{Percent, RevisionId};

use super::*;
use crate::rollout::{Rollout, RolloutPolicy, RolloutState};

const NOW: u64 = 1_000;

/// A service whose revisions get the traffic at once.
fn release(revisions: &[&str]) -> Release {
    let ids = revisions
        .iter()
        .map(|name| RevisionId::parse("default", name).unwrap());
    let ids: Arc<[RevisionId]> = ids.collect();
    Release {
        history: Arc::default(),
        digest: 7,
        reached: Arc::clone(&ids),
        scaled: Arc::default(),
        revisions: ids,
        policy: None,
        is_manifest: false,
        follows_latest: Percent::WHOLE,
    }
}

/// A service with a rollout of its last revision from `settled`.
fn gated(revisions: &[&str], settled: &str, state: Option<RolloutState>) -> Release {
    let rollout = state.map(|state| Rollout {
        state,
        share: 1_000,
        ..Rollout::new(revisions.last().unwrap(), 1)
    });
    Release {
        policy: Some(Arc::new(RolloutPolicy::default())),
        history: Arc::new(ServiceHistory {
            settled: Some(settled.to_owned()),
            rollout,
            ..ServiceHistory::default()
        }),
        ..release(revisions)
    }
}

fn after(release: &Release, command: &Command) -> Release {
    let done = command.carry_out(release, NOW).unwrap();
    Release {
        history: Arc::new(done.history),
        ..release.clone()
    }
}

fn back(to: Option<&str>) -> Command {
    Command::Rollback(to.map(str::to_owned))
}

fn pinned(release: &Release) -> Option<&str> {
    release.history.pinned(release.digest)
}

fn refused(release: &Release, command: &Command) -> String {
    command.carry_out(release, NOW).unwrap_err().to_string()
}

#[test]
fn a_rollback_goes_to_the_revision_before_or_to_the_one_that_is_named() {
    let first = release(&["v1", "v2", "v3"]);
    let once = after(&first, &back(None));
    assert_eq!(pinned(&once), Some("v2"));
    assert_eq!(
        once.history.over.as_ref().map(|over| (over.since, over.declared)),
        Some((NOW, 7))
    );
    let twice = after(&once, &back(None));
    assert_eq!(pinned(&twice), Some("v1"));
    assert_eq!(refused(&twice, &back(None)), "there is no revision before v1");
    assert_eq!(refused(&twice, &back(Some("v1"))), "v1 has the traffic already");
    // What has the traffic without an override needs none.
    let forth = after(&twice, &back(Some("v3")));
    assert!(forth.history.is_trivial());
    assert_eq!(refused(&first, &back(Some("v3"))), "v3 has the traffic already");
}

#[test]
fn what_is_named_has_to_exist_and_something_has_to_follow_the_latest_revision() {
    let service = release(&["greeter-v1", "greeter-v2"]);
    assert_eq!(
        refused(&service, &back(Some("greter-v1"))),
        "there is no revision 'greter-v1': did you mean 'greeter-v1'?"
    );
    assert_eq!(
        refused(&service, &back(Some("x"))),
        "there is no revision 'x': there are greeter-v1, greeter-v2"
    );
    let split = Release {
        follows_latest: 0,
        ..service
    };
    assert!(refused(&split, &back(None)).contains("latestRevision"));
    assert_eq!(
        refused(&release(&["v1"]), &back(None)),
        "there is no revision before v1"
    );
}

#[test]
fn a_rollback_aborts_an_open_rollout() {
    for state in [RolloutState::Running, RolloutState::Paused] {
        let open = gated(&["v1", "v2", "v3"], "v2", Some(state));
        let done = back(None).carry_out(&open, NOW).unwrap();
        let rollout = done.history.rollout.as_ref().unwrap();
        assert_eq!((rollout.state, rollout.share), (RolloutState::Aborted, 0));
        assert_eq!(
            done.history.over, None,
            "the settled revision has the rest anyway"
        );
        assert_eq!(
            done.said,
            "v2 has the traffic of latestRevision, and the rollout of v3 is aborted"
        );
        let further = after(&open, &back(Some("v1")));
        assert_eq!(pinned(&further), Some("v1"));
        assert_eq!(
            further.history.rollout.as_ref().unwrap().state,
            RolloutState::Aborted
        );
        assert!(refused(&open, &back(Some("v3"))).contains("promote"));
    }
    let completed = gated(&["v1", "v2"], "v2", Some(RolloutState::Completed));
    let back = after(&completed, &back(None));
    assert_eq!(pinned(&back), Some("v1"));
    assert_eq!(
        back.history.rollout, completed.history.rollout,
        "what is over stays as it was"
    );
}

#[test]
fn a_pause_and_a_rollback_are_independent() {
    let paused = after(&release(&["v1", "v2"]), &Command::Pause);
    assert!(paused.history.is_paused(paused.digest));
    assert_eq!(refused(&paused, &Command::Pause), "the service is paused already");
    let both = after(&paused, &back(None));
    assert!(both.history.is_paused(both.digest) && pinned(&both) == Some("v1"));
    let resumed = after(&both, &Command::Resume);
    assert!(!resumed.history.is_paused(resumed.digest) && pinned(&resumed) == Some("v1"));
    assert_eq!(refused(&resumed, &Command::Resume), "the service is not paused");
    assert!(after(&paused, &Command::Resume).history.is_trivial());
    // What was overridden of other files is over.
    let changed = Release { digest: 8, ..both };
    assert!(!changed.history.is_paused(8) && pinned(&changed).is_none());
    assert_eq!(refused(&changed, &Command::Resume), "the service is not paused");
}

#[test]
fn commands_for_rollouts_say_what_they_did_or_why_not() {
    let open = gated(&["v1", "v2"], "v1", Some(RolloutState::Running));
    let said = |command: Command| command.carry_out(&open, NOW).map(|done| done.said);
    assert_eq!(
        said(Command::PauseRollout).unwrap(),
        "the rollout of v2 is paused where it is"
    );
    assert_eq!(said(Command::Promote).unwrap(), "v2 has all of the share");
    assert!(said(Command::Abort).unwrap().contains("aborted"));
    assert!(said(Command::ResumeRollout).is_err() && said(Command::Retry).is_err());
    let none = gated(&["v1"], "v1", None);
    for command in [
        Command::PauseRollout,
        Command::ResumeRollout,
        Command::Promote,
        Command::Abort,
        Command::Retry,
    ] {
        assert_eq!(refused(&none, &command), "there is no rollout");
    }
}

//! What operators do with a rollout by hand: pure changes of a service's history.

use super::{Rollout, RolloutState, engine};
use crate::release::{EditError, Release, ServiceHistory};

/// Stops the clock of a running rollout: the share stays. Traffic is judged on, and a candidate that is worse is rolled back.
/// `now` is in seconds since 1970, as in all commands.
///
/// # Errors
/// No rollout is running.
pub fn pause(release: &Release, now: u64) -> Result<ServiceHistory, EditError> {
    let mut rollout = present(release)?.clone();
    match rollout.state {
        RolloutState::Running => rollout.enter(RolloutState::Paused, now, None),
        RolloutState::Paused => return Err(EditError("the rollout is paused already".to_owned())),
        _ => return Err(ended(&rollout)),
    }
    Ok(with(release, rollout))
}

/// Lets a paused rollout go on.
///
/// # Errors
/// No rollout is paused.
pub fn resume(release: &Release, now: u64) -> Result<ServiceHistory, EditError> {
    let mut rollout = present(release)?.clone();
    match rollout.state {
        RolloutState::Paused => rollout.enter(RolloutState::Running, now, None),
        RolloutState::Running => return Err(EditError("the rollout is not paused".to_owned())),
        _ => return Err(ended(&rollout)),
    }
    Ok(with(release, rollout))
}

/// Gives the candidate all of the share at once, whatever gate and judge say; also one that failed or was aborted.
///
/// # Errors
/// The latest revision has all of the share, or a rollback pins another one.
pub fn promote(release: &Release, now: u64) -> Result<ServiceHistory, EditError> {
    pinned(release)?;
    let mut rollout = match present(release) {
        Ok(rollout) if rollout.state != RolloutState::Completed => rollout.clone(),
        Ok(rollout) => return Err(ended(rollout)),
        Err(none) => match engine::wanted(release) {
            Some(candidate) => Rollout::new(candidate, now),
            None => return Err(none),
        },
    };
    rollout.ready = true;
    rollout.enter(
        RolloutState::Completed,
        now,
        Some("promoted by command".to_owned()),
    );
    let mut history = with(release, rollout);
    history.settled = history.rollout.as_ref().map(|rollout| rollout.candidate.clone());
    Ok(history)
}

/// Gives the settled revision all of the share at once.
///
/// # Errors
/// No rollout is open.
pub fn abort(release: &Release, now: u64) -> Result<ServiceHistory, EditError> {
    let mut rollout = present(release)?.clone();
    if !rollout.state.is_open() {
        return Err(ended(&rollout));
    }
    rollout.enter(RolloutState::Aborted, now, Some("aborted by command".to_owned()));
    Ok(with(release, rollout))
}

/// Begins a rollout that failed or was aborted once more, from the first step and without the old evidence.
///
/// # Errors
/// No rollout failed or was aborted.
pub fn retry(release: &Release, now: u64) -> Result<ServiceHistory, EditError> {
    pinned(release)?;
    let rollout = present(release)?;
    match rollout.state {
        RolloutState::Failed | RolloutState::Aborted => {
            Ok(with(release, Rollout::new(&rollout.candidate, now)))
        }
        RolloutState::Completed => Err(ended(rollout)),
        RolloutState::Running | RolloutState::Paused => {
            Err(EditError("the rollout is still open: abort it first".to_owned()))
        }
    }
}

/// The rollout of the latest revision.
fn present(release: &Release) -> Result<&Rollout, EditError> {
    let rollout = release.history.rollout.as_ref();
    let latest = release.revisions.last();
    rollout
        .filter(|rollout| latest.is_some_and(|latest| latest.name() == rollout.candidate))
        .ok_or_else(|| EditError("there is no rollout".to_owned()))
}

fn pinned(release: &Release) -> Result<(), EditError> {
    match release.history.pinned(release.digest) {
        Some(pinned) => Err(EditError(format!(
            "a rollback pins {pinned}: it ends when the files change the service"
        ))),
        None => Ok(()),
    }
}

fn ended(rollout: &Rollout) -> EditError {
    EditError(format!(
        "the rollout of {} is {}",
        rollout.candidate,
        rollout.state.as_str()
    ))
}

fn with(release: &Release, rollout: Rollout) -> ServiceHistory {
    ServiceHistory {
        rollout: Some(rollout),
        ..(*release.history).clone()
    }
}

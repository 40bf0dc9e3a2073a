//! What operators say about a service by hand: pure changes of its history.

use super::edits::{EditError, Release};
use super::history::{Override, ServiceHistory};
use crate::config::did_you_mean;
use crate::rollout::command;

/// A command of an operator for one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Gives another revision the traffic of all `latestRevision` targets; `None`: the one before.
    Rollback(Option<String>),
    /// Holds the requests to the service.
    Pause,
    /// Lets them go on.
    Resume,
    /// Stops the clock of a rollout.
    PauseRollout,
    /// Lets it go on.
    ResumeRollout,
    /// Gives the newer revision all of the share.
    Promote,
    /// Gives the settled revision all of the share.
    Abort,
    /// Begins a failed or aborted rollout once more.
    Retry,
}

/// What a command did.
#[derive(Debug, Clone, PartialEq)]
pub struct Done {
    /// The service's history from now on.
    pub history: ServiceHistory,
    /// What happened, for the operator: a sentence whose subject is the service.
    pub said: String,
}

impl Command {
    /// Carries the command out on a release; `now` is in seconds since 1970.
    ///
    /// # Errors
    /// There is nothing to act on, or the command names what does not exist: why, and what helps.
    pub fn carry_out(&self, release: &Release, now: u64) -> Result<Done, EditError> {
        let rollout = |change: fn(&Release, u64) -> Result<ServiceHistory, EditError>, said: &str| {
            let history = change(release, now)?;
            let candidate = history.rollout.as_ref().map(|rollout| rollout.candidate.as_str());
            let said = said.replace("{}", candidate.unwrap_or_default());
            Ok(Done { history, said })
        };
        match self {
            Self::Rollback(to) => rollback(release, to.as_deref(), now),
            Self::Pause => pause(release, now),
            Self::Resume => resume(release),
            Self::PauseRollout => rollout(command::pause, "the rollout of {} is paused where it is"),
            Self::ResumeRollout => rollout(command::resume, "the rollout of {} goes on"),
            Self::Promote => rollout(command::promote, "{} has all of the share"),
            Self::Abort => rollout(
                command::abort,
                "the rollout of {} is aborted: it has no share any more",
            ),
            Self::Retry => rollout(command::retry, "the rollout of {} begins once more"),
        }
    }
}

fn rollback(release: &Release, to: Option<&str>, now: u64) -> Result<Done, EditError> {
    let names: Vec<&str> = release.revisions.iter().map(|id| id.name()).collect();
    if let Some(to) = to.filter(|to| !names.contains(to)) {
        let hint = did_you_mean(to, names.iter().copied())
            .map(|known| format!("did you mean '{known}'?"))
            .unwrap_or_else(|| format!("there are {}", names.join(", ")));
        return Err(EditError(format!("there is no revision '{to}': {hint}")));
    }
    let latest = *names
        .last()
        .ok_or_else(|| EditError("there is no revision".to_owned()))?;
    if release.follows_latest == 0 {
        return Err(EditError(
            "no share follows latestRevision: change the percentages of `traffic` in the files".to_owned(),
        ));
    }
    let mut history = (*release.history).clone();
    let natural = without_override(release).unwrap_or(latest).to_owned();
    let open = history.rollout.as_ref().filter(|rollout| rollout.state.is_open());
    let open = open.map(|rollout| rollout.candidate.clone());
    let pinned = history.pinned(release.digest).map(str::to_owned);
    let present = pinned.clone().unwrap_or_else(|| natural.clone());
    let target = match (to, &open, &pinned) {
        (Some(to), ..) => to.to_owned(),
        // Back from what is on its way.
        (None, Some(_), None) => natural.clone(),
        (None, ..) => {
            let at = names.iter().position(|name| *name == present);
            let before = at.and_then(|at| names.get(at.checked_sub(1)?));
            let none = || EditError(format!("there is no revision before {present}"));
            (*before.ok_or_else(none)?).to_owned()
        }
    };
    let mut told = String::new();
    match open {
        Some(candidate) if candidate == target => {
            return Err(EditError(format!(
                "{candidate} is being rolled out: `rollout promote` gives it all of the share"
            )));
        }
        Some(candidate) => {
            history = command::abort(release, now)?;
            told = format!(", and the rollout of {candidate} is aborted");
            if let Some(rollout) = &mut history.rollout {
                rollout.reason = Some("rolled back by command".to_owned());
            }
        }
        None if target == present => {
            return Err(EditError(format!("{target} has the traffic already")));
        }
        None => {}
    }
    let is_natural = target == natural;
    let over = Override {
        pinned: (!is_natural).then(|| target.clone()),
        ..present_override(release)
    };
    history.over = over.at(now);
    let instead = match present == target {
        true => String::new(),
        false => format!(" in place of {present}"),
    };
    Ok(Done {
        history,
        said: format!("{target} has the traffic of latestRevision{instead}{told}"),
    })
}

fn pause(release: &Release, now: u64) -> Result<Done, EditError> {
    let over = present_override(release);
    if over.paused {
        return Err(EditError("the service is paused already".to_owned()));
    }
    let mut history = (*release.history).clone();
    history.over = Override { paused: true, ..over }.at(now);
    let said = "the service is paused: requests wait, none longer than its queue's timeout".to_owned();
    Ok(Done { history, said })
}

fn resume(release: &Release) -> Result<Done, EditError> {
    let over = present_override(release);
    if !over.paused {
        return Err(EditError("the service is not paused".to_owned()));
    }
    let mut history = (*release.history).clone();
    let since = over.since;
    history.over = Override {
        paused: false,
        ..over
    }
    .at(since);
    let said = "the service goes on: requests that waited are sent on".to_owned();
    Ok(Done { history, said })
}

/// The revision that has the share of `latestRevision` targets while nothing is overridden, a candidate's part apart; `None`
/// without revisions.
pub fn without_override(release: &Release) -> Option<&str> {
    let is_gated = release.policy.is_some() || release.is_manifest;
    let settled = release.history.settled.as_deref().filter(|_| is_gated);
    let listed = settled.filter(|settled| release.revisions.iter().any(|id| id.name() == *settled));
    listed.or_else(|| Some(release.revisions.last()?.name()))
}

/// What is overridden now; nothing, if nothing is.
fn present_override(release: &Release) -> Override {
    let over = release.history.in_force(release.digest);
    over.cloned().unwrap_or(Override {
        declared: release.digest,
        since: 0,
        pinned: None,
        paused: false,
    })
}

impl Override {
    /// The override as of this time; `None` where it overrides nothing.
    fn at(self, since: u64) -> Option<Self> {
        let says = self.paused || self.pinned.is_some();
        says.then_some(Self { since, ..self })
    }
}

#[cfg(test)]
#[path = "commands_tests.rs"]
mod tests;

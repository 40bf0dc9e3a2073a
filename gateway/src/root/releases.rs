//! Releases for the admin API, and its commands: between [`AdminState`](sluice_gateway::admin::AdminState) and the histories
//! of the control plane.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde_json::{Value, json};
use sluice_control::release::{Command, HistoryHandle, Release, differences, without_override};
use sluice_control::rollout::Tally;
use sluice_gateway::admin::{CommandError, ReleaseView, RolloutCommand, ServiceCommand};
use sluice_gateway::observe::wall_clock;
use sluice_gateway::registry::Snapshot;
use sluice_model::{Percent, ServiceId};

/// Carries a command out, as [`AdminState::command`](sluice_gateway::admin::AdminState::command).
pub(super) async fn command(
    histories: &HistoryHandle,
    table: &Snapshot,
    service: &ServiceId,
    command: ServiceCommand,
) -> Result<String, CommandError> {
    if table.service(service).is_none() {
        return Err(CommandError::NoService(no_service(table, service)));
    }
    let is_override = matches!(command, ServiceCommand::Rollback(_) | ServiceCommand::Pause);
    let is_lost = is_override && table.settings().state_directory.is_none();
    let command = match command {
        ServiceCommand::Rollback(to) => Command::Rollback(to),
        ServiceCommand::Pause => Command::Pause,
        ServiceCommand::Resume => Command::Resume,
        ServiceCommand::Rollout(RolloutCommand::Pause) => Command::PauseRollout,
        ServiceCommand::Rollout(RolloutCommand::Resume) => Command::ResumeRollout,
        ServiceCommand::Rollout(RolloutCommand::Promote) => Command::Promote,
        ServiceCommand::Rollout(RolloutCommand::Abort) => Command::Abort,
        ServiceCommand::Rollout(RolloutCommand::Retry) => Command::Retry,
    };
    let said = Arc::new(Mutex::new(String::new()));
    let saying = Arc::clone(&said);
    let edit = histories.edit(service, move |release| {
        let done = command.carry_out(release, seconds(wall_clock()))?;
        *saying.lock() = done.said;
        Ok(done.history)
    });
    match edit.await {
        Ok(()) => {
            let mut said = std::mem::take(&mut *said.lock());
            if is_lost {
                said.push_str("; without state.directory a restart ends this");
            }
            Ok(said)
        }
        Err(error) => Err(CommandError::Refused(error.to_string())),
    }
}

fn no_service(table: &Snapshot, service: &ServiceId) -> String {
    let services = table.services();
    let elsewhere = services.iter().find(|one| one.id.name() == service.name());
    match elsewhere {
        Some(other) => format!("there is no service '{service}': did you mean '{}'?", other.id),
        None => format!("there is no service '{service}': `sluice status` lists them"),
    }
}

/// What a service is besides what files say; `None` for a service that is just that.
pub(super) fn view(histories: &HistoryHandle, service: &ServiceId) -> Option<ReleaseView> {
    let release = histories.release(service)?;
    let kept = release.history.revisions.iter().map(|kept| {
        let times = json!({"created": time(kept.created), "last_active": time(kept.last_active)});
        (kept.name.clone(), times)
    });
    let view = ReleaseView {
        rollout: rollout(&release),
        overridden: overridden(&release),
        revisions: kept.collect(),
    };
    (view != ReleaseView::default()).then_some(view)
}

/// As [`AdminState::differences`](sluice_gateway::admin::AdminState::differences).
pub(super) fn template_differences(
    histories: &HistoryHandle,
    service: &ServiceId,
) -> BTreeMap<String, Vec<String>> {
    let release = histories.release(service);
    release.map_or_else(BTreeMap::new, |release| differences(&release.history.revisions))
}

fn rollout(release: &Release) -> Value {
    let Some(rollout) = &release.history.rollout else {
        return Value::Null;
    };
    let evidence = &rollout.evidence;
    let tally = |tally: Tally| json!({"requests": tally.requests, "errors": tally.hits});
    // Of one that has ended, the revision that it was rolled out from is not known any more.
    let base = release
        .history
        .settled
        .as_ref()
        .filter(|settled| **settled != rollout.candidate);
    json!({
        "state": rollout.state.as_str(),
        "percent": rollout.percent(),
        "step": rollout.step,
        "reason": rollout.reason,
        "since": time(rollout.since),
        "started": time(rollout.started),
        "candidate": rollout.candidate,
        "base": base,
        "judgement": {
            "candidate": tally(evidence.candidate),
            "base": tally(evidence.base),
            "in_step": evidence.in_step,
            "unjudged_steps": rollout.unjudged,
            // Rounded: who follows the changes does not hear of every request.
            "suspicion": release.policy.as_ref().map(|policy| (rollout.suspicion(policy) * 100.0).round() / 100.0),
        },
    })
}

fn overridden(release: &Release) -> Value {
    let Some(over) = release.history.in_force(release.digest) else {
        return Value::Null;
    };
    let latest = release.revisions.last().map(|id| id.name());
    let share = f64::from(release.follows_latest) / 100.0;
    let permanent = over.pinned.as_ref().map(|pinned| match release.follows_latest {
        Percent::WHOLE => format!("in the files, `traffic: [{{revisionName: {pinned}, percent: 100}}]`"),
        _ => {
            format!("in the files, `revisionName: {pinned}` in place of `latestRevision: true` in `traffic`")
        }
    });
    json!({
        "pinned": over.pinned,
        "paused": over.paused,
        "since": time(over.since),
        "files": {
            "latestRevision": latest,
            "percent": share,
            "serving": without_override(release),
        },
        "permanent": permanent,
    })
}

/// A time in seconds since 1970 as RFC 3339; `null` for 0, which is no time.
fn time(seconds: u64) -> Value {
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    match at.filter(|_| seconds > 0) {
        Some(at) => json!(humantime::format_rfc3339_seconds(at).to_string()),
        None => Value::Null,
    }
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

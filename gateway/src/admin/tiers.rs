//! The tiers of a revision, and what it needs, as admin API, metrics and `sluice status` show them.

use serde_json::{Value, json};
use sluice_model::{RevisionId, RevisionSpec, RevisionStatus};

use super::AdminState;
use crate::observe::{EndpointCondition, EndpointLoad};
use crate::registry::Snapshot;

/// The control plane's status of a revision. With tiers it is that of all of them: numbers are sums, the texts those of
/// the last tier that has some.
pub(super) fn status(state: &dyn AdminState, table: &Snapshot, id: &RevisionId) -> Option<RevisionStatus> {
    let spec = spec(table, id);
    let Some(tiers) = spec.map(RevisionSpec::tiers).filter(|tiers| !tiers.is_empty()) else {
        return state.status().revision_status(id);
    };
    let mut whole: Option<RevisionStatus> = None;
    for tier in tiers {
        let Some(one) = state.status().revision_status(&id.of_tier(&tier.name)) else {
            continue;
        };
        let whole = whole.get_or_insert_with(RevisionStatus::default);
        let told = |text: String| format!("{}: {text}", tier.name);
        whole.desired += one.desired;
        whole.starts += one.starts;
        whole.last_decision = one.last_decision.map(told).or_else(|| whole.last_decision.take());
        whole.last_failure = one.last_failure.map(told).or_else(|| whole.last_failure.take());
        if !one.waits_for.is_empty() {
            whole.waits_for = one.waits_for;
        }
        if !one.held_by.is_empty() {
            whole.held_by = one.held_by;
        }
    }
    whole
}

/// The tiers of a revision, `null` for one without: `[{name, state, ready, desired, in_flight, last_decision,
/// last_failure}]`. `state` is `serving` for the last tier with a ready endpoint, `resting` for those before it that
/// are ready, `starting` for one that is not, and `zero` for one without endpoints.
pub(super) fn tiers(
    state: &dyn AdminState,
    table: &Snapshot,
    id: &RevisionId,
    endpoints: &[EndpointLoad],
) -> Value {
    let tiers = spec(table, id).map(RevisionSpec::tiers).unwrap_or_default();
    if tiers.is_empty() {
        return Value::Null;
    }
    let of = |index: usize| endpoints.iter().filter(move |e| usize::from(e.tier) == index);
    let ready = |index: usize| {
        of(index)
            .filter(|e| e.condition == EndpointCondition::Ready)
            .count()
    };
    let serving = (0..tiers.len()).rev().find(|index| ready(*index) > 0);
    let tiers = tiers.iter().enumerate().map(|(index, tier)| {
        let status = state.status().revision_status(&id.of_tier(&tier.name));
        let condition = match serving {
            Some(serving) if serving == index => "serving",
            _ if ready(index) > 0 => "resting",
            _ if of(index).next().is_some() => "starting",
            _ => "zero",
        };
        json!({
            "name": tier.name.as_str(),
            "state": condition,
            "ready": ready(index),
            "desired": status.as_ref().map(|status| status.desired),
            "in_flight": of(index).map(|e| e.in_flight).sum::<u32>(),
            "last_decision": status.as_ref().and_then(|status| status.last_decision.clone()),
            "last_failure": status.as_ref().and_then(|status| status.last_failure.clone()),
        })
    });
    tiers.collect()
}

/// What a revision needs, whether that is waited for now, and for whom it is held above zero itself.
pub(super) fn needs(
    table: &Snapshot,
    id: &RevisionId,
    status: Option<&RevisionStatus>,
) -> [(&'static str, Value); 3] {
    let names = |ids: &[RevisionId]| -> Value { ids.iter().map(ToString::to_string).collect() };
    [
        (
            "needs",
            names(spec(table, id).map_or(&[][..], |spec| &spec.needs)),
        ),
        (
            "waits_for",
            names(status.map_or(&[][..], |status| &status.waits_for)),
        ),
        ("held_by", names(status.map_or(&[][..], |status| &status.held_by))),
    ]
}

fn spec<'s>(table: &'s Snapshot, id: &RevisionId) -> Option<&'s RevisionSpec> {
    let (entry, slot) = table.revision(id)?;
    entry.service.revisions.get(slot).map(|spec| &**spec)
}

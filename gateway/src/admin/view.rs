//! What `/api/events` and the dashboard show, as JSON: the gateway at one moment, and what changed since another one.
//!
//! **Bounds:** at most [`MAX_REVISIONS`] revisions with their services, those in use first; of each at most
//! [`MAX_ITEMS`] hosts, routes, tags and endpoints, and as many mistakes of the configuration. What is left out is
//! counted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use sluice_model::{RevisionId, Service};

use super::AdminState;
use super::api::{self, Row, redacted_token};
use crate::observe::{Decision, History, PHASES, Point, RevisionLoad, STEP};

/// Revisions shown.
pub(super) const MAX_REVISIONS: usize = 1_000;

/// Items of one list of a service or revision.
const MAX_ITEMS: usize = 50;

/// Requests and errors a second, by revision; `None` are those that found none.
pub(super) type Rates = HashMap<Option<RevisionId>, (f64, f64)>;

/// The gateway at one moment. Services and revisions by id, `namespace/name`.
#[derive(Debug, Default, PartialEq)]
pub(super) struct View {
    gateway: Value,
    config: Value,
    services: BTreeMap<String, Value>,
    revisions: BTreeMap<String, Value>,
}

impl View {
    /// Takes time in proportion to the number of revisions. `rates` are absent where nobody watched before.
    pub(super) fn of(state: &dyn AdminState, history: &History, rates: Option<&Rates>) -> Self {
        let table = state.table();
        let loads = state.loads();
        let configured = table.revisions();
        let chosen = chosen(&loads, history, configured.iter().map(|spec| &spec.id));
        let by_id: HashMap<&RevisionId, &RevisionLoad> =
            loads.iter().map(|load| (&load.revision, load)).collect();
        let mut services = BTreeMap::new();
        let mut revisions = BTreeMap::new();
        for spec in configured.iter().filter(|spec| chosen.contains(&spec.id)) {
            let Some(entry) = table.service(&spec.service) else {
                continue;
            };
            let id = spec.service.to_string();
            services
                .entry(id)
                .or_insert_with(|| service(state, &entry.service));
            let row = Row::configured(&spec.id, &entry.service, by_id.get(&spec.id).copied());
            revisions.insert(spec.id.to_string(), revision(state, &row, rates));
        }
        for load in loads
            .iter()
            .filter(|load| load.leaving && chosen.contains(&load.revision))
        {
            let row = Row::leaving(load);
            revisions
                .entry(load.revision.to_string())
                .or_insert_with(|| revision(state, &row, rates));
        }
        let all = configured.len();
        Self {
            gateway: gateway(
                state,
                &loads,
                history,
                rates,
                (all, all.saturating_sub(revisions.len())),
            ),
            config: config(state.diagnostics()),
            services,
            revisions,
        }
    }

    /// Everything: the data of the event `snapshot`.
    pub(super) fn snapshot(&self, at: SystemTime, history: &History, decisions: &[Decision]) -> Value {
        let series = history.ids().map(|id| {
            let points = history.series(id).into_iter().flatten();
            let requests: Vec<u32> = points.map(|point| point.requests).collect();
            (id.to_string(), json!(requests))
        });
        json!({
            "at": seconds(at),
            "gateway": self.gateway,
            "config": self.config,
            "services": self.services,
            "revisions": self.revisions,
            "decisions": decisions.iter().map(decision).collect::<Vec<_>>(),
            "history": {
                "step": STEP.as_secs(),
                "until": history.last().map(until),
                "requests": series.collect::<Map<_, _>>(),
            },
        })
    }

    /// What has changed since `before`, without the time: empty when nothing has. A service or revision that is no
    /// longer shown is `null`.
    pub(super) fn since(&self, before: &Self) -> Map<String, Value> {
        let mut changed = Map::new();
        for (key, now, before) in [
            ("gateway", &self.gateway, &before.gateway),
            ("config", &self.config, &before.config),
        ] {
            if now != before {
                changed.insert(key.to_owned(), now.clone());
            }
        }
        for (key, now, before) in [
            ("services", &self.services, &before.services),
            ("revisions", &self.revisions, &before.revisions),
        ] {
            let gone = before.keys().filter(|id| !now.contains_key(*id));
            let gone = gone.map(|id| (id.clone(), Value::Null));
            let news = now.iter().filter(|(id, value)| before.get(*id) != Some(value));
            let news = news.map(|(id, value)| (id.clone(), value.clone()));
            let all: Map<String, Value> = gone.chain(news).collect();
            if !all.is_empty() {
                changed.insert(key.to_owned(), Value::Object(all));
            }
        }
        changed
    }
}

/// The step that was recorded last, for the event `change`: the requests of each revision in it, 0 left out.
pub(super) fn step(history: &History) -> Value {
    let requests = history.ids().map(|id| (id, history.latest(id)));
    let requests = requests.filter(|(_, requests)| *requests > 0);
    json!({
        "until": history.last().map(until),
        "requests": requests.map(|(id, n)| (id.to_string(), json!(n))).collect::<Map<_, _>>(),
    })
}

/// `/api/history`: `{step, until, revision, requests, errors, median_ms, p99_ms, in_flight, queued, cold, phases_ms:
/// {queued, …}}`: a list each, of one hour, the oldest step first. Durations are `null` in steps without any.
/// `revision` is `null` for the whole gateway. `None`: a revision without traffic in this hour.
pub(super) fn hour(history: &History, revision: Option<&RevisionId>) -> Option<Value> {
    let points: Vec<&Point> = match revision {
        None => history.total().collect(),
        Some(id) => history.series(id)?.collect(),
    };
    let list = |of: fn(&Point) -> Value| points.iter().map(|point| of(point)).collect::<Vec<_>>();
    let phases = PHASES.iter().enumerate().map(|(nth, name)| {
        let phase = points.iter().map(|p| millis(p.phases[nth], p.cold));
        ((*name).to_owned(), phase.collect())
    });
    Some(json!({
        "step": STEP.as_secs(),
        "until": history.last().map(until),
        "revision": revision.map(ToString::to_string),
        "requests": list(|p| json!(p.requests)),
        "errors": list(|p| json!(p.errors)),
        "median_ms": list(|p| millis(p.median, p.median)),
        "p99_ms": list(|p| millis(p.p99, p.p99)),
        "in_flight": list(|p| json!(p.in_flight)),
        "queued": list(|p| json!(p.queued)),
        "cold": list(|p| json!(p.cold)),
        "phases_ms": phases.collect::<Map<_, _>>(),
    }))
}

/// A decision, as in `decisions`.
pub(super) fn decision(decision: &Decision) -> Value {
    json!({
        "number": decision.number,
        "at": seconds(decision.at),
        "revision": decision.revision.to_string(),
        "text": decision.text,
    })
}

/// Seconds since 1970, to the millisecond.
pub(super) fn seconds(at: SystemTime) -> Value {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    // Exact up to 2^53 milliseconds.
    json!(since.as_millis() as f64 / 1_000.0)
}

fn until(step: u64) -> u64 {
    (step + 1) * STEP.as_secs()
}

fn millis(micros: u32, of: u32) -> Value {
    match of {
        0 => Value::Null,
        _ => json!(f64::from(micros) / 1_000.0),
    }
}

/// The revisions to show: those in use, then others, by name.
fn chosen<'s>(
    loads: &'s [RevisionLoad],
    history: &'s History,
    configured: impl Iterator<Item = &'s RevisionId>,
) -> BTreeSet<RevisionId> {
    let used = loads
        .iter()
        .filter(|load| load.in_flight > 0 || load.queued > 0 || load.leaving);
    let known: BTreeSet<&RevisionId> = loads.iter().map(|load| &load.revision).collect();
    let with_traffic = history.ids().filter(|id| known.contains(id));
    let mut chosen: BTreeSet<RevisionId> = used
        .map(|load| &load.revision)
        .take(MAX_REVISIONS)
        .cloned()
        .collect();
    for id in with_traffic {
        if chosen.len() < MAX_REVISIONS {
            chosen.insert(id.clone());
        }
    }
    if chosen.len() < MAX_REVISIONS {
        let mut others: Vec<&RevisionId> = configured.filter(|id| !chosen.contains(*id)).collect();
        others.sort_unstable();
        let room = MAX_REVISIONS - chosen.len();
        let others: Vec<RevisionId> = others.into_iter().take(room).cloned().collect();
        chosen.extend(others);
    }
    chosen
}

fn gateway(
    state: &dyn AdminState,
    loads: &[RevisionLoad],
    history: &History,
    rates: Option<&Rates>,
    (all, omitted): (usize, usize),
) -> Value {
    let table = state.table();
    let bound = state.bound();
    let sum = |of: fn(&RevisionLoad) -> u32| loads.iter().map(|load| u64::from(of(load))).sum::<u64>();
    let total = rates.map(|rates| {
        rates.values().fold((0.0, 0.0), |(requests, errors), one| {
            (requests + one.0, errors + one.1)
        })
    });
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "startedAt": seconds(state.started()),
        "generation": table.generation.0,
        "notReady": state.ready().err(),
        "token": redacted_token(&table.settings().admin),
        "listeners": bound.listeners.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "revisions": all,
        "omitted": omitted,
        "withoutHistory": history.left_out(),
        "in_flight": sum(|load| load.in_flight),
        "queued": sum(|load| load.queued),
        "ready": sum(|load| load.ready),
        "rate": total.map(|total| rounded(total.0)),
        "error_rate": total.map(|total| rounded(total.1)),
    })
}

/// The mistakes, bounded.
fn config(mut diagnostics: Value) -> Value {
    if let Some(items) = diagnostics["items"].as_array_mut() {
        items.truncate(MAX_ITEMS);
    }
    diagnostics
}

fn service(state: &dyn AdminState, service: &Service) -> Value {
    let mut value = api::service(service);
    let release = state.release(&service.id).unwrap_or_default();
    value["rollout"] = release.rollout;
    value["override"] = release.overridden;
    let hosts: Vec<String> = service
        .hosts
        .iter()
        .map(|claim| claim.pattern.to_string())
        .collect();
    value["hosts"] = json!(hosts);
    for list in ["hosts", "routes", "traffic", "furtherRules"] {
        bound_list(&mut value, list);
    }
    value
}

fn revision(state: &dyn AdminState, row: &Row<'_>, rates: Option<&Rates>) -> Value {
    let mut value = row.value(state);
    for list in ["endpoints", "tags"] {
        bound_list(&mut value, list);
    }
    let rate = rates.map(|rates| rates.get(&Some(row.id.clone())).copied().unwrap_or_default());
    value["rate"] = json!(rate.map(|rate| rounded(rate.0)));
    value["error_rate"] = json!(rate.map(|rate| rounded(rate.1)));
    value
}

/// Cuts a list, and says by how much in `{list}Omitted`.
fn bound_list(value: &mut Value, list: &str) {
    let Some(items) = value[list].as_array_mut() else {
        return;
    };
    if let Some(more) = items.len().checked_sub(MAX_ITEMS + 1) {
        items.truncate(MAX_ITEMS);
        value[format!("{list}Omitted")] = json!(more + 1);
    }
}

fn rounded(rate: f64) -> f64 {
    (rate * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{FakeGateway, revision as id};
    use super::*;
    use crate::observe::{DurationCounts, RequestCounts};

    fn with_traffic(requests: u64) -> History {
        let mut history = History::default();
        let counts = RequestCounts {
            requests,
            ..RequestCounts::default()
        };
        let one = [(id("greeter-v1"), counts, DurationCounts::default)];
        history.record(100, RequestCounts::default(), one.into_iter());
        history
    }

    #[test]
    fn a_snapshot_and_its_changes_make_the_next_snapshot() {
        let state = FakeGateway::new();
        let history = with_traffic(3);
        let rates = Rates::from([(Some(id("greeter-v1")), (1.25, 0.0)), (None, (2.0, 1.0))]);
        let before = View::of(&state, &history, None);
        let after = View::of(&state, &history, Some(&rates));
        let snapshot = |view: &View| view.snapshot(UNIX_EPOCH, &history, &[]);
        let mut shown = snapshot(&before);
        assert_eq!(
            shown["services"]["default/greeter"]["traffic"][0]["percent"],
            66.67
        );
        assert_eq!(
            shown["services"]["default/greeter"]["hosts"][0],
            "greeter.default.localhost"
        );
        assert_eq!(shown["revisions"]["default/greeter-v1"]["in_flight"], 7);
        assert_eq!(shown["revisions"]["default/greeter-v1"]["rate"], Value::Null);
        assert_eq!(shown["revisions"]["default/greeter-v0"]["state"], "leaving");
        assert_eq!(shown["history"]["requests"]["default/greeter-v1"][359], 3);
        assert_eq!(shown["history"]["until"], 1_010);
        assert!(before.since(&before).is_empty());
        for (key, value) in after.since(&before) {
            match value {
                Value::Object(parts) if key == "revisions" => {
                    parts.into_iter().for_each(|(id, row)| shown[&key][id] = row);
                }
                value => shown[&key] = value,
            }
        }
        assert_eq!(shown, snapshot(&after));
        assert_eq!(shown["gateway"]["rate"], 3.3);
        assert_eq!(step(&history)["requests"], json!({"default/greeter-v1": 3}));
        let gone = View::default().since(&before);
        assert_eq!(gone["services"], json!({"default/greeter": null}));
    }

    #[test]
    fn the_hour_of_a_revision_and_of_all() {
        let history = with_traffic(3);
        let own = hour(&history, Some(&id("greeter-v1"))).unwrap();
        let all = hour(&history, None).unwrap();
        for hour in [&own, &all] {
            let lists = [
                "requests",
                "errors",
                "median_ms",
                "p99_ms",
                "in_flight",
                "queued",
                "cold",
            ];
            for list in lists {
                assert_eq!(hour[list].as_array().unwrap().len(), 360, "{list}");
            }
            assert_eq!(
                (&hour["requests"][359], &hour["requests"][358]),
                (&json!(3), &json!(0))
            );
            assert_eq!(hour["phases_ms"]["booting"][359], Value::Null);
        }
        assert!(hour(&history, Some(&id("greeter-v2"))).is_none());
    }

    #[test]
    fn long_lists_are_cut_and_it_is_said() {
        let mut value = json!({"hosts": vec!["a"; 120], "tags": ["b"]});
        bound_list(&mut value, "hosts");
        bound_list(&mut value, "tags");
        assert_eq!(
            (value["hosts"].as_array().unwrap().len(), &value["hostsOmitted"]),
            (MAX_ITEMS, &json!(70))
        );
        assert_eq!(value["tagsOmitted"], Value::Null);
    }
}

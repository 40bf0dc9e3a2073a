//! `sluice status`: the table of revisions.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::SystemTime;

use serde_json::Value;

use super::release::{override_lines, rollout_lines, services};
use super::table::{Align, render as table};
use super::{OutputFormat, StatusArgs, block_on, client, fail, print};
use crate::observe::wall_clock;

/// Queries the gateway and prints the table. Exits 0, or 2 when there is no response.
pub fn run(args: &StatusArgs) -> ExitCode {
    let value = match block_on(client::revisions(&args.admin, None)) {
        Ok(Ok(value)) => value,
        Ok(Err(error)) => return fail(error),
        Err(error) => return fail(error),
    };
    match args.format {
        OutputFormat::Text => print(&render(&value, wall_clock())),
        OutputFormat::Json => print(&format!("{value:#}\n")),
    }
    ExitCode::SUCCESS
}

const HEADINGS: [(&str, Align); 9] = [
    ("SERVICE", Align::Left),
    ("REVISION", Align::Left),
    ("SHARE", Align::Right),
    ("TAGS", Align::Left),
    ("READY", Align::Right),
    ("IN-FLIGHT", Align::Right),
    ("QUEUED", Align::Right),
    ("BY", Align::Left),
    ("LAST DECISION", Align::Left),
];

/// Renders the response of `/api/revisions` as a table. READY is `ready/desired`; where nothing scales there
/// is no desired. Below it are rollouts, and what operators overrode. BY is the signal that set the number, with what the others wanted. While a failure lasts, it is shown in place of the last decision.
pub fn render(value: &Value, now: SystemTime) -> String {
    let rows: Vec<Vec<String>> = value["revisions"]
        .as_array()
        .into_iter()
        .flatten()
        .map(row)
        .collect();
    if rows.is_empty() {
        return "no revisions are configured\n".to_owned();
    }
    let mut text = table(&HEADINGS, &rows);
    for (service, rollout, over) in services(value) {
        let mut lines = override_lines(&service, over, now);
        // One that has ended well is of interest to who asks for it.
        if rollout["state"]
            .as_str()
            .is_some_and(|state| state != "completed")
        {
            lines = [rollout_lines(rollout, now), lines].concat();
        }
        if !lines.is_empty() {
            // A String takes everything.
            let _ = writeln!(text, "\n{service}: {}", lines.join("\n  "));
        }
    }
    for line in value["replicas"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(replica_line)
    {
        let _ = writeln!(text, "\n{line}");
    }
    text
}

/// What is wrong with another replica, for whoever looks for slots that are missing.
fn replica_line(replica: &Value) -> Option<String> {
    let (name, seconds) = (replica["name"].as_str()?, replica["forSeconds"].as_u64()?);
    let holds = replica["holdsSlots"].as_u64()?;
    let lost = match holds {
        0 => String::new(),
        1 => "; 1 slot is lost until it is back or its Pod is gone".to_owned(),
        _ => format!("; {holds} slots are lost until it is back or its Pod is gone"),
    };
    if replica["connected"] == false {
        return Some(format!("replica {name}: not connected for {seconds} s{lost}"));
    }
    (replica["agrees"] == false)
        .then(|| format!("replica {name}: has not agreed yet on who owns which endpoints"))
}

fn row(revision: &Value) -> Vec<String> {
    let text = |key: &str| revision[key].as_str();
    let number = |key: &str| match &revision[key] {
        Value::Number(number) => number.to_string(),
        _ => "-".to_owned(),
    };
    let tags: Vec<&str> = revision["tags"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let share = match &revision["percent"] {
        Value::Number(percent) => format!("{percent}%"),
        _ => "removed".to_owned(),
    };
    let ready = match &revision["desired"] {
        Value::Number(desired) => format!("{}/{desired}", number("ready")),
        _ => number("ready"),
    };
    let observed = revision["scaling"]["observed"]["last_decision"].as_str();
    let decision = match (text("last_failure"), observed, text("last_decision")) {
        (Some(failure), ..) => format!("failed: {failure}"),
        (None, Some(observed), _) => format!("observed: {observed}"),
        (None, None, Some(decision)) => decision.to_owned(),
        (None, None, None) => "-".to_owned(),
    };
    let remarks = remarks(revision);
    let decision = if remarks.is_empty() {
        decision
    } else {
        format!("{decision} ({})", remarks.join("; "))
    };
    vec![
        format!(
            "{}/{}",
            text("namespace").unwrap_or("?"),
            text("service").unwrap_or("?")
        ),
        text("revision").unwrap_or("?").to_owned(),
        share,
        if tags.is_empty() {
            "-".to_owned()
        } else {
            tags.join(",")
        },
        ready,
        number("in_flight"),
        number("queued"),
        by(&revision["scaling"]),
        decision,
    ]
}

/// `schedule 2 (reactive 1, forecast 1)`: the signal that won, its number, and the others'.
fn by(scaling: &Value) -> String {
    let Some(source) = scaling["source"].as_str() else {
        return "-".to_owned();
    };
    let wanted = ["reactive", "panic", "schedule", "forecast", "need"]
        .iter()
        .filter_map(|name| Some((*name, scaling["wanted"][name].as_u64()?)));
    let (won, others): (Vec<_>, Vec<_>) = wanted.partition(|(name, _)| *name == source);
    let mut text = match won.first() {
        Some((name, number)) => format!("{name} {number}"),
        None => source.to_owned(),
    };
    // The load alone, as everywhere without schedules and forecast, needs no list.
    if others.len() > 1 || !matches!(source, "reactive" | "bound") && !others.is_empty() {
        let others: Vec<String> = others
            .iter()
            .map(|(name, number)| format!("{name} {number}"))
            .collect();
        text.push_str(&format!(" ({})", others.join(", ")));
    }
    text
}

/// Which tier serves, what is waited for, and for whom the revision is held above zero.
fn remarks(revision: &Value) -> Vec<String> {
    let tiers = revision["tiers"].as_array().into_iter().flatten();
    let mut serving = tiers.filter(|tier| tier["state"] == "serving");
    let serving = serving.find_map(|tier| tier["name"].as_str());
    let names = |key: &str| {
        let names = revision[key].as_array().into_iter().flatten();
        let names: Vec<&str> = names.filter_map(Value::as_str).collect();
        (!names.is_empty()).then(|| names.join(", "))
    };
    let serving = serving.map(|name| format!("tier {name} serves"));
    let waits = names("waits_for").map(|names| format!("waits for {names}"));
    let held = names("held_by").map(|names| format!("held for {names}"));
    [serving, waits, held].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::admin::api;
    use crate::admin::fixture::FakeGateway;

    #[test]
    fn the_table_shows_what_the_api_says() {
        let now = humantime::parse_rfc3339("2026-11-30T20:00:00Z").unwrap();
        let text = render(&api::revisions(&FakeGateway::new(), None), now);
        assert_eq!(
            text,
            "\
SERVICE          REVISION      SHARE  TAGS     READY  IN-FLIGHT  QUEUED  BY                       LAST DECISION
default/greeter  greeter-v0  removed  -            0          1       0  -                        -
default/greeter  greeter-v1   66.67%  current    2/2          7       0  schedule 2 (reactive 1)  1 → 2: 12 in flight / target 10
default/greeter  greeter-v2   33.33%  -          0/0          0       0  -                        failed: exit status 127: sh: no-such-program: not found

default/greeter: rollout of greeter-v2 from greeter-v1: running, 33.33 % of latestRevision (step 1), since 0s
  greeter-v2: 40 requests, 1 failed (2.5 %); greeter-v1: 80 requests, 0 failed (0.0 %), over the same time
  paused by command 0s ago: requests wait, none longer than queue.timeout; the files know no pause
  `sluice resume default/greeter` lets them go on. It ends when the files change the service, too.
"
        );
    }

    #[test]
    fn slots_that_are_lost_are_named_with_the_replica_that_holds_them() {
        let replica = |connected: bool, agrees: bool, holds: u32| {
            replica_line(&json!({
                "name": "sluice-b", "serves": true, "connected": connected, "forSeconds": 7, "agrees": agrees,
                "holdsSlots": holds,
            }))
        };
        assert_eq!(replica(true, true, 5), None, "they are in use");
        assert_eq!(
            replica(false, false, 3).as_deref(),
            Some(
                "replica sluice-b: not connected for 7 s; 3 slots are lost until it is back or its Pod is gone"
            )
        );
        assert_eq!(
            replica(false, false, 0).as_deref(),
            Some("replica sluice-b: not connected for 7 s")
        );
        assert_eq!(
            replica(true, false, 0).as_deref(),
            Some("replica sluice-b: has not agreed yet on who owns which endpoints")
        );
    }

    #[test]
    fn who_won_is_named_with_what_the_others_wanted() {
        let wanted = json!({"reactive": 1, "panic": null, "schedule": null, "forecast": null, "minScale": 0});
        assert_eq!(by(&json!({"source": "reactive", "wanted": wanted})), "reactive 1");
        let both = json!({"reactive": 1, "panic": 5, "schedule": 4, "forecast": 3});
        assert_eq!(
            by(&json!({"source": "panic", "wanted": both})),
            "panic 5 (reactive 1, schedule 4, forecast 3)"
        );
        assert_eq!(
            by(&json!({"source": "bound", "wanted": {"reactive": 0}})),
            "bound"
        );
        let observed =
            json!({"scaling": {"source": "reactive", "observed": {"last_decision": "0 → 1: idle"}}});
        assert_eq!(row(&observed).last().unwrap(), "observed: 0 → 1: idle");
    }

    #[test]
    fn tiers_and_needs_are_named() {
        let revision = |more: Value| {
            let mut value = json!({"namespace": "default", "service": "s", "revision": "v", "percent": 100,
                "last_decision": "0 → 1: somebody waits"});
            let fields = value.as_object_mut().unwrap();
            fields.extend(more.as_object().unwrap().clone());
            row(&value).pop().unwrap()
        };
        let tiers = json!({"tiers": [{"name": "reserve", "state": "serving"}, {"name": "standard", "state": "starting"}]});
        assert_eq!(revision(tiers), "0 → 1: somebody waits (tier reserve serves)");
        let needs = json!({"waits_for": ["default/db"], "held_by": ["default/a", "default/b"]});
        assert_eq!(
            revision(needs),
            "0 → 1: somebody waits (waits for default/db; held for default/a, default/b)"
        );
    }

    #[test]
    fn odd_answers_make_no_panic() {
        let now = SystemTime::UNIX_EPOCH;
        assert!(render(&json!({}), now).contains("no revisions"));
        assert!(render(&json!({"revisions": [{}, 3, null]}), now).contains("?/?"));
    }
}

//! `sluice revisions`: the revisions of a service, or of all, with their age and what their templates changed.

use std::process::ExitCode;
use std::time::SystemTime;

use serde_json::Value;

use super::release::{age, short};
use super::service_args::RevisionsArgs;
use super::table::{Align, render as table};
use super::{OutputFormat, block_on, client, fail, print};
use crate::observe::wall_clock;

/// Queries the gateway and prints the table. Exits 0, 1 when there is no such service, 2 when there is no response.
pub fn run(args: &RevisionsArgs) -> ExitCode {
    let value = match block_on(client::revisions(&args.admin, args.service.as_ref())) {
        Ok(Ok(value)) => value,
        Ok(Err(error)) => return fail(error),
        Err(error) => return fail(error),
    };
    match args.format {
        OutputFormat::Text => print(&render(&value, wall_clock())),
        OutputFormat::Json => print(&format!("{value:#}\n")),
    }
    match &args.service {
        Some(service) if client::is_empty(&value) => {
            eprintln!("sluice: there is no service '{service}'");
            ExitCode::from(1)
        }
        _ => ExitCode::SUCCESS,
    }
}

const HEADINGS: [(&str, Align); 8] = [
    ("SERVICE", Align::Left),
    ("REVISION", Align::Left),
    ("AGE", Align::Right),
    ("TRAFFIC", Align::Right),
    ("TAGS", Align::Left),
    ("STATE", Align::Left),
    ("READY", Align::Right),
    ("CHANGES", Align::Left),
];

/// Renders the response of `/api/revisions`.
fn render(value: &Value, now: SystemTime) -> String {
    let rows = value["revisions"].as_array().into_iter().flatten();
    let rows: Vec<Vec<String>> = rows.map(|revision| row(revision, now)).collect();
    if rows.is_empty() {
        return "no revisions are configured\n".to_owned();
    }
    table(&HEADINGS, &rows)
}

fn row(revision: &Value, now: SystemTime) -> Vec<String> {
    let text = |key: &str| revision[key].as_str().unwrap_or("?");
    let list = |key: &str, separator: &str| {
        let items = revision[key].as_array().into_iter().flatten();
        let items: Vec<&str> = items.filter_map(Value::as_str).collect();
        match items.is_empty() {
            true => "-".to_owned(),
            false => items.join(separator),
        }
    };
    vec![
        format!("{}/{}", text("namespace"), text("service")),
        text("revision").to_owned(),
        age(text("created"), now).unwrap_or_else(|| "-".to_owned()),
        match &revision["percent"] {
            Value::Number(_) => format!("{} %", short(&revision["percent"])),
            _ => "removed".to_owned(),
        },
        list("tags", ","),
        state(revision).to_owned(),
        match (&revision["ready"], &revision["desired"]) {
            (Value::Number(ready), Value::Number(desired)) => format!("{ready}/{desired}"),
            (Value::Number(ready), _) => ready.to_string(),
            _ => "-".to_owned(),
        },
        list("difference", "; "),
    ]
}

/// What a revision is for, in a word or two.
fn state(revision: &Value) -> &'static str {
    let name = revision["revision"].as_str();
    let is = |value: &Value| value.as_str().is_some() && value.as_str() == name;
    let has_share = revision["percent"].as_f64().is_some_and(|percent| percent > 0.0);
    let is_paused = revision["override"]["paused"].as_bool() == Some(true);
    let rollout = &revision["rollout"];
    match rollout["state"].as_str() {
        _ if revision["state"] == "leaving" => "leaving",
        _ if is(&revision["override"]["pinned"]) && is_paused => "pinned, paused",
        _ if is(&revision["override"]["pinned"]) => "pinned",
        Some("running") if is(&rollout["candidate"]) => "rolling out",
        Some("paused") if is(&rollout["candidate"]) => "rollout paused",
        Some("failed") if is(&rollout["candidate"]) => "rollout failed",
        Some("aborted") if is(&rollout["candidate"]) => "rollout aborted",
        _ if has_share && is_paused => "paused",
        _ if has_share => "serving",
        _ if revision["tags"].as_array().is_some_and(|tags| !tags.is_empty()) => "by tag",
        _ => "no traffic",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::admin::api;
    use crate::admin::fixture::FakeGateway;

    #[test]
    fn the_table_shows_what_the_api_says() {
        let now = humantime::parse_rfc3339("2026-11-30T20:00:00Z").unwrap() + Duration::from_secs(240);
        let text = render(&api::revisions(&FakeGateway::new(), None), now);
        assert_eq!(
            text,
            "\
SERVICE          REVISION    AGE  TRAFFIC  TAGS     STATE        READY  CHANGES
default/greeter  greeter-v0    -  removed  -        leaving          0  -
default/greeter  greeter-v1    -  66.67 %  current  paused         2/2  -
default/greeter  greeter-v2   4m  33.33 %  -        rolling out    0/0  timeoutSeconds: 300 → 10
"
        );
    }

    #[test]
    fn every_revision_is_for_something() {
        let of = |more: Value| {
            let mut row = json!({"revision": "v2", "percent": 0, "tags": [], "state": "serving"});
            let fields = row.as_object_mut().unwrap();
            fields.extend(more.as_object().unwrap().clone());
            state(&row)
        };
        assert_eq!(of(json!({})), "no traffic");
        assert_eq!(of(json!({"tags": ["a"]})), "by tag");
        assert_eq!(of(json!({"percent": 1})), "serving");
        assert_eq!(of(json!({"override": {"pinned": "v2"}})), "pinned");
        assert_eq!(
            of(json!({"rollout": {"state": "failed", "candidate": "v2"}})),
            "rollout failed"
        );
        assert_eq!(
            of(json!({"rollout": {"state": "failed", "candidate": "v3"}})),
            "no traffic"
        );
        assert_eq!(
            of(json!({"percent": 100, "rollout": {"state": "completed", "candidate": "v2"}})),
            "serving"
        );
    }

    #[test]
    fn odd_answers_make_no_panic() {
        assert!(render(&json!({}), SystemTime::UNIX_EPOCH).contains("no revisions"));
        let odd = json!({"revisions": [{}, 3, null]});
        assert!(render(&odd, SystemTime::UNIX_EPOCH).contains("?/?"));
    }
}

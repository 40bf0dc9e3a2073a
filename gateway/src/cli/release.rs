//! Rollouts and overrides as text, from the rows of `/api/revisions`.

use std::time::SystemTime;

use serde_json::Value;

use super::table::printable;

/// What an operator overrode, what the files say, and how to make it permanent or end it; nothing where nothing is overridden.
pub(super) fn override_lines(service: &str, over: &Value, now: SystemTime) -> Vec<String> {
    let mut lines = Vec::new();
    let since = over["since"].as_str().and_then(|since| age(since, now));
    let since = since.map_or_else(String::new, |age| format!(" {age} ago"));
    if let Some(pinned) = over["pinned"].as_str() {
        let files = &over["files"];
        let share = &files["percent"];
        let latest = files["latestRevision"].as_str().unwrap_or("?");
        lines.push(format!(
            "rolled back to {pinned} by command{since}; the files say: {} % to the latest revision, {latest}",
            short(share)
        ));
        if let Some(permanent) = over["permanent"].as_str() {
            lines.push(format!(
                "To make it permanent: {permanent}. It ends when the files change the service."
            ));
        }
    }
    if over["paused"].as_bool() == Some(true) {
        lines.push(format!(
            "paused by command{since}: requests wait, none longer than queue.timeout; the files know no pause"
        ));
        lines.push(format!(
            "`sluice resume {service}` lets them go on. It ends when the files change the service, too."
        ));
    }
    lines.iter().map(|line| printable(line)).collect()
}

/// How far a rollout is, and how it is judged; nothing where there is none.
pub(super) fn rollout_lines(rollout: &Value, now: SystemTime) -> Vec<String> {
    let Some(state) = rollout["state"].as_str() else {
        return Vec::new();
    };
    let text = |key: &str| rollout[key].as_str();
    let candidate = text("candidate").unwrap_or("?");
    let base = text("base").map_or_else(String::new, |base| format!(" from {base}"));
    let since = text("since").and_then(|since| age(since, now));
    let since = since.map_or_else(String::new, |age| format!(", since {age}"));
    let step = match rollout["step"].as_u64() {
        Some(step) if matches!(state, "running" | "paused") => format!(" (step {step})"),
        _ => String::new(),
    };
    let mut lines = vec![format!(
        "rollout of {candidate}{base}: {state}, {} % of latestRevision{step}{since}",
        short(&rollout["percent"])
    )];
    lines.extend(text("reason").map(str::to_owned));
    let judgement = &rollout["judgement"];
    let tally = |side: &str, name: &str| {
        let (requests, errors) = (
            judgement[side]["requests"].as_u64()?,
            judgement[side]["errors"].as_u64()?,
        );
        (requests > 0).then(|| {
            // Exact up to 2^53 requests.
            let rate = errors as f64 * 100.0 / requests as f64;
            format!("{name}: {requests} requests, {errors} failed ({rate:.1} %)")
        })
    };
    let sides = [
        tally("candidate", candidate),
        tally("base", text("base").unwrap_or("the one before")),
    ];
    let sides: Vec<String> = sides.into_iter().flatten().collect();
    if !sides.is_empty() {
        lines.push(format!("{}, over the same time", sides.join("; ")));
    }
    if let Some(suspicion) = judgement["suspicion"].as_f64()
        && suspicion > 0.0
        && matches!(state, "running" | "paused")
    {
        lines.push(format!(
            "the evidence is {:.0} % of what rolls it back",
            suspicion * 100.0
        ));
    }
    if let Some(unjudged @ 1..) = judgement["unjudged_steps"].as_u64() {
        lines.push(format!("{unjudged} steps ended unjudged: too few requests"));
    }
    lines.iter().map(|line| printable(line)).collect()
}

/// The time since then, in its two greatest units at most: `3d`, `2h 5m`, `40s`. `None` for what is no time.
pub(super) fn age(then: &str, now: SystemTime) -> Option<String> {
    let then = humantime::parse_rfc3339(then).ok()?;
    let seconds = now.duration_since(then).unwrap_or_default().as_secs();
    Some(match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h {}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d", seconds / 86_400),
    })
}

/// A number without needless decimals.
pub(super) fn short(number: &Value) -> String {
    match number.as_f64() {
        Some(number) if number.fract() == 0.0 => format!("{number:.0}"),
        Some(number) => number.to_string(),
        None => "?".to_owned(),
    }
}

/// The services of rows, each once and in their order: name, rollout, override.
pub(super) fn services(value: &Value) -> Vec<(String, &Value, &Value)> {
    let mut services: Vec<(String, &Value, &Value)> = Vec::new();
    for row in value["revisions"].as_array().into_iter().flatten() {
        let text = |key: &str| row[key].as_str().unwrap_or("?");
        let name = format!("{}/{}", text("namespace"), text("service"));
        if services.last().is_none_or(|(last, ..)| *last != name) {
            services.push((name, &row["rollout"], &row["override"]));
        }
    }
    services
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_rollout_is_told_with_its_judgement() {
        let rollout = json!({
            "state": "running", "percent": 20.0, "step": 1, "reason": "waits for 3 ready instances",
            "since": "1970-01-01T00:00:00Z", "candidate": "v2", "base": "v1",
            "judgement": {"candidate": {"requests": 200, "errors": 3}, "base": {"requests": 800, "errors": 0},
                "in_step": 20, "unjudged_steps": 2, "suspicion": 0.25},
        });
        assert_eq!(
            rollout_lines(&rollout, at(125)),
            [
                "rollout of v2 from v1: running, 20 % of latestRevision (step 1), since 2m",
                "waits for 3 ready instances",
                "v2: 200 requests, 3 failed (1.5 %); v1: 800 requests, 0 failed (0.0 %), over the same time",
                "the evidence is 25 % of what rolls it back",
                "2 steps ended unjudged: too few requests",
            ]
        );
        assert!(rollout_lines(&Value::Null, at(0)).is_empty());
        let failed = json!({"state": "failed", "percent": 0, "candidate": "v2\u{1b}[2J"});
        assert_eq!(
            rollout_lines(&failed, at(0)),
            ["rollout of v2\\u{1b}[2J: failed, 0 % of latestRevision"]
        );
    }

    #[test]
    fn a_pause_says_how_it_ends() {
        let over = json!({"pinned": null, "paused": true, "since": "1970-01-01T00:00:00Z"});
        let lines = override_lines("default/greeter", &over, at(7_500));
        assert!(lines[0].starts_with("paused by command 2h 5m ago"), "{lines:?}");
        assert!(lines[1].contains("sluice resume default/greeter"), "{lines:?}");
        assert!(override_lines("a/b", &Value::Null, at(0)).is_empty());
    }

    #[test]
    fn ages_are_short() {
        let age = |seconds| age("1970-01-01T00:00:00Z", at(seconds)).unwrap();
        let all = [0, 59, 60, 3_600, 86_399, 86_400, 1_000_000].map(age);
        assert_eq!(all, ["0s", "59s", "1m", "1h 0m", "23h 59m", "1d", "11d"]);
        assert_eq!(super::age("yesterday", at(0)), None);
    }
}

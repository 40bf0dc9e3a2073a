//! Schedules, forecast and mode in whole configurations.

use super::*;
use crate::plan::ScalingMode;

fn compiled(top: &str, revision: &str) -> Result<Compiled, Diagnostics> {
    let text = format!(
        "{top}services:\n- name: a\n  revisions:\n  - name: a-1\n    process: {{command: [sleep]}}\n{revision}"
    );
    let path = "/etc/a.yaml".into();
    load(&[SourceFile { path, text }], &|_| None)
}

const OFFICE: &str = "    autoscaling:
      maxScale: 5
      forecast: {season: 168h, mode: observe}
      schedules:
      - {cron: '0 8 * * 1-5', timeZone: Europe/Berlin, duration: 10h, minScale: 2, maxScale: 20}
      - {cron: '0 12 * * *', duration: 1h, minScale: 3}
";

#[test]
fn schedules_and_forecast_become_the_plan() {
    let compiled = compiled("state: {directory: kept}\n", OFFICE).unwrap_or_else(|e| panic!("{e}"));
    assert!(compiled.warnings.is_empty(), "{}", compiled.warnings);
    let kept = compiled.snapshot.settings().state_directory.clone();
    assert_eq!(kept, Some("/etc/kept".into()), "relative to the file");
    let policy = &compiled.plan.revisions.values().next().unwrap().policy;
    let ahead = policy.foresight.as_ref().expect("foresight");
    let schedules: Vec<_> = ahead.schedules.iter().map(ToString::to_string).collect();
    assert_eq!(
        schedules,
        ["0 8 * * 1-5 Europe/Berlin for 10h", "0 12 * * * UTC for 1h"]
    );
    let forecast = ahead.forecast.expect("a forecast");
    assert_eq!(
        (forecast.season.as_secs(), forecast.mode),
        (7 * 86_400, ScalingMode::Observe)
    );
    assert_eq!(policy.highest(), 20);
}

#[test]
fn an_edited_schedule_is_another_plan() {
    let before = compiled("", OFFICE).unwrap();
    assert!(before.is_same_as(
        &compiled("", OFFICE).unwrap().snapshot,
        &compiled("", OFFICE).unwrap().plan
    ));
    for (from, to) in [
        ("0 12", "0 13"),
        ("Berlin", "Paris"),
        ("1h", "2h"),
        ("168h", "24h"),
        (", mode: observe", ""),
    ] {
        let after = compiled("", &OFFICE.replace(from, to)).unwrap();
        assert!(!before.is_same_as(&after.snapshot, &after.plan), "{from}");
    }
}

#[test]
fn a_floor_above_a_ceiling_is_told_where_it_stands() {
    for (name, top, scaling, line, want) in [
        (
            "above the base",
            "",
            "      maxScale: 5\n      schedules:\n      - {cron: '0 8 * * *', duration: 1h, minScale: 6}\n",
            9,
            "minScale 6 is above maxScale 5 while this schedule is active, as at 2024-01-01T08:00:00Z",
        ),
        (
            "below the base",
            "",
            "      minScale: 2\n      schedules:\n      - {cron: '0 8 * * *', duration: 1h, maxScale: 1}\n",
            9,
            "minScale 2 is above maxScale 1 while",
        ),
        (
            "two that overlap",
            "",
            "      schedules:\n      - {cron: '0 8 * * *', duration: 2h, minScale: 6, maxScale: 9}\n      - {cron: '0 9 * * *', duration: 1h, maxScale: 3}\n",
            8,
            "minScale 6 is above maxScale 3 while this schedule is active, as at 2024-01-01T09:00:00Z",
        ),
        (
            "above the default of all",
            "autoscaling: {maxScale: 4}\n",
            "      schedules:\n      - {cron: '0 8 * * *', duration: 1h, minScale: 6}\n",
            9,
            "minScale 6 is above maxScale 4",
        ),
        (
            "above the limit of all",
            "autoscaling: {maxScale: 4, maxScaleLimit: 10}\n",
            "      schedules:\n      - {cron: '0 8 * * *', duration: 1h, maxScale: 11}\n",
            9,
            "maxScale 11 is not between 1 and maxScaleLimit 10",
        ),
        (
            "without a limit, above the limit of all",
            "autoscaling: {maxScale: 4, maxScaleLimit: 10}\n",
            "      schedules:\n      - {cron: '0 8 * * *', duration: 1h, maxScale: 0}\n",
            9,
            "maxScale 0 is not between 1 and maxScaleLimit 10",
        ),
    ] {
        let found = compiled(top, &format!("    autoscaling:\n{scaling}")).expect_err(name);
        let told = found.to_string();
        assert_eq!(found.errors(), 1, "{name}: {told}");
        assert!(told.contains(want), "{name}: {told}");
        // Each line of `top` moves the rest down by one.
        assert!(
            told.contains(&format!("a.yaml:{line}:")) || told.contains(&format!("a.yaml:{}:", line + 1)),
            "{name}: {told}"
        );
    }
}

#[test]
fn what_does_less_than_it_seems_is_a_warning() {
    let forecast = "    autoscaling: {forecast: {season: 24h}}\n";
    let told = compiled("", forecast).unwrap().warnings.to_string();
    assert!(
        told.contains("a restart forgets what the forecast learned"),
        "{told}"
    );
    assert!(
        compiled("state: {directory: /s}\n", forecast)
            .unwrap()
            .warnings
            .is_empty()
    );
    let told = compiled("", "    autoscaling: {mode: observe}\n")
        .unwrap()
        .warnings
        .to_string();
    assert!(told.contains("nothing starts this revision"), "{told}");
    let many: String = (0..33)
        .map(|n| format!("      - {{cron: '{n} 8 * * *', duration: 1m, minScale: 1}}\n"))
        .collect();
    let told = compiled("", &format!("    autoscaling:\n      schedules:\n{many}"))
        .unwrap_err()
        .to_string();
    assert!(told.contains("33 schedules, and 32 are allowed"), "{told}");
}

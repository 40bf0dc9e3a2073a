//! Tiers and needs of whole configurations.

use super::tests::{file, good, load_one};
use super::*;

fn id(name: &str) -> RevisionId {
    RevisionId::parse("default", name).expect("a name")
}

const TIERS: &str = "
services:
  - name: shop
    revisions:
      - name: shop-v1
        containerConcurrency: 8
        tiers:
          - {name: reserve, endpoints: [127.0.0.1:9100], containerConcurrency: 2}
          - {name: spot, process: {command: [a]}, containerConcurrency: 0}
          - {name: standard, process: {command: [b]}}
        autoscaling: {minScale: 3, initialScale: 4}
";

#[test]
fn each_tier_that_is_started_has_a_plan_and_the_last_one_the_minimum() {
    let compiled = good(TIERS);
    let plans: Vec<_> = compiled.plan.revisions.iter().collect();
    let names: Vec<String> = plans.iter().map(|(id, _)| id.to_string()).collect();
    assert_eq!(names, ["default/shop-v1@spot", "default/shop-v1@standard"]);
    let scales = plans
        .iter()
        .map(|(_, plan)| (plan.policy.min_scale, plan.policy.initial_scale));
    assert_eq!(scales.collect::<Vec<_>>(), [(0, 0), (3, 4)]);
    let totals = plans.iter().map(|(_, plan)| plan.policy.total_value);
    assert_eq!(
        totals.collect::<Vec<_>>(),
        [100.0, 8.0],
        "by the tier's own limit"
    );
    let (entry, slot) = compiled.snapshot.revision(&id("shop-v1")).expect("a revision");
    let tiers = entry.service.revisions[slot].tiers();
    let limits = tiers
        .iter()
        .map(|tier| (tier.name.as_str(), tier.container_concurrency));
    let limits: Vec<_> = limits.collect();
    assert_eq!(
        limits,
        [("reserve", Some(2)), ("spot", None), ("standard", Some(8))]
    );
}

fn services(needs: &[(&str, &str)]) -> String {
    let services = needs.iter().map(|(name, needs)| {
        format!("  - name: {name}\n    revisions:\n      - name: {name}-v1\n        needs: [{needs}]\n        process: {{command: [x]}}\n")
    });
    format!("services:\n{}", services.collect::<String>())
}

fn needs_of(compiled: &Compiled, name: &str) -> Vec<RevisionId> {
    compiled.plan.revisions[&id(name)].needs.clone()
}

#[test]
fn needs_are_revisions_and_a_service_stands_for_those_with_a_share() {
    let text = services(&[("app", "default/db, db-v1, cache-v1"), ("cache", ""), ("db", "")]);
    let text = text.replace(
        "  - name: db\n",
        "  - name: db\n    traffic: [{revisionName: db-v1, percent: 100}, {revisionName: db-v2, percent: 0, tag: next}]\n",
    );
    let compiled = good(&format!(
        "{text}      - {{name: db-v2, process: {{command: [y]}}}}\n"
    ));
    assert_eq!(needs_of(&compiled, "app-v1"), [id("db-v1"), id("cache-v1")]);
    let other_file = [
        file("/etc/sluice/a.yaml", &services(&[("app", "db")])),
        file("/etc/sluice/b.yaml", &services(&[("db", "")])),
    ];
    let compiled = load(&other_file, &|_| None).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(needs_of(&compiled, "app-v1"), [id("db-v1")]);
}

#[test]
fn a_cycle_is_told_once_and_whole_over_files_too() {
    let told = |text: &str| load_one(text).expect_err("a cycle").to_string();
    let all = told(&services(&[
        ("a", "b"),
        ("b", "c"),
        ("c", "a"),
        ("d", "a"),
        ("e", ""),
    ]));
    assert_eq!(all.matches("a cycle of needs").count(), 1, "{all}");
    assert!(
        all.contains("default/a-v1 → default/b-v1 → default/c-v1 → default/a-v1"),
        "{all}"
    );
    assert!(
        all.contains("sluice.yaml:15:17"),
        "at the need that closes it: {all}"
    );
    let own = told(&services(&[("a", "a-v1")]));
    assert!(own.contains("default/a-v1 → default/a-v1"), "{own}");
    let two = told(&services(&[("a", "b"), ("b", "a"), ("c", "d"), ("d", "c")]));
    assert_eq!(two.matches("a cycle of needs").count(), 2, "{two}");
    let files = [
        file("/etc/sluice/a.yaml", &services(&[("a", "b")])),
        file("/etc/sluice/b.yaml", &services(&[("b", "c")])),
        file("/etc/sluice/c.yaml", &services(&[("c", "a")])),
    ];
    let told = load(&files, &|_| None).expect_err("a cycle").to_string();
    assert!(
        told.contains("default/a-v1 → default/b-v1 → default/c-v1 → default/a-v1"),
        "{told}"
    );
}

#[test]
fn needs_that_share_one_are_no_cycle() {
    let compiled = good(&services(&[("a", "b, c"), ("b", "d"), ("c", "d"), ("d", "")]));
    assert_eq!(needs_of(&compiled, "a-v1"), [id("b-v1"), id("c-v1")]);
}

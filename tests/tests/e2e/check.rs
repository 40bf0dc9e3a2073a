//! `sluice check`: reports every mistake at once, each with file, line and column.

use std::collections::BTreeSet;

use sluice_tests::cli::{Finished, sluice_in};

use crate::web;

/// Runs `sluice check` on one file with this content.
pub(crate) async fn check(config: &str) -> Finished {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("sluice.yaml"), config).expect("the directory is writable");
    sluice_in(dir.path(), &["check"]).await
}

/// The `line:col` of every error: an error starts a line, further lines of the error are indented.
fn places(finished: &Finished) -> Vec<(usize, usize)> {
    let place = |line: &str| {
        let (path, rest) = line.split_once("sluice.yaml:")?;
        if path.starts_with(' ') {
            return None;
        }
        let (row, rest) = rest.split_once(':')?;
        let (col, said) = rest.split_once(':')?;
        if said.trim_start().starts_with("warning") {
            return None;
        }
        Some((row.parse().ok()?, col.parse().ok()?))
    };
    let said = finished.all();
    let mut places: Vec<_> = said.lines().filter_map(place).collect();
    places.sort_unstable();
    places
}

#[tokio::test]
async fn check_accepts_a_good_file_and_says_what_is_in_it() {
    let good = web("127.0.0.1:9".parse().unwrap());
    let done = check(&good).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(!done.stdout.trim().is_empty());
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("other.yaml"), &good).unwrap();
    for args in [
        &["check", "other.yaml"][..],
        &["check", "-c", "other.yaml"],
        &["check", "."],
        &["check", "--format", "json", "other.yaml"],
    ] {
        let done = sluice_in(dir.path(), args).await;
        assert_eq!(done.code, Some(0), "{args:?}: {done:?}");
        if args.contains(&"json") {
            let json = done.json();
            assert_eq!(
                (&json["valid"], &json["errors"]),
                (&true.into(), &0.into()),
                "{json}"
            );
            assert_eq!(json["summary"]["services"], 1, "{json}");
        }
    }
    let missing = sluice_in(dir.path(), &["check", "missing.yaml"]).await;
    assert!(matches!(missing.code, Some(1 | 2)), "{missing:?}");
    assert!(missing.all().contains("missing.yaml"));
}

/// Each mistake alone, with its line and words that its message must contain.
#[tokio::test]
async fn each_mistake_has_a_clear_message_at_its_place() {
    let service = |inner: &str| format!("services:\n  - name: web\n{inner}");
    let split = |traffic: &str| {
        service(&format!(
            "    traffic:\n{traffic}    revisions:\n      - {{name: a, endpoints: [\"127.0.0.1:9\"]}}\n      - {{name: b, endpoints: [\"127.0.0.1:9\"]}}\n"
        ))
    };
    let one = "    endpoints: [\"127.0.0.1:9\"]\n";
    let cases = [
        (
            "percents of 99.99",
            split("      - {revisionName: a, percent: 50}\n      - {revisionName: b, percent: 49.99}\n"),
            3..=5,
            vec!["99.99", "100"],
        ),
        (
            "a third decimal",
            split("      - {revisionName: a, percent: 50.001}\n      - {revisionName: b, percent: 50}\n"),
            4..=5,
            vec!["percent"],
        ),
        (
            "a tag used twice",
            split(
                "      - {revisionName: a, percent: 50, tag: x}\n      - {revisionName: b, percent: 50, tag: x}\n",
            ),
            5..=5,
            vec!["tag", "x"],
        ),
        (
            "a target that names no revision",
            split("      - {revisionName: nope, percent: 100}\n"),
            4..=4,
            vec!["nope"],
        ),
        (
            "two services with one host",
            format!(
                "services:\n  - name: one\n    hosts: [x.example.com]\n{one}  - name: two\n    hosts: [X.example.com.]\n{one}"
            ),
            6..=6,
            vec!["x.example.com", "one"],
        ),
        (
            "two services with one name",
            format!("services:\n  - name: web\n{one}  - name: web\n{one}"),
            4..=4,
            vec!["web"],
        ),
        (
            "a bad duration",
            service(
                "    revisions:\n      - name: a\n        endpoints: [\"127.0.0.1:9\"]\n        startTimeout: soon\n",
            ),
            6..=6,
            vec!["soon"],
        ),
        (
            "an unknown key",
            service(&format!("{one}    visibilty: internal\n")),
            4..=4,
            vec!["visibilty", "visibility"],
        ),
        (
            "a repeated key",
            service(&format!(
                "{one}    visibility: internal\n    visibility: external\n"
            )),
            5..=5,
            vec!["visibility"],
        ),
        ("a wrong type", service("    endpoints: 5\n"), 3..=3, vec!["5"]),
        (
            "a minimum above its maximum",
            service(
                "    revisions:\n      - name: a\n        process: {command: [x]}\n        autoscaling: {minScale: 3, maxScale: 2}\n",
            ),
            6..=6,
            vec!["minScale", "maxScale"],
        ),
        (
            "an unset variable",
            service("    endpoints: [\"${SLUICE_TEST_UNSET}\"]\n"),
            3..=3,
            vec!["SLUICE_TEST_UNSET"],
        ),
        ("an unreadable file", "services: [\n".to_owned(), 1..=2, vec![]),
        (
            "a window that is too short",
            service(
                "    revisions:\n      - name: a\n        process: {command: [x]}\n        autoscaling: {window: 1s}\n",
            ),
            6..=6,
            vec!["6s"],
        ),
    ];
    for (what, config, lines, words) in cases {
        let done = check(&config).await;
        assert_eq!(done.code, Some(1), "{what}: {done:?}");
        let places = places(&done);
        assert!(
            places.len() == 1 && lines.contains(&places[0].0),
            "{what}: {places:?}, expected one in {lines:?}\n{}",
            done.all()
        );
        for word in words {
            assert!(done.all().contains(word), "{what}: no {word:?} in {}", done.all());
        }
    }
}

/// Twelve mistakes of six kinds; `#!` marks what the diagnostic has to point at: the key or the
/// value, whichever comes first, up to the end of either.
#[tokio::test]
async fn twelve_mistakes_are_twelve_diagnostics_each_at_its_place() {
    let config = r#"accessLog: {format: loud}
errorDetails: true
limits:
  headerTimeout: fast
  maxHeaders: many
services:
  - name: one
    hosts: [x.example.com]
    traffic:
      - {revisionName: one-a, percent: 50, tag: t}
      - {revisionName: one-b, percent: 49, tag: t}
    revisions:
      - name: one-a
        endpoints: ["127.0.0.1:9"]
        timeoutSeconds: [1]
        protocl: h2c
      - name: one-b
        endpoints: ["127.0.0.1:9"]
        startTimeout: 10 parsecs
  - name: two
    hosts: [x.example.com]
    traffic: [{revisionName: nowhere, percent: 100}]
    revisions:
      - name: two-a
        endpoints: ["127.0.0.1:9"]
        protocol: gopher
"#;
    // Line, and what may stand at the column.
    let expected: [(&[usize], &[&str]); 12] = [
        (&[1], &["loud", "format"]),
        (&[2], &["errorDetails"]),
        (&[4], &["fast", "headerTimeout"]),
        (&[5], &["many", "maxHeaders"]),
        (
            &[9, 10, 11],
            &["traffic", "- {", "{revisionName", "49", "percent"],
        ),
        (&[11], &["t}", "tag"]),
        (&[15], &["[1]", "timeoutSeconds"]),
        (&[16], &["protocl"]),
        (&[19], &["10 parsecs", "startTimeout"]),
        (&[21], &["x.example.com", "hosts"]),
        (&[22], &["nowhere", "revisionName", "{revisionName"]),
        (&[26], &["gopher", "protocol"]),
    ];
    let done = check(config).await;
    assert_eq!(done.code, Some(1), "{done:?}");
    let mut places: BTreeSet<_> = places(&done).into_iter().collect();
    assert_eq!(places.len(), 12, "{}", done.all());
    let lines: Vec<&str> = config.lines().collect();
    for (rows, starts) in expected {
        let hit = places.iter().copied().find(|&(row, col)| {
            rows.contains(&row)
                && starts.iter().any(|start| {
                    lines[row - 1]
                        .get(col - 1..)
                        .is_some_and(|at| at.starts_with(start))
                })
        });
        let hit = hit.unwrap_or_else(|| panic!("none at {rows:?} {starts:?} in\n{}", done.all()));
        places.remove(&hit);
    }
}

#[tokio::test]
async fn knative_dumps_can_be_pasted() {
    let done = check(
        r#"services:
  - name: web
    traffic:
      - {latestRevision: false, revisionName: a, percent: 50, tag: x, url: "http://x-web.default.example.com"}
      - {latestRevision: true, percent: 50}
    revisions:
      - {name: a, endpoints: ["127.0.0.1:9"]}
      - {name: b, endpoints: ["127.0.0.1:9"]}
"#,
    )
    .await;
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.all().contains("url"), "a warning names it: {done:?}");
}

#[tokio::test]
async fn files_merge_and_claim_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(
        at("a.yaml"),
        "domain: a.test\nservices:\n  - {name: a, endpoints: [\"127.0.0.1:9\"]}\n",
    )
    .unwrap();
    std::fs::write(
        at("b.yaml"),
        "services:\n  - {name: b, endpoints: [\"127.0.0.1:9\"]}\n",
    )
    .unwrap();
    let fine = sluice_in(dir.path(), &["check", "a.yaml", "b.yaml"]).await;
    assert_eq!(fine.code, Some(0), "{fine:?}");
    std::fs::write(at("c.yaml"), "domain: c.test\n").unwrap();
    let twice = sluice_in(dir.path(), &["check", "a.yaml", "c.yaml"]).await;
    assert_eq!(twice.code, Some(1), "{twice:?}");
    assert!(
        twice.all().contains("domain") && twice.all().contains("c.yaml:1:"),
        "{twice:?}"
    );
}

//! The command line: exit codes, what is said and where.

use std::collections::BTreeSet;
use std::path::Path;

use sluice_tests::backend::{HttpBackend, full, ok};
use sluice_tests::cli::{Finished, sluice_in};
use sluice_tests::gateway::{Gateway, with_defaults};
use sluice_tests::h1;
use sluice_tests::tls::Ca;
use tokio::net::TcpListener;

use crate::{WEB, web, web_split};

/// Runs `sluice check` on one file with this content.
async fn check(config: &str) -> Finished {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("sluice.yaml"), config).expect("the directory is writable");
    sluice_in(dir.path(), &["check"]).await
}

/// The `line:col` of every error: they start a line, what belongs to them is indented.
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
            assert!(done.json().is_object() || done.json().is_array());
        }
    }
    let missing = sluice_in(dir.path(), &["check", "missing.yaml"]).await;
    assert!(matches!(missing.code, Some(1 | 2)), "{missing:?}");
    assert!(missing.all().contains("missing.yaml"));
}

/// Each mistake alone, with the line it is on and words that its message has to have.
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

async fn run_fails(dir: &Path, config: &str, code: i32, words: &[&str]) {
    std::fs::write(dir.join("sluice.yaml"), with_defaults(config)).expect("the directory is writable");
    let done = sluice_in(dir, &["run"]).await;
    assert_eq!(done.code, Some(code), "{done:?}");
    for word in words {
        assert!(done.all().contains(word), "no {word:?} in {done:?}");
    }
    assert!(!done.all().contains("panicked"), "{done:?}");
}

#[tokio::test]
async fn run_says_why_it_cannot_start() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let taken = taken.local_addr().map(|addr| (taken, addr)).unwrap();
    let addr = taken.1.to_string();
    let services = web("127.0.0.1:9".parse().unwrap());
    run_fails(
        dir.path(),
        &format!("listeners: [{{address: \"{addr}\"}}]\n{services}"),
        2,
        &[&addr],
    )
    .await;
    run_fails(
        dir.path(),
        &format!("admin: {{address: \"{addr}\"}}\n{services}"),
        2,
        &[&addr, "admin"],
    )
    .await;
    run_fails(dir.path(), "services: 5\n", 1, &["sluice.yaml:"]).await;
    let missing = sluice_in(dir.path(), &["run", "missing.yaml"]).await;
    assert!(
        matches!(missing.code, Some(1 | 2)) && missing.all().contains("missing.yaml"),
        "{missing:?}"
    );
}

#[tokio::test]
async fn run_says_which_certificate_it_cannot_read() {
    let dir = tempfile::tempdir().unwrap();
    let services = web("127.0.0.1:9".parse().unwrap());
    let config = format!(
        "listeners: [{{address: \"127.0.0.1:0\", tls: {{certificates: [{{certFile: a.crt, keyFile: a.key}}]}}}}]\n{services}"
    );
    let run = async || {
        std::fs::write(dir.path().join("sluice.yaml"), with_defaults(&config)).unwrap();
        sluice_in(dir.path(), &["run"]).await
    };
    let missing = run().await;
    assert!(
        matches!(missing.code, Some(1 | 2)) && missing.all().contains("a.crt"),
        "{missing:?}"
    );
    let ca = Ca::new();
    ca.issue(&[WEB]).write(dir.path(), "a");
    std::fs::write(dir.path().join("a.crt"), "no certificate").unwrap();
    let garbage = run().await;
    assert!(
        matches!(garbage.code, Some(1 | 2)) && garbage.all().contains("a.crt"),
        "{garbage:?}"
    );
    ca.issue(&[WEB]).write(dir.path(), "a");
    std::fs::write(dir.path().join("a.key"), ca.issue(&[WEB]).key).unwrap();
    let mismatch = run().await;
    assert!(
        matches!(mismatch.code, Some(1 | 2)) && mismatch.all().contains("a.key"),
        "{mismatch:?}"
    );
}

#[tokio::test]
async fn usage_errors_are_2_and_help_shows_examples() {
    let dir = tempfile::tempdir().unwrap();
    let unknown = sluice_in(dir.path(), &["chekc"]).await;
    assert_eq!(unknown.code, Some(2));
    assert!(unknown.all().contains("'check'"), "{unknown:?}");
    assert_eq!(
        sluice_in(dir.path(), &["run", "--no-such-flag"]).await.code,
        Some(2)
    );
    for command in ["run", "check", "explain", "status", "schema", "echo"] {
        let help = sluice_in(dir.path(), &[command, "--help"]).await;
        assert_eq!(help.code, Some(0), "{command}");
        assert!(
            help.stdout.contains("sluice ") && help.stdout.contains(command),
            "{help:?}"
        );
    }
    let help = sluice_in(dir.path(), &["--help"]).await;
    assert_eq!(help.code, Some(0));
    for word in ["run", "check", "explain", "status", "schema", "echo", "xample"] {
        assert!(help.stdout.contains(word), "no {word} in {}", help.stdout);
    }
}

#[tokio::test]
async fn the_schema_is_json_and_knows_the_keys() {
    let dir = tempfile::tempdir().unwrap();
    let done = sluice_in(dir.path(), &["schema"]).await;
    assert_eq!(done.code, Some(0));
    let schema = done.json();
    assert!(schema["$schema"].is_string(), "{schema}");
    for key in ["listeners", "services", "trustedProxies", "autoscaling", "admin"] {
        assert!(!schema["properties"][key].is_null(), "no {key}");
    }
}

#[tokio::test]
async fn explain_names_route_split_and_revision() {
    let dir = tempfile::tempdir().unwrap();
    let any = "127.0.0.1:9".parse().unwrap();
    let config = web_split(any, "100", any, "0", "hosts: [shop.example.com]");
    std::fs::write(dir.path().join("sluice.yaml"), config).unwrap();
    for (url, revision) in [
        ("http://shop.example.com/x", "web-a"),
        ("http://b-shop.example.com/", "web-b"),
        ("http://WEB.default.localhost:8080/", "web-a"),
    ] {
        let done = sluice_in(dir.path(), &["explain", "-c", "sluice.yaml", url]).await;
        assert_eq!(done.code, Some(0), "{url}: {done:?}");
        assert!(done.stdout.contains(revision), "{url}: {done:?}");
        let json = sluice_in(dir.path(), &["explain", "--format", "json", url]).await;
        assert!(json.json().to_string().contains(revision), "{json:?}");
    }
    let nothing = sluice_in(dir.path(), &["explain", "http://other.example.com/"]).await;
    assert_eq!(nothing.code, Some(1), "{nothing:?}");
    assert!(nothing.all().contains("other.example.com"));
    let usage = sluice_in(dir.path(), &["explain"]).await;
    assert_eq!(usage.code, Some(2));
}

/// Services with random hosts and routes; every split sends all to one revision, so that there
/// is one right answer.
fn random_services(rng: &mut fastrand::Rng, endpoint: std::net::SocketAddr) -> String {
    let mut config = "services:\n".to_owned();
    let mut claimed = BTreeSet::new();
    for n in 0..8 {
        let hosts: Vec<String> = (0..3)
            .map(|_| random_host(rng, true))
            .filter(|host| claimed.insert(host.clone()))
            .map(|host| format!("\"{host}\""))
            .collect();
        config.push_str(&format!("  - name: s{n}\n    hosts: [{}]\n", hosts.join(", ")));
        config.push_str(&format!(
            "    traffic: [{{revisionName: s{n}-own, percent: 100}}, {{revisionName: s{n}-r0, percent: 0, tag: t}}]\n    routes:\n"
        ));
        for route in 0..3 {
            let mut matches = Vec::new();
            let kind = rng.choice(["exact", "prefix", "rawPrefix"]).unwrap_or("exact");
            let path = rng.choice(["/a", "/a/b", "/b"]).unwrap_or("/a");
            matches.push(format!("path: {{{kind}: {path}}}"));
            if rng.bool() {
                matches.push("headers: {X-Y: {exact: \"1\"}}".to_owned());
            }
            if rng.bool() {
                matches.push("methods: [PUT]".to_owned());
            }
            config.push_str(&format!(
                "      - match: {{{}}}\n        traffic: [{{revisionName: s{n}-r{route}, percent: 100}}]\n",
                matches.join(", ")
            ));
        }
        config.push_str("    revisions:\n");
        for revision in ["own", "r0", "r1", "r2"] {
            config.push_str(&format!(
                "      - {{name: s{n}-{revision}, endpoints: [\"{endpoint}\"]}}\n"
            ));
        }
    }
    config
}

fn random_host(rng: &mut fastrand::Rng, pattern: bool) -> String {
    let labels: Vec<&str> = (0..rng.usize(1..4))
        .filter_map(|_| rng.choice(["x", "y", "z"]))
        .collect();
    let host = format!("{}.test", labels.join("."));
    match rng.u8(..4) {
        0 if pattern => format!("*.{host}"),
        0 => format!("s{}.default.localhost", rng.u8(..9)),
        1 if !pattern => format!("t-s{}.default.localhost", rng.u8(..9)),
        _ => host,
    }
}

#[tokio::test]
async fn explain_agrees_with_the_running_gateway_on_a_random_table() {
    let seed = std::env::var("SLUICE_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| fastrand::u64(..));
    let mut rng = fastrand::Rng::with_seed(seed);
    let backend = HttpBackend::builder("")
        .answer(|seen| {
            let revision = seen.header("knative-serving-revision").unwrap_or_default();
            ok(full(revision.to_owned()))
        })
        .start()
        .await;
    let gateway = Gateway::start(&random_services(&mut rng, backend.addr())).await;
    let admin = format!("http://{}", gateway.admin());
    for n in 0..60 {
        let host = random_host(&mut rng, false);
        let path = rng
            .choice(["/", "/a", "/a/b", "/ab", "/a/b/c", "/b"])
            .unwrap_or("/");
        let method = rng.choice(["GET", "PUT"]).unwrap_or("GET");
        let value = rng.choice(["1", "2"]).unwrap_or("1");
        let served = gateway
            .send(&h1::request(method, &host, path, &[("X-Y", value)], b""))
            .await;
        let (url, header) = (format!("http://{host}{path}"), format!("X-Y: {value}"));
        let source = [["-c", "sluice.yaml"], ["--admin", admin.as_str()]][n % 2];
        let mut args = vec!["explain", "--format", "json", "-H", &header, "-X", method];
        args.extend(source);
        args.push(&url);
        let said = sluice_in(gateway.dir(), &args).await;
        let what = format!(
            "SLUICE_SEED={seed}: {args:?}: {said:?}, served {} {}",
            served.status,
            served.text()
        );
        if served.status == 404 {
            assert_eq!(said.code, Some(1), "{what}");
        } else {
            assert_eq!((served.status, said.code), (200, Some(0)), "{what}");
            assert!(
                said.json()["revision"].to_string().contains(&served.text()),
                "{what}"
            );
        }
    }
}

#[tokio::test]
async fn status_shows_services_and_revisions() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let admin = format!("http://{}", gateway.admin());
    let table = sluice_in(gateway.dir(), &["status", "--admin", &admin]).await;
    assert_eq!(table.code, Some(0), "{table:?}");
    assert!(
        table.stdout.contains("web") && table.stdout.contains("web-a"),
        "{table:?}"
    );
    let json = sluice_in(gateway.dir(), &["status", "--admin", &admin, "--format", "json"]).await;
    assert!(json.json().to_string().contains("web-a"));
    let nobody = sluice_in(gateway.dir(), &["status", "--admin", "http://127.0.0.1:1"]).await;
    assert_ne!(nobody.code, Some(0));
    assert!(nobody.all().contains("127.0.0.1:1"), "{nobody:?}");
}

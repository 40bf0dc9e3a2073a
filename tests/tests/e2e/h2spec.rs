//! h2spec, a third-party conformance suite for HTTP/2, in strict mode against both listeners.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use sluice_tests::backend::{self, HttpBackend};
use sluice_tests::gateway::Gateway;
use sluice_tests::tls::Ca;
use sluice_tests::wait::{quiet, within};
use tokio::process::Command;

/// The number of cases in h2spec 2.2.1. Fewer mean that not all cases ran.
const CASES: usize = 146;

/// Far more than the ten seconds it takes: reached only by a run that hangs.
const LIMIT: Duration = Duration::from_secs(240);

/// A known deviation: a case that fails, and why the behaviour is right.
struct Deviation {
    package: &'static str,
    case: &'static str,
    why: &'static str,
}

/// Without TLS one port speaks HTTP/1 and HTTP/2.
const WITHOUT_TLS: [Deviation; 1] = [Deviation {
    package: "http2/3.5",
    case: "Sends invalid connection preface",
    why: "RFC 9113 3.4: \"A GOAWAY frame MAY be omitted in this case, since an invalid preface indicates that the \
          peer is not using HTTP/2.\" What is not the preface is an HTTP/1 request here, and a bad one: RFC 9112 3: \
          \"A recipient of an invalid request-line SHOULD respond with either a 400 (Bad Request) error or a 301\". \
          The connection is closed after it, as the case wants, but h2spec takes the answer for a broken frame.",
}];

const WITH_TLS: [Deviation; 0] = [];

/// What `tests/run` built, if it could.
fn h2spec() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("SLUICE_H2SPEC") {
        return Some(path.into());
    }
    assert!(
        std::env::var_os("SLUICE_REQUIRE_H2SPEC").is_none(),
        "h2spec is required here: see tests/run"
    );
    eprintln!("SKIPPED: SLUICE_H2SPEC does not say where h2spec is; tests/run builds it where there is Go");
    None
}

#[tokio::test]
async fn http2_is_spoken_as_the_specification_says() {
    let Some(h2spec) = h2spec() else { return };
    // Some cases send a second frame that must be seen before the request is answered: an answer at once would
    // win the race now and then.
    let backend = HttpBackend::builder("a")
        .stream(|_| async {
            quiet(Duration::from_millis(200)).await;
            backend::ok(backend::full("what h2spec reads in pieces"))
        })
        .start()
        .await;
    let addr = backend.addr();
    let builder = Gateway::builder(&format!(
        r#"listeners:
  - address: "127.0.0.1:0"
  - address: "127.0.0.1:0"
    tls: {{certificates: [{{certFile: a.crt, keyFile: a.key}}]}}
services:
  - name: web
    hosts: ["127.0.0.1"]
    endpoints: ["{addr}"]
"#
    ));
    Ca::new().issue(&["127.0.0.1"]).write(builder.dir(), "a");
    let gateway = builder.start().await;
    let (plain, tls) = (gateway.listener(0).port(), gateway.listener(1).port());
    tokio::join!(
        check(&h2spec, gateway.dir(), plain, &[], &WITHOUT_TLS),
        check(&h2spec, gateway.dir(), tls, &["--tls", "--insecure"], &WITH_TLS),
    );
}

/// Runs all cases and compares the failures with the known deviations.
async fn check(h2spec: &Path, dir: &Path, port: u16, args: &[&str], known: &[Deviation]) {
    let report = dir.join(format!("h2spec-{port}.xml"));
    let run = Command::new(h2spec)
        .args(["--strict", "--timeout", "10", "--host", "127.0.0.1", "--port"])
        .arg(port.to_string())
        .arg("--junit-report")
        .arg(&report)
        .args(args)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = within("h2spec ends", LIMIT, run).await;
    let output = output.unwrap_or_else(|e| panic!("{}: {e}", h2spec.display()));
    let said = String::from_utf8_lossy(&output.stdout);
    let report = std::fs::read_to_string(&report).unwrap_or_else(|e| panic!("no report ({e}): {said}"));
    let (cases, failed) = read(&report);
    assert_eq!(cases, CASES, "{said}");
    let failures = said.split("Failures:").nth(1).unwrap_or_default();
    for deviation in known {
        assert!(
            failed.contains(&(deviation.package, deviation.case)),
            "passes now, no longer a deviation: {} {} ({})",
            deviation.package,
            deviation.case,
            deviation.why
        );
    }
    let expected: BTreeSet<_> = known.iter().map(|d| (d.package, d.case)).collect();
    assert_eq!(failed, expected, "h2spec {args:?}: {failures}");
}

/// How many cases ran, and the package and description of each that failed.
fn read(report: &str) -> (usize, BTreeSet<(&str, &str)>) {
    let mut failed = BTreeSet::new();
    let cases: Vec<_> = report.split("<testcase ").skip(1).collect();
    for case in &cases {
        let attribute = |name: &str| {
            let (_, value) = case
                .split_once(&format!("{name}=\""))
                .expect("an attribute of every case");
            value.split('"').next().expect("a quoted value")
        };
        let body = case.split("</testcase>").next().expect("at least something");
        if body.contains("<failure") || body.contains("<error") || body.contains("<skipped") {
            failed.insert((attribute("package"), attribute("classname")));
        }
    }
    (cases.len(), failed)
}

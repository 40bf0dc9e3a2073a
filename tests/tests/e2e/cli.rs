//! The command line: exit codes, and output on stdout and stderr.

use std::path::Path;

use sluice_tests::backend::HttpBackend;
use sluice_tests::cli::sluice_in;
use sluice_tests::gateway::{Gateway, with_defaults};
use sluice_tests::tls::Ca;
use tokio::net::TcpListener;

use crate::{WEB, web};

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

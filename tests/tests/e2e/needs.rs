//! Needs: what a revision needs is started and ready before it, and held above zero while it runs.

use std::path::Path;

use sluice_tests::cli::sluice_in;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1;
use sluice_tests::process::line_count;
use sluice_tests::wait::{SOON, wait_for, wait_until};

use crate::WEB;
use crate::check::check;
use crate::cold_start::{exec_echo, mark};

/// `web` needs `mid`, which needs `db`; each starts by its script.
fn chain(web: &str, mid: &str, db: &str) -> String {
    let service = |name: &str, needs: &str, script: &str, window: &str| {
        format!(
            "  - name: {name}\n    revisions:\n      - name: {name}-a\n        {needs}\n        process: {{command: [sh, -c, \"{script}\"]}}\n        autoscaling: {{window: {window}}}\n"
        )
    };
    format!(
        "errorDetail: true\nservices:\n{}{}{}",
        service("web", "needs: [default/mid]", web, "20s"),
        service("mid", "needs: [db-a]", mid, "6s"),
        service("db", "", db, "6s"),
    )
}

/// Appends this name to the file, then becomes an echo server.
fn noted(log: &Path, name: &str) -> String {
    format!("echo {name} >> {}; {}", log.display(), exec_echo(name))
}

async fn revision(gateway: &Gateway, name: &str) -> serde_json::Value {
    let value = gateway.admin_json("/api/revisions").await;
    let revisions = value["revisions"].as_array().expect("revisions");
    let found = revisions.iter().find(|revision| revision["revision"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {value}")).clone()
}

#[tokio::test]
async fn needs_are_ready_first_and_held_while_the_dependent_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (log, go) = (dir.path().join("log"), dir.path().join("go"));
    let db = format!(
        "{}; while [ ! -e {} ]; do sleep 0.02; done; {}",
        mark(&log),
        go.display(),
        exec_echo("db")
    );
    let gateway = Gateway::start(&chain(&noted(&log, "web"), &noted(&log, "mid"), &db)).await;
    let (address, request) = (gateway.addr(), h1::get(WEB, "/"));
    let response = tokio::spawn(async move { h1::fetch(address, &request).await.expect("a response") });
    // Only the last need is started, until it is ready.
    wait_until("db starts", SOON, || line_count(&log) == 1).await;
    wait_for("web waits for mid, and mid for db", SOON, async || {
        let (web, mid) = (
            revision(&gateway, "web-a").await,
            revision(&gateway, "mid-a").await,
        );
        let waits = web["waits_for"][0] == "default/mid-a" && mid["waits_for"][0] == "default/db-a";
        waits.then_some(())
    })
    .await;
    assert_eq!(line_count(&log), 1, "nothing else was started");
    std::fs::write(&go, "").unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status, 200, "{}", response.text());
    let started = std::fs::read_to_string(&log).unwrap();
    assert_eq!(
        started.lines().skip(1).collect::<Vec<_>>(),
        ["mid", "web"],
        "in this order"
    );

    let (web, db) = (
        revision(&gateway, "web-a").await,
        revision(&gateway, "db-a").await,
    );
    assert_eq!(
        (&web["needs"][0], &db["held_by"][0]),
        (&"default/mid-a".into(), &"default/mid-a".into())
    );
    let admin = format!("http://{}", gateway.admin());
    let status = sluice_in(gateway.dir(), &["status", "--admin", &admin]).await;
    assert!(status.all().contains("held for default/mid-a"), "{status:?}");
    // The windows of mid and db are over long before that of web, which holds them; then they go one after the other.
    wait_for("all of them at zero", SOON * 6, async || {
        let value = gateway.admin_json("/api/revisions").await;
        let ready = ["web-a", "mid-a", "db-a"].map(|name| {
            let mut all = value["revisions"].as_array().expect("revisions").iter();
            all.any(|revision| revision["revision"] == name && revision["ready"] != 0)
        });
        assert!(
            (!ready[0] || ready[1]) && (!ready[1] || ready[2]),
            "gone before its dependent: {ready:?}"
        );
        ready.iter().all(|ready| !ready).then_some(())
    })
    .await;
    assert_eq!(line_count(&log), 3, "none was started twice");
}

#[tokio::test]
async fn a_failed_start_of_a_need_fails_the_dependent_with_its_cause() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let gateway = Gateway::start(&chain(
        &noted(&log, "web"),
        &noted(&log, "mid"),
        "echo no disk >&2; exit 5",
    ))
    .await;
    let response = gateway.get(WEB, "/").await;
    assert_eq!(
        (response.status, response.reason()),
        (503, Some("activation_failed"))
    );
    let told = response.text();
    for part in [
        "default/mid-a, which it needs",
        "default/db-a, which it needs",
        "no disk",
    ] {
        assert!(told.contains(part), "no {part:?} in {told}");
    }
    assert_eq!(line_count(&log), 0, "nothing was started in vain");
    // Within the back-off the next one is answered as quickly.
    assert_eq!(gateway.get(WEB, "/").await.reason(), Some("activation_failed"));
}

#[tokio::test]
async fn explain_names_what_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("sluice.yaml"), chain("true", "true", "true")).unwrap();
    let told = sluice_in(dir.path(), &["explain", &format!("http://{WEB}:8080/")]).await;
    assert!(
        told.stdout.contains("needs") && told.stdout.contains("default/mid-a"),
        "{told:?}"
    );
}

#[tokio::test]
async fn a_cycle_and_an_unknown_name_are_mistakes() {
    let cycle = chain("true", "true", "true").replacen("        \n", "        needs: [web-a]\n", 1);
    let done = check(&cycle).await;
    assert_eq!(done.code, Some(1), "{done:?}");
    let whole = "default/db-a → default/web-a → default/mid-a → default/db-a";
    assert!(done.all().contains(whole), "{}", done.all());
    assert!(
        done.all().contains("sluice.yaml:"),
        "with its place: {}",
        done.all()
    );
    let itself = chain("true", "true", "true").replace("needs: [db-a]", "needs: [mid]");
    let done = check(&itself).await;
    assert!(
        done.all().contains("default/mid-a → default/mid-a"),
        "{}",
        done.all()
    );
    let unknown = chain("true", "true", "true").replace("needs: [db-a]", "needs: [default/bd-a]");
    let done = check(&unknown).await;
    assert_eq!(done.code, Some(1), "{done:?}");
    let told = done.all();
    assert!(
        told.contains("nothing is named 'default/bd-a'") && told.contains("did you mean 'default/db-a'?"),
        "{told}"
    );
}

//! Commands for single services through the binary: `rollback`, `revisions`, what `status` says of them, and how an override
//! ends.

use std::net::SocketAddr;

use serde_json::Value;
use sluice_tests::backend::HttpBackend;
use sluice_tests::cli::{Finished, sluice_in};
use sluice_tests::gateway::Gateway;
use sluice_tests::load::Load;
use sluice_tests::wait::{SOON, wait_for};

use crate::WEB;

/// Runs `sluice ARGS…` against this gateway.
pub(crate) async fn command(gateway: &Gateway, args: &[&str]) -> Finished {
    let url = format!("http://{}", gateway.admin());
    sluice_in(gateway.dir(), &[args, &["--admin", &url]].concat()).await
}

/// The same, which has to succeed.
pub(crate) async fn done(gateway: &Gateway, args: &[&str]) -> Finished {
    let finished = command(gateway, args).await;
    assert_eq!(finished.code, Some(0), "{args:?}: {finished:?}");
    finished
}

/// The service `web` whose latest revision, the last one, has all of the traffic.
fn latest(revisions: &[(&str, SocketAddr)]) -> String {
    let revisions = revisions
        .iter()
        .map(|(name, addr)| format!("      - {{name: {name}, endpoints: [\"{addr}\"]}}\n"));
    format!(
        "services:\n  - name: web\n    traffic: [{{latestRevision: true, percent: 100, tag: new}}]\n    revisions:\n{}",
        revisions.collect::<String>()
    )
}

async fn row(gateway: &Gateway, revision: &str) -> Value {
    let value = gateway.admin_json("/api/revisions?service=web").await;
    let rows = value["revisions"].as_array().expect("revisions");
    let found = rows.iter().find(|row| row["revision"] == revision);
    found
        .unwrap_or_else(|| panic!("no {revision} in {value}"))
        .clone()
}

/// Who answers.
async fn who(gateway: &Gateway) -> String {
    let answer = gateway.get(WEB, "/").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text()
}

#[tokio::test]
async fn a_rollback_moves_the_traffic_and_back_and_loses_nothing() {
    let (a, b) = (HttpBackend::start("a").await, HttpBackend::start("b").await);
    let gateway = Gateway::start(&latest(&[("web-1", a.addr()), ("web-2", b.addr())])).await;
    let load = Load::get(gateway.addr(), 4, WEB);
    assert_eq!(who(&gateway).await, "b");
    let back = done(&gateway, &["rollback", "web"]).await;
    assert!(
        back.stdout
            .contains("web-1 has the traffic of latestRevision in place of web-2")
            && back.stdout.contains("revisionName: web-1"),
        "{back:?}"
    );
    // The command returns when it is published.
    assert_eq!(who(&gateway).await, "a");
    assert_eq!(
        gateway.get(&format!("new-{WEB}"), "/").await.text(),
        "a",
        "tags follow"
    );
    let first = row(&gateway, "web-1").await;
    assert_eq!(
        (&first["percent"], &first["override"]["pinned"]),
        (&100.into(), &"web-1".into())
    );
    assert_eq!(first["override"]["files"]["latestRevision"], "web-2");

    let status = done(&gateway, &["status"]).await.stdout;
    assert!(
        status.contains("rolled back to web-1 by command")
            && status.contains("the files say: 100 % to the latest revision, web-2")
            && status.contains("To make it permanent: ")
            && status.contains("It ends when the files change the service."),
        "{status}"
    );
    let revisions = done(&gateway, &["revisions", "default/web"]).await.stdout;
    assert!(
        revisions.contains("pinned") && revisions.contains("no traffic"),
        "{revisions}"
    );

    let forth = done(&gateway, &["rollback", "web", "web-2", "--format", "json"])
        .await
        .json();
    assert_eq!(
        (&forth["done"], &forth["service"], &forth["override"]),
        (&true.into(), &"default/web".into(), &Value::Null)
    );
    assert_eq!(who(&gateway).await, "b");
    assert_eq!(row(&gateway, "web-1").await["override"], Value::Null);
    let report = load.stop().await;
    report.assert_clean();
}

#[tokio::test]
async fn what_cannot_be_done_exits_with_1_and_says_why() {
    let (a, b) = (HttpBackend::start("a").await, HttpBackend::start("b").await);
    let gateway = Gateway::start(&latest(&[("web-1", a.addr()), ("web-2", b.addr())])).await;
    for (args, why) in [
        (&["rollback", "wbe"][..], "there is no service 'default/wbe'"),
        (&["rollback", "shop/web"], "did you mean 'default/web'?"),
        (
            &["rollback", "web", "web-12"],
            "there is no revision 'web-12': did you mean 'web-1'?",
        ),
        (&["rollback", "web", "web-2"], "web-2 has the traffic already"),
        (&["resume", "web"], "the service is not paused"),
        (&["rollout", "pause", "web"], "there is no rollout"),
        (&["rollout", "resume", "web"], "there is no rollout"),
        (&["rollout", "promote", "web"], "there is no rollout"),
        (&["rollout", "abort", "web"], "there is no rollout"),
        (&["rollout", "retry", "web"], "there is no rollout"),
        (&["rollout", "status", "web"], "there is no rollout"),
        (&["rollout", "status", "wbe"], "there is no service 'default/wbe'"),
        (&["revisions", "wbe"], "there is no service 'default/wbe'"),
    ] {
        let refused = command(&gateway, args).await;
        assert_eq!(refused.code, Some(1), "{args:?}: {refused:?}");
        assert!(refused.stderr.contains(why), "{args:?}: {refused:?}");
    }
    assert_eq!(who(&gateway).await, "b");
    let nobody = sluice_in(gateway.dir(), &["pause", "web", "--admin", "http://127.0.0.1:1"]).await;
    assert_eq!(nobody.code, Some(2), "{nobody:?}");
    let usage = command(&gateway, &["pause", "a/b/c"]).await;
    assert_eq!(usage.code, Some(2), "{usage:?}");
}

#[tokio::test]
async fn an_override_ends_when_the_files_change_the_service_and_not_before() {
    let (a, b) = (HttpBackend::start("a").await, HttpBackend::start("b").await);
    let gateway = Gateway::start(&latest(&[("web-1", a.addr()), ("web-2", b.addr())])).await;
    done(&gateway, &["rollback", "web"]).await;
    // Another service is no change of this one, nor is a mistake.
    gateway
        .rewrite_config(|old| {
            let other = a.addr();
            format!("{old}\n  - name: other\n    revisions:\n      - {{name: other-1, endpoints: [\"{other}\"]}}\n")
        })
        .await;
    assert_eq!(who(&gateway).await, "a");
    let sound = std::fs::read_to_string(gateway.config_path()).unwrap();
    std::fs::write(
        gateway.config_path(),
        sound.replace("percent: 100", "percent: 10"),
    )
    .unwrap();
    wait_for("the mistake is seen", SOON, async || {
        (gateway.reloads("rejected").await > 0.0).then_some(())
    })
    .await;
    assert_eq!(who(&gateway).await, "a");
    // A command needs no sound files.
    done(&gateway, &["rollback", "web", "web-2"]).await;
    assert_eq!(who(&gateway).await, "b");
    done(&gateway, &["rollback", "web", "web-1"]).await;
    assert_eq!(who(&gateway).await, "a");
    std::fs::write(gateway.config_path(), sound.replace("tag: new", "tag: newest")).unwrap();
    wait_for("the files are followed", SOON, async || {
        (who(&gateway).await == "b").then_some(())
    })
    .await;
    assert_eq!(row(&gateway, "web-1").await["override"], Value::Null);
    let status = done(&gateway, &["status"]).await.stdout;
    assert!(!status.contains("rolled back"), "{status}");
}

#[tokio::test]
async fn an_override_survives_a_restart_and_an_upgrade_with_a_state_directory() {
    let (a, b) = (HttpBackend::start("a").await, HttpBackend::start("b").await);
    let folder = tempfile::tempdir().unwrap();
    let config = format!(
        "state: {{directory: {}}}\n{}",
        folder.path().join("state").display(),
        latest(&[("web-1", a.addr()), ("web-2", b.addr())])
    );
    let mut gateway = Gateway::start(&config).await;
    done(&gateway, &["rollback", "web"]).await;
    done(&gateway, &["pause", "web"]).await;
    gateway.sigterm();
    gateway.wait_exit(SOON).await;
    let again = Gateway::start(&config).await;
    let over = row(&again, "web-1").await["override"].clone();
    assert_eq!(
        (&over["pinned"], &over["paused"]),
        (&"web-1".into(), &true.into())
    );
    // An upgrade hands it over, too.
    again.may_be_upgraded();
    again.upgraded().await;
    let over = row(&again, "web-1").await["override"].clone();
    assert_eq!(
        (&over["pinned"], &over["paused"]),
        (&"web-1".into(), &true.into())
    );
    let load = Load::get(again.addr(), 2, WEB);
    wait_for("requests are held", SOON, async || {
        (row(&again, "web-1").await["queued"] == 2).then_some(())
    })
    .await;
    done(&again, &["resume", "web"]).await;
    load.advance(20).await;
    let report = load.stop().await;
    report.assert_clean();
    assert_eq!(report.bodies.keys().collect::<Vec<_>>(), ["a"]);
}

/// The old process hands histories over from memory to memory: what an operator said holds from the new one's first request on.
#[tokio::test]
async fn an_override_survives_an_upgrade_without_a_state_directory() {
    let (a, b) = (HttpBackend::start("a").await, HttpBackend::start("b").await);
    let gateway = Gateway::start(&latest(&[("web-1", a.addr()), ("web-2", b.addr())])).await;
    let before = Load::get(gateway.addr(), 2, WEB);
    before.advance(20).await;
    before.stop().await.assert_clean();
    done(&gateway, &["rollback", "web"]).await;
    gateway.may_be_upgraded();
    let load = Load::get_anew(gateway.addr(), 2, WEB);
    load.advance(20).await;
    gateway.upgraded().await;
    load.advance(200).await;
    let report = load.stop().await;
    report.assert_clean();
    assert_eq!(
        report.bodies.keys().collect::<Vec<_>>(),
        ["a"],
        "not for a moment"
    );
    assert_eq!(row(&gateway, "web-1").await["override"]["pinned"], "web-1");
    // The new process hands them on.
    gateway.upgraded().await;
    assert_eq!(row(&gateway, "web-1").await["override"]["pinned"], "web-1");
}

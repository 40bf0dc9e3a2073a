//! Rollouts, rollbacks and pauses in the dashboard, in Chromium.

use serde_json::{Value, json};
use sluice_tests::backend::HttpBackend;
use sluice_tests::browser::{Browser, chromium};
use sluice_tests::gateway::Gateway;
use sluice_tests::wait::{SOON, wait_for};

use crate::WEB;
use crate::commands::{command, done};

/// What would run where it became HTML.
const HOSTILE: &str = "<img src=x onerror=window.hacked=1>";

/// The service `web`, whose latest revision, the last one, gets its traffic in steps.
fn stepwise(revisions: &[String]) -> String {
    format!(
        "admin: {{address: 127.0.0.1:0, token: t0ken}}\nservices:\n  - name: web\n    rollout: {{steps: [20, 50], every: 1h}}\n    revisions:\n{}",
        revisions.concat()
    )
}

fn fixed(name: &str, backend: &HttpBackend) -> String {
    format!("      - {{name: {name}, endpoints: [\"{}\"]}}\n", backend.addr())
}

async fn rollout(gateway: &Gateway) -> Value {
    let value = gateway.admin_json("/api/revisions?service=web").await;
    value["revisions"][0]["rollout"].clone()
}

/// Whether the box of the service says this.
fn says(text: &str) -> String {
    format!(
        "document.querySelector('.release').textContent.includes({})",
        json!(text)
    )
}

fn press(label: &str) -> String {
    let label = json!(label);
    format!("[...document.querySelectorAll('.acts button')].find(b => b.textContent === {label}).click()")
}

async fn opened(gateway: &Gateway, chromium: &std::path::Path) -> Browser {
    let mut browser = Browser::start(chromium).await;
    browser.resize(1280, 900, false).await;
    browser
        .open(&format!("http://{}/dashboard", gateway.admin()))
        .await;
    browser.wait("document.querySelector('.release') !== null").await;
    browser
}

async fn give_token(browser: &mut Browser) {
    browser.eval("document.getElementById('token').focus()").await;
    browser.write("t0ken").await;
}

#[tokio::test]
async fn a_rollout_is_shown_with_its_judgement_and_steered_with_the_token() {
    let Some(chromium) = chromium() else { return };
    let (a, b) = (HttpBackend::start("a").await, HttpBackend::start("b").await);
    let gateway = Gateway::start(&stepwise(&[fixed("web-1", &a)])).await;
    gateway.get(WEB, "/").await;
    gateway
        .reload(&stepwise(&[fixed("web-1", &a), fixed("web-2", &b)]))
        .await;
    wait_for("the first step", SOON, async || {
        (rollout(&gateway).await["percent"] == 20.0).then_some(())
    })
    .await;
    let mut browser = opened(&gateway, &chromium).await;
    browser.wait(&says("Rollout of web-2 from web-1: running")).await;
    browser.wait(&says("20 % of latestRevision, step 1")).await;
    // What both did over the same time.
    wait_for("both are judged", SOON, async || {
        gateway.get(WEB, "/").await;
        let judgement = rollout(&gateway).await["judgement"].clone();
        let known = |side: &str| judgement[side]["requests"].as_u64() > Some(0);
        (known("candidate") && known("base")).then_some(())
    })
    .await;
    browser
        .wait("document.querySelectorAll('.judgement li').length === 2")
        .await;
    browser
        .wait("document.querySelector('.judgement').textContent.includes('0 failed')")
        .await;

    // Without the token nothing happens but a word about it.
    browser.eval(&press("Abort")).await;
    browser
        .wait("document.getElementById('acted').textContent === 'The token is needed.'")
        .await;
    assert_eq!(rollout(&gateway).await["state"], "running");
    give_token(&mut browser).await;
    for (label, state) in [
        ("Pause rollout", "paused"),
        ("Resume rollout", "running"),
        ("Abort", "aborted"),
    ] {
        browser.eval(&press(label)).await;
        browser.wait(&says(state)).await;
        assert_eq!(rollout(&gateway).await["state"], state);
    }
    browser
        .wait("document.getElementById('acted').textContent.startsWith('default/web: ')")
        .await;
    browser.eval(&press("Retry")).await;
    browser.wait(&says("running")).await;
    browser.eval(&press("Promote")).await;
    // What is over is news no more.
    browser.wait("document.querySelector('.release').hidden").await;
    assert_eq!(rollout(&gateway).await["state"], "completed");
    assert_eq!(gateway.get(WEB, "/").await.text(), "b");
}

#[tokio::test]
async fn what_is_overridden_is_shown_and_a_pause_is_ended() {
    let Some(chromium) = chromium() else { return };
    let (a, b) = (HttpBackend::start("a").await, HttpBackend::start("b").await);
    let config = stepwise(&[fixed("web-1", &a), fixed("web-2", &b)])
        .replace("    rollout: {steps: [20, 50], every: 1h}\n", "");
    let gateway = Gateway::start(&config).await;
    let token = gateway.dir().join("token");
    std::fs::write(&token, "t0ken").unwrap();
    let token = ["--token-file", token.to_str().unwrap()];
    let mut browser = opened(&gateway, &chromium).await;
    assert_eq!(
        browser.eval("document.querySelector('.release').hidden").await,
        true
    );
    done(&gateway, &[&["rollback", "web"][..], &token].concat()).await;
    browser.wait(&says("Rolled back to web-1 by command")).await;
    browser
        .wait(&says("The files say: 100 % to the latest revision, web-2."))
        .await;
    browser.wait(&says("To make it permanent: ")).await;
    done(&gateway, &[&["pause", "web"][..], &token].concat()).await;
    browser.wait(&says("Paused by command")).await;
    give_token(&mut browser).await;
    browser.eval(&press("Resume requests")).await;
    browser
        .wait("!document.querySelector('.release').textContent.includes('Paused')")
        .await;
    assert_eq!(gateway.get(WEB, "/").await.text(), "a");
    let again = command(&gateway, &[&["resume", "web"][..], &token].concat()).await;
    assert_eq!(again.code, Some(1), "{again:?}");
}

/// The reason of a rollout repeats what a new revision's process said.
#[tokio::test]
async fn a_hostile_reason_is_text() {
    let Some(chromium) = chromium() else { return };
    let a = HttpBackend::start("a").await;
    let fails = format!(
        "      - name: web-2\n        process: {{command: [sh, -c, \"echo '{HOSTILE}' >&2; exit 7\"]}}\n"
    );
    let gateway = Gateway::start(&stepwise(&[fixed("web-1", &a)])).await;
    gateway.reload(&stepwise(&[fixed("web-1", &a), fails])).await;
    wait_for("the reason is known", SOON, async || {
        let reason = rollout(&gateway).await["reason"].as_str()?.to_owned();
        reason.contains(HOSTILE).then_some(())
    })
    .await;
    assert_eq!(gateway.get(WEB, "/").await.text(), "a", "nothing has moved");
    let mut browser = opened(&gateway, &chromium).await;
    browser.wait(&says(HOSTILE)).await;
    assert_eq!(browser.eval("window.hacked ?? null").await, Value::Null);
    assert_eq!(browser.eval("document.querySelectorAll('img').length").await, 0);
    browser.resize(360, 780, true).await;
    browser.wait("innerWidth === 360").await;
    assert_eq!(
        browser.eval("document.documentElement.scrollWidth <= 360").await,
        true
    );
    let status = command(&gateway, &["rollout", "status", "web"]).await;
    assert!(
        status.code == Some(0) && status.stdout.contains("waits for"),
        "{status:?}"
    );
}

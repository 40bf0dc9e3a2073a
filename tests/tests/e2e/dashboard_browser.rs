//! The dashboard in Chromium: what others named is text, the keyboard suffices, a phone is wide enough.

use std::path::Path;

use serde_json::{Value, json};
use sluice_tests::backend::HttpBackend;
use sluice_tests::browser::{Browser, chromium};
use sluice_tests::gateway::Gateway;
use sluice_tests::h1;
use sluice_tests::wait::{SOON, wait_for};

/// What would run where it became HTML; without a slash, so that it can be a file's name.
const HOSTILE: &str = "<img src=x onerror=window.hacked=1>";

/// Every field that a config, a backend or a client controls and that the dashboard shows holds [`HOSTILE`], as far as
/// the field may.
fn hostile_config(socket: &Path, more: &str) -> String {
    format!(
        r#"
listeners: [{{address: 127.0.0.1:0}}]
admin: {{address: 127.0.0.1:0, token: t0ken}}
accessLog: {{format: json}}
services:
  - name: web
    routes:
      - match: {{headers: {{X-Odd: {{exact: "{HOSTILE}"}}}}}}
        traffic: [{{revisionName: web-a, percent: 100}}]
    traffic: [{{revisionName: web-a, percent: 60, tag: a}}, {{revisionName: web-b, percent: 40}}]
    revisions:
      - name: web-a
        endpoints: ["unix:{}"]
      - name: web-b
        process: {{command: [sh, -c, "echo '{HOSTILE}' >&2; exit 7"]}}
  - {{name: other, endpoints: [127.0.0.1:1]}}
{more}"#,
        socket.display()
    )
}

/// Mistakes whose messages repeat what was written.
fn mistakes() -> String {
    format!(
        r#"
  - {{name: "{HOSTILE}", hosts: ["{HOSTILE}"], "{HOSTILE}": 1, endpoints: ["{HOSTILE}"]}}
  - name: third
    revisions: [{{name: "{HOSTILE}", endpoints: [127.0.0.1:1]}}]
"#
    )
}

/// No element was made of what is text, nothing of it ran, and nothing was asked of another host.
async fn is_unharmed(browser: &mut Browser, admin: &str) {
    assert_eq!(browser.eval("window.hacked ?? null").await, Value::Null);
    let foreign = "document.querySelectorAll('img, iframe, object, embed, link, base').length";
    assert_eq!(browser.eval(foreign).await, 0);
    assert_eq!(browser.eval("document.scripts.length").await, 1);
    for never in ["Page.javascriptDialogOpening", "Runtime.exceptionThrown"] {
        assert_eq!(browser.told(never), [&Value::Null; 0], "{never}");
    }
    let violations: Vec<_> = browser
        .told("Log.entryAdded")
        .into_iter()
        .filter(|told| told["entry"]["source"] == "security" || told["entry"]["source"] == "violation")
        .collect();
    assert_eq!(violations, [&Value::Null; 0]);
    for request in browser.told("Network.requestWillBeSent") {
        let url = request["request"]["url"].as_str().expect("a URL");
        assert!(url.starts_with(admin) || url == "about:blank", "{url}");
    }
}

#[tokio::test]
async fn hostile_names_are_text_everywhere() {
    let Some(chromium) = chromium() else { return };
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join(format!("{HOSTILE}.sock"));
    let config = folder.path().join("config");
    std::fs::create_dir(&config).unwrap();
    let file = config.join(format!("{HOSTILE}.yaml"));
    std::fs::write(&file, hostile_config(&socket, "")).unwrap();
    let gateway = Gateway::builder("").source(&config).start().await;
    // A client's host, path and fields; and the failure of a start, told by the instance itself.
    let odd = h1::request(
        "GET",
        "web.default.localhost",
        "/",
        &[("X-Odd", HOSTILE), ("User-Agent", HOSTILE)],
        b"",
    );
    gateway.send(&odd).await;
    gateway.send(&h1::get(HOSTILE, "/")).await;
    wait_for("web-b fails to start", SOON, async || {
        gateway.get("web.default.localhost", "/").await;
        let all = gateway.admin_json("/api/revisions").await;
        let mut revisions = all["revisions"].as_array()?.iter();
        let failure = revisions.find(|row| row["revision"] == "web-b")?["last_failure"].as_str()?;
        failure.contains(HOSTILE).then_some(())
    })
    .await;
    std::fs::write(&file, hostile_config(&socket, &mistakes())).unwrap();

    let mut browser = Browser::start(&chromium).await;
    let admin = format!("http://{}/", gateway.admin());
    browser.open(&format!("{admin}dashboard")).await;
    let some = |selector: &str, text: &str| {
        let (selector, text) = (json!(selector), json!(text));
        format!("[...document.querySelectorAll({selector})].some(e => e.textContent.includes({text}))")
    };
    let holds = |selector: &str| some(selector, HOSTILE);
    for selector in ["td.why.bad", ".matches", "#mistakes"] {
        browser.wait(&holds(selector)).await;
    }
    // The file's name, too.
    browser
        .wait(&some("#mistakes .code", &format!("{HOSTILE}.yaml")))
        .await;
    browser
        .eval("document.querySelectorAll('button.name').forEach(b => b.textContent === 'web-a' && b.click())")
        .await;
    browser.wait(&holds(".endpoints")).await;
    // The form that explains: what was asked comes back.
    browser
        .eval("document.getElementById('explain-url').focus()")
        .await;
    browser
        .write(&format!("http://web.default.localhost/{HOSTILE}"))
        .await;
    browser.press("Enter").await;
    browser
        .wait("document.querySelector('#explained dl') !== null")
        .await;
    browser.eval("document.getElementById('explain-url').value = ''; document.getElementById('explain-url').focus()").await;
    browser.write(&format!("{HOSTILE}://{HOSTILE}")).await;
    browser.press("Enter").await;
    browser.wait(&holds("#explained")).await;
    is_unharmed(&mut browser, &admin).await;
}

#[tokio::test]
async fn the_keyboard_reaches_everything_and_a_phone_shows_it() {
    let Some(chromium) = chromium() else { return };
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&format!(
        "admin: {{address: 127.0.0.1:0, token: t0ken}}\n{}",
        crate::web(backend.addr())
    ))
    .await;
    gateway.get(crate::WEB, "/").await;
    let mut browser = Browser::start(&chromium).await;
    let admin = format!("http://{}/", gateway.admin());
    browser.resize(1280, 900, false).await;
    browser.open(&format!("{admin}dashboard")).await;
    browser
        .wait("document.querySelector('button.name') !== null")
        .await;
    browser
        .wait("document.getElementById('state-text').textContent === 'live'")
        .await;

    // Everything that can be used, in the order of the page, with a focus that is seen.
    let focused =
        "(() => { const e = document.activeElement; return e.id || e.className || e.textContent; })()";
    let seen = "getComputedStyle(document.activeElement).outlineStyle !== 'none'";
    let mut order = Vec::new();
    while order.last().is_none_or(|last| last != "upgrade") && order.len() < 20 {
        browser.press("Tab").await;
        assert_eq!(browser.eval(seen).await, true, "after {order:?}");
        let now = browser.eval(focused).await.as_str().unwrap().to_owned();
        if now == "plot" && order.last().is_some_and(|last| last == "plot") {
            continue;
        }
        if now == "plot" {
            let before = browser.eval("document.activeElement.ariaValueText").await;
            browser.press("ArrowLeft").await;
            let after = browser.eval("document.activeElement.ariaValueText").await;
            assert_ne!(before, after);
        }
        if now == "name" {
            browser.press("Enter").await;
            browser
                .wait("document.activeElement.getAttribute('aria-expanded') === 'true'")
                .await;
            browser
                .wait("document.getElementById('hour-of').textContent === 'default/web-a'")
                .await;
            browser
                .wait("document.querySelector('.endpoints').textContent.includes('127.0.0.1')")
                .await;
        }
        order.push(now);
    }
    let at = |what: &str| {
        order
            .iter()
            .position(|one| one == what)
            .unwrap_or_else(|| panic!("no {what} in {order:?}"))
    };
    assert_eq!(at("skip"), 0, "{order:?}");
    let wanted = [
        "plot",
        "find",
        "name",
        "explain-method",
        "explain-url",
        "explain-headers",
        "token",
        "upgrade",
    ];
    let places = wanted.map(at);
    assert!(places.is_sorted(), "{order:?}");

    // The token is nowhere but in its field, and a wrong one changes nothing.
    browser
        .eval("window.confirm = () => true; document.getElementById('token').focus()")
        .await;
    browser.write("not-it").await;
    browser.press("Enter").await;
    browser
        .wait("document.getElementById('acted').textContent.includes('not the token')")
        .await;
    let kept = "localStorage.length + sessionStorage.length + document.cookie.length";
    assert_eq!(browser.eval(kept).await, 0);
    assert_eq!(gateway.serving_pid().await, gateway.pid());

    // The right one.
    gateway.may_be_upgraded();
    browser
        .eval("document.getElementById('token').value = ''; document.getElementById('token').focus()")
        .await;
    browser.write("t0ken").await;
    browser.press("Enter").await;
    browser
        .wait("/^Process \\d+ serves/.test(document.getElementById('acted').textContent)")
        .await;
    let pid = gateway.serving_pid().await;
    assert_ne!(pid, gateway.pid());
    // The page follows the new process by itself.
    browser
        .wait(&format!(
            "document.getElementById('about').textContent.includes('process {pid}')"
        ))
        .await;

    browser.resize(360, 780, true).await;
    browser.wait("innerWidth === 360").await;
    assert_eq!(
        browser.eval("document.documentElement.scrollWidth <= 360").await,
        true
    );
    let inside = "[...document.querySelectorAll('main *')].filter(e => !e.closest('.hidden, svg') && e.getBoundingClientRect().right > 361).map(e => e.className)";
    assert_eq!(browser.eval(inside).await, json!([]));
    is_unharmed(&mut browser, &admin).await;
}

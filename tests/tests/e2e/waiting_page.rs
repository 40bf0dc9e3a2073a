//! The waiting page: what a browser sees while something starts, and what a page starts and keeps.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sluice_tests::cli::sluice_in;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1Response};
use sluice_tests::h2_client::{self, H2};
use sluice_tests::process::line_count;
use sluice_tests::wait::{SOON, quiet, wait_for, wait_until};

use crate::WEB;
use crate::cold_start::{exec_echo, mark, shell_service};

/// What Chromium sends.
const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8";

/// An instance that becomes ready when the test opens its gate.
struct Gated {
    dir: tempfile::TempDir,
}

impl Gated {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("a directory"),
        }
    }

    fn gate(&self) -> PathBuf {
        self.dir.path().join("gate")
    }

    fn open(&self) {
        std::fs::write(self.gate(), "").expect("is written");
    }

    fn starts(&self) -> usize {
        line_count(&self.dir.path().join("starts"))
    }

    /// The service `web`: `service` has more keys of the service, `revision` of its revision, one a line each.
    fn config(&self, service: &str, revision: &str) -> String {
        let script = format!(
            "{}; while [ ! -e {} ]; do sleep 0.02; done; {}",
            mark(&self.dir.path().join("starts")),
            self.gate().display(),
            exec_echo("Namaste")
        );
        with_keys(&shell_service(&script, revision), service)
    }
}

/// Adds keys to the service, one a line.
pub(crate) fn with_keys(config: &str, keys: &str) -> String {
    let keys: String = keys.lines().map(|line| format!("    {line}\n")).collect();
    config.replacen("  - name: web\n", &format!("  - name: web\n{keys}"), 1)
}

fn asks(target: &str, accept: &str) -> Vec<u8> {
    h1::request("GET", WEB, target, &[("Accept", accept)], b"")
}

async fn browse(gateway: &Gateway, target: &str) -> H1Response {
    gateway.send(&asks(target, BROWSER)).await
}

/// Asks again for the same URL, as a browser does for `Refresh`, until the answer is there.
async fn follow(gateway: &Gateway, target: &str) -> H1Response {
    wait_for("the page gives way to the answer", SOON, async || {
        let response = browse(gateway, target).await;
        let again = response.header("refresh").is_some();
        assert!(again || response.status == 200, "{}", response.text());
        (!again).then_some(response)
    })
    .await
}

#[tokio::test]
async fn a_browser_without_scripts_follows_the_page_to_the_answer() {
    let instance = Gated::new();
    let gateway = Gateway::start(&instance.config("cold: {answer: page}", "")).await;
    let mut connection = h1::H1::connect(gateway.addr()).await.unwrap();
    for _ in 0..3 {
        // On one connection: a page ends none.
        let page = connection
            .exchange(&asks("/shop?secret-of-the-client=1", BROWSER))
            .await
            .unwrap();
        assert_eq!(
            (page.status, page.reason()),
            (503, Some("starting")),
            "{}",
            page.text()
        );
        assert_eq!(
            page.header("refresh"),
            Some("2"),
            "the same URL, without an address"
        );
        assert_eq!(page.header("retry-after"), Some("2"));
        assert_eq!(page.header("cache-control"), Some("no-store"));
        assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
        assert!(page.header("x-request-id").is_some() && page.header("date").is_some());
        let policy = page.header("content-security-policy").expect("a policy");
        assert!(
            policy.starts_with("default-src 'none';") && !policy.contains("script-src"),
            "{policy}"
        );
        assert!(
            page.text().contains("<title>web is starting</title>"),
            "{}",
            page.text()
        );
        assert!(
            !page.text().contains("secret-of-the-client"),
            "nothing of the client's is in it"
        );
    }
    let response = {
        let h2 = H2::connect(gateway.addr()).await;
        let mut request = h2_client::get("http", WEB, "/shop");
        request.headers_mut().insert("accept", BROWSER.parse().unwrap());
        h2.exchange(request, Bytes::new()).await.unwrap()
    };
    assert_eq!((response.status, response.header("refresh")), (503, Some("2")));
    assert_eq!(response.header("x-sluice-reason"), Some("starting"));
    assert!(response.text().ends_with("</html>\n"));
    wait_until("the instance is started", SOON, || instance.starts() == 1).await;
    assert_eq!(
        gateway.metric("sluice_queue_depth", &[]).await,
        0.0,
        "a page is no waiter"
    );
    assert_eq!(gateway.metric("sluice_activations_total", &[]).await, 0.0);
    let pages = [("service", "web"), ("reason", "starting")];
    // Counted after the response was sent.
    gateway
        .wait_metric("sluice_rejections_total", &pages, SOON, |n| n == 4.0)
        .await;
    let logged = gateway
        .wait_access_log("a page", |e| e["reason"] == "starting")
        .await;
    assert_eq!(
        (&logged["status"], &logged["revision"]),
        (&503.into(), &"web-a".into()),
        "{logged}"
    );
    wait_for("the page tells the phase", SOON, async || {
        let page = browse(&gateway, "/").await.text();
        page.contains("<dd>booting</dd>").then_some(())
    })
    .await;
    instance.open();
    let answer = follow(&gateway, "/shop?x=1").await;
    assert!(
        answer.text().contains("Namaste") && answer.text().contains("/shop?x=1"),
        "{}",
        answer.text()
    );
    assert_eq!(instance.starts(), 1, "one start for all pages");
    assert_eq!(
        gateway
            .metric("sluice_activations_total", &[("result", "ready")])
            .await,
        1.0
    );
}

#[tokio::test]
async fn everything_but_a_browsers_get_is_held() {
    let instance = Gated::new();
    let routes = "cold: {answer: page}\nroutes: [{match: {path: {prefix: /api}}, cold: {answer: hold}}]";
    let gateway = Gateway::start(&instance.config(routes, "")).await;
    let addr = gateway.addr();
    let requests = [
        asks("/", "*/*"),
        asks("/", "text/html;q=0, */*"),
        asks("/", "application/json"),
        asks("/api/x", BROWSER),
        h1::get(WEB, "/"),
        h1::request("POST", WEB, "/", &[("Accept", BROWSER)], b""),
        h1::request("HEAD", WEB, "/", &[("Accept", BROWSER)], b""),
        h1::request("GET", WEB, "/", &[("Accept", BROWSER)], b"hi"),
    ];
    let count = requests.len();
    let held = requests.map(|request| tokio::spawn(async move { h1::fetch(addr, &request).await }));
    gateway
        .wait_metric("sluice_queue_depth", &[], SOON, |n| n == count as f64)
        .await;
    assert_eq!(browse(&gateway, "/apis").await.reason(), Some("starting"));
    instance.open();
    for held in held {
        let response = held.await.unwrap().unwrap();
        assert_eq!(response.status, 200, "{}", response.text());
    }
    assert_eq!(instance.starts(), 1);
}

/// The page is written with the client's flow control: it is larger than a window of HTTP/2.
#[tokio::test]
async fn a_page_of_ones_own_is_read_at_load_and_by_a_reload() {
    let instance = Gated::new();
    let page = "cold: {answer: page, title: \"Tea & <Cake>\", status: 200, refresh: 7s, file: pages/wait.html}\nroutes: [{match: {path: {prefix: /plain}}, cold: {answer: page}}]";
    let (padding, titles) = ("p{color:red}".repeat(5_200), "{title}".repeat(250));
    let template = format!("<style>{padding}</style>{titles}<p>{{phase}} {{elapsed}} {{expected}} {{other}}");
    let builder = Gateway::builder(&instance.config(page, ""));
    std::fs::create_dir(builder.dir().join("pages")).unwrap();
    let gateway = builder.file("pages/wait.html", &template).start().await;
    let file = gateway.dir().join("pages/wait.html");
    let h2 = H2::connect(gateway.addr()).await;
    let mut request = h2_client::get("http", WEB, "/");
    request.headers_mut().insert("accept", BROWSER.parse().unwrap());
    let own = h2.exchange(request, Bytes::new()).await.unwrap();
    assert_eq!((own.status, own.header("refresh")), (200, Some("7")));
    let (text, titles) = (own.text(), "Tea &amp; &lt;Cake&gt;".repeat(250));
    assert!(text.len() > 65_535, "more than a window");
    assert!(text.starts_with(&format!("<style>{padding}</style>{titles}<p>")));
    assert!(
        text.ends_with(" 0 s unknown {other}"),
        "{}",
        &text[text.len() - 50..]
    );
    let builtin = browse(&gateway, "/plain").await;
    assert!(
        builtin.text().contains("<title>web is starting</title>"),
        "a route's answer replaces the service's"
    );

    std::fs::write(&file, "second {phase}").unwrap();
    assert!(
        browse(&gateway, "/").await.text().starts_with("<style>"),
        "only a reload reads it again"
    );
    gateway.sighup();
    wait_for("the reload reads the file", SOON, async || {
        browse(&gateway, "/")
            .await
            .text()
            .starts_with("second ")
            .then_some(())
    })
    .await;
    // What cannot be read leaves the last content in place, and is told.
    std::fs::write(&file, "x".repeat(65_537)).unwrap();
    gateway.sighup();
    gateway.wait_said("at most 64 KiB").await;
    assert!(browse(&gateway, "/").await.text().starts_with("second "));
    // A change of the service that names a file which cannot be read changes nothing.
    gateway.write_config(&instance.config("cold: {answer: page, file: pages/absent.html}", ""));
    gateway.wait_said("absent.html: No such file").await;
    assert!(browse(&gateway, "/").await.text().starts_with("second "));
}

#[tokio::test]
async fn check_names_the_line_of_a_page_that_cannot_be_shown() {
    let dir = tempfile::tempdir().unwrap();
    let write = |page: &str| {
        let text = format!(
            "services:\n  - name: web\n    endpoints: [\"127.0.0.1:1\"]\n    cold: {{answer: page, file: {page}}}\n"
        );
        std::fs::write(dir.path().join("sluice.yaml"), text).unwrap();
    };
    std::fs::write(dir.path().join("large.html"), "x".repeat(65_537)).unwrap();
    std::fs::write(dir.path().join("fits.html"), "x".repeat(65_536)).unwrap();
    for (page, message) in [
        ("absent.html", "No such file"),
        (".", "a waiting page has to be a regular file"),
        ("/dev/zero", "a waiting page has to be a regular file"),
        ("large.html", "a waiting page has at most 64 KiB"),
    ] {
        write(page);
        let done = sluice_in(dir.path(), &["check"]).await;
        assert_eq!(done.code, Some(1), "{page}: {done:?}");
        let said = format!("{}{}", done.stdout, done.stderr);
        assert!(
            said.contains("sluice.yaml:4:32: error") && said.contains(message),
            "{page}: {said}"
        );
    }
    write("fits.html");
    assert_eq!(sluice_in(dir.path(), &["check"]).await.code, Some(0));
}

/// A command that fails, and says so in markup.
fn broken(dir: &Path) -> String {
    let script = format!(
        "{}; echo '<img src=x onerror=alert(1)>' >&2; exit 3",
        mark(&dir.join("starts"))
    );
    with_keys(&shell_service(&script, ""), "cold: {answer: page}")
}

#[tokio::test]
async fn a_failed_start_is_told_and_not_repeated_before_its_back_off_ends() {
    for detailed in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let gateway = Gateway::start(&format!("errorDetail: {detailed}\n{}", broken(dir.path()))).await;
        let starts = || line_count(&dir.path().join("starts"));
        let shown_as_starting = std::cell::Cell::new(false);
        let failed = wait_for("the failure is shown", SOON, async || {
            let page = browse(&gateway, "/").await;
            if page.reason() == Some("starting") {
                shown_as_starting.set(true);
            }
            (page.reason() == Some("activation_failed")).then_some(page)
        })
        .await;
        assert!(shown_as_starting.get());
        assert_eq!((failed.status, failed.header("refresh")), (503, Some("2")));
        assert!(failed.text().contains("failed"), "{}", failed.text());
        assert_eq!(
            failed.text().contains("&lt;img src=x onerror=alert(1)&gt;"),
            detailed,
            "{}",
            failed.text()
        );
        assert!(!failed.text().contains("<img"), "{}", failed.text());
        // However often the page is asked for, there is no start before a page says so again.
        let mut within = 0;
        loop {
            let before = starts();
            if browse(&gateway, "/").await.reason() != Some("activation_failed") {
                break;
            }
            assert!(starts() == before || within == 0, "a start within the back-off");
            within += 1;
        }
        assert!(
            within > 10,
            "the back-off lasts for a while, not for {within} pages"
        );
    }
}

/// The start takes longer than the window; nobody comes back; then the instance stays for three times the refresh
/// interval, which is longer than the window, too.
#[tokio::test]
async fn the_started_instance_is_kept_for_the_browser() {
    let instance = Gated::new();
    let page = "cold: {answer: page, refresh: 4s}";
    let gateway = Gateway::start(&instance.config(page, "autoscaling: {window: 6s}")).await;
    assert_eq!(browse(&gateway, "/").await.reason(), Some("starting"));
    wait_until("the instance is started", SOON, || instance.starts() == 1).await;
    quiet(Duration::from_secs(8)).await;
    assert_eq!(browse(&gateway, "/").await.header("refresh"), Some("4"));
    assert_eq!(instance.starts(), 1, "the start outlives the window");
    instance.open();
    gateway.wait_ready_instances("web-a", 1.0, SOON).await;
    let ready = Instant::now();
    gateway
        .wait_ready_instances("web-a", 0.0, Duration::from_secs(40))
        .await;
    let kept = ready.elapsed();
    assert!(
        kept > Duration::from_millis(11_500),
        "three times the refresh, not {kept:?}"
    );
    assert!(kept < Duration::from_secs(20), "and no longer, not {kept:?}");
}

/// A page for what a platform starts: at zero nobody but a browser asks for the configured address.
#[tokio::test]
async fn a_page_proves_a_configured_address() {
    let platform = crate::webhook::platform(|_, _| crate::webhook::status(202)).await;
    let (_reserved, address) = crate::webhook::reserve();
    let config = crate::webhook::service(&platform, Some(address), "");
    let gateway = Gateway::start(&with_keys(&config, "cold: {answer: page}")).await;
    for _ in 0..3 {
        assert_eq!(browse(&gateway, "/").await.reason(), Some("starting"));
    }
    wait_until("the platform is asked", SOON, || platform.count() == 1).await;
    let backend = sluice_tests::backend::HttpBackend::builder("elsewhere")
        .at(address)
        .start()
        .await;
    let answer = follow(&gateway, "/").await;
    assert_eq!(answer.text(), "elsewhere");
    assert_eq!(backend.count(), 1, "a page never reaches the backend");
}

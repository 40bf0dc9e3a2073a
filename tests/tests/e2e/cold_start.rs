//! Cold starts: the first request starts an instance and is held until the instance is ready.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use sluice_tests::cli::sluice_bin;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1};
use sluice_tests::h2_client::{self, H2};
use sluice_tests::process::{line_count, require_python3, with_marker};
use sluice_tests::tls::Ca;
use sluice_tests::wait::{SOON, wait_for, wait_until};

use crate::WEB;

/// The service `web` with one process that a shell starts; more keys of its revision, one a line.
pub(crate) fn shell_service(script: &str, revision: &str) -> String {
    let more: String = revision
        .lines()
        .map(|line| format!("        {}\n", line.trim()))
        .collect();
    let script = script.replace('\'', "''");
    format!(
        "services:\n  - name: web\n    revisions:\n      - name: web-a\n        process: {{command: [sh, -c, '{script}']}}\n{more}"
    )
}

/// A shell command that becomes `sluice echo` with this message.
pub(crate) fn exec_echo(message: &str) -> String {
    format!(
        "exec {} echo --port $(PORT) --message {message}",
        sluice_bin().display()
    )
}

/// Appends a line to a file, to count starts.
pub(crate) fn mark(file: &Path) -> String {
    format!("echo started >> {}", file.display())
}

async fn burst(addr: SocketAddr, count: usize) -> Vec<h1::H1Response> {
    let requests: Vec<_> = (0..count)
        .map(|_| tokio::spawn(async move { h1::fetch(addr, &h1::get(WEB, "/")).await }))
        .collect();
    let mut responses = Vec::new();
    for request in requests {
        let response = request.await.expect("no panic");
        responses.push(response.expect("every request of the burst is answered"));
    }
    responses
}

#[tokio::test]
async fn the_first_request_is_held_until_its_instance_is_ready() {
    let gateway = Gateway::start(
        "services:\n  - name: web\n    revisions:\n      - name: web-a\n        process: {command: [sluice, echo, --message, Namaste, --start-delay, 300ms]}\n",
    )
    .await;
    assert_eq!(gateway.metric("sluice_activations_total", &[]).await, 0.0);
    let response = gateway.get(WEB, "/").await;
    assert_eq!(response.status, 200, "{}", response.text());
    assert!(response.text().contains("Namaste"), "{}", response.text());
    gateway.wait_ready_instances("web-a", 1.0, SOON).await;
    assert_eq!(gateway.metric("sluice_activations_total", &[]).await, 1.0);
    let entry = gateway
        .wait_access_log("the held request", |e| e["revision"] == "web-a")
        .await;
    assert!(entry["queue_ms"].as_f64().unwrap() >= 300.0, "{entry}");
}

#[tokio::test]
async fn a_hundred_first_requests_make_one_start() {
    let dir = tempfile::tempdir().unwrap();
    let starts = dir.path().join("starts");
    let script = format!("{}; {}", mark(&starts), exec_echo("hi"));
    let more = "autoscaling: {target: 1000}";
    let gateway = Gateway::start(&shell_service(&script, more)).await;
    for response in burst(gateway.addr(), 100).await {
        assert_eq!(response.status, 200, "{}", response.text());
    }
    assert_eq!(line_count(&starts), 1);
}

#[tokio::test]
async fn a_hundred_first_requests_pass_a_server_with_an_accept_queue_of_five() {
    require_python3();
    let dir = tempfile::tempdir().unwrap();
    let starts = dir.path().join("starts");
    let script = format!(
        "{}; exec python3 -m http.server --bind 127.0.0.1 $(PORT)",
        mark(&starts)
    );
    let more = "containerConcurrency: 5\nautoscaling: {maxScale: 1}";
    let gateway = Gateway::start(&shell_service(&script, more)).await;
    for response in burst(gateway.addr(), 100).await {
        assert_eq!(response.status, 200, "{}", response.text());
    }
    assert_eq!(line_count(&starts), 1);
}

#[tokio::test]
async fn an_instance_knows_its_port_service_and_revision() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("env");
    let script = format!(
        "env > {0}.new; echo args $(PORT) $(K_SERVICE) $(K_REVISION) >> {0}.new; mv {0}.new {0}; {1}",
        file.display(),
        exec_echo("hi")
    );
    let gateway = Gateway::start(&shell_service(&script, "")).await;
    assert_eq!(gateway.get(WEB, "/").await.status, 200);
    let env = std::fs::read_to_string(&file).unwrap();
    let value = |key: &str| {
        env.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .unwrap_or_else(|| panic!("no {key} in {env}"))
            .to_owned()
    };
    let port: u16 = value("PORT").parse().unwrap();
    assert!((20_000..=29_999).contains(&port));
    assert_eq!(
        (value("K_SERVICE").as_str(), value("K_REVISION").as_str()),
        ("web", "web-a")
    );
    assert!(env.contains(&format!("args {port} web web-a")), "{env}");
}

#[tokio::test]
async fn output_goes_to_the_log_under_the_name_of_the_revision() {
    let script = format!("echo from-stdout; echo from-stderr >&2; {}", exec_echo("hi"));
    let gateway = Gateway::start(&shell_service(&script, "")).await;
    assert_eq!(gateway.get(WEB, "/").await.status, 200);
    for text in ["from-stdout", "from-stderr"] {
        gateway.wait_said(text).await;
        let lines = [gateway.stdout(), gateway.stderr()].concat();
        assert!(
            lines.iter().any(|l| l.contains(text) && l.contains("web-a")),
            "no revision beside {text}"
        );
    }
}

/// Starts a gateway whose one process becomes a server, which records what it is asked, only
/// when `go` exists. The server takes plain connections and TLS.
struct Held {
    gateway: Gateway,
    ca: Ca,
    dir: tempfile::TempDir,
}

impl Held {
    async fn start() -> Self {
        require_python3();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let server = r#"
import http.server, sys
class Recorder(http.server.BaseHTTPRequestHandler):
    def answer(self):
        with open(sys.argv[2], "a") as record:
            record.write(self.path + "\n")
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    do_GET = do_POST = answer
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Recorder).serve_forever()
"#;
        std::fs::write(dir.path().join("server.py"), server).expect("the directory is writable");
        let at = dir.path().display();
        let script = format!(
            "while [ ! -e {at}/go ]; do sleep 0.02; done; exec python3 {at}/server.py $(PORT) {at}/record"
        );
        let services = shell_service(&script, "");
        let builder = Gateway::builder(&format!(
            "listeners:\n  - {{address: \"127.0.0.1:0\"}}\n  - {{address: \"127.0.0.1:0\", tls: {{certificates: [{{certFile: a.crt, keyFile: a.key}}]}}}}\n{services}"
        ));
        let ca = Ca::new();
        ca.issue(&[WEB]).write(builder.dir(), "a");
        let gateway = builder.start().await;
        Self { gateway, ca, dir }
    }

    async fn wait_queued(&self, count: f64, limit: Duration) {
        let labels = [("revision", "web-a")];
        self.gateway
            .wait_metric("sluice_queue_depth", &labels, limit, |n| n == count)
            .await;
    }

    fn go(&self) {
        std::fs::write(self.dir.path().join("go"), "").expect("the directory is writable");
    }

    /// Lets the instance start, and returns every requested path until `/last`.
    async fn finish(self) -> Vec<String> {
        self.go();
        assert_eq!(self.gateway.get(WEB, "/last").await.status, 200);
        let record = std::fs::read_to_string(self.dir.path().join("record")).expect("the file is there");
        record.lines().map(str::to_owned).collect()
    }
}

/// How soon a place in the queue must be free after its client left.
const AT_ONCE: Duration = Duration::from_millis(100);

#[tokio::test]
async fn a_client_that_leaves_frees_its_place_at_once_over_h1() {
    let held = Held::start().await;
    let addr = held.gateway.addr();
    for reset in [false, true] {
        let mut client = H1::connect(addr).await.unwrap();
        client.send(&h1::get(WEB, "/left")).await.unwrap();
        held.wait_queued(1.0, SOON).await;
        if reset {
            client.reset();
        } else {
            drop(client);
        }
        held.wait_queued(0.0, AT_ONCE).await;
    }
    assert_eq!(
        held.finish().await,
        ["/last"],
        "who left must not reach the backend"
    );
}

#[tokio::test]
async fn a_client_that_leaves_with_its_body_unread_frees_its_place_at_once() {
    let held = Held::start().await;
    let mut client = H1::connect(held.gateway.addr()).await.unwrap();
    let head = format!("POST /left HTTP/1.1\r\nHost: {WEB}\r\nContent-Length: 1000000\r\n\r\n");
    client.send(head.as_bytes()).await.unwrap();
    held.wait_queued(1.0, SOON).await;
    // Unread bytes come before the end of file.
    client.send(&[b'x'; 32 * 1024]).await.unwrap();
    drop(client);
    held.wait_queued(0.0, AT_ONCE).await;
    let log = held.gateway.wait_access_log("499", |e| e["status"] == 499).await;
    assert_eq!(log["reason"], "client_gone");
    assert_eq!(held.finish().await, ["/last"]);
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_place_at_once_over_tls() {
    let held = Held::start().await;
    let addr = held.gateway.listener(1);
    for alpn in ["http/1.1", "h2"] {
        let io = held.ca.connect(addr, WEB, &[alpn]).await.unwrap();
        if alpn == "h2" {
            let h2 = H2::over(io).await;
            let mut send = h2.send.clone().ready().await.unwrap();
            let get = h2_client::get("https", WEB, "/left");
            let _response = send.send_request(get, true).unwrap();
            held.wait_queued(1.0, SOON).await;
            drop((send, h2));
        } else {
            let mut client = H1::over(io);
            client.send(&h1::get(WEB, "/left")).await.unwrap();
            held.wait_queued(1.0, SOON).await;
            drop(client);
        }
        held.wait_queued(0.0, AT_ONCE).await;
    }
    assert_eq!(held.finish().await, ["/last"]);
}

#[tokio::test]
async fn an_h2_stream_that_is_reset_frees_its_place_at_once_and_alone() {
    let held = Held::start().await;
    let h2 = H2::connect(held.gateway.addr()).await;
    let mut send = h2.send.clone().ready().await.unwrap();
    let (kept, _) = send
        .send_request(h2_client::get("http", WEB, "/kept"), true)
        .unwrap();
    let mut send = send.ready().await.unwrap();
    let (left, mut body) = send
        .send_request(h2_client::with_method("POST", "http", WEB, "/left"), false)
        .unwrap();
    body.send_data(Bytes::from_static(b"unread"), false).unwrap();
    held.wait_queued(2.0, SOON).await;
    body.send_reset(h2::Reason::CANCEL);
    drop(left);
    held.wait_queued(1.0, AT_ONCE).await;
    held.go();
    assert_eq!(kept.await.unwrap().status(), 200);
    assert_eq!(held.finish().await, ["/kept", "/last"]);
}

#[tokio::test]
async fn no_instance_survives_the_gateway_not_even_a_grandchild() {
    for kill in [Gateway::sigkill, Gateway::sigterm] {
        let marker = format!("sluice-test-{:016x}", fastrand::u64(..));
        let script = format!(
            "export MARKER={marker}; {} echo --port $(PORT) & sleep 1000 & wait",
            sluice_bin().display()
        );
        let config = shell_service(&script, "");
        let mut gateway = Gateway::start(&config).await;
        assert_eq!(gateway.get(WEB, "/").await.status, 200);
        assert_eq!(with_marker(&marker).len(), 3, "a shell and its children");
        kill(&gateway);
        gateway.wait_exit(SOON).await;
        wait_until("every process of the instance is gone", SOON, || {
            with_marker(&marker).is_empty()
        })
        .await;
    }
}

#[tokio::test]
async fn an_edited_process_takes_over_without_losing_a_request() {
    let gateway = Gateway::start(&shell_service(&exec_echo("before"), "")).await;
    let load = sluice_tests::load::Load::get(gateway.addr(), 4, WEB);
    load.advance(50).await;
    gateway.reload(&shell_service(&exec_echo("after"), "")).await;
    wait_for("the new process answers", SOON, async || {
        gateway.get(WEB, "/").await.text().contains("after").then_some(())
    })
    .await;
    load.advance(50).await;
    load.stop().await.assert_clean();
}

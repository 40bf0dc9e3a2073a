//! Instances that look ready and are not. RFC 9110 9.2.2 says which requests may be sent again: idempotent ones whose
//! body can still be replayed.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use sluice_tests::cli::sluice_bin;
use sluice_tests::gateway::{Builder, Gateway};
use sluice_tests::h1::{self, H1Response};
use sluice_tests::process::require_python3;
use sluice_tests::wait::{SOON, within};

use crate::WEB;

/// Seconds from an instance's first listen until the instance is really ready.
const MOMENTS: [&str; 5] = ["0.05", "0.1", "0.3", "0.8", "2.0"];

const GOOD_PROBE: &str = "        readinessProbe: {httpGet: {path: /ready}}\n";

/// An instance that misbehaves in one way for its first `unready` seconds. Afterwards it answers, except for the first
/// request for a target below `/once`, after which it closes the connection. Every request read goes to `notes`.
const APP: &str = r#"
import os, socket, struct, sys, threading, time
how, unready, open_for, notes = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
# A process that has slept gets its turn at once.
time.sleep(0.05)
def listen():
    return socket.create_server(("127.0.0.1", int(os.environ["PORT"])), backlog=256)
listener = listen()
start = time.monotonic()
if how == "refuse":
    # As a program that loads, looks around and runs itself anew.
    time.sleep(open_for)
    listener.close()
    time.sleep(max(0, start + unready - time.monotonic()))
    listener = listen()
seen, lock = set(), threading.Lock()
def answer(c, status):
    c.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
def serve(c, early):
    c.settimeout(60)
    try:
        data = b""
        while b"\r\n\r\n" not in data:
            piece = c.recv(65536)
            if not piece:
                return
            data += piece
        head, body = data.split(b"\r\n\r\n", 1)
        lines = head.decode().split("\r\n")
        length = [int(l.split(":")[1]) for l in lines if l.lower().startswith("content-length:")]
        while len(body) < sum(length):
            body += c.recv(65536)
        method, target, _ = lines[0].split(" ")
        if target == "/ready":
            return answer(c, b"200 OK")
        with lock:
            with open(notes, "a") as f:
                f.write(method + " " + target + "\n")
            first = target not in seen
            seen.add(target)
        if first and target.startswith("/once"):
            return
        if early and how == "hang up":
            return
        answer(c, b"503 Service Unavailable" if early else b"200 OK")
    except OSError:
        pass
    finally:
        c.close()
def leave(c):
    time.sleep(open_for)
    if how == "reset":
        c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    c.close()
while True:
    c, _ = listener.accept()
    early = time.monotonic() - start < unready
    if early and how in ("close", "reset"):
        if open_for:
            threading.Thread(target=leave, args=(c,), daemon=True).start()
        else:
            leave(c)
    else:
        threading.Thread(target=serve, args=(c, early), daemon=True).start()
"#;

/// An HTTP/2 instance that ends every connection for `unready` seconds: at once, after the preface, with GOAWAY, or with
/// a protocol error. Then it becomes `sluice echo`, with a listener of its own.
const H2C: &str = r#"
import os, socket, sys, time
how, unready, sluice = sys.argv[1], float(sys.argv[2]), sys.argv[3]
listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])), backlog=256)
listener.settimeout(0.01)
settings = bytes.fromhex("000000040000000000")
goaway = lambda code: bytes.fromhex("0000080700000000000000000000000000")[:-1] + bytes([code])
start = time.monotonic()
while time.monotonic() - start < unready:
    try:
        c, _ = listener.accept()
    except TimeoutError:
        continue
    c.settimeout(0.02)
    try:
        if how != "close":
            c.recv(24)
        if how == "goaway":
            c.sendall(settings + goaway(0))
        if how == "protocol error":
            c.sendall(settings + goaway(1))
    except OSError:
        pass
    c.close()
os.execv(sluice, [sluice, "echo"])
"#;

fn app(how: &str, unready: &str, open: &str, notes: &Path, more: &str) -> Builder {
    require_python3();
    let notes = notes.display();
    Gateway::builder(&format!(
        "services:\n  - name: web\n    revisions:\n      - name: web-a\n        process: {{command: [python3, app.py, \
         \"{how}\", \"{unready}\", \"{open}\", \"{notes}\"]}}\n{more}"
    ))
    .file("app.py", APP)
}

/// Ten GETs and ten POSTs at once.
async fn twenty(gateway: &Gateway) -> Vec<(String, H1Response)> {
    let addr = gateway.addr();
    let held: Vec<_> = (0..20)
        .map(|n| {
            tokio::spawn(async move {
                let target = format!("/{n}");
                let (method, request) = match n % 2 {
                    0 => ("GET", h1::get(WEB, &target)),
                    _ => (
                        "POST",
                        h1::request("POST", WEB, &target, &[], b"not to be sent twice"),
                    ),
                };
                (format!("{method} {target}"), h1::fetch(addr, &request).await)
            })
        })
        .collect();
    let mut answers = Vec::new();
    for request in held {
        let (request, answer) = within("an answer", SOON, request).await.expect("no panic");
        answers.push((request, answer.expect("an answer")));
    }
    answers
}

/// Asserts that each GET is served, that each POST is served or gets `upstream_error` because the instance closed during
/// the request, and that no request is read twice.
async fn every_request_is_answered(gateway: &Gateway, notes: Option<&Path>, case: &str) {
    let answers = twenty(gateway).await;
    let read = notes.map(|notes| {
        let mut times = HashMap::new();
        for line in std::fs::read_to_string(notes).unwrap_or_default().lines() {
            *times.entry(line.to_owned()).or_insert(0) += 1;
        }
        times
    });
    for (request, answer) in answers {
        let text = answer.text();
        let lost = request.starts_with("POST") && answer.reason() == Some("upstream_error");
        assert_eq!(
            answer.status,
            if lost { 502 } else { 200 },
            "{case}: {request}: {text}"
        );
        if let Some(read) = &read {
            let times = read.get(&request).copied().unwrap_or(0);
            assert_eq!(times, u32::from(!lost), "{case}: {request}: {text}: {read:?}");
        }
    }
}

/// Runs the case for every moment.
async fn for_every_moment(how: &str, open: &str) {
    for unready in MOMENTS {
        let dir = tempfile::tempdir().expect("a directory");
        let notes = dir.path().join("notes");
        let gateway = app(how, unready, open, &notes, "").start().await;
        let case = format!("{how} for {unready} s after {open} s");
        every_request_is_answered(&gateway, Some(&notes), &case).await;
    }
}

#[tokio::test]
async fn an_instance_that_accepts_and_closes_is_not_ready_yet() {
    for_every_moment("close", "0").await;
}

#[tokio::test]
async fn an_instance_that_accepts_and_resets_is_not_ready_yet() {
    for_every_moment("reset", "0").await;
}

#[tokio::test]
async fn an_instance_that_holds_a_connection_and_closes_it_is_not_ready_yet() {
    for_every_moment("close", "0.02").await;
}

#[tokio::test]
async fn an_instance_that_holds_a_connection_for_long_and_resets_it_is_not_ready_yet() {
    for_every_moment("reset", "0.15").await;
}

#[tokio::test]
async fn a_listener_that_goes_and_comes_back_is_waited_for() {
    for_every_moment("refuse", "0.02").await;
}

/// Each request of [`twenty`], its response, and how often the instance read the request. The probe of the instance
/// always succeeds.
async fn twenty_with_a_good_probe(how: &str, unready: &str) -> Vec<(String, H1Response, usize)> {
    let dir = tempfile::tempdir().expect("a directory");
    let notes = dir.path().join("notes");
    let gateway = app(how, unready, "0", &notes, GOOD_PROBE).start().await;
    let answers = twenty(&gateway).await;
    let notes = std::fs::read_to_string(&notes).expect("notes");
    let read = |request: &str| notes.lines().filter(|line| *line == request).count();
    let counted = answers.into_iter().map(|(request, answer)| {
        let times = read(&request);
        (request, answer, times)
    });
    counted.collect()
}

/// Only idempotent requests are sent again to an instance that closes connections before it is ready.
#[tokio::test]
async fn a_probe_that_succeeds_before_the_rest_does() {
    for unready in ["0.05", "0.1", "0.3", "0.8"] {
        for (request, answer, times) in twenty_with_a_good_probe("hang up", unready).await {
            let text = answer.text();
            if request.starts_with("GET") {
                assert_eq!(answer.status, 200, "{unready}: {request}: {text}");
            } else {
                assert!(matches!(answer.status, 200 | 502), "{unready}: {request}: {text}");
                assert_eq!(times, 1, "{unready}: {request}: {text}");
            }
        }
    }
}

/// No request is sent again because of the status of its response.
#[tokio::test]
async fn a_503_of_an_instance_that_loads_is_passed_on() {
    for (request, answer, times) in twenty_with_a_good_probe("busy", "0.3").await {
        assert!(matches!(answer.status, 200 | 503), "{request}: {}", answer.text());
        assert_eq!(answer.reason(), None, "{request}");
        assert_eq!(times, 1, "{request}");
    }
}

#[tokio::test]
async fn over_http2_a_connection_that_ends_in_the_preface_costs_nothing() {
    require_python3();
    let sluice = sluice_bin().canonicalize().unwrap();
    let sluice = sluice.display();
    for how in ["close", "preface", "goaway", "protocol error"] {
        for unready in ["0.05", "0.3", "0.8"] {
            let gateway = Gateway::builder(&format!(
                "services:\n  - name: web\n    revisions:\n      - name: web-a\n        protocol: h2c\n        process: \
                 {{command: [python3, app.py, \"{how}\", \"{unready}\", \"{sluice}\"]}}\n"
            ))
            .file("app.py", H2C)
            .start()
            .await;
            every_request_is_answered(&gateway, None, &format!("h2c, {how} for {unready} s")).await;
        }
    }
}

/// An instance that closes every connection is taken for a starting one five times, then for a failing backend. The next
/// request fails at once.
#[tokio::test]
async fn what_hangs_up_for_good_fails_soon() {
    let dir = tempfile::tempdir().unwrap();
    let notes = dir.path().join("notes");
    let gateway = app("hang up", "3600", "0", &notes, GOOD_PROBE).start().await;
    for (target, most) in [("/first", 8), ("/next", 3)] {
        let answer = gateway.get(WEB, target).await;
        assert_eq!(answer.status, 502, "{}", answer.text());
        assert_eq!(answer.reason(), Some("upstream_error"));
        let notes = std::fs::read_to_string(&notes).unwrap();
        let times = notes.lines().filter(|line| line.ends_with(target)).count();
        assert!((3..=most).contains(&times), "{target}: {times} times");
    }
    let next = gateway
        .wait_access_log("the second", |e| e["path"] == "/next")
        .await;
    assert!(next["queue_ms"].is_null(), "it was not held: {next}");
}

/// Requests that were written are sent again only if they are idempotent and replayable.
#[tokio::test]
async fn what_was_written_goes_out_again_only_if_that_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let notes = dir.path().join("notes");
    let gateway = app("close", "0", "0", &notes, "").start().await;
    assert_eq!(gateway.get(WEB, "/").await.status, 200);
    let large = vec![b'x'; 200_000];
    let small = b"small".to_vec();
    for (method, target, body, status, times) in [
        ("GET", "/once/get", &b""[..], 200, 2),
        ("PUT", "/once/put", &small, 200, 2),
        ("DELETE", "/once/delete", b"", 200, 2),
        ("POST", "/once/post", &small, 502, 1),
        ("POST", "/once/empty", b"", 502, 1),
        ("PATCH", "/once/patch", &small, 502, 1),
        ("PUT", "/once/large", &large, 502, 1),
    ] {
        let request = h1::request(method, WEB, target, &[], body);
        let answer = within("an answer", Duration::from_secs(10), gateway.send(&request)).await;
        assert_eq!(answer.status, status, "{method} {target}: {}", answer.text());
        let notes = std::fs::read_to_string(&notes).unwrap();
        let seen = notes.lines().filter(|line| *line == format!("{method} {target}"));
        assert_eq!(seen.count(), times, "{method} {target}");
    }
}

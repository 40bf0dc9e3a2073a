//! An instance that looks ready and is not. Source: issue 8, row 14; which requests may be sent again is RFC 9110
//! 9.2.2: idempotent ones, when the client's means are still at hand.

use std::path::Path;
use std::time::Duration;

use sluice_tests::gateway::{Builder, Gateway};
use sluice_tests::h1;
use sluice_tests::process::require_python3;
use sluice_tests::wait::{SOON, within};

use crate::WEB;

/// Accepts from the start. For `unready` seconds it closes what it accepted after `open` seconds. Then it answers, but
/// not the first request for a target below `/once`: that one it reads and hangs up on. Notes every request it reads.
const APP: &str = r#"
import os, socket, sys, threading, time
unready, open_for, notes = float(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
# A process that has slept gets its turn at once.
time.sleep(0.05)
listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])), backlog=256)
start = time.monotonic()
seen, lock = set(), threading.Lock()
def serve(c):
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
        with lock:
            with open(notes, "a") as f:
                f.write(method + " " + target + "\n")
            first = target not in seen
            seen.add(target)
        if first and target.startswith("/once"):
            return
        c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
    except OSError:
        pass
    finally:
        c.close()
while True:
    c, _ = listener.accept()
    if time.monotonic() - start < unready:
        time.sleep(open_for)
        c.close()
    else:
        threading.Thread(target=serve, args=(c,), daemon=True).start()
"#;

fn app(unready: &str, open: &str, notes: &Path) -> Builder {
    require_python3();
    let notes = notes.display();
    Gateway::builder(&format!(
        "services:\n  - name: web\n    process: {{command: [python3, app.py, \"{unready}\", \"{open}\", \"{notes}\"]}}\n"
    ))
    .file("app.py", APP)
}

#[tokio::test]
async fn an_instance_that_accepts_and_closes_is_not_ready_yet() {
    for unready in ["0.8"] {
        let dir = tempfile::tempdir().unwrap();
        let notes = dir.path().join("notes");
        let gateway = app(unready, "0", &notes).start().await;
        let addr = gateway.addr();
        let held: Vec<_> = (0..20)
            .map(|n| {
                tokio::spawn(async move {
                    let request = match n % 2 {
                        0 => h1::get(WEB, "/get"),
                        _ => h1::request("POST", WEB, "/post", &[], b"not to be sent twice"),
                    };
                    h1::fetch(addr, &request).await
                })
            })
            .collect();
        for request in held {
            let answer = within("an answer", SOON, request).await.unwrap().unwrap();
            assert_eq!(answer.status, 200, "{}: {}", unready, answer.text());
        }
        let notes = std::fs::read_to_string(&notes).unwrap();
        assert_eq!(notes.lines().count(), 20, "each arrived once: {notes}");
    }
}

/// Nobody can tell whether the instance acted on what it read.
#[tokio::test]
async fn what_was_written_goes_out_again_only_if_that_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let notes = dir.path().join("notes");
    let gateway = app("0", "0", &notes).start().await;
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

//! The pre-warmed connection: the readiness probe's connection serves the first request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sluice_tests::backend::HttpBackend;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1;
use sluice_tests::process::require_python3;
use sluice_tests::raw_backend::{RawBackend, drain, read_head};
use sluice_tests::wait::SOON;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::WEB;
use crate::cold_start::shell_service;
use crate::webhook::{platform, service, status};

const HTTP_PROBE: &str = "readinessProbe: {httpGet: {path: /healthz}}";

/// A gateway with a webhook backend that already listens.
async fn in_front_of(backend: std::net::SocketAddr, more: &str) -> (Gateway, HttpBackend) {
    let platform = platform(|_, _| status(202)).await;
    let gateway = Gateway::start(&service(&platform, Some(backend), more)).await;
    (gateway, platform)
}

#[tokio::test]
async fn probe_and_first_request_are_one_connection() {
    for (probe, wanted) in [
        ("", &["/first", "/second"][..]),
        (HTTP_PROBE, &["/healthz", "/first", "/second"]),
    ] {
        let backend = HttpBackend::start("a").await;
        let (gateway, _platform) = in_front_of(backend.addr(), probe).await;
        for path in ["/first", "/second"] {
            let response = gateway.get(WEB, path).await;
            assert_eq!(response.status, 200, "{}", response.text());
            // The log line comes after the connection is returned to the pool; the response comes a moment before.
            let entry = gateway.wait_access_log(path, |e| e["path"] == path).await;
            assert_eq!(entry["attempts"], 1);
        }
        let seen: Vec<_> = backend.seen().into_iter().map(|seen| seen.target).collect();
        assert_eq!(seen, wanted);
        assert_eq!(backend.connections(), 1, "{probe}");
    }
}

#[tokio::test]
async fn an_h2c_backend_gets_its_first_stream_by_it_too() {
    let backend = HttpBackend::builder("a").h2c().start().await;
    let (gateway, _platform) = in_front_of(backend.addr(), "protocol: h2c").await;
    assert_eq!(gateway.get(WEB, "/").await.status, 200);
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn what_must_not_be_sent_twice_gets_a_connection_of_its_own() {
    let backend = HttpBackend::start("a").await;
    let (gateway, _platform) = in_front_of(backend.addr(), "").await;
    let response = gateway.send(&h1::request("POST", WEB, "/", &[], b"once")).await;
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!((backend.connections(), backend.count()), (2, 1));
}

#[tokio::test]
async fn a_probes_connection_that_is_not_used_is_closed_before_another_is_made() {
    let closed = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&closed);
    let backend = RawBackend::start(move |n, mut io: TcpStream| {
        let closed = Arc::clone(&seen);
        async move {
            if n == 0 {
                drain(&mut io).await?;
                closed.store(true, Ordering::SeqCst);
                return Ok(());
            }
            read_head(&mut io).await?;
            let status = if closed.load(Ordering::SeqCst) { 200 } else { 500 };
            let answer = format!("HTTP/1.1 {status} Said\r\nContent-Length: 0\r\n\r\n");
            io.write_all(answer.as_bytes()).await
        }
    })
    .await;
    let (gateway, _platform) = in_front_of(backend.addr(), "").await;
    let response = gateway.send(&h1::request("POST", WEB, "/", &[], b"once")).await;
    assert_eq!(response.status, 200);
    assert_eq!(backend.connections(), 2);
}

/// A backend that closes its first connection, `late` only after a request has come; serves all others.
async fn fickle(late: bool) -> RawBackend {
    RawBackend::start(move |n, mut io: TcpStream| async move {
        if n == 0 && !late {
            return Ok(());
        }
        read_head(&mut io).await?;
        if n == 0 {
            return Ok(());
        }
        io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .await?;
        drain(&mut io).await.map(drop)
    })
    .await
}

#[tokio::test]
async fn a_probes_connection_that_breaks_costs_nothing() {
    for late in [false, true] {
        let backend = fickle(late).await;
        let (gateway, _platform) = in_front_of(backend.addr(), "").await;
        let response = gateway.get(WEB, "/").await;
        assert_eq!(response.status, 200, "{late}: {}", response.text());
        assert_eq!(backend.connections(), 2);
        let shown = gateway.admin_get("/api/revisions").await.text();
        assert!(
            !shown.contains("ejected") && shown.contains("\"ready\""),
            "{shown}"
        );
    }
}

#[tokio::test]
async fn a_server_of_one_connection_at_a_time_is_not_kept_busy_by_its_probe() {
    require_python3();
    let server = r#"
import http.server, sys
class Single(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    do_GET = do_POST = answer
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Single).serve_forever()
"#;
    for (probe, method) in [
        ("", "GET"),
        ("", "POST"),
        (HTTP_PROBE, "GET"),
        (HTTP_PROBE, "POST"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("server.py");
        std::fs::write(&file, server).unwrap();
        let script = format!("exec python3 {} $(PORT)", file.display());
        let more = format!("containerConcurrency: 1\nautoscaling: {{maxScale: 1}}\n{probe}");
        let gateway = Gateway::start(&shell_service(&script, &more)).await;
        let addr = gateway.addr();
        let start = Instant::now();
        let requests: Vec<_> = (0..10)
            .map(|_| {
                let request = h1::request(method, WEB, "/", &[], b"");
                tokio::spawn(async move { h1::fetch(addr, &request).await })
            })
            .collect();
        for request in requests {
            let response = request.await.unwrap().unwrap();
            assert_eq!(response.status, 200, "{probe} {method}: {}", response.text());
        }
        assert!(start.elapsed() < SOON, "{probe} {method}: {:?}", start.elapsed());
        let entry = gateway.wait_access_log("the first", |e| e["status"] == 200).await;
        // The longest wait is for Python's own start; four seconds are the pool's idle timeout.
        let served = entry["upstream_ms"].as_f64().unwrap();
        assert!(
            served < Duration::from_secs(1).as_secs_f64() * 1e3,
            "{probe} {method}: {entry}"
        );
    }
}

//! Local responses to gRPC calls: trailers-only, with the matching gRPC status.

use bytes::Bytes;
use http::Request;
use sluice_tests::backend::HttpBackend;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1};
use sluice_tests::h2_client::{self, H2};
use sluice_tests::raw_backend::Refused;
use sluice_tests::wait::{SOON, wait_until, within};

fn call(host: &str) -> Request<()> {
    let mut request = h2_client::with_method("POST", "http", host, "/test.Echo/Unary");
    let headers = request.headers_mut();
    headers.insert(
        "content-type",
        "application/grpc+proto".parse().expect("a valid value"),
    );
    headers.insert("te", "trailers".parse().expect("a valid value"));
    request
}

/// Asserts a trailers-only response with this reason and status.
async fn assert_refused(h2: &H2, request: Request<()>, body: Option<Bytes>, reason: &str, status: &str) {
    let mut send = h2.send.clone().ready().await.expect("the connection lives");
    let (response, mut stream) = send.send_request(request, false).expect("the connection lives");
    if let Some(body) = body {
        stream.send_data(body, false).expect("the connection lives");
    }
    let response = within(reason, SOON, response)
        .await
        .expect("the connection lives");
    assert_eq!(response.status(), 200, "{reason}");
    let header = |name: &str| {
        response
            .headers()
            .get(name)
            .map(|v| v.to_str().expect("the connection lives"))
    };
    assert_eq!(header("x-sluice-reason"), Some(reason));
    assert_eq!(header("content-type"), Some("application/grpc"), "{reason}");
    assert_eq!(header("grpc-status"), Some(status), "{reason}");
    assert!(header("grpc-message").is_some_and(|m| !m.is_empty()), "{reason}");
    assert!(response.body().is_end_stream(), "{reason}: trailers-only");
}

#[tokio::test]
async fn every_refusal_is_trailers_only_with_grpcs_own_status() {
    let busy = HttpBackend::builder("").h2c().start().await;
    let slow = HttpBackend::builder("").h2c().start().await;
    let refused = Refused::new();
    let gateway = Gateway::start(&format!(
        r#"limits: {{maxBodyBytes: 10}}
services:
  - name: busy
    revisions:
      - {{name: busy-a, endpoints: ["{}"], protocol: h2c, containerConcurrency: 1, queue: {{depth: 1}}}}
  - name: slow
    revisions:
      - {{name: slow-a, endpoints: ["{}"], protocol: h2c, timeoutSeconds: 1}}
  - name: refused
    revisions:
      - {{name: refused-a, endpoints: ["{}"], protocol: h2c}}
  - name: nowhere
    revisions:
      - {{name: nowhere-a, endpoints: ["no-such-name.invalid:80"], protocol: h2c}}
  - name: broken
    revisions:
      - name: broken-a
        protocol: h2c
        process: {{command: ["false"]}}
"#,
        busy.addr(),
        slow.addr(),
        refused.addr()
    ))
    .await;
    busy.hold();
    slow.hold();
    let host = |service: &str| format!("{service}.default.localhost");
    let mut running = H1::connect(gateway.addr()).await.unwrap();
    running.send(&h1::get(&host("busy"), "/")).await.unwrap();
    wait_until("one runs", SOON, || busy.in_flight() == 1).await;
    let mut waiting = H1::connect(gateway.addr()).await.unwrap();
    waiting.send(&h1::get(&host("busy"), "/")).await.unwrap();
    gateway
        .wait_metric("sluice_queue_depth", &[("service", "busy")], SOON, |n| n == 1.0)
        .await;

    let h2 = H2::connect(gateway.addr()).await;
    assert_refused(&h2, call(&host("busy")), None, "queue_full", "14").await;
    assert_refused(&h2, call("unknown.example.com"), None, "no_route", "12").await;
    assert_refused(&h2, call(&host("slow")), None, "timeout", "4").await;
    assert_refused(&h2, call(&host("refused")), None, "connect_failed", "14").await;
    assert_refused(&h2, call(&host("nowhere")), None, "no_endpoints", "14").await;
    assert_refused(&h2, call(&host("broken")), None, "activation_failed", "14").await;
    let large = Some(Bytes::from_static(b"more than ten bytes"));
    assert_refused(&h2, call(&host("slow")), large, "body_too_large", "8").await;

    // The client's own deadline is a timer, too.
    let mut hurried = call(&host("busy"));
    hurried
        .headers_mut()
        .insert("grpc-timeout", "200m".parse().unwrap());
    busy.release();
    assert_eq!(waiting.response_to(b"GET ").await.unwrap().status, 200);
    busy.hold();
    assert_refused(&h2, hurried, None, "timeout", "4").await;
    busy.release();
}

#[tokio::test]
async fn a_call_that_only_resembles_grpc_gets_an_ordinary_answer() {
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::start(&crate::web(backend.addr())).await;
    let h2 = H2::connect(gateway.addr()).await;
    let mut request = call("unknown.example.com");
    request
        .headers_mut()
        .insert("content-type", "application/grpc-web".parse().unwrap());
    let response = h2.exchange(request, Bytes::new()).await.unwrap();
    assert_eq!((response.status, response.header("grpc-status")), (404, None));
    assert!(response.text().starts_with("no_route"));
}

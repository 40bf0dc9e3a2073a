//! Traces of requests: what a collector gets, and what backends get as `traceparent`.

use std::cell::Cell;

use futures_util::StreamExt;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use sluice_tests::backend::HttpBackend;
use sluice_tests::collector::{Collector, Trace, attribute, hex, nanos};
use sluice_tests::gateway::{Builder, Gateway};
use sluice_tests::grpc::{EchoClient, EchoServer, Note};
use sluice_tests::h1;
use sluice_tests::h2_client::{self, H2};
use sluice_tests::raw_backend::RawBackend;
use sluice_tests::wait::{SOON, wait_for, wait_until};
use sluice_tests::websocket;
use tokio_tungstenite::tungstenite::Message;

use crate::{WEB, web, web_two, web_with};

/// A gateway whose traces go to a collector soon.
pub(crate) fn traced(config: &str, collector: &Collector) -> Builder {
    Gateway::builder(config)
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url())
        .env("OTEL_BSP_SCHEDULE_DELAY", "20")
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

fn parent(flags: &str) -> String {
    format!("00-{TRACE}-{SPAN}-{flags}")
}

fn get(path: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    h1::request("GET", WEB, path, fields, b"")
}

/// Version, trace, span and flags of the `traceparent` that the backend got last.
fn sent(backend: &HttpBackend) -> [String; 4] {
    let seen = backend.last();
    let value = seen.header("traceparent").expect("a traceparent");
    let parts: Vec<_> = value.split('-').map(str::to_owned).collect();
    parts.try_into().expect("four parts")
}

fn values(trace: &Trace, keys: &[&str]) -> Vec<String> {
    let value = |key: &&str| attribute(&trace.server, key).unwrap_or_default();
    keys.iter().map(value).collect()
}

#[tokio::test]
async fn a_request_gets_a_trace_of_its_own_and_its_backend_the_attempt_as_parent() {
    let (collector, backend) = (Collector::start().await, HttpBackend::start("a").await);
    let gateway = traced(&web(backend.addr()), &collector)
        .env("OTEL_EXPORTER_OTLP_HEADERS", "api-key=s3cr%65t")
        .env(
            "OTEL_RESOURCE_ATTRIBUTES",
            "deployment.environment.name=test,service.name=no",
        )
        .env("OTEL_SERVICE_NAME", "edge")
        .start()
        .await;
    let fields = [
        ("User-Agent", "me/1"),
        ("b3", "0"),
        ("sw8", "1-x"),
        ("tracestate", "lost=1"),
    ];
    let answer = gateway.send(&get("/first?token=secret", &fields)).await;
    assert_eq!(answer.status, 200);

    let trace = collector.trace("/first").await;
    trace.assert_sound();
    assert_eq!(trace.names(), ["attempt"], "it waited for nothing");
    let attempt = &trace.children[0];
    let [version, id, span, flags] = sent(&backend);
    assert_eq!((version.as_str(), flags.as_str()), ("00", "01"));
    assert_eq!((id, span), (hex(&trace.server.trace_id), hex(&attempt.span_id)));
    let seen = backend.last();
    assert_eq!((seen.header("b3"), seen.header("sw8")), (Some("0"), Some("1-x")));
    assert_eq!(seen.header("tracestate"), None, "it belongs to no trace");

    assert_eq!(
        (trace.server.name.as_str(), trace.server.parent_span_id.len()),
        ("GET web", 0)
    );
    let keys = [
        "http.request.method",
        "url.scheme",
        "url.path",
        "server.address",
        "network.protocol.version",
        "client.address",
        "user_agent.original",
        "http.response.status_code",
        "sluice.namespace",
        "sluice.service",
        "sluice.revision",
        "sluice.reason",
        "error.type",
    ];
    let want = [
        "GET",
        "http",
        "/first",
        WEB,
        "1.1",
        "127.0.0.1",
        "me/1",
        "200",
        "default",
        "web",
        "web-a",
        "",
        "",
    ];
    assert_eq!(values(&trace, &keys), want);
    assert_eq!(
        attribute(attempt, "server.port"),
        Some(backend.addr().port().to_string())
    );
    let id = answer.header("x-request-id").map(str::to_owned);
    let id = id.or_else(|| seen.header("x-request-id").map(str::to_owned));
    assert_eq!(attribute(&trace.server, "sluice.request_id"), id);

    let post = &collector.posts()[0];
    assert_eq!(
        (post.method.as_str(), post.target.as_str()),
        ("POST", "/v1/traces")
    );
    assert_eq!(post.header("content-type"), Some("application/x-protobuf"));
    assert_eq!(post.header("api-key"), Some("s3cret"));
    let resource = collector.resource();
    assert_eq!(resource["service.name"], "edge");
    assert_eq!(resource["deployment.environment.name"], "test");
    let said = gateway.stderr().join("\n");
    assert!(
        !said.contains("s3cret") && said.contains("traces: sent to"),
        "{said}"
    );
}

#[tokio::test]
async fn the_decision_of_the_parent_is_kept() {
    let (collector, backend) = (Collector::start().await, HttpBackend::start("a").await);
    let gateway = traced(&web(backend.addr()), &collector).start().await;
    let no = parent("00");
    let unsampled = get("/unsampled", &[("traceparent", &no), ("tracestate", "a=1,b=2")]);
    assert_eq!(gateway.send(&unsampled).await.status, 200);
    let [_, trace, span, flags] = sent(&backend);
    assert_eq!((trace.as_str(), flags.as_str()), (TRACE, "00"));
    assert!(span != SPAN && span != "0".repeat(16), "our own span");
    assert_eq!(backend.last().header("tracestate"), Some("a=1,b=2"));

    // A later version with more fields and other flags is read as far as it is known.
    let later = format!("cc-{TRACE}-{SPAN}-03-more");
    let sampled = get("/sampled", &[("traceparent", &later), ("tracestate", "a=1,b=2")]);
    assert_eq!(gateway.send(&sampled).await.status, 200);
    let trace = collector.trace("/sampled").await;
    trace.assert_sound();
    assert_eq!(
        (
            hex(&trace.server.trace_id).as_str(),
            hex(&trace.server.parent_span_id).as_str()
        ),
        (TRACE, SPAN)
    );
    assert_eq!(trace.server.trace_state, "a=1,b=2");
    assert_eq!(
        sent(&backend),
        ["00", TRACE, &hex(&trace.children[0].span_id), "01"].map(str::to_owned)
    );
    assert_eq!(backend.last().header("tracestate"), Some("a=1,b=2"));

    assert_eq!(
        collector.spans().len(),
        2,
        "nothing of the request that is not sampled"
    );
    assert_eq!(gateway.metric("sluice_traces_dropped_total", &[]).await, 0.0);
}

#[tokio::test]
async fn what_is_no_traceparent_starts_a_new_trace() {
    let (collector, backend) = (Collector::start().await, HttpBackend::start("a").await);
    let gateway = traced(&web(backend.addr()), &collector).start().await;
    let valid = parent("01");
    let upper = valid.to_uppercase();
    for (path, fields) in [
        ("/version", vec![("traceparent", valid.replacen("00", "ff", 1))]),
        (
            "/zero",
            vec![("traceparent", valid.replace(SPAN, "0000000000000000"))],
        ),
        ("/upper", vec![("traceparent", upper)]),
        ("/long", vec![("traceparent", format!("{valid}-x"))]),
        (
            "/twice",
            vec![("traceparent", valid.clone()), ("traceparent", valid.clone())],
        ),
    ] {
        let mut fields: Vec<_> = fields
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        fields.push(("tracestate", "a=1"));
        assert_eq!(gateway.send(&get(path, &fields)).await.status, 200);
        let trace = collector.trace(path).await;
        assert!(
            trace.server.parent_span_id.is_empty() && hex(&trace.server.trace_id) != TRACE,
            "{path}"
        );
        assert_eq!(sent(&backend)[1], hex(&trace.server.trace_id), "{path}");
        assert_eq!(backend.last().header("tracestate"), None, "{path}");
    }
}

#[tokio::test]
async fn without_traces_their_fields_pass_untouched() {
    let (collector, backend) = (Collector::start().await, HttpBackend::start("a").await);
    let config = web(backend.addr());
    for builder in [
        Gateway::builder(&config),
        Gateway::builder(&config).env("OTEL_SERVICE_NAME", "edge"),
        traced(&config, &collector).env("OTEL_SDK_DISABLED", "true"),
        traced(&config, &collector).env("OTEL_TRACES_EXPORTER", "none"),
    ] {
        let gateway = builder.start().await;
        let fields = [
            ("traceparent", "whatever"),
            ("tracestate", "a=1"),
            ("b3", "0"),
            ("sw8", "1-x"),
        ];
        assert_eq!(gateway.send(&get("/", &fields)).await.status, 200);
        let seen = backend.last();
        for (name, value) in fields {
            assert_eq!(seen.header(name), Some(value));
        }
        assert_eq!(gateway.get(WEB, "/").await.status, 200);
        assert_eq!(backend.last().header("traceparent"), None);
        assert!(gateway.metrics().await.has_family("sluice_traces_dropped_total"));
    }
    assert!(collector.posts().is_empty());
}

#[tokio::test]
async fn an_operators_sampler_decides() {
    let (collector, backend) = (Collector::start().await, HttpBackend::start("a").await);
    let yes = parent("01");
    let sampler = |name, argument| {
        traced(&web(backend.addr()), &collector)
            .env("OTEL_TRACES_SAMPLER", name)
            .env("OTEL_TRACES_SAMPLER_ARG", argument)
            .start()
    };
    for (name, argument, alone, called) in [
        ("always_off", "", "00", "00"),
        ("parentbased_always_off", "", "00", "01"),
        ("parentbased_traceidratio", "0", "00", "01"),
        ("traceidratio", "1", "01", "01"),
    ] {
        let gateway = sampler(name, argument).await;
        assert_eq!(gateway.get(WEB, "/").await.status, 200);
        assert_eq!(sent(&backend)[3], alone, "{name}");
        assert_eq!(
            gateway.send(&get("/", &[("traceparent", &yes)])).await.status,
            200
        );
        assert_eq!(sent(&backend)[3], called, "{name}");
    }
}

#[tokio::test]
async fn a_cold_start_is_told_in_spans_that_add_up() {
    let collector = Collector::start().await;
    let config = "services:\n  - name: web\n    revisions:\n      - name: web-a\n        process: {command: [sluice, echo, --start-delay, 400ms]}\n";
    let gateway = traced(config, &collector).start().await;
    assert_eq!(gateway.get(WEB, "/first").await.status, 200);
    let trace = collector.trace("/first").await;
    trace.assert_sound();
    assert_eq!(
        trace.names(),
        ["queued", "starting", "booting", "admitting", "attempt"]
    );
    let entry = gateway.wait_access_log("/first", |e| e["path"] == "/first").await;
    assert_eq!(
        trace.children[0].start_time_unix_nano,
        trace.server.start_time_unix_nano
    );
    for pair in trace.children[..4].windows(2) {
        assert_eq!(pair[0].end_time_unix_nano, pair[1].start_time_unix_nano);
    }
    // The same lengths as in the access log.
    for phase in &trace.children[..4] {
        let logged = entry["phases_ms"][&phase.name].as_f64().expect("a phase");
        let took = nanos(phase) as f64 / 1e6;
        assert!(
            (took - logged).abs() < 0.002,
            "{}: {took} ms, {entry}",
            phase.name
        );
    }
    assert!(nanos(trace.named("booting")[0]) > 300_000_000, "{trace:#?}");
    assert!(trace.children[4].start_time_unix_nano >= trace.children[3].end_time_unix_nano);

    assert_eq!(gateway.get(WEB, "/warm").await.status, 200);
    assert_eq!(collector.trace("/warm").await.names(), ["attempt"]);
}

#[tokio::test]
async fn a_start_that_fails_and_a_client_that_leaves_are_told() {
    let collector = Collector::start().await;
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    let script = format!("while [ ! -e {} ]; do sleep 0.02; done; exit 7", go.display());
    let gateway = traced(&crate::cold_start::shell_service(&script, ""), &collector)
        .start()
        .await;
    let queued = |n| gateway.wait_metric("sluice_queue_depth", &[], SOON, move |depth| depth == n);
    let mut left = h1::H1::connect(gateway.addr()).await.unwrap();
    left.send(&get("/left", &[])).await.unwrap();
    queued(1.0).await;
    gateway.wait_said("starting an instance").await;
    left.reset();
    let left = collector.trace("/left").await;
    left.assert_sound();
    assert_eq!(left.names(), ["queued", "starting", "booting", "admitting"]);
    assert_eq!(
        values(
            &left,
            &["sluice.reason", "error.type", "http.response.status_code"]
        ),
        ["client_gone", "", ""]
    );
    assert!(nanos(&left.children[0]) + nanos(&left.children[1]) + nanos(&left.children[2]) > 0);

    let addr = gateway.addr();
    let failed = tokio::spawn(async move { h1::fetch(addr, &get("/failed", &[])).await });
    queued(1.0).await;
    std::fs::write(&go, "").unwrap();
    assert_eq!(failed.await.unwrap().unwrap().status, 503);
    let failed = collector.trace("/failed").await;
    failed.assert_sound();
    assert_eq!(failed.names(), ["queued", "starting", "booting", "admitting"]);
    let keys = ["sluice.reason", "error.type", "http.response.status_code"];
    assert_eq!(
        values(&failed, &keys),
        ["activation_failed", "activation_failed", "503"]
    );
    assert_eq!(failed.server.status.as_ref().unwrap().code(), StatusCode::Error);
}

#[tokio::test]
async fn each_attempt_is_a_span_and_the_backend_gets_its_own() {
    let (collector, backend) = (Collector::start().await, HttpBackend::start("a").await);
    let broken = RawBackend::hangs_up().await;
    let config = web_two(broken.addr(), backend.addr(), "");
    let gateway = traced(&config, &collector).start().await;
    // Endpoints are drawn: some request goes to the broken one first.
    let sent_so_far = Cell::new(0);
    let entry = wait_for("a request with two attempts", SOON, async || {
        let path = format!("/{}", sent_so_far.replace(sent_so_far.get() + 1));
        assert_eq!(gateway.get(WEB, &path).await.status, 200);
        let entries = gateway.access_log().into_iter();
        entries.rev().find(|entry| entry["attempts"] == 2)
    })
    .await;
    let path = entry["path"].as_str().unwrap();
    let trace = collector.trace(path).await;
    trace.assert_sound();
    let attempts = trace.named("attempt");
    let [first, second] = attempts[..] else {
        panic!("{trace:#?}")
    };
    assert!(first.end_time_unix_nano <= second.start_time_unix_nano);
    assert_eq!(attribute(first, "error.type").as_deref(), Some("upstream_error"));
    assert_eq!(
        attribute(first, "server.port"),
        Some(broken.addr().port().to_string())
    );
    assert_eq!(attribute(first, "http.request.resend_count"), None);
    assert_eq!(
        attribute(second, "http.request.resend_count").as_deref(),
        Some("1")
    );
    assert_eq!(
        attribute(second, "http.response.status_code").as_deref(),
        Some("200")
    );
    assert_eq!(
        (second.status.as_ref(), trace.server.status.as_ref()),
        (None, None)
    );
    let seen = backend
        .seen()
        .into_iter()
        .find(|seen| seen.target == path)
        .unwrap();
    let parent = seen.header("traceparent").unwrap();
    assert!(parent.contains(&hex(&second.span_id)), "{parent}");
}

#[tokio::test]
async fn http2_and_grpc_have_the_same_spans() {
    let (collector, server) = (Collector::start().await, EchoServer::start().await);
    let gateway = traced(&web_with(server.addr(), "protocol: h2c"), &collector)
        .start()
        .await;
    let mut client = EchoClient::connect(gateway.addr(), WEB).await;
    client.unary(Note::new("hi", 1), None).await.unwrap();
    let mut stream = client.watch(Note::new("hi", 2)).await.unwrap();
    assert!(stream.next().await.is_some());
    drop(stream);
    let traces = wait_for("two traces", SOON, async || {
        let traces = collector.traces();
        (traces.len() == 2).then_some(traces)
    })
    .await;
    for trace in &traces {
        trace.assert_sound();
        assert_eq!(
            (trace.server.name.as_str(), trace.names()),
            ("POST web", vec!["attempt"])
        );
        assert_eq!(
            values(trace, &["network.protocol.version", "http.response.status_code"]),
            ["2", "200"]
        );
    }

    // From HTTP/2 to an HTTP/1.1 backend.
    let backend = HttpBackend::start("a").await;
    let gateway = traced(&web(backend.addr()), &collector).start().await;
    let mut request = h2_client::get("http", WEB, "/h2");
    request
        .headers_mut()
        .insert("traceparent", parent("01").parse().unwrap());
    let answer = H2::connect(gateway.addr())
        .await
        .exchange(request, Default::default())
        .await
        .unwrap();
    assert_eq!(answer.status, 200);
    let trace = collector.trace("/h2").await;
    assert_eq!(hex(&trace.server.trace_id), TRACE);
    assert_eq!(sent(&backend)[2], hex(&trace.children[0].span_id));
}

#[tokio::test]
async fn a_websocket_is_one_span_to_its_end() {
    let collector = Collector::start().await;
    let (backend, _codes) = websocket::echo_backend().await;
    let gateway = traced(&web(backend.addr()), &collector).start().await;
    let mut ws = websocket::connect(gateway.addr(), WEB).await;
    websocket::echoed(&mut ws, Message::text("hello")).await;
    assert!(collector.spans().is_empty(), "it goes on");
    ws.close(None).await.unwrap();
    while ws.next().await.is_some_and(|message| message.is_ok()) {}
    let trace = wait_for("its trace", SOON, async || collector.traces().pop()).await;
    trace.assert_sound();
    assert_eq!(trace.names(), ["attempt"]);
    assert_eq!(
        values(
            &trace,
            &[
                "http.response.status_code",
                "network.protocol.version",
                "error.type"
            ]
        ),
        ["101", "1.1", ""]
    );
}

#[tokio::test]
async fn local_responses_have_a_span_with_their_reason() {
    let (collector, backend) = (Collector::start().await, HttpBackend::start("a").await);
    let config = web_with(backend.addr(), "containerConcurrency: 1\nqueue: {timeout: 200ms}");
    let gateway = traced(&config, &collector).start().await;
    assert_eq!(
        gateway.send(&h1::get("nobody.example", "/nowhere")).await.status,
        404
    );
    let trace = collector.trace("/nowhere").await;
    assert_eq!((trace.server.name.as_str(), trace.children.len()), ("GET", 0));
    assert_eq!(
        values(&trace, &["sluice.reason", "error.type", "sluice.service"]),
        ["no_route", "", ""]
    );

    backend.hold();
    let addr = gateway.addr();
    let busy = tokio::spawn(async move { h1::fetch(addr, &get("/busy", &[])).await });
    wait_until("it is in flight", SOON, || backend.in_flight() == 1).await;
    assert_eq!(gateway.get(WEB, "/late").await.status, 503);
    let trace = collector.trace("/late").await;
    trace.assert_sound();
    assert_eq!(trace.names(), ["queued"]);
    assert!(nanos(&trace.children[0]) >= 200_000_000, "{trace:#?}");
    assert_eq!(
        values(&trace, &["sluice.reason", "error.type"]),
        ["queue_timeout", "queue_timeout"]
    );
    backend.release();
    assert_eq!(busy.await.unwrap().unwrap().status, 200);
}

#[tokio::test]
async fn no_bytes_of_a_client_spoil_a_batch() {
    let (collector, backend) = (Collector::start().await, HttpBackend::start("a").await);
    let gateway = traced(&web(backend.addr()), &collector).start().await;
    let agent = [b"evil \xff\xfe ".as_slice(), &[b'x'; 4000]].concat();
    let raw = [
        format!("BREW /bad HTTP/1.1\r\nHost: {WEB}\r\nUser-Agent: ").as_bytes(),
        &agent,
        b"\r\n\r\n",
    ]
    .concat();
    assert_eq!(gateway.send(&raw).await.status, 200);
    let trace = collector.trace("/bad").await;
    assert_eq!(trace.server.name, "HTTP web");
    assert_eq!(
        values(&trace, &["http.request.method", "http.request.method_original"]),
        ["_OTHER", "BREW"]
    );
    let told = attribute(&trace.server, "user_agent.original").unwrap();
    assert!(
        told.starts_with("evil \u{fffd}\u{fffd} x") && told.len() <= 512,
        "{told}"
    );
}

use std::net::SocketAddr;
use std::time::SystemTime;

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use proptest::prelude::*;
use prost::Message;
use sluice_model::{RevisionId, ServiceId};

use super::*;
use crate::observe::{Reason, plain_record};
use crate::throttle::StartTimeline;
use crate::traces::context::TraceId;

fn id(number: u64) -> SpanId {
    SpanId::random(|| number)
}

fn trace(parent: Option<SpanId>) -> RequestTrace {
    let own = TraceContext {
        trace: TraceId::random(|| 0xabc),
        span: id(1),
        sampled: true,
    };
    RequestTrace::new(own, parent, true, RequestProtocol::Http2)
}

/// The spans as a collector decodes them.
fn decoded(
    trace: &RequestTrace,
    record: &RequestRecord<'_>,
    (started, ended): (Instant, Instant),
    state: Option<&[u8]>,
) -> Vec<Span> {
    let mut out = Vec::new();
    let mut next = 100;
    let request = FinishedRequest {
        trace,
        record,
        started,
        ended,
        state,
    };
    let count = request_spans(&mut out, &request, || {
        next += 1;
        next
    });
    let envelope = Envelope::new(&[("service.name".to_owned(), "edge".to_owned())]);
    let mut request = ExportTraceServiceRequest::decode(&envelope.request(&out)[..]).unwrap();
    let mut resource = request.resource_spans.remove(0);
    assert!(request.resource_spans.is_empty());
    let attributes = resource.resource.unwrap().attributes;
    assert_eq!(value(&attributes, "service.name"), Some("edge".to_owned()));
    let scope = resource.scope_spans.remove(0);
    assert_eq!(scope.scope.unwrap().name, "sluice");
    assert_eq!(scope.spans.len(), count);
    scope.spans
}

/// An attribute as text.
fn value(attributes: &[KeyValue], key: &str) -> Option<String> {
    let mut found = attributes.iter().filter(|attribute| attribute.key == key);
    let first = found.next()?;
    assert!(found.next().is_none(), "{key} twice");
    match first.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some(text.clone()),
        any_value::Value::IntValue(number) => Some(number.to_string()),
        other => panic!("{other:?}"),
    }
}

fn values(span: &Span, keys: &[&str]) -> Vec<String> {
    keys.iter()
        .map(|key| value(&span.attributes, key).unwrap_or_default())
        .collect()
}

#[test]
fn a_cold_request_has_its_phases_and_its_attempt_inside_its_span() {
    let (service, revision) = (
        ServiceId::parse("shop", "cart").unwrap(),
        RevisionId::parse("shop", "cart-v2").unwrap(),
    );
    let t0 = Instant::now();
    let t = |ms| t0 + Duration::from_millis(ms);
    let mut trace = trace(Some(id(9)));
    trace.wait_began(t(0));
    let start = StartTimeline {
        ordered: Some(t(1)),
        started: Some(t(4)),
        ready: Some(t(304)),
    };
    trace.wait_ended(t(305), Some(start));
    let endpoint = EndpointAddr::Tcp(SocketAddr::from(([10, 0, 0, 1], 8080)));
    trace.attempt_began(t(305), id(5), Some(&endpoint));
    trace.attempt_answered(200);
    trace.attempt_ended(t(399), None);
    let record = RequestRecord {
        host: b"cart.example.com:8443",
        service: Some(&service),
        revision: Some(&revision),
        user_agent: Some(b"curl/8"),
        ..plain_record()
    };
    let spans = decoded(&trace, &record, (t(0), t(400)), Some(b"vendor=1"));

    let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "GET cart",
            "queued",
            "starting",
            "booting",
            "admitting",
            "attempt"
        ]
    );
    let kinds: Vec<_> = spans.iter().map(Span::kind).collect();
    assert_eq!(
        (kinds[0], kinds[1], kinds[5]),
        (SpanKind::Server, SpanKind::Internal, SpanKind::Client)
    );
    let server = &spans[0];
    assert_eq!(server.trace_id, [&[0; 14][..], &[0xa, 0xbc]].concat());
    assert_eq!(
        (&server.span_id, &server.parent_span_id),
        (&id(1).to_bytes().to_vec(), &id(9).to_bytes().to_vec())
    );
    assert_eq!((server.flags, spans[1].flags), (0x301, 0x101));
    assert_eq!(server.start_time_unix_nano, 1_700_000_000_123_000_000);
    assert_eq!(
        server.end_time_unix_nano - server.start_time_unix_nano,
        400_000_000
    );
    let mut ids: Vec<_> = spans.iter().map(|span| &span.span_id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 6);
    for span in &spans {
        assert_eq!(
            (&span.trace_id, span.trace_state.as_str()),
            (&server.trace_id, "vendor=1")
        );
        assert_eq!(span.status, None);
    }
    for child in &spans[1..] {
        assert_eq!(child.parent_span_id, server.span_id);
    }
    // Each phase begins where the one before ends.
    for pair in spans[1..].windows(2) {
        assert_eq!(pair[0].end_time_unix_nano, pair[1].start_time_unix_nano);
    }
    assert_eq!(spans[1].start_time_unix_nano, server.start_time_unix_nano);
    let took = |span: &Span| (span.end_time_unix_nano - span.start_time_unix_nano) / 1_000_000;
    assert_eq!(
        spans[1..].iter().map(took).collect::<Vec<_>>(),
        [1, 3, 300, 1, 94]
    );
    let keys = [
        "http.request.method",
        "url.scheme",
        "url.path",
        "server.address",
        "server.port",
        "network.protocol.version",
        "client.address",
        "user_agent.original",
        "http.response.status_code",
        "sluice.namespace",
        "sluice.service",
        "sluice.revision",
        "sluice.reason",
        "sluice.request_id",
        "error.type",
    ];
    let want = [
        "GET",
        "https",
        "/hello",
        "cart.example.com",
        "8443",
        "2",
        "127.0.0.1",
        "curl/8",
        "200",
        "shop",
        "cart",
        "cart-v2",
        "",
        "0190",
        "",
    ];
    assert_eq!(values(server, &keys), want);
    assert_eq!(
        values(
            &spans[5],
            &["server.address", "server.port", "http.response.status_code"]
        ),
        ["10.0.0.1", "8080", "200"]
    );
}

#[test]
fn retries_are_attempts_of_their_own() {
    let t0 = Instant::now();
    let t = |ms| t0 + Duration::from_millis(ms);
    let mut trace = trace(None);
    let unix = EndpointAddr::Unix("/run/app.sock".into());
    trace.attempt_began(t(0), id(5), Some(&unix));
    trace.attempt_ended(t(10), Some(Reason::ConnectFailed));
    trace.wait_began(t(10));
    trace.wait_ended(t(30), None);
    trace.attempt_began(t(30), id(6), None);
    trace.attempt_answered(503);
    let record = RequestRecord {
        status: Some(503),
        ..plain_record()
    };
    let spans = decoded(&trace, &record, (t(0), t(40)), None);
    let [server, queued, first, second] = &spans[..] else {
        panic!("{spans:#?}")
    };
    assert_eq!(
        (server.name.as_str(), server.parent_span_id.len(), server.flags),
        ("GET", 0, 0x101)
    );
    assert_eq!(
        (queued.name.as_str(), queued.start_time_unix_nano),
        ("queued", first.end_time_unix_nano)
    );
    let keys = [
        "server.address",
        "error.type",
        "http.request.resend_count",
        "http.response.status_code",
    ];
    assert_eq!(values(first, &keys), ["/run/app.sock", "connect_failed", "", ""]);
    assert_eq!(values(second, &keys), ["", "503", "1", "503"]);
    assert_eq!(
        second.end_time_unix_nano, server.end_time_unix_nano,
        "it was under way to the end"
    );
    for span in [server, first, second] {
        assert_eq!(span.status.as_ref().unwrap().code(), StatusCode::Error);
    }
}

#[test]
fn what_is_an_error_follows_from_who_erred() {
    let now = Instant::now();
    for (status, reason, want) in [
        (Some(200), None, ""),
        (Some(404), None, ""),
        (Some(404), Some(Reason::NoRoute), ""),
        (Some(500), None, "500"),
        (Some(503), Some(Reason::QueueFull), "queue_full"),
        // A gRPC refusal is a 200.
        (Some(200), Some(Reason::ActivationFailed), "activation_failed"),
        (Some(200), Some(Reason::BadRequest), ""),
        // Broken off after the head.
        (Some(200), Some(Reason::UpstreamReset), "upstream_reset"),
        (Some(200), Some(Reason::ClientGone), ""),
        (None, Some(Reason::ClientGone), ""),
        (None, None, "0"),
    ] {
        let record = RequestRecord {
            status,
            reason,
            detail: Some("why"),
            ..plain_record()
        };
        let span = decoded(&trace(None), &record, (now, now), None).remove(0);
        assert_eq!(values(&span, &["error.type"]), [want], "{status:?} {reason:?}");
        let told = span.status.map(|status| (status.code(), status.message));
        let wanted = (!want.is_empty()).then(|| (StatusCode::Error, "why".to_owned()));
        assert_eq!(told, wanted, "{status:?} {reason:?}");
    }
}

#[test]
fn unknown_methods_do_not_become_names() {
    let now = Instant::now();
    let record = RequestRecord {
        method: b"BREW",
        ..plain_record()
    };
    let span = decoded(&trace(None), &record, (now, now), None).remove(0);
    assert_eq!(span.name, "HTTP");
    let keys = ["http.request.method", "http.request.method_original"];
    assert_eq!(values(&span, &keys), ["_OTHER", "BREW"]);
}

#[test]
fn hosts_are_split() {
    for (host, want) in [
        ("a.example", ("a.example", None)),
        ("a.example:80", ("a.example", Some(80))),
        ("[::1]:81", ("::1", Some(81))),
        ("[::1]", ("::1", None)),
        ("a:99999", ("a", None)),
        ("", ("", None)),
        ("[::1", ("[", None)),
    ] {
        let (address, port) = host_and_port(host.as_bytes());
        assert_eq!((std::str::from_utf8(address).unwrap(), port), want, "{host}");
    }
}

#[test]
fn a_collectors_refusal_is_read() {
    let refusal = ExportTraceServiceResponse {
        partial_success: Some(ExportTracePartialSuccess {
            rejected_spans: 300,
            error_message: "too old".to_owned(),
        }),
    };
    let read = PartialSuccess::read(&refusal.encode_to_vec());
    assert_eq!((read.rejected, read.why.as_str()), (300, "too old"));
    for full in [&b""[..], b"\xff\xff", b"\x0a\xff", b"{}"] {
        assert_eq!(PartialSuccess::read(full), PartialSuccess::default());
    }
}

proptest! {
    #[test]
    fn spans_of_any_client_are_decoded_and_bounded(
        method in proptest::collection::vec(any::<u8>(), 0..20),
        host in proptest::collection::vec(any::<u8>(), 0..400),
        path in proptest::collection::vec(any::<u8>(), 0..3000),
        agent in proptest::collection::vec(any::<u8>(), 0..2000),
        state in proptest::collection::vec(any::<u8>(), 0..2000),
        points in proptest::array::uniform5(0..5_000u64),
        before_1970: bool,
    ) {
        let t0 = Instant::now() + Duration::from_secs(1);
        let [from, until, begun, answered, ended] = points.map(|us| t0 + Duration::from_micros(us) - Duration::from_millis(1));
        let mut trace = trace(Some(id(9)));
        trace.wait_began(from);
        trace.wait_ended(until, Some(StartTimeline { ordered: Some(begun), started: None, ready: Some(answered) }));
        trace.attempt_began(begun, id(5), None);
        trace.attempt_ended(answered, None);
        let record = RequestRecord {
            time: if before_1970 { SystemTime::UNIX_EPOCH - Duration::from_secs(5) } else { plain_record().time },
            method: &method,
            host: &host,
            path: &path,
            user_agent: Some(&agent),
            ..plain_record()
        };
        let spans = decoded(&trace, &record, (t0, ended), Some(&state));
        prop_assert_eq!(spans.len(), 6);
        let server = &spans[0];
        prop_assert!(server.encoded_len() < 4096, "{}", server.encoded_len());
        for span in &spans {
            prop_assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
            prop_assert!(span.start_time_unix_nano >= server.start_time_unix_nano);
            prop_assert!(span.end_time_unix_nano <= server.end_time_unix_nano);
        }
        let phases: u64 = spans[1..5].iter().map(|span| span.end_time_unix_nano - span.start_time_unix_nano).sum();
        prop_assert!(phases <= server.end_time_unix_nano - server.start_time_unix_nano);
    }
}

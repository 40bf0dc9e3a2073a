//! The operations `trace/`: what a request costs more where traces are made.

use std::time::{Duration, Instant, SystemTime};

use sluice_gateway::observe::{Metrics, RequestProtocol, RequestRecord};
use sluice_gateway::traces::{TraceContext, TraceEnvironment, TraceSettings, Tracer};
use sluice_model::{EndpointAddr, Generation, RevisionId, ServiceId};

use super::fixture;
use super::{Operation, Weight, operation, repeat};

/// Requests before the queue would be full: it is renewed then, since nothing is posted here.
const ROOM: u64 = 1_000;

pub(crate) fn operations() -> Vec<Operation> {
    vec![
        operation("trace/not-sampled", Weight::Light, || {
            let (settings, request) = (settings("0"), Request::new());
            let tracer = tracer(&settings);
            repeat(move |_| request.serve(&tracer))
        }),
        operation("trace/sampled", Weight::Light, || {
            let (settings, request) = (settings("1"), Request::new());
            let mut tracer = tracer(&settings);
            repeat(move |turn| {
                if turn % ROOM == 0 {
                    tracer = self::tracer(&settings);
                }
                request.serve(&tracer)
            })
        }),
    ]
}

fn settings(ratio: &str) -> TraceSettings {
    let read = TraceEnvironment::read(|name| {
        let value = match name {
            "OTEL_TRACES_EXPORTER" => "otlp",
            "OTEL_TRACES_SAMPLER" => "traceidratio",
            "OTEL_TRACES_SAMPLER_ARG" => ratio,
            _ => return None,
        };
        Some(value.to_owned())
    });
    read.settings.unwrap_or_else(|| panic!("{:?}", read.warnings))
}

fn tracer(settings: &TraceSettings) -> Tracer {
    Tracer::new(settings, Metrics::new().traces_dropped()).0
}

/// A warm request of curl's.
struct Request {
    service: ServiceId,
    revision: RevisionId,
    endpoint: EndpointAddr,
    started: Instant,
}

impl Request {
    fn new() -> Self {
        Self {
            service: fixture::service_id("greeter"),
            revision: fixture::id("greeter"),
            endpoint: EndpointAddr::Tcp(([10, 0, 0, 1], 8080).into()),
            started: Instant::now(),
        }
    }

    /// What is done for its trace: begin, one attempt with its `traceparent`, end.
    fn serve(&self, tracer: &Tracer) -> [u8; 55] {
        let parent = TraceContext::parse(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let mut trace = Box::new(tracer.begin(parent, false, RequestProtocol::Http11));
        trace.attempt_began(self.started, tracer.span_id(), Some(&self.endpoint));
        let traceparent = trace.outgoing().traceparent();
        trace.attempt_answered(200);
        let ended = self.started + Duration::from_millis(1);
        trace.attempt_ended(ended, None);
        let record = RequestRecord {
            time: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
            request_id: b"0123456789abcdef0123456789abcdef",
            client: Some([127, 0, 0, 1].into()),
            method: b"GET",
            host: b"greeter.default.localhost:8080",
            path: b"/api/orders?page=2",
            protocol: RequestProtocol::Http11,
            status: Some(200),
            final_status: None,
            reason: None,
            timer: None,
            detail: None,
            generation: Generation(1),
            service: Some(&self.service),
            revision: Some(&self.revision),
            endpoint: Some(&self.endpoint),
            bytes_in: 0,
            bytes_out: 100,
            duration: Duration::from_millis(1),
            first_byte: Some(Duration::from_millis(1)),
            queue: None,
            phases: None,
            upstream: Some(Duration::from_millis(1)),
            attempts: 1,
            user_agent: Some(b"curl/8.14.1"),
        };
        tracer.finish(&trace, &record, (self.started, ended), None);
        traceparent
    }
}

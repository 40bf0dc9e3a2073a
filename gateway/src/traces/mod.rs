//! Traces: a span for each request with its waits and attempts, sent to an OpenTelemetry collector (OTLP over HTTP, protobuf).
//!
//! `context` reads and writes W3C Trace Context; `sampler` decides what is recorded; a [`RequestTrace`] travels with its request; at
//! the request's end `otlp` encodes its spans into the bounded `queue`, which one task (`export`) empties through `collector`.
//! `settings` are the standard `OTEL_*` variables. Why there is no SDK: `docs/decisions/0026-own-trace-exporter.md`.
//!
//! **Invariant:** no request waits for anything here, and every trace that was made is delivered or counted as dropped.

mod collector;
mod context;
mod export;
mod otlp;
mod protobuf;
mod queue;
mod request_trace;
mod sampler;
mod settings;

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

use metrics::Counter;

pub use self::context::{SpanId, TRACEPARENT, TRACESTATE, TraceContext, TraceId};
pub use self::export::{Exporter, ExporterHandle};
use self::otlp::FinishedRequest;
use self::queue::SpanQueue;
pub use self::request_trace::RequestTrace;
pub use self::sampler::Sampler;
pub use self::settings::{TraceEnvironment, TraceSettings};
use crate::observe::{RequestProtocol, RequestRecord};

thread_local! {
    /// A reused buffer: spans are encoded on the request's thread and copied once, into the queue.
    static SPANS: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Makes the traces of requests; cheap to clone.
#[derive(Debug, Clone)]
pub struct Tracer {
    sampler: Sampler,
    queue: Arc<SpanQueue>,
}

impl Tracer {
    /// A tracer, and the exporter of what it makes. `dropped` counts traces that are not delivered.
    pub fn new(settings: &TraceSettings, dropped: Counter) -> (Self, Exporter) {
        let queue = SpanQueue::new(settings.max_queue_size, settings.max_batch_size, dropped);
        let queue = Arc::new(queue);
        let tracer = Self {
            sampler: settings.sampler,
            queue: Arc::clone(&queue),
        };
        (tracer, Exporter::new(settings, queue))
    }

    /// Begins the trace of a request: the caller's where it has a valid one, else a new one.
    pub fn begin(&self, parent: Option<TraceContext>, tls: bool, protocol: RequestProtocol) -> RequestTrace {
        let trace = match &parent {
            Some(parent) => parent.trace,
            None => TraceId::random(|| fastrand::u128(..)),
        };
        let own = TraceContext {
            trace,
            span: self.span_id(),
            sampled: self.sampler.is_sampled(parent.as_ref(), trace),
        };
        RequestTrace::new(own, parent.map(|parent| parent.span), tls, protocol)
    }

    /// An identifier for a span.
    pub fn span_id(&self) -> SpanId {
        SpanId::random(|| fastrand::u64(..))
    }

    /// Queues the spans of a finished request, if it is recorded. `started` is the moment of the record's time, `state` the caller's
    /// `tracestate`. Never waits for the collector; allocates nothing in the steady state, but for the queue's growth.
    pub fn finish(
        &self,
        trace: &RequestTrace,
        record: &RequestRecord<'_>,
        (started, ended): (Instant, Instant),
        state: Option<&[u8]>,
    ) {
        if !trace.is_sampled() {
            return;
        }
        let request = FinishedRequest {
            trace,
            record,
            started,
            ended,
            state: state.filter(|_| trace.has_parent()),
        };
        SPANS.with_borrow_mut(|bytes| {
            bytes.clear();
            let spans = otlp::request_spans(bytes, &request, || fastrand::u64(..));
            self.queue.push(bytes, spans);
        });
    }
}

//! A collector of traces: OTLP over HTTP, decoded by the protocol's own types (`opentelemetry-proto`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use http::Response;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio_rustls::TlsAcceptor;

use crate::backend::{Body, HttpBackend, Seen, full};
use crate::wait::{SOON, wait_for};

/// A running collector.
#[derive(Debug)]
pub struct Collector {
    backend: HttpBackend,
    status: Arc<AtomicU16>,
    scheme: &'static str,
}

/// One request's spans.
#[derive(Debug, Clone)]
pub struct Trace {
    /// The span of the request itself.
    pub server: Span,
    /// Its children, in the order of their begin.
    pub children: Vec<Span>,
}

impl Collector {
    /// Takes whatever comes.
    pub async fn start() -> Self {
        Self::start_with(None).await
    }

    /// The same over TLS.
    pub async fn start_tls(acceptor: TlsAcceptor) -> Self {
        Self::start_with(Some(acceptor)).await
    }

    async fn start_with(tls: Option<TlsAcceptor>) -> Self {
        let status = Arc::new(AtomicU16::new(200));
        let shared = Arc::clone(&status);
        let builder =
            HttpBackend::builder("collector").answer(move |_| answer(shared.load(Ordering::SeqCst)));
        let scheme = if tls.is_some() { "https" } else { "http" };
        let builder = match tls {
            Some(acceptor) => builder.tls(acceptor),
            None => builder,
        };
        Self {
            backend: builder.start().await,
            status,
            scheme,
        }
    }

    /// The value of `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub fn url(&self) -> String {
        format!("{}://localhost:{}", self.scheme, self.backend.addr().port())
    }

    /// Answers with this status from now on; what it answers with less than 400 counts as taken.
    pub fn answers(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    /// Answers nothing until [`release`](Self::release).
    pub fn hold(&self) {
        self.backend.hold();
    }

    /// Ends [`hold`](Self::hold).
    pub fn release(&self) {
        self.backend.release();
    }

    /// Every POST so far, whatever it got.
    pub fn posts(&self) -> Vec<Seen> {
        self.backend.seen()
    }

    /// Every span that came so far.
    pub fn spans(&self) -> Vec<Span> {
        let posts = self.posts().into_iter();
        let resources = posts.flat_map(|post| decoded(&post).resource_spans);
        let scopes = resources.flat_map(|resource| resource.scope_spans);
        scopes.flat_map(|scope| scope.spans).collect()
    }

    /// The attributes of the resource of the first POST.
    ///
    /// # Panics
    /// When there is none.
    pub fn resource(&self) -> BTreeMap<String, String> {
        let mut first = decoded(&self.posts()[0]);
        texts(
            &first
                .resource_spans
                .remove(0)
                .resource
                .expect("a resource")
                .attributes,
        )
    }

    /// Every request's spans, in the order of their ends.
    pub fn traces(&self) -> Vec<Trace> {
        let spans = self.spans();
        let (servers, mut others): (Vec<_>, Vec<_>) = spans.into_iter().partition(|span| span.kind == SERVER);
        others.sort_by_key(|span| span.start_time_unix_nano);
        let children_of = |server: &Span| {
            let children = others.iter().filter(|span| span.parent_span_id == server.span_id);
            children.cloned().collect()
        };
        servers
            .into_iter()
            .map(|server| Trace {
                children: children_of(&server),
                server,
            })
            .collect()
    }

    /// Waits for the trace of the request for this path.
    pub async fn trace(&self, path: &str) -> Trace {
        wait_for(&format!("the trace of {path}"), SOON, async || {
            let mut traces = self.traces().into_iter();
            traces.find(|trace| attribute(&trace.server, "url.path").as_deref() == Some(path))
        })
        .await
    }
}

/// The value of `Span.kind` for servers.
const SERVER: i32 = 2;

fn answer(status: u16) -> Response<Body> {
    let mut response = Response::new(full(""));
    *response.status_mut() = status.try_into().expect("a status");
    response
}

fn decoded(post: &Seen) -> ExportTraceServiceRequest {
    ExportTraceServiceRequest::decode(&post.body[..]).expect("an ExportTraceServiceRequest")
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |attribute: &KeyValue| match attribute.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some((attribute.key.clone(), text.clone())),
        any_value::Value::IntValue(number) => Some((attribute.key.clone(), number.to_string())),
        _ => None,
    };
    attributes.iter().filter_map(text).collect()
}

/// An attribute of a span as text.
pub fn attribute(span: &Span, key: &str) -> Option<String> {
    texts(&span.attributes).remove(key)
}

/// Lower-case hexadecimal digits, as in a `traceparent`.
pub fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Trace {
    /// Names of the children.
    pub fn names(&self) -> Vec<&str> {
        self.children.iter().map(|span| span.name.as_str()).collect()
    }

    /// The children of this name.
    pub fn named(&self, name: &str) -> Vec<&Span> {
        self.children.iter().filter(|span| span.name == name).collect()
    }

    /// Checks what holds of every trace: children lie inside their parent, and spans of one trace have one identifier.
    ///
    /// # Panics
    /// When it does not hold.
    pub fn assert_sound(&self) {
        let server = &self.server;
        for child in &self.children {
            assert_eq!(child.trace_id, server.trace_id, "{self:#?}");
            assert!(
                child.start_time_unix_nano >= server.start_time_unix_nano,
                "{self:#?}"
            );
            assert!(
                child.start_time_unix_nano <= child.end_time_unix_nano,
                "{self:#?}"
            );
            assert!(child.end_time_unix_nano <= server.end_time_unix_nano, "{self:#?}");
            assert_ne!(child.span_id, server.span_id, "{self:#?}");
        }
    }
}

/// How long a span took, in nanoseconds.
pub fn nanos(span: &Span) -> u64 {
    span.end_time_unix_nano - span.start_time_unix_nano
}

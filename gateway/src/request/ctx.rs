//! Context of one request: what routing, admission, attempts and the log line share.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use sluice_model::{
    Backend, EndpointAddr, Found, Generation, Limits, Percent, RequestView, RevisionSpec, Route, Service,
    Settings, StickyKey, normalize_host,
};
use tokio::sync::watch;

use super::activator;
use super::clocks::Clocks;
use super::decide::{Draw, decide, redirects};
use super::headers::{Forwarding, HOPS_HEADER, RequestId, TIMING_HEADER, grpc_timeout, hops};
use super::measure::MeasuredRevision;
use super::network_probe::{self, is_network_probe};
use super::origin_form::OriginForm;
use crate::edge::{ConnectionInfo, Drain};
use crate::local_response::{
    ErrorResponse, LocalResponse, RenderedResponse, ResponseFormat, redirect_to_https,
};
use crate::observe::{
    MetricsScope, Milestones, Observer, Phases, Reason, RequestProtocol, RequestRecord, wall_clock,
};
use crate::registry::{LiveRevision, LiveService, PageTemplates, Reader, RetryHold, Snapshot};
use crate::throttle::{Permit, StartTimeline, clock};
use crate::traces::{RequestTrace, Tracer};

/// State that all requests share.
pub struct Engine {
    /// The current table; read once per request.
    pub table: Reader,
    /// Metrics and access log.
    pub observer: Observer,
    /// The drain phase of the gateway.
    pub drain: watch::Receiver<Drain>,
    /// The cluster's autoscaler gets this gateway's statistics: what is sent to Pods is counted here, not there.
    pub counted: Arc<AtomicBool>,
    /// Makes the traces of requests; `None` where none are made.
    pub tracer: Option<Tracer>,
}

/// A request as received.
pub struct IncomingRequest<'a, V> {
    /// The connection.
    pub info: &'a Arc<ConnectionInfo>,
    /// The head.
    pub view: &'a V,
    /// Host or `:authority` as sent.
    pub host: Option<&'a [u8]>,
    /// Path and query as sent.
    pub target: &'a str,
    /// Memory held for the head and buffered body while the request waits, in bytes.
    pub head_bytes: usize,
}

/// The result of a request for log and metrics. Values chosen by the client are bytes.
pub struct RequestEnd<'a> {
    /// The method.
    pub method: &'a [u8],
    /// Host or `:authority` as sent.
    pub host: &'a [u8],
    /// Path and query as sent.
    pub target: &'a [u8],
    /// `User-Agent` as sent.
    pub user_agent: Option<&'a [u8]>,
    /// The protocol.
    pub protocol: RequestProtocol,
    /// The status of the response head, if one was sent.
    pub status: Option<u16>,
    /// The status that a stream of a held request ended with, where one was sent before.
    pub final_status: Option<u16>,
    /// Bytes of the request body consumed.
    pub bytes_in: u64,
    /// Bytes of the response body sent.
    pub bytes_out: u64,
    /// `tracestate` as sent, where the request is recorded in a trace.
    pub trace_state: Option<&'a [u8]>,
}

/// The destination of a request.
pub struct Routed {
    /// The service.
    pub service: Arc<Service>,
    /// The index of the rule of the host.
    pub rule: usize,
    /// The index in the rule of the route that matched; `None` for the rule's own traffic and tags.
    pub route: Option<usize>,
    /// The index in the split of the chosen target, if the target has headers to append.
    pub target: Option<usize>,
    /// The revision with its live state.
    pub live: Arc<LiveRevision>,
    /// The revision as configured when the request was routed.
    pub spec: Arc<RevisionSpec>,
    /// The tier of the endpoint of the present attempt; 0 for a revision without tiers.
    pub tier: u8,
    /// The sticky key, where the scope is one endpoint.
    pub endpoint_key: Option<StickyKey>,
    /// Templates of the service's waiting pages, if it names files.
    pub pages: Option<Arc<PageTemplates>>,
}

impl Routed {
    /// How the endpoint of the present attempt came to be.
    pub fn backend(&self) -> &Backend {
        self.spec.backend_of(self.tier)
    }

    /// The route that matched.
    pub fn route(&self) -> Option<&Route> {
        self.route
            .map(|index| &self.service.rule(self.rule).routes[index])
    }

    /// The headers of the chosen target.
    pub fn target_headers(&self) -> &[(String, String)] {
        let Some(index) = self.target else { return &[] };
        let split = match self.route() {
            Some(route) => &route.split,
            None => &self.service.rule(self.rule).split,
        };
        &split.targets()[index].append_headers
    }

    /// The version of the Ingress that the service was made of.
    pub fn network_hash(&self) -> Option<&str> {
        Some(&self.service.ingress.as_ref()?.network_hash)
    }
}

/// The kind of the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextAttempt {
    /// Over any pooled or new connection to the Permit's endpoint.
    First,
    /// To the same endpoint, over a new connection.
    FreshConnection,
    /// To another endpoint.
    OtherEndpoint,
    /// To another tier of the revision: this one answered 429.
    OtherTier,
    /// To any endpoint after a delay that the backend asked for.
    After(Duration),
}

/// The context of one request; dropping it at any moment releases its Permit.
///
/// A routed request holds what its end needs (service, revision, settings), and no table: a long stream would
/// keep everything of its generation alive.
pub struct RequestCtx {
    pub(super) engine: Arc<Engine>,
    /// The one table that the request reads, until it is routed.
    table: Option<Arc<Snapshot>>,
    settings: Arc<Settings>,
    generation: Generation,
    /// The deadlines.
    pub clocks: Clocks,
    /// When the request was received.
    pub started: Instant,
    /// The destination, once routed.
    pub routed: Option<Routed>,
    /// The right to use an endpoint, once admitted.
    pub permit: Option<Permit>,
    /// The kind of the next attempt.
    pub next: NextAttempt,
    /// The failure of the last attempt, to be sent should no other succeed.
    pub failure: Option<ErrorResponse>,
    /// Whether the backend's response head came.
    pub head_received: bool,
    /// The request id that the backend gets.
    pub request_id: RequestId,
    /// Passes through gateways of this kind before this one.
    hops: u32,
    /// The reason why the client does not simply get the backend's response.
    pub reason: Option<Reason>,
    /// Details of the reason.
    pub detail: Option<String>,
    /// Time spent waiting for Permits.
    pub queued: Duration,
    /// When the last wait ended; `None` when the request never waited.
    pub(super) admitted: Option<Instant>,
    /// The instance start that the request waited for.
    pub(super) start: Option<StartTimeline>,
    phases: Option<Phases>,
    /// Whether the client asked for `Server-Timing`.
    wants_timing: bool,
    /// The number of attempts.
    pub attempts: u32,
    /// The number of attempts that the backend put off with a 429.
    pub put_off: u32,
    /// Guard of the wait after a 429.
    pub held: Option<RetryHold>,
    /// When the last attempt began.
    pub attempt_started: Option<Instant>,
    /// Time from the start of the last attempt to its response head.
    pub upstream: Option<Duration>,
    /// Whether the request is passive: it starts nothing, and counts as no activity.
    pub(super) passive: bool,
    /// Whether the revision was removed while the request waited.
    pub(super) removed: bool,
    pub(super) head_bytes: u64,
    pub(super) endpoint: Option<EndpointAddr>,
    /// The client's address.
    pub client: Option<IpAddr>,
    service: Option<Arc<Service>>,
    /// Whether the request is logged but neither counted nor traced: a probe that the gateway answered.
    uncounted: bool,
    /// The trace of the request, where traces are made; boxed, since mostly there is none.
    pub(super) trace: Option<Box<RequestTrace>>,
    format: ResponseFormat,
    time: SystemTime,
}

/// Draws the points of splits from the service's own counters. A probe takes none of these, which would shift the
/// shares of requests.
struct LiveDraw<'a, V>(&'a V);

impl<V: RequestView> Draw<Arc<LiveService>> for LiveDraw<'_, V> {
    fn draw(&mut self, found: &Found<'_, Arc<LiveService>>) -> u32 {
        if found.service.ingress.is_some() && is_network_probe(self.0) {
            return fastrand::u32(..Percent::WHOLE);
        }
        found
            .live
            .next_draw(found.rule_index, found.route.map(|(index, _)| index))
    }
}

impl RequestCtx {
    /// The context of a new request. Loads the one Snapshot that the request sees.
    pub fn new(engine: &Arc<Engine>, now: Instant) -> Self {
        let table = engine.table.load();
        Self {
            settings: Arc::clone(table.settings()),
            generation: table.generation,
            table: Some(table),
            engine: Arc::clone(engine),
            clocks: Clocks::default(),
            started: now,
            routed: None,
            permit: None,
            next: NextAttempt::First,
            failure: None,
            head_received: false,
            request_id: RequestId::None,
            hops: 0,
            reason: None,
            detail: None,
            queued: Duration::ZERO,
            admitted: None,
            start: None,
            phases: None,
            wants_timing: false,
            attempts: 0,
            put_off: 0,
            held: None,
            attempt_started: None,
            upstream: None,
            passive: false,
            removed: false,
            head_bytes: 0,
            endpoint: None,
            client: None,
            service: None,
            uncounted: false,
            trace: None,
            format: ResponseFormat::Text,
            time: wall_clock(),
        }
    }

    /// Loads the current table if the revision was removed while the request waited; then the request has to
    /// be routed and admitted again. The one exception to one Snapshot per request: the alternative is to
    /// fail the request because of a reload.
    pub fn reread(&mut self) -> bool {
        if !std::mem::take(&mut self.removed) {
            return false;
        }
        let table = self.engine.table.load();
        if table.generation == self.generation {
            return false;
        }
        self.settings = Arc::clone(table.settings());
        self.generation = table.generation;
        self.table = Some(table);
        self.routed = None;
        self.reason = None;
        true
    }

    /// The settings of the request's Snapshot.
    pub fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    /// The limits of the request's Snapshot.
    pub fn limits(&self) -> &Limits {
        &self.settings.limits
    }

    /// Whether the request is counted by this gateway for the cluster's autoscaler.
    pub fn is_counted(&self) -> bool {
        let pods = self.routed.as_ref().map(|routed| &routed.spec.backend);
        matches!(pods, Some(Backend::Pods(_))) && self.engine.counted.load(Ordering::Relaxed)
    }

    /// The drain phase, to be watched.
    pub fn drain(&self) -> watch::Receiver<Drain> {
        self.engine.drain.clone()
    }

    /// Whether responses should end the connection because the gateway drains.
    pub fn draining(&self) -> bool {
        *self.engine.drain.borrow() != Drain::Serving
    }

    /// Routes the request and arms its deadlines.
    ///
    /// # Errors
    /// The local response.
    pub fn route<V: RequestView>(&mut self, incoming: &IncomingRequest<'_, V>) -> Result<(), LocalResponse> {
        self.note(incoming);
        let info = incoming.info;
        if let Some(domain) = &info.activator {
            return self.route_to_revision(incoming, domain);
        }
        let mut buf = [0; 256];
        let host = incoming
            .host
            .ok_or_else(|| ErrorResponse::new(Reason::BadRequest, "the request names no host"))?;
        let host = normalize_host(host, &mut buf).map_err(|e| {
            ErrorResponse::new(
                Reason::BadRequest,
                format!("the request's host is not valid: {e}"),
            )
        })?;
        if let Some(tls) = &info.tls
            && !tls.names.is_empty()
            && !tls.covers(host)
        {
            return Err(ErrorResponse::new(
                Reason::Misdirected,
                "this connection's certificate is not for this host",
            )
            .into());
        }
        self.check_hops()?;
        let client = info.client_ip();
        let table = self.table.take().unwrap_or_else(|| self.engine.table.load());
        let decision = decide(
            &table,
            info.visibility,
            host,
            incoming.view,
            client,
            &mut LiveDraw(incoming.view),
        )
        .map_err(|_| ErrorResponse::new(Reason::NoRoute, "no service is known for this host and path"))?;
        let service = Arc::clone(decision.found.service);
        self.service = Some(Arc::clone(&service));
        if redirects(&decision.found, info.tls.is_some()) {
            let Some(target) = OriginForm::of(incoming.target) else {
                let text = "only https is served here, and no URL stands for this request target";
                return Err(ErrorResponse::new(Reason::BadRequest, text).into());
            };
            let redirect = redirect_to_https(incoming.view.method(), host, &target.to_uri());
            return Err(LocalResponse::Redirect(redirect));
        }
        let spec = Arc::clone(&service.revisions[decision.target.slot]);
        if let Some(ingress) = &service.ingress
            && matches!(spec.backend, Backend::Pods(_))
            && is_network_probe(incoming.view)
        {
            self.uncounted = true;
            return Err(network_probe::answer(incoming.view, ingress));
        }
        let live = Arc::clone(&decision.found.live.revisions()[decision.target.slot]);
        let pages = decision.found.live.pages().cloned();
        self.arm(incoming.view, &spec);
        let route = decision.found.route.map(|(index, _)| index);
        let mut targets = decision.found.split.targets().iter();
        let target = match decision.target.append_headers.is_empty() {
            true => None,
            false => targets.position(|target| std::ptr::eq(target, decision.target)),
        };
        self.routed = Some(Routed {
            rule: decision.found.rule_index,
            service,
            route,
            target,
            live,
            spec,
            tier: 0,
            endpoint_key: decision.endpoint_key,
            pages,
        });
        Ok(())
    }

    /// Routes a request that names a revision, as those to an activator do.
    fn route_to_revision<V: RequestView>(
        &mut self,
        incoming: &IncomingRequest<'_, V>,
        domain: &str,
    ) -> Result<(), LocalResponse> {
        if let Some(answer) = activator::probe(incoming.view, self.draining()) {
            self.uncounted = true;
            return Err(answer);
        }
        self.check_hops()?;
        let table = self.table.take().unwrap_or_else(|| self.engine.table.load());
        let named = activator::revision(incoming.view, incoming.host, domain);
        let found = named.as_ref().and_then(|id| table.revision(id));
        let found = found.map(|(entry, slot)| (entry, slot, &entry.service.revisions[slot]));
        // What is no revision of Knative's stands for a Service, which may lead back here.
        let Some((entry, slot, spec)) = found.filter(|(.., spec)| matches!(spec.backend, Backend::Pods(_)))
        else {
            let text = "no such revision is known: requests name one by fields or by the host of its Service";
            return Err(ErrorResponse::new(Reason::NoRoute, text).into());
        };
        self.service = Some(Arc::clone(&entry.service));
        self.arm(incoming.view, spec);
        self.routed = Some(Routed {
            service: Arc::clone(&entry.service),
            rule: 0,
            route: None,
            target: None,
            live: Arc::clone(&entry.live.revisions()[slot]),
            spec: Arc::clone(spec),
            tier: 0,
            endpoint_key: None,
            pages: None,
        });
        Ok(())
    }

    fn check_hops(&self) -> Result<(), ErrorResponse> {
        let max_hops = self.limits().max_hops;
        if max_hops > 0 && self.hops >= max_hops {
            let text = "the request passed this gateway too often: it leads back here";
            return Err(ErrorResponse::new(Reason::Loop, text));
        }
        Ok(())
    }

    /// Arms the deadlines: those of the revision, and the client's own of a gRPC call.
    fn arm(&mut self, request: &impl RequestView, spec: &RevisionSpec) {
        let own = request
            .header("grpc-timeout")
            .filter(|_| self.format == ResponseFormat::Grpc)
            .and_then(grpc_timeout);
        self.clocks.arm(&spec.timeouts, own, self.started);
    }

    fn note<V: RequestView>(&mut self, incoming: &IncomingRequest<'_, V>) {
        let view = incoming.view;
        self.format = ResponseFormat::of(view.header("accept"), view.header("content-type"));
        self.head_bytes = incoming.head_bytes as u64;
        self.wants_timing = view.header(TIMING_HEADER) == Some(b"1");
        self.client = Some(incoming.info.client_ip());
        self.request_id = RequestId::of(view.header("x-request-id"), || fastrand::u128(..));
        self.hops = hops(view.header(HOPS_HEADER));
    }

    /// The forwarding headers of this request.
    pub fn forwarding<'a>(&'a self, info: &ConnectionInfo, host: &'a [u8]) -> Forwarding<'a> {
        Forwarding {
            client: info.client_ip(),
            // Before an activator there is an ingress, or a Pod of the cluster.
            trusted: info.activator.is_some() || self.settings().trusts(info.client_ip()),
            tls: info.tls.is_some(),
            host,
            request_id: self.request_id.as_str(),
            hops: self.hops.saturating_add(1),
        }
    }

    /// Renders a local response in the client's format and records it for log and metrics.
    pub fn render_local(&mut self, response: &LocalResponse) -> RenderedResponse {
        let mut rendered = match response {
            LocalResponse::Error(error) => {
                self.reason = Some(error.reason);
                error.render(self.format, self.request_id.as_str())
            }
            LocalResponse::Redirect(rendered) | LocalResponse::Answer(rendered) => rendered.clone(),
            LocalResponse::Page(reason, page) => {
                self.reason = Some(*reason);
                let mut page = page.clone();
                page.headers
                    .push(("x-request-id", self.request_id.as_str().to_owned()));
                page
            }
        };
        if self.reason != Some(Reason::ClientGone) {
            self.response_started(clock());
            let timing = self.server_timing();
            rendered
                .headers
                .extend(timing.map(|value| ("server-timing", value)));
        }
        rendered.dated(wall_clock())
    }

    /// Records the phases until the response head.
    pub fn response_started(&mut self, now: Instant) {
        self.phases = Some(Phases::of(&Milestones {
            arrived: self.started,
            start: self.start,
            admitted: self.admitted,
            first_byte: now,
        }));
    }

    /// The value of `Server-Timing`, if the client asked for it. Call after
    /// [`response_started`](Self::response_started).
    pub fn server_timing(&self) -> Option<String> {
        let phases = self.phases.as_ref().filter(|_| self.wants_timing)?;
        Some(phases.server_timing())
    }

    /// Records the failure of an attempt, to be sent if no other attempt succeeds.
    pub fn fail_attempt(&mut self, reason: Reason, detail: String) {
        self.detail = Some(detail);
        let text = match reason {
            Reason::ConnectFailed => "no endpoint could be reached",
            Reason::Overloaded => "the gateway has no descriptor left",
            _ => "the backend broke off before it answered",
        };
        self.failure = Some(ErrorResponse::new(reason, text));
    }

    /// Writes the log line, metrics and trace of the request and returns its Permit. Called once, at the request's
    /// end.
    pub fn finish(&mut self, ending: &RequestEnd<'_>, now: Instant) {
        self.end_trace_wait(now);
        let revision = self.routed.as_ref().map(|routed| &routed.spec.id);
        let record = RequestRecord {
            time: self.time,
            request_id: self.request_id.as_str().as_bytes(),
            client: self.client,
            method: ending.method,
            host: ending.host,
            path: ending.target,
            protocol: ending.protocol,
            status: ending.status,
            final_status: ending.final_status,
            reason: self.reason,
            timer: self.clocks.fired(),
            detail: self.detail.as_deref().map(brief),
            generation: self.generation,
            service: self.service.as_ref().map(|s| &s.id),
            revision,
            endpoint: self.endpoint.as_ref(),
            bytes_in: ending.bytes_in,
            bytes_out: ending.bytes_out,
            duration: now.saturating_duration_since(self.started),
            first_byte: self.phases.as_ref().map(Phases::total),
            queue: (!self.queued.is_zero()).then_some(self.queued),
            phases: self.phases.as_ref().filter(|_| self.admitted.is_some()),
            upstream: self.upstream,
            attempts: self.attempts,
            user_agent: ending.user_agent,
        };
        let service;
        let counted = match (&self.routed, &self.service) {
            _ if self.uncounted => MetricsScope::Uncounted,
            (Some(routed), _) => MeasuredRevision::of(&**routed.live.observer())
                .map_or(MetricsScope::Unrouted, MetricsScope::Revision),
            (None, Some(known)) => {
                service = self.engine.observer.metrics.service(&known.id);
                MetricsScope::Service(&service)
            }
            (None, None) => MetricsScope::Unrouted,
        };
        self.engine
            .observer
            .finish(self.settings().access_log, &record, counted);
        if !self.uncounted {
            self.finish_trace(&record, ending.trace_state, now);
        }
        self.permit = None;
    }
}

/// Truncates a detail for the log line: parsers quote whole heads of backends.
fn brief(detail: &str) -> &str {
    const MAX: usize = 256;
    match detail.char_indices().nth(MAX) {
        Some((end, _)) => &detail[..end],
        None => detail,
    }
}

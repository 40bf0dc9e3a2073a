//! One request on its way through the gateway.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use sluice_model::{
    EndpointAddr, Found, Generation, Limits, RequestView, RevisionSpec, Route, Service, Settings, StickyKey,
    normalize_host,
};
use tokio::sync::watch;

use super::clocks::Clocks;
use super::decide::{Draw, decide, redirects};
use super::headers::{Forwarding, HOPS_HEADER, RequestId, TIMING_HEADER, grpc_timeout, hops};
use super::measure::MeasuredRevision;
use super::target::Target;
use crate::answer::{Answer, Dialect, Rendered, redirect_to_https};
use crate::edge::{ConnectionInfo, Drain};
use crate::observe::{
    MetricsScope, Milestones, Observer, Phases, Reason, RequestProtocol, RequestRecord, StartTimes,
};
use crate::registry::{LiveRevision, LiveService, PutOff, Reader, Snapshot};
use crate::throttle::Permit;

/// What every request needs and shares.
pub struct Engine {
    /// The current table; read once per request.
    pub table: Reader,
    /// Metrics and access log.
    pub observer: Observer,
    /// How far the gateway is on its way out.
    pub drain: watch::Receiver<Drain>,
}

/// What a request is when it comes in.
pub struct Incoming<'a, V> {
    /// The connection it came by.
    pub info: &'a Arc<ConnectionInfo>,
    /// Its head.
    pub view: &'a V,
    /// Host or `:authority` as sent.
    pub host: Option<&'a [u8]>,
    /// Path and query as sent.
    pub target: &'a str,
    /// Bytes the head takes while the request waits.
    pub head_bytes: usize,
}

/// What an adapter knows of a request at its end. What a client chose is bytes.
pub struct Ending<'a> {
    /// The method.
    pub method: &'a [u8],
    /// Host or `:authority` as sent.
    pub host: &'a [u8],
    /// Path and query as sent.
    pub target: &'a [u8],
    /// `User-Agent` as sent.
    pub user_agent: Option<&'a [u8]>,
    /// What it spoke.
    pub protocol: RequestProtocol,
    /// The status of the head that was sent, if one was.
    pub status: Option<u16>,
    /// Bytes of the request body taken.
    pub bytes_in: u64,
    /// Bytes of the response body given.
    pub bytes_out: u64,
}

/// The gateway answers by itself.
#[derive(Debug)]
pub enum Refusal {
    /// With a reason.
    Answer(Answer),
    /// With a redirect.
    Redirect(Rendered),
}

impl From<Answer> for Refusal {
    fn from(answer: Answer) -> Self {
        Self::Answer(answer)
    }
}

/// Where a request goes.
pub struct Routed {
    /// The service.
    pub service: Arc<Service>,
    /// The index of the route that matched; `None` for the service's own traffic and tags.
    pub route: Option<usize>,
    /// The revision with its live state.
    pub live: Arc<LiveRevision>,
    /// The revision as configured when the request was routed.
    pub spec: Arc<RevisionSpec>,
    /// The key, where the choice sticks to one endpoint.
    pub endpoint_key: Option<StickyKey>,
}

impl Routed {
    /// The route that matched.
    pub fn route(&self) -> Option<&Route> {
        self.route.map(|index| &self.service.routes[index])
    }
}

/// How the next attempt is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// As always: any pooled or new connection to the Permit's endpoint.
    First,
    /// To the same endpoint, but by a connection that nothing used before.
    FreshConnection,
    /// To another endpoint.
    OtherEndpoint,
    /// To any endpoint, after this long: the backend asked for it.
    After(Duration),
}

/// One request on its way; dropping it at any moment releases its Permit.
///
/// Once it is routed it holds what its end needs (service, revision, settings), and no table: a long
/// stream would keep everything of its generation alive.
pub struct RequestCtx {
    pub(super) engine: Arc<Engine>,
    /// The one table that it reads, until it is routed.
    table: Option<Arc<Snapshot>>,
    settings: Arc<Settings>,
    generation: Generation,
    /// Its clocks.
    pub clocks: Clocks,
    /// When it came.
    pub started: Instant,
    /// Where it goes, once routed.
    pub routed: Option<Routed>,
    /// The right to use an endpoint, once admitted.
    pub permit: Option<Permit>,
    /// How the next attempt is made.
    pub next: Attempt,
    /// What an earlier attempt failed with, should no other one succeed.
    pub failure: Option<Answer>,
    /// Set when the response head came from the backend.
    pub head_received: bool,
    /// The id the backend sees.
    pub request_id: RequestId,
    /// How often it passed a gateway of this kind before.
    hops: u32,
    /// Why the client does not simply get the backend's answer.
    pub reason: Option<Reason>,
    /// What the reason cannot say in a word.
    pub detail: Option<String>,
    /// Time spent waiting for Permits.
    pub queued: Duration,
    /// When it last stopped waiting; `None` when it never did.
    pub(super) admitted: Option<Instant>,
    /// The start that it waited for.
    pub(super) start: Option<StartTimes>,
    phases: Option<Phases>,
    /// The client asked where the time goes.
    wants_timing: bool,
    /// Endpoints tried.
    pub attempts: u32,
    /// Of these, how many the backend put off with a 429.
    pub put_off: u32,
    /// It is held because of that.
    pub held: Option<PutOff>,
    /// When the last attempt began.
    pub attempt_started: Option<Instant>,
    /// From the start of the last attempt to its response head.
    pub upstream: Option<Duration>,
    /// The revision was removed while this request waited for it.
    pub(super) removed: bool,
    pub(super) head_bytes: u64,
    pub(super) endpoint: Option<EndpointAddr>,
    /// The client's address.
    pub client: Option<IpAddr>,
    service: Option<Arc<Service>>,
    dialect: Dialect,
    time: SystemTime,
}

/// The points of splits come from the service's own counters.
struct LiveDraw;

impl Draw<Arc<LiveService>> for LiveDraw {
    fn draw(&mut self, found: &Found<'_, Arc<LiveService>>) -> u32 {
        found.live.next_draw(found.route.map(|(index, _)| index))
    }
}

impl RequestCtx {
    /// A request that has just come in. Reads the one Snapshot it will ever see.
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
            next: Attempt::First,
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
            removed: false,
            head_bytes: 0,
            endpoint: None,
            client: None,
            service: None,
            dialect: Dialect::Text,
            time: SystemTime::now(),
        }
    }

    /// Reads the table anew if the revision this request waited for is not in the current one; then
    /// it has to be routed and admitted again. The one exception to one Snapshot a request: the
    /// alternative is to fail it because of a reload.
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

    /// The settings this request sees.
    pub fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    /// The limits this request sees.
    pub fn limits(&self) -> &Limits {
        &self.settings.limits
    }

    /// How far the gateway is on its way out, to be followed.
    pub fn drain(&self) -> watch::Receiver<Drain> {
        self.engine.drain.clone()
    }

    /// Whether answers should end the connection because the gateway is on its way out.
    pub fn draining(&self) -> bool {
        *self.engine.drain.borrow() != Drain::Serving
    }

    /// Finds and picks, and starts the request's clocks.
    ///
    /// # Errors
    /// The answer to give instead.
    pub fn route<V: RequestView>(&mut self, incoming: &Incoming<'_, V>) -> Result<(), Refusal> {
        self.note(incoming);
        let info = incoming.info;
        let mut buf = [0; 256];
        let host = incoming
            .host
            .ok_or_else(|| Answer::new(Reason::BadRequest, "the request names no host"))?;
        let host = normalize_host(host, &mut buf).map_err(|e| {
            Answer::new(
                Reason::BadRequest,
                format!("the request's host is not valid: {e}"),
            )
        })?;
        if let Some(tls) = &info.tls
            && !tls.names.is_empty()
            && !tls.covers(host)
        {
            return Err(Answer::new(
                Reason::Misdirected,
                "this connection's certificate is not for this host",
            )
            .into());
        }
        let max_hops = self.limits().max_hops;
        if max_hops > 0 && self.hops >= max_hops {
            return Err(Answer::new(
                Reason::Loop,
                "the request passed this gateway too often: it leads back here",
            )
            .into());
        }
        let client = info.client_ip();
        let table = self.table.take().unwrap_or_else(|| self.engine.table.load());
        let decision = decide(
            &table,
            info.visibility,
            host,
            incoming.view,
            client,
            &mut LiveDraw,
        )
        .map_err(|_| Answer::new(Reason::NoRoute, "no service is known for this host and path"))?;
        let service = Arc::clone(decision.found.service);
        self.service = Some(Arc::clone(&service));
        if redirects(&decision.found, info.tls.is_some()) {
            let Some(target) = Target::of(incoming.target) else {
                let text = "only https is served here, and no URL stands for this request target";
                return Err(Answer::new(Reason::BadRequest, text).into());
            };
            let redirect = redirect_to_https(incoming.view.method(), host, &target.to_uri());
            return Err(Refusal::Redirect(redirect));
        }
        let spec = Arc::clone(&service.revisions[decision.target.slot]);
        let live = Arc::clone(&decision.found.live.revisions()[decision.target.slot]);
        let own = incoming
            .view
            .header("grpc-timeout")
            .filter(|_| self.dialect == Dialect::Grpc)
            .and_then(grpc_timeout);
        self.clocks.arm(&spec.timeouts, own, self.started);
        let route = decision.found.route.map(|(index, _)| index);
        self.routed = Some(Routed {
            service,
            route,
            live,
            spec,
            endpoint_key: decision.endpoint_key,
        });
        Ok(())
    }

    fn note<V: RequestView>(&mut self, incoming: &Incoming<'_, V>) {
        let view = incoming.view;
        self.dialect = Dialect::of(view.header("accept"), view.header("content-type"));
        self.head_bytes = incoming.head_bytes as u64;
        self.wants_timing = view.header(TIMING_HEADER) == Some(b"1");
        self.client = Some(incoming.info.client_ip());
        self.request_id = RequestId::of(view.header("x-request-id"), || fastrand::u128(..));
        self.hops = hops(view.header(HOPS_HEADER));
    }

    /// What the forwarding headers say of this request.
    pub fn forwarding<'a>(&'a self, info: &ConnectionInfo, host: &'a [u8]) -> Forwarding<'a> {
        Forwarding {
            client: info.client_ip(),
            trusted: self.settings().trusts(info.client_ip()),
            tls: info.tls.is_some(),
            host,
            request_id: self.request_id.as_str(),
            hops: self.hops.saturating_add(1),
        }
    }

    /// The gateway's own answer in the client's dialect; noted for log and metrics.
    pub fn refuse(&mut self, refusal: &Refusal) -> Rendered {
        let mut rendered = match refusal {
            Refusal::Answer(answer) => {
                self.reason = Some(answer.reason);
                answer.render(self.dialect, self.request_id.as_str())
            }
            Refusal::Redirect(rendered) => rendered.clone(),
        };
        if self.reason != Some(Reason::ClientGone) {
            self.answers(Instant::now());
            let timing = self.server_timing();
            rendered
                .headers
                .extend(timing.map(|value| ("server-timing", value)));
        }
        rendered.dated(SystemTime::now())
    }

    /// The client's response head is there.
    pub fn answers(&mut self, now: Instant) {
        self.phases = Some(Phases::of(&Milestones {
            arrived: self.started,
            start: self.start,
            admitted: self.admitted,
            first_byte: now,
        }));
    }

    /// What to add as `Server-Timing`, if the client asked. After [`answers`](Self::answers).
    pub fn server_timing(&self) -> Option<String> {
        let phases = self.phases.as_ref().filter(|_| self.wants_timing)?;
        Some(phases.server_timing())
    }

    /// Notes what an attempt ran into, so that it can be told if nothing else works out.
    pub fn fail_attempt(&mut self, reason: Reason, detail: String) {
        self.detail = Some(detail);
        let text = match reason {
            Reason::ConnectFailed => "no endpoint could be reached",
            Reason::Overloaded => "the gateway has no descriptor left",
            _ => "the backend broke off before it answered",
        };
        self.failure = Some(Answer::new(reason, text));
    }

    /// Logs and measures the request and gives its Permit back. Called once, at its end.
    pub fn finish(&mut self, ending: &Ending<'_>, now: Instant) {
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
        self.permit = None;
    }
}

/// As much of a detail as a log line wants: parsers quote whole heads of backends.
fn brief(detail: &str) -> &str {
    const MAX: usize = 256;
    match detail.char_indices().nth(MAX) {
        Some((end, _)) => &detail[..end],
        None => detail,
    }
}

//! What one request's trace is made of: the span of the request, its waits, its attempts.

use std::time::Instant;

use sluice_model::EndpointAddr;

use super::context::{SpanId, TraceContext};
use crate::observe::{Reason, RequestProtocol};
use crate::throttle::StartTimeline;

/// Most waits, and most attempts, that are recorded of one request. More than eight attempts need a platform that answers 429
/// again and again.
const MAX_RECORDED: usize = 64;

/// The trace of one request. Nothing is recorded of a request that is not sampled: its trace is an identifier to be passed on.
#[derive(Debug)]
pub struct RequestTrace {
    /// The request's own span.
    pub(super) own: TraceContext,
    /// The caller's span.
    pub(super) parent: Option<SpanId>,
    /// Whether the client connected by TLS.
    pub(super) tls: bool,
    /// The client's protocol, before any switch.
    pub(super) protocol: RequestProtocol,
    pub(super) waits: Vec<Wait>,
    /// When the wait that goes on began.
    waiting: Option<Instant>,
    pub(super) attempts: Vec<Attempt>,
}

/// A wait for a Permit, or for the end of a delay that a backend asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wait {
    pub(super) from: Instant,
    pub(super) until: Instant,
    /// The start of an instance that was waited for.
    pub(super) start: Option<StartTimeline>,
}

/// An attempt to get a response.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) span: SpanId,
    pub(super) endpoint: Option<EndpointAddr>,
    pub(super) from: Instant,
    /// `None` while the attempt goes on.
    pub(super) until: Option<Instant>,
    /// The status of the response.
    pub(super) status: Option<u16>,
    /// Why there is no whole response.
    pub(super) reason: Option<Reason>,
}

impl RequestTrace {
    pub(super) fn new(
        own: TraceContext,
        parent: Option<SpanId>,
        tls: bool,
        protocol: RequestProtocol,
    ) -> Self {
        Self {
            own,
            parent,
            tls,
            protocol,
            waits: Vec::new(),
            waiting: None,
            attempts: Vec::new(),
        }
    }

    /// Whether the request is recorded.
    pub fn is_sampled(&self) -> bool {
        self.own.sampled
    }

    /// Whether the caller sent a valid `traceparent`.
    pub fn has_parent(&self) -> bool {
        self.parent.is_some()
    }

    /// What a backend gets as `traceparent`: the attempt under way, so that its own spans are that attempt's children.
    pub fn outgoing(&self) -> TraceContext {
        let attempt = self.attempts.last().filter(|attempt| attempt.until.is_none());
        TraceContext {
            span: attempt.map_or(self.own.span, |attempt| attempt.span),
            ..self.own
        }
    }

    /// Notes the begin of a wait.
    pub fn wait_began(&mut self, now: Instant) {
        if self.own.sampled {
            self.waiting = Some(now);
        }
    }

    /// Notes the end of a wait; `start` is the start of an instance that was waited for.
    pub fn wait_ended(&mut self, now: Instant, start: Option<StartTimeline>) {
        if let Some(from) = self.waiting.take()
            && self.waits.len() < MAX_RECORDED
        {
            self.waits.push(Wait {
                from,
                until: now,
                start,
            });
        }
    }

    /// Whether the request waits.
    pub fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Notes the begin of an attempt.
    pub fn attempt_began(&mut self, now: Instant, span: SpanId, endpoint: Option<&EndpointAddr>) {
        if self.own.sampled && self.attempts.len() < MAX_RECORDED {
            self.attempts.push(Attempt {
                span,
                endpoint: endpoint.cloned(),
                from: now,
                until: None,
                status: None,
                reason: None,
            });
        }
    }

    /// Notes the status of the response to the attempt under way.
    pub fn attempt_answered(&mut self, status: u16) {
        if let Some(attempt) = self.under_way() {
            attempt.status = Some(status);
        }
    }

    /// Notes the end of the attempt under way, if there is one.
    pub fn attempt_ended(&mut self, now: Instant, reason: Option<Reason>) {
        if let Some(attempt) = self.under_way() {
            attempt.until = Some(now);
            attempt.reason = reason;
        }
    }

    fn under_way(&mut self) -> Option<&mut Attempt> {
        self.attempts.last_mut().filter(|attempt| attempt.until.is_none())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::traces::context::TraceId;

    fn span(id: u64) -> SpanId {
        SpanId::random(|| id)
    }

    fn trace(sampled: bool) -> RequestTrace {
        let own = TraceContext {
            trace: TraceId::random(|| 7),
            span: span(1),
            sampled,
        };
        RequestTrace::new(own, None, false, RequestProtocol::Http11)
    }

    #[test]
    fn a_backend_gets_the_attempt_as_its_parent() {
        let (mut trace, now) = (trace(true), Instant::now());
        assert_eq!(trace.outgoing().span, span(1));
        trace.attempt_began(now, span(2), None);
        assert_eq!(
            trace.outgoing(),
            TraceContext {
                span: span(2),
                ..trace.own
            }
        );
        trace.attempt_ended(now, None);
        trace.attempt_began(now, span(3), None);
        assert_eq!(trace.outgoing().span, span(3));
    }

    #[test]
    fn nothing_is_recorded_of_what_is_not_sampled() {
        let (mut trace, now) = (trace(false), Instant::now());
        trace.wait_began(now);
        trace.wait_ended(now, None);
        trace.attempt_began(now, span(2), None);
        trace.attempt_answered(200);
        trace.attempt_ended(now, None);
        assert!(trace.waits.is_empty() && trace.attempts.is_empty() && !trace.is_waiting());
        assert_eq!(trace.outgoing(), trace.own, "the request's own span");
    }

    #[test]
    fn records_are_bounded_and_ends_need_a_begin() {
        let (mut trace, now) = (trace(true), Instant::now());
        trace.wait_ended(now, None);
        trace.attempt_ended(now, None);
        trace.attempt_answered(200);
        assert!(trace.waits.is_empty() && trace.attempts.is_empty());
        for _ in 0..1_000 {
            trace.wait_began(now);
            trace.wait_ended(now, None);
            trace.attempt_began(now, span(2), None);
            trace.attempt_answered(429);
            trace.attempt_ended(now + Duration::from_secs(1), None);
        }
        assert_eq!(
            (trace.waits.len(), trace.attempts.len()),
            (MAX_RECORDED, MAX_RECORDED)
        );
        assert!(trace.waits.capacity() <= 2 * MAX_RECORDED);
    }
}

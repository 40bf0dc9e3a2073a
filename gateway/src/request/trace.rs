//! The trace of a request: where its begin, its waits, its attempts and its end are noted.
//!
//! Each of these calls is one branch where no traces are made.

use std::time::Instant;

use super::ctx::RequestCtx;
use super::headers::Fields;
use crate::observe::{Reason, RequestProtocol, RequestRecord};
use crate::throttle::{StartTimeline, clock};
use crate::traces::{TRACEPARENT, TRACESTATE, TraceContext};

/// The trace fields of a request to a backend.
#[derive(Debug, Clone, Copy)]
pub struct OutgoingTrace {
    /// The value of `traceparent`.
    pub traceparent: [u8; 55],
    /// Whether the caller's `tracestate` is forwarded: it belongs to a valid `traceparent` (W3C Trace Context 4.3).
    pub keeps_state: bool,
}

impl RequestCtx {
    /// Begins the request's trace, where traces are made. Further calls change nothing: a request that is routed again stays in its
    /// trace.
    pub fn begin_trace(&mut self, head: &impl Fields, tls: bool, protocol: RequestProtocol) {
        if let Some(tracer) = &self.engine.tracer
            && self.trace.is_none()
        {
            self.trace = Some(Box::new(tracer.begin(caller(head), tls, protocol)));
        }
    }

    /// The trace fields for the backend; `None` where no traces are made, and the client's pass untouched.
    pub fn outgoing_trace(&self) -> Option<OutgoingTrace> {
        let trace = self.trace.as_ref()?;
        Some(OutgoingTrace {
            traceparent: trace.outgoing().traceparent(),
            keeps_state: trace.has_parent(),
        })
    }

    /// Notes the begin of a wait. The first one begins with the request, as `queued` in the access log does.
    pub(super) fn wait_began(&mut self, now: Instant) {
        let first = self.attempts == 0 && self.admitted.is_none();
        let from = if first { self.started } else { now };
        if let Some(trace) = &mut self.trace {
            trace.wait_began(from);
        }
    }

    /// Notes the end of a wait.
    pub(super) fn wait_ended(&mut self, now: Instant, start: Option<StartTimeline>) {
        if let Some(trace) = &mut self.trace {
            trace.wait_ended(now, start);
        }
    }

    /// Notes the begin of an attempt at the Permit's endpoint.
    pub fn attempt_began(&mut self, now: Instant) {
        if let Some((trace, tracer)) = self.trace.as_mut().zip(self.engine.tracer.as_ref()) {
            let endpoint = self.permit.as_ref().map(|permit| &permit.endpoint().address);
            trace.attempt_began(now, tracer.span_id(), endpoint);
        }
    }

    /// Notes the status of the backend's response.
    pub fn attempt_answered(&mut self, status: u16) {
        if let Some(trace) = &mut self.trace {
            trace.attempt_answered(status);
        }
    }

    /// Notes the end of an attempt; `why` is called only where that is noted.
    pub fn attempt_ended(&mut self, why: impl FnOnce(&Self) -> Option<Reason>) {
        if self.trace.is_none() {
            return;
        }
        let reason = why(self);
        if let Some(trace) = &mut self.trace {
            trace.attempt_ended(clock(), reason);
        }
    }

    /// Ends a wait that the client's leaving cut off, with the start that it was for.
    pub(super) fn end_trace_wait(&mut self, now: Instant) {
        if self.trace.as_ref().is_some_and(|trace| trace.is_waiting()) {
            let throttler = self.routed.as_ref().map(|routed| routed.live.throttler());
            let start = throttler.and_then(|throttler| throttler.awaited_start());
            self.wait_ended(now, start);
        }
    }

    /// Ends the trace and queues its spans.
    pub(super) fn finish_trace(&self, record: &RequestRecord<'_>, state: Option<&[u8]>, now: Instant) {
        if let Some((trace, tracer)) = self.trace.as_ref().zip(self.engine.tracer.as_ref()) {
            tracer.finish(trace, record, (self.started, now), state);
        }
    }

    /// The caller's `tracestate`, for the end of the request; `None` where it is not needed.
    pub fn trace_state<'h>(&self, head: &'h impl Fields) -> Option<&'h [u8]> {
        self.trace
            .as_ref()
            .filter(|trace| trace.is_sampled())
            .and_then(|_| head.first(TRACESTATE))
    }
}

/// The caller's span. Several `traceparent` fields are none: nobody could tell which one is meant.
fn caller(head: &impl Fields) -> Option<TraceContext> {
    let (mut first, mut count) = (None, 0);
    head.each(|name, value| {
        if name.eq_ignore_ascii_case(TRACEPARENT.as_bytes()) {
            first = first.or(Some(value));
            count += 1;
        }
    });
    first.filter(|_| count == 1).and_then(TraceContext::parse)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Head(Vec<(&'static str, &'static str)>);

    impl Fields for Head {
        fn each<'h>(&'h self, mut each: impl FnMut(&'h [u8], &'h [u8])) {
            for (name, value) in &self.0 {
                each(name.as_bytes(), value.as_bytes());
            }
        }

        fn first(&self, name: &str) -> Option<&[u8]> {
            let found = self.0.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.as_bytes())
        }
    }

    #[test]
    fn one_valid_field_names_the_caller() {
        let valid = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
        let of = |fields: &[_]| caller(&Head(fields.to_vec()));
        assert!(of(&[("Accept", "*/*"), ("TraceParent", valid)]).is_some_and(|caller| !caller.sampled));
        assert_eq!(of(&[("tracestate", "a=1")]), None);
        assert_eq!(of(&[("traceparent", "00-x")]), None);
        assert_eq!(of(&[("traceparent", valid), ("traceparent", valid)]), None);
    }
}

//! What follows when an attempt gave no whole answer: another attempt, an answer of the gateway's
//! own, or a response that is broken off.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use sluice_model::RequestView;

use super::duplex::{DrainCause, TransferEnd};
use super::retry::{MAX_BROKEN_CONNECTIONS, is_idempotent, may_try_again, was_processed};
use super::sides::{BackendFault, ClientFault, ClientSide};
use super::{Exchange, NextStep};
use crate::local_response::{ErrorResponse, LocalResponse};
use crate::observe::{Reason, Timer};
use crate::request::NextAttempt;
use crate::throttle::{Outcome, clock};
use crate::upstream::ConnectError;

/// How long an answer of the gateway's own may take to be written.
const ANSWER_WRITE: Duration = Duration::from_secs(1);

/// How long an upload may stall once its answer is complete, how long it may go on, and with how many
/// bytes. Generous, because a client that is cut off before it has read the answer may lose the answer
/// (RFC 9112 9.6).
const AFTER_ANSWER: Duration = Duration::from_secs(2);
const AFTER_ANSWER_TOTAL: Duration = Duration::from_secs(10);
const AFTER_ANSWER_BYTES: u64 = 64 << 20;

/// More body than `limits.maxBodyBytes`.
pub(super) fn body_too_large() -> ErrorResponse {
    ErrorResponse::new(Reason::BodyTooLarge, "the request body is larger than allowed")
}

impl<C: ClientSide> Exchange<'_, C> {
    /// No connection could be made.
    pub(super) fn connect_failed(&mut self, error: &ConnectError) -> NextStep {
        let request = &mut self.request;
        if error.is_out_of_descriptors() {
            // The gateway's own bound: no endpoint is to blame, and another would fail alike.
            request.fail_attempt(Reason::Overloaded, error.to_string());
            return self.respond_failure();
        }
        if let Some(permit) = &request.permit {
            permit.report(Outcome::ConnectFailed, clock());
        }
        request.fail_attempt(Reason::ConnectFailed, error.to_string());
        // Nothing was sent: any request may go elsewhere.
        request.next = NextAttempt::OtherEndpoint;
        if may_try_again(request) {
            NextStep::Retry
        } else {
            self.respond_failure()
        }
    }

    /// A transfer broke. `idled` is a connection that had been used before, `sent` whether any byte of
    /// the request can have reached the backend.
    pub(super) fn transfer_failed(&mut self, end: TransferEnd, idled: bool, sent: bool) -> NextStep {
        if self.progress.status.is_some() {
            self.abort_response(&end);
            return NextStep::Done;
        }
        let now = clock();
        let answer = match end {
            TransferEnd::ClientFailed(fault) => {
                self.request.detail.get_or_insert_with(|| fault.to_string());
                match fault {
                    ClientFault::Gone => {
                        self.request.reason = Some(Reason::ClientGone);
                        return NextStep::Done;
                    }
                    ClientFault::Chunk(fault) => ErrorResponse::new(Reason::BadRequest, fault.to_string()),
                }
            }
            TransferEnd::BodyTooLarge => body_too_large(),
            TransferEnd::BodyTimeout => {
                self.client.body_timed_out();
                ErrorResponse::new(Reason::RequestTimeout, "the request body did not come in time")
            }
            TransferEnd::WriteTimeout => {
                self.client.write_timed_out();
                self.request.reason = Some(Reason::ClientGone);
                return NextStep::Done;
            }
            TransferEnd::DeadlinePassed(timer) => {
                // The total may be the client's own deadline, which says nothing of the endpoint.
                if timer == Timer::Start
                    && sent
                    && let Some(permit) = &self.request.permit
                {
                    permit.report(Outcome::ResponseTimeout, now);
                }
                self.request.clocks.fire(timer);
                ErrorResponse::new(Reason::Timeout, "the backend took too long")
            }
            TransferEnd::Draining(going) => return self.drained(going, sent),
            TransferEnd::BackendFailed(fault) => return self.backend_failed(&fault, idled, sent),
            TransferEnd::Complete
            | TransferEnd::ResponseOnly
            | TransferEnd::Switched
            | TransferEnd::RetryLater => return NextStep::Done,
        };
        NextStep::Respond(answer)
    }

    fn backend_failed(&mut self, fault: &BackendFault, idled: bool, sent: bool) -> NextStep {
        let request = &mut self.request;
        request.fail_attempt(Reason::UpstreamError, fault.to_string());
        let not_processed = matches!(fault, BackendFault::NotProcessed) || !sent;
        if let Some(permit) = &request.permit
            && !idled
        {
            if was_processed(fault) {
                permit.endpoint().mark_answered();
            }
            // No answer ever came from it, only a probe said that it is ready: it starts still, and the request
            // goes back to its place in the queue, if it may be sent again.
            let early = permit.endpoint().is_unproven();
            if early || !not_processed {
                permit.report(Outcome::Broke, clock());
                self.broken_connections += u32::from(!early);
            }
        }
        request.next = if idled {
            NextAttempt::FreshConnection
        } else {
            NextAttempt::OtherEndpoint
        };
        let idempotent = is_idempotent(self.client.head().method());
        // It may be the request that breaks backends: not one after another of them.
        let spared = self.broken_connections <= MAX_BROKEN_CONNECTIONS;
        let safe = not_processed || idempotent && spared && !was_processed(fault);
        if safe && self.replay.is_possible() && may_try_again(&self.request) {
            NextStep::Retry
        } else {
            self.respond_failure()
        }
    }

    /// The instance or the gateway has to go, and no head has come.
    fn drained(&mut self, going: DrainCause, sent: bool) -> NextStep {
        self.request.next = NextAttempt::OtherEndpoint;
        let idempotent = is_idempotent(self.client.head().method());
        let again = going == DrainCause::Instance && (idempotent || !sent) && self.replay.is_possible();
        if again && may_try_again(&self.request) {
            return NextStep::Retry;
        }
        NextStep::Respond(ErrorResponse::new(Reason::Draining, "what served this had to go"))
    }

    /// Nothing else will serve the request.
    fn respond_failure(&mut self) -> NextStep {
        let failure = self.request.failure.take();
        NextStep::Respond(failure.unwrap_or_else(|| {
            ErrorResponse::new(Reason::UpstreamError, "the backend broke off before it answered")
        }))
    }

    /// The response head is sent, and the rest will not follow: the client must not take what came for
    /// the whole.
    fn abort_response(&mut self, end: &TransferEnd) {
        let reason = match end {
            TransferEnd::DeadlinePassed(timer) => {
                self.request.clocks.fire(*timer);
                Reason::Timeout
            }
            TransferEnd::BodyTimeout => {
                self.client.body_timed_out();
                Reason::RequestTimeout
            }
            TransferEnd::ClientFailed(ClientFault::Chunk(_)) => Reason::BadRequest,
            TransferEnd::BodyTooLarge => Reason::BodyTooLarge,
            TransferEnd::ClientFailed(ClientFault::Gone) | TransferEnd::WriteTimeout => Reason::ClientGone,
            TransferEnd::Draining(_) => Reason::Draining,
            TransferEnd::BackendFailed(fault) => {
                self.request.detail.get_or_insert_with(|| fault.to_string());
                Reason::UpstreamReset
            }
            TransferEnd::Complete
            | TransferEnd::ResponseOnly
            | TransferEnd::Switched
            | TransferEnd::RetryLater => return,
        };
        self.request.reason = Some(reason);
        if matches!(end, TransferEnd::WriteTimeout) {
            self.client.write_timed_out();
        }
        let over = matches!(
            end,
            TransferEnd::DeadlinePassed(Timer::Age) | TransferEnd::Draining(_)
        );
        // A stream of events may end anywhere: a client drops half an event and comes again.
        let ended = over && self.progress.event_stream && self.client.end_early();
        if !ended {
            self.client.abort();
        }
    }

    /// The answer is complete and its request is not: reads what still comes and throws it away, within
    /// bounds, so that a client which reads only once it has sent everything gets the answer. The endpoint is
    /// free meanwhile.
    pub(super) async fn drain_upload(&mut self) {
        self.request.permit = None;
        let start = clock();
        self.answered = Some(start);
        let mut last = start;
        let mut left = AFTER_ANSWER_BYTES;
        let (client, timer, progress) = (&mut *self.client, &mut *self.timer, &mut self.progress);
        let in_time = poll_fn(|cx| {
            loop {
                match client.poll_body(cx) {
                    Poll::Ready(Ok(true)) => {
                        let n = client.data().len();
                        client.consume(n);
                        progress.bytes_in += n as u64;
                        if n as u64 > left {
                            return Poll::Ready(false);
                        }
                        left -= n as u64;
                        last = clock();
                    }
                    Poll::Ready(_) => return Poll::Ready(true),
                    Poll::Pending => {
                        let until = (last + AFTER_ANSWER).min(start + AFTER_ANSWER_TOTAL);
                        return timer.poll_at(cx, until).map(|()| false);
                    }
                }
            }
        })
        .await;
        if !in_time {
            self.request.reason.get_or_insert(Reason::RequestTimeout);
            self.client.stop_reading_body();
        }
    }

    /// Answers by the gateway itself.
    pub(super) async fn respond_local(&mut self, response: &LocalResponse) {
        if let LocalResponse::Error(ErrorResponse {
            reason: Reason::ClientGone,
            ..
        }) = response
        {
            self.request.reason = Some(Reason::ClientGone);
            self.client.abort();
            return;
        }
        let rendered = self.request.render_local(response);
        self.request.permit = None;
        // What cannot be read safely may be followed by something that was meant to be hidden.
        let last = self.request.draining() || self.request.reason == Some(Reason::BadRequest);
        if self.client.respond_local(&rendered, last).is_err() {
            self.request.reason = Some(Reason::ClientGone);
            return;
        }
        self.progress.status = Some(rendered.status);
        self.progress.bytes_out = rendered.body.len() as u64;
        let (client, timer) = (&mut *self.client, &mut *self.timer);
        let until = clock() + ANSWER_WRITE;
        let written = poll_fn(|cx| {
            if let Poll::Ready(written) = client.poll_flush(cx) {
                return Poll::Ready(written.is_ok());
            }
            timer.poll_at(cx, until).map(|()| false)
        })
        .await;
        if !written {
            self.client.abort();
        } else if !self.client.body_length().is_empty() {
            self.drain_upload().await;
        }
    }
}

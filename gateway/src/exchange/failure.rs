//! Failure handling of an attempt: a retry, a local response, or an aborted response.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use sluice_model::RequestView;

use super::duplex::{DrainCause, TransferEnd, closing};
use super::retry::{MAX_BROKEN_CONNECTIONS, is_idempotent, may_try_again, was_processed};
use super::sides::{BackendFault, ClientFault, ClientSide};
use super::{Exchange, NextStep};
use crate::local_response::{ErrorResponse, LocalResponse};
use crate::observe::{Reason, Timer};
use crate::request::NextAttempt;
use crate::throttle::{Outcome, clock};
use crate::upstream::ConnectError;

/// Timeout of writing a local response.
const LOCAL_RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Bounds of draining an upload after its response is complete: longest stall, longest duration, most bytes.
/// Generous, because a client whose connection is cut before it has read the response may lose the response
/// (RFC 9112 9.6).
const UPLOAD_DRAIN_STALL: Duration = Duration::from_secs(2);
const UPLOAD_DRAIN_TOTAL: Duration = Duration::from_secs(10);
const UPLOAD_DRAIN_BYTES: u64 = 64 << 20;

/// The error response to a body over `limits.maxBodyBytes`.
pub(super) fn body_too_large() -> ErrorResponse {
    ErrorResponse::new(Reason::BodyTooLarge, "the request body is larger than allowed")
}

impl<C: ClientSide> Exchange<'_, C> {
    /// Handles a failed dial.
    pub(super) fn connect_failed(&mut self, error: &ConnectError) -> NextStep {
        let request = &mut self.request;
        if error.is_out_of_descriptors() {
            // A limit of the gateway: no endpoint is at fault, and dialling another would fail alike.
            request.fail_attempt(Reason::Overloaded, error.to_string());
            return self.respond_failure();
        }
        if let Some(permit) = &request.permit {
            permit.report(Outcome::ConnectFailed, clock());
        }
        request.fail_attempt(Reason::ConnectFailed, error.to_string());
        // Nothing was sent: any request may be retried.
        request.next = NextAttempt::OtherEndpoint;
        if may_try_again(request) {
            NextStep::Retry
        } else {
            self.respond_failure()
        }
    }

    /// Handles a failed transfer. `idled` is a connection that had been used before; `sent` whether any byte
    /// of the request can have reached the backend.
    pub(super) fn transfer_failed(&mut self, end: TransferEnd, idled: bool, sent: bool) -> NextStep {
        if self.progress.status.is_some() && !self.progress.is_held() {
            self.abort_response(&end);
            return NextStep::Done;
        }
        let now = clock();
        let error = match end {
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
                // Only the start deadline counts against the endpoint: the total may be the client's own
                // (`grpc-timeout`).
                if timer == Timer::Start
                    && sent
                    && let Some(permit) = &self.request.permit
                {
                    permit.report(Outcome::ResponseTimeout, now);
                }
                self.request.clocks.fire(timer);
                ErrorResponse::new(Reason::Timeout, "the backend took too long")
            }
            TransferEnd::Draining(cause) => return self.drained(cause, sent),
            TransferEnd::BackendFailed(fault) => return self.backend_failed(&fault, idled, sent),
            TransferEnd::Complete
            | TransferEnd::ResponseOnly
            | TransferEnd::Switched
            | TransferEnd::NotSpliced
            | TransferEnd::RetryLater => return NextStep::Done,
        };
        NextStep::Respond(error)
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
            // The endpoint is unproven: a probe found it ready, but no response has come from it yet. It
            // counts as starting still, and the request goes back to its place in the queue, if it may be
            // sent again.
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
        // The request itself may break backends: it is not sent to one after another.
        let spared = self.broken_connections <= MAX_BROKEN_CONNECTIONS;
        let safe = not_processed || idempotent && spared && !was_processed(fault);
        if safe && self.replay.is_possible() && may_try_again(&self.request) {
            NextStep::Retry
        } else {
            self.respond_failure()
        }
    }

    /// Handles a drain of the instance or of the gateway before a response head came.
    fn drained(&mut self, cause: DrainCause, sent: bool) -> NextStep {
        self.request.next = NextAttempt::OtherEndpoint;
        let idempotent = is_idempotent(self.client.head().method());
        let again = cause == DrainCause::Instance && (idempotent || !sent) && self.replay.is_possible();
        if again && may_try_again(&self.request) {
            return NextStep::Retry;
        }
        NextStep::Respond(ErrorResponse::new(Reason::Draining, "what served this had to go"))
    }

    /// Responds with the last attempt's failure: no further attempt can serve the request.
    fn respond_failure(&mut self) -> NextStep {
        let failure = self.request.failure.take();
        NextStep::Respond(failure.unwrap_or_else(|| {
            ErrorResponse::new(Reason::UpstreamError, "the backend broke off before it answered")
        }))
    }

    /// Aborts a response whose head was sent: the client must not take the part for the whole.
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
            | TransferEnd::NotSpliced
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
        // A stream of server-sent events may end anywhere: the client drops a partial event and reconnects.
        let ended = over && self.progress.event_stream && self.client.end_early();
        if !ended {
            self.client.abort();
        }
    }

    /// Drains the upload of a request whose response is complete: reads and drops the body, within bounds and
    /// until the gateway's drain deadline, so that a client which reads only after it has sent everything gets the response. The endpoint's Permit
    /// is released first.
    pub(super) async fn drain_upload(&mut self) {
        self.request.permit = None;
        let start = clock();
        self.response_ended = Some(start);
        let mut last = start;
        let mut left = UPLOAD_DRAIN_BYTES;
        let mut closing = pin!(closing(self.request.drain()));
        let (client, timer, progress) = (&mut *self.client, &mut *self.timer, &mut self.progress);
        let given_up = poll_fn(|cx| {
            if closing.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Some(Reason::Draining));
            }
            loop {
                match client.poll_body(cx) {
                    Poll::Ready(Ok(true)) => {
                        let n = client.data().len();
                        client.consume(n);
                        progress.bytes_in += n as u64;
                        if n as u64 > left {
                            return Poll::Ready(Some(Reason::RequestTimeout));
                        }
                        left -= n as u64;
                        last = clock();
                    }
                    Poll::Ready(_) => return Poll::Ready(None),
                    Poll::Pending => {
                        let until = (last + UPLOAD_DRAIN_STALL).min(start + UPLOAD_DRAIN_TOTAL);
                        return timer.poll_at(cx, until).map(|()| Some(Reason::RequestTimeout));
                    }
                }
            }
        })
        .await;
        if let Some(reason) = given_up {
            self.request.reason.get_or_insert(reason);
            self.client.stop_reading_body();
        }
    }

    /// Sends a local response.
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
        if let (true, LocalResponse::Error(error)) = (self.progress.is_held(), response) {
            self.request.reason = Some(error.reason);
            self.request.response_started(clock());
            let status = error.status.unwrap_or_else(|| error.reason.status().as_u16());
            return self
                .fail_held_stream(status, Some(error.reason), &error.text)
                .await;
        }
        let rendered = self.request.render_local(response);
        self.request.permit = None;
        if let LocalResponse::Page(..) = response {
            return self.send_page(&rendered).await;
        }
        // Bytes behind an invalid request may be a smuggled one: the connection ends.
        let last = self.request.draining() || self.request.reason == Some(Reason::BadRequest);
        if self.client.respond_local(&rendered, last).is_err() {
            self.request.reason = Some(Reason::ClientGone);
            return;
        }
        self.progress.status = Some(rendered.status);
        self.progress.bytes_out = rendered.body.len() as u64;
        let (client, timer) = (&mut *self.client, &mut *self.timer);
        let until = clock() + LOCAL_RESPONSE_TIMEOUT;
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

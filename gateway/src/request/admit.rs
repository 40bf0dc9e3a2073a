//! Admission: holds a request until a slot of an endpoint is free.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use super::ctx::{NextAttempt, RequestCtx};
use crate::local_response::ErrorResponse;
use crate::observe::{Reason, Timer};
use crate::throttle::{Admission, Arrival, Permit, Rejection, StartTimeline, Waiter, clock};
use sluice_model::Failure;

/// Polls for the client's end while a request waits; [`Waiter`] is its place in the queue, where it has one.
pub trait PollGone: FnMut(&mut Context<'_>, Option<&Waiter>) -> Poll<()> {}

impl<F: FnMut(&mut Context<'_>, Option<&Waiter>) -> Poll<()>> PollGone for F {}

impl RequestCtx {
    /// Acquires a Permit: at once where an endpoint is free, otherwise after waiting in the queue. `gone` is polled
    /// while the request waits, with its place in the queue where it has one, and resolves when the client left; the
    /// request leaves the queue then, and nothing reaches the backend.
    ///
    /// # Errors
    /// The error response. Cancel-safe: dropping the future leaves the queue.
    pub async fn admit(&mut self, gone: impl PollGone) -> Result<(), ErrorResponse> {
        let now = clock();
        let Some(routed) = &self.routed else {
            return Err(ErrorResponse::new(Reason::NoRoute, "the request was not routed"));
        };
        let arrival = Arrival {
            bytes: self.head_bytes,
            deadline: self.clocks.deadline(),
            sticky: routed.endpoint_key,
            passive: self.passive,
        };
        let admission = routed.live.throttler().admit(arrival, now);
        self.settle(admission, now, gone).await
    }

    /// Acquires a Permit for the next attempt, of the kind in `next`.
    ///
    /// # Errors
    /// The error response: the failure of the attempts, if no other endpoint can serve.
    pub async fn fail_over(&mut self, mut gone: impl PollGone) -> Result<(), ErrorResponse> {
        let now = clock();
        let next = std::mem::replace(&mut self.next, NextAttempt::FreshConnection);
        match next {
            NextAttempt::First | NextAttempt::FreshConnection => Ok(()),
            NextAttempt::OtherEndpoint => {
                let Some(permit) = self.permit.take() else {
                    return self.admit(gone).await;
                };
                let admission = permit.failover(now);
                let taken = self.settle(admission, now, gone).await;
                taken.map_err(|error| self.prefer_failure(error))
            }
            NextAttempt::OtherTier => {
                let Some(permit) = self.permit.take() else {
                    return self.admit(gone).await;
                };
                let admission = permit.spill(now);
                self.settle(admission, now, gone).await
            }
            NextAttempt::After(wait) => {
                self.permit = None;
                self.wait_began(now);
                let deadline = self.clocks.deadline();
                let until = deadline.map_or(now + wait, |d| d.min(now + wait));
                tokio::select! {
                    () = tokio::time::sleep_until(until.into()) => {}
                    () = poll_fn(|cx| gone(cx, None)) => return Err(client_gone()),
                }
                self.queued += wait;
                self.held = None;
                let until = clock();
                self.admitted = Some(until);
                self.wait_ended(until, None);
                self.admit(gone).await
            }
        }
    }

    /// Prefers an attempt's own failure to "there is no other endpoint" and to a removed revision.
    fn prefer_failure(&mut self, error: ErrorResponse) -> ErrorResponse {
        match error.reason {
            Reason::NoEndpoints | Reason::NoRoute => self.failure.take().unwrap_or(error),
            _ => error,
        }
    }

    async fn settle(
        &mut self,
        admission: Admission,
        now: Instant,
        gone: impl PollGone,
    ) -> Result<(), ErrorResponse> {
        let outcome = match admission {
            Admission::Admitted(permit) => Ok(permit),
            Admission::Rejected(rejection) => Err(rejection),
            Admission::Waiting(waiter) => {
                self.wait_began(now);
                let outcome = self.wait(waiter, gone).await;
                let until = clock();
                self.queued += until.saturating_duration_since(now);
                let outcome = outcome?;
                self.admitted = Some(until);
                let start = self.awaited_start(&outcome, now);
                self.start = start.or(self.start);
                self.wait_ended(until, start);
                outcome
            }
        };
        match outcome {
            Ok(permit) => {
                self.endpoint = Some(permit.endpoint().address.clone());
                if let Some(routed) = &mut self.routed {
                    routed.tier = permit.endpoint().tier;
                }
                self.permit = Some(permit);
                Ok(())
            }
            Err(rejection) => Err(self.reject(&rejection)),
        }
    }

    /// The start of an instance that a wait from `since` on was for, whether or not the start completed;
    /// `None` if the endpoint had been ready before.
    fn awaited_start(&self, outcome: &Result<Permit, Rejection>, since: Instant) -> Option<StartTimeline> {
        match outcome {
            Ok(permit) => {
                let timeline = permit.endpoint().start_timeline();
                timeline.ready.filter(|ready| *ready > since)?;
                Some(timeline)
            }
            Err(_) => self.routed.as_ref()?.live.throttler().awaited_start(),
        }
    }

    async fn wait(
        &mut self,
        mut waiter: Waiter,
        mut gone: impl PollGone,
    ) -> Result<Result<Permit, Rejection>, ErrorResponse> {
        poll_fn(|cx| match Pin::new(&mut waiter).poll(cx) {
            Poll::Ready(outcome) => Poll::Ready(Ok(outcome)),
            Poll::Pending => gone(cx, Some(&waiter)).map(|()| Err(client_gone())),
        })
        .await
    }

    fn reject(&mut self, rejection: &Rejection) -> ErrorResponse {
        self.removed = matches!(rejection, Rejection::Removed);
        if matches!(rejection, Rejection::DeadlineExceeded) {
            self.clocks.fire(self.clocks.missed(clock()));
        }
        if let Rejection::ActivationFailed { failure, .. } = rejection {
            self.detail = Some(failure.detail.clone());
        }
        rejection_response(rejection, self.settings().error_detail, self.clocks.fired())
    }
}

fn client_gone() -> ErrorResponse {
    ErrorResponse::new(Reason::ClientGone, "the client left")
}

/// The reason of a response that a failed start is the cause of.
pub(super) fn failure_reason(failure: Failure) -> Reason {
    match failure {
        Failure::Failed => Reason::ActivationFailed,
        Failure::TimedOut => Reason::ActivationTimeout,
        Failure::NotAllowed => Reason::NoEndpoints,
    }
}

/// The error response to a request that was not admitted. The cause of a failed activation is sent to the
/// client only with `errorDetail`.
pub fn rejection_response(rejection: &Rejection, error_detail: bool, timer: Option<Timer>) -> ErrorResponse {
    let (reason, text) = match rejection {
        Rejection::QueueFull { .. } => (Reason::QueueFull, "the queue is full"),
        Rejection::QueueTimeout { .. } => (Reason::QueueTimeout, "no place came free in time"),
        Rejection::NoEndpoints => (Reason::NoEndpoints, "there is nothing to send this to"),
        Rejection::Overloaded { .. } => (Reason::Overloaded, "the gateway holds as much as it may"),
        Rejection::Dormant { .. } => (
            Reason::Dormant,
            "nothing is running, and a request like this starts nothing",
        ),
        Rejection::Draining => (Reason::Draining, "the gateway is shutting down"),
        Rejection::Removed => (
            Reason::NoRoute,
            "the revision was removed while the request waited",
        ),
        Rejection::DeadlineExceeded => {
            let text = if timer == Some(Timer::Start) {
                "no answer began in time"
            } else {
                "the request took too long"
            };
            (Reason::Timeout, text)
        }
        Rejection::ActivationFailed { failure, .. } => {
            let reason = failure_reason(failure.failure);
            let text = match failure.failure {
                Failure::Failed => "the backend could not be started",
                Failure::TimedOut => "the backend did not start in time",
                Failure::NotAllowed => "nothing may be started to serve this",
            };
            let error = if error_detail && !failure.detail.is_empty() {
                ErrorResponse::new(reason, format!("{text}: {}", failure.detail))
            } else {
                ErrorResponse::new(reason, text)
            };
            return error.retry_after(rejection.retry_after());
        }
    };
    ErrorResponse::new(reason, text).retry_after(rejection.retry_after())
}

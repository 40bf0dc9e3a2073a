//! What follows when an attempt gave no whole answer: another attempt, an answer of the gateway's
//! own, or a response that is broken off.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use sluice_model::RequestView;

use super::duplex::{Going, Passage, closing};
use super::retry::{MAX_BROKEN, is_idempotent, may_try_again, was_looked_at};
use super::sides::{BackendFault, ClientFault, ClientSide};
use super::{Exchange, Next};
use crate::answer::Answer;
use crate::observe::{Reason, Timer};
use crate::request::{Attempt, Refusal};
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
pub(super) fn body_too_large() -> Answer {
    Answer::new(Reason::BodyTooLarge, "the request body is larger than allowed")
}

impl<C: ClientSide> Exchange<'_, C> {
    /// No connection could be made.
    pub(super) fn not_connected(&mut self, error: &ConnectError) -> Next {
        let request = &mut self.request;
        if error.is_out_of_descriptors() {
            // The gateway's own bound: no endpoint is to blame, and another would fail alike.
            request.fail_attempt(Reason::Overloaded, error.to_string());
            return self.give_up();
        }
        if let Some(permit) = &request.permit {
            permit.report(Outcome::ConnectFailed, clock());
        }
        request.fail_attempt(Reason::ConnectFailed, error.to_string());
        // Nothing was sent: any request may go elsewhere.
        request.next = Attempt::OtherEndpoint;
        if may_try_again(request) {
            Next::Again
        } else {
            self.give_up()
        }
    }

    /// A passage broke. `idled` is a connection that had been used before, `sent` whether any byte of
    /// the request can have reached the backend.
    pub(super) fn broke(&mut self, passage: Passage, idled: bool, sent: bool) -> Next {
        if self.progress.status.is_some() {
            self.broke_off(&passage);
            return Next::Over;
        }
        let now = clock();
        let answer = match passage {
            Passage::Client(fault) => {
                self.request.detail.get_or_insert_with(|| fault.to_string());
                match fault {
                    ClientFault::Gone => {
                        self.request.reason = Some(Reason::ClientGone);
                        return Next::Over;
                    }
                    ClientFault::Chunk(fault) => Answer::new(Reason::BadRequest, fault.to_string()),
                }
            }
            Passage::TooLarge => body_too_large(),
            Passage::BodyLate => {
                self.client.body_timed_out();
                Answer::new(Reason::RequestTimeout, "the request body did not come in time")
            }
            Passage::WriteTimeout => {
                self.client.write_timed_out();
                self.request.reason = Some(Reason::ClientGone);
                return Next::Over;
            }
            Passage::Clock(timer) => {
                // The total may be the client's own deadline, which says nothing of the endpoint.
                if timer == Timer::Start
                    && sent
                    && let Some(permit) = &self.request.permit
                {
                    permit.report(Outcome::ResponseTimeout, now);
                }
                self.request.clocks.fire(timer);
                Answer::new(Reason::Timeout, "the backend took too long")
            }
            Passage::Going(going) => return self.went(going, sent),
            Passage::Backend(fault) => return self.backend_broke(&fault, idled, sent),
            Passage::Whole | Passage::Early | Passage::Switched | Passage::PutOff => return Next::Over,
        };
        Next::Answer(answer)
    }

    fn backend_broke(&mut self, fault: &BackendFault, idled: bool, sent: bool) -> Next {
        let request = &mut self.request;
        request.fail_attempt(Reason::UpstreamError, fault.to_string());
        let not_processed = matches!(fault, BackendFault::NotProcessed) || !sent;
        if let Some(permit) = &request.permit
            && !idled
        {
            if was_looked_at(fault) {
                permit.endpoint().mark_answered();
            }
            // No answer ever came from it, only a probe said that it is ready: it starts still, and the request
            // goes back to its place in the queue, if it may be sent again.
            let early = permit.endpoint().is_unproven();
            if early || !not_processed {
                permit.report(Outcome::Broke, clock());
                self.broken += u32::from(!early);
            }
        }
        request.next = if idled {
            Attempt::FreshConnection
        } else {
            Attempt::OtherEndpoint
        };
        let idempotent = is_idempotent(self.client.head().method());
        // It may be the request that breaks backends: not one after another of them.
        let spared = self.broken <= MAX_BROKEN;
        let safe = not_processed || idempotent && spared && !was_looked_at(fault);
        if safe && self.replay.is_possible() && may_try_again(&self.request) {
            Next::Again
        } else {
            self.give_up()
        }
    }

    /// The instance or the gateway has to go, and no head has come.
    fn went(&mut self, going: Going, sent: bool) -> Next {
        self.request.next = Attempt::OtherEndpoint;
        let idempotent = is_idempotent(self.client.head().method());
        let again = going == Going::Instance && (idempotent || !sent) && self.replay.is_possible();
        if again && may_try_again(&self.request) {
            return Next::Again;
        }
        Next::Answer(Answer::new(Reason::Draining, "what served this had to go"))
    }

    /// Nothing else will serve the request.
    fn give_up(&mut self) -> Next {
        let failure = self.request.failure.take();
        Next::Answer(failure.unwrap_or_else(|| {
            Answer::new(Reason::UpstreamError, "the backend broke off before it answered")
        }))
    }

    /// The response head is sent, and the rest will not follow: the client must not take what came for
    /// the whole.
    fn broke_off(&mut self, passage: &Passage) {
        let reason = match passage {
            Passage::Clock(timer) => {
                self.request.clocks.fire(*timer);
                Reason::Timeout
            }
            Passage::BodyLate => {
                self.client.body_timed_out();
                Reason::RequestTimeout
            }
            Passage::Client(ClientFault::Chunk(_)) => Reason::BadRequest,
            Passage::TooLarge => Reason::BodyTooLarge,
            Passage::Client(ClientFault::Gone) | Passage::WriteTimeout => Reason::ClientGone,
            Passage::Going(_) => Reason::Draining,
            Passage::Backend(fault) => {
                self.request.detail.get_or_insert_with(|| fault.to_string());
                Reason::UpstreamReset
            }
            Passage::Whole | Passage::Early | Passage::Switched | Passage::PutOff => return,
        };
        self.request.reason = Some(reason);
        if matches!(passage, Passage::WriteTimeout) {
            self.client.write_timed_out();
        }
        let over = matches!(passage, Passage::Clock(Timer::Age) | Passage::Going(_));
        // A stream of events may end anywhere: a client drops half an event and comes again.
        let ended = over && self.progress.event_stream && self.client.end_early();
        if !ended {
            self.client.abort();
        }
    }

    /// The answer is complete and its request is not: reads what still comes and throws it away, within
    /// bounds and until the drain's deadline, so that a client which reads only once it has sent everything gets
    /// the answer. The endpoint is free meanwhile.
    pub(super) async fn read_on(&mut self) {
        self.request.permit = None;
        let start = clock();
        self.answered = Some(start);
        let mut last = start;
        let mut left = AFTER_ANSWER_BYTES;
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
                        let until = (last + AFTER_ANSWER).min(start + AFTER_ANSWER_TOTAL);
                        return timer.poll_at(cx, until).map(|()| Some(Reason::RequestTimeout));
                    }
                }
            }
        })
        .await;
        if let Some(why) = given_up {
            self.request.reason.get_or_insert(why);
            self.client.give_up_body();
        }
    }

    /// Answers by the gateway itself.
    pub(super) async fn refuse(&mut self, refusal: &Refusal) {
        if let Refusal::Answer(Answer {
            reason: Reason::ClientGone,
            ..
        }) = refusal
        {
            self.request.reason = Some(Reason::ClientGone);
            self.client.abort();
            return;
        }
        let rendered = self.request.refuse(refusal);
        self.request.permit = None;
        // What cannot be read safely may be followed by something that was meant to be hidden.
        let last = self.request.draining() || self.request.reason == Some(Reason::BadRequest);
        if self.client.answer(&rendered, last).is_err() {
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
            self.read_on().await;
        }
    }
}
